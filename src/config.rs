//! The settings of a server: their names, meanings and defaults.
//!
//! [`load`] reads them from a TOML file and from environment variables named
//! after them (`HOMING_DATABASE__URL` is `url` in `[database]`); what neither
//! sets keeps its default, so that a server runs with no configuration at all.
//! `example.toml` beside this file documents every setting for operators.

mod check;
mod load;
mod values;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use ipnet::IpNet;
use regex::{Regex, RegexSet};
use ruma::{OwnedServerName, RoomVersionId, owned_server_name};
use serde::{Deserialize, Serialize};

use self::values::networks;

pub use self::{
    load::{CONFIG_VARIABLE, Error, load},
    values::{LogFormat, Rate, RegistrationMode, Secret, SupportContact},
};

/// A commented configuration file that says what every setting does and,
/// as it stands, sets none of them.
pub const EXAMPLE: &str = include_str!("config/example.toml");

/// All settings of one server.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The name in user ids and room aliases; it can never be changed.
    pub server_name: OwnedServerName,
    /// Where the database (`SQLite`), the media and the signing key are kept.
    pub data_dir: PathBuf,
    pub listeners: Vec<Listener>,
    pub database: Database,
    pub registration: Registration,
    pub application_services: Vec<ApplicationService>,
    pub rate_limits: RateLimits,
    pub presence: Presence,
    pub media: Media,
    pub url_previews: UrlPreviews,
    pub rooms: Rooms,
    pub federation: Federation,
    pub push: Push,
    pub sessions: Sessions,
    pub well_known: WellKnown,
    pub logging: Logging,
    pub metrics: Metrics,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server_name: owned_server_name!("localhost"),
            data_dir: PathBuf::from("./homing-data"),
            listeners: vec![Listener::default()],
            database: Database::default(),
            registration: Registration::default(),
            application_services: Vec::new(),
            rate_limits: RateLimits::default(),
            presence: Presence::default(),
            media: Media::default(),
            url_previews: UrlPreviews::default(),
            rooms: Rooms::default(),
            federation: Federation::default(),
            push: Push::default(),
            sessions: Sessions::default(),
            well_known: WellKnown::default(),
            logging: Logging::default(),
            metrics: Metrics::default(),
        }
    }
}

impl Config {
    /// The database to open: `database.url`, or the file `homing.db` in the
    /// data directory.
    #[must_use]
    pub fn database_url(&self) -> String {
        match &self.database.url {
            Some(url) => url.reveal().to_owned(),
            None => format!("sqlite:{}", self.data_dir.join("homing.db").display()),
        }
    }
}

/// An address on which the server answers requests.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listener {
    pub bind: SocketAddr,
    /// Whether to speak TLS, with the certificate and key below.
    pub tls: bool,
    /// The PEM file of the certificate, followed by its intermediates.
    pub cert: Option<PathBuf>,
    /// The PEM file of the certificate's private key.
    pub key: Option<PathBuf>,
    /// Whether a proxy in front of this listener names the client in
    /// `X-Forwarded-For`. Without a proxy, clients could claim any address.
    pub x_forwarded: bool,
    /// Connections open at one time; further ones wait to be accepted.
    pub max_connections: usize,
}

impl Default for Listener {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 8008)),
            tls: false,
            cert: None,
            key: None,
            x_forwarded: false,
            max_connections: 16_384,
        }
    }
}

/// Where the server keeps its data.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// `sqlite:PATH` or `postgres://...`; see [`Config::database_url`].
    pub url: Option<Secret>,
    /// Connections for reading. `None` leaves it to the kind of database.
    pub max_connections: Option<u32>,
}

/// Who may make an account.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registration {
    pub mode: RegistrationMode,
    /// Registration tokens that are always valid, besides the stored ones.
    pub tokens: Vec<Secret>,
    /// The secret of `/_synapse/admin/v1/register`, which is closed without.
    pub shared_secret: Option<Secret>,
    /// Whether clients may register guests.
    pub guests: bool,
}

/// A program that registers users and logs in as them.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ApplicationService {
    /// What it is called here.
    pub id: String,
    /// The token with which it comes.
    pub token: Secret,
    /// The name of its own user.
    pub sender_localpart: String,
    /// Regular expressions that its users' ids match from their start.
    #[serde(default)]
    pub users: Vec<String>,
    /// Whether nobody else may have such names.
    #[serde(default = "exclusive")]
    pub exclusive: bool,
}

impl ApplicationService {
    /// Its patterns, as others read them: from the start of a user id on, not necessarily to its end.
    ///
    /// # Errors
    /// If one is no regular expression.
    pub fn patterns(&self) -> Result<Vec<Regex>, regex::Error> {
        let users = self.users.iter();
        users
            .map(|pattern| Regex::new(&format!("^(?:{pattern})")))
            .collect()
    }
}

fn exclusive() -> bool {
    true
}

/// How often a client may do what costs the server or its users something.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimits {
    pub enabled: bool,
    /// Attempts to log in from one address.
    pub login_per_address: Rate,
    /// Attempts to log in to one account.
    pub login_per_account: Rate,
    /// Registrations from one address.
    pub registration: Rate,
    /// Events and to-device messages that one user sends.
    pub messages: Rate,
    /// Rooms that one user joins or knocks on.
    pub joins: Rate,
    /// Invites that one user sends, and those that one user gets from other servers.
    pub invites: Rate,
    /// Access tokens refreshed from one address.
    pub refreshes: Rate,
    /// Files that one user uploads or makes names for.
    pub uploads: Rate,
    /// Changes that one user makes to their profile.
    pub profiles: Rate,
    /// Pages that are fetched because one user wants to see a preview.
    pub previews: Rate,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            enabled: true,
            login_per_address: Rate::new(0.2, 10),
            login_per_account: Rate::new(0.1, 5),
            registration: Rate::new(0.1, 5),
            messages: Rate::new(10.0, 100),
            joins: Rate::new(0.5, 20),
            invites: Rate::new(0.5, 20),
            refreshes: Rate::new(1.0, 30),
            uploads: Rate::new(1.0, 50),
            profiles: Rate::new(0.2, 10),
            previews: Rate::new(1.0, 50),
        }
    }
}

