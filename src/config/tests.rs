use std::{ffi::OsString, io::Write, path::PathBuf};

use super::*;

/// Loads `file`, if it is not empty, and the variables.
fn load_from(file: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
    let mut written = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    written.write_all(file.as_bytes()).unwrap();
    let path = (!file.is_empty()).then(|| written.path());
    let variables = variables
        .iter()
        .map(|(name, text)| (OsString::from(name), OsString::from(text)));
    let name = written.path().display().to_string();
    load(path, variables).map_err(|error| error.to_string().replace(&name, "FILE"))
}

#[test]
fn nothing_set_is_the_default() {
    let config = load_from("", &[]).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.server_name, "localhost");
    assert_eq!(config.listeners.len(), 1);
    assert_eq!(config.listeners[0].bind.to_string(), "127.0.0.1:8008");
    assert_eq!(config.database_url(), "sqlite:./homing-data/homing.db");
    assert_eq!(config.registration.mode, RegistrationMode::Closed);
    assert_eq!(config.rooms.default_version, RoomVersionId::V12);
}

#[test]
fn file_sets_everything_it_names_and_nothing_else() {
    let config = load_from(
        r#"
            server_name = "example.org:8448"
            data_dir = "/var/lib/homing"
            [[listeners]]
            bind = "[::1]:8448"
            tls = true
            cert = "c.pem"
            key = "k.pem"
            [[listeners]]
            bind = "0.0.0.0:80"
            x_forwarded = true
            [registration]
            mode = "token"
            tokens = ["one", "two"]
            [rate_limits]
            messages = { per_second = 3, burst = 100 }
            [rate_limits.joins]
            per_second = 1.5
            burst = 2
            [rooms]
            default_version = "6"
            [federation]
            allow_addresses = ["10.0.0.0/8", "fd00::/8"]
            [[well_known.support_contacts]]
            role = "m.role.admin"
            matrix_id = "@a:example.org"
        "#,
        &[],
    )
    .unwrap();
    assert_eq!(config.server_name, "example.org:8448");
    assert_eq!(config.database_url(), "sqlite:/var/lib/homing/homing.db");
    let [tls, plain] = &config.listeners[..] else {
        panic!("{:?}", config.listeners);
    };
    assert!(tls.tls && !tls.x_forwarded && tls.key == Some(PathBuf::from("k.pem")));
    assert!(!plain.tls && plain.x_forwarded && plain.cert.is_none());
    assert_eq!(config.registration.tokens[1].reveal(), "two");
    let messages = config.rate_limits.messages;
    assert_eq!((messages.per_second, messages.burst), (3.0, 100));
    assert_eq!(config.rate_limits.joins.burst, 2);
    assert_eq!(
        config.rate_limits.invites,
        RateLimits::default().invites,
        "what the file does not name keeps its default"
    );
    assert_eq!(config.rooms.default_version, RoomVersionId::V6);
    assert_eq!(config.federation.allow_addresses.len(), 2);
    assert_eq!(config.well_known.support_contacts.len(), 1);
}

