use std::{sync::Arc, time::Duration};

use homing::{
    auth,
    presence::{self, Guard},
    storage,
};
use ruma::presence::PresenceState;
use serde_json::{Value, json};

use crate::server::{TestServer, User};

async fn set(user: &User<'_>, body: Value) -> crate::server::Answer {
    let path = format!("/presence/{}/status", user.id);
    user.put(&path, body).await
}

async fn get(asker: &User<'_>, user: &User<'_>) -> crate::server::Answer {
    asker.get(&format!("/presence/{}/status", user.id)).await
}

/// What `/sync` does while it runs.
async fn syncing(user: &User<'_>, state: PresenceState) -> Option<Guard> {
    let app = &user.server.app;
    let requester = auth::requester(app, &user.token).await.unwrap();
    presence::syncing(app, &requester, &state).await.unwrap()
}

async fn pass(server: &TestServer, time: Duration) {
    server.app.clock.advance(time);
    presence::tick(&server.app).await.unwrap();
}

async fn two(server: &TestServer) -> (User<'_>, User<'_>) {
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "invite": [bob.id] })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    (alice, bob)
}

#[tokio::test]
async fn presence_is_for_those_who_share_a_room() {
    let server = TestServer::start().await;
    let (alice, bob) = two(&server).await;
    let carol = server.register("carol").await;
    let body = json!({ "presence": "online", "status_msg": "here" });
    set(&alice, body.clone()).await.ok();
    let status = get(&bob, &alice).await.ok();
    assert_eq!(
        (
            &status["presence"],
            &status["status_msg"],
            &status["currently_active"]
        ),
        (&json!("online"), &json!("here"), &json!(true))
    );
    assert!(status["last_active_ago"].as_u64().unwrap() < 10_000);
    get(&alice, &alice).await.ok();
    get(&carol, &alice).await.fails(403, "M_FORBIDDEN");
    alice
        .get("/presence/@nobody:localhost/status")
        .await
        .fails(403, "M_FORBIDDEN");
    let path = format!("/presence/{}/status", alice.id);
    bob.put(&path, body).await.fails(403, "M_FORBIDDEN");
    for (body, code) in [
        (json!({ "presence": "dreaming" }), "M_INVALID_PARAM"),
        (json!({ "presence": 1 }), "M_BAD_JSON"),
        (json!({}), "M_MISSING_PARAM"),
        (
            json!({ "presence": "online", "status_msg": "x".repeat(2000) }),
            "M_INVALID_PARAM",
        ),
        (
            json!({ "presence": "online", "status_msg": "\0" }),
            "M_INVALID_PARAM",
        ),
    ] {
        set(&alice, body).await.fails(400, code);
    }
}

#[tokio::test]
async fn who_does_nothing_becomes_idle_and_who_goes_offline() {
    let server = TestServer::start().await;
    let (alice, bob) = two(&server).await;
    let state = async || get(&bob, &alice).await.ok()["presence"].clone();
    assert_eq!(state().await, "offline");
    let guard = syncing(&alice, PresenceState::Online).await;
    assert_eq!(state().await, "online");
    pass(&server, Duration::from_secs(90)).await;
    let status = get(&bob, &alice).await.ok();
    assert_eq!(
        (&status["presence"], &status["currently_active"]),
        (&json!("online"), &json!(false))
    );
    pass(&server, Duration::from_secs(220)).await;
    assert_eq!(state().await, "unavailable");
    presence::active(
        &server.app,
        server
            .app
            .user(alice.id.as_str().try_into().unwrap())
            .await
            .unwrap(),
    );
    assert_eq!(state().await, "online");
    drop(guard);
    assert!(syncing(&alice, PresenceState::Offline).await.is_none());
    pass(&server, Duration::from_secs(29)).await;
    assert_eq!(state().await, "online");
    pass(&server, Duration::from_secs(2)).await;
    assert_eq!(state().await, "offline");
}

#[tokio::test]
async fn watchers_are_woken_by_each_change() {
    let server = TestServer::start().await;
    let (alice, bob) = two(&server).await;
    let carol = server.register("carol").await;
    let app = &server.app;
    let nid = |user: &User<'_>| {
        let (app, id) = (Arc::clone(app), user.id.clone());
        async move { app.user(id.as_str().try_into().unwrap()).await.unwrap() }
    };
    let (bob_nid, alice_nid) = (nid(&bob).await, nid(&alice).await);
    let bobs = app.bus.feed(&app.db, &app.log, bob_nid).await.unwrap();
    let carols = app
        .bus
        .feed(&app.db, &app.log, nid(&carol).await)
        .await
        .unwrap();
    let woken = bobs.news.notified();
    set(&alice, json!({ "presence": "unavailable" })).await.ok();
    tokio::time::timeout(Duration::from_secs(10), woken)
        .await
        .expect("bob hears of it");
    assert!(bobs.state().presence.contains_key(&alice_nid));
    assert!(!carols.state().presence.contains_key(&alice_nid));
}

#[tokio::test]
async fn last_seen_survives_a_restart() {
    let server = TestServer::start().await;
    let (alice, bob) = two(&server).await;
    set(
        &alice,
        json!({ "presence": "online", "status_msg": "back soon" }),
    )
    .await
    .ok();
    let guard = syncing(&bob, PresenceState::Online).await;
    let tokens = (alice.token.clone(), bob.token.clone());
    let ids = (alice.id.clone(), bob.id.clone());
    drop((alice, bob));
    // Alice went before the restart, Bob is there while the server ends.
    pass(&server, Duration::from_secs(31)).await;
    drop(guard);
    let server = server.restart().await;
    for (token, id, status) in [
        (&tokens.1, &ids.0, json!("back soon")),
        (&tokens.0, &ids.1, Value::Null),
    ] {
        let path = format!("/_matrix/client/v3/presence/{id}/status");
        let answer = server
            .request(reqwest::Method::GET, &path, Some(token), None)
            .await
            .ok();
        assert_eq!(
            (&answer["presence"], &answer["status_msg"]),
            (&json!("offline"), &status)
        );
        assert!(answer["last_active_ago"].is_u64(), "{answer}");
    }
}

#[tokio::test]
async fn presence_can_be_turned_off() {
    let server = TestServer::start_with(|config| config.presence.enabled = false).await;
    let (alice, bob) = two(&server).await;
    set(
        &alice,
        json!({ "presence": "online", "status_msg": "here" }),
    )
    .await
    .ok();
    assert!(syncing(&alice, PresenceState::Online).await.is_none());
    assert_eq!(
        get(&bob, &alice).await.ok(),
        json!({ "presence": "offline" })
    );
}

#[tokio::test]
async fn a_status_is_written_down_at_once() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    for status in ["here", "there"] {
        let body = json!({ "presence": "online", "status_msg": status });
        set(&alice, body).await.ok();
        let nid = server.app.user(alice.id.as_str().try_into().unwrap()).await;
        let stored = storage::presence::many(&server.app.db, &[nid.unwrap()]).await;
        let (_, seen) = stored.unwrap().pop().unwrap();
        assert_eq!(seen.status_msg.as_deref(), Some(status));
    }
}
