//! "Syncing": what clients are told, when, and what it costs.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::{TestServer, User};

/// The position that a sync came to.
pub(super) fn next(sync: &Value) -> &str {
    sync["next_batch"].as_str().expect("next_batch")
}

/// The bodies of the messages in a joined room's timeline.
pub(super) fn said<'a>(sync: &'a Value, room: &str) -> Vec<&'a str> {
    events(&sync["rooms"]["join"][room]["timeline"])
        .iter()
        .filter_map(|event| event["content"]["body"].as_str())
        .collect()
}

pub(super) fn events(section: &Value) -> &[Value] {
    section["events"].as_array().map_or(&[], Vec::as_slice)
}

/// The state keys of the events of a type.
pub(super) fn keys<'a>(events: &'a [Value], event_type: &str) -> Vec<&'a str> {
    let mut keys: Vec<_> = events
        .iter()
        .filter(|event| event["type"] == event_type)
        .filter_map(|event| event["state_key"].as_str())
        .collect();
    keys.sort_unstable();
    keys
}

pub(super) fn filter(filter: &Value) -> String {
    let mut query = String::from("filter=");
    for byte in filter.to_string().bytes() {
        query.push_str(&format!("%{byte:02x}"));
    }
    query
}

pub(super) async fn sync_from(user: &User<'_>, since: &str, query: &str) -> Value {
    user.sync(&format!("since={since}&{query}")).await
}

pub(super) async fn direct(server: &TestServer) -> (User<'_>, User<'_>, String) {
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let body = json!({ "preset": "trusted_private_chat", "invite": [bob.id], "is_direct": true });
    let room = alice.create_room(body).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    (alice, bob, room)
}

#[tokio::test]
async fn an_initial_sync_tells_rooms_and_an_incremental_one_what_is_new() {
    let server = TestServer::start().await;
    let (alice, bob, room) = direct(&server).await;
    alice.say(&room, "one").await;
    let first = bob.sync("").await;
    let joined = &first["rooms"]["join"][&room];
    assert_eq!(said(&first, &room), ["one"]);
    let timeline = events(&joined["timeline"]);
    assert_eq!(timeline.len() + events(&joined["state"]).len(), 9);
    assert_eq!(joined["summary"]["m.joined_member_count"], 2);
    assert_eq!(joined["summary"]["m.heroes"], json!([alice.id]));
    assert_eq!(joined["unread_notifications"]["notification_count"], 1);
    assert_eq!(
        first["device_one_time_keys_count"],
        json!({ "signed_curve25519": 0 })
    );
    assert_eq!(first["device_unused_fallback_key_types"], json!([]));

    let second = sync_from(&bob, next(&first), "").await;
    assert!(second.get("rooms").is_none(), "{second}");
    alice.say(&room, "two").await;
    let third = sync_from(&bob, next(&second), "").await;
    assert_eq!(said(&third, &room), ["two"]);
    let joined = &third["rooms"]["join"][&room];
    assert_eq!(joined["timeline"]["limited"], false);
    assert_eq!(joined["state"]["events"], json!([]));
    assert_eq!(joined["unread_notifications"]["notification_count"], 2);
    // The same again, as long as the client has not said that it has it.
    assert_eq!(
        said(&sync_from(&bob, next(&second), "").await, &room),
        ["two"]
    );
    // The sender's device recognizes its own event.
    let own = sync_from(&alice, next(&second), "").await;
    let event = &events(&own["rooms"]["join"][&room]["timeline"])[0];
    assert!(event["unsigned"]["transaction_id"].is_string(), "{event}");
    assert_eq!(event["unsigned"]["membership"], "join");
    let unread = &own["rooms"]["join"][&room]["unread_notifications"];
    assert_eq!(unread["notification_count"], 0);
}

#[tokio::test]
async fn a_token_is_valid_after_a_restart() {
    let server = TestServer::start().await;
    let (alice, bob, room) = direct(&server).await;
    let first = bob.sync("").await;
    alice.say(&room, "before").await;
    let (token, of_alice) = (bob.token.clone(), alice.token.clone());
    let server = server.restart().await;
    let path = format!("/_matrix/client/v3/sync?since={}", next(&first));
    let second = server
        .request(reqwest::Method::GET, &path, Some(&token), None)
        .await
        .ok();
    assert_eq!(said(&second, &room), ["before"]);
    let send = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/after");
    let body = json!({ "msgtype": "m.text", "body": "after" });
    server
        .request(reqwest::Method::PUT, &send, Some(&of_alice), Some(body))
        .await
        .ok();
    let path = format!("/_matrix/client/v3/sync?since={}", next(&second));
    let third = server
        .request(reqwest::Method::GET, &path, Some(&token), None)
        .await
        .ok();
    assert_eq!(said(&third, &room), ["after"]);
    assert_eq!(
        third["rooms"]["join"][&room]["unread_notifications"]["notification_count"],
        2
    );
}

