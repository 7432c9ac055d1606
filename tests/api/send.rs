use std::collections::HashSet;

use futures_util::future;
use serde_json::{Value, json};

use crate::server::{Answer, PASSWORD, TestServer, User};

async fn put_state(user: &User<'_>, room: &str, kind: &str, key: &str, content: Value) -> Answer {
    user.put(&format!("/rooms/{room}/state/{kind}/{key}"), content)
        .await
}

/// Sends an event under a transaction id of its own.
async fn send(user: &User<'_>, room: &str, kind: &str, content: Value) -> Answer {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let txn = COUNT.fetch_add(1, Ordering::Relaxed);
    user.put(&format!("/rooms/{room}/send/{kind}/send{txn}"), content)
        .await
}

#[tokio::test]
async fn state_is_sent_once() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    let first = put_state(&alice, &room, "m.room.name", "", json!({ "name": "A" }))
        .await
        .ok();
    let same = put_state(&alice, &room, "m.room.name", "", json!({ "name": "A" }))
        .await
        .ok();
    assert_eq!(first, same);
    let other = put_state(&alice, &room, "m.room.name", "", json!({ "name": "B" }))
        .await
        .ok();
    assert_ne!(first, other);
}

/// Sends the same request many times at once, under each of the paths; answers the event id that all get.
async fn send_at_once(user: &User<'_>, paths: &[String], body: Value) -> String {
    let requests = paths.iter().cycle().take(12);
    let answers = future::join_all(requests.map(|path| user.put(path, body.clone()))).await;
    let ids: HashSet<_> = answers
        .into_iter()
        .map(|answer| answer.ok()["event_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    ids.into_iter().next().unwrap()
}

/// The ids of the room's events of this type, the latest first.
async fn events_of_type(user: &User<'_>, room: &str, kind: &str) -> Vec<String> {
    let body = user
        .get(&format!("/rooms/{room}/messages?dir=b&limit=100"))
        .await
        .ok();
    let chunk = body["chunk"].as_array().unwrap().iter();
    chunk
        .filter(|event| event["type"] == kind)
        .map(|event| event["event_id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_sent_many_times_at_once_is_one_event() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    // The newest path, and one that old clients use.
    let paths =
        |rest: &str| ["v3", "r0"].map(|v| format!("/_matrix/client/{v}/rooms/{room}/{rest}"));
    let body = json!({ "msgtype": "m.text", "body": "once" });
    let mut sent = Vec::new();
    for txn in 0..5 {
        let paths = paths(&format!("send/m.room.message/{txn}"));
        sent.insert(0, send_at_once(&alice, &paths, body.clone()).await);
    }
    assert_eq!(events_of_type(&alice, &room, "m.room.message").await, sent);

    let mut redactions = Vec::new();
    for event in &sent {
        let paths = paths(&format!("redact/{event}/{}", &event[1..]));
        redactions.insert(0, send_at_once(&alice, &paths, json!({})).await);
    }
    let found = events_of_type(&alice, &room, "m.room.redaction").await;
    assert_eq!(found, redactions);

    // Another device has transactions of its own.
    let answer = server.login("alice", PASSWORD, json!({})).await.ok();
    let tablet = User::new(&server, &answer);
    let again = send_at_once(&tablet, &paths("send/m.room.message/0"), body).await;
    assert!(!sent.contains(&again));
}

#[tokio::test]
async fn the_rules_of_the_room_decide_what_may_be_sent() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    put_state(&bob, &room, "m.room.name", "", json!({}))
        .await
        .fails(403, "M_FORBIDDEN");
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    put_state(&bob, &room, "m.room.name", "", json!({}))
        .await
        .fails(403, "M_FORBIDDEN");
    for (kind, key, content) in [
        ("m.room.member", &*bob.id, json!({ "membership": "join" })),
        (
            "m.room.member",
            &alice.id,
            json!({ "membership": "nonsense" }),
        ),
        ("m.room.member", &alice.id, json!({ "membership": "knock" })),
        ("org.example", &bob.id, json!({})),
        ("org.example", "@nonsense", json!({})),
    ] {
        let answer = put_state(&alice, &room, kind, key, content.clone()).await;
        assert_eq!(answer.status, 403, "{kind} {key} {content}");
    }
    let levels = json!({ "users": { alice.id.clone(): 100 } });
    for (kind, key, content) in [
        ("m.room.create", "", json!({})),
        ("m.room.create", "x", json!({})),
        ("m.room.power_levels", "", levels),
    ] {
        let answer = put_state(&alice, &room, kind, key, content).await;
        answer.fails(400, "M_INVALID_PARAM");
    }
    put_state(&alice, &room, "org.example", &alice.id, json!({}))
        .await
        .ok();
    put_state(
        &alice,
        &room,
        "m.room.member",
        &alice.id,
        json!({ "membership": "join", "displayname": "A" }),
    )
    .await
    .ok();
    send(&alice, &room, "m.room.create", json!({}))
        .await
        .fails(400, "M_INVALID_PARAM");
    send(
        &alice,
        &room,
        "m.room.member",
        json!({ "membership": "join" }),
    )
    .await
    .fails(403, "M_FORBIDDEN");
    // Levels that are no integers.
    for levels in [
        json!({ "ban": "50" }),
        json!({ "users": { bob.id.clone(): "50" } }),
        json!({ "events": { "a": null } }),
        json!({ "users": [] }),
        json!({ "users": { "bob": 1 } }),
    ] {
        let answer = put_state(&alice, &room, "m.room.power_levels", "", levels).await;
        answer.fails(403, "M_FORBIDDEN");
    }
}

#[tokio::test]
async fn bad_events_are_refused() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    let big = json!({ "body": "a".repeat(65_536) });
    send(&alice, &room, "m.room.message", big.clone())
        .await
        .fails(413, "M_TOO_LARGE");
    put_state(&alice, &room, "m.room.topic", "", big)
        .await
        .fails(413, "M_TOO_LARGE");
    let long = "a".repeat(256);
    send(&alice, &room, &long, json!({}))
        .await
        .fails(413, "M_TOO_LARGE");
    put_state(&alice, &room, &long, "", json!({}))
        .await
        .fails(413, "M_TOO_LARGE");
    put_state(&alice, &room, "org.example", &long, json!({}))
        .await
        .fails(413, "M_TOO_LARGE");
    for content in [
        json!([]),
        json!("text"),
        json!({ "n": 1.5 }),
        json!({ "n": 9_007_199_254_740_992_i64 }),
    ] {
        send(&alice, &room, "m.room.message", content.clone())
            .await
            .fails(400, "M_BAD_JSON");
        put_state(&alice, &room, "m.room.topic", "", content)
            .await
            .fails(400, "M_BAD_JSON");
    }
    send(&alice, &room, "a%00b", json!({}))
        .await
        .fails(400, "M_INVALID_PARAM");
    put_state(&alice, &room, "org.example", "a%00b", json!({}))
        .await
        .fails(400, "M_INVALID_PARAM");
    put_state(
        &alice,
        &room,
        "m.room.member",
        "alice",
        json!({ "membership": "join" }),
    )
    .await
    .fails(400, "M_INVALID_PARAM");
    for content in [json!({}), json!({ "membership": 1 })] {
        put_state(&alice, &room, "m.room.member", &alice.id, content)
            .await
            .fails(400, "M_BAD_JSON");
    }
    let path = format!("/rooms/{room}/send/m.room.message");
    for txn in ["a".repeat(256), "a%00b".to_owned()] {
        alice
            .put(&format!("{path}/{txn}"), json!({}))
            .await
            .fails(400, "M_INVALID_PARAM");
    }
    // What is odd but allowed must not confuse anybody.
    let name = json!({ "membership": "join", "displayname": "a\u{0}b", "avatar_url": 1 });
    put_state(&alice, &room, "m.room.member", &alice.id, name)
        .await
        .fails(400, "M_BAD_JSON");
    let name = json!({ "membership": "join", "displayname": "a\u{0}b" });
    put_state(&alice, &room, "m.room.member", &alice.id, name)
        .await
        .ok();
    let relation = json!({ "m.relates_to": { "rel_type": "a\u{0}b", "event_id": "$x" } });
    send(&alice, &room, "m.room.message", relation).await.ok();
    send(
        &alice,
        &room,
        "m.room.message",
        json!({ "m.relates_to": [] }),
    )
    .await
    .ok();
    put_state(&alice, &room, "m.room.redaction", "", json!({}))
        .await
        .ok();
    put_state(
        &alice,
        &room,
        "m.room.join_rules",
        "",
        json!({ "join_rule": 1 }),
    )
    .await;
    put_state(
        &alice,
        &room,
        "m.room.history_visibility",
        "",
        json!({ "history_visibility": 1 }),
    )
    .await
    .ok();
    alice.say(&room, "still works").await;
}

#[tokio::test]
async fn the_same_annotation_counts_once() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let message = alice.say(&room, "hello").await;
    let annotation = |key: &str| json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": message, "key": key } });
    let first = send(&bob, &room, "m.reaction", annotation("yes"))
        .await
        .ok();
    send(&bob, &room, "m.reaction", annotation("yes"))
        .await
        .fails(400, "M_DUPLICATE_ANNOTATION");
    send(&bob, &room, "m.reaction", annotation("no")).await.ok();
    send(&alice, &room, "m.reaction", annotation("yes"))
        .await
        .ok();
    let id = first["event_id"].as_str().unwrap();
    bob.put(&format!("/rooms/{room}/redact/{id}/1"), json!({}))
        .await
        .ok();
    send(&bob, &room, "m.reaction", annotation("yes"))
        .await
        .ok();
}

#[tokio::test]
async fn threads_do_not_begin_in_relations() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    let root = alice.say(&room, "root").await;
    let in_thread = |root: &str| json!({ "msgtype": "m.text", "body": "reply", "m.relates_to": { "rel_type": "m.thread", "event_id": root } });
    let reply = send(&alice, &room, "m.room.message", in_thread(&root))
        .await
        .ok();
    send(&alice, &room, "m.room.message", in_thread(&root))
        .await
        .ok();
    let reply = reply["event_id"].as_str().unwrap();
    send(&alice, &room, "m.room.message", in_thread(reply))
        .await
        .fails(400, "M_UNKNOWN");
    send(&alice, &room, "m.room.message", in_thread("$unknown"))
        .await
        .ok();
    // The same when the event is not in memory any more.
    for _ in 0..40 {
        alice.say(&room, "filler").await;
    }
    send(&alice, &room, "m.room.message", in_thread(reply))
        .await
        .fails(400, "M_UNKNOWN");
    send(&alice, &room, "m.room.message", in_thread(&root))
        .await
        .ok();
}

