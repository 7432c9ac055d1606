//! Servers that send events and do not tell what these rest on, or tell nonsense.

use std::time::Duration;

use axum::{Json, response::IntoResponse as _};
use homing::{args, log::Change, sql, storage::Write};
use homing_federation::{Draft, Pdu};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    fake_room::{FakeRoom, outcome, transaction, value},
    fake_server::{FakeServer, endless},
    hostile_transactions::{seen, shared},
    server::{TestServer, User},
    shared_rooms::sees,
};

const V1: &str = "/_matrix/federation/v1";

/// How many events wait.
pub async fn waiting(server: &TestServer) -> i64 {
    let query = sql!("SELECT count(*) FROM inbound_pdu");
    let row = server.app.db.one(query, args![]).await.unwrap();
    row.get(0).unwrap()
}

/// Waits until each of those that wait was tried.
pub async fn until_tried(server: &TestServer) {
    let query = sql!("SELECT count(*) FROM inbound_pdu WHERE attempts = 0");
    let untried = async || {
        let row = server.app.db.one(query, args![]).await.unwrap();
        row.get::<i64>(0).unwrap()
    };
    while untried().await > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// An event that follows one which is not sent.
fn after_a_gap(room: &FakeRoom, fake: &FakeServer, text: &str) -> (Pdu, Pdu) {
    let mut room = room.clone();
    let before = room.say(fake, &format!("before {text}"));
    (before, room.say(fake, text))
}

/// Tells which events are missing.
fn tells_missing(fake: &FakeServer, events: &[&Pdu]) {
    let events: Vec<Value> = events.iter().map(|pdu| value(pdu)).collect();
    let path = format!("{V1}/get_missing_events/");
    fake.answers(Method::POST, &path, json!({ "events": events }));
}

#[tokio::test]
async fn who_does_not_answer_holds_up_nobody_else() {
    // More rooms than events on which is worked at the same time.
    const ROOMS: usize = 30;
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let (honest, alice) = (FakeServer::start().await, server.register("alice").await);
    fake.never_answers(Method::POST, V1);
    fake.never_answers(Method::GET, V1);
    let mut rooms = Vec::new();
    for _ in 0..ROOMS {
        let room = shared(&alice, &fake, "12").await;
        for number in 0..2 {
            let (_, late) = after_a_gap(&room, &fake, &number.to_string());
            let answer = room.send(&fake, &server, &[&late]).await.ok();
            assert_eq!(outcome(&answer, late.event_id.as_str()), Some(false));
        }
        rooms.push(room);
    }
    let asked = |it: &crate::fake_server::Recorded| it.path.contains("/get_missing_events/");
    fake.wait_for(asked).await;
    for room in [&rooms[0], &rooms[ROOMS - 1]] {
        let theirs = FakeRoom::join(&honest, &server, room.id.as_str()).await;
        let (before, after) = after_a_gap(&theirs, &honest, "honest");
        tells_missing(&honest, &[&before]);
        theirs.send(&honest, &server, &[&after]).await.ok();
        sees(&alice, room.id.as_str(), after.event_id.as_str()).await;
        assert!(seen(&alice, room, before.event_id.as_str()).await.is_some());
        // What needs nothing else is not held up either.
        let said = alice.say(room.id.as_str(), "still here").await;
        sees(&alice, room.id.as_str(), &said).await;
    }
    assert_eq!(waiting(&server).await, i64::try_from(2 * ROOMS).unwrap());
    // A server that does not answer is asked for a few things at a time.
    let asked = fake.count(&Method::POST, &format!("{V1}/get_missing_events/"));
    assert!(asked < ROOMS / 2, "{asked}");
}

#[tokio::test]
async fn strangers_hold_up_nobody_in_the_room() {
    // As many as can have all events on which is worked at the same time, each with as many as one can have.
    const STRANGERS: usize = 12;
    let server = TestServer::federated().await;
    let (honest, alice) = (FakeServer::start().await, server.register("alice").await);
    let rooms = [
        shared(&alice, &honest, "12").await,
        shared(&alice, &honest, "12").await,
    ];
    let mut strangers = Vec::new();
    for _ in 0..STRANGERS {
        let stranger = FakeServer::start().await;
        stranger.never_answers(Method::POST, V1);
        stranger.never_answers(Method::GET, V1);
        for room in &rooms {
            let user = format!("@x:{}", stranger.name).try_into().unwrap();
            let room = FakeRoom {
                user,
                ..room.clone()
            };
            let (_, late) = after_a_gap(&room, &stranger, "strange");
            let answer = room.send(&stranger, &server, &[&late]).await.ok();
            assert_eq!(outcome(&answer, late.event_id.as_str()), Some(false));
        }
        strangers.push(stranger);
    }
    let asked = |it: &crate::fake_server::Recorded| it.path.contains("/get_missing_events/");
    strangers[0].wait_for(asked).await;
    for room in &rooms {
        let (before, after) = after_a_gap(room, &honest, "honest");
        tells_missing(&honest, &[&before]);
        room.send(&honest, &server, &[&after]).await.ok();
        sees(&alice, room.id.as_str(), after.event_id.as_str()).await;
    }
}

/// How long it takes until an event is known that a server sends which answers so, when somebody else knows more.
async fn until_another_is_asked(answers: fn(&FakeServer, Method)) -> Duration {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let (honest, alice) = (FakeServer::start().await, server.register("alice").await);
    let room = shared(&alice, &fake, "12").await;
    let theirs = FakeRoom::join(&honest, &server, room.id.as_str()).await;
    answers(&fake, Method::POST);
    answers(&fake, Method::GET);
    let ids: Vec<_> = theirs
        .state
        .values()
        .map(|pdu| pdu.event_id.clone())
        .collect();
    let ids = json!({ "pdu_ids": ids, "auth_chain_ids": ids });
    honest.answers(Method::GET, &format!("{V1}/state_ids/"), ids);
    let (_, late) = after_a_gap(&room, &fake, "late");
    let began = std::time::Instant::now();
    room.send(&fake, &server, &[&late]).await.ok();
    while seen(&alice, &room, late.event_id.as_str()).await.is_none() {
        assert!(
            began.elapsed() < Duration::from_secs(50),
            "nobody else is asked"
        );
        let since = alice.sync("").await["next_batch"].clone();
        let since = since.as_str().unwrap();
        alice.sync(&format!("since={since}&timeout=1000")).await;
    }
    began.elapsed()
}

#[tokio::test]
async fn who_does_not_answer_is_not_waited_for() {
    let silent = until_another_is_asked(|fake, method| fake.never_answers(method, V1));
    let dripping = until_another_is_asked(|fake, method| {
        fake.on(method, V1, |_| endless(b" ", Duration::from_millis(100)));
    });
    let endless = until_another_is_asked(|fake, method| {
        fake.on(method, V1, |_| {
            endless(&[b' '; 1 << 14], Duration::from_millis(1))
        });
    });
    let (_, dripping, endless) = tokio::join!(silent, dripping, endless);
    // These two are given up before their time.
    assert!(dripping < Duration::from_secs(25), "{dripping:?}");
    assert!(endless < Duration::from_secs(25), "{endless:?}");
}

#[tokio::test]
async fn an_event_is_not_lost_by_who_sent_it_first() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let (honest, alice) = (FakeServer::start().await, server.register("alice").await);
    let room = shared(&alice, &fake, "12").await;
    fake.on(Method::POST, V1, |_: &_| {
        endless(b"", Duration::from_hours(1))
    });
    let theirs = FakeRoom::join(&honest, &server, room.id.as_str()).await;
    let (before, after) = after_a_gap(&theirs, &honest, "honest");
    room.send(&fake, &server, &[&after]).await.ok();
    let asked = |it: &crate::fake_server::Recorded| it.path.contains("/get_missing_events/");
    fake.wait_for(asked).await;
    tells_missing(&honest, &[&before]);
    theirs.send(&honest, &server, &[&after]).await.ok();
    sees(&alice, room.id.as_str(), after.event_id.as_str()).await;
}

