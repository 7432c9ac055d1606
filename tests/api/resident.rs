//! A server that is in a room, and others that want in: what they are answered, and what they may get wrong.

use std::collections::BTreeSet;

use homing_federation::received::is_signed_by;
use reqwest::Method;
use ruma::EventId;
use serde_json::{Value, json};

use crate::{
    fake_room::{FakeRoom, pdu, value},
    fake_server::FakeServer,
    server::TestServer,
};

const FEDERATION: &str = "/_matrix/federation";

/// The ids of events.
fn ids(events: &Value, room: &FakeRoom) -> BTreeSet<String> {
    let events = events.as_array().expect("a list").iter();
    let ids: Vec<String> = events
        .map(|event| pdu(event, room.rules).event_id.to_string())
        .collect();
    let set: BTreeSet<String> = ids.iter().cloned().collect();
    assert_eq!(ids.len(), set.len(), "each once");
    set
}

fn texts(list: &Value) -> BTreeSet<String> {
    let list = list.as_array().expect("a list").iter();
    list.map(|id| id.as_str().unwrap().to_owned()).collect()
}

/// More state than is read at once.
const STATE: usize = 600;

#[tokio::test]
async fn a_large_room_is_told_in_pieces() {
    let server = TestServer::federated().await;
    let alice = server.register("alice").await;
    let id = alice.create_room(json!({ "preset": "public_chat" })).await;
    for number in 0..STATE {
        let path = format!("/rooms/{id}/state/org.example/{number}");
        alice.put(&path, json!({})).await.ok();
    }
    let here = alice.get(&format!("/rooms/{id}/state")).await.ok();
    let here: BTreeSet<String> = here
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["event_id"].as_str().unwrap().to_owned())
        .collect();
    assert!(here.len() > STATE);

    let fake = FakeServer::start().await;
    let before = server.app.db.statistics().reads;
    let (room, join, second) = FakeRoom::join_as(&fake, &server, &id, "v2").await;
    let reads = server.app.db.statistics().reads - before;
    assert!(reads < 50, "{reads} statements for {STATE} events");
    assert_eq!(ids(&second["state"], &room), here);
    assert!(ids(&second["auth_chain"], &room).is_subset(&here));
    let signed = pdu(&second["event"], room.rules);
    let signatures = second["event"]["signatures"].as_object().unwrap();
    assert_eq!(signatures.len(), 2);
    assert_eq!(
        signatures[fake.name.as_str()],
        value(&join)["signatures"][fake.name.as_str()]
    );
    let (name, key) = (server.name(), &server.app.signing_key);
    assert!(is_signed_by(
        &signed,
        room.rules,
        name,
        key.id(),
        &key.verify_key()
    ));
    assert_eq!(second["members_omitted"], false);
    assert_eq!(second["origin"], server.name().as_str());

    let path = |what: &str| format!("{FEDERATION}/v1/{what}/{id}?event_id={}", join.event_id);
    let state = fake.get(&server, &path("state")).await.ok();
    assert_eq!(ids(&state["pdus"], &room), here);
    let chain = ids(&state["auth_chain"], &room);
    let state_ids = fake.get(&server, &path("state_ids")).await.ok();
    assert_eq!(texts(&state_ids["pdu_ids"]), here);
    assert_eq!(texts(&state_ids["auth_chain_ids"]), chain);
    let auth = fake
        .get(
            &server,
            &format!("{FEDERATION}/v1/event_auth/{id}/{}", join.event_id),
        )
        .await
        .ok();
    let named: BTreeSet<String> = join.auth_events.iter().map(ToString::to_string).collect();
    assert!(named.is_subset(&ids(&auth["auth_chain"], &room)));

    // The first version has the status in its answer.
    let old = FakeServer::start().await;
    let (_, _, first) = FakeRoom::join_as(&old, &server, &id, "v1").await;
    assert_eq!(first[0], 200);
    assert_eq!(ids(&first[1]["state"], &room).len(), here.len() + 1);
}

