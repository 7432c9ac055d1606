//! Events that were refused, and such as are known only because others rest on them: who is told of them, and who is not.

use homing_federation::{Draft, Pdu};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    fake_room::{FakeRoom, outcome, pdu, transaction, value},
    fake_server::FakeServer,
    hostile_transactions::{seen, shared},
    server::{Answer, TestServer, User},
    shared_rooms::{eventually, sees},
};

const V1: &str = "/_matrix/federation/v1";
/// A word that only events have which are kept from people.
const SECRET: &str = "zebra";

/// A room with events that nobody is shown, and some that people are.
pub struct Scene {
    pub room: FakeRoom,
    /// A message that all see, in a thread of which the hidden ones would be.
    root: String,
    /// The latest event that all see.
    pub last: Pdu,
    /// Messages, and state, that the rules do not allow.
    rejected: Vec<Pdu>,
    /// An event that follows one of the rejected ones, and that all see.
    pub after_rejected: Pdu,
    /// The same that were allowed where they were made, but not as the room is now.
    soft_failed: Vec<Pdu>,
    /// A member event that is known only because `last` names it.
    outlier: Pdu,
}

impl Scene {
    pub fn hidden(&self) -> impl Iterator<Item = &Pdu> {
        let refused = self.rejected.iter().chain(&self.soft_failed);
        refused.chain([&self.outlier])
    }

    /// The ids of the rejected events among those that a server was told of.
    fn rejected(&self, answer: &Value) -> Vec<String> {
        let lists = [
            "pdus",
            "events",
            "state",
            "auth_chain",
            "pdu_ids",
            "auth_chain_ids",
        ];
        let events = lists.map(|list| answer[list].as_array());
        assert!(events.iter().any(Option::is_some), "{answer}");
        let ids = events.into_iter().flatten().flatten();
        let ids = ids.map(|event| match event.as_str() {
            Some(id) => id.to_owned(),
            None => pdu(event, self.room.rules).event_id.to_string(),
        });
        let is_rejected = |id: &String| self.rejected.iter().any(|pdu| pdu.event_id == *id);
        ids.filter(is_rejected).collect()
    }

    /// What of a text nobody should read.
    fn leaks(&self, text: &str) -> Vec<String> {
        let mut ids: Vec<&str> = self.hidden().map(|pdu| pdu.event_id.as_str()).collect();
        ids.push(SECRET);
        ids.retain(|hidden| text.contains(hidden));
        ids.into_iter().map(ToOwned::to_owned).collect()
    }
}

/// Learns an event of a server, so that the next one follows it.
async fn learn(room: &mut FakeRoom, fake: &FakeServer, server: &TestServer, id: &str) -> Pdu {
    let told = fake.get(server, &format!("{V1}/event/{id}")).await.ok();
    let pdu = pdu(&told["pdus"][0], room.rules);
    room.follow(&pdu);
    pdu
}

/// Sets the power levels of a room: of the fake server's user, and what it takes to say something.
async fn levels(alice: &User<'_>, room: &FakeRoom, mallory: i64, events_default: i64) -> String {
    let path = format!("/rooms/{}/state/m.room.power_levels", room.id);
    let body = json!({
        "users": { &alice.id: 100, room.user.as_str(): mallory }, "events_default": events_default,
        "events": { "m.room.history_visibility": 100, "m.room.tombstone": 100 },
    });
    let set = alice.put(&path, body).await.ok();
    set["event_id"].as_str().unwrap().to_owned()
}

/// A message in a thread that names somebody.
fn reply(room: &FakeRoom, root: &str, user: &User<'_>) -> Draft {
    let content = json!({
        "msgtype": "m.text", "body": format!("{SECRET} {}", user.id),
        "m.mentions": { "user_ids": [user.id] },
        "m.relates_to": { "rel_type": "m.thread", "event_id": root },
    });
    room.draft("m.room.message", None, content)
}

