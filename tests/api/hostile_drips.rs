//! Servers that answer byte by byte, and never to the end: whatever they were asked, nobody waits long for them.

use std::time::{Duration, Instant};

use axum::response::Response;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    fake_room::FakeRoom,
    fake_server::{FakeServer, Recorded, endless},
    hostile_gaps::until_tried,
    hostile_transactions::shared,
    server::{TestServer, User},
};

const V1: &str = "/_matrix/federation/v1";
/// How long anybody may be kept waiting. Most answers have more time than that if they are fast enough.
const PATIENCE: Duration = Duration::from_secs(25);

/// What other servers are asked: the beginning of the path.
const QUESTIONS: &[(Method, &str)] = &[
    (Method::GET, "/_matrix/key/v2/server"),
    (Method::GET, "/_matrix/federation/v1/query/profile"),
    (Method::GET, "/_matrix/federation/v1/query/directory"),
    (Method::GET, "/_matrix/federation/v1/publicRooms"),
    (Method::GET, "/_matrix/federation/v1/hierarchy/"),
    (Method::GET, "/_matrix/federation/v1/media/download/"),
    (Method::GET, "/_matrix/federation/v1/make_join/"),
    (Method::PUT, "/_matrix/federation/v2/send_join/"),
    (Method::GET, "/_matrix/federation/v1/make_knock/"),
    (Method::PUT, "/_matrix/federation/v1/send_knock/"),
    (Method::PUT, "/_matrix/federation/v2/invite/"),
    (Method::POST, "/_matrix/federation/v1/get_missing_events/"),
    (Method::GET, "/_matrix/federation/v1/event_auth/"),
    (Method::GET, "/_matrix/federation/v1/state_ids/"),
    (Method::GET, "/_matrix/federation/v1/state/"),
    (Method::GET, "/_matrix/federation/v1/event/"),
    (Method::GET, "/_matrix/federation/v1/backfill/"),
];

/// An answer that never ends. It is one that a media could have.
fn drip(_: &Recorded) -> Response {
    let mut answer = endless(b" ", Duration::from_millis(100));
    let kind = "multipart/mixed; boundary=\"xyz\"".parse().unwrap();
    answer.headers_mut().insert("content-type", kind);
    answer
}

/// Brings the server to ask a question; answers how long it was kept busy with that.
async fn ask(user: &User<'_>, method: &Method, path: &str) -> Duration {
    let fake = FakeServer::start().await;
    let name = path.rsplit('/').find(|part| !part.is_empty()).unwrap();
    let room = match name {
        "get_missing_events" | "event_auth" | "state_ids" | "state" | "event" => {
            Some(shared(user, &fake, "12").await)
        }
        _ => None,
    };
    let hosted = FakeRoom::create(&fake, "11");
    if matches!(name, "send_join" | "backfill") {
        hosted.host(&fake, |_| {});
    }
    if name == "send_knock" {
        hosted.prepares(&fake, "knock", |_| {});
    }
    if name == "backfill" {
        let path = format!("/join/{}?via={}", hosted.id, fake.name);
        user.post(&path, json!({})).await.ok();
    }
    fake.on(method.clone(), path, drip);
    let began = Instant::now();
    match room {
        Some(room) => send(user.server, &fake, &room, name).await,
        None => call(user, &fake, &hosted, name).await,
    }
    let took = began.elapsed();
    assert!(fake.count(method, path) > 0, "{path} was not asked");
    took
}

/// Sends an event for which the server has to ask something.
async fn send(server: &TestServer, fake: &FakeServer, room: &FakeRoom, name: &str) {
    let mut ahead = room.clone();
    if name != "event_auth" {
        ahead.say(fake, "gone");
    }
    if name != "get_missing_events" {
        let path = format!("{V1}/get_missing_events/");
        fake.refuses(Method::POST, &path, 404, "M_NOT_FOUND");
    }
    let unknown = match name {
        "state" => 101,
        _ => 1,
    };
    if matches!(name, "state" | "event") {
        let ids: Vec<String> = (0..unknown)
            .map(|number| format!("${number:043}"))
            .collect();
        let ids = json!({ "pdu_ids": ids, "auth_chain_ids": [] });
        fake.answers(Method::GET, &format!("{V1}/state_ids/"), ids);
    }
    let mut draft = ahead.message("late");
    if name == "event_auth" {
        let last = draft.auth_events.len() - 1;
        draft.auth_events[last] = format!("${:043}", 0).try_into().unwrap();
    }
    let late = ahead.sign(fake, draft);
    room.send(fake, server, &[&late]).await.ok();
    until_tried(server).await;
}

/// Has somebody here want something of another server.
async fn call(user: &User<'_>, fake: &FakeServer, room: &FakeRoom, name: &str) {
    let (there, media) = (&fake.name, "/_matrix/client/v1/media");
    let get = async |path: String| drop(user.get(&path).await);
    let post = async |path: String, body: Value| drop(user.post(&path, body).await);
    match name {
        "server" => {
            let path = format!("{V1}/query/profile?user_id={}", user.id);
            let answer = fake.get(user.server, &path).await;
            answer.fails(401, "M_UNAUTHORIZED");
        }
        "profile" => get(format!("/profile/@x:{there}")).await,
        "directory" => get(format!("/directory/room/%23x:{there}")).await,
        "publicRooms" => get(format!("/publicRooms?server={there}")).await,
        "hierarchy" => {
            let path = format!("/_matrix/client/v1/room_summary/!drip:x.example?via={there}");
            get(path).await;
        }
        "download" => get(format!("{media}/download/{there}/x")).await,
        "make_join" | "send_join" => {
            post(format!("/join/{}?via={there}", room.id), json!({})).await;
        }
        "make_knock" | "send_knock" => {
            post(format!("/knock/{}?via={there}", room.id), json!({})).await;
        }
        "invite" => {
            let own = user.create_room(json!({})).await;
            let body = json!({ "user_id": format!("@x:{there}") });
            post(format!("/rooms/{own}/invite"), body).await;
        }
        "backfill" => get(format!("/rooms/{}/messages?dir=b", room.id)).await,
        _ => panic!("nobody asks for {name}"),
    }
}

#[tokio::test]
async fn whatever_was_asked_nobody_waits_for_an_answer_that_drips() {
    let server = TestServer::federated().await;
    let alice = server.register("alice").await;
    let all = QUESTIONS.iter().map(async |(method, path)| {
        let took = tokio::time::timeout(2 * PATIENCE, ask(&alice, method, path)).await;
        (path, took)
    });
    for (path, took) in join_all(all).await {
        assert!(
            took.as_ref().is_ok_and(|took| *took < PATIENCE),
            "{path} {took:?}"
        );
    }
}
