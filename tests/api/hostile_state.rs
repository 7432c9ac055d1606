//! State that makes no sense: what other servers may set, and what is broken in the database.

use homing::{args, log::Change, sql, storage::Write};
use homing_federation::Pdu;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    fake_room::FakeRoom,
    fake_server::{FakeServer, Recorded},
    hostile_transactions::shared,
    server::{TestServer, User},
    shared_rooms::sees,
};

/// Types of state that somebody reads, with their fields.
const STATE: &[(&str, &[&str])] = &[
    ("m.room.name", &["name"]),
    ("m.room.topic", &["topic", "m.topic"]),
    ("m.room.avatar", &["url", "info", "thumbnail_url"]),
    ("m.room.canonical_alias", &["alias", "alt_aliases"]),
    ("m.room.aliases", &["aliases"]),
    ("m.room.history_visibility", &["history_visibility"]),
    ("m.room.guest_access", &["guest_access"]),
    ("m.room.pinned_events", &["pinned"]),
    ("m.room.encryption", &["algorithm", "rotation_period_ms"]),
    ("m.room.tombstone", &["body", "replacement_room"]),
    ("m.room.policy", &["via", "public_keys"]),
    ("m.space.child", &["via", "order", "suggested"]),
    ("m.space.parent", &["via", "canonical"]),
    (
        "m.room.third_party_invite",
        &[
            "display_name",
            "key_validity_url",
            "public_key",
            "public_keys",
        ],
    ),
    (
        "m.room.message",
        &["body", "msgtype", "m.relates_to", "url"],
    ),
    ("m.room.redaction", &["redacts", "reason"]),
    ("m.reaction", &["m.relates_to"]),
    (
        "m.room.encrypted",
        &["algorithm", "m.relates_to", "m.mentions"],
    ),
    ("m.call.member", &["memberships"]),
    ("org.example", &["url", "m.mentions", "displayname"]),
];

fn values() -> Vec<Value> {
    let deep = (0..90).fold(json!(1), |deep, _| json!([deep]));
    vec![
        Value::Null,
        json!(5),
        json!(-1),
        json!("x"),
        json!("a\0b"),
        json!([]),
        json!({}),
        json!([null, 5, {}]),
        json!({ "event_id": null, "rel_type": 5, "m.in_reply_to": [], "ed25519": {} }),
        json!({ "event_id": "$x", "rel_type": "m.thread", "user_ids": [5], "room": "x" }),
        json!("x".repeat(15_000)),
        deep,
    ]
}

/// All that somebody may want to know of a room must have an answer.
async fn expect_answers(user: &User<'_>, fake: &FakeServer, room: &FakeRoom, event: &str) {
    let id = room.id.as_str();
    let v1 = format!("/_matrix/client/v1/rooms/{id}");
    let lazy = r#"{"room":{"state":{"lazy_load_members":true},"timeline":{"limit":3}}}"#;
    let fields = r#"{"event_fields":["content.body","sender","type"]}"#;
    let room_path = |rest: &str| format!("/rooms/{id}/{rest}");
    let paths = [
        "/sync".to_owned(),
        "/sync?full_state=true&use_state_after=true".to_owned(),
        format!("/sync?filter={lazy}"),
        format!("/sync?filter={fields}"),
        "/joined_rooms".to_owned(),
        "/publicRooms".to_owned(),
        "/notifications".to_owned(),
        room_path("state"),
        room_path("members"),
        room_path("members?membership=join"),
        room_path("joined_members"),
        room_path("aliases"),
        room_path("messages?dir=b&limit=100"),
        room_path("messages?dir=f&limit=100"),
        room_path(&format!("messages?dir=b&filter={lazy}")),
        room_path(&format!("event/{event}")),
        room_path(&format!("context/{event}?limit=50")),
        format!("{v1}/relations/{event}"),
        format!("{v1}/threads"),
        format!("{v1}/hierarchy"),
        format!("{v1}/timestamp_to_event?ts=0&dir=f"),
        format!("/_matrix/client/v1/room_summary/{id}"),
        format!("/_matrix/client/v1/room_summary/{id}?via={}", fake.name),
    ];
    for path in paths {
        let answer = user.get(&path).await;
        assert!(answer.status.is_success(), "{path} {}", answer.body);
    }
    let term = json!({ "search_categories": { "room_events": {
        "search_term": "x", "event_context": {}, "include_state": true,
    } } });
    for (path, body) in [
        ("/search", term),
        ("/user_directory/search", json!({ "search_term": "m" })),
        (
            "/publicRooms",
            json!({ "filter": { "generic_search_term": "x" } }),
        ),
    ] {
        let answer = user.post(path, body).await;
        assert!(answer.status.is_success(), "{path} {}", answer.body);
    }
    let v1 = "/_matrix/federation/v1";
    for path in [
        format!("{v1}/state/{id}?event_id={event}"),
        format!("{v1}/state_ids/{id}?event_id={event}"),
        format!("{v1}/event_auth/{id}/{event}"),
        format!("{v1}/event/{event}"),
        format!("{v1}/backfill/{id}?v={event}&limit=100"),
        format!("{v1}/hierarchy/{id}"),
        format!("{v1}/publicRooms"),
        format!("{v1}/make_join/{id}/@zoe:{}?ver=10&ver=12", fake.name),
    ] {
        let answer = fake.send(user.server, Method::GET, &path, None).await;
        assert!(!answer.status.is_server_error(), "{path} {}", answer.body);
    }
}