#[tokio::test]
async fn only_so_many_events_of_a_server_wait() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let (honest, alice) = (FakeServer::start().await, server.register("alice").await);
    let room = shared(&alice, &fake, "12").await;
    fake.on(Method::POST, V1, |_: &_| {
        endless(b"", Duration::from_hours(1))
    });
    let late: Vec<Pdu> = (0..250)
        .map(|number| after_a_gap(&room, &fake, &number.to_string()).1)
        .collect();
    let mut refused = 0;
    for some in late.chunks(50) {
        let some: Vec<&Pdu> = some.iter().collect();
        let answer = room.send(&fake, &server, &some).await.ok();
        let is_refused = |pdu: &&&Pdu| outcome(&answer, pdu.event_id.as_str()) == Some(true);
        refused += some.iter().filter(is_refused).count();
    }
    assert_eq!((refused, waiting(&server).await), (50, 200));
    let theirs = FakeRoom::join(&honest, &server, room.id.as_str()).await;
    let (before, after) = after_a_gap(&theirs, &honest, "honest");
    tells_missing(&honest, &[&before]);
    theirs.send(&honest, &server, &[&after]).await.ok();
    sees(&alice, room.id.as_str(), after.event_id.as_str()).await;
}

#[tokio::test]
async fn nonsense_about_what_is_missing_is_no_way_in() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = shared(&alice, &fake, "12").await;
    let other = shared(&alice, &fake, "12").await;
    let (before, late) = after_a_gap(&room, &fake, "late");
    let elsewhere = other.sign(&fake, other.message("elsewhere"));
    let intruder = format!("@intruder:{}", fake.name);
    let content = json!({ "membership": "join" });
    let intruder = Draft {
        sender: intruder.as_str().try_into().unwrap(),
        ..other.draft("m.room.member", Some(&intruder), content)
    };
    let intruder = other.sign(&fake, intruder);
    // Circles, events of other rooms, and what is none.
    let id = late.event_id.clone();
    let mut texts = other.state();
    texts.extend([&late, &elsewhere, &intruder, &late].map(value));
    texts.extend([json!(5), json!(null)]);
    let ids = json!([
        id,
        before.event_id,
        elsewhere.event_id,
        intruder.event_id,
        id
    ]);
    fake.answers(
        Method::POST,
        &format!("{V1}/get_missing_events/"),
        json!({ "events": texts }),
    );
    let state = json!({ "pdu_ids": ids, "auth_chain_ids": ids });
    fake.answers(Method::GET, &format!("{V1}/state_ids/"), state);
    let state = json!({ "pdus": texts, "auth_chain": texts });
    fake.answers(Method::GET, &format!("{V1}/state/"), state);
    fake.answers(
        Method::GET,
        &format!("{V1}/event_auth/"),
        json!({ "auth_chain": texts }),
    );
    for pdu in [&late, &intruder] {
        let event = json!({ "origin": fake.name, "origin_server_ts": 1, "pdus": [value(pdu)] });
        fake.answers(Method::GET, &format!("{V1}/event/"), event);
    }
    room.send(&fake, &server, &[&late]).await.ok();
    // Each time it is tried again; at last it is judged by a state in which its sender is nobody.
    while waiting(&server).await > 0 {
        server.app.clock.advance(Duration::from_hours(1));
        room.send(&fake, &server, &[&late]).await.ok();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(fake.count(&Method::GET, &format!("{V1}/state_ids/")) > 0);
    assert_eq!(seen(&alice, &room, late.event_id.as_str()).await, None);
    let members = alice
        .get(&format!("/rooms/{}/joined_members", room.id))
        .await
        .ok();
    assert_eq!(members["joined"].as_object().unwrap().len(), 2);
    let good = room.sign(&fake, room.message("good"));
    room.send(&fake, &server, &[&good]).await.ok();
    sees(&alice, room.id.as_str(), good.event_id.as_str()).await;
    alice.say(room.id.as_str(), "and on").await;
}

