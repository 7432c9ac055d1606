//! Servers that tell as news what happened before somebody here joined a room.

use homing_federation::{Draft, Pdu};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    fake_room::{FakeRoom, outcome, value},
    fake_server::FakeServer,
    server::{TestServer, User},
    shared_rooms::sees,
};

const V1: &str = "/_matrix/federation/v1";

/// A room of a fake server that somebody has joined, and that nobody can join any more.
struct Closed {
    room: FakeRoom,
    /// What happened before, oldest first.
    old: Vec<Pdu>,
}

impl Closed {
    async fn join(fake: &FakeServer, alice: &User<'_>, version: &str) -> Self {
        let mut room = FakeRoom::create(fake, version);
        let mut old: Vec<Pdu> = room.state.values().cloned().collect();
        let topic = json!({ "topic": "old" });
        old.push(room.set(fake, "m.room.topic", "", topic));
        old.push(room.say(fake, "old"));
        old.sort_by_key(|pdu| pdu.depth);
        room.host(fake, |_| {});
        let path = format!("/join/{}?via={}", room.id, fake.name);
        alice.post(&path, json!({})).await.ok();
        let sent = fake.recorded().into_iter().rev();
        let join = sent
            .into_iter()
            .find(|request| request.path.contains("/send_join/"))
            .unwrap();
        room.follow(&crate::fake_room::pdu(&join.body, room.rules));
        let topic = json!({ "topic": "new" });
        let topic = room.set(fake, "m.room.topic", "", topic);
        let rules = json!({ "join_rule": "invite" });
        let rules = room.set(fake, "m.room.join_rules", "", rules);
        let answer = room.send(fake, alice.server, &[&topic, &rules]).await.ok();
        assert_eq!(outcome(&answer, rules.event_id.as_str()), Some(false));
        sees(alice, room.id.as_str(), rules.event_id.as_str()).await;
        Self { room, old }
    }

    /// Makes sure that Alice is where she was, and has been told nothing.
    async fn is_as_before(&self, fake: &FakeServer, alice: &User<'_>, since: &str) {
        let room = &self.room;
        let path = format!("/rooms/{}/state/m.room.topic", room.id);
        assert_eq!(alice.get(&path).await.ok()["topic"], "new");
        let said = alice.say(room.id.as_str(), "here").await;
        let told = alice.get(&format!("/sync?since={since}")).await.ok();
        let timeline = &told["rooms"]["join"][room.id.as_str()]["timeline"]["events"];
        let ids: Vec<&Value> = timeline
            .as_array()
            .unwrap()
            .iter()
            .map(|event| &event["event_id"])
            .collect();
        assert_eq!(ids, [said.as_str()]);
        let told = fake.get(alice.server, &format!("{V1}/event/{said}")).await;
        let prev_events = &told.ok()["pdus"][0]["prev_events"];
        assert_eq!(*prev_events, json!(room.latest));
    }
}

async fn token(user: &User<'_>) -> String {
    let told = user.get("/sync").await.ok();
    told["next_batch"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_was_before_a_join_is_no_news() {
    for version in ["6", "10", "12"] {
        let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
        let alice = server.register("alice").await;
        let closed = Closed::join(&fake, &alice, version).await;
        let (room, since) = (&closed.room, token(&alice).await);
        // It tells of what it sends all that it is asked for.
        let events: Vec<Value> = closed.old.iter().map(value).collect();
        let path = format!("{V1}/get_missing_events/");
        fake.answers(Method::POST, &path, json!({ "events": events }));
        let state = json!({ "pdus": events, "auth_chain": events });
        fake.answers(Method::GET, &format!("{V1}/state/"), state);
        let ids: Vec<_> = closed.old.iter().map(|pdu| &pdu.event_id).collect();
        let state = json!({ "pdu_ids": ids, "auth_chain_ids": ids });
        fake.answers(Method::GET, &format!("{V1}/state_ids/"), state);
        for old in &closed.old {
            let answer = room.send(&fake, &server, &[old]).await.ok();
            let is_refused = outcome(&answer, old.event_id.as_str());
            assert_eq!(is_refused, Some(true), "{version} {old:?}");
        }
        closed.is_as_before(&fake, &alice, &since).await;
        // Who reads back gets it.
        fake.answers(
            Method::GET,
            &format!("{V1}/backfill/"),
            json!({ "origin": fake.name, "origin_server_ts": 1, "pdus": events }),
        );
        let path = format!("/rooms/{}/messages?dir=b&limit=50", room.id);
        let told = alice.get(&path).await.ok();
        let oldest = told["chunk"].as_array().unwrap().last().unwrap();
        assert_eq!(oldest["type"], "m.room.create", "{told}");
    }
}

#[tokio::test]
async fn what_was_before_a_join_stays_so_whoever_follows_it() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let mut closed = Closed::join(&fake, &alice, "11").await;
    let room = &mut closed.room;
    let last = closed.old.last().unwrap();
    let branch = Draft {
        prev_events: vec![last.event_id.clone(), room.latest[0].clone()],
        ..room.message("a branch from before the join")
    };
    let branch = room.sign(&fake, branch);
    let state: Vec<_> = room.state.values().map(|pdu| &pdu.event_id).collect();
    let state = json!({ "pdu_ids": state, "auth_chain_ids": state });
    fake.answers(Method::GET, &format!("{V1}/state_ids/"), state);
    room.send(&fake, &server, &[&branch]).await.ok();
    sees(&alice, room.id.as_str(), branch.event_id.as_str()).await;
    room.follow(&branch);
    let since = token(&alice).await;
    for old in &closed.old {
        let answer = closed.room.send(&fake, &server, &[old]).await.ok();
        let is_refused = outcome(&answer, old.event_id.as_str());
        assert_eq!(is_refused, Some(true), "{old:?}");
    }
    closed.is_as_before(&fake, &alice, &since).await;
}

#[tokio::test]
async fn who_is_not_in_a_room_tells_nothing_of_what_others_said_there() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let (stranger, alice) = (FakeServer::start().await, server.register("alice").await);
    let mut closed = Closed::join(&fake, &alice, "12").await;
    let since = token(&alice).await;
    let mut room = closed.room.clone();
    let new = room.say(&fake, "said to others");
    for pdu in closed.old.iter().chain([&new]) {
        let answer = room.send(&stranger, &server, &[pdu]).await.ok();
        assert_eq!(outcome(&answer, pdu.event_id.as_str()), Some(true));
    }
    closed.is_as_before(&fake, &alice, &since).await;
    let answer = room.send(&fake, &server, &[&new]).await.ok();
    assert_eq!(outcome(&answer, new.event_id.as_str()), Some(false));
    closed.room = room;
}
