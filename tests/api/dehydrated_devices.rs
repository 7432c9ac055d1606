//! Dehydrated devices (MSC3814): they collect messages while nobody is there.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    fake_server::FakeServer,
    keys::{claim, public_key},
    server::{PASSWORD, TestServer, User},
};

const PATH: &str = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device";

/// What is uploaded of a device with this id.
fn device(user: &User<'_>, id: &str) -> Value {
    let by = json!({ &user.id: { format!("ed25519:{id}"): "signature" } });
    let key = |text: &str| json!({ "key": public_key(text), "signatures": by });
    json!({
        "device_id": id,
        "initial_device_display_name": "Dehydrated device",
        "device_data": { "algorithm": "org.matrix.msc3814.v2", "device_pickle": "x", "nonce": id },
        "device_keys": {
            "user_id": user.id, "device_id": id, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
            "dehydrated": true, "keys": { format!("ed25519:{id}"): public_key("k") }, "signatures": by,
        },
        "one_time_keys": { "signed_curve25519:A": key("one") },
        "fallback_keys": { "signed_curve25519:F": key("fallback") },
    })
}

async fn put(user: &User<'_>, id: &str) {
    let answer = user.put(PATH, device(user, id)).await.ok();
    assert_eq!(answer, json!({ "device_id": id }));
}

async fn keys_of(user: &User<'_>, whose: &str) -> Value {
    let body = json!({ "device_keys": { whose: [] } });
    user.post("/keys/query", body).await.ok()["device_keys"][whose].clone()
}

async fn send(from: &User<'_>, to: &str, device: &str, number: usize) {
    let body = json!({ "messages": { to: { device: { "n": number } } } });
    let path = format!("/sendToDevice/m.room.encrypted/{device}{number}");
    from.put(&path, body).await.ok();
}

fn numbers(answer: &Value) -> Vec<u64> {
    let events = answer["events"].as_array().unwrap().iter();
    events
        .map(|event| event["content"]["n"].as_u64().unwrap())
        .collect()
}

