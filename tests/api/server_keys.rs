//! "Retrieving server keys": our own, those of others, and a notary between.

use std::{collections::HashSet, sync::Arc, time::Duration};

use homing::{
    app::App,
    server_keys::{self, Keys, Wanted},
};
use homing_federation::{SigningKey, server_keys::KeyDocument};
use reqwest::Method;
use ruma::{OwnedServerName, ServerName};
use serde_json::{Value, json};

use crate::{
    fake_server::{FakeServer, in_a_day},
    server::{TestServer, test_config},
    tls,
};

const OWN: &str = "/_matrix/key/v2/server";
const QUERY: &str = "/_matrix/key/v2/query";
const HOUR: Duration = Duration::from_hours(1);

/// What makes a good document a bad one, with another server and a key that is nobody's.
type Change = fn(&mut Value, &FakeServer, &SigningKey);

async fn find(app: &App, server: &ServerName, key: &SigningKey) -> Keys {
    let wanted = Wanted::from([(server.to_owned(), HashSet::from([key.id().to_owned()]))]);
    server_keys::find(app, wanted, app.clock.now())
        .await
        .unwrap()
}

/// Whether a server can find this key, valid now.
async fn finds(app: &App, server: &ServerName, key: &SigningKey) -> bool {
    let keys = find(app, server, key).await;
    let found = keys.get(server, key.id(), Some(app.clock.now()));
    found == Some(&key.verify_key())
}

fn asked(fake: &FakeServer) -> usize {
    fake.count(&Method::GET, OWN)
}

#[tokio::test]
async fn own_keys_are_published_with_old_ones() {
    let server = TestServer::federated_with(|config| {
        let line = |version: &str, letter: &str| format!("ed25519 {version} {}", letter.repeat(43));
        let file = [
            line("new", "A"),
            line("other", "E"),
            format!("{} 1234", line("old", "I")),
        ];
        std::fs::write(config.data_dir.join("signing.key"), file.join("\n")).unwrap();
    })
    .await;
    let answer = server.request(Method::GET, OWN, None, None).await.ok();
    let text = answer.to_string();
    let document = KeyDocument::parse(text.as_bytes(), server.name()).unwrap();
    let ids: Vec<_> = document.verify_keys.keys().map(|id| &**id).collect();
    assert_eq!(ids, ["ed25519:new", "ed25519:other"]);
    assert_eq!(answer["old_verify_keys"]["ed25519:old"]["expired_ts"], 1234);
    assert!(document.valid_until > server.app.clock.now() + 60 * 60 * 1000);
    assert_eq!(server.app.signing_key.id(), "ed25519:new");
    assert!(finds(&server.app, server.name(), &server.app.signing_key).await);
}

#[tokio::test]
async fn a_server_without_federation_has_no_keys() {
    let server = TestServer::federated_with(|config| config.federation.enabled = false).await;
    for path in [OWN, "/_matrix/federation/v1/version"] {
        let answer = server.request(Method::GET, path, None, None).await;
        answer.fails(404, "M_UNRECOGNIZED");
    }
}

#[tokio::test]
async fn keys_are_asked_for_once_and_kept() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    let all = (0..20).map(|_| finds(&server.app, &fake.name, &fake.key));
    let all = futures_util::future::join_all(all).await;
    assert!(all.into_iter().all(|found| found));
    assert_eq!(asked(&fake), 1);
    // A key that is not there is not asked for again and again.
    let stranger = SigningKey::generate(&mut rand::rng());
    for _ in 0..5 {
        assert!(!finds(&server.app, &fake.name, &stranger).await);
    }
    assert_eq!(asked(&fake), 2);
    let server = server.restart().await;
    assert!(finds(&server.app, &fake.name, &fake.key).await);
    assert_eq!(asked(&fake), 2);
}

#[tokio::test]
async fn a_new_key_is_known_at_once() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    assert!(finds(&server.app, &fake.name, &fake.key).await);
    let new = SigningKey::generate(&mut rand::rng());
    let document = fake.key_document(&new, in_a_day());
    fake.answers(Method::GET, OWN, document);
    assert!(finds(&server.app, &fake.name, &new).await);
    assert_eq!(asked(&fake), 2);
    // Who makes up keys does not have the server asked each time.
    for _ in 0..5 {
        let made_up = SigningKey::generate(&mut rand::rng());
        assert!(!finds(&server.app, &fake.name, &made_up).await);
    }
    assert_eq!(asked(&fake), 2);
}

