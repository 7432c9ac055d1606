//! Push gateways that are not there, refuse, or take their time, and a server that is started again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::response::Response;
use homing::{
    args,
    log::Change,
    pushes::Push,
    sql,
    storage::{Sql, UserNid, Write, pushers},
};
use reqwest::Method;
use serde_json::json;

use crate::{
    fake_server::endless,
    push_gateway::{Gateway, reachable},
    server::{PASSWORD, TestServer, User},
};

const PATH: &str = "/_matrix/push/v1/notify";

/// Alice, and Bob who has a pusher with the key `bob`, in a room.
async fn two<'s>(server: &'s TestServer, gateway: &Gateway) -> (User<'s>, User<'s>, String) {
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    gateway.set(&bob, "bob").await;
    (alice, bob, room)
}

async fn again<'s>(server: &'s TestServer, name: &str) -> User<'s> {
    User::new(server, &server.login(name, PASSWORD, json!({})).await.ok())
}

/// Waits for something, but not for ever.
async fn within<T>(work: impl Future<Output = T>) -> T {
    let work = tokio::time::timeout(Duration::from_secs(30), work).await;
    work.expect("it happens")
}

/// Does something to the database that nobody should.
async fn run(server: &TestServer, statement: &'static Sql) {
    let mut change = Change::new();
    change.write(Write::Run(statement, args![]));
    server.app.log.append(change).await.unwrap();
}

/// Each event once, in the order of the first time that it was told.
fn each_once(events: Vec<String>) -> Vec<String> {
    let mut once: Vec<String> = Vec::new();
    for event in events {
        if !once.contains(&event) {
            once.push(event);
        }
    }
    once
}

#[tokio::test]
async fn what_a_gateway_refuses_it_is_told_again_in_order() {
    let server = TestServer::start_with(reachable).await;
    let gateway = Gateway::start().await;
    let (alice, bob, room) = two(&server, &gateway).await;
    gateway.set(&bob, "other").await;
    gateway.fails_for("bob");
    let mut events = vec![alice.say(&room, "0").await];
    gateway.wait_for("bob", &events[0]).await;
    for number in 1..5 {
        events.push(alice.say(&room, &number.to_string()).await);
        gateway.wait_for("other", &events[number]).await;
    }
    assert_eq!(
        gateway.events("other"),
        events,
        "which others do not wait for"
    );
    gateway.wait_for("bob", &events[0]).await;
    assert_eq!(each_once(gateway.events("bob")), events[..1]);
    gateway.takes();
    server.app.clock.advance(Duration::from_hours(1));
    gateway.wait_for("bob", &events[4]).await;
    assert_eq!(each_once(gateway.events("bob")), events);
    assert_eq!(gateway.events("other"), events);
}

