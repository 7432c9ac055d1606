//! Servers that are killed with `kill -9` while they ask others for what is missing: all of it comes after the next start,
//! and once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use homing_federation::Pdu;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    fake_room::{FakeRoom, outcome, value},
    fake_server::{FakeServer, endless},
    site::{Person, Site},
};

const V1: &str = "/_matrix/federation/v1";
/// How long something may take to arrive.
const PATIENCE: Duration = Duration::from_mins(1);

/// Leaves requests unanswered.
fn ignores(fake: &FakeServer, method: Method, path: &str) {
    fake.on(method, path, |_| endless(b"", Duration::from_hours(1)));
}

/// Tells which events are missing in a room.
fn tells_missing(fake: &FakeServer, room: &FakeRoom, events: &[&Pdu]) {
    let events: Vec<Value> = events.iter().map(|pdu| value(pdu)).collect();
    let path = format!("{V1}/get_missing_events/{}", room.id);
    fake.answers(Method::POST, &path, json!({ "events": events }));
}

/// Tells the history of a room.
fn tells_history(fake: &FakeServer, room: &FakeRoom, pdus: &[Value]) {
    let answer = json!({ "origin": fake.name, "origin_server_ts": 1, "pdus": pdus });
    fake.answers(Method::GET, &format!("{V1}/backfill/{}", room.id), answer);
}

/// A room of the fake server that somebody has joined.
async fn joined(person: &Person, fake: &FakeServer) -> FakeRoom {
    let mut room = FakeRoom::create(fake, "12");
    tells_history(fake, &room, &room.state());
    person.joins(fake, &mut room).await;
    room
}

fn ids<'p>(pdus: impl IntoIterator<Item = &'p Pdu>) -> Vec<String> {
    let ids = pdus.into_iter().map(|pdu| pdu.event_id.to_string());
    ids.collect()
}

/// Waits until somebody finds these messages in a room, in this order and each of them once.
async fn finds(person: &Person, room: &FakeRoom, expected: &[String]) {
    let started = Instant::now();
    loop {
        let found = person.messages(room.id.as_str()).await;
        if found == expected {
            return;
        }
        let is_too_late = started.elapsed() > PATIENCE;
        assert!(!is_too_late, "{found:?} and not {expected:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_wait_when_a_server_is_killed_arrive_once() {
    let (site, fake) = (Arc::new(Site::new().await), FakeServer::start().await);
    let process = site.run().await;
    let alice = site.register("alice").await;
    ignores(&fake, Method::POST, V1);
    let mut rooms = Vec::new();
    for _ in 0..2 {
        let mut room = joined(&alice, &fake).await;
        let mut said = vec![room.say(&fake, "not told")];
        let told: Vec<Pdu> = (0..20)
            .map(|number| room.say(&fake, &number.to_string()))
            .collect();
        for some in told.chunks(5) {
            let answer = site.receives(&fake, some).await;
            for pdu in some {
                let outcome = outcome(&answer, pdu.event_id.as_str());
                assert_eq!(outcome, Some(false), "it is acknowledged");
            }
        }
        let path = format!("{V1}/get_missing_events/{}", room.id);
        fake.wait_for(|it| it.path.starts_with(&path)).await;
        assert!(alice.messages(room.id.as_str()).await.is_empty());
        said.extend(told);
        rooms.push((room, said));
    }
    drop(process);
    for (room, said) in &rooms {
        tells_missing(&fake, room, &[&said[0]]);
    }
    let process = site.run().await;
    for (room, said) in &rooms {
        finds(&alice, room, &ids(said)).await;
        // What comes again is known.
        site.receives(&fake, said).await;
        finds(&alice, room, &ids(said)).await;
    }
    drop(process);
}

/// Says five things, names the room, and says five more; answers what was said, and the name.
fn speaks(fake: &FakeServer, room: &mut FakeRoom) -> (Vec<Pdu>, Pdu) {
    let says = |room: &mut FakeRoom| -> Vec<Pdu> {
        let numbers = 0..5;
        numbers
            .map(|number| room.say(fake, &number.to_string()))
            .collect()
    };
    let mut said = says(room);
    let name = room.set(fake, "m.room.name", "", json!({ "name": "Room" }));
    said.extend(says(room));
    (said, name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_is_filled_by_a_server_that_was_killed_meanwhile() {
    let (site, fake) = (Arc::new(Site::new().await), FakeServer::start().await);
    let process = site.run().await;
    let alice = site.register("alice").await;
    let mut room = joined(&alice, &fake).await;
    let (mut said, name) = speaks(&fake, &mut room);
    let late = room.say(&fake, "late");
    // The first half can be taken. The state before the second is not told.
    let untold: Vec<&Pdu> = said.iter().collect();
    tells_missing(&fake, &room, &untold);
    let path = format!("{V1}/state_ids/{}", room.id);
    ignores(&fake, Method::GET, &path);
    site.receives(&fake, std::slice::from_ref(&late)).await;
    fake.wait_for(|it| it.path.starts_with(&path)).await;
    drop(process);
    let mut all = untold;
    all.insert(5, &name);
    tells_missing(&fake, &room, &all);
    let process = site.run().await;
    said.push(late);
    finds(&alice, &room, &ids(&said)).await;
    drop(process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_fetched_by_a_server_that_was_killed_meanwhile() {
    let (site, fake) = (Arc::new(Site::new().await), FakeServer::start().await);
    let process = site.run().await;
    let alice = site.register("alice").await;
    let mut room = FakeRoom::create(&fake, "12");
    let first = room.state();
    let (said, name) = speaks(&fake, &mut room);
    alice.joins(&fake, &mut room).await;
    // The first half can be taken. The state before the second is not told.
    let mut history = first;
    history.extend(said.iter().map(value));
    tells_history(&fake, &room, &history);
    let path = format!("{V1}/state_ids/{}", room.id);
    ignores(&fake, Method::GET, &path);
    let reading = {
        let (alice, room) = (alice.clone(), room.id.to_string());
        tokio::spawn(async move {
            let path = format!("/rooms/{room}/messages?dir=b&limit=50");
            alice.call(Method::GET, &path, None).await
        })
    };
    fake.wait_for(|it| it.path.starts_with(&path)).await;
    drop(process);
    assert_eq!(reading.await.unwrap(), None, "it was under way");
    history.push(value(&name));
    tells_history(&fake, &room, &history);
    let process = site.run().await;
    finds(&alice, &room, &ids(&said)).await;
    drop(process);
}
