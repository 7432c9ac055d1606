//! "Getting events for a room".

use serde_json::{Value, json};

use crate::server::{TestServer, User};

pub fn bodies(events: &Value) -> Vec<&str> {
    let events = events.as_array().expect("a list of events");
    events
        .iter()
        .filter_map(|event| event["content"]["body"].as_str())
        .collect()
}

async fn public_room(alice: &User<'_>) -> String {
    alice.create_room(json!({ "preset": "public_chat" })).await
}

#[tokio::test]
async fn an_event_has_the_form_that_clients_expect() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room = public_room(&alice).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let path = format!("/rooms/{room}/send/m.room.message/t1");
    let content = json!({ "msgtype": "m.text", "body": "hello", "chat.homing.big": 9_007_199_254_740_991_i64 });
    let id = alice.put(&path, content.clone()).await.ok()["event_id"].clone();
    let path = format!("/rooms/{room}/event/{}", id.as_str().unwrap());
    let event = alice.get(&path).await.ok();
    assert_eq!(event["content"], content);
    assert_eq!(event["event_id"], id);
    assert_eq!(event["room_id"], room);
    assert_eq!(event["sender"], alice.id);
    assert_eq!(event["type"], "m.room.message");
    assert!(event["origin_server_ts"].as_i64().unwrap() > 1_700_000_000_000);
    assert!(event["unsigned"]["age"].as_i64().unwrap() < 60_000);
    assert_eq!(event["unsigned"]["transaction_id"], "t1");
    let mut keys: Vec<_> = event.as_object().unwrap().keys().cloned().collect();
    keys.sort();
    let expected = [
        "content",
        "event_id",
        "origin_server_ts",
        "room_id",
        "sender",
        "type",
        "unsigned",
    ];
    assert_eq!(keys, expected);
    let seen_by_bob = bob.get(&path).await.ok();
    assert!(seen_by_bob["unsigned"].get("transaction_id").is_none());
}

#[tokio::test]
async fn a_redacted_event_says_why() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    for version in ["10", "12"] {
        let room = alice.create_room(json!({ "room_version": version })).await;
        let id = alice.say(&room, "regret").await;
        let path = format!("/rooms/{room}/redact/{id}/r{version}");
        let redaction = alice.put(&path, json!({ "reason": "typo" })).await.ok();
        let redaction = redaction["event_id"].as_str().unwrap();
        let event = alice.get(&format!("/rooms/{room}/event/{id}")).await.ok();
        assert_eq!(event["content"], json!({}));
        let because = &event["unsigned"]["redacted_because"];
        assert_eq!(because["event_id"], redaction);
        assert_eq!(because["content"]["reason"], "typo");
        // Old and new clients look for the target in different places.
        let event = alice.get(&format!("/rooms/{room}/event/{redaction}")).await;
        let event = event.ok();
        assert_eq!(event["redacts"], id.as_str());
        assert_eq!(event["content"]["redacts"], id.as_str());
    }
}

#[tokio::test]
async fn a_state_event_tells_what_it_replaces() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({ "name": "old" })).await;
    let path = format!("/rooms/{room}/state/m.room.name");
    let before = alice.get(&format!("{path}?format=event")).await.ok();
    alice.put(&path, json!({ "name": "new" })).await.ok();
    let event = alice.get(&format!("{path}/?format=event")).await.ok();
    assert_eq!(event["content"]["name"], "new");
    assert_eq!(event["unsigned"]["prev_content"]["name"], "old");
    assert_eq!(event["unsigned"]["replaces_state"], before["event_id"]);
}

