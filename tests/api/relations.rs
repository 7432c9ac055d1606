//! "Relationships API", "Aggregations of child events" and "Querying threads in a room".

use serde_json::{Value, json};

use crate::{
    messages::bodies,
    server::{TestServer, User},
};

async fn send(user: &User<'_>, room: &str, content: Value) -> String {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let txn = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let event_type = if content.get("body").is_some() {
        "m.room.message"
    } else {
        "m.reaction"
    };
    let path = format!("/rooms/{room}/send/{event_type}/rel{txn}");
    let answer = user.put(&path, content).await.ok();
    answer["event_id"].as_str().unwrap().to_owned()
}

async fn relate(user: &User<'_>, room: &str, to: &str, rel_type: &str, body: &str) -> String {
    let relation = json!({ "rel_type": rel_type, "event_id": to });
    let content = json!({ "msgtype": "m.text", "body": body, "m.relates_to": relation });
    send(user, room, content).await
}

async fn edit(user: &User<'_>, room: &str, event: &str, body: &str) -> String {
    let content = json!({
        "msgtype": "m.text", "body": format!("* {body}"),
        "m.new_content": { "msgtype": "m.text", "body": body },
        "m.relates_to": { "rel_type": "m.replace", "event_id": event },
    });
    send(user, room, content).await
}

/// Fills memory with other events, so that what came before has to be read from the database.
async fn bury(user: &User<'_>, room: &str) {
    for _ in 0..40 {
        user.say(room, "later").await;
    }
}

async fn relations_of(user: &User<'_>, room: &str, event: &str) -> Value {
    let event = user.get(&format!("/rooms/{room}/event/{event}")).await.ok();
    event["unsigned"]["m.relations"].clone()
}

async fn conversation(server: &TestServer) -> (User<'_>, User<'_>, String) {
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    (alice, bob, room)
}

#[tokio::test]
async fn the_latest_valid_edit_comes_with_the_event() {
    let server = TestServer::start().await;
    let (alice, bob, room) = conversation(&server).await;
    let id = alice.say(&room, "helo").await;
    assert_eq!(relations_of(&alice, &room, &id).await, Value::Null);
    edit(&alice, &room, &id, "hallo").await;
    let latest = edit(&alice, &room, &id, "hello").await;
    edit(&bob, &room, &id, "not yours").await;
    // No new content, so no edit.
    relate(&alice, &room, &id, "m.replace", "broken").await;
    for _ in 0..2 {
        let relations = relations_of(&bob, &room, &id).await;
        assert_eq!(relations["m.replace"]["event_id"], latest);
        let new = &relations["m.replace"]["content"]["m.new_content"];
        assert_eq!(new["body"], "hello");
        bury(&alice, &room).await;
    }
    let event = alice.get(&format!("/rooms/{room}/event/{id}")).await.ok();
    assert_eq!(event["content"]["body"], "helo");
    let redact = format!("/rooms/{room}/redact/{latest}/r1");
    alice.put(&redact, json!({})).await.ok();
    let relations = relations_of(&bob, &room, &id).await;
    let new = &relations["m.replace"]["content"]["m.new_content"];
    assert_eq!(new["body"], "hallo");
    let redact = format!("/rooms/{room}/redact/{id}/r2");
    alice.put(&redact, json!({})).await.ok();
    assert_eq!(relations_of(&bob, &room, &id).await, Value::Null);
}

