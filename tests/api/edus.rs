//! What other servers say that is not kept: typing, receipts, presence.

use homing::server_server::edus;
use ruma::{ServerName, serde::Raw};
use serde_json::{Value, json};

use crate::{
    fake_room::FakeRoom,
    fake_server::FakeServer,
    outbound::has_joined,
    server::{TestServer, User},
};

const ORIGIN: &str = "other.example";
const ZOE: &str = "@zoe:other.example";

/// What another server says in one transaction.
async fn say(server: &TestServer, origin: &str, edu_type: &str, content: Value) {
    let edu = json!({ "edu_type": edu_type, "content": content });
    let edu = Raw::new(&edu).unwrap().cast_unchecked();
    let origin = <&ServerName>::try_from(origin).unwrap();
    edus::receive(&server.app, origin, &[edu]).await.unwrap();
}

/// A person in a room with somebody of another server.
async fn shared(server: &TestServer) -> (User<'_>, String) {
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    has_joined(server, &room, ZOE).await;
    (alice, room)
}

async fn next(user: &User<'_>) -> String {
    let sync = user.sync("").await;
    sync["next_batch"].as_str().unwrap().to_owned()
}

/// What a sync says of a type of ephemeral event.
fn ephemeral(sync: &Value, room: &str, event_type: &str) -> Option<Value> {
    let events = sync["rooms"]["join"][room]["ephemeral"]["events"].as_array()?;
    let event = events.iter().find(|event| event["type"] == event_type)?;
    Some(event["content"].clone())
}

#[tokio::test]
async fn members_on_other_servers_type() {
    let server = TestServer::federated().await;
    let (alice, room) = shared(&server).await;
    let typing =
        |user: &str, typing: bool| json!({ "room_id": room, "user_id": user, "typing": typing });
    let since = next(&alice).await;
    // Not a member, not theirs, no room, nonsense.
    say(
        &server,
        ORIGIN,
        "m.typing",
        typing("@yan:other.example", true),
    )
    .await;
    say(&server, "third.example", "m.typing", typing(ZOE, true)).await;
    say(&server, ORIGIN, "m.typing", typing(&alice.id, true)).await;
    say(
        &server,
        ORIGIN,
        "m.typing",
        json!({ "room_id": "!no:where.org", "user_id": ZOE, "typing": true }),
    )
    .await;
    say(&server, ORIGIN, "m.typing", json!({ "room_id": 5 })).await;
    say(&server, ORIGIN, "org.example.unknown", json!({ "a": [] })).await;
    let sync = alice.sync(&format!("since={since}")).await;
    assert_eq!(ephemeral(&sync, &room, "m.typing"), None);

    say(&server, ORIGIN, "m.typing", typing(ZOE, true)).await;
    let sync = alice.sync(&format!("since={since}&timeout=10000")).await;
    let said = ephemeral(&sync, &room, "m.typing").unwrap();
    assert_eq!(said["user_ids"], json!([ZOE]));
    let since = sync["next_batch"].as_str().unwrap();
    say(&server, ORIGIN, "m.typing", typing(ZOE, false)).await;
    let sync = alice.sync(&format!("since={since}&timeout=10000")).await;
    let said = ephemeral(&sync, &room, "m.typing").unwrap();
    assert_eq!(said["user_ids"], json!([]));
}

#[tokio::test]
async fn receipts_of_members_on_other_servers_are_kept() {
    let server = TestServer::federated().await;
    let (alice, room) = shared(&server).await;
    let (first, second) = (alice.say(&room, "one").await, alice.say(&room, "two").await);
    let since = next(&alice).await;
    let read = |user: &str, event: &str| json!({ &room: { "m.read": { user: { "data": { "ts": 7 }, "event_ids": [event] } } } });
    say(
        &server,
        ORIGIN,
        "m.receipt",
        read("@yan:other.example", &second),
    )
    .await;
    say(&server, ORIGIN, "m.receipt", read(ZOE, "$unknown")).await;
    say(&server, "third.example", "m.receipt", read(ZOE, &second)).await;
    let sync = alice.sync(&format!("since={since}")).await;
    assert_eq!(ephemeral(&sync, &room, "m.receipt"), None);

    say(&server, ORIGIN, "m.receipt", read(ZOE, &second)).await;
    let sync = alice.sync(&format!("since={since}")).await;
    let said = ephemeral(&sync, &room, "m.receipt").unwrap();
    let expected = json!({ &second: { "m.read": { ZOE: { "ts": 7 } } } });
    assert_eq!(said, expected);
    let since = sync["next_batch"].as_str().unwrap().to_owned();
    say(&server, ORIGIN, "m.receipt", read(ZOE, &first)).await;
    let sync = alice.sync(&format!("since={since}")).await;
    assert_eq!(ephemeral(&sync, &room, "m.receipt"), None, "never back");
}

