//! Keys over federation: what other servers learn of the people here, and what people here learn of others.

use std::time::{Duration, Instant};

use axum::{Json, response::IntoResponse as _};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    cross_signing::{Identity, sign},
    fake_room::FakeRoom,
    fake_server::{FakeServer, Recorded},
    keys::{claim, device_keys, one_time_keys, upload},
    server::{TestServer, User},
};

const QUERY: &str = "/_matrix/federation/v1/user/keys/query";
const CLAIM: &str = "/_matrix/federation/v1/user/keys/claim";
const DEVICES: &str = "/_matrix/federation/v1/user/devices/";
const SIGNING: &str = "/keys/device_signing/upload";

async fn query(user: &User<'_>, of: &[&str]) -> Value {
    let of: serde_json::Map<_, _> = of.iter().map(|id| ((*id).to_owned(), json!([]))).collect();
    let body = json!({ "device_keys": of, "timeout": 2000 });
    user.post("/keys/query", body).await.ok()
}

#[tokio::test]
async fn other_servers_learn_what_there_is_to_know_of_people_here_and_no_more() {
    let (server, other) = (TestServer::federated().await, FakeServer::start().await);
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let keys = device_keys(&alice);
    upload(&alice, json!({ "device_keys": keys })).await;
    let path = format!("/devices/{}", alice.device_id);
    alice
        .put(&path, json!({ "display_name": "Phone" }))
        .await
        .ok();
    let (identity, of_bob) = (Identity::new(), Identity::new());
    alice.post(SIGNING, identity.body(&alice.id)).await.ok();
    bob.post(SIGNING, of_bob.body(&bob.id)).await.ok();
    // Bob has verified Alice.
    let master = identity.public_master(&alice.id);
    let user_signing = of_bob.user_signing.public_key();
    let signed = sign(master.clone(), &bob.id, &user_signing, &of_bob.user_signing);
    let body = json!({ &alice.id: { identity.master.public_key(): signed } });
    let answer = bob.post("/keys/signatures/upload", body).await.ok();
    assert_eq!(answer["failures"], json!({}));

    let foreign = "@zoe:elsewhere.example";
    let body = json!({ "device_keys": { &alice.id: [], foreign: [] } });
    let found = other.post(&server, QUERY, body).await.ok();
    let self_signing = &identity.body(&alice.id)["self_signing_key"];
    let expected = json!({
        "device_keys": { &alice.id: { &alice.device_id: keys } },
        "master_keys": { &alice.id: master },
        "self_signing_keys": { &alice.id: self_signing },
    });
    assert_eq!(found, expected);

    let mut list = other
        .get(&server, &format!("{DEVICES}{}", alice.id))
        .await
        .ok();
    let stream_id = list.as_object_mut().unwrap().remove("stream_id").unwrap();
    assert!(stream_id.as_i64().unwrap() > 0);
    let expected = json!({
        "user_id": alice.id,
        "devices": [{ "device_id": alice.device_id, "keys": keys }],
        "master_key": master,
        "self_signing_key": self_signing,
    });
    assert_eq!(list, expected);
    let nobody = format!("@nobody:{}", server.name());
    for id in [foreign, &nobody] {
        let answer = other.get(&server, &format!("{DEVICES}{id}")).await;
        answer.fails(404, "M_NOT_FOUND");
    }
}

#[tokio::test]
async fn other_servers_claim_each_key_once() {
    let (server, other) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    upload(
        &alice,
        json!({ "one_time_keys": one_time_keys(&alice, 0..2) }),
    )
    .await;
    let claims = json!({
        &alice.id: { &alice.device_id: "signed_curve25519" },
        "@zoe:elsewhere.example": { "D": "signed_curve25519" },
    });
    let body = json!({ "one_time_keys": claims });
    for n in 0..2 {
        let answer = other.post(&server, CLAIM, body.clone()).await.ok();
        let keys = one_time_keys(&alice, n..n + 1);
        let expected = json!({ "one_time_keys": { &alice.id: { &alice.device_id: keys } } });
        assert_eq!(answer, expected);
    }
    let answer = other.post(&server, CLAIM, body).await.ok();
    assert_eq!(answer, json!({ "one_time_keys": {} }));
}