pub async fn scene(server: &TestServer, fake: &FakeServer, alice: &User<'_>) -> Scene {
    let path = format!("{V1}/send/");
    fake.answers(Method::PUT, &path, json!({ "pdus": {} }));
    let mut room = shared(alice, fake, "11").await;
    let id = levels(alice, &room, 50, 0).await;
    learn(&mut room, fake, server, &id).await;
    let root = alice.say(room.id.as_str(), "root").await;
    learn(&mut room, fake, server, &root).await;

    // Known only because the message names it: its sender says that it needs it.
    let name = json!({ "membership": "join", "displayname": format!("{SECRET} name") });
    let outlier = room.sign(
        fake,
        room.draft("m.room.member", Some(room.user.as_str()), name),
    );
    let mut with_it = room.clone();
    with_it.learn(&outlier);
    let last = with_it.say(fake, "plain");
    assert!(last.auth_events.contains(&outlier.event_id));
    let chain: Vec<Value> = room.state().into_iter().chain([value(&outlier)]).collect();
    fake.answers(
        Method::GET,
        &format!("{V1}/event_auth/"),
        json!({ "auth_chain": chain }),
    );
    room.send(fake, server, &[&last]).await.ok();
    sees(alice, room.id.as_str(), last.event_id.as_str()).await;
    room.follow(&last);

    // Who names what does not allow an event has made none that is allowed.
    let rules = &room.state[&("m.room.join_rules".to_owned(), String::new())];
    let mut message = reply(&room, &root, alice);
    message.auth_events.push(rules.event_id.clone());
    let visibility = json!({ "history_visibility": "world_readable", SECRET: 1 });
    let tombstone = json!({ "body": SECRET, "replacement_room": "!x:y" });
    let rejected: Vec<Pdu> = [
        message,
        room.draft("m.room.history_visibility", Some(""), visibility),
        room.draft("m.room.tombstone", Some(""), tombstone),
    ]
    .into_iter()
    .map(|draft| room.sign(fake, draft))
    .collect();
    let mut beside = room.clone();
    beside.latest = vec![rejected[0].event_id.clone()];
    beside.depth += 1;
    let after_rejected = beside.say(fake, "after what was rejected");
    let mut all: Vec<&Pdu> = rejected.iter().collect();
    all.push(&after_rejected);
    let answer = room.send(fake, server, &all).await.ok();
    for pdu in &all {
        let is_refused = outcome(&answer, pdu.event_id.as_str());
        let is_bad = pdu.event_id != after_rejected.event_id;
        assert_eq!(is_refused, Some(is_bad), "{answer}");
    }

    let soft_failed: Vec<Pdu> = [
        reply(&room, &root, alice),
        room.draft("m.room.topic", Some(""), json!({ "topic": SECRET })),
        room.draft("m.room.name", Some(""), json!({ "name": SECRET })),
        room.draft(
            "m.reaction",
            None,
            json!({ "m.relates_to": {
                "rel_type": "m.annotation", "event_id": root, "key": SECRET,
            }}),
        ),
    ]
    .into_iter()
    .map(|draft| room.sign(fake, draft))
    .collect();
    levels(alice, &room, 0, 10).await;
    let all: Vec<&Pdu> = soft_failed.iter().collect();
    room.send(fake, server, &all).await.ok();
    Scene {
        room,
        root,
        last,
        rejected,
        after_rejected,
        soft_failed,
        outlier,
    }
}

/// All that somebody can read of a room, by name.
async fn read(user: &User<'_>, scene: &Scene, since: &str) -> Vec<(String, Answer)> {
    let (room, root) = (&scene.room.id, &scene.root);
    let client = "/_matrix/client/v1";
    let time = i64::from(scene.last.origin_server_ts.0);
    let mut paths = vec![
        "/sync".to_owned(),
        format!("/sync?since={since}"),
        format!("/sync?since={since}&full_state=true"),
        "/notifications".to_owned(),
        "/notifications?only=highlight".to_owned(),
        format!("/rooms/{room}/state"),
        format!("/rooms/{room}/members"),
        format!("/rooms/{room}/joined_members"),
        format!("/rooms/{room}/context/{root}?limit=100"),
        format!("{client}/rooms/{room}/relations/{root}"),
        format!("{client}/rooms/{room}/relations/{root}?recurse=true"),
        format!("{client}/rooms/{room}/relations/{root}/m.thread"),
        format!("{client}/rooms/{room}/threads"),
        format!("{client}/rooms/{room}/hierarchy"),
        format!("{client}/room_summary/{room}"),
    ];
    for filter in ["", "&filter=%7B%22types%22:[%22m.room.*%22]%7D"] {
        for dir in ["b", "f"] {
            paths.push(format!(
                "/rooms/{room}/messages?dir={dir}&limit=100{filter}"
            ));
        }
    }
    for kind in ["message", "name", "topic", "tombstone", "member"] {
        let filter = format!("%7B%22types%22:[%22m.room.{kind}%22]%7D");
        paths.push(format!(
            "/rooms/{room}/messages?dir=b&limit=100&filter={filter}"
        ));
    }
    for shift in -30..30 {
        for dir in ["f", "b"] {
            let ts = time + shift;
            paths.push(format!(
                "{client}/rooms/{room}/timestamp_to_event?ts={ts}&dir={dir}"
            ));
        }
    }
    let mut answers = Vec::new();
    for path in paths {
        let answer = user.get(&path).await;
        answers.push((path, answer));
    }
    let wanted = json!({ "search_term": SECRET, "event_context": {}, "include_state": true });
    let wanted = json!({ "search_categories": { "room_events": wanted } });
    answers.push(("search".to_owned(), user.post("/search", wanted).await));
    answers
}

