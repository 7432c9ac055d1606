//! What the types of the settings cannot say: ranges, and settings that need
//! each other.

use http::Uri;
use ruma::RoomVersionId;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};
use url::Host;

use super::{Config, Listener, Rate, UrlPreviews, WellKnown};

/// A setting that cannot be used.
#[derive(Debug)]
pub(super) struct Problem {
    /// The setting, as in `listeners.0.cert`.
    pub(super) key: String,
    /// What is wrong, to be read after the key.
    pub(super) message: String,
}

fn require(holds: bool, key: impl Into<String>, message: &str) -> Result<(), Problem> {
    if holds {
        return Ok(());
    }
    Err(Problem {
        key: key.into(),
        message: message.to_owned(),
    })
}

/// Finds the first setting that cannot be used.
pub(super) fn check(config: &Config) -> Result<(), Problem> {
    require(
        !config.data_dir.as_os_str().is_empty(),
        "data_dir",
        "must not be empty",
    )?;
    require(
        !config.listeners.is_empty(),
        "listeners",
        "must name at least one address",
    )?;
    for (index, listener) in config.listeners.iter().enumerate() {
        check_listener(index, listener)?;
    }
    check_addresses(config)?;
    check_database(config)?;
    check_registration(config)?;
    check_application_services(config)?;
    check_rates(config)?;
    check_media(config)?;
    check_url_previews(&config.url_previews)?;
    require(
        is_supported(&config.rooms.default_version),
        "rooms.default_version",
        "must be a room version from \"6\" to \"12\"",
    )?;
    require(
        config.sessions.access_token_seconds > 0,
        "sessions.access_token_seconds",
        "must be more than 0",
    )?;
    require(
        config.sessions.refresh_token_seconds != Some(0),
        "sessions.refresh_token_seconds",
        "must be more than 0",
    )?;
    check_well_known(&config.well_known)?;
    let filter = &config.logging.filter;
    require(
        EnvFilter::builder().parse(filter).is_ok() && has_levels(filter),
        "logging.filter",
        "must be a list of levels and modules, as in \"info,homing::sync=debug\"",
    )
}

fn check_listener(index: usize, listener: &Listener) -> Result<(), Problem> {
    let key = |name| format!("listeners.{index}.{name}");
    for (name, file) in [("cert", &listener.cert), ("key", &listener.key)] {
        if listener.tls {
            let message = format!("is true, but `{name}` is not set");
            require(file.is_some(), key("tls"), &message)?;
        } else {
            require(file.is_none(), key(name), "is set, but `tls` is false")?;
        }
    }
    require(
        listener.max_connections > 0,
        key("max_connections"),
        "must be more than 0",
    )
}

/// No two sockets have the same address, unless the system chooses their ports.
fn check_addresses(config: &Config) -> Result<(), Problem> {
    let listeners = config.listeners.iter().enumerate();
    let mut named = listeners
        .map(|(index, listener)| (format!("listeners.{index}.bind"), listener.bind))
        .collect::<Vec<_>>();
    named.extend(
        config
            .metrics
            .bind
            .map(|bind| ("metrics.bind".to_owned(), bind)),
    );
    for (index, (key, bind)) in named.iter().enumerate() {
        let taken = named[..index].iter().any(|(_, other)| other == bind);
        require(
            !taken || bind.port() == 0,
            key,
            "is the address of another listener",
        )?;
    }
    Ok(())
}

/// Whether each part of a log filter that is a word alone is a level: `EnvFilter` takes any other word for a module's
/// name, and then logs nothing else.
fn has_levels(filter: &str) -> bool {
    let mut words = filter
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty() && !part.contains(['=', '[', ']', '{', '}']));
    words.all(|word| word.parse::<LevelFilter>().is_ok())
}

fn check_database(config: &Config) -> Result<(), Problem> {
    if let Some(url) = &config.database.url {
        // The message does not repeat the URL, which may hold a password.
        let url = url.reveal();
        let known = ["sqlite:", "postgres://", "postgresql://"]
            .iter()
            .any(|scheme| url.len() > scheme.len() && url.starts_with(scheme));
        require(
            known,
            "database.url",
            "must be `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/NAME`",
        )?;
    }
    require(
        config.database.max_connections != Some(0),
        "database.max_connections",
        "must be more than 0",
    )
}

