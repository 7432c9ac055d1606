//! Servers that are asked what an event rests on, and answer with too much, with half of it, or with what is of other rooms.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    response::{IntoResponse as _, Response},
};
use homing_federation::{Draft, Pdu};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    fake_room::{FakeRoom, value},
    fake_server::FakeServer,
    hostile_gaps::{until_tried, waiting},
    hostile_transactions::{seen, shared},
    server::{TestServer, User},
    shared_rooms::sees,
};

const V1: &str = "/_matrix/federation/v1";

/// A message, and the member event that it names as what allows it, which nobody here knows.
fn allowed(room: &FakeRoom, fake: &FakeServer) -> (Pdu, Pdu) {
    let user = room.user.to_string();
    let content = json!({ "membership": "join", "displayname": "new" });
    let member = room.sign(fake, room.draft("m.room.member", Some(&user), content));
    let mut with_it = room.clone();
    with_it.learn(&member);
    let late = room.sign(fake, with_it.message("late"));
    assert!(late.auth_events.contains(&member.event_id));
    (member, late)
}

/// A message after one that is not sent.
fn after_a_gap(room: &FakeRoom, fake: &FakeServer) -> Pdu {
    let mut room = room.clone();
    room.say(fake, "gone");
    room.say(fake, "late")
}

#[tokio::test]
async fn only_so_much_of_an_auth_chain_is_looked_at() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    // What is no event counts too: looking at it is the work.
    for (before, is_taken) in [(15_000, true), (25_000, false)] {
        let room = shared(&alice, &fake, "12").await;
        let (member, late) = allowed(&room, &fake);
        let mut chain = vec![json!({}); before];
        chain.push(value(&member));
        let answer = Arc::new(json!({ "auth_chain": chain }));
        fake.on(Method::GET, &format!("{V1}/event_auth/"), move |_| {
            Json(&*answer).into_response()
        });
        room.send(&fake, &server, &[&late]).await.ok();
        if is_taken {
            sees(&alice, room.id.as_str(), late.event_id.as_str()).await;
        } else {
            until_tried(&server).await;
            assert_eq!(waiting(&server).await, 1);
        }
        // Once is enough.
        let path = format!("{V1}/event_auth/{}", room.id);
        assert_eq!(fake.count(&Method::GET, &path), 1);
    }
}

#[tokio::test]
async fn only_so_many_missing_events_are_looked_at() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    for (junk, is_taken) in [(19, true), (20, false)] {
        let mut room = shared(&alice, &fake, "12").await;
        let (before, late) = (room.say(&fake, "before"), room.say(&fake, "late"));
        let mut events = vec![json!({}); junk];
        events.push(value(&before));
        let path = format!("{V1}/get_missing_events/");
        fake.answers(Method::POST, &path, json!({ "events": events }));
        room.send(&fake, &server, &[&late]).await.ok();
        until_tried(&server).await;
        let told = seen(&alice, &room, late.event_id.as_str()).await;
        assert_eq!(told.is_some(), is_taken, "{junk}");
    }
}

#[tokio::test]
async fn an_event_is_not_what_stands_before_it() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = shared(&alice, &fake, "12").await;
    let late = after_a_gap(&room, &fake);
    let path = format!("{V1}/get_missing_events/");
    fake.answers(Method::POST, &path, json!({ "events": [value(&late)] }));
    room.send(&fake, &server, &[&late]).await.ok();
    until_tried(&server).await;
    assert_eq!(fake.count(&Method::POST, &path), 1);
    // It has answered, and not told what is missing: nothing large is asked for at once.
    assert_eq!(fake.count(&Method::GET, &format!("{V1}/state_ids/")), 0);
    assert_eq!(waiting(&server).await, 1);
}

#[tokio::test]
async fn an_event_that_is_answered_twice_comes_once() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = shared(&alice, &fake, "12").await;
    let (member, late) = allowed(&room, &fake);
    let chain = vec![value(&member); 3];
    let path = format!("{V1}/event_auth/");
    fake.answers(Method::GET, &path, json!({ "auth_chain": chain }));
    room.send(&fake, &server, &[&late]).await.ok();
    sees(&alice, room.id.as_str(), late.event_id.as_str()).await;
}

#[tokio::test]
async fn only_so_large_a_state_is_looked_for() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let made_up = |number: usize| format!("${number:043}");
    for (count, is_asked) in [(90_000, true), (100_001, false)] {
        let room = shared(&alice, &fake, "12").await;
        let late = after_a_gap(&room, &fake);
        let missing = format!("{V1}/get_missing_events/");
        fake.refuses(Method::POST, &missing, 404, "M_NOT_FOUND");
        let ids: Vec<String> = (0..count).map(made_up).collect();
        let ids = Arc::new(json!({ "pdu_ids": ids, "auth_chain_ids": [] }));
        fake.on(Method::GET, &format!("{V1}/state_ids/"), move |_| {
            Json(&*ids).into_response()
        });
        room.send(&fake, &server, &[&late]).await.ok();
        let path = format!("{V1}/state/{}", room.id);
        if is_asked {
            fake.wait_for(|it| it.path.starts_with(&path)).await;
        }
        until_tried(&server).await;
        assert_eq!(fake.count(&Method::GET, &path) > 0, is_asked, "{count}");
        assert_eq!(seen(&alice, &room, late.event_id.as_str()).await, None);
        let path = format!("{V1}/state_ids/{}", room.id);
        assert!(fake.count(&Method::GET, &path) > 0);
    }
}