#[tokio::test]
async fn a_dehydrated_device_is_found_and_taken_over() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    for method in [Method::GET, Method::DELETE] {
        let answer = alice.send(method, PATH, None).await;
        answer.fails(404, "M_NOT_FOUND");
    }
    let versions = alice.get("/_matrix/client/versions").await.ok();
    assert_eq!(versions["unstable_features"]["org.matrix.msc3814"], true);
    let since = bob.sync("").await["next_batch"].clone();
    put(&alice, "DRY").await;
    let sync = bob
        .sync(&format!("since={}", since.as_str().unwrap()))
        .await;
    assert_eq!(sync["device_lists"]["changed"], json!([alice.id]));
    let uploaded = device(&alice, "DRY");
    let mut shown = uploaded["device_keys"].clone();
    shown["unsigned"] = json!({ "device_display_name": "Dehydrated device" });
    assert_eq!(keys_of(&bob, &alice.id).await, json!({ "DRY": shown }));
    let devices = alice.get("/devices").await.ok();
    let devices = devices["devices"].as_array().unwrap().iter();
    assert!(devices.clone().any(
        |device| device["device_id"] == "DRY" && device["display_name"] == "Dehydrated device"
    ));

    let of_dry = (alice.id.as_str(), "DRY");
    for id in ["A", "F", "F"] {
        let (found, _) = claim(&bob, of_dry).await.unwrap();
        assert_eq!(found, format!("signed_curve25519:{id}"));
    }
    for number in 0..120 {
        let device = if number % 2 == 0 { "DRY" } else { "*" };
        send(&bob, &alice.id, device, number).await;
    }
    let got = alice.get(PATH).await.ok();
    let expected = json!({ "device_id": "DRY", "device_data": uploaded["device_data"] });
    assert_eq!(got, expected);

    // As clients ask now, and as they did; nothing is removed by that.
    let path = format!("{PATH}/DRY/events");
    for _ in 0..2 {
        let first = alice.get(&path).await.ok();
        assert_eq!(numbers(&first), (0..100).collect::<Vec<_>>());
        let next = first["next_batch"].as_str().unwrap();
        let second = alice.get(&format!("{path}?from={next}")).await.ok();
        assert_eq!(numbers(&second), (100..120).collect::<Vec<_>>());
        assert_eq!(second.get("next_batch"), None);
        let few = alice.get(&format!("{path}?from={next}&limit=3")).await.ok();
        assert_eq!(numbers(&few), [100, 101, 102]);

        let (mut all, mut body) = (Vec::new(), json!({}));
        loop {
            let part = alice.post(&path, body).await.ok();
            let numbers = numbers(&part);
            if numbers.is_empty() {
                break;
            }
            all.extend(numbers);
            body = json!({ "next_batch": part["next_batch"] });
        }
        assert_eq!(all, (0..120).collect::<Vec<_>>());
    }
    let wildcards = alice.sync("").await["to_device"]["events"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(wildcards, 60, "a wildcard means the other devices too");

    for wrong in ["x", "d", "d-1", "1"] {
        let answer = alice.get(&format!("{path}?from={wrong}")).await;
        answer.fails(400, "M_INVALID_PARAM");
        let answer = alice.post(&path, json!({ "next_batch": wrong })).await;
        answer.fails(400, "M_INVALID_PARAM");
    }
    // It is nobody else's, and the others are no such devices.
    for (user, id) in [(&bob, "DRY"), (&alice, &*alice.device_id)] {
        let path = format!("{PATH}/{id}/events");
        user.get(&path).await.fails(403, "M_FORBIDDEN");
        user.post(&path, json!({})).await.fails(403, "M_FORBIDDEN");
    }
    bob.delete(PATH).await.fails(404, "M_NOT_FOUND");

    let since = bob.sync("").await["next_batch"].clone();
    let gone = alice.send(Method::DELETE, PATH, Some(json!({}))).await.ok();
    assert_eq!(gone, json!({ "device_id": "DRY" }));
    let sync = bob
        .sync(&format!("since={}", since.as_str().unwrap()))
        .await;
    assert_eq!(sync["device_lists"]["changed"], json!([alice.id]));
    assert_eq!(keys_of(&bob, &alice.id).await, json!({}));
    assert!(claim(&bob, of_dry).await.is_none());
    alice.get(PATH).await.fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn another_one_takes_its_place() {
    let (server, other) = (TestServer::federated().await, FakeServer::start().await);
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    for id in ["DRY", "DRIER", "DRIER"] {
        put(&alice, id).await;
        let keys = keys_of(&bob, &alice.id).await;
        assert_eq!(keys.as_object().unwrap().keys().collect::<Vec<_>>(), [id]);
        let body = json!({ "device_keys": { &alice.id: [] } });
        let path = "/_matrix/federation/v1/user/keys/query";
        let found = other.post(&server, path, body).await.ok();
        assert_eq!(found["device_keys"][&alice.id][id]["dehydrated"], true);
        let path = format!("{PATH}/{id}/events");
        assert_eq!(numbers(&alice.get(&path).await.ok()), [] as [u64; 0]);
        send(&bob, &alice.id, id, 1).await;
        // Those of the one before are gone.
        let (found, _) = claim(&bob, (&alice.id, id)).await.unwrap();
        assert_eq!(found, "signed_curve25519:A");
    }
    let many = (0..8).map(|n| alice.put(PATH, device(&alice, &format!("MANY{n}"))));
    let many = many.collect::<Vec<_>>();
    for answer in futures_util::future::join_all(many).await {
        answer.ok();
    }
    let last = alice.get(PATH).await.ok();
    let keys = keys_of(&bob, &alice.id).await;
    let keys: Vec<_> = keys.as_object().unwrap().keys().cloned().collect();
    assert_eq!(json!(keys), json!([last["device_id"]]));
    assert_eq!(
        alice.get("/devices").await.ok()["devices"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn nobody_signs_in_on_it() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    put(&alice, "DRY").await;
    let login = || server.login("alice", PASSWORD, json!({ "device_id": "DRY" }));
    login().await.fails(400, "M_INVALID_PARAM");
    // Nor is a device that somebody is signed in on made one.
    let body = device(&alice, &alice.device_id);
    alice.put(PATH, body).await.fails(400, "M_INVALID_PARAM");
    assert_eq!(alice.get(PATH).await.ok()["device_id"], "DRY");

    // It can be deleted like others, and goes with the account.
    let answer = alice.send_with_password(Method::DELETE, "/devices/DRY", json!({}));
    answer.await.ok();
    alice.get(PATH).await.fails(404, "M_NOT_FOUND");
    login().await.ok();
    put(&alice, "DRIER").await;
    let user = server
        .app
        .user(&ruma::UserId::parse(&alice.id).unwrap())
        .await
        .unwrap();
    let answer = alice.send_with_password(Method::POST, "/account/deactivate", json!({}));
    answer.await.ok();
    let found = homing::storage::dehydrated_devices::get(&server.app.db, user).await;
    assert!(found.unwrap().is_none());
    let bob = server.register("bob").await;
    assert_eq!(keys_of(&bob, &alice.id).await, json!({}));
    assert!(claim(&bob, (&alice.id, "DRIER")).await.is_none());
}

#[tokio::test]
async fn what_is_no_dehydrated_device_is_refused() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    put(&alice, "DRY").await;
    let with = |field: &str, value: Value| {
        let mut body = device(&alice, "NEW");
        body[field] = value;
        body
    };
    let key = json!({ "signed_curve25519:B": { "key": "k" } });
    let many: serde_json::Map<_, _> = (0..501)
        .map(|n| {
            (
                format!("signed_curve25519:{n}"),
                json!({ "key": public_key("k"), "signatures": {} }),
            )
        })
        .collect();
    let mut of_other = device(&alice, "NEW")["device_keys"].clone();
    of_other["user_id"] = json!("@bob:localhost");
    for (body, status, errcode) in [
        (with("device_id", json!("OTHER")), 400, "M_BAD_JSON"),
        (with("device_id", json!("")), 400, "M_INVALID_PARAM"),
        (
            with("device_id", json!("x".repeat(256))),
            400,
            "M_INVALID_PARAM",
        ),
        (with("device_id", json!(null)), 400, "M_BAD_JSON"),
        (
            with("initial_device_display_name", json!("x".repeat(256))),
            400,
            "M_INVALID_PARAM",
        ),
        (
            with("initial_device_display_name", json!("\u{0}")),
            400,
            "M_BAD_JSON",
        ),
        (with("device_data", json!("x")), 400, "M_BAD_JSON"),
        (
            with("device_data", json!({ "algorithm": 1 })),
            400,
            "M_BAD_JSON",
        ),
        (
            with("device_data", json!({ "algorithm": "x".repeat(140_000) })),
            413,
            "M_TOO_LARGE",
        ),
        (with("device_keys", of_other), 400, "M_BAD_JSON"),
        (with("device_keys", json!({})), 400, "M_BAD_JSON"),
        (with("one_time_keys", key.clone()), 400, "M_BAD_JSON"),
        (with("one_time_keys", json!(many)), 400, "M_INVALID_PARAM"),
        (with("fallback_keys", key), 400, "M_BAD_JSON"),
    ] {
        let answer = alice.put(PATH, body.clone()).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["errcode"]),
            (status, &json!(errcode)),
            "{:.200}",
            body.to_string()
        );
    }
    let mut without = device(&alice, "NEW");
    without.as_object_mut().unwrap().remove("device_keys");
    alice.put(PATH, without).await.fails(400, "M_MISSING_PARAM");
    assert_eq!(alice.get(PATH).await.ok()["device_id"], "DRY");
}