/// What there is to count of a room.
async fn unread(user: &User<'_>, scene: &Scene) -> Value {
    let filter = r#"{"room":{"timeline":{"unread_thread_notifications":true}}}"#;
    let filter = filter.replace('{', "%7B").replace('}', "%7D");
    let sync = user
        .sync(&format!("filter={}", filter.replace('"', "%22")))
        .await;
    let room = &sync["rooms"]["join"][scene.room.id.as_str()];
    json!([
        room["unread_notifications"],
        room["unread_thread_notifications"]
    ])
}

#[tokio::test]
async fn people_are_not_shown_what_was_refused() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let (alice, carol) = (
        server.register("alice").await,
        server.register("carol").await,
    );
    let since = alice.sync("").await["next_batch"].clone();
    let since = since.as_str().unwrap();
    let scene = scene(&server, &fake, &alice).await;
    let room = &scene.room;
    let path = format!("/join/{}", room.id);
    carol.post(&path, json!({})).await.ok();
    let mut leaks = Vec::new();
    for user in [&alice, &carol] {
        for (path, answer) in read(user, &scene, since).await {
            let is_time = path.contains("timestamp_to_event") && answer.status == 404;
            assert!(answer.status == 200 || is_time, "{path}: {}", answer.body);
            let mut text = answer.body.to_string();
            if path == "search" {
                // The answer repeats the word.
                let found = &answer.body["search_categories"]["room_events"];
                text = found["results"].to_string();
            }
            let leaked = scene.leaks(&text);
            if !leaked.is_empty() {
                leaks.push((user.id.clone(), path, leaked));
            }
        }
        for hidden in scene.hidden() {
            let (room, id) = (&room.id, &hidden.event_id);
            for path in [
                format!("/rooms/{room}/event/{id}"),
                format!("/rooms/{room}/context/{id}"),
                format!("/_matrix/client/v1/rooms/{room}/relations/{id}"),
            ] {
                let answer = user.get(&path).await;
                if answer.status != 404 {
                    leaks.push((user.id.clone(), path, vec![answer.body.to_string()]));
                }
            }
            let path = format!("/rooms/{room}/report/{id}");
            let answer = user.post(&path, json!({ "reason": "x" })).await;
            if answer.status != 404 {
                leaks.push((user.id.clone(), path, vec![answer.body.to_string()]));
            }
        }
    }
    assert!(leaks.is_empty(), "{leaks:#?}");
    for (kind, errcode) in [("name", "M_NOT_FOUND"), ("topic", "M_NOT_FOUND")] {
        let path = format!("/rooms/{}/state/m.room.{kind}", room.id);
        alice.get(&path).await.fails(404, errcode);
    }
    // Two of the fake server's messages are unread: what follows what was rejected is as good as any other.
    let count = |count: i64| json!({ "highlight_count": 0, "notification_count": count });
    assert_eq!(unread(&alice, &scene).await, json!([count(2), null]));
    let shown = seen(&alice, room, scene.after_rejected.event_id.as_str()).await;
    assert!(shown.is_some());
}

#[tokio::test]
async fn nobody_has_read_what_was_refused() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let (alice, carol) = (
        server.register("alice").await,
        server.register("carol").await,
    );
    let scene = scene(&server, &fake, &alice).await;
    let room = &scene.room;
    carol
        .post(&format!("/join/{}", room.id), json!({}))
        .await
        .ok();
    for hidden in scene.hidden() {
        let id = &hidden.event_id;
        for kind in ["m.read", "m.fully_read"] {
            let path = format!("/rooms/{}/receipt/{kind}/{id}", room.id);
            alice.post(&path, json!({})).await.ok();
        }
        let path = format!("/rooms/{}/read_markers", room.id);
        let body = json!({ "m.fully_read": id, "m.read.private": id });
        alice.post(&path, body).await.ok();
        let receipt = json!({ "edu_type": "m.receipt", "content": { room.id.as_str(): { "m.read": {
            room.user.as_str(): { "event_ids": [id], "data": { "ts": 1 } },
        }}}});
        transaction(&fake, &server, &[], &[receipt]).await.ok();
    }
    let path = format!("/rooms/{}/receipt/m.read/{}", room.id, scene.root);
    alice.post(&path, json!({})).await.ok();
    eventually(&carol, |sync| {
        let events = &sync["rooms"]["join"][room.id.as_str()]["ephemeral"]["events"];
        events.to_string().contains(&scene.root).then_some(())
    })
    .await;
    for user in [&alice, &carol] {
        let sync = user.sync("").await.to_string();
        assert_eq!(scene.leaks(&sync), Vec::<String>::new());
    }
    let told = fake.wait_for(|it| it.body["edus"].to_string().contains(&scene.root));
    told.await;
    for request in fake.recorded() {
        let edus = request.body["edus"].to_string();
        assert_eq!(scene.leaks(&edus), Vec::<String>::new());
    }
}

