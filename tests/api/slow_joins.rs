//! Joins through a server that is slow, or tells what it likes, of a room that others here join or are in.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use homing_federation::{Draft, SigningKey};
use reqwest::Method;
use ruma::{CanonicalJsonObject, ServerName, canonical_json::redact_in_place};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    fake_room::{FakeRoom, pdu, value},
    fake_server::FakeServer,
    server::{TestServer, User},
    shared_rooms::sees,
};

const FEDERATION: &str = "/_matrix/federation";

/// Lets a server let people in as if the room were of some version. Its answer has no end until it is told to go on.
fn hosts_slowly(room: &FakeRoom, fake: &FakeServer, version: &'static str) -> watch::Sender<bool> {
    room.prepares(fake, "join", move |answer| {
        answer["room_version"] = version.into();
    });
    let (go_on, may) = watch::channel(false);
    let hosted = room.clone();
    let path = format!("{FEDERATION}/v2/send_join/{}", room.id);
    fake.on(Method::PUT, &path, move |request| {
        let mut text = hosted.welcome(&request.body).to_string();
        let end = text.split_off(text.len() - 1);
        let parts = stream::unfold((Some(text), Some(end), may.clone()), next_part);
        Response::new(Body::from_stream(parts))
    });
    go_on
}

/// The beginning, spaces as long as there is to be no end, and the end.
async fn next_part(
    (begin, mut end, mut may): (Option<String>, Option<String>, watch::Receiver<bool>),
) -> Option<(
    Result<String, Infallible>,
    (Option<String>, Option<String>, watch::Receiver<bool>),
)> {
    let part = match begin {
        Some(begin) => begin,
        None => {
            let pause = Duration::from_millis(500);
            match tokio::time::timeout(pause, may.wait_for(|may| *may)).await {
                Ok(_) => end.take()?,
                Err(_) => " ".repeat(2048),
            }
        }
    };
    Some((Ok(part), (None, end, may)))
}

/// Signs an event as another server too.
fn countersigned(room: &FakeRoom, name: &ServerName, key: &SigningKey, event: &Value) -> Value {
    let mut signed: CanonicalJsonObject = serde_json::from_value(event.clone()).unwrap();
    redact_in_place(&mut signed, &room.rules.redaction, None).unwrap();
    key.sign_json(name, &mut signed).unwrap();
    let mut event = event.clone();
    event["signatures"] = serde_json::to_value(&signed["signatures"]).unwrap();
    event
}

async fn state_of(user: &User<'_>, room: &FakeRoom, kind: &str, key: &str) -> Value {
    let path = format!("/rooms/{}/state/{kind}/{key}", room.id);
    user.get(&path).await.body
}

#[tokio::test]
async fn nobody_waits_for_somebody_elses_slow_server() {
    let server = TestServer::federated().await;
    let (good, slow) = (FakeServer::start().await, FakeServer::start().await);
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    for version in ["11", "9"] {
        let mut room = FakeRoom::create(&good, "11");
        let go_on = hosts_slowly(&room, &slow, version);
        room.set(&good, "m.room.name", "", json!({ "name": "Real" }));
        room.host(&good, |_| {});
        let path = format!("/join/{}?via={}", room.id, slow.name);
        let first = alice.post(&path, json!({}));
        let second = async {
            let asked = |path: &str| path.contains("send_join") && path.contains(room.id.as_str());
            slow.wait_for(|request| asked(&request.path)).await;
            let path = format!("/join/{}?via={}", room.id, good.name);
            let join = tokio::time::timeout(Duration::from_secs(20), bob.post(&path, json!({})));
            join.await.expect("bob need not wait for alice").ok();
            go_on.send_replace(true);
        };
        let (first, ()) = tokio::join!(first, second);
        assert_eq!(first.status.is_success(), version == "11", "{}", first.body);
        // What the slow server has told counts for nothing.
        assert_eq!(
            state_of(&bob, &room, "m.room.name", "").await["name"],
            "Real"
        );
        let said = bob.say(room.id.as_str(), "in").await;
        sees(&bob, room.id.as_str(), &said).await;
        let path = format!("/join/{}", room.id);
        alice.post(&path, json!({})).await.ok();
        sees(&alice, room.id.as_str(), &said).await;
        let member = |user: &User<'_>| {
            let id = user.id.clone();
            let room = &room;
            let bob = &bob;
            async move { state_of(bob, room, "m.room.member", &id).await["membership"].clone() }
        };
        assert_eq!(
            (member(&alice).await, member(&bob).await),
            ("join".into(), "join".into())
        );
        let came = good.wait_for(|request| {
            request.path.contains("/send/") && request.body.to_string().contains(&*alice.id)
        });
        came.await;
    }
}

