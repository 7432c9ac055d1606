//! Bad input: every endpoint is tried with missing, wrong, huge and malicious values. The answer is always the
//! specification's 4xx, or a success where the value is fine; never a 5xx, a panic, a hang, or a change of the database
//! by what was refused.
//!
//! [`examples`] has a good request for each endpoint, [`cases`] makes bad ones of it.

mod cases;
mod database;
mod examples;
mod mutation;

use std::{fmt, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use homing::http::Endpoint;
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use reqwest::Method;
use serde_json::{Value, json};

use self::database::Contents;
use crate::{
    fake_server::FakeServer,
    hostile_transactions::shared,
    server::{TestServer, User},
};

/// How long an answer may take, on a machine that is busy with other tests too.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// Requests at one time.
const AT_ONCE: usize = 32;
/// How many refused requests are sent again before it is seen whether the database has changed.
const PART: usize = 1000;
/// What is no number of things, and what is neither true nor false.
const NUMBERS: &[&str] = &["-1", "x", "1.5", "1e3", "99999999999999999999", "%201"];
const BOOLEANS: &[&str] = &["maybe", "1", "True", "null", "[]"];
/// How many complaints are shown.
const SHOWN: usize = 60;

/// A request that may be nonsense, and what must come of it.
#[derive(Clone)]
struct Case {
    method: Method,
    target: String,
    token: Option<String>,
    body: Bytes,
    expected: Expected,
}

#[derive(Clone, Copy, PartialEq)]
enum Expected {
    /// This status and, if it is given, this error code.
    Refusal(u16, Option<&'static str>),
    /// Any success or refusal.
    Answer,
}

/// Prints where a case can be found again, and not all of what is long.
impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        let (body, target) = (body.chars().take(300), self.target.chars().take(300));
        let (body, target): (String, String) = (body.collect(), target.collect());
        write!(formatter, "{} {target} {body}", self.method)
    }
}

/// One person for each endpoint, since some requests end sessions, and a room of theirs with an event.
struct Person<'s> {
    user: User<'s>,
    room: String,
    event: String,
}

impl<'s> Person<'s> {
    async fn new(server: &'s TestServer, name: &str) -> Self {
        let user = server.register(name).await;
        let room = user.create_room(json!({ "name": "Room" })).await;
        let event = user.say(&room, "hello").await;
        Self { user, room, event }
    }
}

/// A server with all endpoints that there can be. It asks nobody for pages.
async fn full_server() -> TestServer {
    TestServer::start_with(|config| {
        config.url_previews.enabled = true;
        config.url_previews.deny_urls = vec![String::new()];
    })
    .await
}

/// Every endpoint that is wanted, with a person to try it.
async fn endpoints(
    server: &TestServer,
    wanted: impl Fn(&Endpoint) -> bool,
) -> Vec<(Endpoint, Person<'_>)> {
    server.register("bob").await;
    let mut endpoints = homing::client_server::routes().endpoints().to_vec();
    assert!(endpoints.len() > 20, "only {}", endpoints.len());
    endpoints.retain(wanted);
    let people =
        (0..endpoints.len()).map(|n| async move { Person::new(server, &format!("p{n}")).await });
    let people: Vec<_> = stream::iter(people).buffered(4).collect().await;
    endpoints.into_iter().zip(people).collect()
}

type Http = Client<HttpConnector, Full<Bytes>>;