#[tokio::test]
async fn state_of_another_kind_leaves_a_room_readable() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    for version in ["10", "12"] {
        let mut room = FakeRoom::create(&fake, version);
        room.host(&fake, |_| {});
        let path = format!("/join/{}?via={}", room.id, fake.name);
        alice.post(&path, json!({})).await.ok();
        room = FakeRoom {
            latest: vec![latest(&alice, &room).await.try_into().unwrap()],
            depth: room.depth + 1,
            ..room
        };
        let since = alice.sync("").await["next_batch"].clone();
        for (number, value) in values().into_iter().enumerate() {
            let mut events: Vec<Pdu> = Vec::new();
            for (kind, fields) in STATE {
                let content: Value = fields
                    .iter()
                    .map(|field| ((*field).to_owned(), value.clone()))
                    .collect::<serde_json::Map<_, _>>()
                    .into();
                events.push(room.set(&fake, kind, "", content.clone()));
                if kind.contains("space") {
                    for key in ["!x:example.org", "odd \u{202e} key"] {
                        events.push(room.set(&fake, kind, key, content.clone()));
                    }
                }
            }
            let user = room.user.to_string();
            let member = json!({ "membership": "join", "displayname": value, "avatar_url": value });
            events.push(room.set(&fake, "m.room.member", &user, member));
            let said = room.say(&fake, "x");
            events.push(said.clone());
            for some in events.chunks(50) {
                let some: Vec<&Pdu> = some.iter().collect();
                let answer = room.send(&fake, &server, &some).await.ok();
                // Null characters are not for databases.
                let refused = answer["pdus"].as_object().unwrap().values();
                assert!(
                    value == json!("a\0b") || refused.clone().all(|one| *one == json!({})),
                    "{number} {answer}"
                );
            }
            sees(&alice, room.id.as_str(), said.event_id.as_str()).await;
            expect_answers(&alice, &fake, &room, said.event_id.as_str()).await;
            let since = since.as_str().unwrap();
            alice.sync(&format!("since={since}")).await;
        }
        // With this nobody could change their name any more.
        let rules = json!({ "join_rule": "x", "allow": [5, { "room_id": "x" }] });
        let rules = room.set(&fake, "m.room.join_rules", "", rules);
        let said = room.say(&fake, "last");
        room.send(&fake, &server, &[&rules, &said]).await.ok();
        sees(&alice, room.id.as_str(), said.event_id.as_str()).await;
        expect_answers(&alice, &fake, &room, said.event_id.as_str()).await;
        // What the room is like, nobody here is kept from saying something in it, or from leaving it.
        alice.say(room.id.as_str(), "still here").await;
        let path = format!("/rooms/{}/join", room.id);
        let answer = bob.post(&path, json!({})).await;
        assert!(!answer.status.is_server_error(), "{}", answer.body);
        let path = format!("/rooms/{}/leave", room.id);
        alice.post(&path, json!({})).await.ok();
        alice.sync("").await;
    }
}

