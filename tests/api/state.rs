//! "Getting events for a room": state and members.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::server::TestServer;

fn members(chunk: &Value) -> BTreeSet<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let events = chunk["chunk"].as_array().unwrap();
    events
        .iter()
        .map(|event| {
            (
                text(&event["state_key"]),
                text(&event["content"]["membership"]),
            )
        })
        .collect()
}

fn set(list: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    list.iter()
        .map(|(user, membership)| ((*user).to_owned(), (*membership).to_owned()))
        .collect()
}

#[tokio::test]
async fn state_is_read_by_those_who_are_or_were_there() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let eve = server.register("eve").await;
    let room = alice
        .create_room(
            json!({ "preset": "private_chat", "name": "first", "invite": [bob.id, eve.id] }),
        )
        .await;
    let name = format!("/rooms/{room}/state/m.room.name");
    assert_eq!(alice.get(&name).await.ok(), json!({ "name": "first" }));
    assert_eq!(
        alice.get(&format!("{name}/")).await.ok(),
        json!({ "name": "first" })
    );
    // An invitation opens nothing yet.
    bob.get(&name).await.fails(403, "M_FORBIDDEN");
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    assert_eq!(bob.get(&name).await.ok(), json!({ "name": "first" }));
    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    alice.put(&name, json!({ "name": "second" })).await.ok();
    assert_eq!(alice.get(&name).await.ok(), json!({ "name": "second" }));
    assert_eq!(bob.get(&name).await.ok(), json!({ "name": "first" }));
    let state = bob.get(&format!("/rooms/{room}/state")).await.ok();
    let find = |event_type: &str, key: &str| {
        let events = state.as_array().unwrap();
        events
            .iter()
            .find(|event| event["type"] == event_type && event["state_key"] == key)
            .map(|event| event["content"].clone())
    };
    assert_eq!(find("m.room.name", "").unwrap()["name"], "first");
    assert_eq!(
        find("m.room.member", &bob.id).unwrap()["membership"],
        "leave"
    );
    // Who was invited and said no has never been there.
    eve.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    for path in ["state", "state/m.room.name", "members", "joined_members"] {
        let path = format!("/rooms/{room}/{path}");
        eve.get(&path).await.fails(403, "M_FORBIDDEN");
    }
    eve.get("/rooms/!unknown:localhost/state")
        .await
        .fails(403, "M_FORBIDDEN");
    let missing = format!("/rooms/{room}/state/chat.homing.nothing/key");
    alice.get(&missing).await.fails(404, "M_NOT_FOUND");
    alice
        .get(&format!("{name}?format=other"))
        .await
        .fails(400, "M_INVALID_PARAM");
    bob.post(&format!("/rooms/{room}/forget"), json!({}))
        .await
        .ok();
    bob.get(&name).await.fails(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn a_world_readable_room_is_open_to_all() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let eve = server.register("eve").await;
    let state = json!([{
        "type": "m.room.history_visibility", "state_key": "",
        "content": { "history_visibility": "world_readable" },
    }]);
    let room = alice
        .create_room(json!({ "name": "open", "initial_state": state }))
        .await;
    let name = format!("/rooms/{room}/state/m.room.name");
    assert_eq!(eve.get(&name).await.ok()["name"], "open");
    let found = eve.get(&format!("/rooms/{room}/members")).await.ok();
    assert_eq!(members(&found), set(&[(&alice.id, "join")]));
}

#[tokio::test]
async fn members_are_listed_and_chosen() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let carol = server.register("carol").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let own = format!("/rooms/{room}/state/m.room.member/{}", alice.id);
    let content = json!({ "membership": "join", "displayname": "Alice" });
    alice.put(&own, content).await.ok();
    alice.say(&room, "before bob").await;
    let page = alice
        .get(&format!("/rooms/{room}/messages?dir=b&limit=1"))
        .await
        .ok();
    let before = page["start"].as_str().unwrap().to_owned();
    let before_last = page["end"].as_str().unwrap().to_owned();
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let invite = json!({ "user_id": carol.id });
    alice
        .post(&format!("/rooms/{room}/invite"), invite)
        .await
        .ok();
    let (a, b, c) = (alice.id.as_str(), bob.id.as_str(), carol.id.as_str());
    let all = set(&[(a, "join"), (b, "join"), (c, "invite")]);
    for (query, expected) in [
        (String::new(), all.clone()),
        (
            "?membership=join".to_owned(),
            set(&[(a, "join"), (b, "join")]),
        ),
        ("?not_membership=join".to_owned(), set(&[(c, "invite")])),
        (
            "?membership=join&not_membership=leave".to_owned(),
            all.clone(),
        ),
        ("?at=t0_0".to_owned(), set(&[(a, "join")])),
        (format!("?at={before_last}"), set(&[(a, "join")])),
        (format!("?at={before}"), set(&[(a, "join")])),
    ] {
        let path = format!("/rooms/{room}/members{query}");
        let found = alice.get(&path).await.ok();
        assert_eq!(members(&found), expected, "{query}");
    }
    alice
        .get(&format!("/rooms/{room}/members?at=nonsense"))
        .await
        .fails(400, "M_INVALID_PARAM");
    let joined = bob.get(&format!("/rooms/{room}/joined_members")).await.ok();
    let joined = joined["joined"].as_object().unwrap();
    assert_eq!(
        joined.keys().map(String::as_str).collect::<Vec<_>>(),
        [a, b]
    );
    assert_eq!(
        joined[a],
        json!({ "display_name": "Alice", "avatar_url": null })
    );
    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    let found = bob.get(&format!("/rooms/{room}/members")).await.ok();
    assert_eq!(
        members(&found),
        set(&[(a, "join"), (b, "leave"), (c, "invite")])
    );
    bob.get(&format!("/rooms/{room}/joined_members"))
        .await
        .fails(403, "M_FORBIDDEN");
}
