//! "Request Authentication": whose requests are answered.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use homing::{
    app::App,
    config::Listener,
    error::{Error, Result},
    http::{Call, Routes},
    listen,
};
use homing_federation::{SigningKey, request::Target};
use reqwest::{Method, StatusCode};
use ruma::{
    ServerName, api::federation::transactions::send_transaction_message::v1 as send, server_name,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{fake_server::FakeServer, server::TestServer};

const PATH: &str = "/_matrix/federation/v1/send/t%201?x=%C3%A9";

/// A listener that answers transactions of other servers with an error which names their origin, once `gate` is open.
struct Door {
    server: TestServer,
    address: SocketAddr,
    gate: watch::Sender<bool>,
    /// How many requests have come to the gate.
    arrived: watch::Receiver<usize>,
}

impl Door {
    async fn open() -> Self {
        let server = TestServer::federated().await;
        let (gate, waits) = watch::channel(true);
        let (arrives, arrived) = watch::channel(0);
        let handler = move |_: Arc<App>, call: Call<send::Request>| {
            let mut waits = waits.clone();
            arrives.send_modify(|count| *count += 1);
            async move {
                waits.wait_for(|is_open| *is_open).await.unwrap();
                let answer: Result<send::Response> = match call.body.pdus.len() {
                    7 => Ok(send::Response::new(BTreeMap::new())),
                    _ => Err(Error::not_found(call.requester.server.as_str())),
                };
                answer
            }
        };
        let router = Routes::new()
            .sized::<send::Request, _, _>(1 << 20, handler)
            .into_router(Arc::clone(&server.app));
        let listener = Listener {
            bind: ([127, 0, 0, 1], 0).into(),
            ..Listener::default()
        };
        let bound = listen::bind(&[listener]).await.unwrap();
        let address = bound[0].address();
        tokio::spawn(listen::serve(bound, router, server.app.shutdown.clone()));
        Self {
            server,
            address,
            gate,
            arrived,
        }
    }

    fn name(&self) -> &ServerName {
        self.server.name()
    }

    /// Sends a body with these `Authorization` headers; answers the status and the JSON.
    async fn send(&self, authorization: &[&str], body: &str) -> (StatusCode, Value) {
        let mut request = self
            .server
            .http
            .put(format!("http://{}{PATH}", self.address))
            .body(body.to_owned());
        for value in authorization {
            request = request.header("authorization", *value);
        }
        let answer = request.send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    /// Sends a body that somebody has signed as `origin`, with a key, for a destination.
    async fn send_as(
        &self,
        origin: &ServerName,
        key: &SigningKey,
        destination: &ServerName,
        body: &str,
    ) -> (u16, String) {
        let target = Target {
            method: &Method::PUT,
            uri: PATH,
            origin,
            destination,
        };
        let header = target.sign(body.as_bytes(), key).unwrap();
        fails(self.send(&[&header], body).await)
    }
}

fn fails((status, json): (StatusCode, Value)) -> (u16, String) {
    let errcode = json["errcode"].as_str().unwrap_or_default();
    (status.as_u16(), errcode.to_owned())
}

fn body() -> String {
    json!({ "origin": "a", "origin_server_ts": 1, "pdus": [] }).to_string()
}

fn unauthorized() -> (u16, String) {
    (401, "M_UNAUTHORIZED".to_owned())
}

#[tokio::test]
async fn signed_requests_are_answered() {
    let (door, fake) = tokio::join!(Door::open(), FakeServer::start());
    let known = (404, "M_NOT_FOUND".to_owned());
    let body = body();
    assert_eq!(
        door.send_as(&fake.name, &fake.key, door.name(), &body)
            .await,
        known
    );
    let target = Target {
        method: &Method::PUT,
        uri: PATH,
        origin: &fake.name,
        destination: door.name(),
    };
    let header = target.sign(body.as_bytes(), &fake.key).unwrap();
    let answer = door.send(&[&header], &body).await.1;
    assert_eq!(answer["error"], fake.name.as_str());
    // Two signatures, also beside something else.
    let answer = door.send(&["Bearer x", &header, &header], &body).await;
    assert_eq!(fails(answer), known);
    // Another form of the same body.
    let spaced = body.replace(',', " , ");
    assert_eq!(fails(door.send(&[&header], &spaced).await), known);
    // Old servers do not say whom the request is for, but have signed it.
    let destination = format!("destination=\"{}\",", door.name());
    assert!(header.contains(&destination));
    let old = header.replace(&destination, "");
    assert_eq!(fails(door.send(&[&old], &body).await), known);
    // The real endpoint is behind the same door.
    let path = "/_matrix/federation/v1/send/1";
    let nothing = json!({ "origin": fake.name, "origin_server_ts": 1, "pdus": [] });
    let answer = fake.put(&door.server, path, nothing).await.ok();
    assert_eq!(answer, json!({ "pdus": {} }));
    // All this took one request for keys.
    assert_eq!(fake.recorded().len(), 1);
}

#[tokio::test]
async fn other_requests_are_refused() {
    let (door, fake, other) = tokio::join!(Door::open(), FakeServer::start(), FakeServer::start());
    let own = Arc::clone(&door.server.app.signing_key);
    let stranger = SigningKey::generate(&mut rand::rng());
    let body = body();
    assert_eq!(fails(door.send(&[], &body).await), unauthorized());
    assert_eq!(fails(door.send(&["Bearer x"], &body).await), unauthorized());
    let malformed = (400, "M_UNAUTHORIZED".to_owned());
    assert_eq!(
        fails(door.send(&["X-Matrix nonsense"], &body).await),
        malformed
    );
    let name = door.name();
    for (what, origin, key, destination) in [
        (
            "for another server",
            &*fake.name,
            &fake.key,
            server_name!("else.example"),
        ),
        (
            "with an unknown key",
            &*fake.name,
            &Arc::new(stranger),
            name,
        ),
        ("with the key of another", &*fake.name, &other.key, name),
        ("as this server", name, &own, name),
        ("as nobody", server_name!("localhost:1"), &other.key, name),
    ] {
        let answer = door.send_as(origin, key, destination, &body).await;
        assert_eq!(answer, unauthorized(), "{what}");
    }
    let sign = |fake: &FakeServer, method: Method, path: &str| {
        let json: Value = serde_json::from_str(&body).unwrap();
        fake.authorization(name, &method, path, Some(&json))
    };
    let right = sign(&fake, Method::PUT, PATH);
    let cases = [
        (
            "another path",
            vec![sign(
                &fake,
                Method::PUT,
                "/_matrix/federation/v1/send/t%201",
            )],
            &*body,
        ),
        (
            "another method",
            vec![sign(&fake, Method::POST, PATH)],
            &body,
        ),
        (
            "said to be for another server, but not signed so",
            vec![right.replace(name.as_str(), "else.example")],
            &body,
        ),
        ("another body", vec![right.clone()], "{\"pdus\":[1]}"),
        ("no body", vec![right.clone()], ""),
        (
            "two origins",
            vec![right.clone(), sign(&other, Method::PUT, PATH)],
            &body,
        ),
        (
            "one of two is wrong",
            vec![right.clone(), sign(&fake, Method::POST, PATH)],
            &body,
        ),
        ("too many", vec![right.clone(); 6], &body),
    ];
    for (what, headers, body) in cases {
        let headers: Vec<_> = headers.iter().map(String::as_str).collect();
        assert_eq!(
            fails(door.send(&headers, body).await),
            unauthorized(),
            "{what}"
        );
    }
}

#[tokio::test]
async fn a_key_that_is_not_valid_any_more_signs_no_requests() {
    let (door, fake) = tokio::join!(Door::open(), FakeServer::start());
    let body = body();
    let known = (404, "M_NOT_FOUND".to_owned());
    assert_eq!(
        door.send_as(&fake.name, &fake.key, door.name(), &body)
            .await,
        known
    );
    let next = SigningKey::generate(&mut rand::rng());
    let now = door.server.app.clock.now();
    let mut document = json!({
        "server_name": fake.name,
        "verify_keys": { next.id(): { "key": next.public_key() } },
        "old_verify_keys": { fake.key.id(): { "key": fake.key.public_key(), "expired_ts": now } },
        "valid_until_ts": now + 24 * 60 * 60 * 1000,
    });
    document = fake.sign(&next, document);
    fake.answers(Method::GET, "/_matrix/key/v2/server", document);
    door.server.app.clock.advance(Duration::from_mins(1));
    assert_eq!(
        door.send_as(&fake.name, &next, door.name(), &body).await,
        known
    );
    let old = door
        .send_as(&fake.name, &fake.key, door.name(), &body)
        .await;
    assert_eq!(old, unauthorized());
}

/// The whole body cannot be canonical JSON then, but what the others sent in it must not be lost.
#[tokio::test]
async fn one_float_does_not_make_a_transaction_unreadable() {
    let (door, fake) = tokio::join!(Door::open(), FakeServer::start());
    let content = r#"{"origin":"a","origin_server_ts":1,"pdus":[{"a":1.5},1,2,3,4,5,6]}"#;
    let signed = format!(
        "{{\"content\":{content},\"destination\":\"{}\",\"method\":\"PUT\",\"origin\":\"{}\",\"uri\":\"{PATH}\"}}",
        door.name(),
        fake.name
    );
    let header = format!(
        "X-Matrix origin=\"{}\",destination=\"{}\",key=\"{}\",sig=\"{}\"",
        fake.name,
        door.name(),
        fake.key.id(),
        fake.key.sign_bytes(signed.as_bytes())
    );
    let (status, json) = door.send(&[&header], content).await;
    assert_eq!(status, StatusCode::OK, "{json}");
}

#[tokio::test]
async fn bodies_have_a_limit() {
    let (door, fake) = tokio::join!(Door::open(), FakeServer::start());
    let body = json!({ "pdus": ["x".repeat(2 << 20)] }).to_string();
    let answer = door
        .send_as(&fake.name, &fake.key, door.name(), &body)
        .await;
    assert_eq!(answer, (413, "M_TOO_LARGE".to_owned()));
    // Larger than what strangers may send.
    let body = json!({ "origin": "a", "origin_server_ts": 1, "pdus": ["x".repeat(500 << 10)] });
    let answer = door
        .send_as(&fake.name, &fake.key, door.name(), &body.to_string())
        .await;
    assert_eq!(answer, (404, "M_NOT_FOUND".to_owned()));
}

#[tokio::test]
async fn one_server_gets_only_so_many_answers_at_a_time() {
    let (door, fake, other) = tokio::join!(Door::open(), FakeServer::start(), FakeServer::start());
    door.gate.send_replace(false);
    let body = body();
    let mut under_way = Vec::new();
    let door = Arc::new(door);
    for _ in 0..64 {
        let (door, body) = (Arc::clone(&door), body.clone());
        let (name, key) = (fake.name.clone(), Arc::clone(&fake.key));
        under_way.push(tokio::spawn(async move {
            door.send_as(&name, &key, door.name(), &body).await
        }));
    }
    let limited = (429, "M_LIMIT_EXCEEDED".to_owned());
    let mut arrived = door.arrived.clone();
    arrived.wait_for(|count| *count == 64).await.unwrap();
    assert_eq!(door.send_as_soon(&fake, &body).await, Some(limited));
    assert_eq!(door.send_as_soon(&other, &body).await, None);
    door.gate.send_replace(true);
    for answer in under_way {
        assert_eq!(answer.await.unwrap(), (404, "M_NOT_FOUND".to_owned()));
    }
}

impl Door {
    /// The answer, unless it has to be waited for.
    async fn send_as_soon(&self, fake: &FakeServer, body: &str) -> Option<(u16, String)> {
        let answer = self.send_as(&fake.name, &fake.key, self.name(), body);
        tokio::time::timeout(Duration::from_secs(1), answer)
            .await
            .ok()
    }
}
