//! Events that are too large for one, in the answers of other servers.

use std::time::Duration;

use axum::{Json, response::IntoResponse as _};
use homing_federation::Draft;
use reqwest::Method;
use ruma::OwnedEventId;
use serde_json::{Value, json};

use crate::{
    fake_room::{FakeRoom, OfSize, value},
    fake_server::{FakeServer, Recorded},
    hostile_gaps::{until_tried, waiting},
    hostile_transactions::seen,
    server::{TestServer, User},
    shared_rooms::eventually,
};

const V1: &str = "/_matrix/federation/v1";
/// The largest event, and one that is larger.
const LARGEST: usize = 65_536;
const TOO_LARGE: usize = LARGEST + 1;

/// A state event of a size.
fn state_of_size(room: &FakeRoom, fake: &FakeServer, kind: &str, bytes: usize) -> OfSize {
    let content = json!({ "a": 1 });
    room.sign_sized(fake, (kind, Some("")), content, bytes)
}

fn message_of_size(room: &FakeRoom, fake: &FakeServer, bytes: usize) -> OfSize {
    let content = json!({ "msgtype": "m.text", "body": "large" });
    room.sign_sized(fake, ("m.room.message", None), content, bytes)
}

/// Whether the state of a room that somebody sees has an event of this type.
async fn has_state(user: &User<'_>, room: &FakeRoom, kind: &str) -> bool {
    let path = format!("/rooms/{}/state/{kind}", room.id);
    user.get(&path).await.status.is_success()
}

/// Answers single events.
fn tells(fake: &FakeServer, events: Vec<(OwnedEventId, Value)>) {
    let start = format!("{V1}/event/");
    let name = fake.name.clone();
    fake.on(Method::GET, &start.clone(), move |request: &Recorded| {
        let id = percent_encoding::percent_decode_str(&request.path[start.len()..]);
        let id = id.decode_utf8().unwrap();
        let found = events.iter().find(|(known, _)| known.as_str() == id);
        match found {
            Some((_, event)) => {
                Json(json!({ "origin": name, "origin_server_ts": 1, "pdus": [event] }))
                    .into_response()
            }
            None => crate::fake_server::error(404, "M_NOT_FOUND"),
        }
    });
}

/// Has what waits tried again until nothing waits.
async fn settle(server: &TestServer, nudge: impl AsyncFn()) {
    let started = std::time::Instant::now();
    while waiting(server).await > 0 {
        assert!(
            started.elapsed() < Duration::from_mins(1),
            "something still waits"
        );
        server.app.clock.advance(Duration::from_mins(1));
        nudge().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_join_brings_no_event_that_is_too_large() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    for list in ["state", "auth_chain"] {
        let room = FakeRoom::create(&fake, "11");
        let largest = state_of_size(&room, &fake, "org.example.largest", LARGEST);
        let too_large = state_of_size(&room, &fake, "org.example.too_large", TOO_LARGE);
        room.host(&fake, move |answer| {
            let events = answer[list].as_array_mut().unwrap();
            events.extend([largest.json.clone(), too_large.json.clone()]);
        });
        let path = format!("/join/{}?via={}", room.id, fake.name);
        alice.post(&path, json!({})).await.ok();
        let is_state = list == "state";
        assert_eq!(
            has_state(&alice, &room, "org.example.largest").await,
            is_state
        );
        assert!(!has_state(&alice, &room, "org.example.too_large").await);
        let said = alice.say(room.id.as_str(), "in").await;
        assert!(seen_by_id(&alice, &room, &said).await);
    }
}

#[tokio::test]
async fn a_join_brings_nothing_of_other_rooms() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let (room, other) = (FakeRoom::create(&fake, "11"), FakeRoom::create(&fake, "11"));
    let draft = other.draft("org.example.foreign", Some(""), json!({}));
    let foreign = value(&other.sign(&fake, draft));
    let chain = other.state();
    room.host(&fake, move |answer| {
        let list = |answer: &mut Value, name: &str, events: &[Value]| {
            let list = answer[name].as_array_mut().unwrap();
            list.extend(events.iter().cloned());
        };
        list(answer, "auth_chain", &chain);
        list(answer, "state", std::slice::from_ref(&foreign));
    });
    let path = format!("/join/{}?via={}", room.id, fake.name);
    alice.post(&path, json!({})).await.ok();
    assert!(has_state(&alice, &room, "m.room.join_rules").await);
    assert!(!has_state(&alice, &room, "org.example.foreign").await);
}