#[tokio::test]
async fn threads_and_references_come_with_the_event() {
    let server = TestServer::start().await;
    let (alice, bob, room) = conversation(&server).await;
    let parent = alice.say(&room, "root").await;
    relate(&bob, &room, &parent, "m.thread", "one").await;
    let last = relate(&bob, &room, &parent, "m.thread", "two").await;
    edit(&bob, &room, &last, "two, edited").await;
    let reference = relate(&bob, &room, &parent, "m.reference", "see there").await;
    let carol = server.register("carol").await;
    carol.post(&format!("/join/{room}"), json!({})).await.ok();
    for _ in 0..2 {
        for (user, participated) in [(&alice, true), (&bob, true), (&carol, false)] {
            let relations = relations_of(user, &room, &parent).await;
            let thread = &relations["m.thread"];
            assert_eq!(thread["count"], 2);
            assert_eq!(thread["current_user_participated"], participated);
            let latest = &thread["latest_event"];
            assert_eq!(latest["event_id"], last);
            assert_eq!(latest["room_id"], room);
            let edited = &latest["unsigned"]["m.relations"]["m.replace"]["content"];
            assert_eq!(edited["m.new_content"]["body"], "two, edited");
            let chunk = json!([{ "event_id": reference }]);
            assert_eq!(relations["m.reference"]["chunk"], chunk);
        }
        bury(&alice, &room).await;
    }
    // What the ignored say does not count.
    let path = format!("/user/{}/account_data/m.ignored_user_list", carol.id);
    let ids = json!({ "ignored_users": { &bob.id: {} } });
    carol.put(&path, ids).await.ok();
    assert_eq!(relations_of(&carol, &room, &parent).await, Value::Null);
}

#[tokio::test]
async fn those_who_left_are_not_told_of_later_children() {
    let server = TestServer::start().await;
    let (alice, bob, room) = conversation(&server).await;
    let parent = alice.say(&room, "root").await;
    let seen = relate(&alice, &room, &parent, "m.thread", "seen").await;
    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    relate(&alice, &room, &parent, "m.thread", "unseen").await;
    edit(&alice, &room, &parent, "unseen").await;
    for _ in 0..2 {
        let relations = relations_of(&bob, &room, &parent).await;
        assert_eq!(relations["m.thread"]["latest_event"]["event_id"], seen);
        assert_eq!(relations["m.thread"]["count"], 1);
        assert!(relations.get("m.replace").is_none());
        bury(&alice, &room).await;
    }
}