#[tokio::test]
async fn keys_are_renewed_before_they_end() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    assert!(finds(&server.app, &fake.name, &fake.key).await);
    server.app.clock.advance(HOUR * 13);
    assert!(finds(&server.app, &fake.name, &fake.key).await);
    // Nobody waits for that.
    while asked(&fake) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // When they have ended they are asked for at once.
    server.app.clock.advance(HOUR * 24);
    let next = SigningKey::generate(&mut rand::rng());
    let until = server.app.clock.now() + 60 * 60 * 1000;
    fake.answers(Method::GET, OWN, fake.key_document(&next, until));
    assert!(finds(&server.app, &fake.name, &next).await);
    // What the first has signed in its time holds.
    let then = server.app.clock.now() - 30 * 60 * 60 * 1000;
    let keys = find(&server.app, &fake.name, &fake.key).await;
    let get = |at| keys.get(&fake.name, fake.key.id(), at);
    assert_eq!(get(Some(then)), Some(&fake.key.verify_key()));
    assert_eq!(get(None), Some(&fake.key.verify_key()));
    assert_eq!(get(Some(server.app.clock.now())), None);
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_left_alone_for_a_while() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    fake.refuses(Method::GET, OWN, 500, "M_UNKNOWN");
    for _ in 0..3 {
        assert!(!finds(&server.app, &fake.name, &fake.key).await);
    }
    assert_eq!(asked(&fake), 1);
    fake.answers(Method::GET, OWN, fake.key_document(&fake.key, in_a_day()));
    server.app.clock.advance(Duration::from_mins(1));
    assert!(finds(&server.app, &fake.name, &fake.key).await);
    assert_eq!(asked(&fake), 2);
}

#[tokio::test]
async fn what_is_not_signed_by_its_server_is_not_believed() {
    let other = FakeServer::start().await;
    let stranger = SigningKey::generate(&mut rand::rng());
    let changes: [Change; 4] = [
        |document, _, _| document["valid_until_ts"] = json!(9_000_000_000_000_u64),
        |document, other, _| *document = other.key_document(&other.key, in_a_day()),
        |document, _, stranger| {
            document["verify_keys"][stranger.id()] = json!({ "key": stranger.public_key() });
        },
        |document, _, _| *document = json!({ "x": "x".repeat(100_000) }),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
        let mut document = fake.key_document(&fake.key, in_a_day());
        change(&mut document, &other, &stranger);
        fake.answers(Method::GET, OWN, document);
        assert!(!finds(&server.app, &fake.name, &fake.key).await, "{number}");
        assert!(!finds(&server.app, &fake.name, &stranger).await, "{number}");
    }
}

/// The keys of some servers as a notary tells them.
async fn query(server: &TestServer, names: &[&ServerName]) -> Vec<Value> {
    let wanted: serde_json::Map<_, _> = names
        .iter()
        .map(|name| (name.to_string(), json!({})))
        .collect();
    let body = json!({ "server_keys": wanted });
    let answer = server.request(Method::POST, QUERY, None, Some(body)).await;
    answer.ok()["server_keys"].as_array().unwrap().clone()
}

