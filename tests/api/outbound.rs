//! What other servers are sent: transactions, one at a time for each, and nothing lost by an outage or a restart.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use homing::{
    bus::Effect,
    log::Change,
    rooms::Room,
    storage::{EventNid, Member, Membership, members, servers},
};
use homing_federation::request::{Authorization, Target};
use reqwest::Method;
use ruma::{RoomId, UserId};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    fake_server::{FakeServer, Recorded},
    server::{PASSWORD, TestServer, User},
};

const SEND: &str = "/_matrix/federation/v1/send/";

/// The room, as the server has it in memory.
pub async fn room(server: &TestServer, id: &str) -> Arc<Room> {
    let id = <&RoomId>::try_from(id).unwrap();
    server.app.room(id).await.unwrap()
}

/// Makes a user of another server a member of a room as far as sending goes, without the handshake and the event.
pub async fn has_joined(server: &TestServer, room_id: &str, user: &str) {
    let app = &server.app;
    let room = room(server, room_id).await;
    let user_id = UserId::parse(user).unwrap();
    let user = app.user(&user_id).await.unwrap();
    let name = user_id.server_name();
    let other = app.names.server(&app.db, &app.log, name).await.unwrap();
    let member = Member {
        room: room.nid,
        user,
        membership: Membership::Join,
        event: EventNid(0),
        sender: user,
        pos: 0,
        is_local: false,
        display_name: None,
        avatar_url: None,
        forgotten: false,
    };
    let mut change = Change::new();
    let at = change.position();
    change.write(members::set(&member, at));
    change.write(servers::set(room.nid, other, 1, app.head(), at));
    change.effect(Effect::Server {
        room: Arc::clone(&room),
        name: name.to_owned(),
        server: other,
        joined: 1,
        at,
    });
    let room = Arc::clone(&room);
    change.effect(Effect::Member { room, member, at });
    app.log.append(change).await.unwrap();
}

/// A server with a person in a room, and another server with somebody in the same.
struct Shared<'s> {
    alice: User<'s>,
    room: String,
    other: FakeServer,
}

impl<'s> Shared<'s> {
    async fn start(server: &'s TestServer) -> Self {
        let other = FakeServer::start().await;
        other.answers(Method::PUT, SEND, json!({ "pdus": {} }));
        let alice = server.register("alice").await;
        let room = alice.create_room(json!({})).await;
        has_joined(server, &room, &format!("@zoe:{}", other.name)).await;
        Self { alice, room, other }
    }
}

/// The texts of the messages in a transaction.
fn texts(request: &Recorded) -> Vec<String> {
    let pdus = request.body["pdus"].as_array().cloned().unwrap_or_default();
    let texts = pdus
        .iter()
        .filter_map(|pdu| pdu["content"]["body"].as_str());
    texts.map(ToOwned::to_owned).collect()
}

/// The transactions that came, each with its id and texts.
fn transactions(other: &FakeServer) -> Vec<(String, Vec<String>)> {
    let sent = other.recorded().into_iter();
    let sent = sent.filter(|request| request.path.starts_with(SEND));
    sent.map(|request| (request.path[SEND.len()..].to_owned(), texts(&request)))
        .collect()
}

/// Waits for the message with a text.
async fn message(other: &FakeServer, text: &str) -> Recorded {
    let wanted = |request: &Recorded| texts(request).iter().any(|one| one == text);
    other.wait_for(wanted).await
}

/// Waits for an EDU of a type.
async fn edu(other: &FakeServer, edu_type: &str) -> Value {
    let find = |request: &Recorded| {
        let edus = request.body["edus"].as_array()?.clone();
        edus.into_iter().find(|edu| edu["edu_type"] == edu_type)
    };
    let request = other.wait_for(|request| find(request).is_some()).await;
    find(&request).unwrap()["content"].clone()
}

/// Waits until something is so.
async fn until(is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let wait = tokio::time::timeout(Duration::from_secs(30), wait).await;
    wait.expect("it comes to be so");
}

#[tokio::test]
async fn events_reach_the_servers_of_their_room_as_they_were_signed() {
    let server = TestServer::federated().await;
    let shared = Shared::start(&server).await;
    let elsewhere = shared.alice.create_room(json!({})).await;
    shared.alice.say(&elsewhere, "not for you").await;
    let event_id = shared.alice.say(&shared.room, "for you").await;
    let request = message(&shared.other, "for you").await;
    assert_eq!(request.body["origin"], server.name().as_str());
    assert_eq!(request.body["pdus"].as_array().unwrap().len(), 1);
    let pdu = &request.body["pdus"][0];
    assert!(pdu["signatures"][server.name().as_str()].is_object());
    assert_eq!(pdu.get("unsigned"), None, "{pdu}");
    assert_eq!(pdu.get("event_id"), None, "{pdu} {event_id}");

    let said = request.headers["authorization"].to_str().unwrap();
    let said = Authorization::parse(said).unwrap();
    let target = Target {
        method: &Method::PUT,
        uri: &request.path,
        origin: server.name(),
        destination: &shared.other.name,
    };
    let key = server.app.signing_key.verify_key();
    assert!(target.is_signed_by(&request.raw, &key, &said.signature));
}