#[test]
fn environment_wins_over_the_file() {
    let config = load_from(
        "server_name = \"file.org\"\n[media]\nmax_upload_bytes = 1\nunauthenticated = true\n",
        &[
            ("HOMING_SERVER_NAME", "env.org"),
            ("HOMING_DATABASE__URL", "postgres://u:p@h/d"),
            ("HOMING_DATABASE__MAX_CONNECTIONS", "7"),
            ("HOMING_MEDIA__MAX_UPLOAD_BYTES", "1000"),
            ("HOMING_PRESENCE__ENABLED", "false"),
            ("HOMING_ROOMS__DEFAULT_VERSION", "11"),
            ("HOMING_RATE_LIMITS__JOINS__PER_SECOND", "4"),
            ("HOMING_REGISTRATION__MODE", "open"),
            ("HOMING_REGISTRATION__SHARED_SECRET", "12345"),
            ("HOMING_LISTENERS__0__X_FORWARDED", "true"),
            ("HOMING_LISTENERS__1__BIND", "0.0.0.0:1"),
            ("HOMING_FEDERATION__ALLOW_ADDRESSES", "[\"10.0.0.0/8\"]"),
            ("HOMING_CONFIG", "elsewhere.toml"),
            ("HOMING_SERVICE_PORT_HTTP", "8008"),
            ("HOMING_PORT", "tcp://10.1.2.3:8008"),
            ("HOMING_PORT_8008_TCP_ADDR", "10.1.2.3"),
            ("HOMINGPIGEON", "ignored"),
        ],
    )
    .unwrap();
    assert_eq!(config.server_name, "env.org");
    assert_eq!(config.database_url(), "postgres://u:p@h/d");
    assert_eq!(config.database.max_connections, Some(7));
    assert_eq!(config.media.max_upload_bytes, 1000);
    assert!(config.media.unauthenticated, "the file still counts");
    assert!(!config.presence.enabled);
    assert_eq!(config.rooms.default_version, RoomVersionId::V11);
    let joins = config.rate_limits.joins;
    assert_eq!((joins.per_second, joins.burst), (4.0, 20));
    assert_eq!(config.registration.mode, RegistrationMode::Open);
    let secret = config.registration.shared_secret.unwrap();
    assert_eq!(secret.reveal(), "12345");
    assert_eq!(config.listeners.len(), 2);
    assert_eq!(config.listeners[0].bind.port(), 8008);
    assert!(config.listeners[0].x_forwarded);
    assert_eq!(config.listeners[1].bind.port(), 1);
    assert_eq!(config.federation.allow_addresses.len(), 1);
}

#[test]
fn list_in_the_environment_is_in_the_order_of_its_numbers() {
    let names: Vec<_> = (0..12)
        .map(|index| format!("HOMING_REGISTRATION__TOKENS__{index}"))
        .collect();
    let variables: Vec<_> = names.iter().rev().map(|name| (&name[..], "t")).collect();
    let config = load_from("", &variables).unwrap();
    assert_eq!(config.registration.tokens.len(), 12);
}