/// Whether users see who is online.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Presence {
    pub enabled: bool,
}

impl Default for Presence {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// Limits on uploaded files.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Media {
    /// The size of the largest file that may be uploaded.
    pub max_upload_bytes: u64,
    /// What all files of one user may take together; without it, as much as
    /// there is.
    pub max_user_bytes: Option<u64>,
    /// Whether media are also served on the old paths that need no login.
    pub unauthenticated: bool,
    /// Asynchronous uploads that one user may have begun and not finished.
    pub max_pending_uploads: u32,
    /// How long an asynchronous upload may take, in seconds.
    pub pending_upload_seconds: u64,
    /// What media of other servers may take on the disk, with their
    /// thumbnails; those that nobody asks for are fetched again when they are.
    pub remote_cache_bytes: u64,
}

impl Default for Media {
    fn default() -> Self {
        Self {
            max_upload_bytes: 50 * 1024 * 1024,
            max_user_bytes: None,
            unauthenticated: false,
            max_pending_uploads: 10,
            pending_upload_seconds: 24 * 60 * 60,
            remote_cache_bytes: 4 * 1024 * 1024 * 1024,
        }
    }
}

/// Whether the server looks at the pages that people link to, to show a preview.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct UrlPreviews {
    pub enabled: bool,
    /// Hosts that are not asked, and neither are those below them.
    pub deny_hosts: Vec<String>,
    /// Regular expressions of URLs that are not asked for.
    pub deny_urls: Vec<String>,
    /// Addresses that the server may connect to although they are private.
    #[serde(deserialize_with = "networks")]
    pub allow_addresses: Vec<IpNet>,
    /// The size of the largest image that a preview may have.
    pub max_image_bytes: u64,
}

impl UrlPreviews {
    /// The URLs that are not asked for.
    ///
    /// # Errors
    /// If a pattern is no regular expression.
    pub fn denied_urls(&self) -> Result<RegexSet, regex::Error> {
        RegexSet::new(&self.deny_urls)
    }
}

impl Default for UrlPreviews {
    fn default() -> Self {
        Self {
            enabled: false,
            deny_hosts: Vec::new(),
            deny_urls: Vec::new(),
            allow_addresses: Vec::new(),
            max_image_bytes: 5 * 1024 * 1024,
        }
    }
}

/// What new rooms are like.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rooms {
    /// The version of rooms whose creator asks for none: 6 to 12.
    pub default_version: RoomVersionId,
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            default_version: RoomVersionId::V12,
        }
    }
}

/// How the server talks to other servers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Federation {
    pub enabled: bool,
    /// Addresses that the server may connect to although they are private.
    #[serde(deserialize_with = "networks")]
    pub allow_addresses: Vec<IpNet>,
    /// A PEM file of certificate authorities to trust besides the usual ones.
    pub ca_file: Option<PathBuf>,
    /// Whether other servers and this one tell each other who is online.
    pub presence: bool,
    /// Whether other servers learn what people here call their devices.
    pub device_names: bool,
    /// Servers that are asked for the keys of those that do not answer, and
    /// believed.
    pub key_servers: Vec<OwnedServerName>,
}

impl Default for Federation {
    fn default() -> Self {
        Self {
            enabled: true,
            allow_addresses: Vec::new(),
            ca_file: None,
            presence: true,
            device_names: false,
            key_servers: Vec::new(),
        }
    }
}

/// How people are told of what happens while they do not look.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Push {
    /// Addresses that push gateways may have although they are private.
    #[serde(deserialize_with = "networks")]
    pub allow_addresses: Vec<IpNet>,
}

/// How long a login lasts.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sessions {
    /// How long an access token with a refresh token is valid, in seconds.
    /// Access tokens of clients that cannot refresh them do not expire.
    pub access_token_seconds: u64,
    /// How long an unused refresh token is valid, in seconds; `None` is for
    /// ever.
    pub refresh_token_seconds: Option<u64>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            access_token_seconds: 60 * 60,
            refresh_token_seconds: None,
        }
    }
}

/// What the server says about itself under `/.well-known/matrix/`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct WellKnown {
    /// The URL under which clients reach the server.
    pub client_base_url: Option<String>,
    /// The name and port under which other servers reach this one.
    pub server: Option<OwnedServerName>,
    /// A page for people who need help with the server.
    pub support_page: Option<String>,
    /// Whom to ask about the server.
    pub support_contacts: Vec<SupportContact>,
}

/// What the server writes about its work to standard error.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Logging {
    pub format: LogFormat,
    /// Levels by module, as in `info,homing::sync=debug`.
    pub filter: String,
}

impl Default for Logging {
    fn default() -> Self {
        Self {
            format: LogFormat::Human,
            filter: "info,ruma_state_res=error".to_owned(),
        }
    }
}

/// Where the server offers its measurements.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// The address that answers `GET /metrics`; `None` opens none.
    pub bind: Option<SocketAddr>,
}

#[cfg(test)]
mod tests;
