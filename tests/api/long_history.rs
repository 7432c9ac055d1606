//! A long history of another server's room, fetched in parts.

use std::{collections::BTreeMap, time::Instant};

use axum::{Json, http::StatusCode, response::IntoResponse as _};
use homing_federation::{Draft, Pdu};
use reqwest::Method;
use ruma::{MilliSecondsSinceUnixEpoch, UInt};
use serde_json::{Value, json};

use crate::{
    fake_room::{FakeRoom, value},
    fake_server::FakeServer,
    server::{TestServer, User},
    walks::{walk, walk_on},
};

const V1: &str = "/_matrix/federation/v1";
/// How many events the history has, and how many of them are told at once.
const EVENTS: usize = 500;
const PART: usize = 100;

/// A room of a fake server with many events.
pub struct Long {
    pub room: FakeRoom,
    /// All that has happened, oldest first.
    pub events: Vec<Pdu>,
}

impl Long {
    /// Says much, and names a topic now and then.
    pub fn create(fake: &FakeServer, count: usize) -> Self {
        let mut room = FakeRoom::create(fake, "12");
        let mut events: Vec<Pdu> = room.state.values().cloned().collect();
        events.sort_by_key(|pdu| pdu.depth);
        while events.len() < count {
            let number = events.len();
            let draft = if number.is_multiple_of(10) {
                let topic = json!({ "topic": number.to_string() });
                room.draft("m.room.topic", Some(""), topic)
            } else {
                room.message(&number.to_string())
            };
            let draft = Draft {
                origin_server_ts: time_of(number),
                ..draft
            };
            let pdu = room.sign(fake, draft);
            room.follow(&pdu);
            events.push(pdu);
        }
        Self { room, events }
    }

    /// Tells the history in parts that end with the event that is asked for, the state before each event, and which events
    /// happened when.
    pub fn tells(&self, fake: &FakeServer, part: usize) {
        let texts: Vec<Value> = self.events.iter().map(value).collect();
        let pdus = self.events.clone();
        fake.on(Method::GET, &format!("{V1}/backfill/"), move |request| {
            let end = asked(&pdus, &request.path).map_or(0, |newest| newest + 1);
            let told = &texts[end.saturating_sub(part)..end];
            let origin = request.headers["host"].to_str().unwrap();
            Json(json!({ "origin": origin, "origin_server_ts": 1, "pdus": told })).into_response()
        });
        let pdus = self.events.clone();
        fake.on(Method::GET, &format!("{V1}/state_ids/"), move |request| {
            let end = asked(&pdus, &request.path).unwrap_or(0);
            let state = pdus[..end].iter().filter(|pdu| pdu.state_key.is_some());
            let state: BTreeMap<_, _> = state
                .map(|pdu| ((&pdu.event_type, &pdu.state_key), &pdu.event_id))
                .collect();
            let ids: Vec<_> = state.values().collect();
            Json(json!({ "pdu_ids": ids, "auth_chain_ids": [] })).into_response()
        });
        let pdus = self.events.clone();
        fake.on(Method::GET, &format!("{V1}/event/"), move |request| {
            let Some(index) = asked(&pdus, &request.path) else {
                return StatusCode::NOT_FOUND.into_response();
            };
            let told =
                json!({ "pdus": [value(&pdus[index])], "origin": "x", "origin_server_ts": 1 });
            Json(told).into_response()
        });
        let pdus = self.events.clone();
        let path = format!("{V1}/timestamp_to_event/");
        fake.on(Method::GET, &path, move |request| {
            let ts = request.path.split("ts=").nth(1).unwrap();
            let ts: u64 = ts.split('&').next().unwrap().parse().unwrap();
            let later = pdus
                .iter()
                .filter(|pdu| u64::from(pdu.origin_server_ts.0) >= ts);
            let Some(pdu) = later.min_by_key(|pdu| pdu.origin_server_ts) else {
                return StatusCode::NOT_FOUND.into_response();
            };
            let (id, ts) = (&pdu.event_id, pdu.origin_server_ts);
            Json(json!({ "event_id": id, "origin_server_ts": ts })).into_response()
        });
    }

    /// The ids of the events.
    pub fn ids(&self) -> Vec<String> {
        let ids = self.events.iter().map(|pdu| pdu.event_id.to_string());
        ids.collect()
    }
}

/// When an event of a long history happened: one each minute, up to an hour ago.
fn time_of(number: usize) -> MilliSecondsSinceUnixEpoch {
    let now = u64::from(MilliSecondsSinceUnixEpoch::now().0);
    let hour = 60 * 60 * 1000;
    let first = now / hour * hour - 100 * hour;
    let ts = UInt::try_from(first + number as u64 * 60 * 1000).unwrap();
    MilliSecondsSinceUnixEpoch(ts)
}

/// The newest of the events that a path names.
fn asked(pdus: &[Pdu], path: &str) -> Option<usize> {
    let id = |pdu: &Pdu| pdu.event_id.as_str().trim_start_matches('$').to_owned();
    pdus.iter().rposition(|pdu| path.contains(&id(pdu)))
}