#[tokio::test]
async fn join_rules_say_who_may_join() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    for content in [json!({}), json!({ "join_rule": 1 })] {
        put_state(&alice, &room, "m.room.join_rules", "", content.clone())
            .await
            .fails(400, "M_BAD_JSON");
        let rules = json!({ "type": "m.room.join_rules", "content": content });
        alice
            .post("/createRoom", json!({ "initial_state": [rules] }))
            .await
            .fails(400, "M_BAD_JSON");
    }
    // It counts nowhere but under the empty key.
    put_state(&alice, &room, "m.room.join_rules", "x", json!({}))
        .await
        .ok();
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let invite = json!({ "join_rule": "invite" });
    put_state(&alice, &room, "m.room.join_rules", "", invite)
        .await
        .ok();
    // Who has joined stays, whatever the rules say now.
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
}

#[tokio::test]
async fn redactions_need_power_or_ones_own_event() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    for version in ["10", "12"] {
        let room = alice
            .create_room(json!({ "preset": "public_chat", "room_version": version }))
            .await;
        bob.post(&format!("/join/{room}"), json!({})).await.ok();
        let (hers, his) = (alice.say(&room, "hers").await, bob.say(&room, "his").await);
        let redact = |id: &str| format!("/rooms/{room}/redact/{id}/{version}{id}");
        bob.put(&redact(&hers), json!({}))
            .await
            .fails(403, "M_FORBIDDEN");
        bob.put(&redact(&his), json!({ "reason": "typo" }))
            .await
            .ok();
        let his = bob.say(&room, "his").await;
        alice.put(&redact(&his), json!({})).await.ok();
        let redaction = json!({ "redacts": hers });
        send(&bob, &room, "m.room.redaction", redaction.clone())
            .await
            .fails(403, "M_FORBIDDEN");
        send(&alice, &room, "m.room.redaction", redaction)
            .await
            .ok();
        send(&alice, &room, "m.room.redaction", json!({}))
            .await
            .fails(400, "M_MISSING_PARAM");
        send(&alice, &room, "m.room.redaction", json!({ "redacts": 1 }))
            .await
            .fails(400, "M_BAD_JSON");
        send(&alice, &room, "m.room.redaction", json!({ "redacts": "x" }))
            .await
            .fails(400, "M_INVALID_PARAM");
    }
}

