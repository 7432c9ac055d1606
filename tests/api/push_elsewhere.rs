//! What push gateways are told of events that come from other servers, and what they are not.

use homing_federation::Pdu;
use serde_json::{Value, json};

use crate::{
    fake_room::{FakeRoom, value},
    fake_server::FakeServer,
    hidden_branches::{V1, told_before},
    hidden_events::scene,
    hostile_transactions::shared,
    push_gateway::{Gateway, reachable},
    server::{TestServer, User},
    shared_rooms::sees,
};

async fn server() -> (TestServer, FakeServer, Gateway) {
    let server = TestServer::federated_with(reachable).await;
    (server, FakeServer::start().await, Gateway::start().await)
}

fn said(room: &mut FakeRoom, fake: &FakeServer, content: Value) -> Pdu {
    let draft = room.draft("m.room.message", None, content);
    let pdu = room.sign(fake, draft);
    room.follow(&pdu);
    pdu
}

#[tokio::test]
async fn what_others_say_elsewhere_is_told() {
    let (server, fake, gateway) = server().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let mut room = shared(&alice, &fake, "11").await;
    gateway.set(&alice, "alice").await;
    gateway.set(&bob, "bob").await;
    let plain = said(
        &mut room,
        &fake,
        json!({ "msgtype": "m.text", "body": "hi" }),
    );
    let mention = said(
        &mut room,
        &fake,
        json!({ "msgtype": "m.text", "body": "you", "m.mentions": { "user_ids": [alice.id] } }),
    );
    let notice = said(
        &mut room,
        &fake,
        json!({ "msgtype": "m.notice", "body": "beep" }),
    );
    room.send(&fake, &server, &[&plain, &mention, &notice])
        .await
        .ok();
    let told = gateway.wait_for("alice", mention.event_id.as_str()).await;
    assert_eq!(told["sender"], room.user.as_str());
    assert_eq!(told["content"]["body"], "you");
    assert_eq!(told["devices"][0]["tweaks"]["highlight"], true);
    let ignored = json!({ "ignored_users": { room.user.as_str(): {} } });
    let path = format!("/user/{}/account_data/m.ignored_user_list", alice.id);
    alice.put(&path, ignored).await.ok();
    let late = said(
        &mut room,
        &fake,
        json!({ "msgtype": "m.text", "body": "late" }),
    );
    room.send(&fake, &server, &[&late]).await.ok();
    bob.post(&format!("/join/{}", room.id), json!({}))
        .await
        .ok();
    let last = bob.say(room.id.as_str(), "last").await;
    gateway.wait_for("alice", &last).await;
    let expected = [plain.event_id.as_str(), mention.event_id.as_str(), &last];
    assert_eq!(gateway.events("alice"), expected);
    assert_eq!(gateway.events("bob"), [] as [&str; 0], "he was not there");
}

#[tokio::test]
async fn what_was_refused_is_not_told() {
    let (server, fake, gateway) = server().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    gateway.set(&alice, "alice").await;
    let scene = scene(&server, &fake, &alice).await;
    let id = scene.room.id.as_str();
    bob.post(&format!("/join/{id}"), json!({})).await.ok();
    alice
        .put(
            &format!("/rooms/{id}/state/m.room.power_levels"),
            json!({ "users": { &alice.id: 100 } }),
        )
        .await
        .ok();
    let last = bob.say(id, "last").await;
    gateway.wait_for("alice", &last).await;
    let events = gateway.events("alice");
    for hidden in scene.hidden() {
        assert!(!events.contains(&hidden.event_id.to_string()), "{events:?}");
    }
    for seen in [&scene.last, &scene.after_rejected] {
        assert!(events.contains(&seen.event_id.to_string()), "{events:?}");
    }
}

#[tokio::test]
async fn history_that_is_fetched_is_not_told() {
    let (server, fake, gateway) = server().await;
    let alice = server.register("alice").await;
    gateway.set(&alice, "alice").await;
    let (mut room, _) = told_before(&fake, &alice).await;
    let path = format!("/rooms/{}/messages?dir=b&limit=100", room.id);
    alice.get(&path).await.ok();
    assert_eq!(
        fake.count(&reqwest::Method::GET, &format!("{V1}/backfill/")),
        1
    );
    let join = alice
        .get(&format!("/rooms/{}/state?format=event", room.id))
        .await
        .ok();
    let join = join
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["state_key"] == alice.id.as_str());
    let join = join.unwrap()["event_id"].as_str().unwrap();
    room.latest = vec![join.try_into().unwrap()];
    room.depth += 1;
    let last = room.say(&fake, "last");
    room.send(&fake, &server, &[&last]).await.ok();
    gateway.wait_for("alice", last.event_id.as_str()).await;
    assert_eq!(gateway.events("alice"), [last.event_id.as_str()]);
}