/// A file, and what the message about it must say besides the file's name.
const BAD_FILES: &[(&str, &[&str])] = &[
    ("sever_name = 'x'", &["`sever_name`", "line 1"]),
    ("server_name = 'a b'", &["server name", "line 1"]),
    ("data_dir = ''", &["`data_dir`"]),
    ("listeners = []", &["`listeners`"]),
    ("[[listeners]]\nbind = '8008'", &["address", "line 2"]),
    (
        "[[listeners]]\ntls = true",
        &["`listeners.0.tls`", "`cert`"],
    ),
    ("[[listeners]]\nkey = 'k'", &["`listeners.0.key`"]),
    (
        "[[listeners]]\nmax_connections = 0",
        &["`listeners.0.max_connections`"],
    ),
    ("[database]\nurl = 'mysql://h'", &["`database.url`"]),
    (
        "[database]\nmax_connections = 0",
        &["`database.max_connections`"],
    ),
    ("[registration]\nmode = 'ajar'", &["`ajar`", "`closed`"]),
    (
        "[registration]\nshared_secret = ''",
        &["`registration.shared_secret`"],
    ),
    (
        "[registration]\ntokens = ['a b']",
        &["`registration.tokens.0`"],
    ),
    (
        "[[application_services]]\nid = 'a'\ntoken = 't'\nsender_localpart = 'b'\nusers = ['(']",
        &["`application_services.0.users`"],
    ),
    (
        "[[application_services]]\nid = 'a'\ntoken = ''\nsender_localpart = 'b'",
        &["`application_services.0.token`"],
    ),
    (
        "rate_limits.joins = { per_second = nan, burst = 1 }",
        &["`rate_limits.joins.per_second`"],
    ),
    (
        "rate_limits.joins = { per_second = 1, burst = 0 }",
        &["`rate_limits.joins.burst`"],
    ),
    (
        "rate_limits.joins = { burst = 1, bust = 2 }",
        &["`bust`", "line 1"],
    ),
    (
        "[media]\nmax_upload_byte = 1",
        &["`max_upload_byte`", "line 2"],
    ),
    (
        "[media]\nmax_upload_bytes = 'big'",
        &["string, expected u64", "line 2"],
    ),
    ("[media]\nmax_upload_bytes = -1", &["line 2"]),
    (
        "[media]\nmax_upload_bytes = 0",
        &["`media.max_upload_bytes`"],
    ),
    (
        "[media]\nmax_pending_uploads = 0",
        &["`media.max_pending_uploads`"],
    ),
    (
        "[media]\npending_upload_seconds = 0",
        &["`media.pending_upload_seconds`"],
    ),
    (
        "[url_previews]\ndeny_urls = ['(']",
        &["`url_previews.deny_urls`"],
    ),
    (
        "[url_previews]\ndeny_hosts = ['a', 'https://b/']",
        &["`url_previews.deny_hosts.1`"],
    ),
    (
        "[url_previews]\nmax_image_bytes = 0",
        &["`url_previews.max_image_bytes`"],
    ),
    (
        "[rooms]\ndefault_version = '5'",
        &["`rooms.default_version`"],
    ),
    (
        "[rooms]\ndefault_version = '13'",
        &["`rooms.default_version`"],
    ),
    (
        "[federation]\nallow_addresses = ['10']",
        &["line 2", "10.0.0.0/8"],
    ),
    (
        "[sessions]\naccess_token_seconds = 0",
        &["`sessions.access_token_seconds`"],
    ),
    (
        "[sessions]\nrefresh_token_seconds = 0",
        &["`sessions.refresh_token_seconds`"],
    ),
    (
        "[well_known]\nclient_base_url = 'example.org'",
        &["`well_known.client_base_url`"],
    ),
    (
        "[well_known]\nsupport_page = 'ftp://h'",
        &["`well_known.support_page`"],
    ),
    (
        "well_known.support_contacts = [{ role = 'm.role.admin' }]",
        &["`well_known.support_contacts.0`"],
    ),
    ("[logging]\nfilter = 'homing=loud'", &["`logging.filter`"]),
    ("[logging]\nfilter = 'verbose'", &["`logging.filter`"]),
    (
        "[[listeners]]\nbind = '[::1]:80'\n[[listeners]]\nbind = '[::1]:80'",
        &["`listeners.1.bind`"],
    ),
    ("[metrics]\nbind = '127.0.0.1:8008'", &["`metrics.bind`"]),
    ("[logging]\nformat = 'xml'", &["`xml`", "line 2"]),
];

#[test]
fn bad_files_are_refused_by_name() {
    for (file, expected) in BAD_FILES {
        let message = load_from(file, &[]).expect_err(file);
        for part in expected.iter().chain(&["FILE"]) {
            assert!(message.contains(part), "{file}: {message}");
        }
    }
}

/// A variable, its value, and what the message must say besides its name.
const BAD_VARIABLES: &[(&str, &str, &str)] = &[
    ("HOMING_SEVER_NAME", "x", "`sever_name`"),
    ("HOMING_PORT", "9000", "`port`"),
    ("HOMING_SERVER_NAME__X", "1", "`x`"),
    ("HOMING_SERVER_NAME", "a b", "server name"),
    ("HOMING_MEDIA__BIG", "1", "`big`"),
    ("HOMING_MEDIA__MAX_UPLOAD_BYTES", "big", "expected u64"),
    (
        "HOMING_MEDIA__MAX_UPLOAD_BYTES",
        "0",
        "`media.max_upload_bytes`",
    ),
    ("HOMING_REGISTRATION__SHARED_SECRET", "", "empty"),
    ("HOMING_LISTENERS__2__TLS", "true", "element 1"),
    ("HOMING_LISTENERS__0__TLS", "true", "`listeners.0.tls`"),
    ("HOMING_LISTENERS__0__KEY", "k", "`listeners.0.key`"),
];

