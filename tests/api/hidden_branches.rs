//! What happened elsewhere before somebody joined, and comes when they have: history visibility goes by an event's place in
//! the room, not by when it came ("Room history visibility", "Server behaviour").

use axum::{Json, response::IntoResponse as _};
use homing_federation::{Draft, Pdu, strict_json};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    fake_room::{FakeRoom, value},
    fake_server::FakeServer,
    links::{LinkedServer, Links},
    server::{TestServer, User},
    shared_rooms::sees,
};

pub const V1: &str = "/_matrix/federation/v1";
/// A word that only those events have that came late.
const SECRET: &str = "secret";

async fn room_with(alice: &User<'_>, visibility: &str) -> String {
    let body = json!({
        "preset": "public_chat",
        "initial_state": [{
            "type": "m.room.history_visibility", "state_key": "",
            "content": { "history_visibility": visibility },
        }],
    });
    alice.create_room(body).await
}

/// A user who has joined, with where their first sync ended.
async fn joined<'s>(server: &'s TestServer, room: &str, name: &str) -> (User<'s>, String) {
    let user = server.register(name).await;
    user.post(&format!("/join/{room}"), json!({})).await.ok();
    let since = next(&user.sync("").await);
    (user, since)
}

fn next(sync: &Value) -> String {
    sync["next_batch"].as_str().unwrap().to_owned()
}

/// An event of the guest with this content, which others hold for secret.
fn secret(guest: &FakeRoom, fake: &FakeServer, mut content: Value) -> Pdu {
    content["msgtype"] = "m.text".into();
    content["body"] = SECRET.into();
    let content = strict_json(content.to_string().as_bytes()).unwrap();
    let draft = Draft {
        content,
        ..guest.message("")
    };
    guest.sign(fake, draft)
}

/// What is unread: highlights and notifications.
fn unread(sync: &Value, room: &str) -> (i64, i64) {
    let unread = &sync["rooms"]["join"][room]["unread_notifications"];
    let count = |key: &str| unread[key].as_i64().expect("a count");
    (count("highlight_count"), count("notification_count"))
}

/// Whether a branch from before somebody's join is shown to who joined then, by the room's visibility; whether they were
/// invited where it begins.
const TABLE: [(&str, bool, bool); 5] = [
    ("joined", false, false),
    ("joined", true, false),
    ("invited", false, false),
    ("invited", true, true),
    ("shared", false, true),
];

#[tokio::test]
async fn who_joins_is_shown_what_branched_off_before_as_the_visibility_says() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    for (number, (visibility, is_invited, is_shown)) in TABLE.into_iter().enumerate() {
        let what = format!("{visibility} {is_invited}");
        let room = room_with(&alice, visibility).await;
        let bob = server.register(&format!("bob{number}")).await;
        if is_invited {
            let path = format!("/rooms/{room}/invite");
            alice.post(&path, json!({ "user_id": bob.id })).await.ok();
        }
        let mut guest = FakeRoom::join(&fake, &server, &room).await;
        bob.post(&format!("/join/{room}"), json!({})).await.ok();
        let first = next(&bob.sync("").await);

        let mention = json!({ "m.mentions": { "user_ids": [bob.id] } });
        let secrets = [json!({}), mention].map(|content| {
            let pdu = secret(&guest, &fake, content);
            guest.follow(&pdu);
            pdu
        });
        guest.send(&fake, &server, &secrets.each_ref()).await.ok();
        sees(&alice, &room, secrets[1].event_id.as_str()).await;
        alice.say(&room, "after").await;

        let told = bob.sync(&format!("since={first}")).await;
        let whole = bob.sync("").await;
        for sync in [&told, &whole] {
            assert_eq!(sync.to_string().contains(SECRET), is_shown, "{what}");
            assert!(sync.to_string().contains("after"), "{what}");
            let expected = if is_shown { (1, 3) } else { (0, 1) };
            assert_eq!(unread(sync, &room), expected, "{what}");
        }
        let list = bob.get("/notifications").await.ok();
        assert!(!list.to_string().contains(SECRET), "{what}: {list}");
        // So it stays when they have read, and when they say something.
        let path = format!(
            "/rooms/{room}/receipt/m.read/{}",
            told["rooms"]["join"][&room]["timeline"]["events"][0]["event_id"]
                .as_str()
                .unwrap()
        );
        bob.post(&path, json!({})).await.ok();
        let late = secret(&guest, &fake, json!({ "late": true }));
        guest.send(&fake, &server, &[&late]).await.ok();
        sees(&alice, &room, late.event_id.as_str()).await;
        let since = next(&told);
        let told = bob.sync(&format!("since={since}")).await;
        assert_eq!(told.to_string().contains(SECRET), is_shown, "{what}");
        for pdu in secrets.iter().chain([&late]) {
            let status = bob
                .get(&format!("/rooms/{room}/event/{}", pdu.event_id))
                .await;
            assert_eq!(status.status == 200, is_shown, "{what}");
        }
        if !is_shown {
            assert_eq!(unread(&bob.sync("").await, &room), (0, 0), "{what}");
        }
        // Whoever was there all the time has all of it.
        let alice = alice.sync("").await;
        assert_eq!(unread(&alice, &room).1, 3, "{what}");
        assert!(alice.to_string().contains(SECRET), "{what}");
    }
}

