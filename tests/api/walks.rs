//! Walking back through a history of which parts are missing.

use std::time::Duration;

use axum::{Json, response::IntoResponse as _};
use homing_federation::Pdu;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    fake_room::{FakeRoom, value},
    fake_server::FakeServer,
    hostile_transactions::shared,
    server::{TestServer, User},
    shared_rooms::sees,
};

const V1: &str = "/_matrix/federation/v1";

/// All events that somebody finds who walks back from the end of a room, oldest first. Time passes between the pages.
pub async fn walk(user: &User<'_>, room: &str, limit: usize) -> Vec<String> {
    let mut found = walk_on(user, room, "b", limit, None).await;
    found.reverse();
    found
}

/// All events that somebody finds who walks on from a token, or from an end of a room.
pub async fn walk_on(
    user: &User<'_>,
    room: &str,
    dir: &str,
    limit: usize,
    from: Option<&str>,
) -> Vec<String> {
    let mut found = Vec::new();
    let mut from = from.map_or_else(String::new, |from| format!("&from={from}"));
    for _ in 0..50 {
        let path = format!("/rooms/{room}/messages?dir={dir}&limit={limit}{from}");
        let page = user.get(&path).await.ok();
        let events = page["chunk"].as_array().unwrap().iter();
        found.extend(events.map(|event| event["event_id"].as_str().unwrap().to_owned()));
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => return found,
        }
        user.server.app.clock.advance(Duration::from_mins(1));
    }
    panic!("the walk has no end: {found:?}");
}

/// Sends an event that follows one which is not told; it is taken with the state before it.
async fn send_after_gap(fake: &FakeServer, alice: &User<'_>, room: &mut FakeRoom) -> Pdu {
    let ids: Vec<_> = room.state.values().map(|pdu| &pdu.event_id).collect();
    let state = json!({ "pdu_ids": ids, "auth_chain_ids": [] });
    fake.answers(Method::GET, &format!("{V1}/state_ids/"), state);
    let late = room.say(fake, "late");
    room.send(fake, alice.server, &[&late]).await.ok();
    sees(alice, room.id.as_str(), late.event_id.as_str()).await;
    late
}

fn ids(pdus: &[Pdu]) -> Vec<String> {
    pdus.iter().map(|pdu| pdu.event_id.to_string()).collect()
}

#[tokio::test]
async fn what_nobody_can_tell_is_passed_over() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let mut room = shared(&alice, &fake, "12").await;
    let id = room.id.clone();
    let before = walk(&alice, id.as_str(), 100).await;
    room.say(&fake, "not told");
    let late = send_after_gap(&fake, &alice, &mut room).await;
    let mut expected = before;
    expected.push(late.event_id.to_string());
    for text in ["one", "two", "three"] {
        expected.push(alice.say(id.as_str(), text).await);
    }
    for limit in [100, 2, 3] {
        let found = walk(&alice, id.as_str(), limit).await;
        assert_eq!(found, expected, "{limit}");
        let found = walk_on(&alice, id.as_str(), "f", limit, None).await;
        assert_eq!(found, expected, "{limit} forward");
    }
}

#[tokio::test]
async fn a_gap_that_others_can_fill_is_not_passed_over() {
    for (dir, limit) in [("b", 500), ("f", 500), ("f", 20)] {
        gap_is_filled(dir, limit).await;
    }
}

async fn gap_is_filled(dir: &str, limit: usize) {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let mut room = shared(&alice, &fake, "12").await;
    let id = room.id.clone();
    let mut expected = walk(&alice, id.as_str(), 100).await;
    let untold: Vec<Pdu> = (0..150)
        .map(|number| room.say(&fake, &number.to_string()))
        .collect();
    let late = send_after_gap(&fake, &alice, &mut room).await;
    expected.extend(ids(&untold));
    expected.push(late.event_id.to_string());
    // Not all is told at once.
    let newest = untold[149]
        .event_id
        .as_str()
        .trim_start_matches('$')
        .to_owned();
    let texts: Vec<Value> = untold.iter().map(value).collect();
    fake.on(Method::GET, &format!("{V1}/backfill/"), move |request| {
        let pdus = if request.path.contains(&newest) {
            &texts[50..]
        } else {
            &texts[..50]
        };
        let origin = request.headers["host"].to_str().unwrap();
        Json(json!({ "origin": origin, "origin_server_ts": 1, "pdus": pdus })).into_response()
    });
    let mut found = walk_on(&alice, id.as_str(), dir, limit, None).await;
    if dir == "b" {
        found.reverse();
    }
    assert_eq!(found, expected, "{dir}");
}

#[tokio::test]
async fn a_walk_ends_where_nobody_can_tell_more() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = FakeRoom::create(&fake, "12");
    room.host(&fake, |_| {});
    let path = format!("/join/{}?via={}", room.id, fake.name);
    alice.post(&path, json!({})).await.ok();
    let said = alice.say(room.id.as_str(), "hello").await;
    let found = walk(&alice, room.id.as_str(), 10).await;
    assert_eq!(found.len(), 2, "the join, and what was said");
    assert_eq!(found[1], said);
    // They were asked more than once.
    assert!(fake.count(&Method::GET, &format!("{V1}/backfill/")) > 2);
}
