//! A server for one test, and people who use it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use homing::{
    Server,
    app::App,
    config::{Config, Listener, RegistrationMode},
};
use reqwest::{Method, StatusCode};
use ruma::ServerName;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::tls;

/// A running server. When it is dropped, it must not have failed at anything.
pub struct TestServer {
    pub app: Arc<App>,
    pub address: SocketAddr,
    pub http: reqwest::Client,
    /// The registration token of the first administrator, if there was none at the start.
    pub first_token: Option<String>,
    directory: Arc<TempDir>,
}

/// An answer: its status and its JSON.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    /// The body of an answer that must be 200.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.body);
        self.body
    }

    /// Checks that the answer is this Matrix error.
    #[track_caller]
    pub fn fails(self, status: u16, errcode: &str) -> Value {
        assert_eq!(
            (self.status.as_u16(), self.body["errcode"].as_str()),
            (status, Some(errcode)),
            "{}",
            self.body
        );
        self.body
    }
}

/// Settings that suit tests: open registration, no rate limits, any free port, nothing asked of other servers.
pub async fn test_config(directory: &TempDir) -> Config {
    let mut config = Config {
        data_dir: directory.path().to_owned(),
        ..Config::default()
    };
    config.listeners = vec![Listener {
        bind: ([127, 0, 0, 1], 0).into(),
        ..Listener::default()
    }];
    config.registration.mode = RegistrationMode::Open;
    config.rate_limits.enabled = false;
    config.federation.enabled = false;
    if let Ok(url) = std::env::var("TEST_POSTGRES") {
        config.database.url = Some(new_database(&url).await.into());
    }
    config
}

/// Shows the servers' log if `TEST_LOG` says what of it, as in `TEST_LOG=homing=debug`.
fn show_log() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if let Ok(filter) = std::env::var("TEST_LOG") {
            let log = tracing_subscriber::fmt().with_env_filter(filter);
            log.with_test_writer().init();
        }
    });
}

/// Makes an empty database on a PostgreSQL server; answers its URL.
pub async fn new_database(url: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    use sqlx::{Connection as _, Executor as _};
    let name = format!(
        "homing_{}_{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    );
    let mut connection = sqlx::PgConnection::connect(url)
        .await
        .expect("PostgreSQL answers");
    let sql = format!("CREATE DATABASE {name}");
    connection
        .execute(sqlx::AssertSqlSafe(sql))
        .await
        .expect("a database can be made");
    let (server, _) = url.rsplit_once('/').expect("the URL names a database");
    format!("{server}/{name}")
}

impl TestServer {
    /// A server with settings that suit tests.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// The same after `change` has changed the settings.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = Arc::new(TempDir::new().expect("a temporary directory can be made"));
        let mut config = test_config(&directory).await;
        change(&mut config);
        Self::run(config, directory).await
    }

    /// A server that other servers of these tests can reach, named after its port: `localhost:PORT`. Clients reach it
    /// as they do all others.
    pub async fn federated() -> Self {
        Self::federated_with(|_| {}).await
    }

    /// The same after `change` has changed the settings.
    pub async fn federated_with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = Arc::new(TempDir::new().expect("a temporary directory can be made"));
        let mut config = test_config(&directory).await;
        let port = tls::free_port();
        config.server_name = format!("localhost:{port}")
            .try_into()
            .expect("a server name");
        config.listeners.push(tls::listener(directory.path(), port));
        config.federation.enabled = true;
        config.federation.ca_file = Some(tls::write_authority(directory.path()));
        config.federation.allow_addresses = vec!["127.0.0.0/8".parse().expect("a network")];
        change(&mut config);
        Self::run(config, directory).await
    }

    /// The name of the server.
    pub fn name(&self) -> &ServerName {
        self.app.name()
    }

    /// Runs a server on the data of one that has ended.
    pub async fn run(config: Config, directory: Arc<TempDir>) -> Self {
        show_log();
        let server = Server::start(config).await.expect("the server starts");
        let app = Arc::clone(&server.app);
        let address = server.listeners[0].address();
        let first_token = server.first_token.clone();
        tokio::spawn(server.ended());
        Self {
            app,
            address,
            http: reqwest::Client::new(),
            first_token,
            directory,
        }
    }

    /// Ends the server and starts it again on the same data. What is kept in memory only is lost.
    pub async fn restart(self) -> Self {
        let (config, directory) = self.stop().await;
        Self::run(config, directory).await
    }

    /// Ends the server. What it was is to be run again.
    pub async fn stop(self) -> (Config, Arc<TempDir>) {
        let (config, directory) = (self.app.config.clone(), Arc::clone(&self.directory));
        self.app.shutdown.cancel();
        drop(self);
        loop {
            // The lock on the data directory is free once the old server has ended.
            let lock = std::fs::File::create(directory.path().join("homing.lock"))
                .expect("the lock can be opened");
            if lock.try_lock().is_ok() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        (config, directory)
    }

    /// Sends a request, with or without an access token and a body.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<Value>,
    ) -> Answer {
        let headers = token.map(|token| ("authorization", format!("Bearer {token}")));
        self.request_with(method, path, headers.as_slice(), body)
            .await
    }

    /// Sends a request with these headers.
    pub async fn request_with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, String)],
        body: Option<Value>,
    ) -> Answer {
        let mut request = self
            .http
            .request(method, format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.expect("the server answers");
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await.expect("the answer is whole");
        Answer {
            status,
            headers,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        }
    }

    /// Posts to `/_matrix/client/v3` (or to `path` itself, if it starts with `/_`) without an access token.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        let path = if path.starts_with("/_") {
            path.to_owned()
        } else {
            format!("/_matrix/client/v3{path}")
        };
        self.request(Method::POST, &path, None, Some(body)).await
    }

    /// Signs somebody in with a password; `more` is added to the request.
    pub async fn login(&self, user: &str, password: &str, more: Value) -> Answer {
        let mut body = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": user },
            "password": password,
        });
        for (key, value) in more.as_object().expect("an object") {
            body[key] = value.clone();
        }
        self.post("/login", body).await
    }

    /// Registers a person and signs them in.
    pub async fn register(&self, name: &str) -> User<'_> {
        let body =
            json!({ "username": name, "password": PASSWORD, "auth": { "type": "m.login.dummy" } });
        let answer = self
            .request(
                Method::POST,
                "/_matrix/client/v3/register",
                None,
                Some(body),
            )
            .await
            .ok();
        User::new(self, &answer)
    }
}

