//! "Device Management".

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{PASSWORD, TestServer, User};

async fn devices(user: &User<'_>) -> Vec<Value> {
    let answer = user.get("/devices").await.ok();
    answer["devices"].as_array().unwrap().clone()
}

async fn sign_in<'s>(server: &'s TestServer, device: &str) -> User<'s> {
    let more = json!({ "device_id": device, "initial_device_display_name": "one of many" });
    User::new(server, &server.login("alice", PASSWORD, more).await.ok())
}

#[tokio::test]
async fn devices_are_listed_and_named() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    sign_in(&server, "PHONE").await;
    assert_eq!(devices(&alice).await.len(), 2);
    let phone = alice.get("/devices/PHONE").await.ok();
    assert_eq!(phone["display_name"], "one of many");

    let body = json!({ "display_name": "my phone" });
    alice.put("/devices/PHONE", body.clone()).await.ok();
    alice.put("/devices/PHONE", json!({})).await.ok();
    let phone = alice.get("/devices/PHONE").await.ok();
    assert_eq!(phone["display_name"], "my phone");
    alice
        .put("/devices/PHONE", json!({ "display_name": "x".repeat(300) }))
        .await
        .fails(413, "M_TOO_LARGE");

    let bob = server.register("bob").await;
    bob.get("/devices/PHONE").await.fails(404, "M_NOT_FOUND");
    bob.put("/devices/PHONE", body)
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn devices_are_deleted_with_the_password() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let [phone, tablet, laptop] = [
        sign_in(&server, "PHONE").await,
        sign_in(&server, "TABLET").await,
        sign_in(&server, "LAPTOP").await,
    ];
    let bob = server.register("bob").await;
    bob.send_with_password(Method::DELETE, "/devices/PHONE", json!({}))
        .await
        .ok();
    phone.get("/account/whoami").await.ok();

    alice
        .send_with_password(Method::DELETE, "/devices/PHONE", json!({}))
        .await
        .ok();
    phone
        .get("/account/whoami")
        .await
        .fails(401, "M_UNKNOWN_TOKEN");
    alice.get("/devices/PHONE").await.fails(404, "M_NOT_FOUND");

    let body = json!({ "devices": ["TABLET", "LAPTOP", "NONE"] });
    alice
        .send_with_password(Method::POST, "/delete_devices", body)
        .await
        .ok();
    for gone in [&tablet, &laptop] {
        gone.get("/account/whoami")
            .await
            .fails(401, "M_UNKNOWN_TOKEN");
    }
    assert_eq!(devices(&alice).await.len(), 1);

    let wrong = json!({ "auth": {
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "alice" },
        "password": "wrong",
    } });
    let path = format!("/devices/{}", alice.device_id);
    let answer = alice.send(Method::DELETE, &path, Some(wrong)).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body["errcode"]),
        (401, &json!("M_FORBIDDEN"))
    );
    alice.get("/account/whoami").await.ok();
    // A DELETE may come without any body.
    let answer = alice.delete(&path).await;
    assert_eq!(answer.status, 401);
    assert!(answer.body["session"].is_string(), "{}", answer.body);
}

#[tokio::test]
async fn devices_are_seen() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let before = server.app.clock.now();
    server.app.clock.advance(Duration::from_secs(1000));
    let seen = devices(&alice).await.remove(0);
    assert!(seen["last_seen_ts"].as_i64().unwrap() >= before + 1_000_000);
    assert_eq!(seen["last_seen_ip"], "127.0.0.1");

    // It is remembered when the server ends. Another device asks, so that this one is not seen again.
    let writes = server.app.db.statistics().writes;
    alice.get("/account/whoami").await.ok();
    assert_eq!(
        server.app.db.statistics().writes,
        writes,
        "nothing is written for a request"
    );
    let server = server.restart().await;
    let other = sign_in(&server, "PHONE").await;
    let path = format!("/devices/{}", alice_device(&other).await);
    let seen = other.get(&path).await.ok();
    assert!(seen["last_seen_ts"].as_i64().unwrap() >= before + 1_000_000);
    assert_eq!(seen["last_seen_ip"], "127.0.0.1");
}

/// The device that is not the phone.
async fn alice_device(user: &User<'_>) -> String {
    let devices = devices(user).await;
    let other = devices.iter().find(|device| device["device_id"] != "PHONE");
    other.unwrap()["device_id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_is_not_known_of_a_device_is_null() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    // matrix-nio reads no device without a name.
    let null = Some(&json!(null));
    let answer = alice.get("/devices").await.ok();
    assert_eq!(answer["devices"][0].get("display_name"), null);
    let answer = alice.get(&format!("/devices/{}", alice.device_id)).await;
    assert_eq!(answer.ok().get("display_name"), null);
}

#[tokio::test]
async fn old_clients_say_who_they_are_beside_the_password() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    sign_in(&server, "PHONE").await;
    for user in ["nobody", "alice"] {
        let auth = json!({ "type": "m.login.password", "user": user, "password": PASSWORD });
        let body = json!({ "devices": ["PHONE"], "auth": auth });
        let answer = alice.post("/delete_devices", body).await;
        assert_eq!(answer.status, if user == "alice" { 200 } else { 401 });
    }
    assert_eq!(devices(&alice).await.len(), 1);
}