#[tokio::test]
async fn who_breaks_off_is_not_asked_on() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    for is_whole in [true, false] {
        let room = shared(&alice, &fake, "12").await;
        let (_, late) = allowed(&room, &fake);
        fake.on(Method::GET, &format!("{V1}/event_auth/"), move |_| {
            let text = r#"{"auth_chain":[]}"#;
            let end = if is_whole { text.len() } else { 10 };
            Response::new(Body::from(&text[..end]))
        });
        let asked = fake.count(&Method::GET, &format!("{V1}/event/"));
        room.send(&fake, &server, &[&late]).await.ok();
        until_tried(&server).await;
        let asked = fake.count(&Method::GET, &format!("{V1}/event/")) - asked;
        assert_eq!(asked > 0, is_whole);
    }
}

/// Whether anything is known here of an event.
async fn is_known(server: &TestServer, fake: &FakeServer, event: &Pdu) -> bool {
    let path = format!("{V1}/event/{}", event.event_id);
    let answer = fake.get(server, &path).await;
    let error = answer.body["error"].as_str().unwrap_or_default();
    !error.contains("is not known here")
}

#[tokio::test]
async fn events_of_other_rooms_are_not_kept_for_this_one() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    // A create event rests on nothing, and until version 11 it can stand in any list.
    let elsewhere = FakeRoom::create(&fake, "11");
    let create = &elsewhere.state[&("m.room.create".to_owned(), String::new())];
    for answers in ["events", "state_ids", "state", "event_auth"] {
        let room = shared(&alice, &fake, "11").await;
        let path = |name: &str| format!("{V1}/{name}/");
        for name in [
            "get_missing_events",
            "state_ids",
            "state",
            "event_auth",
            "event",
        ] {
            for method in [Method::GET, Method::POST] {
                fake.refuses(method, &path(name), 404, "M_NOT_FOUND");
            }
        }
        let (_, of_member) = allowed(&room, &fake);
        let late = match answers {
            "event_auth" => of_member,
            _ => after_a_gap(&room, &fake),
        };
        let all = json!([value(create)]);
        let mut ids = vec![create.event_id.to_string()];
        match answers {
            "events" => {
                let answer = json!({ "events": all });
                fake.answers(Method::POST, &path("get_missing_events"), answer);
            }
            "event_auth" => {
                fake.answers(
                    Method::GET,
                    &path("event_auth"),
                    json!({ "auth_chain": all }),
                );
            }
            _ => {
                if answers == "state" {
                    ids.extend((0..101).map(|number| format!("${number:043}")));
                }
                let ids = json!({ "pdu_ids": ids, "auth_chain_ids": [] });
                fake.answers(Method::GET, &path("state_ids"), ids);
                let answer = json!({ "pdus": all, "auth_chain": all });
                fake.answers(Method::GET, &path("state"), answer);
                let answer = json!({ "origin": fake.name, "origin_server_ts": 1, "pdus": all });
                fake.answers(Method::GET, &path("event"), answer);
            }
        }
        room.send(&fake, &server, &[&late]).await.ok();
        until_tried(&server).await;
        assert!(!is_known(&server, &fake, create).await, "{answers}");
        expect_open(&alice, &fake, &room).await;
    }
}

#[tokio::test]
async fn state_of_other_rooms_is_none_of_this_one() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let other = alice.create_room(json!({})).await;
    let path = |room: &str| format!("/rooms/{room}/state/org.example.elsewhere/");
    let set = alice.put(&path(&other), json!({ "a": 1 })).await.ok();
    let room = shared(&alice, &fake, "12").await;
    let late = after_a_gap(&room, &fake);
    let missing = format!("{V1}/get_missing_events/");
    fake.refuses(Method::POST, &missing, 404, "M_NOT_FOUND");
    let state = room.state.values().map(|pdu| pdu.event_id.to_string());
    let elsewhere = set["event_id"].as_str().unwrap().to_owned();
    let ids: Vec<String> = state.chain([elsewhere]).collect();
    let ids = json!({ "pdu_ids": ids, "auth_chain_ids": [] });
    fake.answers(Method::GET, &format!("{V1}/state_ids/"), ids);
    room.send(&fake, &server, &[&late]).await.ok();
    sees(&alice, room.id.as_str(), late.event_id.as_str()).await;
    let found = alice.get(&path(room.id.as_str())).await;
    found.fails(404, "M_NOT_FOUND");
    alice.get(&path(&other)).await.ok();
}

/// The room goes on.
async fn expect_open(alice: &User<'_>, fake: &FakeServer, room: &FakeRoom) {
    let draft = Draft {
        depth: room.depth + 5,
        ..room.message("good")
    };
    let good = room.sign(fake, draft);
    room.send(fake, alice.server, &[&good]).await.ok();
    let told: Option<Value> = seen(alice, room, good.event_id.as_str()).await;
    assert!(told.is_some());
}