#[tokio::test]
async fn pages_go_both_ways_and_meet() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = public_room(&alice).await;
    for number in 0..25 {
        alice.say(&room, &format!("m{number}")).await;
    }
    for (dir, mut expected) in [("f", Vec::new()), ("b", Vec::new())] {
        expected.extend((0..25).map(|number| format!("m{number}")));
        if dir == "b" {
            expected.reverse();
        }
        let mut found: Vec<String> = Vec::new();
        let mut from = String::new();
        loop {
            let path = format!("/rooms/{room}/messages?dir={dir}&limit=7{from}");
            let page = alice.get(&path).await.ok();
            found.extend(bodies(&page["chunk"]).into_iter().map(str::to_owned));
            match page["end"].as_str() {
                Some(end) => from = format!("&from={end}"),
                None => break,
            }
        }
        assert_eq!(found, expected);
    }
    let path = format!("/rooms/{room}/messages?dir=b&limit=5");
    let newest = alice.get(&path).await.ok();
    assert_eq!(
        bodies(&newest["chunk"]),
        ["m24", "m23", "m22", "m21", "m20"]
    );
    let end = newest["end"].as_str().unwrap();
    let path = format!("/rooms/{room}/messages?dir=b&limit=50&to={end}");
    let same = alice.get(&path).await.ok();
    assert_eq!(bodies(&same["chunk"]), bodies(&newest["chunk"]));
    let path = format!("/rooms/{room}/messages?dir=f&limit=50&from={end}");
    let back = alice.get(&path).await.ok();
    assert_eq!(bodies(&back["chunk"]), ["m20", "m21", "m22", "m23", "m24"]);
    let start = newest["start"].as_str().unwrap();
    alice.say(&room, "later").await;
    let path = format!("/rooms/{room}/messages?dir=f&from={start}");
    let later = alice.get(&path).await.ok();
    assert_eq!(bodies(&later["chunk"]), ["later"]);
    let path = format!("/rooms/{room}/messages?from={start}");
    let forward = alice.get(&path).await.ok();
    assert_eq!(bodies(&forward["chunk"]), ["later"]);
}

#[tokio::test]
async fn pages_are_filtered() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room = public_room(&alice).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let first = alice.say(&room, "from alice").await;
    bob.say(&room, "from bob").await;
    let picture = json!({ "msgtype": "m.image", "body": "picture", "url": "mxc://localhost/x" });
    let path = format!("/rooms/{room}/send/m.room.message/picture");
    alice.put(&path, picture).await.ok();
    let reaction =
        json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": first, "key": "+" } });
    let path = format!("/rooms/{room}/send/m.reaction/r");
    bob.put(&path, reaction).await.ok();
    let everything = ["from alice", "from bob", "picture"];
    for (filter, expected) in [
        (json!({ "types": ["m.room.message"] }), &everything[..]),
        (json!({ "types": ["m.room.mess*"] }), &everything[..]),
        (json!({ "types": [] }), &[]),
        (json!({ "not_types": ["m.room.message"] }), &[]),
        (json!({ "senders": [bob.id] }), &["from bob"]),
        (
            json!({ "not_senders": [bob.id] }),
            &["from alice", "picture"],
        ),
        (json!({ "contains_url": true }), &["picture"]),
        (
            json!({ "contains_url": false }),
            &["from alice", "from bob"],
        ),
        (json!({ "rooms": ["!other:localhost"] }), &[]),
        (json!({ "not_rooms": [room] }), &[]),
        (
            json!({ "related_by_rel_types": ["m.annotation"] }),
            &["from alice"],
        ),
        (json!({ "related_by_rel_types": ["m.thread"] }), &[]),
        (json!({ "related_by_senders": [bob.id] }), &["from alice"]),
        (json!({ "related_by_senders": [alice.id] }), &[]),
        (
            json!({ "limit": 1, "types": ["m.room.message"] }),
            &["from alice"],
        ),
    ] {
        let query: String = form_urlencoded(&filter.to_string());
        let path = format!("/rooms/{room}/messages?dir=f&limit=100&filter={query}");
        let page = alice.get(&path).await.ok();
        assert_eq!(bodies(&page["chunk"]), expected, "{filter}");
    }
    // Who does not get the create event is told by an empty page that there is nothing more.
    let filter = form_urlencoded(&json!({ "contains_url": true }).to_string());
    let path = format!("/rooms/{room}/messages?dir=b&filter={filter}");
    let page = alice.get(&path).await.ok();
    let end = page["end"].as_str().unwrap();
    let rest = alice.get(&format!("{path}&from={end}")).await.ok();
    assert_eq!((&rest["chunk"], rest.get("end")), (&json!([]), None));
    let filter = form_urlencoded(&json!({ "lazy_load_members": true }).to_string());
    let path = format!("/rooms/{room}/messages?dir=b&limit=3&filter={filter}");
    let page = alice.get(&path).await.ok();
    let mut members: Vec<_> = page["state"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| &event["state_key"])
        .collect();
    members.sort_by_key(|key| key.as_str().map(str::to_owned));
    assert_eq!(members, [&alice.id, &bob.id]);
}

