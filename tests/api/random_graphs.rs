//! Rooms whose history forks at random: what a server makes of them is what ruma makes of whole states.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex},
};

use axum::{Json, response::IntoResponse as _};
use homing_federation::{Draft, Pdu};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use reqwest::Method;
use ruma::{CanonicalJsonObject, EventId, OwnedEventId, RoomVersionId, UserId};
use serde_json::{Value, json};

use crate::{
    fake_server::FakeServer,
    random_room::{RandomRoom, State},
    server::{TestServer, User},
};

/// How many events a room has that comes to life.
const EVENTS: usize = 40;

fn pdu(pdu: &Pdu) -> Value {
    serde_json::from_str(&pdu.json).unwrap()
}

/// Lets somebody join the room through its first server, so that the server of the user is in it.
async fn join(user: &User<'_>, fake: &FakeServer, room: &mut RandomRoom) {
    let last = room.heads[0].clone();
    let before = room.resolve_at(&last);
    let mut draft = Draft {
        room_id: Some(room.room_id.clone()),
        sender: UserId::parse(&user.id).unwrap(),
        event_type: "m.room.member".to_owned(),
        state_key: Some(user.id.clone()),
        content: CanonicalJsonObject::from_iter([("membership".to_owned(), "join".into())]),
        redacts: None,
        origin_server_ts: ruma::MilliSecondsSinceUnixEpoch::now(),
        prev_events: last,
        auth_events: Vec::new(),
        depth: i64::try_from(room.events.len()).unwrap() + 1,
    };
    draft.auth_events = room.auth_events(&draft, &before);
    let template = json!({
        "room_version": room.version,
        "event": {
            "room_id": draft.room_id, "sender": user.id, "state_key": user.id,
            "type": draft.event_type, "content": draft.content, "depth": draft.depth,
            "prev_events": draft.prev_events, "auth_events": draft.auth_events,
            "origin_server_ts": draft.origin_server_ts,
        },
    });
    fake.answers(Method::GET, "/_matrix/federation/v1/make_join/", template);
    let events = |ids: &mut dyn Iterator<Item = &OwnedEventId>| -> Vec<Value> {
        ids.map(|id| pdu(room.event(id))).collect()
    };
    let state = events(&mut before.values());
    let auth_chain = events(&mut room.auth_chain(before.values()).iter());
    let joined = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&joined);
    fake.on(
        Method::PUT,
        "/_matrix/federation/v2/send_join/",
        move |request| {
            *keep.lock().unwrap() = Some(request.raw.clone());
            let answer = json!({ "state": state, "auth_chain": auth_chain, "event": request.body });
            Json(answer).into_response()
        },
    );
    let path = format!("/join/{}?via={}", room.room_id, fake.name);
    user.post(&path, json!({})).await.ok();
    let body = joined.lock().unwrap().take().unwrap();
    let body = std::str::from_utf8(&body).unwrap();
    let event = homing_federation::received::Unverified::parse(body, room.rules).unwrap();
    let event = Arc::new(event.pdu);
    room.heads = std::array::from_fn(|_| vec![event.event_id.clone()]);
    room.keep(event, &before);
}

/// The events from `start` on in an order in which none comes before one that it follows, any of those that there are.
fn shuffled(room: &RandomRoom, start: usize, random: &mut StdRng) -> Vec<OwnedEventId> {
    let mut waiting: Vec<_> = room.events[start..].iter().collect();
    let mut missing: HashSet<_> = waiting.iter().map(|event| &event.event_id).collect();
    let mut order = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        let is_ready =
            |event: &&&Arc<Pdu>| !event.prev_events.iter().any(|id| missing.contains(id));
        let ready: Vec<_> = waiting
            .iter()
            .filter(is_ready)
            .map(|it| &it.event_id)
            .collect();
        let next = ready[random.random_range(0..ready.len())];
        missing.remove(next);
        order.push(next.clone());
        waiting.retain(|event| event.event_id != *next);
    }
    order
}

/// Sends the events in transactions of random size, each of which is in disorder.
async fn tell(
    fake: &FakeServer,
    to: &TestServer,
    room: &RandomRoom,
    random: &mut StdRng,
    start: usize,
) {
    let order = shuffled(room, start, random);
    let mut rest = order.as_slice();
    let mut number = 0;
    while !rest.is_empty() {
        let count = random.random_range(1..=rest.len().min(15));
        let (now, later) = rest.split_at(count);
        rest = later;
        let mut pdus: Vec<_> = now.iter().map(|id| pdu(room.event(id))).collect();
        pdus.shuffle(random);
        let body = json!({ "origin": fake.name, "origin_server_ts": 0, "pdus": pdus, "edus": [] });
        let path = format!("/_matrix/federation/v1/send/{}-{number}", room.room_id);
        let answer = fake.put(to, &path, body).await.ok();
        for (id, result) in answer["pdus"].as_object().unwrap() {
            assert_eq!(result.get("error"), None, "{id}: {result}");
        }
        number += 1;
    }
}