#[tokio::test]
async fn who_lets_somebody_in_does_not_say_what_the_state_of_a_room_is() {
    let server = TestServer::federated().await;
    let (good, hostile) = (FakeServer::start().await, FakeServer::start().await);
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let space = alice.create_room(json!({})).await;
    let mut room = FakeRoom::create(&good, "11");
    let mallory = format!("@mallory:{}", hostile.name);
    let mut join = Draft {
        sender: mallory.as_str().try_into().unwrap(),
        ..room.draft(
            "m.room.member",
            Some(&mallory),
            json!({ "membership": "join" }),
        )
    };
    let types = join.auth_types(room.rules).unwrap().into_iter();
    let known = types.filter_map(|(kind, key)| room.state.get(&(kind.to_string(), key)));
    join.auth_events = known.map(|pdu| pdu.event_id.clone()).collect();
    let join = join.sign(room.rules, &hostile.name, &hostile.key).unwrap();
    room.follow(&join);
    let before = value(&room.state[&("m.room.power_levels".to_owned(), String::new())]);
    let levels = json!({ "users": { room.user.as_str(): 100, (&mallory): 50 }, "invite": 50 });
    room.set(&good, "m.room.power_levels", "", levels);
    room.host(&good, move |answer| {
        answer["auth_chain"]
            .as_array_mut()
            .unwrap()
            .push(before.clone());
    });
    let path = format!("/join/{}?via={}", room.id, good.name);
    bob.post(&path, json!({})).await.ok();
    let of_bob = good.wait_for(|request| request.path.contains("send_join"));
    room.follow(&pdu(&of_bob.await.body, room.rules));
    let rules = json!({
        "join_rule": "restricted",
        "allow": [{ "type": "m.room_membership", "room_id": space }],
    });
    let rules = room.set(&good, "m.room.join_rules", "", rules);
    let mut told = room.clone();
    let name = room.set(&good, "m.room.name", "", json!({ "name": "Real" }));
    room.send(&good, &server, &[&rules, &name]).await.ok();
    sees(&bob, room.id.as_str(), name.event_id.as_str()).await;

    // A branch on which the room has no name.
    let unknown = format!("${}", "a".repeat(43));
    told.latest = vec![unknown.as_str().try_into().unwrap()];
    told.depth += 10;
    let member = join.event_id.clone();
    let authoriser = mallory.clone();
    told.prepares(&hostile, "join", move |answer| {
        let event = &mut answer["event"];
        event["content"]["join_authorised_via_users_server"] = authoriser.as_str().into();
        event["auth_events"]
            .as_array_mut()
            .unwrap()
            .push(member.as_str().into());
    });
    let (key, name) = (Arc::clone(&hostile.key), hostile.name.clone());
    let path = format!("{FEDERATION}/v2/send_join/{}", told.id);
    let answering = told.clone();
    hostile.on(Method::PUT, &path, move |request| {
        let event = countersigned(&answering, &name, &key, &request.body);
        Json(answering.welcome(&event)).into_response()
    });
    let path = format!("/join/{}?via={}", room.id, hostile.name);
    alice.post(&path, json!({})).await.ok();
    assert_eq!(
        state_of(&bob, &room, "m.room.name", "").await["name"],
        "Real"
    );
    for user in [&alice, &bob] {
        let member = state_of(&bob, &room, "m.room.member", &user.id).await;
        assert_eq!(member["membership"], "join", "{}", user.id);
    }
    let said = bob.say(room.id.as_str(), "still here").await;
    sees(&alice, room.id.as_str(), &said).await;
}
