//! "Rate limiting".

use std::time::Duration;

use homing::config::Rate;
use reqwest::Method;
use serde_json::json;

use crate::server::{Answer, PASSWORD, TestServer};

fn rate(per_second: f64, burst: u32) -> Rate {
    Rate { per_second, burst }
}

/// Checks that this was too often; answers the seconds to wait.
#[track_caller]
fn limited(answer: Answer) -> u64 {
    let header = answer.headers.get("retry-after").expect("Retry-After");
    let seconds: u64 = header.to_str().unwrap().parse().unwrap();
    let body = answer.fails(429, "M_LIMIT_EXCEEDED");
    let millis = body["retry_after_ms"].as_u64().unwrap();
    assert_eq!(millis.div_ceil(1000), seconds);
    seconds
}

#[tokio::test]
async fn logins_to_an_account() {
    let server = TestServer::start_with(|config| {
        config.rate_limits.enabled = true;
        config.rate_limits.login_per_account = rate(0.1, 3);
        config.rate_limits.login_per_address = rate(100.0, 1000);
    });
    let server = server.await;
    server.register("alice").await;
    server.register("bob").await;
    for _ in 0..3 {
        let answer = server.login("alice", "guess", json!({})).await;
        answer.fails(403, "M_FORBIDDEN");
    }
    // Even with the right password, and by each name of the account.
    let answer = server.login("@alice:localhost", PASSWORD, json!({})).await;
    let wait = limited(answer);
    server.login("bob", PASSWORD, json!({})).await.ok();
    server.app.clock.advance(Duration::from_secs(wait));
    server.login("alice", PASSWORD, json!({})).await.ok();
}

#[tokio::test]
async fn logins_from_an_address() {
    let server = TestServer::start_with(|config| {
        config.rate_limits.enabled = true;
        config.rate_limits.login_per_address = rate(0.1, 3);
    });
    let server = server.await;
    for name in ["alice", "bob", "carol"] {
        let answer = server.login(name, "guess", json!({})).await;
        answer.fails(403, "M_FORBIDDEN");
    }
    limited(server.login("dave", "guess", json!({})).await);
}

#[tokio::test]
async fn registrations() {
    let server = TestServer::start_with(|config| {
        config.rate_limits.enabled = true;
        config.rate_limits.registration = rate(0.1, 2);
    });
    let server = server.await;
    server.register("alice").await;
    // To ask how to register is no registration.
    for _ in 0..5 {
        let answer = server.post("/register", json!({ "username": "carol" }));
        assert_eq!(answer.await.status, 401);
    }
    server.register("bob").await;
    let body =
        json!({ "username": "carol", "password": PASSWORD, "auth": { "type": "m.login.dummy" } });
    limited(server.post("/register", body).await);
}

#[tokio::test]
async fn messages_joins_and_invites() {
    let server = TestServer::start_with(|config| {
        config.rate_limits.enabled = true;
        config.rate_limits.messages = rate(0.1, 2);
        config.rate_limits.joins = rate(0.1, 2);
        config.rate_limits.invites = rate(0.1, 1);
    });
    let server = server.await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    for text in ["one", "two"] {
        alice.say(&room, text).await;
    }
    let path = format!("/rooms/{room}/send/m.room.message/3");
    let message = json!({ "msgtype": "m.text", "body": "three" });
    limited(alice.put(&path, message).await);

    let invite = format!("/rooms/{room}/invite");
    alice
        .post(&invite, json!({ "user_id": "@carol:localhost" }))
        .await
        .ok();
    limited(
        alice
            .post(&invite, json!({ "user_id": "@dave:localhost" }))
            .await,
    );

    for _ in 0..2 {
        bob.send(Method::POST, &format!("/join/{room}"), Some(json!({})))
            .await
            .ok();
    }
    limited(bob.post(&format!("/rooms/{room}/join"), json!({})).await);
}

#[tokio::test]
async fn refreshed_tokens_uploads_and_profiles() {
    let server = TestServer::start_with(|config| {
        config.rate_limits.enabled = true;
        config.rate_limits.refreshes = rate(0.1, 2);
        config.rate_limits.uploads = rate(0.1, 2);
        config.rate_limits.profiles = rate(0.1, 1);
    });
    let server = server.await;
    let alice = server.register("alice").await;
    for _ in 0..2 {
        let answer = server.post("/refresh", json!({ "refresh_token": "guess" }));
        answer.await.fails(401, "M_UNKNOWN_TOKEN");
    }
    let answer = server.post("/refresh", json!({ "refresh_token": "guess" }));
    limited(answer.await);

    let upload = "/_matrix/media/v3/upload";
    alice.post(upload, json!({})).await.ok();
    let made = alice.post("/_matrix/media/v1/create", json!({})).await.ok();
    limited(alice.post(upload, json!({})).await);
    limited(alice.post("/_matrix/media/v1/create", json!({})).await);
    let name = made["content_uri"]
        .as_str()
        .unwrap()
        .replacen("mxc:/", "", 1);
    limited(alice.put(&format!("{upload}{name}"), json!({})).await);

    let name = format!("/profile/{}/displayname", alice.id);
    alice.put(&name, json!({ "displayname": "A" })).await.ok();
    limited(alice.put(&name, json!({ "displayname": "B" })).await);
    limited(alice.delete(&name).await);
}

#[tokio::test]
async fn proofs_by_password_whoever_they_name() {
    let server = TestServer::start_with(|config| {
        config.rate_limits.enabled = true;
        config.rate_limits.login_per_account = rate(0.1, 3);
    });
    let server = server.await;
    let alice = server.register("alice").await;
    server.register("bob").await;
    let guess = async || {
        let auth = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": "bob" },
            "password": PASSWORD,
        });
        let body = json!({ "devices": ["X"], "auth": auth });
        alice.post("/delete_devices", body).await
    };
    for _ in 0..3 {
        guess().await.fails(403, "M_FORBIDDEN");
    }
    limited(guess().await);
    server.login("bob", PASSWORD, json!({})).await.ok();
}