#[tokio::test]
async fn a_long_poll_wakes_for_its_user_only() {
    let server = TestServer::start().await;
    let (alice, bob, room) = direct(&server).await;
    let other = alice.create_room(json!({})).await;
    // Presence would be news too.
    let first = bob.sync("set_presence=offline").await;
    let waiting = async {
        let started = Instant::now();
        let answer = sync_from(&bob, next(&first), "timeout=30000&set_presence=offline").await;
        (answer, started.elapsed())
    };
    let speaking = async {
        waiters(&server, 1).await;
        // Nothing of this concerns Bob.
        for text in ["a", "b", "c"] {
            alice.say(&other, text).await;
        }
        assert_eq!(server.app.metrics.sync_waiters.get(), 1);
        alice.say(&room, "wake up").await;
    };
    let ((answer, took), ()) = tokio::join!(waiting, speaking);
    assert_eq!(said(&answer, &room), ["wake up"]);
    assert_eq!(
        answer["rooms"]["join"]
            .as_object()
            .map(serde_json::Map::len),
        Some(1)
    );
    assert!(took < Duration::from_secs(10), "{took:?}");
}

/// Waits until so many syncs sleep.
async fn waiters(server: &TestServer, count: i64) {
    let asleep = async {
        while server.app.metrics.sync_waiters.get() != count {
            tokio::task::yield_now().await;
        }
    };
    let asleep = tokio::time::timeout(Duration::from_secs(20), asleep).await;
    asleep.expect("the syncs go to sleep");
}

#[tokio::test]
async fn a_long_poll_ends_with_its_time_and_with_the_server() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let first = alice.sync("set_presence=offline").await;
    let empty = sync_from(&alice, next(&first), "timeout=50&set_presence=offline").await;
    assert!(empty.get("rooms").is_none());
    let sleeping = sync_from(&alice, next(&empty), "timeout=30000&set_presence=offline");
    let ending = async {
        waiters(&server, 1).await;
        server.app.shutdown.cancel();
    };
    let (answer, ()) = tokio::join!(sleeping, ending);
    assert!(answer["next_batch"].is_string());
}

#[tokio::test]
async fn bad_queries_are_refused() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    for query in [
        "since=nonsense",
        "since=t1_2",
        "since=s1",
        "filter=unknown",
        "filter=%7B",
    ] {
        let answer = alice.get(&format!("/sync?{query}")).await;
        assert_eq!(answer.status, 400, "{query}: {}", answer.body);
    }
    // From a server whose database was set back.
    let answer = alice.sync("since=s999999_0_0").await;
    assert!(!next(&answer).contains("999999"), "{answer}");
}

#[tokio::test]
async fn membership_decides_the_section() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice
        .create_room(json!({ "name": "The room", "topic": "T", "preset": "private_chat" }))
        .await;
    let start = bob.sync("").await;
    alice
        .post(
            &format!("/rooms/{room}/invite"),
            json!({ "user_id": bob.id }),
        )
        .await
        .ok();
    let invited = sync_from(&bob, next(&start), "timeout=10000").await;
    let state = events(&invited["rooms"]["invite"][&room]["invite_state"]);
    assert_eq!(keys(state, "m.room.name"), [""]);
    assert_eq!(keys(state, "m.room.create"), [""]);
    assert_eq!(keys(state, "m.room.join_rules"), [""]);
    let mut both = [alice.id.as_str(), bob.id.as_str()];
    both.sort_unstable();
    assert_eq!(keys(state, "m.room.member"), both);
    assert!(state.iter().all(|event| event.get("event_id").is_none()));
    for event in state {
        let has_time = event["origin_server_ts"].is_u64();
        assert_eq!(has_time, event["type"] == "m.room.create", "{event}");
    }

    alice.say(&room, "before").await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let joined = sync_from(&bob, next(&invited), "").await;
    assert!(joined["rooms"]["invite"].get(&room).is_none());
    let joined_room = &joined["rooms"]["join"][&room];
    let state: Vec<Value> = events(&joined_room["state"])
        .iter()
        .chain(events(&joined_room["timeline"]))
        .cloned()
        .collect();
    assert_eq!(keys(&state, "m.room.name"), [""]);
    assert_eq!(keys(&state, "m.room.power_levels"), [""]);
    assert_eq!(said(&joined, &room), ["before"]);
    assert_eq!(joined_room["unread_notifications"]["notification_count"], 0);

    alice.say(&room, "last").await;
    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    alice.say(&room, "secret").await;
    let left = sync_from(&bob, next(&joined), "").await;
    let timeline = events(&left["rooms"]["leave"][&room]["timeline"]);
    assert_eq!(timeline.len(), 2, "{left}");
    assert_eq!(timeline[0]["content"]["body"], "last");
    assert_eq!(timeline[1]["content"]["membership"], "leave");
    let after = sync_from(&bob, next(&left), "").await;
    assert!(after.get("rooms").is_none(), "{after}");
    let initial = bob.sync("").await;
    assert!(initial.get("rooms").is_none(), "{initial}");
    let with_left = bob
        .sync(&filter(
            &json!({ "room": { "include_leave": true, "timeline": { "limit": 2 } } }),
        ))
        .await;
    let left = &with_left["rooms"]["leave"][&room];
    assert!(!left.to_string().contains("secret"));
    assert_eq!(keys(events(&left["state"]), "m.room.name"), [""]);
}

