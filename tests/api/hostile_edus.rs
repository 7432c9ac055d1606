//! EDUs of a server that is hostile, or broken: of other types, too large, and about what is not its own.

use serde_json::{Value, json};

use crate::{
    fake_room::{FakeRoom, path, transaction},
    fake_server::FakeServer,
    hostile_transactions::shared,
    server::{TestServer, User},
};

#[expect(clippy::needless_pass_by_value, reason = "made for the call")]
fn edu(edu_type: &str, content: Value) -> Value {
    json!({ "edu_type": edu_type, "content": content })
}

fn typing(room: &FakeRoom, user: &str, typing: bool) -> Value {
    let content = json!({ "room_id": room.id, "user_id": user, "typing": typing });
    edu("m.typing", content)
}

fn presence(updates: &[Value]) -> Value {
    edu("m.presence", json!({ "push": updates }))
}

fn online(user: &str) -> Value {
    json!({ "user_id": user, "presence": "online", "last_active_ago": 5, "status_msg": user })
}

fn receipts<'a>(room: &FakeRoom, users: impl IntoIterator<Item = &'a str>, event: &str) -> Value {
    let read = |user: &str| {
        let said = json!({ "data": { "ts": 7 }, "event_ids": [event] });
        (user.to_owned(), said)
    };
    let read: serde_json::Map<_, _> = users.into_iter().map(read).collect();
    edu("m.receipt", json!({ room.id.as_str(): { "m.read": read } }))
}

/// What a sync from the beginning says of a room that was not said by events: who types, and who has read what; and who is
/// there.
async fn said(user: &User<'_>, room: &FakeRoom) -> (Vec<Value>, Value, Vec<Value>) {
    let sync = user.sync("").await;
    let ephemeral = &sync["rooms"]["join"][room.id.as_str()]["ephemeral"]["events"];
    let of_type = |kind: &str| {
        let mut events = ephemeral.as_array().into_iter().flatten();
        let event = events.find(|event| event["type"] == kind);
        event.map_or(Value::Null, |event| event["content"].clone())
    };
    let typing = of_type("m.typing")["user_ids"].as_array().cloned();
    let present = sync["presence"]["events"].as_array().cloned();
    let mut present = present.unwrap_or_default();
    present.retain(|event| event["sender"] != user.id);
    (typing.unwrap_or_default(), of_type("m.receipt"), present)
}