/// Sends all requests, some at a time. Answers which of them were refused, and complains of wrong answers.
async fn send_all(server: &TestServer, cases: Vec<Case>) -> Vec<Case> {
    let http: &Http = &Client::builder(TokioExecutor::new()).build_http();
    let results: Vec<_> = stream::iter(cases)
        .map(|case| async move {
            let result = send(http, server, &case).await;
            (case, result)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let wrong: Vec<_> = results
        .iter()
        .filter_map(|(case, result)| Some(format!("{}\n    {case}", result.as_ref().err()?)))
        .collect();
    let shown = wrong
        .iter()
        .take(SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        wrong.is_empty(),
        "{} of {} answers are wrong:\n{shown}",
        wrong.len(),
        results.len()
    );
    let refused = |(case, result): (Case, Result<u16, String>)| (result >= Ok(400)).then_some(case);
    results.into_iter().filter_map(refused).collect()
}

/// Sends one request; answers its status, or what is wrong with the answer.
async fn send(http: &Http, server: &TestServer, case: &Case) -> Result<u16, String> {
    let mut request = http::Request::builder()
        .method(case.method.clone())
        .uri(format!("http://{}{}", server.address, case.target));
    if let Some(token) = &case.token {
        request = request.header("authorization", token);
    }
    let request = request.body(Full::new(case.body.clone()));
    let request = request.map_err(|error| format!("the test itself is wrong: {error}"))?;
    let exchange = async {
        let (parts, body) = http
            .request(request)
            .await
            .map_err(|error| format!("{error:?}"))?
            .into_parts();
        let body = body.collect().await.map_err(|error| format!("{error:?}"))?;
        Ok::<_, String>((parts, body.to_bytes()))
    };
    let answer = tokio::time::timeout(TIME_LIMIT, exchange).await;
    let (parts, body) = answer.map_err(|_| "no answer in time".to_owned())??;
    let status = parts.status.as_u16();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let answer = format!("{status} {body}");
    if parts
        .headers
        .get("access-control-allow-origin")
        .is_none_or(|origin| origin != "*")
    {
        return Err(format!("{answer} cannot be read by browsers"));
    }
    let code = body["errcode"].as_str();
    let good = match (status, case.expected) {
        // More authentication is asked for without an error code.
        (401, Expected::Answer) if body["flows"].is_array() => true,
        (400..=499, Expected::Answer) => code.is_some(),
        (200..=299, Expected::Answer) => true,
        (_, Expected::Answer) => false,
        (_, Expected::Refusal(wanted, wanted_code)) => {
            status == wanted && code.is_some() && (wanted_code.is_none() || code == wanted_code)
        }
    };
    if good {
        Ok(status)
    } else {
        Err(format!("{answer} instead of {}", case.expected))
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refusal(status, code) => write!(formatter, "{status} {}", code.unwrap_or("M_…")),
            Self::Answer => formatter.write_str("2xx, or 4xx with an error code"),
        }
    }
}

/// Sends what may be refused; then what was refused once more, and that must change nothing. What only asks must change
/// nothing in any case.
async fn refusals_change_nothing(server: &TestServer, cases: Vec<Case>) {
    let (asking, changing): (Vec<_>, Vec<_>) = cases
        .into_iter()
        .partition(|case| case.method == Method::GET);
    let before = database::contents(&server.app).await;
    send_all(server, asking).await;
    database::assert_same(&before, &database::contents(&server.app).await);

    let refused = send_all(server, changing).await;
    let mut before = database::contents(&server.app).await;
    for part in refused.chunks(PART) {
        before = again(server, part.to_vec(), before).await;
    }
}

/// Sends refused requests again, with the database being as told; answers how it is then. A refusal can turn into a
/// success when something else was sent meanwhile, so it may take some rounds.
async fn again(server: &TestServer, mut refused: Vec<Case>, mut before: Contents) -> Contents {
    for _ in 0..5 {
        let still = send_all(server, refused.clone()).await;
        let after = database::contents(&server.app).await;
        if still.len() == refused.len() {
            database::assert_same(&before, &after);
            return after;
        }
        (refused, before) = (still, after);
    }
    panic!("there is always something that is refused first and accepted later");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_be_refused_is_refused_and_changes_nothing() {
    let server = full_server().await;
    let endpoints = endpoints(&server, |_| true).await;
    let before = database::contents(&server.app).await;
    let cases = endpoints
        .iter()
        .flat_map(|(endpoint, person)| cases::refused(endpoint, person));
    send_all(&server, cases.collect()).await;
    database::assert_same(&before, &database::contents(&server.app).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_values_break_nothing() {
    let server = full_server().await;
    let endpoints = endpoints(&server, |_| true).await;
    let cases = endpoints
        .iter()
        .flat_map(|(endpoint, person)| cases::doubtful(endpoint, person));
    refusals_change_nothing(&server, cases.collect()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutated_requests_break_nothing() {
    let server = full_server().await;
    let endpoints = endpoints(&server, mutation::is_victim).await;
    refusals_change_nothing(&server, mutation::cases(&endpoints)).await;
}

#[tokio::test]
async fn null_characters_are_neither_stored_nor_looked_for() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let path = format!("/devices/{}", alice.device_id);
    let name = json!({ "display_name": "a\0b" });
    alice.put(&path, name).await.fails(400, "M_BAD_JSON");
    let user = json!({ "type": "m.id.user", "user": "a\0b" });
    let login = json!({ "type": "m.login.password", "identifier": user, "password": "x" });
    alice.post("/login", login).await.fails(400, "M_BAD_JSON");
    // In what people say they are harmless: JSON escapes them.
    let room = alice.create_room(json!({})).await;
    alice.say(&room, "a\0b").await;
}

#[tokio::test]
async fn what_some_clients_cannot_read_is_no_body() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let path = format!("/user/{}/account_data/org.example.thing", alice.id);
    let url = format!("http://{}/_matrix/client/v3{path}", server.address);
    let nested = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
    for value in [&nested, "1e999", r#""\ud800""#] {
        let request = server.http.put(&url).bearer_auth(&alice.token);
        let answer = request.body(format!(r#"{{"a":{value}}}"#)).send().await;
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 400, "{value}");
        let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert_eq!(answer["errcode"], "M_NOT_JSON");
    }
    alice.get(&path).await.fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn wrong_numbers_and_booleans_are_refused() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = shared(&alice, &fake, "11").await;
    let (id, event) = (&room.id, &room.latest[0]);
    let client = "/_matrix/client/v1";
    let federation = "/_matrix/federation/v1";
    let mut taken = Vec::new();
    for (path, name, values) in [
        ("/sync".to_owned(), "timeout", NUMBERS),
        ("/sync".to_owned(), "full_state", BOOLEANS),
        ("/sync".to_owned(), "use_state_after", BOOLEANS),
        ("/publicRooms".to_owned(), "limit", NUMBERS),
        ("/notifications".to_owned(), "limit", NUMBERS),
        (format!("/rooms/{id}/messages"), "limit", NUMBERS),
        (format!("/rooms/{id}/context/{event}"), "limit", NUMBERS),
        (format!("{client}/rooms/{id}/threads"), "limit", NUMBERS),
        (
            format!("{client}/rooms/{id}/relations/{event}"),
            "limit",
            NUMBERS,
        ),
        (
            format!("{client}/rooms/{id}/relations/{event}"),
            "recurse",
            BOOLEANS,
        ),
        (format!("{client}/rooms/{id}/hierarchy"), "limit", NUMBERS),
        (
            format!("{client}/rooms/{id}/hierarchy"),
            "max_depth",
            NUMBERS,
        ),
        (
            format!("{client}/rooms/{id}/hierarchy"),
            "suggested_only",
            BOOLEANS,
        ),
        (
            format!("{client}/rooms/{id}/timestamp_to_event?dir=f"),
            "ts",
            NUMBERS,
        ),
        (
            format!("{client}/media/download/{}/x", server.name()),
            "timeout_ms",
            NUMBERS,
        ),
        (
            format!(
                "{client}/media/thumbnail/{}/x?width=32&height=32",
                server.name()
            ),
            "animated",
            BOOLEANS,
        ),
        (
            format!("{client}/media/thumbnail/{}/x?width=32", server.name()),
            "height",
            NUMBERS,
        ),
        (format!("{federation}/publicRooms"), "limit", NUMBERS),
        (
            format!("{federation}/publicRooms"),
            "include_all_networks",
            BOOLEANS,
        ),
        (
            format!("{federation}/backfill/{id}?v={event}"),
            "limit",
            NUMBERS,
        ),
        (
            format!("{federation}/hierarchy/{id}"),
            "suggested_only",
            BOOLEANS,
        ),
        (
            format!("{federation}/timestamp_to_event/{id}?dir=f"),
            "ts",
            NUMBERS,
        ),
    ] {
        for value in values {
            let and = if path.contains('?') { '&' } else { '?' };
            let path = format!("{path}{and}{name}={value}");
            let answer = if path.starts_with(federation) {
                fake.get(&server, &path).await
            } else {
                alice.get(&path).await
            };
            let is_refused = answer.status == 400 && answer.body["errcode"] == "M_INVALID_PARAM";
            if !is_refused {
                taken.push((path, answer.status, answer.body));
            }
        }
    }
    assert!(taken.is_empty(), "{taken:#?}");
}