async fn seen_by_id(user: &User<'_>, room: &FakeRoom, id: &str) -> bool {
    seen(user, room, id).await.is_some()
}

/// A room of `alice` in which everybody may set state, and that the fake server has joined.
async fn open_room(alice: &User<'_>, fake: &FakeServer) -> FakeRoom {
    let body = json!({
        "preset": "public_chat", "room_version": "12",
        "power_level_content_override": { "state_default": 0 },
    });
    let id = alice.create_room(body).await;
    FakeRoom::join(fake, alice.server, &id).await
}

/// An event after one that is not sent.
fn after(room: &FakeRoom, before: &OwnedEventId, text: &str) -> Draft {
    Draft {
        prev_events: vec![before.clone()],
        depth: room.depth + 2,
        ..room.message(text)
    }
}

#[tokio::test]
async fn what_is_missing_is_not_too_large() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    for (bytes, is_taken) in [(LARGEST, true), (TOO_LARGE, false)] {
        let room = open_room(&alice, &fake).await;
        let between = message_of_size(&room, &fake, bytes);
        let late = room.sign(&fake, after(&room, &between.id, "late"));
        let events = json!({ "events": [between.json] });
        fake.answers(Method::POST, &format!("{V1}/get_missing_events/"), events);
        let ids: Vec<_> = room
            .state
            .values()
            .map(|pdu| pdu.event_id.clone())
            .collect();
        let ids = json!({ "pdu_ids": ids, "auth_chain_ids": ids });
        fake.answers(Method::GET, &format!("{V1}/state_ids/"), ids);
        tells(&fake, vec![(between.id.clone(), between.json.clone())]);
        room.send(&fake, &server, &[&late]).await.ok();
        let nudge = async || drop(room.send(&fake, &server, &[&late]).await.ok());
        settle(&server, nudge).await;
        assert!(seen_by_id(&alice, &room, late.event_id.as_str()).await);
        assert_eq!(
            seen_by_id(&alice, &room, between.id.as_str()).await,
            is_taken
        );
    }
}

#[tokio::test]
async fn a_state_has_no_event_that_is_too_large() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    // A state with few events that are not here is asked for one by one, one with many as a whole.
    for more in [0, 101] {
        let room = open_room(&alice, &fake).await;
        let gone = room.sign(&fake, room.message("gone"));
        let late = room.sign(&fake, after(&room, &gone.event_id, "late"));
        let mut others = vec![
            state_of_size(&room, &fake, "org.example.largest", LARGEST),
            state_of_size(&room, &fake, "org.example.too_large", TOO_LARGE),
        ];
        others.extend((0..more).map(|number| {
            let pdu = room.draft(&format!("org.example.{number}"), Some(""), json!({}));
            let pdu = room.sign(&fake, pdu);
            OfSize {
                id: pdu.event_id.clone(),
                json: value(&pdu),
            }
        }));
        fake.refuses(
            Method::POST,
            &format!("{V1}/get_missing_events/"),
            404,
            "M_NOT_FOUND",
        );
        let known = room.state.values().map(|pdu| pdu.event_id.clone());
        let ids: Vec<_> = known.chain(others.iter().map(|it| it.id.clone())).collect();
        let ids = json!({ "pdu_ids": ids, "auth_chain_ids": [] });
        fake.answers(Method::GET, &format!("{V1}/state_ids/"), ids);
        let mut state = room.state();
        state.extend(others.iter().map(|it| it.json.clone()));
        let state = json!({ "pdus": state, "auth_chain": [] });
        fake.answers(Method::GET, &format!("{V1}/state/"), state);
        tells(
            &fake,
            others.into_iter().map(|it| (it.id, it.json)).collect(),
        );
        room.send(&fake, &server, &[&late]).await.ok();
        let nudge = async || drop(room.send(&fake, &server, &[&late]).await.ok());
        settle(&server, nudge).await;
        assert!(seen_by_id(&alice, &room, late.event_id.as_str()).await);
        assert!(
            has_state(&alice, &room, "org.example.largest").await,
            "{more}"
        );
        assert!(!has_state(&alice, &room, "org.example.too_large").await);
        let as_whole = fake.count(&Method::GET, &format!("{V1}/state/{}", room.id));
        assert_eq!(as_whole, usize::from(more > 0));
    }
}