/// Everything that a value could be instead.
fn others() -> Vec<String> {
    let (open, close) = ("[".repeat(1000), "]".repeat(1000));
    let (deeper, out) = (r#"{"a":"#.repeat(1000), "}".repeat(1000));
    let mut others: Vec<String> = [
        "null",
        "5",
        "-1",
        "1.5",
        "1e300",
        "123456789012345678901234567890",
        "true",
        "\"x\"",
        "\"a\\u0000b\"",
        "[]",
        "{}",
        "[null]",
        r#"{"a":null}"#,
        r#"{"a":1,"a":2}"#,
    ]
    .map(ToOwned::to_owned)
    .into();
    others.push(format!("{open}{close}"));
    others.push(format!("{deeper}1{out}"));
    others.push(format!("\"{}\"", "x".repeat(60_000)));
    others
}

/// The paths to all values in some JSON.
fn paths(json: &Value, path: &str, found: &mut Vec<String>) {
    found.push(path.to_owned());
    let escape = |key: &str| key.replace('~', "~0").replace('/', "~1");
    if let Some(object) = json.as_object() {
        for (key, value) in object {
            paths(value, &format!("{path}/{}", escape(key)), found);
        }
    }
    for (index, value) in json.as_array().into_iter().flatten().enumerate() {
        paths(value, &format!("{path}/{index}"), found);
    }
}

/// EDUs that have something else in each of their places.
fn odd(good: &[Value]) -> Vec<String> {
    const MARK: &str = "the other value";
    let mut odd = Vec::new();
    for edu in good {
        let mut found = Vec::new();
        paths(edu, "", &mut found);
        for path in found {
            let mut changed = edu.clone();
            *changed.pointer_mut(&path).unwrap() = MARK.into();
            let text = changed.to_string();
            odd.extend(
                others()
                    .iter()
                    .map(|other| text.replace(&format!("\"{MARK}\""), other)),
            );
        }
    }
    odd
}

#[tokio::test]
async fn odd_edus_cost_the_others_nothing() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = shared(&alice, &fake, "12").await;
    let event = alice.say(room.id.as_str(), "hello").await;
    let mallory = room.user.as_str();
    let good = [
        typing(&room, mallory, false),
        presence(&[json!({
            "user_id": mallory, "presence": "offline", "last_active_ago": 5, "currently_active": true,
            "status_msg": "x",
        })]),
        edu(
            "m.receipt",
            json!({ room.id.as_str(): { "m.read": { mallory: {
                "data": { "ts": 7, "thread_id": "main" }, "event_ids": ["$unknown"],
            } } } }),
        ),
        edu(
            "m.direct_to_device",
            json!({
                "sender": mallory, "type": "m.room_key", "message_id": "1",
                "messages": { alice.id.as_str(): { "*": { "a": 1 } } },
            }),
        ),
        edu(
            "m.device_list_update",
            json!({
                "user_id": mallory, "device_id": "A", "stream_id": 5, "prev_id": [4], "deleted": false,
                "keys": { "user_id": mallory, "device_id": "A", "algorithms": [], "keys": {}, "signatures": {} },
            }),
        ),
        edu(
            "m.signing_key_update",
            json!({ "user_id": mallory, "master_key": { "user_id": mallory, "usage": ["master"], "keys": {} } }),
        ),
        edu("org.example.unknown", json!({ "a": 1 })),
    ];
    let odd = odd(&good);
    assert!(odd.len() > 500);
    let mut is_typing = false;
    for some in odd.chunks(98) {
        is_typing = !is_typing;
        let first = typing(&room, mallory, is_typing).to_string();
        let state = if is_typing { "online" } else { "unavailable" };
        let mut update = online(mallory);
        update["presence"] = state.into();
        let last = presence(&[json!(5), update]).to_string();
        let mut edus = some.to_vec();
        // It must not be undone by what comes after it.
        edus.retain(|edu| !edu.contains("m.typing") || !edu.contains("true"));
        edus.push(first);
        edus.push(last);
        let body = format!(
            "{{\"origin\":\"{}\",\"origin_server_ts\":1,\"pdus\":[],\"edus\":[{}]}}",
            fake.name,
            edus.join(",")
        );
        let answer = fake.put_text(&server, &path(), body).await.ok();
        assert_eq!(answer, json!({ "pdus": {} }));
        let (typing, _, present) = said(&alice, &room).await;
        assert_eq!(typing.len(), usize::from(is_typing), "{typing:?}");
        assert_eq!(present[0]["content"]["presence"], state, "{present:?}");
    }
    let read = receipts(&room, [mallory], &event);
    transaction(&fake, &server, &[], &[read]).await.ok();
    let (_, read, _) = said(&alice, &room).await;
    assert_eq!(read[&event]["m.read"][mallory]["ts"], 7);
}