#[tokio::test]
async fn who_shares_no_room_with_anybody_has_no_presence() {
    let server = TestServer::federated().await;
    let (alice, _) = shared(&server).await;
    let since = next(&alice).await;
    let presence = |user: &str, state: &str| {
        let said = json!({
            "user_id": user, "presence": state, "last_active_ago": 5000, "status_msg": "away soon",
            "currently_active": true,
        });
        let broken = json!({ "user_id": ZOE, "presence": "offline", "last_active_ago": -1 });
        json!({ "push": [broken, said] })
    };
    say(
        &server,
        ORIGIN,
        "m.presence",
        presence("@yan:other.example", "online"),
    )
    .await;
    say(
        &server,
        "third.example",
        "m.presence",
        presence(ZOE, "online"),
    )
    .await;
    say(&server, ORIGIN, "m.presence", presence(ZOE, "somewhere")).await;
    let of_zoe = |sync: &Value| {
        let events = sync["presence"]["events"].as_array().cloned();
        let mut events = events.unwrap_or_default().into_iter();
        events.find(|event| event["sender"] == ZOE)
    };
    let sync = alice.sync(&format!("since={since}")).await;
    assert_eq!(of_zoe(&sync), None);

    say(&server, ORIGIN, "m.presence", presence(ZOE, "online")).await;
    for sync in [format!("since={since}&timeout=10000"), String::new()] {
        let said = of_zoe(&alice.sync(&sync).await).unwrap();
        assert_eq!(said["content"]["presence"], "online");
        assert_eq!(said["content"]["status_msg"], "away soon");
        assert_eq!(said["content"]["currently_active"], true);
        assert!(said["content"]["last_active_ago"].as_i64().unwrap() >= 5000);
    }
    let path = format!("/presence/{ZOE}/status");
    let status = alice.get(&path).await.ok();
    assert_eq!(status["presence"], "online");

    let since = next(&alice).await;
    server.app.clock.advance(std::time::Duration::from_mins(31));
    homing::presence::tick(&server.app).await.unwrap();
    let sync = alice.sync(&format!("since={since}")).await;
    assert_eq!(of_zoe(&sync).unwrap()["content"]["presence"], "offline");
}

#[tokio::test]
async fn what_is_said_by_a_server_that_is_kept_out_does_not_count() {
    let server = TestServer::federated().await;
    let (alice, room) = shared(&server).await;
    let path = format!("/rooms/{room}/state/m.room.server_acl");
    let acl = json!({ "allow": ["*"], "deny": [ORIGIN] });
    alice.put(&path, acl).await.ok();
    let since = next(&alice).await;
    let event = alice.say(&room, "one").await;
    let typing = json!({ "room_id": room, "user_id": ZOE, "typing": true });
    say(&server, ORIGIN, "m.typing", typing.clone()).await;
    let read = json!({ &room: { "m.read": { ZOE: { "data": {}, "event_ids": [event] } } } });
    say(&server, ORIGIN, "m.receipt", read).await;
    let sync = alice.sync(&format!("since={since}")).await;
    assert_eq!(ephemeral(&sync, &room, "m.typing"), None);
    assert_eq!(ephemeral(&sync, &room, "m.receipt"), None);
    alice.put(&path, json!({ "allow": ["*"] })).await.ok();
    say(&server, ORIGIN, "m.typing", typing).await;
    let sync = alice.sync(&format!("since={since}")).await;
    assert!(ephemeral(&sync, &room, "m.typing").is_some());
}

#[tokio::test]
async fn a_receipt_that_comes_before_its_event_waits_for_it() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let id = alice.create_room(json!({ "preset": "public_chat" })).await;
    let mut room = FakeRoom::join(&fake, &server, &id).await;
    let late = room.sign(&fake, room.message("late"));
    room.follow(&late);
    let since = next(&alice).await;
    let said = json!({ &id: { "m.read": { room.user.as_str(): {
        "data": { "ts": 5 }, "event_ids": [late.event_id],
    } } } });
    say(&server, fake.name.as_str(), "m.receipt", said).await;
    room.send(&fake, &server, &[&late]).await.ok();
    let sync = alice.sync(&format!("since={since}")).await;
    let said = ephemeral(&sync, &id, "m.receipt").unwrap();
    let ts = &said[late.event_id.as_str()]["m.read"][room.user.as_str()]["ts"];
    assert_eq!(*ts, 5);
}
