//! Transactions of a server that is hostile, or broken.

use homing_federation::{Draft, Pdu, SigningKey};
use reqwest::Method;
use ruma::MilliSecondsSinceUnixEpoch;
use serde_json::{Value, json};

use crate::{
    fake_room::{FakeRoom, outcome, path, transaction, value},
    fake_server::{FakeServer, in_a_day},
    hostile_gaps::waiting,
    server::{TestServer, User},
    shared_rooms::{eventually, sees},
};

/// The greatest integer in an event.
const MOST: i64 = (1 << 53) - 1;

/// A public room of `alice` that the fake server has joined.
pub async fn shared(alice: &User<'_>, fake: &FakeServer, version: &str) -> FakeRoom {
    let body = json!({ "preset": "public_chat", "room_version": version });
    let id = alice.create_room(body).await;
    FakeRoom::join(fake, alice.server, &id).await
}

/// The ids of the latest events that somebody sees, oldest first.
async fn latest(user: &User<'_>, room: &FakeRoom) -> Vec<String> {
    let path = format!("/rooms/{}/messages?dir=b&limit=50", room.id);
    let answer = user.get(&path).await.ok();
    let events = answer["chunk"].as_array().unwrap().iter().rev();
    events
        .map(|event| event["event_id"].as_str().unwrap().to_owned())
        .collect()
}

/// An event of a room as somebody sees it, if they do.
pub async fn seen(user: &User<'_>, room: &FakeRoom, id: &str) -> Option<Value> {
    let answer = user.get(&format!("/rooms/{}/event/{id}", room.id)).await;
    answer.status.is_success().then_some(answer.body)
}

#[tokio::test]
async fn only_so_much_goes_into_a_transaction() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let mut room = shared(&alice, &fake, "12").await;
    let events: Vec<Pdu> = (0..51)
        .map(|number| room.say(&fake, &number.to_string()))
        .collect();
    let all: Vec<&Pdu> = events.iter().collect();
    let refused = room.send(&fake, &server, &all).await;
    refused.fails(400, "M_INVALID_PARAM");
    let typing = json!({ "edu_type": "m.typing", "content": {
        "room_id": room.id, "user_id": room.user, "typing": true,
    }});
    let many = vec![typing; 101];
    let refused = transaction(&fake, &server, &[], &many).await;
    refused.fails(400, "M_INVALID_PARAM");
    assert!(
        seen(&alice, &room, events[0].event_id.as_str())
            .await
            .is_none()
    );
    transaction(&fake, &server, &[], &many[..100]).await.ok();
    let answer = room.send(&fake, &server, &all[..50]).await.ok();
    for pdu in &events[..50] {
        assert_eq!(outcome(&answer, pdu.event_id.as_str()), Some(false));
    }
    sees(&alice, room.id.as_str(), events[49].event_id.as_str()).await;
}