#[tokio::test]
async fn a_refused_invite_is_left_with_its_leave_alone() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "invite": [bob.id] })).await;
    let invited = bob.sync("").await;
    assert!(invited["rooms"]["invite"][&room].is_object());
    alice.say(&room, "secret").await;
    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    let left = sync_from(&bob, next(&invited), "").await;
    let left = &left["rooms"]["leave"][&room];
    assert!(left.is_object());
    assert!(!left.to_string().contains("secret"), "{left}");
}

#[tokio::test]
async fn who_was_thrown_out_learns_of_it_also_later() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let join = async |options: Value| {
        let room = alice.create_room(options).await;
        bob.post(&format!("/join/{room}"), json!({})).await.ok();
        room
    };
    let open = || json!({ "preset": "public_chat" });
    let (kicked, banned) = (join(open()).await, join(open()).await);
    let left = join(open()).await;
    let never = alice.create_room(open()).await;
    let about_bob = || json!({ "user_id": bob.id });
    for (room, how) in [(&kicked, "kick"), (&banned, "ban"), (&never, "ban")] {
        let path = format!("/rooms/{room}/{how}");
        alice.post(&path, about_bob()).await.ok();
    }
    bob.post(&format!("/rooms/{left}/leave"), json!({}))
        .await
        .ok();
    let sync = bob.sync("").await;
    let told = sync["rooms"]["leave"].as_object().unwrap();
    let mut told: Vec<_> = told.keys().collect();
    told.sort();
    let mut expected = [&kicked, &banned];
    expected.sort();
    assert_eq!(told, expected);
    for (room, how) in [(&kicked, "leave"), (&banned, "ban")] {
        let timeline = events(&sync["rooms"]["leave"][room]["timeline"]);
        assert_eq!(timeline.last().unwrap()["content"]["membership"], how);
    }
}

#[tokio::test]
async fn a_room_that_one_has_come_into_begins_anew() {
    let server = TestServer::start().await;
    let (alice, bob, room) = direct(&server).await;
    let start = bob.sync("").await;
    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    alice
        .post(
            &format!("/rooms/{room}/invite"),
            json!({ "user_id": bob.id }),
        )
        .await
        .ok();
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    // There is a gap between what bob knows and what bob is told now.
    let all = filter(&json!({ "room": { "timeline": { "limit": 50 } } }));
    let back = sync_from(&bob, next(&start), &all).await;
    let timeline = &back["rooms"]["join"][&room]["timeline"];
    assert_eq!(timeline["limited"], true);
    assert_eq!(events(timeline)[0]["type"], "m.room.create");
    alice.say(&room, "welcome").await;
    let more = sync_from(&bob, next(&back), &all).await;
    assert_eq!(more["rooms"]["join"][&room]["timeline"]["limited"], false);
}

#[tokio::test]
async fn knocks_have_a_section() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let rules = json!({ "type": "m.room.join_rules", "content": { "join_rule": "knock" } });
    let room = alice
        .create_room(json!({ "initial_state": [rules], "name": "Knock" }))
        .await;
    let start = bob.sync("").await;
    bob.post(&format!("/knock/{room}"), json!({})).await.ok();
    let knocking = sync_from(&bob, next(&start), "").await;
    let state = events(&knocking["rooms"]["knock"][&room]["knock_state"]);
    assert_eq!(keys(state, "m.room.name"), [""]);
    assert_eq!(keys(state, "m.room.member"), [bob.id.as_str()]);
}

