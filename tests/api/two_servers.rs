//! Two servers that share rooms: what their people see of each other.

use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{TestServer, User};

/// Makes a room on the first server that somebody of the second joins; answers its id.
async fn shared_room(alice: &User<'_>, zoe: &User<'_>) -> String {
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let path = format!("/join/{room}?server_name={}", alice.server.name());
    zoe.post(&path, json!({})).await.ok();
    room
}

/// Syncs until `find` finds something.
async fn until<T>(user: &User<'_>, since: &mut String, find: impl Fn(&Value) -> Option<T>) -> T {
    let wait = async {
        loop {
            let sync = user.sync(&format!("since={since}&timeout=5000")).await;
            sync["next_batch"].as_str().unwrap().clone_into(since);
            if let Some(found) = find(&sync) {
                return found;
            }
        }
    };
    let wait = tokio::time::timeout(Duration::from_secs(30), wait).await;
    wait.expect("a sync says so")
}

async fn next(user: &User<'_>) -> String {
    let sync = user.sync("").await;
    sync["next_batch"].as_str().unwrap().to_owned()
}

/// The texts of the messages that a sync brings.
fn texts(sync: &Value, room: &str) -> Vec<String> {
    let events = sync["rooms"]["join"][room]["timeline"]["events"].as_array();
    let events = events.into_iter().flatten();
    let texts = events.filter_map(|event| event["content"]["body"].as_str());
    texts.map(ToOwned::to_owned).collect()
}

fn ephemeral(sync: &Value, room: &str, event_type: &str) -> Option<Value> {
    let events = sync["rooms"]["join"][room]["ephemeral"]["events"].as_array()?;
    let event = events.iter().find(|event| event["type"] == event_type)?;
    Some(event["content"].clone())
}

async fn hears(user: &User<'_>, since: &mut String, room: &str, text: &str) {
    let heard = |sync: &Value| {
        texts(sync, room)
            .iter()
            .any(|one| one == text)
            .then_some(())
    };
    until(user, since, heard).await;
}

#[tokio::test]
async fn people_hear_see_type_and_read_each_other() {
    let (one, two) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, zoe) = (one.register("alice").await, two.register("zoe").await);
    let room = shared_room(&alice, &zoe).await;
    let pairs = [(&alice, &zoe), (&zoe, &alice)];
    for (speaker, listener) in pairs {
        let mut since = next(listener).await;
        let said = speaker.say(&room, "hello").await;
        hears(listener, &mut since, &room, "hello").await;

        let mut since = next(speaker).await;
        let path = format!("/rooms/{room}/receipt/m.read/{said}");
        listener.post(&path, json!({})).await.ok();
        let read = |sync: &Value| {
            let receipts = ephemeral(sync, &room, "m.receipt")?;
            receipts[&said]["m.read"][&listener.id]["ts"].as_i64()
        };
        until(speaker, &mut since, read).await;

        let path = format!("/rooms/{room}/typing/{}", listener.id);
        for (body, expected) in [
            (
                json!({ "typing": true, "timeout": 30_000 }),
                json!([listener.id]),
            ),
            (json!({ "typing": false }), json!([])),
        ] {
            listener.put(&path, body).await.ok();
            let typing = |sync: &Value| {
                let typing = ephemeral(sync, &room, "m.typing")?;
                (typing["user_ids"] == expected).then_some(())
            };
            until(speaker, &mut since, typing).await;
        }

        let path = format!("/presence/{}/status", listener.id);
        let body = json!({ "presence": "online", "status_msg": "here" });
        listener.put(&path, body).await.ok();
        let there = |sync: &Value| {
            let events = sync["presence"]["events"].as_array()?;
            let of_listener = |event: &&Value| event["sender"] == listener.id;
            let event = events.iter().find(of_listener)?;
            (event["content"]["status_msg"] == "here").then_some(())
        };
        until(speaker, &mut since, there).await;
    }
}

