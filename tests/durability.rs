//! What was acknowledged survives: the server is killed with `kill -9` while people send, again and again.
//!
//! SQLite, or PostgreSQL where `TEST_POSTGRES` names a server.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::RngExt as _;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

/// How often the server is killed.
const KILLS: u64 = 12;
/// How many people send at once, each to a room of their own and to one that all share.
const SENDERS: usize = 6;

/// A server process; killed when dropped.
struct Process {
    child: Child,
    url: String,
}

impl Process {
    /// Starts the server and waits until it answers.
    async fn start(directory: &Path, port: u16, database: Option<&str>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_homing"));
        command
            .arg("serve")
            .env("HOMING_DATA_DIR", directory)
            .env("HOMING_LISTENERS__0__BIND", format!("127.0.0.1:{port}"))
            .env("HOMING_REGISTRATION__MODE", "open")
            .env("HOMING_RATE_LIMITS__ENABLED", "false")
            .stdout(Stdio::null());
        if let Some(url) = database {
            command.env("HOMING_DATABASE__URL", url);
        }
        let child = command.spawn().expect("the server starts");
        let server = Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
        };
        let http = Client::new();
        let started = tokio::time::Instant::now();
        while http
            .get(format!("{}/health", server.url))
            .send()
            .await
            .is_err()
        {
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "the server does not answer"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server
    }

    /// Ends it without a warning.
    fn kill(mut self) {
        self.child.kill().expect("the server can be killed");
        self.child.wait().expect("the server has ended");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

async fn call(
    http: &Client,
    url: &str,
    method: Method,
    path: &str,
    token: Option<&str>,
    body: Option<Value>,
) -> Option<(StatusCode, Value)> {
    let mut request = http.request(method, format!("{url}{path}"));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request.send().await.ok()?;
    let status = response.status();
    Some((status, response.json().await.ok()?))
}

/// A message that was acknowledged.
#[derive(Clone)]
struct Acknowledged {
    token: String,
    path: String,
    room: String,
    event_id: String,
}

/// Sends until the server is gone; answers what was acknowledged.
async fn send(
    url: String,
    token: String,
    rooms: [String; 2],
    numbers: Arc<AtomicU64>,
    gone: Arc<AtomicBool>,
) -> Vec<Acknowledged> {
    let http = Client::new();
    let mut acknowledged = Vec::new();
    while !gone.load(Ordering::Relaxed) {
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        let room = rooms[usize::try_from(number % 2).unwrap()].clone();
        let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/t{number}");
        let body = json!({ "msgtype": "m.text", "body": format!("number {number}") });
        let answer = call(&http, &url, Method::PUT, &path, Some(&token), Some(body)).await;
        let Some((StatusCode::OK, answer)) = answer else {
            break;
        };
        let event_id = answer["event_id"].as_str().unwrap().to_owned();
        acknowledged.push(Acknowledged {
            token: token.clone(),
            path,
            room,
            event_id,
        });
    }
    acknowledged
}

async fn register(http: &Client, url: &str, name: &str) -> String {
    let body = json!({ "username": name, "password": "correct horse", "auth": { "type": "m.login.dummy" } });
    let path = "/_matrix/client/v3/register";
    let (status, answer) = call(http, url, Method::POST, path, None, Some(body))
        .await
        .expect("an answer");
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer["access_token"].as_str().unwrap().to_owned()
}

async fn create_room(http: &Client, url: &str, token: &str) -> String {
    let path = "/_matrix/client/v3/createRoom";
    let body = json!({ "preset": "public_chat" });
    let (status, answer) = call(http, url, Method::POST, path, Some(token), Some(body))
        .await
        .expect("an answer");
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer["room_id"].as_str().unwrap().to_owned()
}

async fn new_database(url: &str) -> String {
    use sqlx::{Connection as _, Executor as _};
    let name = format!("homing_durability_{}", std::process::id());
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_messages_survive_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let database = match std::env::var("TEST_POSTGRES") {
        Ok(url) => Some(new_database(&url).await),
        Err(_) => None,
    };
    let mut server = Process::start(directory.path(), port, database.as_deref()).await;
    let http = Client::new();

    let mut people = Vec::new();
    let mut shared = String::new();
    for number in 0..SENDERS {
        let token = register(&http, &server.url, &format!("sender{number}")).await;
        let own = create_room(&http, &server.url, &token).await;
        if number == 0 {
            shared = create_room(&http, &server.url, &token).await;
        } else {
            let path = format!("/_matrix/client/v3/join/{shared}");
            let joined = call(
                &http,
                &server.url,
                Method::POST,
                &path,
                Some(&token),
                Some(json!({})),
            )
            .await;
            assert_eq!(joined.expect("an answer").0, StatusCode::OK);
        }
        people.push((token, own));
    }

    let numbers = Arc::new(AtomicU64::new(0));
    let mut total = 0;
    for _ in 0..KILLS {
        let gone = Arc::new(AtomicBool::new(false));
        let sends: Vec<_> = people
            .iter()
            .map(|(token, own)| {
                let rooms = [own.clone(), shared.clone()];
                let (numbers, gone) = (Arc::clone(&numbers), Arc::clone(&gone));
                tokio::spawn(send(
                    server.url.clone(),
                    token.clone(),
                    rooms,
                    numbers,
                    gone,
                ))
            })
            .collect();
        // Any moment will do; it is the one wait here that waits for nothing.
        tokio::time::sleep(Duration::from_millis(rand::rng().random_range(20..250))).await;
        server.kill();
        gone.store(true, Ordering::Relaxed);
        let mut acknowledged = Vec::new();
        for send in sends {
            acknowledged.extend(send.await.unwrap());
        }
        server = Process::start(directory.path(), port, database.as_deref()).await;
        for sent in &acknowledged {
            check(&http, &server.url, sent).await;
        }
        total += acknowledged.len();
    }
    assert!(
        total > 50,
        "only {total} messages were acknowledged, too few to show anything"
    );
}

/// The event is there, and its transaction id makes no second one.
async fn check(http: &Client, url: &str, sent: &Acknowledged) {
    let path = format!(
        "/_matrix/client/v3/rooms/{}/event/{}",
        sent.room, sent.event_id
    );
    let (status, answer) = call(http, url, Method::GET, &path, Some(&sent.token), None)
        .await
        .expect("an answer");
    assert_eq!(
        status,
        StatusCode::OK,
        "{} is lost: {answer}",
        sent.event_id
    );
    let body = json!({ "msgtype": "m.text", "body": "again" });
    let (status, answer) = call(
        http,
        url,
        Method::PUT,
        &sent.path,
        Some(&sent.token),
        Some(body),
    )
    .await
    .expect("an answer");
    assert_eq!(
        (status, answer["event_id"].as_str()),
        (StatusCode::OK, Some(&*sent.event_id)),
        "{answer}"
    );
}