#[tokio::test]
async fn trouble_with_one_room_is_none_for_the_others() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let broken = shared(&alice, &fake, "12").await;
    let whole = shared(&bob, &fake, "12").await;
    let levels = &broken.state[&("m.room.power_levels".to_owned(), String::new())];
    let mut change = Change::new();
    let update = sql!(
        "UPDATE event_json SET json = $2 WHERE nid = (SELECT nid FROM event WHERE event_id = $1)"
    );
    change.write(Write::Run(
        update,
        args![levels.event_id.as_str(), "nonsense"],
    ));
    server.app.log.append(change).await.unwrap();
    let [alice, bob] = [alice, bob].map(|user| (user.id, user.token));
    let server = server.restart().await;
    let [alice, bob] = [alice, bob].map(|(id, token)| User {
        server: &server,
        id,
        token,
        device_id: String::new(),
    });
    let first = broken.sign(&fake, broken.message("first"));
    let second = whole.sign(&fake, whole.message("second"));
    let both = [value(&first), value(&second)];
    let answer = transaction(&fake, &server, &both, &[]).await.ok();
    for pdu in [&first, &second] {
        assert_eq!(
            outcome(&answer, pdu.event_id.as_str()),
            Some(false),
            "{answer}"
        );
    }
    sees(&bob, whole.id.as_str(), second.event_id.as_str()).await;
    // It is kept until the trouble is over.
    assert_eq!(waiting(&server).await, 1);
    let mut change = Change::new();
    change.write(Write::Run(
        update,
        args![levels.event_id.as_str(), &*levels.json],
    ));
    server.app.log.append(change).await.unwrap();
    server.app.clock.advance(Duration::from_mins(10));
    let (_, late) = after_a_gap(&broken, &fake, "late");
    broken.send(&fake, &server, &[&late]).await.ok();
    sees(&alice, broken.id.as_str(), first.event_id.as_str()).await;
}