/// An empty secret is most often a variable that somebody forgot to fill: it
/// must not open a door.
fn check_registration(config: &Config) -> Result<(), Problem> {
    let registration = &config.registration;
    if let Some(secret) = &registration.shared_secret {
        require(
            !secret.reveal().is_empty(),
            "registration.shared_secret",
            "must not be empty",
        )?;
    }
    for (index, token) in registration.tokens.iter().enumerate() {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._~-".contains(&b);
        let token = token.reveal();
        require(
            (1..=64).contains(&token.len()) && token.bytes().all(allowed),
            format!("registration.tokens.{index}"),
            "must be 1 to 64 of the characters A-Z, a-z, 0-9, \".\", \"_\", \"~\" and \"-\"",
        )?;
    }
    Ok(())
}

fn check_application_services(config: &Config) -> Result<(), Problem> {
    let services = &config.application_services;
    for (index, service) in services.iter().enumerate() {
        let key = |field: &str| format!("application_services.{index}.{field}");
        let before = &services[..index];
        require(
            before.iter().all(|other| other.id != service.id),
            key("id"),
            "must not be another one's too",
        )?;
        require(
            !service.token.reveal().is_empty()
                && before.iter().all(|other| other.token != service.token),
            key("token"),
            "must not be empty or another one's too",
        )?;
        require(
            !service.sender_localpart.is_empty(),
            key("sender_localpart"),
            "must not be empty",
        )?;
        require(
            service.patterns().is_ok(),
            key("users"),
            "must be regular expressions",
        )?;
    }
    Ok(())
}

fn check_rates(config: &Config) -> Result<(), Problem> {
    let limits = &config.rate_limits;
    let rates: [(&str, Rate); 10] = [
        ("login_per_address", limits.login_per_address),
        ("login_per_account", limits.login_per_account),
        ("registration", limits.registration),
        ("messages", limits.messages),
        ("joins", limits.joins),
        ("invites", limits.invites),
        ("refreshes", limits.refreshes),
        ("uploads", limits.uploads),
        ("profiles", limits.profiles),
        ("previews", limits.previews),
    ];
    for (name, rate) in rates {
        require(
            (1e-6..=1e6).contains(&rate.per_second),
            format!("rate_limits.{name}.per_second"),
            "must be between 0.000001 and 1000000",
        )?;
        require(
            rate.burst > 0,
            format!("rate_limits.{name}.burst"),
            "must be more than 0",
        )?;
    }
    Ok(())
}

fn check_media(config: &Config) -> Result<(), Problem> {
    let media = &config.media;
    // Clients read the limit as a JSON number, which is exact up to 2^53.
    require(
        (1..1 << 53).contains(&media.max_upload_bytes),
        "media.max_upload_bytes",
        "must be between 1 and 2^53 - 1",
    )?;
    require(
        media.max_pending_uploads > 0,
        "media.max_pending_uploads",
        "must be more than 0",
    )?;
    require(
        (1..1 << 32).contains(&media.pending_upload_seconds),
        "media.pending_upload_seconds",
        "must be between 1 and 2^32 - 1",
    )
}

fn check_url_previews(previews: &UrlPreviews) -> Result<(), Problem> {
    require(
        previews.denied_urls().is_ok(),
        "url_previews.deny_urls",
        "must be regular expressions",
    )?;
    for (index, host) in previews.deny_hosts.iter().enumerate() {
        require(
            Host::parse(host).is_ok(),
            format!("url_previews.deny_hosts.{index}"),
            "must be the name or address of a host, as in \"example.org\"",
        )?;
    }
    // Images of previews are read in memory, several at a time.
    require(
        (1..=64 << 20).contains(&previews.max_image_bytes),
        "url_previews.max_image_bytes",
        "must be between 1 and 64 MiB",
    )
}

fn is_supported(version: &RoomVersionId) -> bool {
    matches!(
        version,
        RoomVersionId::V6
            | RoomVersionId::V7
            | RoomVersionId::V8
            | RoomVersionId::V9
            | RoomVersionId::V10
            | RoomVersionId::V11
            | RoomVersionId::V12
    )
}

fn check_well_known(well_known: &WellKnown) -> Result<(), Problem> {
    let urls = [
        ("client_base_url", &well_known.client_base_url),
        ("support_page", &well_known.support_page),
    ];
    for (name, url) in urls {
        require(
            url.as_deref().is_none_or(is_web_url),
            format!("well_known.{name}"),
            "must be an http or https URL",
        )?;
    }
    for (index, contact) in well_known.support_contacts.iter().enumerate() {
        require(
            contact.matrix_id.is_some() || contact.email_address.is_some(),
            format!("well_known.support_contacts.{index}"),
            "must have a `matrix_id` or an `email_address`",
        )?;
    }
    Ok(())
}

fn is_web_url(text: &str) -> bool {
    text.parse::<Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some()
    })
}