/// What is asked of a room about the events between two others.
fn between(earliest: &str, latest: &str) -> Value {
    json!({
        "earliest_events": [earliest], "latest_events": [latest], "limit": 20, "min_depth": 0,
    })
}

#[tokio::test]
async fn servers_are_told_what_stands_in_the_room() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let (other, alice) = (FakeServer::start().await, server.register("alice").await);
    let scene = scene(&server, &fake, &alice).await;
    let id = &scene.room.id;
    let (_, join, joined) = FakeRoom::join_as(&other, &server, id.as_str(), "v2").await;
    assert_eq!(scene.rejected(&joined), Vec::<String>::new());
    for soft in &scene.soft_failed {
        assert!(!joined.to_string().contains(soft.event_id.as_str()));
    }

    // What rests on a rejected event is told, the event is not.
    let after = &scene.after_rejected.event_id;
    let first = &scene.rejected[0].event_id;
    let mut wrong = Vec::new();
    for path in [
        format!("{V1}/state/{id}?event_id={}", join.event_id),
        format!("{V1}/state_ids/{id}?event_id={}", join.event_id),
        format!("{V1}/state/{id}?event_id={after}"),
        format!("{V1}/event_auth/{id}/{after}"),
        format!("{V1}/backfill/{id}?v={}&limit=100", join.event_id),
        format!("{V1}/backfill/{id}?v={after}&limit=100"),
        format!("{V1}/backfill/{id}?v={first}&limit=100"),
    ] {
        let told = other.get(&server, &path).await.ok();
        if !scene.rejected(&told).is_empty() {
            wrong.push(path);
        }
    }
    let path = format!("{V1}/get_missing_events/{id}");
    for latest in [after, &join.event_id] {
        let body = between(&scene.root, latest.as_str());
        let told = other.post(&server, &path, body).await.ok();
        if !scene.rejected(&told).is_empty() {
            wrong.push(format!("{path} {latest}"));
        }
    }
    for pdu in &scene.rejected {
        let event = &pdu.event_id;
        for path in [
            format!("{V1}/event/{event}"),
            format!("{V1}/state/{id}?event_id={event}"),
            format!("{V1}/state_ids/{id}?event_id={event}"),
            format!("{V1}/event_auth/{id}/{event}"),
        ] {
            let answer = other.get(&server, &path).await;
            if answer.status != 404 {
                wrong.push(path);
            }
        }
        for dir in ["b", "f"] {
            let ts = pdu.origin_server_ts.0;
            let path = format!("{V1}/timestamp_to_event/{id}?ts={ts}&dir={dir}");
            let near = other.get(&server, &path).await.ok();
            if !scene.leaks(&near.to_string()).is_empty() {
                wrong.push(path);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");

    // Other events may rest on one that was only soft-failed, and on one that is no part of the history here.
    for pdu in scene.soft_failed.iter().chain([&scene.outlier]) {
        let path = format!("{V1}/event/{}", pdu.event_id);
        let told = other.get(&server, &path).await.ok();
        assert_eq!(told["pdus"][0], value(pdu));
    }
    let outlier = &scene.outlier.event_id;
    let path = format!("{V1}/state_ids/{id}?event_id={outlier}");
    other.get(&server, &path).await.fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn who_is_not_in_a_room_or_barred_from_it_is_told_nothing() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let (stranger, alice) = (FakeServer::start().await, server.register("alice").await);
    let scene = scene(&server, &fake, &alice).await;
    let id = &scene.room.id;
    let acl = json!({ "allow": ["*"], "deny": ["localhost"], "allow_ip_literals": true });
    for (who, acl) in [(&stranger, None), (&fake, Some(acl))] {
        if let Some(acl) = acl {
            let path = format!("/rooms/{id}/state/m.room.server_acl");
            alice.put(&path, acl).await.ok();
        }
        for pdu in scene.hidden().chain([&scene.last]) {
            let event = &pdu.event_id;
            for path in [
                format!("{V1}/event/{event}"),
                format!("{V1}/state/{id}?event_id={event}"),
                format!("{V1}/state_ids/{id}?event_id={event}"),
                format!("{V1}/event_auth/{id}/{event}"),
                format!("{V1}/backfill/{id}?v={event}&limit=100"),
                format!("{V1}/timestamp_to_event/{id}?ts=1&dir=f"),
            ] {
                who.get(&server, &path).await.fails(403, "M_FORBIDDEN");
            }
            let path = format!("{V1}/get_missing_events/{id}");
            let body = between(&scene.root, event.as_str());
            let answer = who.post(&server, &path, body).await;
            answer.fails(403, "M_FORBIDDEN");
        }
    }
}
