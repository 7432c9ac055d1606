//! Events that could not be taken when they came, and come later after all.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{body::Body, response::IntoResponse as _};
use futures_util::stream;
use homing::{args, sql};
use homing_federation::{Draft, Pdu, SigningKey};
use reqwest::Method;
use ruma::OwnedEventId;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::{
    fake_room::{FakeRoom, outcome, value},
    fake_server::{FakeServer, in_a_day},
    hostile_transactions::{seen, shared},
    server::TestServer,
    shared_rooms::sees,
    walks::walk,
};

const V1: &str = "/_matrix/federation/v1";
const KEYS: &str = "/_matrix/key/v2/server";

/// Tells which events are missing.
fn tells_missing(fake: &FakeServer, events: &[&Pdu]) {
    let events: Vec<Value> = events.iter().map(|pdu| value(pdu)).collect();
    let path = format!("{V1}/get_missing_events/");
    fake.answers(Method::POST, &path, json!({ "events": events }));
}

/// How often an event that waits was tried; `None` if it does not wait.
async fn tries(server: &TestServer, event: &OwnedEventId) -> Option<i64> {
    let query = sql!("SELECT max(attempts) FROM inbound_pdu WHERE event_id = $1");
    let row = server.app.db.one(query, args![event.as_str()]).await;
    row.unwrap().get(0).unwrap()
}

async fn is_waiting(server: &TestServer, event: &OwnedEventId) -> bool {
    tries(server, event).await.is_some()
}

/// Something else that has to wait: when it is sent, what waits already is looked at again.
fn nudge(fake: &FakeServer, room: &FakeRoom) -> Pdu {
    let mut room = room.clone();
    room.user = format!("@mallory:{}", fake.name).try_into().unwrap();
    room.say(fake, "not told");
    room.say(fake, &rand::random::<u64>().to_string())
}

#[tokio::test]
async fn what_was_given_up_comes_with_the_next_event() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    // Days pass.
    let document = fake.key_document(&fake.key, in_a_day() + 30 * 24 * 60 * 60 * 1000);
    fake.answers(Method::GET, KEYS, document);
    let mut room = shared(&alice, &fake, "12").await;
    let nudge = nudge(&fake, &room);
    let before = room.say(&fake, "before");
    let late = room.say(&fake, "late");
    room.send(&fake, &server, &[&late]).await.ok();
    while is_waiting(&server, &late.event_id).await {
        server.app.clock.advance(Duration::from_hours(1));
        // The same each time, so that little stands before what is to come at last.
        room.send(&fake, &server, &[&nudge]).await.ok();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let recorded = fake.recorded().into_iter();
    let asked = recorded.filter(|it| it.body["latest_events"] == json!([late.event_id]));
    let tries = asked.count();
    assert!(tries > 5, "{tries}");
    assert!(seen(&alice, &room, late.event_id.as_str()).await.is_none());
    tells_missing(&fake, &[&before, &late]);
    let next = room.say(&fake, "next");
    room.send(&fake, &server, &[&next]).await.ok();
    sees(&alice, room.id.as_str(), next.event_id.as_str()).await;
    for pdu in [&before, &late] {
        assert!(seen(&alice, &room, pdu.event_id.as_str()).await.is_some());
    }
}