#[tokio::test]
async fn notaries_tell_the_keys_of_others() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    let key = Arc::clone(&server.app.signing_key);
    let check = |found: &Value| {
        let text = found.to_string();
        let document = KeyDocument::parse(text.as_bytes(), &fake.name).unwrap();
        assert_eq!(document.verify_keys[fake.key.id()], fake.key.verify_key());
        assert!(document.is_signed_by(server.name(), key.id(), &key.verify_key()));
    };
    let path = format!("{QUERY}/{}", fake.name);
    let answer = server.request(Method::GET, &path, None, None).await.ok();
    let found = answer["server_keys"].as_array().unwrap();
    assert_eq!(found.len(), 1);
    check(&found[0]);
    let name = fake.name.clone();
    let dead: OwnedServerName = format!("localhost:{}", tls::free_port())
        .try_into()
        .unwrap();
    fake.refuses(Method::GET, OWN, 500, "M_UNKNOWN");
    server.app.clock.advance(HOUR * 13);
    // What was published once is told also when its server does not answer any more.
    let found = query(&server, &[&name, server.name(), &dead]).await;
    assert_eq!(found.len(), 2);
    assert_eq!(found[0]["server_name"], server.name().as_str());
    check(&found[1]);
    assert!(query(&server, &[]).await.is_empty());
    assert_eq!(asked(&fake), 2);

    let many: serde_json::Map<_, _> = (0..101)
        .map(|number| (format!("s{number}.example"), json!({})))
        .collect();
    let body = json!({ "server_keys": many });
    let answer = server.request(Method::POST, QUERY, None, Some(body)).await;
    answer.fails(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn notaries_are_asked_for_those_who_do_not_answer() {
    let (notary, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    assert_eq!(query(&notary, &[&fake.name]).await.len(), 1);
    fake.refuses(Method::GET, OWN, 500, "M_UNKNOWN");
    let trusted = notary.name().to_owned();
    let server = TestServer::federated_with(|config| config.federation.key_servers = vec![trusted]);
    let (server, trusting_nobody) = tokio::join!(server, TestServer::federated());
    assert!(finds(&server.app, &fake.name, &fake.key).await);
    assert!(!finds(&trusting_nobody.app, &fake.name, &fake.key).await);
}

#[tokio::test]
async fn notaries_must_sign_what_they_tell() {
    let (notary, fake) = tokio::join!(FakeServer::start(), FakeServer::start());
    let document = fake.key_document(&fake.key, in_a_day());
    fake.refuses(Method::GET, OWN, 500, "M_UNKNOWN");
    let unsigned = json!({ "server_keys": [document.clone()] });
    notary.answers(Method::POST, QUERY, unsigned);
    let start = || {
        let trusted = notary.name.clone();
        TestServer::federated_with(|config| config.federation.key_servers = vec![trusted])
    };
    let server = start().await;
    assert!(!finds(&server.app, &fake.name, &fake.key).await);
    // A notary that knew nothing is not asked at once again.
    assert!(!finds(&server.app, &fake.name, &fake.key).await);
    assert_eq!(notary.count(&Method::POST, QUERY), 1);
    let signed = notary.sign(&notary.key, document);
    notary.answers(Method::POST, QUERY, json!({ "server_keys": [signed] }));
    let server = start().await;
    assert!(finds(&server.app, &fake.name, &fake.key).await);
}

async fn count(server: &TestServer, query: &'static homing::storage::Sql) -> i64 {
    let row = server.app.db.one(query, homing::args![]).await.unwrap();
    row.get(0).unwrap()
}

#[tokio::test]
async fn a_server_has_only_so_many_keys() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    for _ in 0..8 {
        // The most that one document may have, and others each time.
        let mut document = fake.key_document(&fake.key, in_a_day());
        document.as_object_mut().unwrap().remove("signatures");
        let mut newest = None;
        for _ in 0..63 {
            let key = SigningKey::generate(&mut rand::rng());
            document["old_verify_keys"][key.id()] =
                json!({ "key": key.public_key(), "expired_ts": server.app.clock.now() });
            newest = Some(key);
        }
        let newest = newest.unwrap();
        fake.answers(Method::GET, OWN, fake.sign(&fake.key, document));
        server.app.clock.advance(Duration::from_secs(11));
        find(&server.app, &fake.name, &newest).await;
        assert!(finds(&server.app, &fake.name, &fake.key).await);
    }
    assert_eq!(asked(&fake), 8);
    let keys = count(&server, homing::sql!("SELECT count(*) FROM server_key")).await;
    assert_eq!(keys, 256);
    let server = server.restart().await;
    assert!(finds(&server.app, &fake.name, &fake.key).await);
}

#[tokio::test]
async fn the_keys_of_strangers_are_not_kept_for_ever() {
    let server = TestServer::federated().await;
    let alice = server.register("alice").await;
    let (known, other) = tokio::join!(FakeServer::start(), FakeServer::start());
    crate::hostile_transactions::shared(&alice, &known, "12").await;
    let mut strangers = Vec::new();
    for _ in 0..3 {
        let stranger = FakeServer::start().await;
        server.app.clock.advance(Duration::from_secs(1));
        // Whoever asks for something, and whoever others want to know of.
        stranger
            .get(&server, "/_matrix/federation/v1/query/profile?user_id=@x:x")
            .await;
        strangers.push(stranger);
    }
    server.app.clock.advance(Duration::from_secs(1));
    query(&server, &[&other.name]).await;
    server_keys::forget_strangers_but(&server.app, 2)
        .await
        .unwrap();
    let server = server.restart().await;
    let asked_before: Vec<usize> = [&known, &other]
        .into_iter()
        .chain(&strangers)
        .map(asked)
        .collect();
    for fake in [&known, &other].into_iter().chain(&strangers) {
        assert!(finds(&server.app, &fake.name, &fake.key).await);
    }
    let asked_now: Vec<usize> = [&known, &other]
        .into_iter()
        .chain(&strangers)
        .map(asked)
        .collect();
    let again: Vec<usize> = asked_now
        .iter()
        .zip(&asked_before)
        .map(|(now, before)| now - before)
        .collect();
    // The room's server, the two that came last, and those that were forgotten.
    assert_eq!(again, [0, 0, 1, 1, 0]);
}

#[tokio::test]
async fn the_file_of_keys_must_be_right() {
    let directory = tempfile::TempDir::new().unwrap();
    let config = test_config(&directory).await;
    std::fs::write(directory.path().join("signing.key"), "ed25519 a nothing\n").unwrap();
    let error = homing::Server::start(config).await.unwrap_err().to_string();
    assert!(
        error.contains("signing.key") && error.contains("line 1"),
        "{error}"
    );
}

#[tokio::test]
async fn the_version_is_told() {
    let server = TestServer::federated().await;
    let path = "/_matrix/federation/v1/version";
    let version = server.request(Method::GET, path, None, None).await.ok();
    assert_eq!(version["server"]["name"], "Homing");
    assert_eq!(version["server"]["version"], env!("CARGO_PKG_VERSION"));
}
