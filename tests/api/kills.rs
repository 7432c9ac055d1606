//! A server that is killed with `kill -9` while somebody joins a room elsewhere: nothing is half done.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    fake_room::FakeRoom,
    fake_server::FakeServer,
    server::{PASSWORD, new_database},
    tls,
};

/// A server that can be run as a process, again and again.
struct Site {
    folder: TempDir,
    url: String,
    http: Client,
}

/// The process; killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Site {
    async fn new() -> Self {
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
            folder,
            url: format!("http://127.0.0.1:{plain}"),
            http: Client::new(),
        }
    }

    /// Runs the server and waits until it answers.
    async fn run(&self) -> Process {
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

    async fn register(self: &Arc<Self>, name: &str) -> Person {
        let body =
            json!({ "username": name, "password": PASSWORD, "auth": { "type": "m.login.dummy" } });
        let path = "/_matrix/client/v3/register";
        let answer = self.call(Method::POST, path, None, Some(body)).await;
        let (_, answer) = answer.expect("an answer");
        Person {
            site: Arc::clone(self),
            token: answer["access_token"].as_str().expect("a token").to_owned(),
        }
    }
}

/// Somebody with an account.
#[derive(Clone)]
struct Person {
    site: Arc<Site>,
    token: String,
}

impl Person {
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Option<(StatusCode, Value)> {
        let path = format!("/_matrix/client/v3{path}");
        self.site.call(method, &path, Some(&self.token), body).await
    }

    /// Does what must work.
    async fn does(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.call(method, path, body).await.expect("an answer");
        assert_eq!(status, StatusCode::OK, "{path} {answer}");
        answer
    }

    /// Sends a message; answers its id if it was acknowledged.
    async fn says(&self, room: &str) -> Option<String> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = format!("/rooms/{room}/send/m.room.message/t{number}");
        let body = json!({ "msgtype": "m.text", "body": number.to_string() });
        match self.call(Method::PUT, &path, Some(body)).await? {
            (StatusCode::OK, answer) => Some(answer["event_id"].as_str()?.to_owned()),
            _ => None,
        }
    }

    async fn is_in(&self, room: &str) -> bool {
        let joined = self.does(Method::GET, "/joined_rooms", None).await;
        joined["joined_rooms"]
            .as_array()
            .unwrap()
            .iter()
            .any(|it| it == room)
    }
}

/// A large public room of the fake server.
fn large_room(fake: &FakeServer) -> FakeRoom {
    let mut room = FakeRoom::create(fake, "11");
    let last = room.latest.clone();
    let creator = room.user.clone();
    for number in 0..MEMBERS {
        let user = format!("@member{number}:{}", fake.name);
        room.user = user.as_str().try_into().unwrap();
        room.latest.clone_from(&last);
        room.set(
            fake,
            "m.room.member",
            &user,
            json!({ "membership": "join" }),
        );
    }
    room.user = creator;
    room
}

/// How many others are in that room.
const MEMBERS: usize = 1500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_dies_leaves_nothing_half_done() {
    let (site, fake) = (Arc::new(Site::new().await), FakeServer::start().await);
    let mut process = site.run().await;
    let alice = site.register("alice").await;
    // In the middle of the answer, and at any time after it.
    for pause in [None, Some(10), Some(200), Some(500), Some(1000), Some(2000)] {
        let room = large_room(&fake);
        let id = room.id.as_str();
        room.host(&fake, |_| {});
        if pause.is_none() {
            let hosted = room.clone();
            let path = format!("/_matrix/federation/v2/send_join/{id}");
            fake.on(Method::PUT, &path, move |request| {
                let text = hosted.welcome(&request.body).to_string();
                let half = Bytes::from(text[..text.len() / 2].to_owned());
                let half = stream::iter([Ok::<_, std::io::Error>(half)]);
                Response::new(Body::from_stream(half.chain(stream::pending())))
            });
        }
        let path = format!("/join/{id}?via={}", fake.name);
        let joining = {
            let (alice, path) = (alice.clone(), path.clone());
            tokio::spawn(async move { alice.call(Method::POST, &path, Some(json!({}))).await })
        };
        let start = format!("/_matrix/federation/v2/send_join/{id}");
        fake.wait_for(|it| it.path.starts_with(&start)).await;
        let pause = Duration::from_millis(pause.unwrap_or(1000));
        tokio::time::sleep(pause).await;
        drop(process);
        let answer = joining.await.unwrap();
        process = site.run().await;
        room.host(&fake, |_| {});
        let acknowledged = answer.is_some_and(|(status, _)| status == StatusCode::OK);
        let is_in = alice.is_in(id).await;
        assert!(is_in || !acknowledged, "the join is lost");
        if !is_in {
            let (status, _) = alice
                .call(Method::GET, &format!("/rooms/{id}/state"), None)
                .await
                .unwrap();
            assert!(status.is_client_error());
            let sync = alice.does(Method::GET, "/sync", None).await;
            assert_eq!(sync["rooms"]["join"][id], Value::Null);
            alice.does(Method::POST, &path, Some(json!({}))).await;
        }
        let members = alice
            .does(Method::GET, &format!("/rooms/{id}/joined_members"), None)
            .await;
        let members = members["joined"].as_object().unwrap().len();
        assert_eq!(members, MEMBERS + 2);
        let state = alice
            .does(Method::GET, &format!("/rooms/{id}/state"), None)
            .await;
        assert_eq!(state.as_array().unwrap().len(), room.state.len() + 1);
        alice.says(id).await.expect("it can be used");
    }
    drop(process);
}