/// Lets somebody join a room of the fake server.
pub async fn joins(user: &User<'_>, fake: &FakeServer, room: &FakeRoom) {
    room.host(fake, |_| {});
    let path = format!("/join/{}?via={}", room.id, fake.name);
    user.post(&path, json!({})).await.ok();
}

#[tokio::test]
async fn history_is_written_in_parts() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let long = Long::create(&fake, EVENTS);
    long.tells(&fake, PART);
    joins(&alice, &fake, &long.room).await;

    let (before, started) = (server.app.db.statistics(), Instant::now());
    let found = walk(&alice, long.room.id.as_str(), 100).await;
    let (after, took) = (server.app.db.statistics(), started.elapsed());
    let (reads, writes) = (after.reads - before.reads, after.writes - before.writes);
    println!("{EVENTS} events: {took:?}, {reads} reads, {writes} writes");
    assert!(writes < EVENTS as u64, "{writes} statements");
    let mut expected = long.ids();
    expected.extend(found.last().cloned());
    assert_eq!(found, expected);
}

#[tokio::test]
async fn what_comes_with_its_redaction_is_redacted() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let mut long = Long::create(&fake, 10);
    let room = &mut long.room;
    // Neither of them follows the other.
    let secret = room.sign(&fake, room.message("secret"));
    let content = json!({ "redacts": secret.event_id });
    let redaction = room.sign(&fake, room.draft("m.room.redaction", None, content));
    let reaction = json!({ "m.relates_to": {
        "rel_type": "m.annotation", "event_id": secret.event_id, "key": "x",
    } });
    let reaction = room.sign(&fake, room.draft("m.reaction", None, reaction));
    let both = Draft {
        prev_events: [&secret, &redaction, &reaction]
            .map(|pdu| pdu.event_id.clone())
            .to_vec(),
        depth: secret.depth + 1,
        ..room.message("both")
    };
    let both = room.sign(&fake, both);
    room.follow(&both);
    let secret_id = secret.event_id.clone();
    long.events.extend([redaction, reaction, secret, both]);
    long.tells(&fake, PART);
    joins(&alice, &fake, &long.room).await;
    let id = long.room.id.clone();
    let found = walk(&alice, id.as_str(), 100).await;
    assert_eq!(found.len(), long.events.len() + 1);
    let told = alice
        .get(&format!("/rooms/{id}/event/{secret_id}"))
        .await
        .ok();
    assert_eq!(told["content"], json!({}), "{told}");
    let path = format!("/_matrix/client/v1/rooms/{id}/relations/{secret_id}");
    let told = alice.get(&path).await.ok();
    assert_eq!(told["chunk"].as_array().unwrap().len(), 1, "{told}");
}

/// The ids of some events.
fn ids(events: &Value) -> Vec<String> {
    let events = events.as_array().unwrap().iter();
    let ids = events.map(|event| event["event_id"].as_str().unwrap().to_owned());
    ids.collect()
}

/// Jumps to when an event happened, and walks on from there both ways: nothing is left out. Answers how often history was
/// asked for until the surroundings of the event were shown.
async fn jump(count: usize, to: usize) -> usize {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let long = Long::create(&fake, count);
    long.tells(&fake, PART);
    joins(&alice, &fake, &long.room).await;
    let id = long.room.id.as_str();

    let ts = long.events[to].origin_server_ts.0;
    let path = format!("/_matrix/client/v1/rooms/{id}/timestamp_to_event?ts={ts}&dir=f");
    let near = alice.get(&path).await.ok();
    let mut expected = long.ids();
    assert_eq!(near["event_id"], expected[to].as_str());
    let path = format!("/rooms/{id}/context/{}?limit=10", expected[to]);
    let context = alice.get(&path).await.ok();
    let mut before = ids(&context["events_before"]);
    before.reverse();
    assert_eq!(before, expected[to - 5..to]);
    let mut found = ids(&context["events_after"]);
    assert_eq!(found, expected[to + 1..to + 6]);
    let asked = fake.count(&Method::GET, &format!("{V1}/backfill/"));

    let end = context["end"].as_str().unwrap();
    found.extend(walk_on(&alice, id, "f", 100, Some(end)).await);
    let join = found.pop().unwrap();
    assert_eq!(found, expected[to + 1..]);
    let start = context["start"].as_str().unwrap();
    let mut older = walk_on(&alice, id, "b", 100, Some(start)).await;
    older.reverse();
    assert_eq!(older, expected[..to - 5]);
    // And once more from either end.
    expected.push(join);
    assert_eq!(walk(&alice, id, 100).await, expected);
    assert_eq!(walk_on(&alice, id, "f", 100, None).await, expected);
    asked
}

#[tokio::test]
async fn who_jumps_to_a_date_can_walk_on_both_ways() {
    jump(300, 120).await;
}

#[tokio::test]
async fn who_jumps_far_back_need_not_wait_for_all_that_came_since() {
    let asked = jump(900, 120).await;
    assert!(asked <= 4, "{asked}");
}