#[test]
fn bad_variables_are_refused_by_name() {
    for (name, text, expected) in BAD_VARIABLES {
        let file = "[media]\nmax_upload_bytes = 9";
        let message = load_from(file, &[(name, text)]).expect_err(name);
        assert!(message.starts_with(&format!("{name}: ")), "{message}");
        assert!(message.contains(expected), "{name}: {message}");
    }
}

#[test]
fn missing_file_is_named() {
    let error = load(Some("/nowhere/homing.toml".as_ref()), []).unwrap_err();
    assert!(
        error.to_string().contains("/nowhere/homing.toml"),
        "{error}"
    );
}

#[test]
fn secrets_are_not_shown() {
    let config = load_from(
        "[registration]\nshared_secret = \"hush\"\n[database]\nurl = \"postgres://u:hush@h/d\"",
        &[],
    )
    .unwrap();
    assert!(!format!("{config:?}").contains("hush"));

    for file in [
        "[database]\nurl = \"oracle://u:hush@h/d\"",
        "[database]\nurl = [\"postgres://u:hush@h/d\"]",
        "[registration]\nshared_secret = \"hush",
        "[registration]\nshared_secret = hush",
        "[registration]\ntokens = \"hush, \\\"hush\\\", expected hush\"",
    ] {
        let message = load_from(file, &[]).unwrap_err();
        assert!(!message.contains("hush"), "{message}");
        assert!(
            message.contains("line 2") || message.contains("`database.url`"),
            "{message}"
        );
    }
    let message = load_from("", &[("HOMING_REGISTRATION__TOKENS", "hush")]).unwrap_err();
    assert!(!message.contains("hush"), "{message}");
}

#[test]
fn example_sets_nothing() {
    assert_eq!(load_from(EXAMPLE, &[]).unwrap(), Config::default());
}

/// With its comment signs taken away, the example names every setting there
/// is, and apart from those that have no default shows the defaults.
#[test]
fn example_shows_every_setting_and_its_default() {
    let uncommented: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with([' ', '\t']) => rest,
            _ => line,
        })
        .fold(String::new(), |text, line| text + line + "\n");
    let mut config: Config = toml::from_str(&uncommented).unwrap();
    let text = format!("{config:?}");
    assert!(!text.contains("None"), "not in the example: {text}");

    let shown = toml::Table::try_from(&config).unwrap();
    let named: toml::Table = toml::from_str(&uncommented).unwrap();
    assert_eq!(keys(&shown), keys(&named));

    config.listeners[0].cert = None;
    config.listeners[0].key = None;
    config.database = Database::default();
    config.registration.shared_secret = None;
    config.application_services = Vec::new();
    config.media.max_user_bytes = None;
    config.url_previews.deny_hosts = Vec::new();
    config.url_previews.deny_urls = Vec::new();
    config.federation.ca_file = None;
    config.sessions.refresh_token_seconds = None;
    config.well_known = WellKnown::default();
    config.metrics = Metrics::default();
    assert_eq!(config, Config::default());
}

fn keys(table: &toml::Table) -> Vec<String> {
    let mut keys = Vec::new();
    for (key, value) in table {
        keys.push(key.clone());
        let inner = match value {
            toml::Value::Table(inner) => Some(inner),
            toml::Value::Array(list) => list.first().and_then(toml::Value::as_table),
            _ => None,
        };
        keys.extend(inner.iter().flat_map(|inner| {
            let inner = self::keys(inner);
            inner.into_iter().map(|name| format!("{key}.{name}"))
        }));
    }
    keys.sort();
    keys
}