#[tokio::test]
async fn who_is_kicked_hears_of_it_and_of_nothing_later() {
    let (one, two) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, zoe) = (one.register("alice").await, two.register("zoe").await);
    let room = shared_room(&alice, &zoe).await;
    let other = shared_room(&alice, &zoe).await;
    let mut since = next(&zoe).await;
    let path = format!("/rooms/{room}/kick");
    alice.post(&path, json!({ "user_id": zoe.id })).await.ok();
    let left = |sync: &Value| sync["rooms"]["leave"].get(&room).map(|_| ());
    until(&zoe, &mut since, left).await;
    let before = one.app.metrics.pdus_sent.get();
    alice.say(&room, "among us").await;
    alice.say(&other, "to all").await;
    hears(&zoe, &mut since, &other, "to all").await;
    assert_eq!(one.app.metrics.pdus_sent.get(), before + 1);
    let id = ruma::RoomId::parse(&room).unwrap();
    let seen = one.app.room(&id).await.unwrap();
    let server = seen.seen().servers[two.name()];
    assert_eq!(server.joined, 0);
    assert!(server.left_pos.is_some());
}

#[tokio::test]
async fn who_leaves_while_typing_types_no_more() {
    let (one, two) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, zoe) = (one.register("alice").await, two.register("zoe").await);
    let room = shared_room(&alice, &zoe).await;
    let mut since = next(&alice).await;
    let path = format!("/rooms/{room}/typing/{}", zoe.id);
    zoe.put(&path, json!({ "typing": true, "timeout": 60_000 }))
        .await
        .ok();
    let typing = |who: Value| {
        let room = &room;
        move |sync: &Value| (ephemeral(sync, room, "m.typing")?["user_ids"] == who).then_some(())
    };
    until(&alice, &mut since, typing(json!([zoe.id]))).await;
    // What zoe sends may come from another device.
    zoe.say(&room, "typed").await;
    hears(&alice, &mut since, &room, "typed").await;
    let sync = alice.sync("").await;
    let said = ephemeral(&sync, &room, "m.typing").unwrap();
    assert_eq!(said["user_ids"], json!([zoe.id]));
    zoe.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    let started = std::time::Instant::now();
    until(&alice, &mut since, typing(json!([]))).await;
    assert!(
        started.elapsed().as_secs() < 15,
        "not when its time is over"
    );
}

#[tokio::test]
async fn only_who_has_invited_takes_an_invite_back() {
    let (one, two) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, zoe) = (one.register("alice").await, two.register("zoe").await);
    let mallory = one.register("mallory").await;
    let shared = shared_room(&alice, &zoe).await;
    let room = alice.create_room(json!({ "invite": [mallory.id] })).await;
    mallory.post(&format!("/join/{room}"), json!({})).await.ok();
    let mut since = next(&zoe).await;
    let body = json!({ "user_id": zoe.id });
    let invited = |sync: &Value| sync["rooms"]["invite"].get(&room).map(|_| ());
    let left = |sync: &Value| {
        let events = sync["rooms"]["leave"][&room]["timeline"]["events"].as_array()?;
        Some(events.clone())
    };
    // Whether others may, somebody outside cannot know.
    mallory
        .post(&format!("/rooms/{room}/invite"), body.clone())
        .await
        .ok();
    until(&zoe, &mut since, invited).await;
    alice
        .post(&format!("/rooms/{room}/kick"), body.clone())
        .await
        .ok();
    alice.say(&shared, "something else").await;
    hears(&zoe, &mut since, &shared, "something else").await;
    assert!(invited(&zoe.sync("").await).is_some());

    // Who is invited learns how it ended.
    alice
        .post(&format!("/rooms/{room}/invite"), body.clone())
        .await
        .ok();
    alice
        .post(&format!("/rooms/{room}/kick"), body.clone())
        .await
        .ok();
    let ended = until(&zoe, &mut since, left).await;
    let [leave] = ended.as_slice() else {
        panic!("{ended:?}")
    };
    assert_eq!(leave["content"]["membership"], "leave");
    assert_eq!(leave["sender"], alice.id);
    assert_eq!(leave["state_key"], zoe.id);

    // Or how they have ended it, also where nobody is left who could be told.
    alice
        .post(&format!("/rooms/{room}/invite"), body)
        .await
        .ok();
    until(&zoe, &mut since, invited).await;
    for user in [&alice, &mallory] {
        user.post(&format!("/rooms/{room}/leave"), json!({}))
            .await
            .ok();
    }
    zoe.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    let ended = until(&zoe, &mut since, left).await;
    assert_eq!(ended.len(), 1, "{ended:?}");
    assert_eq!(ended[0]["sender"], zoe.id);
    let all = zoe.sync("filter={\"room\":{\"include_leave\":true}}").await;
    assert_eq!(left(&all).unwrap()[0]["sender"], zoe.id);
}

