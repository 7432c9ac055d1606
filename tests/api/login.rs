//! "Login", "Refreshing access tokens", "Soft logout".

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{PASSWORD, TestServer, User};

#[tokio::test]
async fn somebody_signs_out_and_in() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    alice.post("/logout", json!({})).await.ok();
    alice
        .get("/account/whoami")
        .await
        .fails(401, "M_UNKNOWN_TOKEN");

    for name in ["alice", "Alice", "@alice:localhost"] {
        let answer = server.login(name, PASSWORD, json!({})).await.ok();
        let again = User::new(&server, &answer);
        assert_eq!(again.id, alice.id);
        assert_ne!(again.device_id, alice.device_id);
        let me = again.get("/account/whoami").await.ok();
        assert_eq!(me["user_id"], alice.id);
        assert_eq!(me["device_id"], again.device_id);
    }
    let old = json!({ "type": "m.login.password", "user": "alice", "password": PASSWORD });
    server.post("/login", old).await.ok();
}

#[tokio::test]
async fn bad_logins_are_refused() {
    let server = TestServer::start().await;
    server.register("alice").await;
    for (name, password) in [
        ("alice", "wrong"),
        ("alice", ""),
        ("alice", &"x".repeat(5000)),
        ("bob", PASSWORD),
        ("@alice:elsewhere", PASSWORD),
        ("@", PASSWORD),
        ("", PASSWORD),
    ] {
        let answer = server.login(name, password, json!({})).await;
        answer.fails(403, "M_FORBIDDEN");
    }
    let password = |identifier: Value| json!({ "type": "m.login.password", "password": PASSWORD, "identifier": identifier });
    let cases = [
        (json!({}), 400, "M_MISSING_PARAM"),
        (json!([]), 400, "M_BAD_JSON"),
        (json!({ "type": 1 }), 400, "M_BAD_JSON"),
        (json!({ "type": "m.login.unheard" }), 400, "M_UNKNOWN"),
        (
            json!({ "type": "m.login.password" }),
            400,
            "M_MISSING_PARAM",
        ),
        (
            json!({ "type": "m.login.password", "password": "x" }),
            400,
            "M_MISSING_PARAM",
        ),
        (
            password(json!({ "type": "m.id.thirdparty", "medium": "email", "address": "a@b" })),
            403,
            "M_FORBIDDEN",
        ),
        (
            json!({ "type": "m.login.token", "token": "no such token" }),
            403,
            "M_FORBIDDEN",
        ),
        (
            json!({ "type": "m.login.application_service", "identifier": { "type": "m.id.user", "user": "a" } }),
            401,
            "M_MISSING_TOKEN",
        ),
    ];
    for (body, status, errcode) in cases {
        server.post("/login", body).await.fails(status, errcode);
    }
    let long = json!({ "device_id": "x".repeat(300) });
    let answer = server.login("alice", PASSWORD, long).await;
    answer.fails(400, "M_INVALID_PARAM");
    let service = json!({ "type": "m.login.application_service", "identifier": { "type": "m.id.user", "user": "a" } });
    let path = "/_matrix/client/v3/login";
    let answer = server
        .request(Method::POST, path, Some("token"), Some(service))
        .await;
    answer.fails(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn flows_are_those_that_work() {
    let server = TestServer::start().await;
    let answer = server.request(Method::GET, "/_matrix/client/v3/login", None, None);
    assert_eq!(
        answer.await.ok()["flows"],
        json!([
            { "type": "m.login.password" },
            { "type": "m.login.token", "get_login_token": true },
        ])
    );
}

#[tokio::test]
async fn device_that_signs_in_again_loses_its_old_token() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    alice
        .put(
            &format!("/devices/{}", alice.device_id),
            json!({ "display_name": "phone" }),
        )
        .await
        .ok();
    let same =
        json!({ "device_id": alice.device_id, "initial_device_display_name": "something else" });
    let again = User::new(&server, &server.login("alice", PASSWORD, same).await.ok());
    assert_eq!(again.device_id, alice.device_id);
    alice
        .get("/account/whoami")
        .await
        .fails(401, "M_UNKNOWN_TOKEN");
    let devices = again.get("/devices").await.ok();
    assert_eq!(devices["devices"].as_array().unwrap().len(), 1);
    assert_eq!(devices["devices"][0]["display_name"], "phone");

    // Another user's device of the same name is another device.
    let bob = server.register("bob").await;
    let same = json!({ "device_id": alice.device_id });
    server.login("bob", PASSWORD, same).await.ok();
    again.get("/account/whoami").await.ok();
    bob.get("/account/whoami").await.ok();
}

#[tokio::test]
async fn logins_of_one_device_at_once_leave_one_device() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let device = || json!({ "device_id": "PHONE" });
    let answers = tokio::join!(
        server.login("alice", PASSWORD, device()),
        server.login("alice", PASSWORD, device()),
        server.login("alice", PASSWORD, device()),
    );
    for answer in [answers.0, answers.1, answers.2] {
        answer.ok();
    }
    let devices = alice.get("/devices").await.ok();
    assert_eq!(devices["devices"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn logout_all_ends_every_session() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let other = User::new(
        &server,
        &server.login("alice", PASSWORD, json!({})).await.ok(),
    );
    let bob = server.register("bob").await;
    other.get("/account/whoami").await.ok();
    alice.post("/logout/all", json!({})).await.ok();
    for user in [&alice, &other] {
        let answer = user.get("/account/whoami").await;
        let body = answer.fails(401, "M_UNKNOWN_TOKEN");
        assert_ne!(body["soft_logout"], true);
    }
    bob.get("/account/whoami").await.ok();
}

async fn refresh(server: &TestServer, token: &Value) -> crate::server::Answer {
    server
        .post("/refresh", json!({ "refresh_token": token }))
        .await
}

#[tokio::test]
async fn expired_token_is_refreshed() {
    let server = TestServer::start().await;
    server.register("alice").await;
    let more = json!({ "refresh_token": true });
    let answer = server.login("alice", PASSWORD, more).await.ok();
    assert_eq!(answer["expires_in_ms"], 3_600_000);
    let alice = User::new(&server, &answer);
    alice.get("/account/whoami").await.ok();

    server.app.clock.advance(Duration::from_secs(3601));
    let body = alice.get("/account/whoami").await;
    let body = body.fails(401, "M_UNKNOWN_TOKEN");
    assert_eq!(body["soft_logout"], true);

    let new = refresh(&server, &answer["refresh_token"]).await.ok();
    let again = User {
        token: new["access_token"].as_str().unwrap().to_owned(),
        ..alice
    };
    let me = again.get("/account/whoami").await.ok();
    assert_eq!(me["device_id"], again.device_id);
    // The new token was used, so the old ones have ended.
    refresh(&server, &answer["refresh_token"])
        .await
        .fails(401, "M_UNKNOWN_TOKEN");
    refresh(&server, &new["refresh_token"]).await.ok();
}

#[tokio::test]
async fn lost_answer_to_a_refresh_can_be_asked_for_again() {
    let server = TestServer::start().await;
    server.register("alice").await;
    let more = json!({ "refresh_token": true });
    let first = server.login("alice", PASSWORD, more).await.ok();
    let alice = User::new(&server, &first);
    let lost = refresh(&server, &first["refresh_token"]).await.ok();
    // Nothing new was used: the old access token works on, and so does the old refresh token.
    alice.get("/account/whoami").await.ok();
    let got = refresh(&server, &first["refresh_token"]).await.ok();
    refresh(&server, &lost["refresh_token"])
        .await
        .fails(401, "M_UNKNOWN_TOKEN");
    // Using the new refresh token ends the old tokens as using the access token would.
    let newest = refresh(&server, &got["refresh_token"]).await.ok();
    alice
        .get("/account/whoami")
        .await
        .fails(401, "M_UNKNOWN_TOKEN");
    refresh(&server, &first["refresh_token"])
        .await
        .fails(401, "M_UNKNOWN_TOKEN");
    let again = User {
        token: newest["access_token"].as_str().unwrap().to_owned(),
        ..alice
    };
    again.get("/account/whoami").await.ok();
}

#[tokio::test]
async fn refresh_token_can_expire() {
    let server =
        TestServer::start_with(|config| config.sessions.refresh_token_seconds = Some(60)).await;
    server.register("alice").await;
    let more = json!({ "refresh_token": true });
    let answer = server.login("alice", PASSWORD, more).await.ok();
    server.app.clock.advance(Duration::from_secs(61));
    let body = refresh(&server, &answer["refresh_token"]).await;
    assert_eq!(body.fails(401, "M_UNKNOWN_TOKEN")["soft_logout"], true);
    refresh(&server, &json!("nonsense"))
        .await
        .fails(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn login_token_signs_in_once() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let path = "/_matrix/client/v1/login/get_token";
    let answer = alice.send_with_password(Method::POST, path, json!({}));
    let answer = answer.await.ok();
    assert_eq!(answer["expires_in_ms"], 120_000);
    let body = json!({ "type": "m.login.token", "token": answer["login_token"] });
    let (one, two) = tokio::join!(
        server.post("/login", body.clone()),
        server.post("/login", body.clone())
    );
    let statuses = [one.status.as_u16(), two.status.as_u16()];
    assert!(
        statuses == [200, 403] || statuses == [403, 200],
        "{statuses:?}"
    );
    server.post("/login", body).await.fails(403, "M_FORBIDDEN");

    let answer = alice.send_with_password(Method::POST, path, json!({}));
    let answer = answer.await.ok();
    server.app.clock.advance(Duration::from_secs(121));
    let body = json!({ "type": "m.login.token", "token": answer["login_token"] });
    server.post("/login", body).await.fails(403, "M_FORBIDDEN");
}