async fn state_before(
    fake: &FakeServer,
    at: &TestServer,
    room: &RandomRoom,
    event: &EventId,
) -> BTreeSet<OwnedEventId> {
    // Ids of version 3 have characters that mean something else in a query.
    let event = utf8_percent_encode(event.as_str(), NON_ALPHANUMERIC);
    let path = format!(
        "/_matrix/federation/v1/state_ids/{}?event_id={event}",
        room.room_id
    );
    let answer = fake.get(at, &path).await.ok();
    serde_json::from_value(answer["pdu_ids"].clone()).unwrap()
}

fn events_of(state: &State) -> BTreeSet<OwnedEventId> {
    state.values().cloned().collect()
}

async fn current_state(user: &User<'_>, room: &RandomRoom) -> BTreeSet<OwnedEventId> {
    let state = user
        .get(&format!("/rooms/{}/state", room.room_id))
        .await
        .ok();
    let events = state.as_array().unwrap().iter();
    events
        .map(|event| event["event_id"].as_str().unwrap().try_into().unwrap())
        .collect()
}

/// What the server sees as the latest events of the room, said to somebody who wants to join it.
async fn latest(server: &TestServer, room: &RandomRoom) -> Vec<OwnedEventId> {
    let room = server.app.room(&room.room_id).await.unwrap();
    let head = room.head.lock().await;
    let extremities = &head.as_ref().unwrap().extremities;
    extremities
        .iter()
        .map(|extremity| extremity.id.clone())
        .collect()
}

/// Plays a room; answers how many of its events follow several others.
async fn play(version: RoomVersionId, seed: u64) -> usize {
    let (one, two, three) = tokio::join!(
        FakeServer::start(),
        FakeServer::start(),
        FakeServer::start()
    );
    let fakes = [&one, &two, &three];
    let servers = fakes.map(|fake| (fake.name.clone(), Arc::clone(&fake.key)));
    let here = TestServer::federated().await;
    let user = here.register("here").await;
    let mut room = RandomRoom::new(&servers, &version, seed);
    join(&user, &one, &mut room).await;
    let start = room.events.len();
    while room.events.len() < start + EVENTS {
        room.grow();
    }
    let mut random = StdRng::seed_from_u64(seed);
    tell(&one, &here, &room, &mut random, start).await;
    for event in &room.events[start..] {
        let id = &event.event_id;
        let expected = events_of(&room.before[id]);
        let found = state_before(&one, &here, &room, id).await;
        assert_eq!(found, expected, "before {id}, room {version} {seed}");
    }
    let latest = latest(&here, &room).await;
    let expected = events_of(&room.resolve_at(&latest));
    assert_eq!(
        current_state(&user, &room).await,
        expected,
        "room {version} {seed}, {latest:?}"
    );
    let meets = |event: &&Arc<Pdu>| event.prev_events.len() > 1;
    room.events[start..].iter().filter(meets).count()
}

/// Plays rooms of some versions.
async fn play_some(versions: &[RoomVersionId]) {
    let mut meets = 0;
    for (seed, version) in (0..).zip(versions) {
        meets += play(version.clone(), seed).await;
    }
    assert!(meets > 5, "{versions:?}: {meets}");
}

#[tokio::test]
async fn states_are_those_that_whole_sets_resolve_to_in_versions_3_to_5() {
    play_some(&[RoomVersionId::V3, RoomVersionId::V4, RoomVersionId::V5]).await;
}

#[tokio::test]
async fn states_are_those_that_whole_sets_resolve_to_in_versions_6_to_9() {
    play_some(&[RoomVersionId::V6, RoomVersionId::V8]).await;
}

#[tokio::test]
async fn states_are_those_that_whole_sets_resolve_to_in_versions_10_and_11() {
    play_some(&[RoomVersionId::V10, RoomVersionId::V11]).await;
}

#[tokio::test]
async fn states_are_those_that_whole_sets_resolve_to_in_version_12() {
    play_some(&[RoomVersionId::V12, RoomVersionId::V12]).await;
}