#[tokio::test]
async fn children_are_listed() {
    let server = TestServer::start().await;
    let (alice, bob, room) = conversation(&server).await;
    let parent = alice.say(&room, "root").await;
    for number in 0..5 {
        relate(&bob, &room, &parent, "m.thread", &format!("t{number}")).await;
    }
    let child = relate(&alice, &room, &parent, "m.reference", "ref").await;
    let reaction =
        json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": child, "key": "+" } });
    let reaction = send(&bob, &room, reaction).await;
    let base = format!("/_matrix/client/v1/rooms/{room}/relations/{parent}");
    let all = alice.get(&base).await.ok();
    assert_eq!(bodies(&all["chunk"]), ["ref", "t4", "t3", "t2", "t1", "t0"]);
    assert!(all.get("next_batch").is_none() && all.get("recursion_depth").is_none());
    let only = alice.get(&format!("{base}/m.reference")).await.ok();
    assert_eq!(bodies(&only["chunk"]), ["ref"]);
    let typed = alice
        .get(&format!("{base}/m.thread/m.room.message?dir=f"))
        .await
        .ok();
    assert_eq!(bodies(&typed["chunk"]), ["t0", "t1", "t2", "t3", "t4"]);
    let typed = alice
        .get(&format!("{base}/m.thread/chat.homing.none"))
        .await
        .ok();
    assert_eq!(typed["chunk"], json!([]));
    for (dir, expected) in [
        ("b", ["t4", "t3", "t2", "t1"]),
        ("f", ["t0", "t1", "t2", "t3"]),
    ] {
        let path = format!("{base}/m.thread?limit=2&dir={dir}");
        let first = alice.get(&path).await.ok();
        assert_eq!(bodies(&first["chunk"]), expected[..2]);
        let from = first["next_batch"].as_str().unwrap();
        let second = alice.get(&format!("{path}&from={from}")).await.ok();
        assert_eq!(bodies(&second["chunk"]), expected[2..]);
    }
    let recursed = alice.get(&format!("{base}?recurse=true")).await.ok();
    assert_eq!(recursed["recursion_depth"], 3);
    assert_eq!(recursed["chunk"].as_array().unwrap().len(), 7);
    assert_eq!(recursed["chunk"][0]["event_id"], reaction);
    let narrow = alice
        .get(&format!("{base}/m.thread?recurse=true"))
        .await
        .ok();
    assert_eq!(narrow["chunk"].as_array().unwrap().len(), 5);
    // The reaction is to a reference: only what is answered has to be an annotation.
    let deep = alice
        .get(&format!("{base}/m.annotation?recurse=true"))
        .await
        .ok();
    assert_eq!(deep["chunk"].as_array().unwrap().len(), 1);
    assert_eq!(deep["chunk"][0]["event_id"], reaction);
    let redact = format!("/rooms/{room}/redact/{child}/r");
    alice.put(&redact, json!({})).await.ok();
    let rest = alice.get(&format!("{base}/m.reference")).await.ok();
    assert_eq!(rest["chunk"], json!([]));
    let nothing = format!("/_matrix/client/v1/rooms/{room}/relations/$nothing");
    alice.get(&nothing).await.fails(404, "M_NOT_FOUND");
    alice
        .get(&format!("{base}?from=x"))
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn threads_are_listed_by_their_latest_event() {
    let server = TestServer::start().await;
    let (alice, bob, room) = conversation(&server).await;
    let one = alice.say(&room, "one").await;
    let two = bob.say(&room, "two").await;
    let three = bob.say(&room, "three").await;
    alice.say(&room, "no thread").await;
    let only = relate(&bob, &room, &two, "m.thread", "2a").await;
    relate(&bob, &room, &one, "m.thread", "1a").await;
    relate(&alice, &room, &three, "m.thread", "3a").await;
    relate(&bob, &room, &one, "m.thread", "1b").await;
    let path = format!("/_matrix/client/v1/rooms/{room}/threads");
    let all = alice.get(&path).await.ok();
    assert_eq!(bodies(&all["chunk"]), ["one", "three", "two"]);
    let thread = &all["chunk"][0]["unsigned"]["m.relations"]["m.thread"];
    assert_eq!(thread["latest_event"]["content"]["body"], "1b");
    let own = alice
        .get(&format!("{path}?include=participated"))
        .await
        .ok();
    assert_eq!(bodies(&own["chunk"]), ["one", "three"]);
    let first = alice.get(&format!("{path}?limit=2")).await.ok();
    assert_eq!(bodies(&first["chunk"]), ["one", "three"]);
    let from = first["next_batch"].as_str().unwrap();
    let second = alice.get(&format!("{path}?limit=2&from={from}")).await.ok();
    assert_eq!(bodies(&second["chunk"]), ["two"]);
    assert!(second.get("next_batch").is_none());
    for query in ["from=nonsense", "include=some", "limit=0"] {
        let answer = alice.get(&format!("{path}?{query}")).await;
        answer.fails(400, "M_INVALID_PARAM");
    }
    let redact = format!("/rooms/{room}/redact/{only}/r");
    bob.put(&redact, json!({})).await.ok();
    let left = alice.get(&path).await.ok();
    assert_eq!(bodies(&left["chunk"]), ["one", "three"]);
    // The root of somebody who is ignored stays, without what they said.
    let path = format!("/user/{}/account_data/m.ignored_user_list", alice.id);
    alice
        .put(&path, json!({ "ignored_users": { &bob.id: {} } }))
        .await
        .ok();
    let path = format!("/_matrix/client/v1/rooms/{room}/threads");
    let all = alice.get(&path).await.ok();
    let three = &all["chunk"][1];
    assert_eq!(
        (&three["sender"], &three["content"]),
        (&json!(bob.id), &json!({}))
    );
}