#[tokio::test]
async fn who_joins_sees_who_has_invited_them() {
    let (one, two) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, zoe) = (one.register("alice").await, two.register("zoe").await);
    let body = json!({ "invite": [zoe.id], "is_direct": true });
    let room = alice.create_room(body).await;
    zoe.post(&format!("/join/{room}"), json!({})).await.ok();
    let path = format!("/rooms/{room}/messages?dir=b&limit=1");
    let messages = zoe.get(&path).await.ok();
    let join = &messages["chunk"][0];
    assert_eq!(join["state_key"], zoe.id);
    assert_eq!(join["unsigned"]["prev_content"]["is_direct"], true);
    assert_eq!(join["unsigned"]["prev_sender"], alice.id);
}

#[tokio::test]
async fn an_invite_that_is_taken_back_disappears() {
    let (one, two) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, zoe) = (one.register("alice").await, two.register("zoe").await);
    let room = alice.create_room(json!({})).await;
    let mut since = next(&zoe).await;
    let path = format!("/rooms/{room}/invite");
    alice.post(&path, json!({ "user_id": zoe.id })).await.ok();
    let invited = |sync: &Value| sync["rooms"]["invite"].get(&room).map(|_| ());
    until(&zoe, &mut since, invited).await;
    let path = format!("/rooms/{room}/kick");
    alice.post(&path, json!({ "user_id": zoe.id })).await.ok();
    let left = |sync: &Value| sync["rooms"]["leave"].get(&room).map(|_| ());
    until(&zoe, &mut since, left).await;
    let sync = zoe.sync("").await;
    assert_eq!(sync["rooms"]["invite"].get(&room), None);
}

#[tokio::test]
async fn who_was_away_catches_up_and_both_go_on() {
    let (one, two) = tokio::join!(TestServer::federated(), TestServer::federated());
    let alice = one.register("alice").await;
    let (room, name, zoe_id) = {
        let zoe = two.register("zoe").await;
        let room = shared_room(&alice, &zoe).await;
        let mut since = next(&zoe).await;
        alice.say(&room, "before").await;
        hears(&zoe, &mut since, &room, "before").await;
        (room, two.name().to_owned(), zoe.id.clone())
    };
    // It is away while this is said.
    let (config, directory) = two.stop().await;
    for text in 0..30 {
        alice.say(&room, &text.to_string()).await;
    }
    let failing = || one.app.bus.outgoing.failing().contains(&name);
    let wait = async {
        while !failing() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let wait = tokio::time::timeout(Duration::from_secs(30), wait).await;
    wait.expect("the other server cannot be reached");
    let two = TestServer::run(config, directory).await;
    let zoe = two.login("zoe", crate::server::PASSWORD, json!({})).await;
    let zoe = User::new(&two, &zoe.ok());
    assert_eq!(zoe.id, zoe_id);
    // What the other says brings back what it has missed.
    one.app.clock.advance(Duration::from_secs(5));
    let mut since = next(&alice).await;
    zoe.say(&room, "I am back").await;
    hears(&alice, &mut since, &room, "I am back").await;
    let mut since = next(&zoe).await;
    alice.say(&room, "welcome").await;
    hears(&zoe, &mut since, &room, "welcome").await;
    let path = format!("/rooms/{room}/messages?dir=b&limit=100");
    let page = zoe.get(&path).await.ok();
    let events = page["chunk"].as_array().unwrap();
    let mut bodies = events
        .iter()
        .filter_map(|event| event["content"]["body"].as_str());
    for text in 0..30 {
        let text = text.to_string();
        assert!(bodies.clone().any(|body| body == text), "{text} is missing");
    }
    assert!(bodies.any(|body| body == "welcome"));
}
