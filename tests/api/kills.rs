//! Servers that share rooms and are killed with `kill -9` in the middle of it: nothing that was acknowledged is lost,
//! nothing is there twice, and nothing is half done.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    fake_room::FakeRoom,
    fake_server::FakeServer,
    site::{Person, Site},
};

/// How often one of the servers is killed.
const KILLS: u64 = 6;
/// How long all may take that has to come in the end.
const PATIENCE: Duration = Duration::from_mins(2);

/// Sends to rooms in turn until it is told to stop or its server is gone; answers what was acknowledged.
async fn send(person: Person, rooms: Vec<String>, stop: Arc<AtomicBool>) -> Vec<(String, String)> {
    let mut acknowledged = Vec::new();
    for room in rooms.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match person.says(room).await {
            Some(id) => acknowledged.push((room.clone(), id)),
            None => break,
        }
    }
    acknowledged
}

/// Waits until a room has all these messages for somebody, each once. Answers all that it has.
async fn has_all(person: &Person, room: &str, wanted: &BTreeSet<&String>) -> Vec<String> {
    let started = Instant::now();
    loop {
        let found = person.messages(room).await;
        let once: BTreeSet<&String> = found.iter().collect();
        assert_eq!(once.len(), found.len(), "something is there twice");
        let missing = wanted.difference(&once).count();
        if missing == 0 {
            return found;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "{missing} of {} messages are not there",
            wanted.len()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_two_servers_tell_each_other_survives_kills() {
    let (here, there) = (Arc::new(Site::new().await), Arc::new(Site::new().await));
    let (mut a, mut b) = tokio::join!(here.run(), there.run());
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let mut rooms = Vec::new();
    for _ in 0..4 {
        let body = json!({ "preset": "public_chat" });
        let made = alice.does(Method::POST, "/createRoom", Some(body)).await;
        let room = made["room_id"].as_str().unwrap().to_owned();
        let path = format!("/join/{room}?via={}", here.name);
        bob.does(Method::POST, &path, Some(json!({}))).await;
        rooms.push(room);
    }
    // Only alice sends to the first rooms, so their order is hers.
    let shared = rooms[2..].to_vec();
    let mut acknowledged = Vec::new();
    for number in 0..KILLS {
        let stop = Arc::new(AtomicBool::new(false));
        let sends = [
            tokio::spawn(send(alice.clone(), rooms.clone(), Arc::clone(&stop))),
            tokio::spawn(send(alice.clone(), rooms.clone(), Arc::clone(&stop))),
            tokio::spawn(send(bob.clone(), shared.clone(), Arc::clone(&stop))),
        ];
        // Any moment will do; it is the one wait here that waits for nothing.
        let wait = rand::random_range(200..1000);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        if number == KILLS / 2 {
            drop(a);
            a = here.run().await;
        } else {
            drop(b);
            b = there.run().await;
        }
        stop.store(true, Ordering::Relaxed);
        for send in sends {
            acknowledged.extend(send.await.unwrap());
        }
    }
    assert!(acknowledged.len() > 50, "{}", acknowledged.len());
    // Who hears from a server tries it again at once.
    for (person, other) in [(&alice, &bob), (&bob, &alice)] {
        let path = format!("/profile/{}", other.id);
        person.does(Method::GET, &path, None).await;
    }
    for (index, room) in rooms.iter().enumerate() {
        let of_room = acknowledged.iter().filter(|(of, _)| of == room);
        let wanted: BTreeSet<&String> = of_room.map(|(_, id)| id).collect();
        let theirs = has_all(&bob, room, &wanted).await;
        let ours = has_all(&alice, room, &wanted).await;
        if index < 2 {
            assert_eq!(ours, theirs);
        }
    }
    drop((a, b));
}

/// A large public room of the fake server.
fn large_room(fake: &FakeServer) -> FakeRoom {
    let mut room = FakeRoom::create(fake, "11");
    let last = room.latest.clone();
    let creator = room.user.clone();
    for number in 0..MEMBERS {
        let user = format!("@member{number}:{}", fake.name);
        room.user = user.as_str().try_into().unwrap();
        room.latest.clone_from(&last);
        room.set(
            fake,
            "m.room.member",
            &user,
            json!({ "membership": "join" }),
        );
    }
    room.user = creator;
    room
}

/// How many others are in that room.
const MEMBERS: usize = 600;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_dies_leaves_nothing_half_done() {
    let (site, fake) = (Arc::new(Site::new().await), FakeServer::start().await);
    let mut process = site.run().await;
    let alice = site.register("alice").await;
    // In the middle of the answer, and at any time after it.
    for pause in [None, Some(10), Some(100), Some(300), Some(700)] {
        let room = large_room(&fake);
        let id = room.id.as_str();
        room.host(&fake, |_| {});
        if pause.is_none() {
            let hosted = room.clone();
            let path = format!("/_matrix/federation/v2/send_join/{id}");
            fake.on(Method::PUT, &path, move |request| {
                let text = hosted.welcome(&request.body).to_string();
                let half = Bytes::from(text[..text.len() / 2].to_owned());
                let half = stream::iter([Ok::<_, std::io::Error>(half)]);
                Response::new(Body::from_stream(half.chain(stream::pending())))
            });
        }
        let path = format!("/join/{id}?via={}", fake.name);
        let joining = {
            let (alice, path) = (alice.clone(), path.clone());
            tokio::spawn(async move { alice.call(Method::POST, &path, Some(json!({}))).await })
        };
        let start = format!("/_matrix/federation/v2/send_join/{id}");
        fake.wait_for(|it| it.path.starts_with(&start)).await;
        let pause = Duration::from_millis(pause.unwrap_or(1000));
        tokio::time::sleep(pause).await;
        drop(process);
        let answer = joining.await.unwrap();
        process = site.run().await;
        room.host(&fake, |_| {});
        let acknowledged = answer.is_some_and(|(status, _)| status == StatusCode::OK);
        let is_in = alice.is_in(id).await;
        assert!(is_in || !acknowledged, "the join is lost");
        if !is_in {
            let (status, _) = alice
                .call(Method::GET, &format!("/rooms/{id}/state"), None)
                .await
                .unwrap();
            assert!(status.is_client_error());
            let sync = alice.does(Method::GET, "/sync", None).await;
            assert_eq!(sync["rooms"]["join"][id], Value::Null);
            alice.does(Method::POST, &path, Some(json!({}))).await;
        }
        let members = alice
            .does(Method::GET, &format!("/rooms/{id}/joined_members"), None)
            .await;
        let members = members["joined"].as_object().unwrap().len();
        assert_eq!(members, MEMBERS + 2);
        let state = alice
            .does(Method::GET, &format!("/rooms/{id}/state"), None)
            .await;
        assert_eq!(state.as_array().unwrap().len(), room.state.len() + 1);
        alice.says(id).await.expect("it can be used");
    }
    drop(process);
}
