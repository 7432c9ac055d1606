use reqwest::Method;
use serde_json::{Value, json};

use crate::server::TestServer;

async fn state(user: &crate::server::User<'_>, room: &str, kind: &str) -> Value {
    user.get(&format!("/rooms/{room}/state/{kind}/")).await.ok()
}

#[tokio::test]
async fn a_direct_room_is_created_and_joined_and_both_speak() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice
        .create_room(
            json!({ "is_direct": true, "preset": "trusted_private_chat", "invite": [bob.id] }),
        )
        .await;
    assert!(
        room.starts_with('!') && !room.contains(':'),
        "rooms of version 12 have no domain: {room}"
    );
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    alice.say(&room, "hello").await;
    bob.say(&room, "hello, Alice").await;
    let joined = bob.get("/joined_rooms").await.ok();
    assert_eq!(joined["joined_rooms"], json!([room]));
}

#[tokio::test]
async fn every_version_can_be_created() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    for version in ["6", "7", "8", "9", "10", "11", "12"] {
        let room = alice
            .create_room(json!({ "room_version": version, "name": "Room", "topic": "Talk" }))
            .await;
        alice.say(&room, "hello").await;
        assert_eq!(
            state(&alice, &room, "m.room.create").await["room_version"],
            version
        );
    }
    for version in ["1", "5", "13", "nonsense"] {
        let answer = alice
            .post("/createRoom", json!({ "room_version": version }))
            .await;
        answer.fails(400, "M_UNSUPPORTED_ROOM_VERSION");
    }
}

#[tokio::test]
async fn a_transaction_id_counts_once_also_after_a_restart() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/once");
    let token = alice.token.clone();
    let body = json!({ "msgtype": "m.text", "body": "once" });
    let first = server
        .request(Method::PUT, &path, Some(&token), Some(body.clone()))
        .await
        .ok();
    let second = server
        .request(Method::PUT, &path, Some(&token), Some(body.clone()))
        .await
        .ok();
    assert_eq!(first, second);
    let server = server.restart().await;
    let third = server
        .request(Method::PUT, &path, Some(&token), Some(body))
        .await
        .ok();
    assert_eq!(first, third);
}

#[tokio::test]
async fn outsiders_may_not_send() {
    let server = TestServer::start().await;
    let (alice, mallory) = (
        server.register("alice").await,
        server.register("mallory").await,
    );
    let room = alice.create_room(json!({})).await;
    for room in [&room, "!unknown:localhost"] {
        let path = format!("/rooms/{room}/send/m.room.message/1");
        mallory
            .put(&path, json!({ "msgtype": "m.text", "body": "hi" }))
            .await
            .fails(403, "M_FORBIDDEN");
    }
    mallory
        .post(&format!("/join/{room}"), json!({}))
        .await
        .fails(403, "M_FORBIDDEN");
    mallory
        .post("/join/!unknown:localhost", json!({}))
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn many_send_to_one_room_at_once() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    let sends = (0..50).map(|_| alice.say(&room, "hello"));
    let ids = futures_util::future::join_all(sends).await;
    let different: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!(different.len(), 50);
}

#[tokio::test]
async fn an_optional_body_may_be_left_out() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let open = alice.create_room(json!({ "preset": "public_chat" })).await;
    let rule = json!({ "type": "m.room.join_rules", "content": { "join_rule": "knock" } });
    let knockable = alice.create_room(json!({ "initial_state": [rule] })).await;
    for path in [
        format!("/join/{open}"),
        format!("/rooms/{open}/join"),
        format!("/rooms/{open}/leave"),
        format!("/rooms/{open}/forget"),
        format!("/knock/{knockable}"),
    ] {
        bob.send(Method::POST, &path, None).await.ok();
    }
}
