//! "Receipts", "Fully read markers", and the unread counts that they reset.

use serde_json::{Value, json};

use crate::server::{TestServer, User};

struct Talk<'s> {
    alice: User<'s>,
    bob: User<'s>,
    room: String,
}

impl<'s> Talk<'s> {
    async fn start(server: &'s TestServer) -> Self {
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let room = alice
            .create_room(json!({ "preset": "trusted_private_chat", "invite": [bob.id] }))
            .await;
        bob.post(&format!("/join/{room}"), json!({})).await.ok();
        Self { alice, bob, room }
    }

    async fn read(&self, who: &User<'_>, kind: &str, event: &str, body: Value) {
        let path = format!("/rooms/{}/receipt/{kind}/{event}", self.room);
        who.post(&path, body).await.ok();
    }

    /// Says something in a thread.
    async fn reply(&self, who: &User<'_>, root: &str, text: &str) -> String {
        let path = format!("/rooms/{}/send/m.room.message/{text}", self.room);
        let body = json!({
            "msgtype": "m.text", "body": text,
            "m.relates_to": { "rel_type": "m.thread", "event_id": root }
        });
        let answer = who.put(&path, body).await.ok();
        answer["event_id"].as_str().unwrap().to_owned()
    }

    /// What is unread: without threads asked for, of the room alone, and of each thread.
    async fn unread(&self, who: &User<'_>) -> (i64, i64, Value) {
        let count = |sync: &Value| {
            let room = &sync["rooms"]["join"][&self.room];
            let unread = &room["unread_notifications"]["notification_count"];
            let threads = room["unread_thread_notifications"].clone();
            (unread.as_i64().unwrap(), threads)
        };
        let (all, _) = count(&who.sync("").await);
        let filter = "filter=%7B%22room%22:%7B%22timeline%22:%7B%22unread_thread_notifications%22:true%7D%7D%7D";
        let (main, threads) = count(&who.sync(filter).await);
        (all, main, threads)
    }