#[tokio::test]
async fn a_long_auth_chain_keeps_nobody_waiting() {
    const LENGTH: usize = 10_000;
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = shared(&alice, &fake, "12").await;
    let mut far = room.clone();
    let mut chain = Vec::with_capacity(LENGTH);
    let user = room.user.to_string();
    for number in 0..LENGTH {
        let member = json!({ "membership": "join", "displayname": number.to_string() });
        chain.push(value(&far.set(&fake, "m.room.member", &user, member)));
    }
    let late = far.sign(
        &fake,
        Draft {
            prev_events: room.latest.clone(),
            ..far.message("late")
        },
    );
    let answer = json!({ "auth_chain": chain });
    let path = format!("{V1}/event_auth/");
    fake.on(Method::GET, &path, move |_| {
        Json(answer.clone()).into_response()
    });
    room.send(&fake, &server, &[&late]).await.ok();
    fake.wait_for(|it| it.path.contains("/event_auth/")).await;
    let other = shared(&alice, &fake, "12").await;
    let started = std::time::Instant::now();
    while seen(&alice, &room, late.event_id.as_str()).await.is_none() {
        let good = other.sign(&fake, other.message("meanwhile"));
        let asked = std::time::Instant::now();
        other.send(&fake, &server, &[&good]).await.ok();
        sees(&alice, other.id.as_str(), good.event_id.as_str()).await;
        assert!(asked.elapsed() < Duration::from_secs(10));
        assert!(started.elapsed() < Duration::from_mins(2));
    }
}

