//! What a message costs, counted ("Hot paths and budgets"): in a room in memory nothing is read, and six rows are written.

use serde_json::json;

use crate::server::TestServer;

#[tokio::test]
async fn a_message_in_a_warm_room_reads_nothing_and_writes_six_rows() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let invite = json!({ "invite": [bob.id], "is_direct": true, "preset": "trusted_private_chat" });
    let room = alice.create_room(invite).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    alice.say(&room, "warm").await;
    bob.say(&room, "warm").await;
    let mut costs = Vec::new();
    for number in 0..5 {
        let before = server.app.db.statistics();
        alice.say(&room, &format!("message {number}")).await;
        let after = server.app.db.statistics();
        costs.push((
            after.reads - before.reads,
            after.rows_written - before.rows_written,
            after.writes - before.writes,
        ));
    }
    // Now and then something else is written beside, as the time when a device was seen.
    let (reads, rows, statements) = costs.into_iter().min().expect("there are five");
    assert_eq!(reads, 0);
    // The event, its JSON, its words for searching, the sender's marker, the room's head, the batch.
    assert_eq!(rows, 6);
    if std::env::var("TEST_POSTGRES").is_ok() {
        assert_eq!(statements, 1, "one round trip");
    }
}

#[tokio::test]
async fn large_messages_do_not_stay_in_memory() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    for _ in 0..8 {
        alice.say(&room, &"long ".repeat(12_000)).await;
    }
    let kept = {
        let id: ruma::OwnedRoomId = room.parse().unwrap();
        let room = server.app.room(&id).await.unwrap();
        room.seen().events.len()
    };
    assert!((1..5).contains(&kept), "{kept} events of 60 kB");
    let sync = alice.sync("").await;
    let timeline = &sync["rooms"]["join"][&room]["timeline"]["events"];
    assert!(timeline.as_array().unwrap().len() >= 8);
}