/// The id of the newest event of a room.
async fn latest(user: &User<'_>, room: &FakeRoom) -> String {
    let path = format!("/rooms/{}/messages?dir=b&limit=1", room.id);
    let answer = user.get(&path).await.ok();
    answer["chunk"][0]["event_id"].as_str().unwrap().to_owned()
}

/// Breaks what is stored of an event.
async fn break_event(server: &TestServer, event: &str) {
    let mut change = Change::new();
    let update = sql!(
        "UPDATE event_json SET json = $2 WHERE nid = (SELECT nid FROM event WHERE event_id = $1)"
    );
    change.write(Write::Run(update, args![event, "nonsense"]));
    server.app.log.append(change).await.unwrap();
}

/// Nobody finds an event that cannot be read, and it is in nobody's way.
async fn expect_gone(alice: &User<'_>, fake: &FakeServer, id: &str, (last, lost): (&str, &str)) {
    // Other servers are told the rest of the state, and that there is no such event.
    let v1 = "/_matrix/federation/v1";
    for path in [
        format!("{v1}/state/{id}?event_id={last}"),
        format!("{v1}/event_auth/{id}/{last}"),
    ] {
        let told = fake.get(alice.server, &path).await.ok();
        let told = told.to_string();
        assert!(told.contains("m.room.create") || told.contains("m.room.power_levels"));
        assert!(!told.contains("nonsense"), "{path} {told}");
    }
    for path in [
        format!("{v1}/event/{lost}"),
        format!("{v1}/state/{id}?event_id={lost}"),
        format!("{v1}/state_ids/{id}?event_id={lost}"),
        format!("{v1}/event_auth/{id}/{lost}"),
    ] {
        fake.get(alice.server, &path)
            .await
            .fails(404, "M_NOT_FOUND");
    }
    for path in [
        format!("/rooms/{id}/event/{lost}"),
        format!("/rooms/{id}/context/{lost}"),
        format!("/_matrix/client/v1/rooms/{id}/relations/{lost}"),
    ] {
        alice.get(&path).await.fails(404, "M_NOT_FOUND");
    }
    let path = format!("/rooms/{id}/report/{lost}");
    alice.post(&path, json!({})).await.fails(404, "M_NOT_FOUND");
    // Nor is it in the way of what is said about it.
    let relation = json!({ "rel_type": "m.thread", "event_id": lost });
    let content = json!({ "msgtype": "m.text", "body": "x", "m.relates_to": relation });
    let path = format!("/rooms/{id}/send/m.room.message/about");
    alice.put(&path, content).await.ok();
    let path = format!("/rooms/{id}/redact/{lost}/gone");
    alice.put(&path, json!({})).await.ok();
}