#[tokio::test]
async fn a_wide_auth_chain_keeps_nobody_waiting() {
    // Each event rests on two or three of the layer before it: there are more ways through all that than anybody can go.
    const LAYERS: usize = 700;
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let mut room = FakeRoom::create(&fake, "11");
    room.host(&fake, |_| {});
    let path = format!("/join/{}?via={}", room.id, fake.name);
    alice.post(&path, json!({})).await.ok();
    let user = room.user.to_string();
    let levels = json!({ "users": { &user: 100, alice.id.as_str(): 100 } });
    let path = format!("/rooms/{}/messages?dir=b&limit=1", room.id);
    let newest = alice.get(&path).await.ok()["chunk"][0]["event_id"].clone();
    room.latest = vec![newest.as_str().unwrap().try_into().unwrap()];
    room.depth += 1;
    let power = room.set(&fake, "m.room.power_levels", "", levels.clone());
    room.send(&fake, &server, &[&power]).await.ok();

    let mut far = room.clone();
    let mut chain = Vec::new();
    for number in 0..LAYERS {
        let mut levels = levels.clone();
        levels["users_default"] = json!(number % 50);
        let member = json!({ "membership": "join", "displayname": number.to_string() });
        let rules = json!({ "join_rule": "public", "number": number });
        for (kind, key, content) in [
            ("m.room.power_levels", "", levels),
            ("m.room.member", user.as_str(), member),
            ("m.room.join_rules", "", rules),
        ] {
            chain.push(value(&far.set(&fake, kind, key, content)));
        }
    }
    chain.reverse();
    let answer = json!({ "auth_chain": chain });
    let path = format!("{V1}/event_auth/");
    fake.on(Method::GET, &path, move |_| {
        Json(answer.clone()).into_response()
    });
    // What they do to the state has to be resolved with what alice has done to it.
    let topic = |text: &str| json!({ "topic": text });
    let path = format!("/rooms/{}/state/m.room.topic", room.id);
    alice.put(&path, topic("of alice")).await.ok();
    far.latest.clone_from(&room.latest);
    let late = far.sign(&fake, far.draft("m.room.topic", Some(""), topic("late")));
    room.send(&fake, &server, &[&late]).await.ok();
    fake.wait_for(|it| it.path.contains("/event_auth/")).await;
    let other = shared(&alice, &fake, "12").await;
    let started = std::time::Instant::now();
    while waiting(&server).await > 0 {
        let good = other.sign(&fake, other.message("meanwhile"));
        let asked = std::time::Instant::now();
        other.send(&fake, &server, &[&good]).await.ok();
        sees(&alice, other.id.as_str(), good.event_id.as_str()).await;
        assert!(asked.elapsed() < Duration::from_secs(10));
        assert!(started.elapsed() < Duration::from_mins(2));
    }
    alice.say(room.id.as_str(), "and on").await;
    // Others are told of it in the same way, each event once.
    let path = format!("{V1}/event_auth/{}/{}", room.id, late.event_id);
    let told = fake.get(&server, &path).await.ok();
    let told = told["auth_chain"].as_array().unwrap();
    let mut ids: Vec<String> = told
        .iter()
        .map(|event| homing_federation::received::event_id_of(&event.to_string(), room.rules))
        .map(|id| id.unwrap().to_string())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), told.len());
    assert!(told.len() >= 3 * LAYERS - 1, "{}", told.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_many_servers_bring_at_once_comes_once() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let mut room = shared(&alice, &fake, "12").await;
    let mut others = Vec::new();
    for _ in 0..3 {
        let other = FakeServer::start().await;
        let theirs = FakeRoom::join(&other, &server, room.id.as_str()).await;
        room.latest.clone_from(&theirs.latest);
        room.depth = theirs.depth;
        others.push(other);
    }
    let mut expected = Vec::new();
    for round in 0..12 {
        let events: Vec<Pdu> = (0..5)
            .map(|number| room.say(&fake, &format!("{round} {number}")))
            .collect();
        let events: Vec<&Pdu> = events.iter().collect();
        let one_by_one = async |from: &FakeServer| {
            for pdu in &events {
                room.send(from, &server, &[pdu]).await.ok();
            }
        };
        let ([first, second, third], text) = (
            [&others[0], &others[1], &others[2]].map(one_by_one),
            round.to_string(),
        );
        let says = async || {
            let mut said = Vec::new();
            for _ in 0..5 {
                said.push(alice.say(room.id.as_str(), &text).await);
            }
            said
        };
        let all = room.send(&fake, &server, &events);
        let (answer, (), (), (), said) = tokio::join!(all, first, second, third, says());
        answer.ok();
        expected.extend(said);
        expected.extend(events.iter().map(|pdu| pdu.event_id.to_string()));
    }
    expected.sort_unstable();
    let (id, token) = (alice.id.clone(), alice.token.clone());
    let server = server.restart().await;
    let alice = User {
        server: &server,
        id,
        token,
        device_id: String::new(),
    };
    alice.say(room.id.as_str(), "after all").await;
    let path = format!("/rooms/{}/messages?dir=b&limit=500", room.id);
    let answer = alice.get(&path).await.ok();
    let events = answer["chunk"].as_array().unwrap().iter();
    let mut found: Vec<_> = events
        .map(|event| event["event_id"].as_str().unwrap().to_owned())
        .filter(|id| expected.binary_search(id).is_ok())
        .collect();
    found.sort_unstable();
    assert_eq!(found, expected);
}