#[tokio::test]
async fn what_somebody_else_brings_while_it_is_asked_for_is_not_waited_for() {
    let server = TestServer::federated().await;
    let (fake, other) = (FakeServer::start().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let mut room = shared(&alice, &fake, "12").await;
    let mut there = FakeRoom::join(&other, &server, room.id.as_str()).await;
    let before = there.say(&other, "before");
    room.follow(&before);
    let late = room.say(&fake, "late");
    let has_come = Arc::new(Notify::new());
    let path = format!("{V1}/get_missing_events/");
    fake.on(Method::POST, &path, {
        let has_come = Arc::clone(&has_come);
        move |_| {
            let has_come = Arc::clone(&has_come);
            // It knows by then what is here, and leaves it out.
            let answer = stream::once(async move {
                has_come.notified().await;
                Ok::<_, Infallible>(r#"{ "events": [] }"#)
            });
            Body::from_stream(answer).into_response()
        }
    });
    room.send(&fake, &server, &[&late]).await.ok();
    fake.wait_for(|it| it.path.starts_with(&path)).await;
    there.send(&other, &server, &[&before]).await.ok();
    has_come.notify_one();
    while let Some(tries) = tries(&server, &late.event_id).await {
        assert_eq!(tries, 0, "it waits for the next try");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(seen(&alice, &room, late.event_id.as_str()).await.is_some());
}

/// Two servers in a room; the second has a new key, which it does not tell.
struct Scene {
    relay: FakeServer,
    owner: FakeServer,
    key: Arc<SigningKey>,
    room: FakeRoom,
}

impl Scene {
    async fn new(server: &TestServer, id: &str) -> Self {
        let (relay, owner) = (FakeServer::start().await, FakeServer::start().await);
        FakeRoom::join(&relay, server, id).await;
        let room = FakeRoom::join(&owner, server, id).await;
        owner.refuses(Method::GET, KEYS, 500, "M_UNKNOWN");
        // What was asked just now is not asked again.
        server.app.clock.advance(Duration::from_mins(1));
        let key = Arc::new(SigningKey::generate(&mut rand::rng()));
        Self {
            relay,
            owner,
            key,
            room,
        }
    }

    /// An event with the new key; the next event follows it.
    fn sign(&mut self, draft: Draft) -> Pdu {
        let pdu = draft.sign(self.room.rules, &self.owner.name, &self.key);
        let pdu = pdu.unwrap();
        self.room.follow(&pdu);
        pdu
    }

    /// Sends an event, whose key is not known.
    async fn is_dropped(&self, server: &TestServer, lost: &Pdu) {
        let answer = self.room.send(&self.relay, server, &[lost]).await.ok();
        assert_eq!(outcome(&answer, lost.event_id.as_str()), Some(true));
        assert!(!is_waiting(server, &lost.event_id).await);
    }

    /// The key is told, and some time passes.
    fn tells_key(&self, server: &TestServer) {
        let document = self.owner.key_document(&self.key, in_a_day());
        self.owner.answers(Method::GET, KEYS, document);
        server.app.clock.advance(Duration::from_hours(2));
    }
}

#[tokio::test]
async fn an_event_without_a_key_comes_when_the_key_is_known() {
    let server = TestServer::federated().await;
    let alice = server.register("alice").await;
    let id = alice.create_room(json!({ "preset": "public_chat" })).await;
    let mut scene = Scene::new(&server, &id).await;
    let user = scene.room.user.to_string();
    let content = json!({ "membership": "join", "displayname": "New" });
    let draft = scene.room.draft("m.room.member", Some(&user), content);
    let lost = scene.sign(draft);
    scene.is_dropped(&server, &lost).await;

    scene.tells_key(&server);
    let draft = scene.room.message("next");
    let next = scene.sign(draft);
    tells_missing(&scene.relay, &[&lost]);
    scene.room.send(&scene.relay, &server, &[&next]).await.ok();
    sees(&alice, &id, next.event_id.as_str()).await;
    sees(&alice, &id, lost.event_id.as_str()).await;
    let path = format!("/rooms/{id}/state/m.room.member/{user}");
    assert_eq!(alice.get(&path).await.ok()["displayname"], "New");
}

#[tokio::test]
async fn a_room_goes_on_without_an_event_whose_key_is_not_known() {
    let server = TestServer::federated().await;
    let alice = server.register("alice").await;
    let id = alice.create_room(json!({ "preset": "public_chat" })).await;
    let mut scene = Scene::new(&server, &id).await;
    let draft = scene.room.message("lost");
    let lost = scene.sign(draft);
    scene.is_dropped(&server, &lost).await;
    tells_missing(&scene.relay, &[&lost]);
    let ids: Vec<_> = scene.room.state.values().map(|pdu| &pdu.event_id).collect();
    let state = json!({ "pdu_ids": ids, "auth_chain_ids": [] });
    let path = format!("{V1}/state_ids/");
    scene.relay.answers(Method::GET, &path, state);
    // The room as the other server has it.
    let mut room = scene.room.clone();
    room.user = format!("@mallory:{}", scene.relay.name).try_into().unwrap();
    let next = room.say(&scene.relay, "next");
    room.send(&scene.relay, &server, &[&next]).await.ok();
    while is_waiting(&server, &next.event_id).await {
        server.app.clock.advance(Duration::from_mins(1));
        let nudge = nudge(&scene.relay, &scene.room);
        room.send(&scene.relay, &server, &[&nudge]).await.ok();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let last = room.say(&scene.relay, "last");
    room.send(&scene.relay, &server, &[&last]).await.ok();
    sees(&alice, &id, last.event_id.as_str()).await;
    assert!(seen(&alice, &room, next.event_id.as_str()).await.is_some());
    assert!(seen(&alice, &room, lost.event_id.as_str()).await.is_none());

    // Once the key is known it is part of the history.
    scene.tells_key(&server);
    let history =
        json!({ "origin": scene.relay.name, "origin_server_ts": 1, "pdus": [value(&lost)] });
    scene
        .relay
        .answers(Method::GET, &format!("{V1}/backfill/"), history);
    let found = walk(&alice, &id, 100).await;
    let place = |event: &Pdu| found.iter().position(|id| *id == *event.event_id);
    assert_eq!(place(&lost).map(|place| place + 1), place(&next));
}