/// The password of all people.
pub const PASSWORD: &str = "correct horse battery staple";

impl Drop for TestServer {
    fn drop(&mut self) {
        self.app.shutdown.cancel();
        let failures = homing::telemetry::failures(&self.app.metrics);
        if !std::thread::panicking() {
            assert!(failures.is_empty(), "the server failed at {failures:?}");
        }
    }
}

/// A person who is signed in.
pub struct User<'s> {
    pub server: &'s TestServer,
    pub id: String,
    pub token: String,
    pub device_id: String,
}

impl<'s> User<'s> {
    /// The person whom an answer of `/register` or `/login` names.
    pub fn new(server: &'s TestServer, answer: &Value) -> Self {
        let text = |key: &str| {
            answer[key]
                .as_str()
                .unwrap_or_else(|| panic!("no {key} in {answer}"))
                .to_owned()
        };
        Self {
            server,
            id: text("user_id"),
            token: text("access_token"),
            device_id: text("device_id"),
        }
    }

    /// Sends a request to `/_matrix/client/v3` (or to `path` itself, if it starts with `/_matrix`).
    pub async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let path = if path.starts_with("/_matrix") {
            path.to_owned()
        } else {
            format!("/_matrix/client/v3{path}")
        };
        self.server
            .request(method, &path, Some(&self.token), body)
            .await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, Some(body)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, None).await
    }

    /// Sends a request that asks for the password, and then with the password.
    pub async fn send_with_password(&self, method: Method, path: &str, body: Value) -> Answer {
        let asked = self.send(method.clone(), path, Some(body)).await;
        assert_eq!(asked.status, StatusCode::UNAUTHORIZED, "{}", asked.body);
        assert_eq!(
            asked.body["flows"],
            json!([{ "stages": ["m.login.password"] }])
        );
        let auth = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": self.id },
            "password": PASSWORD,
            "session": asked.body["session"],
        });
        self.send(method, path, Some(json!({ "auth": auth }))).await
    }

    /// Creates a room; answers its id.
    pub async fn create_room(&self, body: Value) -> String {
        let answer = self.post("/createRoom", body).await.ok();
        answer["room_id"].as_str().expect("a room id").to_owned()
    }

    /// Sends a text message; answers its event id.
    pub async fn say(&self, room: &str, text: &str) -> String {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let txn = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = format!("/rooms/{room}/send/m.room.message/say{txn}");
        let answer = self
            .put(&path, json!({ "msgtype": "m.text", "body": text }))
            .await
            .ok();
        answer["event_id"].as_str().expect("an event id").to_owned()
    }

    /// Syncs once.
    pub async fn sync(&self, query: &str) -> Value {
        self.get(&format!("/sync?{query}")).await.ok()
    }
}