#[tokio::test]
async fn filters_choose_rooms_and_events() {
    let server = TestServer::start().await;
    let (alice, bob, room) = direct(&server).await;
    let other = alice.create_room(json!({ "invite": [bob.id] })).await;
    bob.post(&format!("/join/{other}"), json!({})).await.ok();
    let send = async |user: &User<'_>, event_type: &str, content: Value| {
        let path = format!(
            "/rooms/{room}/send/{event_type}/{}",
            content["body"].as_str().unwrap()
        );
        user.put(&path, content).await.ok();
    };
    let start = bob.sync("").await;
    send(
        &alice,
        "m.room.message",
        json!({ "msgtype": "m.text", "body": "a1" }),
    )
    .await;
    send(
        &bob,
        "m.room.message",
        json!({ "msgtype": "m.text", "body": "b1" }),
    )
    .await;
    let picture = json!({ "msgtype": "m.image", "body": "a2", "url": "mxc://localhost/x" });
    send(&alice, "m.room.message", picture).await;
    send(
        &alice,
        "m.sticker",
        json!({ "body": "a3", "url": "mxc://localhost/y" }),
    )
    .await;
    alice.say(&other, "o1").await;
    let timeline = |filter: Value| json!({ "room": { "timeline": filter } });
    for (wanted, in_room, in_other) in [
        (json!({}), vec!["a1", "b1", "a2", "a3"], vec!["o1"]),
        (
            timeline(json!({ "types": ["m.room.message"] })),
            vec!["a1", "b1", "a2"],
            vec!["o1"],
        ),
        (
            timeline(json!({ "types": ["m.*"], "not_types": ["m.room.*"] })),
            vec!["a3"],
            vec![],
        ),
        (timeline(json!({ "types": [] })), vec![], vec![]),
        (timeline(json!({ "senders": [bob.id] })), vec!["b1"], vec![]),
        (
            timeline(json!({ "not_senders": [alice.id] })),
            vec!["b1"],
            vec![],
        ),
        (
            timeline(json!({ "contains_url": true })),
            vec!["a2", "a3"],
            vec![],
        ),
        (
            timeline(json!({ "contains_url": false })),
            vec!["a1", "b1"],
            vec!["o1"],
        ),
        (timeline(json!({ "limit": 1 })), vec!["a3"], vec!["o1"]),
        (timeline(json!({ "rooms": [other] })), vec![], vec!["o1"]),
        (
            timeline(json!({ "not_rooms": [other] })),
            vec!["a1", "b1", "a2", "a3"],
            vec![],
        ),
        (
            json!({ "room": { "rooms": [room] } }),
            vec!["a1", "b1", "a2", "a3"],
            vec![],
        ),
        (
            json!({ "room": { "not_rooms": [room] } }),
            vec![],
            vec!["o1"],
        ),
    ] {
        let sync = sync_from(&bob, next(&start), &filter(&wanted)).await;
        assert_eq!(said(&sync, &room), in_room, "{wanted}");
        assert_eq!(said(&sync, &other), in_other, "{wanted}");
    }
    let fields = json!({ "event_fields": ["content.body", "type"] });
    let sync = sync_from(&bob, next(&start), &filter(&fields)).await;
    let event = &events(&sync["rooms"]["join"][&other]["timeline"])[0];
    assert_eq!(
        event,
        &json!({ "type": "m.room.message", "content": { "body": "o1" } })
    );
    let raw = json!({ "event_format": "federation" });
    let sync = sync_from(&bob, next(&start), &filter(&raw)).await;
    let event = &events(&sync["rooms"]["join"][&other]["timeline"])[0];
    assert!(
        event["hashes"].is_object() && event["auth_events"].is_array(),
        "{event}"
    );
}

#[tokio::test]
async fn a_filter_looks_further_back_for_what_it_lets_through() {
    let server = TestServer::start().await;
    let (alice, bob, room) = direct(&server).await;
    let wanted = alice.say(&room, "wanted").await;
    for count in 0..60 {
        let path = format!("/rooms/{room}/send/org.example.noise/{count}");
        alice.put(&path, json!({ "body": "noise" })).await.ok();
    }
    let query =
        filter(&json!({ "room": { "timeline": { "types": ["m.room.message"], "limit": 3 } } }));
    let sync = bob.sync(&query).await;
    let timeline = &sync["rooms"]["join"][&room]["timeline"];
    assert_eq!(events(timeline).len(), 1);
    assert_eq!(events(timeline)[0]["event_id"], json!(wanted));
}