#[tokio::test]
async fn what_allows_an_event_is_not_too_large() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    for (bytes, is_taken) in [(LARGEST, true), (TOO_LARGE, false)] {
        let room = open_room(&alice, &fake).await;
        let user = room.user.to_string();
        let content = json!({ "membership": "join" });
        let member = room.sign_sized(&fake, ("m.room.member", Some(&user)), content, bytes);
        let old = &room.state[&("m.room.member".to_owned(), user)].event_id;
        let mut draft = room.message("late");
        draft.auth_events.retain(|id| id != old);
        draft.auth_events.push(member.id.clone());
        let late = room.sign(&fake, draft);
        let chain = json!({ "auth_chain": [member.json] });
        fake.answers(Method::GET, &format!("{V1}/event_auth/"), chain);
        tells(&fake, vec![(member.id, member.json)]);
        room.send(&fake, &server, &[&late]).await.ok();
        let nudge = async || drop(room.send(&fake, &server, &[&late]).await.ok());
        if is_taken {
            settle(&server, nudge).await;
        } else {
            until_tried(&server).await;
            assert!(fake.count(&Method::GET, &format!("{V1}/event_auth/")) > 0);
        }
        let good = room.sign(&fake, room.message("good"));
        room.send(&fake, &server, &[&good]).await.ok();
        assert!(seen_by_id(&alice, &room, good.event_id.as_str()).await);
        assert_eq!(
            seen_by_id(&alice, &room, late.event_id.as_str()).await,
            is_taken
        );
    }
}

#[tokio::test]
async fn history_has_no_event_that_is_too_large() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let mut room = FakeRoom::create(&fake, "11");
    let mut history = room.state();
    let state = room.state();
    let mut expected = Vec::new();
    let mut large = Vec::new();
    for bytes in [LARGEST, TOO_LARGE] {
        let event = message_of_size(&room, &fake, bytes);
        history.push(event.json.clone());
        room.latest = vec![event.id.clone()];
        room.depth += 1;
        large.push(event);
        let pdu = room.say(&fake, "small");
        history.push(value(&pdu));
        expected.push(pdu.event_id.to_string());
    }
    expected.insert(0, large[0].id.to_string());
    history.reverse();
    let answer = json!({ "origin": fake.name, "origin_server_ts": 1, "pdus": history });
    fake.answers(Method::GET, &format!("{V1}/backfill/"), answer);
    let ids: Vec<_> = room
        .state
        .values()
        .map(|pdu| pdu.event_id.clone())
        .collect();
    let ids = json!({ "pdu_ids": ids, "auth_chain_ids": ids });
    fake.answers(Method::GET, &format!("{V1}/state_ids/"), ids);
    fake.answers(
        Method::GET,
        &format!("{V1}/state/"),
        json!({ "pdus": state, "auth_chain": state }),
    );
    tells(
        &fake,
        large.into_iter().map(|it| (it.id, it.json)).collect(),
    );
    room.host(&fake, |_| {});
    let path = format!("/join/{}?via={}", room.id, fake.name);
    alice.post(&path, json!({})).await.ok();
    eventually(&alice, |sync| {
        sync["rooms"]["join"][room.id.as_str()]
            .as_object()
            .map(drop)
    })
    .await;
    // The first page may end where something is missing.
    let mut messages = Vec::new();
    let mut from = String::new();
    for _ in 0..10 {
        let path = format!("/rooms/{}/messages?dir=b&limit=100{from}", room.id);
        let page = alice.get(&path).await.ok();
        let events = page["chunk"].as_array().unwrap().iter();
        let events = events.filter(|event| event["type"] == "m.room.message");
        messages.extend(events.map(|event| event["event_id"].as_str().unwrap().to_owned()));
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => break,
        }
    }
    messages.reverse();
    assert_eq!(messages, expected);
}