    async fn next(&self, who: &User<'_>) -> String {
        who.sync("").await["next_batch"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// The receipts that a sync tells.
    async fn receipts(&self, who: &User<'_>, since: &str) -> Vec<Value> {
        let sync = who.sync(&format!("since={since}")).await;
        let events = &sync["rooms"]["join"][&self.room]["ephemeral"]["events"];
        let events = events.as_array().cloned().unwrap_or_default();
        events
            .into_iter()
            .filter(|event| event["type"] == "m.receipt")
            .map(|event| event["content"].clone())
            .collect()
    }
}

#[tokio::test]
async fn a_receipt_is_told_and_resets_the_count() {
    let server = TestServer::start().await;
    let talk = Talk::start(&server).await;
    let (alice, bob) = (&talk.alice, &talk.bob);
    let first = alice.say(&talk.room, "one").await;
    let second = alice.say(&talk.room, "two").await;
    assert_eq!(talk.unread(bob).await.0, 2);
    let since = talk.next(alice).await;
    talk.read(bob, "m.read", &first, json!({})).await;
    assert_eq!(talk.unread(bob).await.0, 1);
    let told = talk.receipts(alice, &since).await;
    assert!(
        told[0][&first]["m.read"][&bob.id]["ts"].is_i64(),
        "{told:?}"
    );
    talk.read(bob, "m.read", &second, json!({})).await;
    assert_eq!(talk.unread(bob).await.0, 0);
    // Only forwards.
    let since = talk.next(alice).await;
    talk.read(bob, "m.read", &first, json!({})).await;
    talk.read(bob, "m.read", &second, json!({})).await;
    assert_eq!(talk.unread(bob).await.0, 0);
    assert!(talk.receipts(alice, &since).await.is_empty());
    // One's own messages are read.
    bob.say(&talk.room, "mine").await;
    assert_eq!(talk.unread(bob).await.0, 0);
    assert_eq!(talk.unread(alice).await.0, 1);
}

#[tokio::test]
async fn a_private_receipt_is_told_to_its_user_alone() {
    let server = TestServer::start().await;
    let talk = Talk::start(&server).await;
    let (alice, bob) = (&talk.alice, &talk.bob);
    let event = alice.say(&talk.room, "one").await;
    let (of_alice, of_bob) = (talk.next(alice).await, talk.next(bob).await);
    talk.read(bob, "m.read.private", &event, json!({})).await;
    assert!(talk.receipts(alice, &of_alice).await.is_empty());
    let told = talk.receipts(bob, &of_bob).await;
    assert!(told[0][&event]["m.read.private"][&bob.id].is_object());
    assert_eq!(talk.unread(bob).await.0, 0);
    let initial = alice.sync("").await.to_string();
    assert!(!initial.contains("m.read.private"));
}

#[tokio::test]
async fn threads_are_read_one_by_one_or_all_at_once() {
    let server = TestServer::start().await;
    let talk = Talk::start(&server).await;
    let (alice, bob) = (&talk.alice, &talk.bob);
    let root = alice.say(&talk.room, "root").await;
    let first = talk.reply(alice, &root, "t1").await;
    talk.reply(alice, &root, "t2").await;
    let other = alice.say(&talk.room, "other").await;
    talk.reply(alice, &other, "u1").await;
    let one = |count| json!({ "highlight_count": 0, "notification_count": count });
    assert_eq!(
        talk.unread(bob).await,
        (5, 2, json!({ &root: one(2), &other: one(1) }))
    );
    // A thread alone.
    talk.read(bob, "m.read", &first, json!({ "thread_id": root }))
        .await;
    assert_eq!(
        talk.unread(bob).await,
        (4, 2, json!({ &root: one(1), &other: one(1) }))
    );
    // What is in no thread.
    talk.read(bob, "m.read", &other, json!({ "thread_id": "main" }))
        .await;
    assert_eq!(
        talk.unread(bob).await,
        (2, 0, json!({ &root: one(1), &other: one(1) }))
    );
    // One's own words in a thread are not unread, those of others before are.
    talk.reply(bob, &other, "u2").await;
    assert_eq!(talk.unread(bob).await.0, 2);
    // Everything.
    let last = alice.say(&talk.room, "last").await;
    talk.read(bob, "m.read", &last, json!({})).await;
    assert_eq!(talk.unread(bob).await, (0, 0, Value::Null));
    // A thread goes on that was read as part of everything.
    talk.reply(alice, &root, "t3").await;
    assert_eq!(talk.unread(bob).await, (1, 0, json!({ &root: one(1) })));
    talk.reply(bob, &root, "t4").await;
    assert_eq!(talk.unread(bob).await, (1, 0, json!({ &root: one(1) })));
}

#[tokio::test]
async fn counts_survive_a_restart() {
    let server = TestServer::start().await;
    let (token, room, root) = {
        let talk = Talk::start(&server).await;
        let root = talk.alice.say(&talk.room, "root").await;
        let read = talk.reply(&talk.alice, &root, "t1").await;
        talk.read(&talk.bob, "m.read", &read, json!({})).await;
        talk.reply(&talk.alice, &root, "t2").await;
        talk.alice.say(&talk.room, "more").await;
        (talk.bob.token.clone(), talk.room.clone(), root)
    };
    let server = server.restart().await;
    let path = "/_matrix/client/v3/sync?filter=%7B%22room%22:%7B%22timeline%22:%7B%22unread_thread_notifications%22:true%7D%7D%7D";
    let sync = server
        .request(reqwest::Method::GET, path, Some(&token), None)
        .await
        .ok();
    let room = &sync["rooms"]["join"][&room];
    assert_eq!(room["unread_notifications"]["notification_count"], 1);
    assert_eq!(
        room["unread_thread_notifications"][&root]["notification_count"],
        1
    );
}

#[tokio::test]
async fn threaded_receipts_name_their_thread() {
    let server = TestServer::start().await;
    let talk = Talk::start(&server).await;
    let (alice, bob) = (&talk.alice, &talk.bob);
    let root = alice.say(&talk.room, "root").await;
    let reply = talk.reply(alice, &root, "t1").await;
    let since = talk.next(alice).await;
    talk.read(bob, "m.read", &reply, json!({ "thread_id": root }))
        .await;
    talk.read(bob, "m.read", &root, json!({ "thread_id": "main" }))
        .await;
    // At the same event for another part of the room.
    talk.read(bob, "m.read", &reply, json!({})).await;
    let told = talk.receipts(alice, &since).await;
    assert_eq!(told.len(), 2, "{told:?}");
    let threads: Vec<_> = told
        .iter()
        .filter_map(|content| content.get(&reply))
        .map(|event| event["m.read"][&bob.id]["thread_id"].as_str())
        .collect();
    assert!(
        threads.contains(&None) && threads.contains(&Some(&*root)),
        "{told:?}"
    );
    let main = told.iter().find_map(|content| content.get(&root));
    assert_eq!(main.unwrap()["m.read"][&bob.id]["thread_id"], "main");
}

#[tokio::test]
async fn what_relates_to_the_root_is_read_with_the_thread() {
    let server = TestServer::start().await;
    let talk = Talk::start(&server).await;
    let (alice, bob) = (&talk.alice, &talk.bob);
    let root = alice.say(&talk.room, "root").await;
    talk.reply(alice, &root, "t1").await;
    let related = async |to: &str, rel_type: &str| {
        let content =
            json!({ "m.relates_to": { "rel_type": rel_type, "event_id": to, "key": "+" } });
        let path = format!(
            "/rooms/{}/send/m.reaction/{}",
            talk.room,
            rand::random::<u64>()
        );
        alice.put(&path, content).await.ok()["event_id"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let reference = related(&root, "m.reference").await;
    let annotation = related(&reference, "m.annotation").await;
    let since = talk.next(alice).await;
    talk.read(bob, "m.read", &annotation, json!({ "thread_id": root }))
        .await;
    let told = talk.receipts(alice, &since).await;
    assert_eq!(
        told[0][&annotation]["m.read"][&bob.id]["thread_id"],
        root.as_str()
    );

    let mut far = annotation;
    for _ in 0..4 {
        far = related(&far, "m.reference").await;
    }
    let path = format!("/rooms/{}/receipt/m.read/{far}", talk.room);
    let refused = bob.post(&path, json!({ "thread_id": root })).await;
    refused.fails(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn bad_receipts_are_refused() {
    let server = TestServer::start().await;
    let talk = Talk::start(&server).await;
    let event = talk.alice.say(&talk.room, "one").await;
    let reply = talk.reply(&talk.alice, &event, "t1").await;
    let outsider = server.register("eve").await;
    let path = |kind: &str, event: &str| format!("/rooms/{}/receipt/{kind}/{event}", talk.room);
    for (path, body) in [
        (path("m.other", &event), json!({})),
        (path("m.fully_read", &event), json!({ "thread_id": "main" })),
        (path("m.read", &event), json!({ "thread_id": "" })),
        (path("m.read", &event), json!({ "thread_id": "other" })),
        (path("m.read", &event), json!({ "thread_id": reply })),
        (path("m.read", &reply), json!({ "thread_id": "main" })),
        (path("m.read", "nonsense"), json!({})),
    ] {
        let answer = talk.bob.post(&path, body.clone()).await;
        assert_eq!(answer.status, 400, "{path} {body}: {}", answer.body);
    }
    let bad = talk
        .bob
        .post(&path("m.read", &event), json!({ "thread_id": 1 }))
        .await;
    assert_eq!(bad.status, 400);
    outsider
        .post(&path("m.read", &event), json!({}))
        .await
        .fails(403, "M_FORBIDDEN");
    // An event that is not known here changes nothing.
    talk.read(&talk.bob, "m.read", "$unknown:example.org", json!({}))
        .await;
    assert_eq!(talk.unread(&talk.bob).await.0, 2);
}

#[tokio::test]
async fn read_markers_set_all_marks_at_once() {
    let server = TestServer::start().await;
    let talk = Talk::start(&server).await;
    let (alice, bob) = (&talk.alice, &talk.bob);
    let first = alice.say(&talk.room, "one").await;
    let second = alice.say(&talk.room, "two").await;
    let (of_alice, of_bob) = (talk.next(alice).await, talk.next(bob).await);
    let path = format!("/rooms/{}/read_markers", talk.room);
    let body = json!({ "m.fully_read": first, "m.read": second, "m.read.private": second });
    bob.post(&path, body).await.ok();
    assert_eq!(talk.unread(bob).await.0, 0);
    let sync = bob.sync(&format!("since={of_bob}")).await;
    let data = &sync["rooms"]["join"][&talk.room]["account_data"]["events"];
    assert_eq!(
        data,
        &json!([{ "type": "m.fully_read", "content": { "event_id": first } }])
    );
    let told = talk.receipts(alice, &of_alice).await;
    assert!(told[0][&second]["m.read"][&bob.id].is_object());
    assert!(told[0][&second].get("m.read.private").is_none());
    // The mark does not go back.
    let since = talk.next(bob).await;
    bob.post(&path, json!({ "m.fully_read": second }))
        .await
        .ok();
    talk.read(bob, "m.fully_read", &first, json!({})).await;
    let sync = bob.sync(&format!("since={since}")).await;
    let data = &sync["rooms"]["join"][&talk.room]["account_data"]["events"];
    assert_eq!(data[0]["content"]["event_id"], json!(second));
    assert_eq!(data.as_array().map(Vec::len), Some(1));
}