#[tokio::test]
async fn people_here_learn_of_others_and_which_servers_could_not_be_asked() {
    let server = TestServer::federated().await;
    let (other, silent) = (FakeServer::start().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let (zoe, yan) = (
        format!("@zoe:{}", other.name),
        format!("@yan:{}", silent.name),
    );
    silent.never_answers(Method::POST, QUERY);
    silent.never_answers(Method::POST, CLAIM);
    let keys = |user: &str, device: &str| {
        json!({
            "user_id": user, "device_id": device, "algorithms": [], "keys": {},
            "signatures": { user: {} },
        })
    };
    let (good, wrong) = (keys(&zoe, "PHONE"), keys(&zoe, "OTHER"));
    let identity = Identity::new();
    let master = identity.public_master(&zoe);
    let stranger = format!("@stranger:{}", other.name);
    // It says more than it was asked, of people who are not its own, and what does not fit.
    let answer = json!({
        "device_keys": {
            &zoe: { "PHONE": good, "TABLET": wrong, "LAPTOP": keys(&alice.id, "LAPTOP") },
            &alice.id: { "EVIL": keys(&alice.id, "EVIL") },
            &stranger: {},
            &yan: { "EVIL": keys(&yan, "EVIL") },
        },
        "master_keys": { &zoe: master, &yan: identity.public_master(&yan) },
        "self_signing_keys": { &zoe: identity.public_master(&alice.id) },
        "user_signing_keys": { &zoe: master },
    });
    other.answers(Method::POST, QUERY, answer);
    let asked = Instant::now();
    let found = query(&alice, &[&zoe, &yan, &alice.id]).await;
    assert!(asked.elapsed() < Duration::from_secs(15));
    let failures = found["failures"].as_object().unwrap();
    assert_eq!(failures.keys().collect::<Vec<_>>(), [silent.name.as_str()]);
    let expected = json!({ &zoe: { "PHONE": good }, &alice.id: {} });
    assert_eq!(found["device_keys"], expected);
    assert_eq!(found["master_keys"], json!({ &zoe: master }));
    assert_eq!(found["self_signing_keys"], json!({}));
    assert_eq!(found["user_signing_keys"], json!({}));

    let claimed = json!({ "signed_curve25519:A": { "key": "k", "signatures": {} } });
    let answer = json!({ "one_time_keys": {
        &zoe: { "PHONE": claimed, "TABLET": claimed }, &yan: { "EVIL": claimed },
    } });
    other.on(Method::POST, CLAIM, move |_| {
        Json(answer.clone()).into_response()
    });
    let body = json!({ "timeout": 500, "one_time_keys": {
        &zoe: { "PHONE": "signed_curve25519" }, &yan: { "PHONE": "signed_curve25519" },
    } });
    let found = alice.post("/keys/claim", body).await.ok();
    assert_eq!(
        found["one_time_keys"],
        json!({ &zoe: { "PHONE": claimed } })
    );
    let failures = found["failures"].as_object().unwrap();
    assert_eq!(failures.keys().collect::<Vec<_>>(), [silent.name.as_str()]);
}

#[tokio::test]
async fn a_server_that_says_nothing_takes_no_time_from_others() {
    let server = TestServer::federated().await;
    let (other, silent) = (FakeServer::start().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let near = FakeRoom::join(&silent, &server, &room).await;
    silent.never_answers(Method::GET, "/_matrix/federation/v1/user/devices/");
    let zoe = format!("@zoe:{}", other.name);
    let master = Identity::new().public_master(&zoe);
    let answer = json!({ "device_keys": {}, "master_keys": { &zoe: master } });
    other.answers(Method::POST, QUERY, answer);
    let body = json!({ "device_keys": { near.user.as_str(): [], &zoe: [] }, "timeout": 2000 });
    let found = alice.post("/keys/query", body).await.ok();
    assert_eq!(found["master_keys"], json!({ &zoe: master }));
    let failures = found["failures"].as_object().unwrap();
    assert_eq!(failures.keys().collect::<Vec<_>>(), [silent.name.as_str()]);
}

#[tokio::test]
async fn people_of_two_servers_find_claim_and_sign_each_others_keys() {
    let (one, two) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, zoe) = (one.register("alice").await, two.register("zoe").await);
    let body = json!({
        "device_keys": device_keys(&zoe), "one_time_keys": one_time_keys(&zoe, 0..1),
    });
    upload(&zoe, body).await;
    let (of_alice, of_zoe) = (Identity::new(), Identity::new());
    alice.post(SIGNING, of_alice.body(&alice.id)).await.ok();
    zoe.post(SIGNING, of_zoe.body(&zoe.id)).await.ok();
    let found = query(&alice, &[&zoe.id]).await;
    assert_eq!(found["failures"], json!({}));
    assert_eq!(
        found["device_keys"][&zoe.id][&zoe.device_id],
        device_keys(&zoe)
    );
    assert!(claim(&alice, (&zoe.id, &zoe.device_id)).await.is_some());
    assert!(claim(&alice, (&zoe.id, &zoe.device_id)).await.is_none());

    let master = of_zoe.public_master(&zoe.id);
    let user_signing = of_alice.user_signing.public_key();
    let signed = sign(
        master.clone(),
        &alice.id,
        &user_signing,
        &of_alice.user_signing,
    );
    let body = json!({ &zoe.id: { of_zoe.master.public_key(): signed } });
    let answer = alice.post("/keys/signatures/upload", body).await.ok();
    assert_eq!(answer["failures"], json!({}));
    assert_eq!(
        query(&alice, &[&zoe.id]).await["master_keys"][&zoe.id],
        signed
    );
    assert_eq!(
        query(&zoe, &[&zoe.id]).await["master_keys"][&zoe.id],
        master
    );
}

#[tokio::test]
async fn nobody_asks_for_too_much_at_once() {
    let (server, other) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let many = |value: Value| -> Value {
        let users = (0..10_001).map(|n| (format!("@u{n}:{}", server.name()), value.clone()));
        Value::Object(users.collect())
    };
    let devices: Vec<String> = (0..10_001).map(|n| format!("D{n}")).collect();
    let queries = [many(json!([])), json!({ &alice.id: devices })];
    let algorithms: serde_json::Map<_, _> = devices
        .iter()
        .map(|id| (id.clone(), json!("signed_curve25519")))
        .collect();
    let claims = [many(json!({})), json!({ &alice.id: algorithms })];
    for (query, claim) in queries.into_iter().zip(claims) {
        let query = json!({ "device_keys": query });
        let claim = json!({ "one_time_keys": claim });
        for (path, federated, body) in [
            ("/keys/query", QUERY, query),
            ("/keys/claim", CLAIM, claim.clone()),
        ] {
            let answer = alice.post(path, body.clone()).await;
            answer.fails(413, "M_TOO_LARGE");
            let answer = other.post(&server, federated, body).await;
            answer.fails(413, "M_TOO_LARGE");
        }
        let signed = claim["one_time_keys"].clone();
        let answer = alice.post("/keys/signatures/upload", signed).await;
        answer.fails(413, "M_TOO_LARGE");
    }
}

#[tokio::test]
async fn few_requests_of_one_user_ask_other_servers_at_a_time() {
    let (server, other) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    other.never_answers(Method::POST, QUERY);
    other.never_answers(Method::POST, CLAIM);
    let asked = || other.count(&Method::POST, QUERY) + other.count(&Method::POST, CLAIM);
    let ask = async |n: usize, timeout: usize| {
        let zoe = format!("@zoe{n}:{}", other.name);
        let query = json!({ "device_keys": { &zoe: [] }, "timeout": timeout });
        let claim = json!({ "one_time_keys": { &zoe: { "D": "a" } }, "timeout": timeout });
        let (query, claim) = tokio::join!(
            alice.post("/keys/query", query),
            alice.post("/keys/claim", claim)
        );
        for answer in [query.ok(), claim.ok()] {
            assert_eq!(answer["failures"][other.name.as_str()]["status"], 503);
        }
    };
    let late = async {
        other.wait_for(|_| asked() == 4).await;
        ask(2, 200).await;
        assert_eq!(asked(), 4);
    };
    tokio::join!(ask(0, 5000), ask(1, 5000), late);
}

#[tokio::test]
async fn other_servers_learn_what_devices_are_called_if_the_settings_say_so() {
    let server = TestServer::federated_with(|config| config.federation.device_names = true).await;
    let other = FakeServer::start().await;
    other.answers(
        Method::PUT,
        "/_matrix/federation/v1/send/",
        json!({ "pdus": {} }),
    );
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    FakeRoom::join(&other, &server, &room).await;
    upload(&alice, json!({ "device_keys": device_keys(&alice) })).await;
    let path = format!("/devices/{}", alice.device_id);
    alice
        .put(&path, json!({ "display_name": "Phone" }))
        .await
        .ok();
    let body = json!({ "device_keys": { &alice.id: [] } });
    let found = other.post(&server, QUERY, body).await.ok();
    let device = &found["device_keys"][&alice.id][&alice.device_id];
    assert_eq!(
        device["unsigned"],
        json!({ "device_display_name": "Phone" })
    );
    let list = other
        .get(&server, &format!("{DEVICES}{}", alice.id))
        .await
        .ok();
    assert_eq!(list["devices"][0]["device_display_name"], "Phone");
    let is_told = |request: &Recorded| {
        let edus = request.body["edus"].as_array().into_iter().flatten();
        edus.into_iter()
            .any(|edu| edu["content"]["device_display_name"] == "Phone")
    };
    other.wait_for(is_told).await;
}