/// Texts that are no events, or no good ones.
fn malformed(room: &FakeRoom, fake: &FakeServer) -> Vec<String> {
    let whole = value(&room.sign(fake, room.message("bad")));
    let mut bad: Vec<String> = ["5", "null", "true", "\"x\"", "[]", "{}", "[[[[[[]]]]]]"]
        .map(ToOwned::to_owned)
        .into();
    // Right in all but one field, as far as there can be a signature of such an event.
    let signed = |event: Value, field: &str| {
        let is_of_signature = ["hashes", "signatures"].contains(&field);
        let again = room.sign_again(fake, event.clone());
        let again = again.filter(|_| !is_of_signature);
        again.map_or(event, |again| again.json).to_string()
    };
    for field in whole.as_object().unwrap().keys() {
        let mut without = whole.clone();
        without.as_object_mut().unwrap().remove(field);
        bad.push(signed(without, field));
        for other in [
            json!(null),
            json!(5),
            json!([5]),
            json!("x"),
            json!({ "x": 5 }),
        ] {
            let mut with = whole.clone();
            if std::mem::discriminant(&with[field]) != std::mem::discriminant(&other) {
                with[field] = other;
                bad.push(signed(with, field));
            }
        }
    }
    let mut long = whole.clone();
    long["room_id"] = format!("!{}:{}", "a".repeat(1 << 20), fake.name).into();
    bad.push(long.to_string());
    for (field, text) in [
        ("type", "t".repeat(256)),
        ("state_key", "s".repeat(256)),
        ("type", "a\0b".to_owned()),
        ("state_key", "a\0b".to_owned()),
        ("sender", format!("@{}:{}", "s".repeat(255), fake.name)),
        ("sender", format!("mallory:{}", fake.name)),
    ] {
        let mut with = whole.clone();
        with[field] = text.into();
        bad.push(signed(with, field));
    }
    for field in ["depth", "origin_server_ts"] {
        let mut with = whole.clone();
        with[field] = (-1).into();
        bad.push(signed(with, field));
    }
    let content = |content: &str| {
        let text = json!(whole["content"]).to_string();
        whole.to_string().replace(&text, content)
    };
    bad.push(content(r#"{"body":1.5,"msgtype":"m.text"}"#));
    bad.push(content(r#"{"body":1e3,"msgtype":"m.text"}"#));
    bad.push(content(r#"{"body":9007199254740992,"msgtype":"m.text"}"#));
    bad.push(content(r#"{"body":"a","body":"b","msgtype":"m.text"}"#));
    let (open, close) = (r#"{"a":"#.repeat(1000), "}".repeat(1000));
    bad.push(content(&format!("{open}1{close}")));
    let (open, close) = ("[".repeat(1000), "]".repeat(1000));
    bad.push(content(&format!("{{\"a\":{open}{close}}}")));
    for (field, count) in [
        ("prev_events", 21),
        ("prev_events", 5000),
        ("auth_events", 11),
        ("auth_events", 5000),
    ] {
        let mut many = whole.clone();
        let id = room.latest[0].as_str();
        many[field] = vec![id; count].into();
        bad.push(signed(many, field));
    }
    let content = json!({ "body": "bad", "msgtype": "m.text" });
    let large = room.sign_sized(fake, ("m.room.message", None), content, 65_537);
    bad.push(large.json.to_string());
    bad
}

#[tokio::test]
async fn bad_events_cost_the_good_ones_nothing() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let mut room = shared(&alice, &fake, "12").await;
    let before = latest(&alice, &room).await.len();
    let bad = malformed(&room, &fake);
    assert!(bad.len() > 60);
    let mut expected = Vec::new();
    for some in bad.chunks(30) {
        let (first, last) = (room.say(&fake, "first"), room.say(&fake, "last"));
        let mut texts = vec![first.json.to_string()];
        texts.extend(some.iter().cloned());
        texts.push(last.json.to_string());
        let body = format!(
            "{{\"origin\":\"{}\",\"origin_server_ts\":1,\"pdus\":[{}]}}",
            fake.name,
            texts.join(",")
        );
        let answer = fake.put_text(&server, &path(), body).await.ok();
        for good in [first, last] {
            assert_eq!(
                outcome(&answer, good.event_id.as_str()),
                Some(false),
                "{answer}"
            );
            expected.push(good.event_id.to_string());
        }
    }
    let now = latest(&alice, &room).await;
    assert_eq!(now[before..], expected, "and nothing else");
}

/// Text that cannot be made shorter.
fn noise(length: usize) -> String {
    (0..length)
        .map(|_| char::from(rand::random_range(b'a'..=b'z')))
        .collect()
}

/// Well-formed events with contents that nobody expects.
fn strange(room: &mut FakeRoom, fake: &FakeServer) -> Vec<Pdu> {
    let target = room.latest[0].clone();
    let null_character = "a\0b";
    let contents = [
        (
            "m.room.message",
            json!({ "body": null, "msgtype": null, "format": null }),
        ),
        (
            "m.room.message",
            json!({ "body": { "a": [1] }, "msgtype": 5 }),
        ),
        (
            "m.room.message",
            json!({ "m.relates_to": { "rel_type": null, "event_id": target } }),
        ),
        (
            "m.room.message",
            json!({ "m.relates_to": { "rel_type": "m.thread", "event_id": null } }),
        ),
        (
            "m.room.message",
            json!({ "m.relates_to": { "rel_type": "m.thread", "event_id": format!("${null_character}") } }),
        ),
        (
            "m.room.message",
            json!({ "m.relates_to": { "rel_type": "m.replace", "event_id": target }, "m.new_content": 5 }),
        ),
        (
            "m.room.message",
            json!({ "m.relates_to": { "rel_type": noise(5000), "event_id": format!("${}", noise(5000)) } }),
        ),
        (
            "m.room.message",
            json!({ "m.relates_to": { "rel_type": noise(5000), "event_id": target } }),
        ),
        (
            "m.room.message",
            json!({ "m.relates_to": { "rel_type": null_character, "event_id": target } }),
        ),
        (
            "m.room.message",
            json!({ "body": null_character, "msgtype": null_character }),
        ),
        ("m.room.message", json!({ "m.relates_to": [1] })),
        (
            "m.reaction",
            json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": target, "key": null } }),
        ),
        (
            "m.room.redaction",
            json!({ "redacts": format!("${null_character}") }),
        ),
        (
            "m.room.redaction",
            json!({ "redacts": format!("${}", noise(5000)) }),
        ),
        ("m.room.redaction", json!({ "redacts": 5 })),
        ("m.room.redaction", json!({})),
        (
            "m.room.encrypted",
            json!({ "algorithm": null, "m.mentions": { "user_ids": [null, 5], "room": "x" } }),
        ),
        ("org.example", json!({ "url": null, "\0": null })),
    ];
    let mut events = Vec::new();
    for (kind, content) in contents {
        let pdu = room.sign(fake, room.draft(kind, None, content));
        room.follow(&pdu);
        events.push(pdu);
    }
    for content in [
        json!({ "membership": "join", "displayname": null, "avatar_url": null }),
        json!({ "membership": "join", "displayname": { "a": 1 }, "avatar_url": [] }),
        json!({ "membership": "join", "displayname": "a\0b", "avatar_url": "\0", "reason": "\0" }),
        json!({ "membership": "join", "displayname": "x".repeat(50_000) }),
        json!({ "membership": "join", "third_party_invite": 5, "is_direct": "x" }),
    ] {
        let user = room.user.to_string();
        let pdu = room.set(fake, "m.room.member", &user, content);
        events.push(pdu);
    }
    events
}

#[tokio::test]
async fn strange_events_cost_the_others_nothing() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    for version in ["10", "12"] {
        let mut room = shared(&alice, &fake, version).await;
        let strange = strange(&mut room, &fake);
        let good = room.say(&fake, "good");
        let mut all: Vec<&Pdu> = strange.iter().collect();
        all.push(&good);
        let answer = room.send(&fake, &server, &all).await.ok();
        for pdu in all {
            let answered = outcome(&answer, pdu.event_id.as_str());
            assert_eq!(answered, Some(false), "{} {answer}", pdu.json);
        }
        assert_eq!(waiting(&server).await, 0);
        sees(&alice, room.id.as_str(), good.event_id.as_str()).await;
        alice.say(room.id.as_str(), "still there").await;
        let found = json!({ "search_categories": { "room_events": { "search_term": "good" } } });
        alice.post("/search", found).await.ok();
    }
}

#[tokio::test]
async fn who_has_not_signed_has_not_sent() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let (third, alice) = (FakeServer::start().await, server.register("alice").await);
    let old = SigningKey::generate(&mut rand::rng());
    let now = MilliSecondsSinceUnixEpoch::now();
    let until = i64::from(now.0) - 60_000;
    let mut document = fake.key_document(&fake.key, in_a_day());
    document.as_object_mut().unwrap().remove("signatures");
    document["old_verify_keys"][old.id()] = json!({ "key": old.public_key(), "expired_ts": until });
    let document = fake.sign(&fake.key, document);
    fake.answers(Method::GET, "/_matrix/key/v2/server", document);
    let room = shared(&alice, &fake, "12").await;

    let signed = |name: &ruma::ServerName, key: &SigningKey, draft: Draft| {
        value(&draft.sign(room.rules, name, key).unwrap())
    };
    let message = |text: &str| room.message(text);
    let before = |draft: Draft, ms: i64| Draft {
        origin_server_ts: MilliSecondsSinceUnixEpoch((i64::from(now.0) - ms).try_into().unwrap()),
        ..draft
    };
    let id = |event: &Value| {
        let unverified = homing_federation::received::event_id_of(&event.to_string(), room.rules);
        unverified.unwrap().to_string()
    };
    let mut tampered = signed(&fake.name, &fake.key, message("tampered"));
    tampered["depth"] = 77.into();
    let of_third = Draft {
        sender: format!("@mallory:{}", third.name).try_into().unwrap(),
        ..message("in the name of another")
    };
    let of_alice = Draft {
        sender: alice.id.as_str().try_into().unwrap(),
        ..message("in the name of somebody here")
    };
    let unknown = SigningKey::generate(&mut rand::rng());
    let bad = [
        tampered,
        signed(&third.name, &third.key, message("by another server")),
        signed(&fake.name, &fake.key, of_third),
        signed(&fake.name, &fake.key, of_alice),
        signed(&fake.name, &unknown, message("with an unknown key")),
        signed(&fake.name, &old, before(message("with an old key"), 30_000)),
    ];
    let good = [
        signed(
            &fake.name,
            &old,
            before(message("when the key was good"), 90_000),
        ),
        signed(&fake.name, &fake.key, message("good")),
    ];
    for one in &good {
        let all: Vec<Value> = bad.iter().chain([one]).cloned().collect();
        let answer = transaction(&fake, &server, &all, &[]).await.ok();
        for event in &bad {
            assert_eq!(outcome(&answer, &id(event)), Some(true), "{event} {answer}");
            assert_eq!(seen(&alice, &room, &id(event)).await, None);
        }
        assert_eq!(outcome(&answer, &id(one)), Some(false), "{answer}");
        assert!(seen(&alice, &room, &id(one)).await.is_some());
    }
}

#[tokio::test]
async fn what_was_changed_on_the_way_loses_its_content() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = shared(&alice, &fake, "12").await;
    let pdu = room.sign(&fake, room.message("as it was"));
    let mut changed = value(&pdu);
    changed["content"]["body"] = "as it is".into();
    let answer = transaction(&fake, &server, &[changed], &[]).await.ok();
    assert_eq!(outcome(&answer, pdu.event_id.as_str()), Some(false));
    let seen = seen(&alice, &room, pdu.event_id.as_str()).await.unwrap();
    assert_eq!(seen["content"], json!({}));
}

#[tokio::test]
async fn events_of_another_room_are_nothing_to_rest_on() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = shared(&alice, &fake, "12").await;
    let other = shared(&alice, &fake, "12").await;
    let by_prev = Draft {
        prev_events: other.latest.clone(),
        ..room.message("after another room")
    };
    let by_auth = Draft {
        auth_events: other.message("").auth_events,
        ..room.message("allowed by another room")
    };
    let moved = Draft {
        room_id: Some(room.id.clone()),
        ..other.message("moved")
    };
    let bad = [by_prev, by_auth, moved].map(|draft| room.sign(&fake, draft));
    let good = room.sign(&fake, room.message("good"));
    let all: Vec<&Pdu> = bad.iter().chain([&good]).collect();
    let answer = room.send(&fake, &server, &all).await.ok();
    for pdu in &bad {
        assert_eq!(
            outcome(&answer, pdu.event_id.as_str()),
            Some(true),
            "{answer}"
        );
        assert_eq!(seen(&alice, &room, pdu.event_id.as_str()).await, None);
    }
    assert!(seen(&alice, &room, good.event_id.as_str()).await.is_some());
    // Nobody asks for what cannot help.
    assert_eq!(
        fake.count(&Method::POST, "/_matrix/federation/v1/get_missing_events"),
        0
    );
}

#[tokio::test]
async fn the_greatest_depth_is_no_end() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let mut room = shared(&alice, &fake, "12").await;
    fake.answers(
        Method::PUT,
        "/_matrix/federation/v1/send/",
        json!({ "pdus": {} }),
    );
    let deepest = Draft {
        depth: MOST,
        ..room.message("deep")
    };
    let deepest = room.sign(&fake, deepest);
    room.follow(&deepest);
    room.send(&fake, &server, &[&deepest]).await.ok();
    let mut expected = vec![deepest.event_id.to_string()];
    for text in ["deeper", "still"] {
        expected.push(alice.say(room.id.as_str(), text).await);
    }
    let sent = fake.wait_for(|request| request.raw.windows(5).any(|part| part == b"still"));
    let sent = sent.await;
    let last = sent.body["pdus"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .clone();
    assert_eq!(last["depth"], MOST);
    assert_eq!(last["prev_events"], json!([expected[1]]));
    let shallow = Draft {
        depth: 0,
        prev_events: vec![expected[2].as_str().try_into().unwrap()],
        ..room.message("shallow")
    };
    let shallow = room.sign(&fake, shallow);
    room.send(&fake, &server, &[&shallow]).await.ok();
    alice.say(room.id.as_str(), "on top of it").await;
    let sync = eventually(&alice, |sync| {
        let timeline = &sync["rooms"]["join"][room.id.as_str()]["timeline"]["events"];
        timeline.as_array().cloned()
    });
    let ids: Vec<_> = sync
        .await
        .iter()
        .map(|event| event["event_id"].clone())
        .collect();
    let at = |id: &str| ids.iter().position(|it| it == id);
    assert!(at(&expected[0]) < at(&expected[1]) && at(&expected[1]) < at(&expected[2]));
    assert!(at(&expected[2]) < at(shallow.event_id.as_str()));
}

#[tokio::test]
async fn who_is_barred_brings_nothing_into_a_room() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = shared(&alice, &fake, "12").await;
    let open = shared(&alice, &fake, "12").await;
    let acl = async |content: Value| {
        let path = format!("/rooms/{}/state/m.room.server_acl", room.id);
        alice.put(&path, content).await.ok();
    };
    acl(json!({ "allow": ["*"], "deny": [fake.name.host()] })).await;
    let (barred, allowed) = (
        room.sign(&fake, room.message("barred")),
        open.sign(&fake, open.message("allowed")),
    );
    let both = [value(&barred), value(&allowed)];
    let answer = transaction(&fake, &server, &both, &[]).await.ok();
    assert_eq!(outcome(&answer, barred.event_id.as_str()), Some(true));
    assert_eq!(outcome(&answer, allowed.event_id.as_str()), Some(false));
    assert_eq!(seen(&alice, &room, barred.event_id.as_str()).await, None);
    let v1 = "/_matrix/federation/v1";
    for path in [
        format!("{v1}/make_join/{}/@zoe:{}?ver=12", room.id, fake.name),
        format!("{v1}/make_leave/{}/{}", room.id, room.user),
        format!("{v1}/state_ids/{}?event_id={}", room.id, room.latest[0]),
        format!("{v1}/backfill/{}?v={}&limit=5", room.id, room.latest[0]),
        format!("{v1}/event/{}", room.latest[0]),
    ] {
        fake.get(&server, &path).await.fails(403, "M_FORBIDDEN");
    }
    acl(json!({ "allow": ["*"] })).await;
    let answer = transaction(&fake, &server, &both, &[]).await.ok();
    assert_eq!(outcome(&answer, barred.event_id.as_str()), Some(false));
    assert!(
        seen(&alice, &room, barred.event_id.as_str())
            .await
            .is_some()
    );
}