#[tokio::test]
async fn nobody_speaks_for_others() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let (third, alice) = (FakeServer::start().await, server.register("alice").await);
    let bob = server.register("bob").await;
    let room = shared(&alice, &fake, "12").await;
    let theirs = FakeRoom::join(&third, &server, room.id.as_str()).await;
    // A room in which the fake server is not.
    let closed = shared(&alice, &third, "12").await;
    let event = alice.say(room.id.as_str(), "hello").await;
    let secret = alice.say(closed.id.as_str(), "secret").await;
    bob.post(&format!("/join/{}", room.id), json!({}))
        .await
        .ok();
    let (mallory, other) = (room.user.as_str(), theirs.user.as_str());
    let all = [mallory, other, alice.id.as_str(), bob.id.as_str()];
    let mut edus = vec![
        typing(&room, other, true),
        typing(&room, &alice.id, true),
        typing(&room, &bob.id, true),
        typing(&closed, mallory, true),
        typing(&closed, other, true),
        receipts(&closed, all, &secret),
        receipts(&room, [other, &alice.id, &bob.id], &event),
        receipts(&room, all, &secret),
        presence(&[online(other), online(&bob.id)]),
    ];
    transaction(&fake, &server, &[], &edus).await.ok();
    for (whose, is_theirs) in [(&room, true), (&closed, false)] {
        let (typing, read, present) = said(&alice, whose).await;
        assert_eq!((typing, read), (Vec::new(), Value::Null), "{is_theirs}");
        // What bob's server says of bob is another thing.
        let lies = present.iter().any(|event| {
            event["sender"] == other || event["content"]["status_msg"] == bob.id.as_str()
        });
        assert!(!lies, "{present:?}");
    }
    edus.extend([
        typing(&room, mallory, true),
        receipts(&room, [mallory], &event),
        presence(&[online(mallory)]),
    ]);
    transaction(&fake, &server, &[], &edus).await.ok();
    let (typing, read, present) = said(&alice, &room).await;
    assert_eq!(typing, [json!(mallory)]);
    assert_eq!(
        read,
        json!({ event: { "m.read": { mallory: { "ts": 7 } } } })
    );
    assert!(present.iter().any(|event| event["sender"] == mallory));
}

#[tokio::test]
async fn only_so_many_users_are_looked_at() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = shared(&alice, &fake, "12").await;
    let event = alice.say(room.id.as_str(), "hello").await;
    let mallory = room.user.as_str();
    // All of these come before `@mallory`.
    let crowd: Vec<String> = (0..5_000)
        .map(|number| format!("@a{number}:{}", fake.name))
        .collect();
    let with_crowd = || crowd.iter().map(String::as_str).chain([mallory]);
    let updates: Vec<Value> = with_crowd().map(online).collect();
    transaction(&fake, &server, &[], &[presence(&updates)])
        .await
        .ok();
    let many = receipts(&room, with_crowd(), &event);
    transaction(&fake, &server, &[], &[many]).await.ok();
    // The same in many rooms, all of whose ids come before that of any real one.
    let one = json!({ "data": { "ts": 7 }, "event_ids": [event] });
    let mut rooms: serde_json::Map<_, _> = (0..5_000)
        .map(|number| (format!("!!{number}:{}", fake.name), json!({ "m.read": {} })))
        .collect();
    rooms.insert(room.id.to_string(), json!({ "m.read": { mallory: one } }));
    let rooms = edu("m.receipt", rooms.into());
    // What is left of a transaction is not for others of its EDUs.
    let both = [rooms, receipts(&room, [mallory], &event)];
    transaction(&fake, &server, &[], &both).await.ok();
    let (_, read, present) = said(&alice, &room).await;
    assert_eq!((read, present), (Value::Null, Vec::new()));
    // Nor is a text that is too long for one, or a time that has not come.
    let mut long = online(mallory);
    long["status_msg"] = "x".repeat(1025).into();
    transaction(&fake, &server, &[], &[presence(&[long])])
        .await
        .ok();
    assert!(said(&alice, &room).await.2.is_empty());
    let mut early = receipts(&room, [mallory], &event);
    let ts = format!("/content/{}/m.read/{mallory}/data/ts", room.id);
    *early.pointer_mut(&ts).unwrap() = json!((1_u64 << 53) - 1);
    let few = [presence(&[online(mallory)]), early];
    transaction(&fake, &server, &[], &few).await.ok();
    let (_, read, present) = said(&alice, &room).await;
    let ts = read[&event]["m.read"][mallory]["ts"].as_i64().unwrap();
    assert!(ts <= server.app.clock.now());
    assert_eq!(present[0]["sender"], mallory);
}