#[tokio::test]
async fn a_join_that_is_none_is_not_let_in() {
    let server = TestServer::federated().await;
    let alice = server.register("alice").await;
    let id = alice.create_room(json!({ "preset": "public_chat" })).await;
    let fake = FakeServer::start().await;
    let room = FakeRoom::join(&fake, &server, &id).await;
    let user = room.user.to_string();
    let join = json!({ "membership": "join" });
    let send = async |event: &Value, event_id: &EventId, room: &str| {
        let path = format!("{FEDERATION}/v2/send_join/{room}/{event_id}");
        fake.put(&server, &path, event.clone()).await
    };
    let good = room.sign(
        &fake,
        room.draft("m.room.member", Some(&user), join.clone()),
    );
    let stranger = FakeServer::start().await;
    let mut draft = room.draft("m.room.member", Some(&user), join.clone());
    draft.sender = format!("@x:{}", stranger.name).try_into().unwrap();
    draft.state_key = Some(draft.sender.to_string());
    let foreign = room.sign(&stranger, draft);
    let mut unsigned = value(&good);
    unsigned["signatures"] = json!({ (fake.name.as_str()): { "ed25519:x": "AAAA" } });
    let mut forged = value(&good);
    forged["signatures"][fake.name.as_str()][fake.key.id()] = json!("A".repeat(86));
    let mut bare = value(&good);
    bare["signatures"] = json!({});
    let leave = json!({ "membership": "leave" });
    let leave = room.sign(&fake, room.draft("m.room.member", Some(&user), leave));
    let other = room.sign(&fake, room.draft("m.room.member", Some(&alice.id), join));
    let message = room.sign(&fake, room.message("hello"));
    for (what, event, event_id) in [
        ("foreign", value(&foreign), &foreign.event_id),
        ("unsigned", unsigned, &good.event_id),
        ("forged", forged, &good.event_id),
        ("bare", bare, &good.event_id),
        ("leave", value(&leave), &leave.event_id),
        ("other", value(&other), &other.event_id),
        ("message", value(&message), &message.event_id),
        ("another id", value(&good), &message.event_id),
    ] {
        let answer = send(&event, event_id, &id).await;
        assert_eq!(
            answer.body["errcode"], "M_INVALID_PARAM",
            "{what}: {}",
            answer.body
        );
        assert_eq!(answer.status, 400, "{what}");
    }
    let elsewhere = alice.create_room(json!({ "preset": "public_chat" })).await;
    let answer = send(&value(&good), &good.event_id, &elsewhere).await;
    answer.fails(400, "M_INVALID_PARAM");
    send(&value(&good), &good.event_id, &id).await.ok();
}

#[tokio::test]
async fn invites_of_the_first_version_are_to_rooms_that_are_too_old() {
    let server = TestServer::federated().await;
    let fake = FakeServer::start().await;
    let alice = server.register("alice").await;
    let event = json!({
        "room_id": format!("!r:{}", fake.name), "type": "m.room.member", "state_key": alice.id,
        "sender": format!("@x:{}", fake.name), "content": { "membership": "invite" },
        "origin": fake.name, "origin_server_ts": 1, "event_id": format!("$e:{}", fake.name),
    });
    let path = format!("{FEDERATION}/v1/invite/!r:{0}/$e:{0}", fake.name);
    let refused = fake.put(&server, &path, event).await;
    let refused = refused.fails(400, "M_INCOMPATIBLE_ROOM_VERSION");
    assert_eq!(refused["room_version"], "1");
}

#[tokio::test]
async fn what_another_server_does_not_know_is_told_as_its_failure() {
    let server = TestServer::federated().await;
    let fake = FakeServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    let invite = format!("{FEDERATION}/v2/invite/");
    let zoe = json!({ "user_id": format!("@zoe:{}", fake.name) });
    for (said, told) in [
        ((404, "M_UNRECOGNIZED"), (502, "M_UNKNOWN")),
        ((400, "M_INVALID_PARAM"), (502, "M_UNKNOWN")),
        ((400, "M_MISSING_PARAM"), (502, "M_UNKNOWN")),
        ((403, "M_UNKNOWN_TOKEN"), (502, "M_UNKNOWN")),
        ((403, "M_FORBIDDEN"), (403, "M_FORBIDDEN")),
    ] {
        fake.refuses(Method::PUT, &invite, said.0, said.1);
        let answer = alice
            .post(&format!("/rooms/{room}/invite"), zoe.clone())
            .await;
        answer.fails(told.0, told.1);
    }
    // The first version is for rooms of versions that are not known here.
    assert_eq!(
        fake.count(&Method::PUT, &format!("{FEDERATION}/v1/invite/")),
        0
    );
    let profile = format!("{FEDERATION}/v1/query/profile");
    fake.refuses(Method::GET, &profile, 403, "M_USER_LOCKED");
    let answer = alice.get(&format!("/profile/@zoe:{}", fake.name)).await;
    answer.fails(502, "M_UNKNOWN");
}