/// Percent-encodes everything but letters and digits.
pub fn form_urlencoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[tokio::test]
async fn context_surrounds_an_event() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = public_room(&alice).await;
    let mut ids = Vec::new();
    for number in 0..9 {
        ids.push(alice.say(&room, &format!("m{number}")).await);
    }
    let path = format!("/rooms/{room}/context/{}?limit=4", ids[4]);
    let context = alice.get(&path).await.ok();
    assert_eq!(context["event"]["content"]["body"], "m4");
    assert_eq!(bodies(&context["events_before"]), ["m3", "m2"]);
    assert_eq!(bodies(&context["events_after"]), ["m5", "m6"]);
    let state = context["state"].as_array().unwrap();
    assert!(state.iter().any(|event| event["type"] == "m.room.create"));
    for (dir, token, expected) in [("b", "start", ["m1", "m0"]), ("f", "end", ["m7", "m8"])] {
        let from = context[token].as_str().unwrap();
        let path = format!("/rooms/{room}/messages?dir={dir}&from={from}&limit=2");
        assert_eq!(bodies(&alice.get(&path).await.ok()["chunk"]), expected);
    }
    let path = format!("/rooms/{room}/context/{}?limit=0", ids[4]);
    let context = alice.get(&path).await.ok();
    assert_eq!(context["event"]["content"]["body"], "m4");
    // Clients spread these without looking whether they are there.
    assert_eq!(context["events_before"], json!([]));
    assert_eq!(context["events_after"], json!([]));
    alice
        .get(&format!("/rooms/{room}/context/$nothing"))
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn the_event_nearest_to_a_time_is_found() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = public_room(&alice).await;
    let id = alice.say(&room, "now").await;
    let event = alice.get(&format!("/rooms/{room}/event/{id}")).await.ok();
    let ts = event["origin_server_ts"].as_i64().unwrap();
    let path = |ts: i64, dir: &str| {
        format!("/_matrix/client/v1/rooms/{room}/timestamp_to_event?ts={ts}&dir={dir}")
    };
    let found = alice.get(&path(ts + 100_000, "b")).await.ok();
    assert_eq!(found["event_id"], id.as_str());
    assert_eq!(found["origin_server_ts"], ts);
    let first = alice.get(&path(0, "f")).await.ok();
    let first = first["event_id"].as_str().unwrap();
    let create = alice.get(&format!("/rooms/{room}/event/{first}")).await;
    assert_eq!(create.ok()["type"], "m.room.create");
    alice.get(&path(0, "b")).await.fails(404, "M_NOT_FOUND");
    alice
        .get(&path(ts + 100_000, "f"))
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn bad_questions_are_refused() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let eve = server.register("eve").await;
    let room = alice.create_room(json!({ "preset": "private_chat" })).await;
    let id = alice.say(&room, "secret").await;
    for (query, code) in [
        ("dir=x", "M_INVALID_PARAM"),
        ("dir=b&from=nonsense", "M_INVALID_PARAM"),
        ("dir=b&from=s999999999_0_0", "M_INVALID_PARAM"),
        ("dir=b&from=t1_2&to=t1", "M_INVALID_PARAM"),
        ("dir=b&limit=-1", "M_INVALID_PARAM"),
        ("dir=b&limit=many", "M_INVALID_PARAM"),
        ("dir=b&filter=%7B", "M_INVALID_PARAM"),
    ] {
        let answer = alice.get(&format!("/rooms/{room}/messages?{query}")).await;
        answer.fails(400, code);
    }
    for path in [
        format!("/rooms/{room}/messages?dir=b"),
        format!("/rooms/{room}/context/{id}"),
        format!("/_matrix/client/v1/rooms/{room}/timestamp_to_event?ts=0&dir=f"),
        format!("/_matrix/client/v1/rooms/{room}/relations/{id}"),
        format!("/_matrix/client/v1/rooms/{room}/threads"),
        "/rooms/!unknown:localhost/messages".to_owned(),
    ] {
        eve.get(&path).await.fails(403, "M_FORBIDDEN");
    }
    let path = format!("/rooms/{room}/event/{id}");
    eve.get(&path).await.fails(404, "M_NOT_FOUND");
    let path = format!("/rooms/{room}/messages?dir=b&limit=9007199254740991");
    alice.get(&path).await.ok();
}