#[tokio::test]
async fn what_may_not_be_sent_leaves_no_names() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let levels = json!({
        "users_default": 0, "events_default": 0, "state_default": 50, "events": { "org.example.closed": 50 }
    });
    put_state(&alice, &room, "m.room.power_levels", "", levels)
        .await
        .ok();
    put_state(&bob, &room, "org.example.state", "some key", json!({}))
        .await
        .fails(403, "M_FORBIDDEN");
    send(&bob, &room, "org.example.closed", json!({}))
        .await
        .fails(403, "M_FORBIDDEN");
    let (db, names) = (&server.app.db, &server.app.names);
    for event_type in ["org.example.state", "org.example.closed"] {
        let found = names.find_type(db, event_type).await.unwrap();
        assert_eq!(found, None, "{event_type}");
    }
    let key = [("org.example.state".into(), "some key".into())];
    assert!(names.find_keys(db, &key).await.unwrap().is_empty());

    send(&bob, &room, "org.example.open", json!({})).await.ok();
    assert!(
        names
            .find_type(db, "org.example.open")
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn a_redacted_member_event_takes_its_names_along() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let path = format!("/rooms/{room}/state/m.room.member/{}", bob.id);
    let rude = json!({ "membership": "join", "displayname": "Rude Words" });
    let event = bob.put(&path, rude).await.ok();
    let members = format!("/rooms/{room}/joined_members");
    let named = alice.get(&members).await.ok();
    assert_eq!(named["joined"][&bob.id]["display_name"], "Rude Words");

    let event = event["event_id"].as_str().unwrap();
    alice
        .put(&format!("/rooms/{room}/redact/{event}/names"), json!({}))
        .await
        .ok();
    let nameless = alice.get(&members).await.ok();
    assert_eq!(nameless["joined"][&bob.id]["display_name"], json!(null));
}