#[tokio::test]
async fn an_event_that_cannot_be_read_is_left_out() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let broken = shared(&alice, &fake, "12").await;
    let whole = shared(&alice, &fake, "12").await;
    let id = broken.id.as_str();
    for kind in ["m.room.name", "m.room.topic", "org.example"] {
        let path = format!("/rooms/{id}/state/{kind}");
        let content = json!({ "name": "N", "topic": "T" });
        alice.put(&path, content).await.ok();
    }
    let first = alice.say(id, "first").await;
    let lost = alice.say(id, "lost").await;
    let last = alice.say(id, "last").await;
    let state = alice.get(&format!("/rooms/{id}/state")).await.ok();
    let state = state.as_array().unwrap();
    let of_type = |kind: &str| {
        let mut events = state.iter();
        let event = events.find(|event| event["type"] == kind).unwrap();
        event["event_id"].as_str().unwrap().to_owned()
    };
    let member = broken.state[&("m.room.member".to_owned(), broken.user.to_string())].clone();
    let others = [
        of_type("m.room.name"),
        of_type("org.example"),
        member.event_id.to_string(),
        lost.clone(),
    ];
    for event in &others {
        break_event(&server, event).await;
    }
    // Memory knows them still.
    let (user, token) = (alice.id.clone(), alice.token.clone());
    let server = server.restart().await;
    let alice = User {
        server: &server,
        id: user,
        token,
        device_id: String::new(),
    };
    let lazy = r#"{"room":{"state":{"lazy_load_members":true},"timeline":{"limit":3}}}"#;
    for query in [
        "",
        &format!("filter={lazy}"),
        "full_state=true&use_state_after=true",
    ] {
        let sync = alice.sync(query).await;
        let room = &sync["rooms"]["join"][id];
        let text = room.to_string();
        assert!(
            text.contains(&last) && text.contains("\"T\""),
            "{query} {text}"
        );
        assert!(
            others.iter().all(|lost| !text.contains(lost)),
            "{query} {text}"
        );
        assert!(sync["rooms"]["join"][whole.id.as_str()].is_object());
    }
    expect_answers(&alice, &fake, &broken, &last).await;
    expect_gone(&alice, &fake, id, (&last, &lost)).await;
    // One page ends where the lost event was, and the next goes on.
    let mut from = String::new();
    let mut found = Vec::new();
    loop {
        let path = format!("/rooms/{id}/messages?dir=b&limit=2{from}");
        let page = alice.get(&path).await.ok();
        for event in page["chunk"].as_array().unwrap() {
            found.push(event["event_id"].as_str().unwrap().to_owned());
        }
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => break,
        }
    }
    let of_old = |id: &&String| **id == last || **id == first;
    let old: Vec<_> = found.iter().filter(of_old).collect();
    assert_eq!(old, [&last, &first], "{found:?}");
    assert!(found.contains(&of_type("m.room.create")), "{found:?}");
    // The room goes on.
    let said = alice.say(id, "and on").await;
    sees(&alice, id, &said).await;
}

#[tokio::test]
async fn an_event_that_cannot_be_read_keeps_no_others_from_being_sent() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = shared(&alice, &fake, "12").await;
    let sent = "/_matrix/federation/v1/send/";
    fake.refuses(Method::PUT, sent, 503, "M_UNKNOWN");
    let lost = alice.say(room.id.as_str(), "lost").await;
    alice.say(room.id.as_str(), "kept").await;
    fake.wait_for(|it| it.path.starts_with(sent)).await;
    break_event(&server, &lost).await;
    fake.answers(Method::PUT, sent, json!({ "pdus": {} }));
    // It has to be read again.
    let _server = server.restart().await;
    let has = |pdus: &Value, text: &str| {
        let mut pdus = pdus.as_array().into_iter().flatten();
        pdus.any(|pdu| pdu["content"]["body"] == text)
    };
    let is_last = |it: &Recorded| has(&it.body["pdus"], "kept") && !has(&it.body["pdus"], "lost");
    fake.wait_for(is_last).await;
}

#[tokio::test]
async fn a_room_whose_rules_cannot_be_read_is_left_out() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let broken = shared(&alice, &fake, "12").await;
    let whole = shared(&alice, &fake, "12").await;
    for room in [&broken, &whole] {
        bob.post(&format!("/join/{}", room.id), json!({}))
            .await
            .ok();
    }
    let visibility = &broken.state[&("m.room.history_visibility".to_owned(), String::new())];
    break_event(&server, visibility.event_id.as_str()).await;
    let (user, token) = (bob.id.clone(), bob.token.clone());
    let server = server.restart().await;
    let bob = User {
        server: &server,
        id: user,
        token,
        device_id: String::new(),
    };
    let sync = bob.sync("").await;
    assert!(sync["rooms"]["join"][whole.id.as_str()].is_object());
    // Nobody is shown more than they may see because it is not known what they may see.
    let room = sync["rooms"]["join"][broken.id.as_str()].to_string();
    assert!(!room.contains("m.room.create"), "{room}");
}