#[tokio::test]
async fn what_is_said_while_servers_do_not_hear_each_other_is_for_those_who_were_there() {
    let links = Links::default();
    let (here, there) = (
        LinkedServer::start(&links).await,
        LinkedServer::start(&links).await,
    );
    let (here, there) = (&here.server, &there.server);
    let alice = here.register("alice").await;
    let room = room_with(&alice, "joined").await;
    let carol = there.register("carol").await;
    let join = format!("/join/{room}?via={}", here.name());
    carol.post(&join, json!({})).await.ok();
    links.set(here, there, true);
    for _ in 0..3 {
        alice.say(&room, SECRET).await;
    }
    let (bob, since) = joined(there, &room, "bob").await;
    links.mend();
    here.app.clock.advance(std::time::Duration::from_hours(2));
    there.app.clock.advance(std::time::Duration::from_hours(2));
    let said = bob.say(&room, "hello").await;
    sees(&alice, &room, &said).await;
    let last = alice.say(&room, "last").await;
    sees(&carol, &room, &last).await;
    let (told, whole) = (
        bob.sync(&format!("since={since}")).await.to_string(),
        bob.sync("").await.to_string(),
    );
    assert!(carol.sync("").await.to_string().contains(SECRET));
    for sync in [told, whole] {
        assert!(sync.contains("last") && !sync.contains(SECRET), "{sync}");
    }
}

#[tokio::test]
async fn the_children_of_a_message_are_told_to_those_who_may_see_them() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = room_with(&alice, "joined").await;
    let guest = FakeRoom::join(&fake, &server, &room).await;
    let (bob, _) = joined(&server, &room, "bob").await;
    alice.say(&room, "before").await;
    let root = alice.say(&room, "root").await;
    // A hostile server lets what it says be older than what it speaks of.
    let relation = json!({ "m.relates_to": { "rel_type": "m.thread", "event_id": root } });
    let child = secret(&guest, &fake, relation);
    guest.send(&fake, &server, &[&child]).await.ok();
    sees(&alice, &room, child.event_id.as_str()).await;
    alice
        .put(
            &format!("/rooms/{room}/state/m.room.topic"),
            json!({ "topic": "x" }),
        )
        .await
        .ok();
    let filter = r#"{"room":{"timeline":{"types":["m.room.message"],"limit":1}}}"#;
    let sync = async |user: &User<'_>| user.sync(&format!("filter={filter}")).await;
    for (user, is_shown) in [(&alice, true), (&bob, false)] {
        let sync = sync(user).await.to_string();
        assert_eq!(sync.contains(SECRET), is_shown, "{sync}");
    }
    let sync = sync(&bob).await;
    let timeline = &sync["rooms"]["join"][&room]["timeline"]["events"];
    assert_eq!(timeline[0]["event_id"], root.as_str(), "{sync}");
    assert_eq!(sync["rooms"]["join"][&room]["timeline"]["limited"], true);
    assert_eq!(unread(&sync, &room), (0, 2), "{sync}");
}

/// A room of another server, in which things were said before Alice joined.
pub async fn told_before(fake: &FakeServer, alice: &User<'_>) -> (FakeRoom, Vec<Pdu>) {
    let mut room = FakeRoom::create(fake, "11");
    let content = json!({ "history_visibility": "joined" });
    room.set(fake, "m.room.history_visibility", "", content);
    let mut events: Vec<Pdu> = room.state.values().cloned().collect();
    events.extend((0..3).map(|_| room.say(fake, SECRET)));
    events.sort_by_key(|pdu| std::cmp::Reverse(pdu.depth));
    room.host(fake, |_| {});
    let pdus: Vec<Value> = events.iter().map(value).collect();
    let answer = json!({ "origin": fake.name, "origin_server_ts": 1, "pdus": pdus });
    fake.answers(Method::GET, &format!("{V1}/backfill/"), answer);
    let path = format!("/join/{}?via={}", room.id, fake.name);
    alice.post(&path, json!({})).await.ok();
    (room, events)
}

#[tokio::test]
async fn history_that_is_fetched_is_shown_as_the_visibility_there_says() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let (room, events) = told_before(&fake, &alice).await;
    for _ in 0..2 {
        let path = format!("/rooms/{}/messages?dir=b&limit=100", room.id);
        let page = alice.get(&path).await.ok();
        assert!(!page.to_string().contains(SECRET), "{page}");
    }
    assert_eq!(fake.count(&Method::GET, &format!("{V1}/backfill/")), 1);
    let nids = homing::storage::events::stubs(
        &server.app.db,
        events.iter().map(|pdu| pdu.event_id.to_string()).collect(),
    );
    assert_eq!(nids.await.unwrap().len(), events.len(), "all has come");
}

#[tokio::test]
async fn history_that_is_fetched_for_its_time_is_shown_as_the_visibility_there_says() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let (room, events) = told_before(&fake, &alice).await;
    let secret = events[0].clone();
    let ts = secret.origin_server_ts.0;
    let near = json!({ "event_id": secret.event_id, "origin_server_ts": ts });
    fake.on(
        Method::GET,
        &format!("{V1}/timestamp_to_event/"),
        move |_| Json(near.clone()).into_response(),
    );
    let path = format!(
        "/_matrix/client/v1/rooms/{}/timestamp_to_event?ts={ts}&dir=b",
        room.id
    );
    let answer = alice.get(&path).await;
    assert_eq!(fake.count(&Method::GET, &format!("{V1}/backfill/")), 1);
    assert!(
        !answer.body.to_string().contains(secret.event_id.as_str()),
        "{}",
        answer.body
    );
}
