//! A server as a process of its own, which can be killed with `kill -9` and run again; and people who use it.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use homing_federation::Pdu;
use reqwest::{Client, Method, StatusCode};
use ruma::OwnedServerName;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    fake_room::{self, FakeRoom},
    fake_server::FakeServer,
    server::{PASSWORD, new_database},
    tls,
};

/// A server that can be run as a process, again and again.
pub struct Site {
    pub name: OwnedServerName,
    folder: TempDir,
    url: String,
    http: Client,
}

/// The process; killed when dropped.
pub struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Site {
    pub async fn new() -> Self {
        let folder = TempDir::new().expect("a temporary directory can be made");
        let (port, plain) = (tls::free_port(), tls::free_port());
        let listener = tls::listener(folder.path(), port);
        let path = |path: &Option<PathBuf>| path.as_ref().unwrap().display().to_string();
        let authority = tls::write_authority(folder.path());
        let database = match std::env::var("TEST_POSTGRES") {
            Ok(url) => format!("[database]\nurl = \"{}\"\n", new_database(&url).await),
            Err(_) => String::new(),
        };
        let name = format!("localhost:{port}");
        let config = format!(
            "server_name = \"{name}\"\ndata_dir = \"{}\"\n\
             [[listeners]]\nbind = \"127.0.0.1:{plain}\"\n\
             [[listeners]]\nbind = \"127.0.0.1:{port}\"\ntls = true\ncert = \"{}\"\nkey = \"{}\"\n\
             [registration]\nmode = \"open\"\n[rate_limits]\nenabled = false\n\
             [federation]\nca_file = \"{}\"\nallow_addresses = [\"127.0.0.0/8\"]\n{database}",
            folder.path().join("data").display(),
            path(&listener.cert),
            path(&listener.key),
            authority.display(),
        );
        std::fs::write(folder.path().join("homing.toml"), config).expect("a file can be written");
        Self {
            name: name.try_into().expect("a server name"),
            folder,
            url: format!("http://127.0.0.1:{plain}"),
            http: Client::new(),
        }
    }

    /// Runs the server and waits until it answers.
    pub async fn run(&self) -> Process {
        let child = Command::new(env!("CARGO_BIN_EXE_homing"))
            .arg("serve")
            .env("HOMING_CONFIG", self.folder.path().join("homing.toml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let process = Process(child);
        let started = Instant::now();
        while self
            .call(Method::GET, "/health", None, None)
            .await
            .is_none()
        {
            assert!(started.elapsed() < Duration::from_mins(1), "no answer");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        process
    }

    /// The answer, if there is one.
    async fn call(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<Value>,
    ) -> Option<(StatusCode, Value)> {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.ok()?;
        let status = response.status();
        let bytes = response.bytes().await.ok()?;
        Some((status, serde_json::from_slice(&bytes).unwrap_or_default()))
    }

    pub async fn register(self: &Arc<Self>, name: &str) -> Person {
        let body =
            json!({ "username": name, "password": PASSWORD, "auth": { "type": "m.login.dummy" } });
        let path = "/_matrix/client/v3/register";
        let answer = self.call(Method::POST, path, None, Some(body)).await;
        let (_, answer) = answer.expect("an answer");
        let text = |key: &str| answer[key].as_str().expect("a text").to_owned();
        Person {
            id: text("user_id"),
            site: Arc::clone(self),
            token: text("access_token"),
        }
    }

    /// Another server sends events in one transaction; answers what it is told of them.
    pub async fn receives(&self, fake: &FakeServer, pdus: &[Pdu]) -> Value {
        let path = fake_room::path();
        let pdus: Vec<Value> = pdus.iter().map(fake_room::value).collect();
        let body = json!({
            "origin": fake.name, "origin_server_ts": 1, "pdus": pdus, "edus": [],
        });
        let authorization = fake.authorization(&self.name, &Method::PUT, &path, Some(&body));
        let request = self.http.put(format!("{}{path}", self.url)).json(&body);
        let request = request.header("authorization", authorization);
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        answer.json().await.expect("JSON")
    }
}

/// Somebody with an account.
#[derive(Clone)]
pub struct Person {
    pub id: String,
    site: Arc<Site>,
    token: String,
}

impl Person {
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Option<(StatusCode, Value)> {
        let path = format!("/_matrix/client/v3{path}");
        self.site.call(method, &path, Some(&self.token), body).await
    }

    /// Does what must work.
    pub async fn does(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.call(method, path, body).await.expect("an answer");
        assert_eq!(status, StatusCode::OK, "{path} {answer}");
        answer
    }

    /// Sends a message; answers its id if it was acknowledged.
    pub async fn says(&self, room: &str) -> Option<String> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = format!("/rooms/{room}/send/m.room.message/t{number}");
        let body = json!({ "msgtype": "m.text", "body": number.to_string() });
        match self.call(Method::PUT, &path, Some(body)).await? {
            (StatusCode::OK, answer) => Some(answer["event_id"].as_str()?.to_owned()),
            _ => None,
        }
    }

    /// All messages of a room, oldest first, as a client finds them that walks back to the start.
    pub async fn messages(&self, room: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut from = String::new();
        loop {
            let path = format!("/rooms/{room}/messages?dir=b&limit=50{from}");
            let answer = self.does(Method::GET, &path, None).await;
            for event in answer["chunk"].as_array().unwrap() {
                if event["type"] == "m.room.message" {
                    found.push(event["event_id"].as_str().unwrap().to_owned());
                }
            }
            match answer["end"].as_str() {
                Some(end) => from = format!("&from={end}"),
                None => break,
            }
        }
        found.reverse();
        found
    }

    /// Joins a room of the fake server, which goes on from there.
    pub async fn joins(&self, fake: &FakeServer, room: &mut FakeRoom) {
        room.host(fake, |_| {});
        let path = format!("/join/{}?via={}", room.id, fake.name);
        self.does(Method::POST, &path, Some(json!({}))).await;
        let path = format!("/_matrix/federation/v2/send_join/{}/", room.id);
        let join = fake.wait_for(|it| it.path.starts_with(&path)).await;
        room.follow(&fake_room::pdu(&join.body, room.rules));
    }

    pub async fn is_in(&self, room: &str) -> bool {
        let joined = self.does(Method::GET, "/joined_rooms", None).await;
        joined["joined_rooms"]
            .as_array()
            .unwrap()
            .iter()
            .any(|it| it == room)
    }
}