#[tokio::test]
async fn what_was_said_beside_ones_join_is_told_to_those_who_see_it() {
    let (server, fake, gateway) = server().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    gateway.set(&bob, "bob").await;
    for (visibility, is_told) in [("joined", false), ("invited", false), ("shared", true)] {
        let room = alice
            .create_room(json!({
                "preset": "public_chat",
                "initial_state": [{
                    "type": "m.room.history_visibility", "state_key": "",
                    "content": { "history_visibility": visibility },
                }],
            }))
            .await;
        let mut guest = FakeRoom::join(&fake, &server, &room).await;
        bob.post(&format!("/join/{room}"), json!({})).await.ok();
        let content = json!({
            "msgtype": "m.text", "body": "secret", "m.mentions": { "user_ids": [bob.id] },
        });
        let secret = said(&mut guest, &fake, content);
        guest.send(&fake, &server, &[&secret]).await.ok();
        sees(&alice, &room, secret.event_id.as_str()).await;
        let last = alice.say(&room, "last").await;
        gateway.wait_for("bob", &last).await;
        let events = gateway.events("bob");
        assert_eq!(events.last(), Some(&last));
        let was_told = events.contains(&secret.event_id.to_string());
        assert_eq!(was_told, is_told, "{visibility}");
    }
}

async fn invite(room: &FakeRoom, fake: &FakeServer, to: &User<'_>, told: Value) -> Pdu {
    let content = json!({ "membership": "invite" });
    let pdu = room.sign(fake, room.draft("m.room.member", Some(&to.id), content));
    let path = format!("/_matrix/federation/v2/invite/{}/{}", room.id, pdu.event_id);
    let body = json!({
        "room_version": room.version.as_str(), "event": value(&pdu), "invite_room_state": told,
    });
    fake.put(to.server, &path, body).await.ok();
    pdu
}

#[tokio::test]
async fn invites_from_elsewhere_are_told() {
    let (server, fake, gateway) = server().await;
    let alice = server.register("alice").await;
    gateway.set(&alice, "alice").await;
    let room = FakeRoom::create(&fake, "11");
    let state = |kind: &str, key: &str, content: Value| json!({ "type": kind, "sender": room.user, "state_key": key, "content": content });
    let told = json!([
        state("m.room.name", "", json!({ "name": "Elsewhere" })),
        state(
            "m.room.member",
            room.user.as_str(),
            json!({ "membership": "join", "displayname": "M" })
        ),
    ]);
    let event = invite(&room, &fake, &alice, told).await;
    let mut told = gateway.wait_for("alice", event.event_id.as_str()).await;
    told["devices"][0]["pushkey_ts"].take();
    assert_eq!(
        told,
        json!({
            "event_id": event.event_id,
            "room_id": room.id,
            "type": "m.room.member",
            "sender": room.user,
            "sender_display_name": "M",
            "room_name": "Elsewhere",
            "user_is_target": true,
            "content": { "membership": "invite" },
            "prio": "high",
            "counts": { "unread": 1 },
            "devices": [{
                "app_id": "org.example.app", "pushkey": "alice", "pushkey_ts": null,
                "data": {}, "tweaks": { "sound": "default" },
            }],
        })
    );
    // It is found again after a restart.
    gateway.fails(500);
    let other = FakeRoom::create(&fake, "11");
    let second = invite(&other, &fake, &alice, json!([])).await;
    gateway.wait_for("alice", second.event_id.as_str()).await;
    let id = alice.id.clone();
    drop(alice);
    let server = server.restart().await;
    gateway.takes();
    let before = gateway.events("alice").len();
    gateway
        .wait(|_| gateway.events("alice").len() > before)
        .await;
    let events = gateway.events("alice");
    assert_eq!(events.last().unwrap(), second.event_id.as_str());
    assert_eq!(events[0], event.event_id.as_str());
    assert!(!id.is_empty() && server.app.is_local(id.as_str().try_into().unwrap()));
}
