use homing::{
    log::Change,
    storage::{self, UserNid, profiles},
};

use ruma::RoomId;
use serde_json::json;

use crate::server::TestServer;

#[tokio::test]
async fn writes_of_a_change_are_made_in_their_order() {
    let server = TestServer::start().await;
    let app = &server.app;
    let user = UserNid(app.log.new_id().unwrap());
    let mut change = Change::new();
    change
        .write(profiles::set(user, "org.example.gone", "1", None))
        .write(profiles::delete(user, "org.example.gone"))
        .write(profiles::delete(user, "org.example.there"))
        .write(profiles::set(user, "org.example.there", "2", None));
    app.log.append(change).await.unwrap();
    let fields = profiles::get(&app.db, user).await.unwrap();
    assert_eq!(fields, [("org.example.there".to_owned(), "2".to_owned())]);
}

#[tokio::test]
async fn an_idle_database_has_an_empty_log() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    let event = alice.say(&room, "kept").await;
    server.app.db.tend(false).await.unwrap();
    server.app.db.tend(true).await.unwrap();
    let log = server.app.config.data_dir.join("homing.db-wal");
    if std::env::var("TEST_POSTGRES").is_err() {
        assert_eq!(std::fs::metadata(log).unwrap().len(), 0);
    }
    let kept = alice.get(&format!("/rooms/{room}/event/{event}")).await;
    assert_eq!(kept.ok()["content"]["body"], "kept");
}

#[tokio::test]
async fn a_refused_change_is_no_failure_of_the_database() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    let path = "/directory/room/%23taken:localhost";
    let body = json!({ "room_id": room });
    alice.put(path, body.clone()).await.ok();
    alice.put(path, body).await.fails(409, "M_UNKNOWN");
    assert!(!server.app.log.is_failing());
    let health = format!("http://{}/health", server.address);
    assert_eq!(server.http.get(health).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn what_builds_on_a_refused_change_is_refused_with_it() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let id = alice.create_room(json!({})).await;
    let room = RoomId::parse(&id).unwrap();
    let room = server.app.room(&room).await.unwrap();
    for _ in 0..20 {
        alice.say(&id, "before").await;
        let old = room.head.lock().await.clone();
        alice.say(&id, "committed").await;
        // The next ones are computed as if that were still on its way; some of them build on others that are refused.
        *room.head.lock().await = old;
        let say = || alice.say(&id, "at once");
        tokio::join!(say(), say(), say(), say(), say(), say());
    }
    let path = format!("/rooms/{id}/messages?dir=b&limit=1000");
    let page = alice.get(&path).await.ok();
    let said = page["chunk"].as_array().unwrap().iter();
    let said: Vec<_> = said
        .map(|event| event["event_id"].as_str().unwrap().to_owned())
        .collect();
    let known = storage::events::by_ids(&server.app.db, room.rules, room.nid, said.clone());
    for event in known.await.unwrap() {
        for id in &event.pdu.prev_events {
            assert!(said.iter().any(|said| said == id), "{id} is not there");
        }
    }
}