#[tokio::test]
async fn a_server_that_is_heard_from_again_gets_what_it_missed() {
    let server = TestServer::federated().await;
    let Shared { alice, room, other } = Shared::start(&server).await;
    other.refuses(Method::PUT, SEND, 500, "M_UNKNOWN");
    alice.say(&room, "0").await;
    message(&other, "0").await;
    until(|| server.app.bus.outgoing.failing().contains(&other.name)).await;
    // Until it is left alone for longer than this test takes.
    let advance = || server.app.clock.advance(Duration::from_hours(1));
    until(|| {
        advance();
        transactions(&other).len() > 4
    })
    .await;
    for text in 1..=60 {
        alice.say(&room, &text.to_string()).await;
    }
    let tried = transactions(&other).len();
    assert!(tried < 10, "it is left alone: {tried}");
    other.answers(Method::PUT, SEND, json!({ "pdus": {} }));
    server.app.clock.advance(Duration::from_secs(10));
    server.app.bus.outgoing.heard_from(&other.name);
    message(&other, "60").await;
    let mut sent = transactions(&other);
    let first = sent[0].clone();
    sent.retain(|transaction| *transaction != first);
    assert!(
        sent.iter().all(|(id, _)| *id != first.0),
        "the same again under the same id"
    );
    let counts: Vec<usize> = sent.iter().map(|(_, texts)| texts.len()).collect();
    assert_eq!(counts, [50, 10]);
    assert_eq!(first.1, ["0"]);
    let texts = sent.into_iter().flat_map(|(_, texts)| texts);
    let expected: Vec<String> = (1..=60).map(|text| text.to_string()).collect();
    assert_eq!(texts.collect::<Vec<_>>(), expected);
    until(|| !server.app.bus.outgoing.failing().contains(&other.name)).await;
}

#[tokio::test]
async fn after_a_restart_what_was_not_sent_is_sent() {
    let server = TestServer::federated().await;
    let Shared { alice, room, other } = Shared::start(&server).await;
    let second = alice.create_room(json!({})).await;
    has_joined(&server, &second, &format!("@zoe:{}", other.name)).await;
    alice.say(&room, "taken").await;
    message(&other, "taken").await;
    other.refuses(Method::PUT, SEND, 502, "M_UNKNOWN");
    for text in 0..25 {
        alice.say(&room, &format!("old {text}")).await;
    }
    alice.say(&second, "new").await;
    until(|| server.app.bus.outgoing.failing().contains(&other.name)).await;
    let before = transactions(&other).len();
    server.app.clock.advance(Duration::from_secs(31));
    until(|| transactions(&other).len() > before).await;
    drop(alice);
    let before = transactions(&other).len();
    other.answers(Method::PUT, SEND, json!({ "pdus": {} }));
    let server = server.restart().await;
    message(&other, "new").await;
    let sent = transactions(&other);
    let texts: Vec<&String> = sent[before..].iter().flat_map(|(_, texts)| texts).collect();
    let mut expected: Vec<String> = (5..25).map(|text| format!("old {text}")).collect();
    expected.push("new".to_owned());
    assert_eq!(texts, expected.iter().collect::<Vec<_>>());

    let alice = server.login("alice", PASSWORD, json!({})).await;
    let alice = User::new(&server, &alice.ok());
    alice.say(&room, "and on").await;
    message(&other, "and on").await;
    let last = transactions(&other).pop().unwrap();
    assert_eq!(last.1, ["and on"], "nothing is sent twice");
}

#[tokio::test]
async fn typing_and_receipts_are_told_and_private_ones_are_not() {
    let server = TestServer::federated().await;
    let Shared { alice, room, other } = Shared::start(&server).await;
    let path = format!("/rooms/{room}/typing/{}", alice.id);
    let body = json!({ "typing": true, "timeout": 10_000 });
    alice.put(&path, body).await.ok();
    let content = edu(&other, "m.typing").await;
    let expected = json!({ "room_id": room, "user_id": alice.id, "typing": true });
    assert_eq!(content, expected);

    let first = alice.say(&room, "one").await;
    let second = alice.say(&room, "two").await;
    let path = format!("/rooms/{room}/receipt/m.read.private/{second}");
    alice.post(&path, json!({})).await.ok();
    let path = format!("/rooms/{room}/receipt/m.read/{first}");
    alice.post(&path, json!({ "thread_id": "main" })).await.ok();
    let content = edu(&other, "m.receipt").await;
    let receipt = &content[&room]["m.read"][&alice.id];
    assert_eq!(receipt["event_ids"], json!([first]));
    assert_eq!(receipt["data"]["thread_id"], "main");
    assert!(receipt["data"]["ts"].is_i64());
    let all = other.recorded();
    let private = |request: &Recorded| request.body["edus"].to_string().contains(&second);
    assert!(!all.iter().any(private));
}

