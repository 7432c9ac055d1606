//! What comes late from another server, or rests on what it does not tell.

use axum::{Json, response::IntoResponse as _};
use homing::{
    args, sql,
    storage::timeline::{self, Place},
};
use homing_federation::Pdu;
use reqwest::Method;
use ruma::{OwnedEventId, RoomId, UInt};
use serde_json::{Value, json};

use crate::{
    fake_room::{FakeRoom, pdu, value},
    fake_server::{FakeServer, error},
    server::TestServer,
    shared_rooms::sees,
};

const FEDERATION: &str = "/_matrix/federation";

/// What is said in a list of events.
fn texts(events: &Value) -> Vec<String> {
    let events = events.as_array().unwrap().iter();
    let bodies = events.filter_map(|event| event["content"]["body"].as_str());
    bodies.map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn a_branch_that_comes_late_hides_nothing_that_came_before() {
    let (here, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = here.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let guest = FakeRoom::join(&fake, &here, &room).await;
    let late = guest.sign(&fake, guest.message("late"));
    for text in ["1", "2", "3", "4"] {
        alice.say(&room, text).await;
    }
    guest.send(&fake, &here, &[&late]).await.ok();
    sees(&alice, &room, late.event_id.as_str()).await;
    // The history does not end with what came last.
    let path = format!("/rooms/{room}/messages?dir=b");
    let messages = alice.get(&format!("{path}&limit=4")).await.ok();
    assert_eq!(texts(&messages["chunk"]), ["4", "3", "2", "late"]);

    for text in ["5", "6", "7"] {
        alice.say(&room, text).await;
    }
    for (limit, timeline, before) in [
        (4, vec!["late", "5", "6", "7"], vec!["4", "3", "2", "1"]),
        (3, vec!["5", "6", "7"], vec!["4", "3", "2", "late", "1"]),
    ] {
        let filter = json!({ "room": { "timeline": { "limit": limit } } });
        let sync = alice.sync(&format!("filter={filter}")).await;
        let told = &sync["rooms"]["join"][&room]["timeline"];
        assert_eq!(texts(&told["events"]), timeline);
        let from = told["prev_batch"].as_str().unwrap();
        let limit = before.len();
        let path = format!("{path}&limit={limit}&from={from}");
        let messages = alice.get(&path).await.ok();
        assert_eq!(texts(&messages["chunk"]), before);
        // What was in the timeline does not come again on the way.
        let (mut found, mut place) = (Vec::new(), from.to_owned());
        while found.len() < before.len() {
            let path = format!("/rooms/{room}/messages?dir=b&limit=2&from={place}");
            let messages = alice.get(&path).await.ok();
            found.extend(texts(&messages["chunk"]));
            messages["end"].as_str().unwrap().clone_into(&mut place);
        }
        found.truncate(before.len());
        assert_eq!(found, before);
        let path = format!("/rooms/{room}/messages?dir=f&limit=3&from={from}");
        let messages = alice.get(&path).await.ok();
        assert_eq!(messages["chunk"].as_array().unwrap().len(), 3);
    }
}

#[tokio::test]
async fn the_end_of_the_history_is_known_at_each_position() {
    let (here, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = here.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let guest = FakeRoom::join(&fake, &here, &room).await;
    for round in 0..3 {
        for number in 0..3 {
            alice.say(&room, &format!("{round} {number}")).await;
        }
        let late: Vec<Pdu> = (0..3)
            .map(|number| guest.sign(&fake, guest.message(&format!("late {round} {number}"))))
            .collect();
        let all: Vec<&Pdu> = late.iter().collect();
        guest.send(&fake, &here, &all).await.ok();
        for pdu in &late {
            sees(&alice, &room, pdu.event_id.as_str()).await;
        }
    }
    let db = &here.app.db;
    let id = RoomId::parse(&room).unwrap();
    let nid = here.app.room(&id).await.unwrap().nid;
    let rows =
        sql!("SELECT pos, depth, ord FROM event WHERE room_nid = $1 AND pos > 0 ORDER BY pos");
    let mut end = Place::START;
    let mut is_last = Vec::new();
    for row in db.rows(rows, args![nid]).await.unwrap() {
        let get = |column| row.get::<i64>(column).unwrap();
        let (pos, place) = (
            get(0),
            Place {
                depth: get(1),
                ord: get(2),
            },
        );
        end = end.max(place);
        is_last.push(end == place);
        assert_eq!(timeline::end_at(db, nid, pos).await.unwrap(), end);
    }
    assert_eq!(is_last.iter().filter(|is_last| !**is_last).count(), 9);
}

#[tokio::test]
async fn what_was_said_to_few_stays_so_when_branches_meet() {
    let (here, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = here.register("alice").await;
    for first in [None, Some("shared")] {
        let mut room = FakeRoom::create(&fake, "11");
        let visibility = "m.room.history_visibility";
        if let Some(first) = first {
            let content = json!({ "history_visibility": first });
            room.set(&fake, visibility, "", content);
        }
        let levels = |level: i64| json!({ "users": { room.user.as_str(): 100, &alice.id: level } });
        let (moderator, nobody) = (levels(50), levels(0));
        let power = "m.room.power_levels";
        let before = value(&room.state[&(power.to_owned(), String::new())]);
        room.set(&fake, power, "", moderator);
        room.host(&fake, move |answer| {
            let chain = answer["auth_chain"].as_array_mut().unwrap();
            chain.push(before.clone());
        });
        let path = format!("/join/{}?via={}", room.id, fake.name);
        alice.post(&path, json!({})).await.ok();
        let start = format!("{FEDERATION}/v2/send_join/{}", room.id);
        let join = fake.wait_for(|it| it.path.starts_with(&start)).await;
        room.follow(&pdu(&join.body, room.rules));
        let id = room.id.to_string();

        let path = format!("/rooms/{id}/state/{visibility}");
        let joined = json!({ "history_visibility": "joined" });
        alice.put(&path, joined).await.ok();
        alice.say(&id, "secret").await;
        // Beside that she loses the power to say who may read.
        let beside = room.set(&fake, power, "", nobody);
        room.send(&fake, &here, &[&beside]).await.ok();
        sees(&alice, &id, beside.event_id.as_str()).await;
        match first {
            Some(first) => {
                let now = alice.get(&path).await.ok();
                assert_eq!(now["history_visibility"], first);
            }
            None => drop(alice.get(&path).await.fails(404, "M_NOT_FOUND")),
        }
        let said = alice.say(&id, "for all").await;

        let name = format!("carol{}", first.unwrap_or_default());
        let carol = here.register(&name).await;
        carol.post(&format!("/join/{id}"), json!({})).await.ok();
        sees(&carol, &id, &said).await;
        for user in [&alice, &carol] {
            let path = format!("/rooms/{id}/messages?dir=b&limit=100");
            let read = user.get(&path).await.ok();
            let read = texts(&read["chunk"]);
            let may = user.id == alice.id;
            assert_eq!(
                read.contains(&"secret".to_owned()),
                may,
                "{first:?} {read:?}"
            );
        }
        let other = FakeServer::start().await;
        FakeRoom::join(&other, &here, &id).await;
        let path = format!("{FEDERATION}/v1/backfill/{id}?v={said}&limit=100");
        let told = other.get(&here, &path).await.ok();
        let told = texts(&told["pdus"]);
        assert_eq!(told, ["for all"], "{first:?}");
    }
}

#[tokio::test]
async fn who_does_not_tell_what_came_before_is_not_asked_for_the_state_at_once() {
    let (here, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = here.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let mut guest = FakeRoom::join(&fake, &here, &room).await;
    guest.say(&fake, "untold");
    let missing = format!("{FEDERATION}/v1/get_missing_events/");
    let states = format!("{FEDERATION}/v1/state_ids/");
    let asked = |id: OwnedEventId| {
        let missing = missing.clone();
        fake.wait_for(move |request| {
            request.path.starts_with(&missing) && request.body["latest_events"] == json!([id])
        })
    };
    // One that answers with nothing good, and one that does not answer as it should.
    for answer in [json!({ "events": [{ "bad": 1.5 }] }), json!({})] {
        fake.answers(Method::POST, &missing, answer.clone());
        let first = guest.sign(&fake, guest.message(&answer.to_string()));
        guest.send(&fake, &here, &[&first]).await.ok();
        asked(first.event_id.clone()).await;
    }
    fake.refuses(Method::POST, &missing, 500, "M_UNKNOWN");
    let last = guest.sign(&fake, guest.message("last"));
    guest.send(&fake, &here, &[&last]).await.ok();
    asked(last.event_id.clone()).await;
    // Where there is no answer at all, the state is all there is to ask for.
    fake.wait_for(move |request| request.path.starts_with(&states))
        .await;
    let states = fake.recorded();
    let states = states.iter().filter(|it| it.path.contains("/state_ids/"));
    assert_eq!(states.count(), 1, "for the last event alone");
}

#[tokio::test]
async fn an_event_that_another_one_allows_is_taken_with_the_state_before_it() {
    let (here, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = here.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let mut guest = FakeRoom::join(&fake, &here, &room).await;
    let user = guest.user.to_string();
    let before: Vec<OwnedEventId> = guest
        .state
        .iter()
        .filter(|((kind, _), _)| kind != "m.room.member")
        .map(|(_, pdu)| pdu.event_id.clone())
        .collect();
    // Each of them allows the next one.
    let mut names = Vec::new();
    for name in 0..6_u32 {
        let content = json!({ "membership": "join", "displayname": name.to_string() });
        let mut draft = guest.draft("m.room.member", Some(&user), content);
        // Where branches meet the later one counts.
        draft.origin_server_ts.0 += UInt::from(name);
        let pdu = guest.sign(&fake, draft);
        guest.follow(&pdu);
        names.push(pdu);
    }
    let all: Vec<_> = names
        .iter()
        .map(|pdu| (pdu.event_id.clone(), value(pdu)))
        .collect();
    fake.on(
        Method::GET,
        &format!("{FEDERATION}/v1/event/"),
        move |request| {
            let found = all
                .iter()
                .find(|(id, _)| request.path.ends_with(id.as_str()));
            match found {
                Some((_, pdu)) => {
                    Json(json!({ "origin": "x", "origin_server_ts": 1, "pdus": [pdu] }))
                        .into_response()
                }
                None => error(404, "M_NOT_FOUND"),
            }
        },
    );
    let missing = json!({ "events": [value(&names[4])] });
    fake.answers(
        Method::POST,
        &format!("{FEDERATION}/v1/get_missing_events/"),
        missing,
    );
    let mut ids = before;
    ids.push(names[2].event_id.clone());
    let chain: Vec<_> = names[..2].iter().map(|pdu| &pdu.event_id).collect();
    let states = format!("{FEDERATION}/v1/state_ids/");
    let state = json!({ "pdu_ids": ids, "auth_chain_ids": chain });
    fake.answers(Method::GET, &states, state);
    guest.send(&fake, &here, &[&names[5]]).await.ok();
    sees(&alice, &room, names[5].event_id.as_str()).await;
    assert_eq!(fake.count(&Method::GET, &states), 1);
    let path = format!("/rooms/{room}/state/m.room.member/{user}");
    assert_eq!(alice.get(&path).await.ok()["displayname"], "5");
}
