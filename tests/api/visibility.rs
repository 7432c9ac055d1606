//! Who may read what ("Room history visibility").

use serde_json::{Value, json};

use crate::server::{TestServer, User};

/// Which of the messages each reader gets, by the room's visibility: "before" was sent before the reader was invited,
/// "invited" between invitation and joining, "joined" while the reader was there, "after" when they had left.
const TABLE: [(&str, [&[&str]; 4]); 4] = [
    (
        "world_readable",
        [
            &["before", "invited", "joined", "after"],
            &["before", "invited", "joined", "after"],
            &["before", "invited", "joined", "after"],
            &["before", "invited", "joined", "after"],
        ],
    ),
    (
        "shared",
        [
            &["before", "invited", "joined", "after"],
            &["before", "invited", "joined"],
            &[],
            &[],
        ],
    ),
    (
        "invited",
        [
            &["invited", "joined", "after"],
            &["invited", "joined"],
            &[],
            &[],
        ],
    ),
    ("joined", [&["joined", "after"], &["joined"], &[], &[]]),
];

async fn bodies(user: &User<'_>, room: &str) -> Vec<String> {
    let mut bodies = Vec::new();
    let mut from = String::new();
    loop {
        let answer = user
            .get(&format!("/rooms/{room}/messages?dir=f&limit=100{from}"))
            .await;
        if answer.status == 403 {
            return bodies;
        }
        let page = answer.ok();
        for event in page["chunk"].as_array().unwrap() {
            if let Some(body) = event["content"]["body"].as_str() {
                bodies.push(body.to_owned());
            }
        }
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => return bodies,
        }
    }
}

/// A room with this visibility, in which Bob stays, Carol has left, Dave is only invited and Eve never was.
async fn scene(alice: &User<'_>, others: &[User<'_>], visibility: &str) -> (String, Vec<Value>) {
    let room = alice
        .create_room(json!({
            "preset": "private_chat",
            "initial_state": [{
                "type": "m.room.history_visibility", "state_key": "",
                "content": { "history_visibility": visibility },
            }],
        }))
        .await;
    let [bob, carol, dave, _] = others else {
        panic!("there are four others")
    };
    let mut ids = vec![alice.say(&room, "before").await];
    for user in [bob, carol, dave] {
        alice
            .post(
                &format!("/rooms/{room}/invite"),
                json!({ "user_id": user.id }),
            )
            .await
            .ok();
    }
    ids.push(alice.say(&room, "invited").await);
    for user in [bob, carol] {
        user.post(&format!("/join/{room}"), json!({})).await.ok();
    }
    ids.push(alice.say(&room, "joined").await);
    carol
        .post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    ids.push(alice.say(&room, "after").await);
    (room, ids.into_iter().map(Value::String).collect())
}

#[tokio::test]
async fn each_reader_sees_what_the_visibility_allows() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let mut others = Vec::new();
    for name in ["bob", "carol", "dave", "eve"] {
        others.push(server.register(name).await);
    }
    for (visibility, expected) in TABLE {
        let (room, ids) = scene(&alice, &others, visibility).await;
        assert_eq!(
            bodies(&alice, &room).await,
            ["before", "invited", "joined", "after"]
        );
        for (user, expected) in others.iter().zip(expected) {
            let what = format!("{visibility}, {}", user.id);
            assert_eq!(bodies(user, &room).await, expected, "{what}");
            // An invitation does not open the room, but the events that `invited` is about.
            let visible: &[&str] = if (visibility, &*user.id) == ("invited", "@dave:localhost") {
                &["invited", "joined", "after"]
            } else {
                expected
            };
            for (body, id) in ["before", "invited", "joined", "after"].iter().zip(&ids) {
                let id = id.as_str().unwrap();
                let event = user.get(&format!("/rooms/{room}/event/{id}")).await;
                if visible.contains(body) {
                    assert_eq!(event.ok()["content"]["body"], **body, "{what}");
                } else {
                    event.fails(404, "M_NOT_FOUND");
                }
            }
        }
    }
}

#[tokio::test]
async fn the_visibility_at_the_time_of_the_event_counts() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let set = async |visibility: &str| {
        let path = format!("/rooms/{room}/state/m.room.history_visibility/");
        let body = json!({ "history_visibility": visibility });
        alice.put(&path, body).await.ok();
    };
    let shared = alice.say(&room, "shared").await;
    set("joined").await;
    alice.say(&room, "hidden").await;
    set("world_readable").await;
    alice.say(&room, "open").await;
    assert_eq!(bodies(&bob, &room).await, ["open"]);
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    assert_eq!(bodies(&bob, &room).await, ["shared", "open"]);
    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    set("shared").await;
    alice.say(&room, "too late").await;
    assert_eq!(bodies(&bob, &room).await, ["shared", "open"]);
    let old = format!("/rooms/{room}/event/{shared}");
    bob.get(&old).await.ok();
    bob.post(&format!("/rooms/{room}/forget"), json!({}))
        .await
        .ok();
    bob.get(&format!("/rooms/{room}/messages?dir=b"))
        .await
        .fails(403, "M_FORBIDDEN");
    bob.get(&old).await.fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn events_tell_what_the_reader_was_to_the_room() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room = alice.create_room(json!({ "preset": "private_chat" })).await;
    alice.say(&room, "one").await;
    let invite = json!({ "user_id": bob.id });
    alice
        .post(&format!("/rooms/{room}/invite"), invite)
        .await
        .ok();
    alice.say(&room, "two").await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    alice.say(&room, "three").await;
    let page = bob
        .get(&format!("/rooms/{room}/messages?dir=f&limit=100"))
        .await
        .ok();
    let found: Vec<_> = page["chunk"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["type"] == "m.room.message" || event["state_key"] == bob.id.as_str())
        .map(|event| event["unsigned"]["membership"].as_str().unwrap())
        .collect();
    assert_eq!(found, ["leave", "invite", "invite", "join", "join"]);
}

#[tokio::test]
async fn ignored_users_are_not_read() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    alice.say(&room, "mine").await;
    let id = bob.say(&room, "noise").await;
    assert_eq!(bodies(&alice, &room).await, ["mine", "noise"]);
    let path = format!("/user/{}/account_data/m.ignored_user_list", alice.id);
    let ids = json!({ "ignored_users": { &bob.id: {} } });
    alice.put(&path, ids).await.ok();
    assert_eq!(bodies(&alice, &room).await, ["mine"]);
    alice
        .get(&format!("/rooms/{room}/event/{id}"))
        .await
        .fails(404, "M_NOT_FOUND");
    // What they do to the room's state is still told.
    let member = format!("/rooms/{room}/state/m.room.member/{}", bob.id);
    assert_eq!(alice.get(&member).await.ok()["membership"], "join");
}