#[tokio::test]
async fn presence_is_told_to_servers_that_share_a_room() {
    let server = TestServer::federated().await;
    let Shared { alice, other, .. } = Shared::start(&server).await;
    let stranger = FakeServer::start().await;
    let carol = server.register("carol").await;
    let path = format!("/presence/{}/status", carol.id);
    carol.put(&path, json!({ "presence": "online" })).await.ok();
    let path = format!("/presence/{}/status", alice.id);
    let body = json!({ "presence": "online", "status_msg": "here" });
    alice.put(&path, body).await.ok();
    let content = edu(&other, "m.presence").await;
    assert_eq!(content["push"].as_array().unwrap().len(), 1);
    let said = &content["push"][0];
    assert_eq!(said["user_id"], alice.id);
    assert_eq!(said["presence"], "online");
    assert_eq!(said["status_msg"], "here");
    assert_eq!(said["currently_active"], true);
    assert!(said["last_active_ago"].as_i64().unwrap() < 10_000);
    assert!(stranger.recorded().is_empty());
}

#[tokio::test]
async fn a_server_that_comes_into_a_room_learns_who_is_there() {
    let server = TestServer::federated().await;
    let Shared { alice, room, other } = Shared::start(&server).await;
    let path = format!("/presence/{}/status", alice.id);
    let body = json!({ "presence": "online", "status_msg": "here" });
    alice.put(&path, body).await.ok();
    edu(&other, "m.presence").await;
    let second = FakeServer::start().await;
    second.answers(Method::PUT, SEND, json!({ "pdus": {} }));
    has_joined(&server, &room, &format!("@yan:{}", second.name)).await;
    let content = edu(&second, "m.presence").await;
    assert_eq!(content["push"][0]["status_msg"], "here");

    let third = FakeServer::start().await;
    third.answers(Method::PUT, SEND, json!({ "pdus": {} }));
    let bob = server.register("bob").await;
    let body = json!({ "preset": "public_chat" });
    let public = bob.create_room(body).await;
    has_joined(&server, &public, &format!("@xia:{}", third.name)).await;
    alice.post(&format!("/join/{public}"), json!({})).await.ok();
    let content = edu(&third, "m.presence").await;
    assert_eq!(content["push"][0]["user_id"], alice.id);
}

#[tokio::test]
async fn presence_is_not_told_where_that_is_turned_off() {
    let server = TestServer::federated_with(|config| config.federation.presence = false).await;
    let Shared { alice, room, other } = Shared::start(&server).await;
    let path = format!("/presence/{}/status", alice.id);
    alice.put(&path, json!({ "presence": "online" })).await.ok();
    // What comes later is sent, so the presence was passed over.
    alice.say(&room, "one").await;
    message(&other, "one").await;
    alice.say(&room, "two").await;
    message(&other, "two").await;
    let told = |request: &Recorded| request.body["edus"].to_string().contains("m.presence");
    assert!(!other.recorded().iter().any(told));
}

#[tokio::test]
async fn without_federation_nothing_is_sent() {
    let server = TestServer::federated_with(|config| config.federation.enabled = false).await;
    let Shared { alice, room, other } = Shared::start(&server).await;
    alice.say(&room, "one").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(other.recorded().is_empty());
}

/// A port on which connections are taken, and nothing is ever said. Answers how many there are.
async fn silence() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        let mut taken = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            taken.push(connection);
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    (port, count)
}

#[tokio::test]
async fn made_up_servers_do_not_keep_others_waiting() {
    let server = TestServer::federated().await;
    let Shared { alice, room, other } = Shared::start(&server).await;
    alice.say(&room, "before").await;
    message(&other, "before").await;
    let (port, taken) = silence().await;
    let crowded = alice.create_room(json!({})).await;
    for number in 1..=150 {
        has_joined(&server, &crowded, &format!("@x:127.0.0.{number}:{port}")).await;
    }
    alice.say(&crowded, "who is there?").await;
    until(|| taken.load(Ordering::Relaxed) >= 48).await;
    // Who waits like the others comes after all of them.
    let expect_quick = |who: &str| {
        let tried = taken.load(Ordering::Relaxed);
        assert!(tried < 100, "{who} need not wait: {tried}");
    };

    alice.say(&room, "after").await;
    message(&other, "after").await;
    expect_quick("who has taken something before");

    let new = FakeServer::start().await;
    new.answers(Method::PUT, SEND, json!({ "pdus": {} }));
    has_joined(&server, &room, &format!("@new:{}", new.name)).await;
    alice.say(&room, "to somebody new").await;
    message(&other, "to somebody new").await;
    assert_eq!(transactions(&new), [], "it waits like the others");
    server.app.bus.outgoing.heard_from(&new.name);
    message(&new, "to somebody new").await;
    expect_quick("who was heard from");

    let known = FakeServer::start().await;
    known.answers(Method::PUT, SEND, json!({ "pdus": {} }));
    server.app.bus.outgoing.heard_from(&known.name);
    has_joined(&server, &room, &format!("@known:{}", known.name)).await;
    alice.say(&room, "to all").await;
    message(&known, "to all").await;
    expect_quick("who was heard from before");
}