#[tokio::test]
async fn a_gateway_is_left_alone_for_as_long_as_it_says() {
    let server = TestServer::start_with(reachable).await;
    let gateway = Gateway::start().await;
    let (alice, _, room) = two(&server, &gateway).await;
    gateway.fails_for_now(600);
    let event = alice.say(&room, "1").await;
    gateway.wait_for("bob", &event).await;
    server.app.clock.advance(Duration::from_mins(9));
    // The task looks at the clock every second.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(gateway.events("bob"), std::slice::from_ref(&event));
    gateway.takes();
    server.app.clock.advance(Duration::from_mins(10));
    within(async {
        while gateway.events("bob").len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(gateway.events("bob"), [event.clone(), event]);
}

#[tokio::test]
async fn answers_that_make_no_sense_are_none() {
    let server = TestServer::start_with(reachable).await;
    let gateway = Gateway::start().await;
    let (alice, _, room) = two(&server, &gateway).await;
    let post = Method::POST;
    let huge = || endless(&[b' '; 1 << 14], Duration::ZERO);
    for (number, bad) in [
        (|| Response::new("<html>".into())) as fn() -> Response,
        || Response::new("[]".into()),
        || {
            let mut moved = Response::new("".into());
            *moved.status_mut() = axum::http::StatusCode::FOUND;
            let there = "https://localhost/_matrix/push/v1/notify";
            moved
                .headers_mut()
                .insert("location", there.parse().unwrap());
            moved
        },
        huge,
    ]
    .into_iter()
    .enumerate()
    {
        gateway.fake.on(post.clone(), PATH, move |_| bad());
        let event = alice.say(&room, "x").await;
        gateway.wait_for("bob", &event).await;
        gateway.takes();
        server.app.clock.advance(Duration::from_hours(1));
        let last = alice.say(&room, "y").await;
        gateway.wait_for("bob", &last).await;
        let events = gateway.events("bob");
        let twice = events.iter().filter(|known| **known == event).count();
        assert!(twice >= 2, "{number}: {events:?}");
    }
}

#[tokio::test]
async fn a_gateway_that_does_not_answer_keeps_nobody_waiting() {
    let server = TestServer::start_with(reachable).await;
    let (slow, gateway) = (Gateway::start().await, Gateway::start().await);
    slow.fake.never_answers(Method::POST, PATH);
    let (alice, bob, room) = two(&server, &slow).await;
    for number in 0..20 {
        slow.set(&bob, &format!("slow {number}")).await;
    }
    let (carol, dave) = (
        server.register("carol").await,
        server.register("dave").await,
    );
    for user in [&carol, &dave] {
        user.post(&format!("/join/{room}"), json!({})).await.ok();
    }
    slow.set(&dave, "dave").await;
    gateway.set(&carol, "carol").await;
    // There are fewer places for pushers that have never taken anything than bob has such pushers.
    let started = Instant::now();
    let hello = alice.say(&room, "hello").await;
    gateway.wait_for("carol", &hello).await;
    let event = alice.say(&room, "x").await;
    gateway.wait_for("carol", &event).await;
    let took = started.elapsed();
    assert!(took < Duration::from_secs(8), "they waited for {took:?}");
    // Who does not answer in time is asked again.
    slow.wait_for("dave", &hello).await;
    slow.takes();
    slow.wait(|_| slow.events("dave").len() >= 3).await;
    assert_eq!(slow.events("dave"), [hello.clone(), hello, event]);
}

#[tokio::test]
async fn rejected_keys_are_told_nothing_any_more() {
    let server = TestServer::start_with(reachable).await;
    let gateway = Gateway::start().await;
    let (alice, bob, room) = two(&server, &gateway).await;
    let (other, last) = (Gateway::start().await, "last");
    other.set(&bob, last).await;
    gateway.answers(json!({ "rejected": ["another"] }));
    let first = alice.say(&room, "first").await;
    gateway.wait_for("bob", &first).await;
    gateway.answers(json!({ "rejected": ["another", "bob"] }));
    let second = alice.say(&room, "second").await;
    gateway.wait_for("bob", &second).await;
    let is_removed = async {
        loop {
            let pushers = bob.get("/pushers").await.ok();
            if pushers["pushers"].as_array().unwrap().len() == 1 {
                return pushers["pushers"][0]["pushkey"].clone();
            }
        }
    };
    assert_eq!(within(is_removed).await, last);
    let third = alice.say(&room, "third").await;
    other.wait_for(last, &third).await;
    // The key may be good for another gateway, or later.
    gateway.takes();
    gateway.set(&bob, "bob").await;
    let fourth = alice.say(&room, "fourth").await;
    gateway.wait_for("bob", &fourth).await;
    assert_eq!(gateway.events("bob"), [first, second, fourth]);
}

#[tokio::test]
async fn what_was_read_or_redacted_meanwhile_or_is_old_is_not_told() {
    let server = TestServer::start_with(reachable).await;
    let gateway = Gateway::start().await;
    let (alice, bob, room) = two(&server, &gateway).await;
    gateway.fails(503);
    let tried = alice.say(&room, "tried").await;
    gateway.wait_for("bob", &tried).await;
    let read = alice.say(&room, "read").await;
    let redacted = alice.say(&room, "redacted").await;
    let unread = alice.say(&room, "unread").await;
    let path = format!("/rooms/{room}/receipt/m.read/{read}");
    bob.post(&path, json!({})).await.ok();
    let path = format!("/rooms/{room}/redact/{redacted}/1");
    alice.put(&path, json!({})).await.ok();
    gateway.takes();
    server.app.clock.advance(Duration::from_hours(1));
    gateway.wait_for("bob", &unread).await;
    assert_eq!(
        each_once(gateway.events("bob")),
        [tried.clone(), unread.clone()]
    );

    gateway.fails(503);
    let old = alice.say(&room, "old").await;
    gateway.wait_for("bob", &old).await;
    let older = alice.say(&room, "old too").await;
    gateway.takes();
    server.app.clock.advance(Duration::from_hours(25));
    let new = alice.say(&room, "new").await;
    gateway.wait_for("bob", &new).await;
    let events = each_once(gateway.events("bob"));
    assert_eq!(events, [tried, unread, old, new], "not {older}");
}

#[tokio::test]
async fn after_a_restart_it_goes_on_where_it_was() {
    let server = TestServer::start_with(reachable).await;
    let (gateway, gone) = (Gateway::start().await, Gateway::start().await);
    let (alice, bob, room) = two(&server, &gateway).await;
    gone.set(&bob, "gone").await;
    let mut events = vec![alice.say(&room, "one").await];
    gateway.wait_for("bob", &events[0]).await;
    gone.wait_for("gone", &events[0]).await;
    gone.fails(500);
    for number in 0..3 {
        events.push(alice.say(&room, &number.to_string()).await);
    }
    gateway.wait_for("bob", &events[3]).await;
    gone.wait_for("gone", &events[1]).await;
    drop((alice, bob));

    let server = server.restart().await;
    let alice = again(&server, "alice").await;
    gone.takes();
    server.app.clock.advance(Duration::from_hours(1));
    events.push(alice.say(&room, "five").await);
    gateway.wait_for("bob", &events[4]).await;
    gone.wait_for("gone", &events[4]).await;
    assert_eq!(gateway.events("bob"), events, "each once");
    assert_eq!(each_once(gone.events("gone")), events, "in order");
    drop(alice);

    // What happened just before the end, and what was not told by then.
    gateway.fails(500);
    let alice = again(&server, "alice").await;
    let body = json!({ "preset": "private_chat", "invite": [format!("@bob:{}", server.name())] });
    alice.create_room(body).await;
    let invite = gone.wait(|told| told["type"] == "m.room.member").await;
    events.push(invite["event_id"].as_str().unwrap().to_owned());
    events.push(alice.say(&room, "before the end").await);
    drop(alice);
    let server = server.restart().await;
    gateway.takes();
    server.app.clock.advance(Duration::from_hours(1));
    gateway.wait_for("bob", &events[6]).await;
    gone.wait_for("gone", &events[6]).await;
    assert_eq!(each_once(gateway.events("bob")), events);
    assert_eq!(each_once(gone.events("gone")), events);
}

#[tokio::test]
async fn what_the_task_has_not_written_down_is_told_again_rather_than_lost() {
    let server = TestServer::start_with(reachable).await;
    let gateway = Gateway::start().await;
    let (alice, bob, room) = two(&server, &gateway).await;
    let first = alice.say(&room, "first").await;
    gateway.wait_for("bob", &first).await;
    // As after a crash: what was told since then is not known to have been.
    server.app.clock.advance(Duration::from_mins(1));
    let is_written = async {
        while pushers::cursor(&server.app.db).await.unwrap().is_none() {
            tokio::task::yield_now().await;
        }
    };
    within(is_written).await;
    let second = alice.say(&room, "second").await;
    gateway.wait_for("bob", &second).await;
    drop((alice, bob));
    let (config, directory) = server.stop().await;
    let server = TestServer::run(config, directory).await;
    let mut change = Change::new();
    change.write(pushers::set_cursor(0));
    server.app.log.append(change).await.unwrap();
    let server = server.restart().await;
    let alice = again(&server, "alice").await;
    let third = alice.say(&room, "third").await;
    gateway.wait_for("bob", &third).await;
    let events = gateway.events("bob");
    assert_eq!(each_once(events.clone()), [first, second.clone(), third]);
}

#[tokio::test]
async fn what_the_database_fails_over_is_told_once_it_works_again() {
    let server = TestServer::start_with(reachable).await;
    let gateway = Gateway::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    // Who may see what in such a room is read from the database for each event.
    let visibility = json!({
        "type": "m.room.history_visibility", "content": { "history_visibility": "joined" },
    });
    let body = json!({ "preset": "public_chat", "initial_state": [visibility] });
    let room = alice.create_room(body).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    gateway.set(&bob, "bob").await;
    let mut events = vec![alice.say(&room, "before").await];
    gateway.wait_for("bob", &events[0]).await;
    run(&server, sql!("ALTER TABLE state_line RENAME TO away")).await;
    for number in 0..3 {
        events.push(alice.say(&room, &number.to_string()).await);
    }
    // Longer than anybody tries before giving up.
    tokio::time::sleep(Duration::from_secs(12)).await;
    run(&server, sql!("ALTER TABLE away RENAME TO state_line")).await;
    events.push(alice.say(&room, "after").await);
    gateway.wait_for("bob", &events[4]).await;
    assert_eq!(gateway.events("bob"), events);
}

#[tokio::test]
async fn a_room_that_cannot_be_read_keeps_nobody_waiting() {
    let server = TestServer::start_with(reachable).await;
    let gateway = Gateway::start().await;
    let (alice, bob, other) = two(&server, &gateway).await;
    let visibility = json!({
        "type": "m.room.history_visibility", "content": { "history_visibility": "joined" },
    });
    let body = json!({ "preset": "public_chat", "initial_state": [visibility] });
    let room = alice.create_room(body).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let before = alice.say(&room, "before").await;
    gateway.wait_for("bob", &before).await;
    let spoil = sql!(
        "UPDATE event_json SET json = 'nonsense' WHERE json LIKE '%\"history_visibility\":\"joined\"%'"
    );
    run(&server, spoil).await;
    alice.say(&room, "lost").await;
    let started = Instant::now();
    let event = alice.say(&other, "not lost").await;
    gateway.wait_for("bob", &event).await;
    let took = started.elapsed();
    assert!(took < Duration::from_secs(4), "it took {took:?}");
    assert_eq!(gateway.events("bob"), [before, event]);
}

#[tokio::test]
async fn that_somebody_waits_is_written_down_again_if_that_failed() {
    let server = TestServer::start_with(reachable).await;
    let gateway = Gateway::start().await;
    let (alice, _, room) = two(&server, &gateway).await;
    let first = alice.say(&room, "first").await;
    gateway.wait_for("bob", &first).await;
    gateway.fails(503);
    run(&server, sql!("ALTER TABLE push_cursor RENAME TO away")).await;
    let event = alice.say(&room, "second").await;
    gateway.wait_for("bob", &event).await;
    let head = server.app.head();
    // Twice over, so that once it was tried for sure.
    for _ in 0..2 {
        server.app.clock.advance(Duration::from_secs(6));
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
    run(&server, sql!("ALTER TABLE away RENAME TO push_cursor")).await;
    let is_written = async {
        while pushers::cursor(&server.app.db).await.unwrap() < Some(head) {
            server.app.clock.advance(Duration::from_secs(1));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within(is_written).await;
    let progress = pushers::progress(&server.app.db).await.unwrap();
    assert!(progress[0].waits, "after a crash it would be lost");
}

#[tokio::test]
async fn what_finds_no_place_in_the_queue_is_read_from_the_log() {
    let server = TestServer::start_with(reachable).await;
    let gateway = Gateway::start().await;
    let (alice, _, room) = two(&server, &gateway).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let (app, over) = (Arc::clone(&server.app), Arc::clone(&is_over));
    let crowd = std::thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            app.bus.pushes.tell(Push::Read(UserNid(0)));
        }
    });
    let mut events = Vec::new();
    for number in 0..20 {
        events.push(alice.say(&room, &number.to_string()).await);
    }
    gateway.wait_for("bob", &events[19]).await;
    is_over.store(true, Ordering::Relaxed);
    crowd.join().unwrap();
    assert_eq!(gateway.events("bob"), events);
}

#[tokio::test]
async fn private_addresses_are_not_connected_to() {
    let server = TestServer::start_with(|config| {
        reachable(config);
        config.push.allow_addresses.clear();
    })
    .await;
    let gateway = Gateway::start().await;
    let (alice, bob, room) = two(&server, &gateway).await;
    alice.say(&room, "x").await;
    let waits = async || {
        let progress = pushers::progress(&server.app.db).await.unwrap();
        progress.iter().any(|one| one.waits)
    };
    let is_tried = async {
        while !waits().await {
            server.app.clock.advance(Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within(is_tried).await;
    assert_eq!(gateway.told().len(), 0);
    bob.get("/pushers").await.ok();
}
