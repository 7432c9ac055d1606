//! Rooms that several servers share.

use serde_json::{Value, json};

use crate::{
    fake_server::FakeServer,
    server::{TestServer, User},
};

/// Syncs until something is there, from the beginning each time.
pub async fn eventually<T>(user: &User<'_>, find: impl Fn(&Value) -> Option<T>) -> T {
    let started = std::time::Instant::now();
    let mut whole = Value::Null;
    while started.elapsed() < std::time::Duration::from_secs(20) {
        whole = user.sync("full_state=true").await;
        if let Some(found) = find(&whole) {
            return found;
        }
        let since = whole["next_batch"].as_str().expect("a token");
        user.sync(&format!("since={since}&timeout=2000")).await;
    }
    panic!("{} does not see it: {whole}", user.id);
}

/// Waits until somebody sees a message.
pub async fn sees(user: &User<'_>, room: &str, event: &str) {
    eventually(user, |sync| {
        let timeline = sync["rooms"]["join"][room]["timeline"]["events"].as_array()?;
        let is_it = |it: &&Value| it["event_id"] == event;
        timeline.iter().find(is_it).map(drop)
    })
    .await;
}

/// What the state of a room is for somebody: type, state key and content, in order.
pub async fn state(user: &User<'_>, room: &str) -> Vec<String> {
    let state = user.get(&format!("/rooms/{room}/state")).await.ok();
    let mut state: Vec<String> = state
        .as_array()
        .expect("a list")
        .iter()
        .map(|event| {
            format!(
                "{} {} {}",
                event["type"], event["state_key"], event["event_id"]
            )
        })
        .collect();
    state.sort();
    state
}

#[tokio::test]
async fn a_public_room_of_another_server_is_joined() {
    let (here, there) = (TestServer::federated().await, TestServer::federated().await);
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    for version in ["6", "9", "10", "11", "12"] {
        let room = alice
            .create_room(
                json!({ "preset": "public_chat", "room_version": version, "name": "Open" }),
            )
            .await;
        let path = format!("/join/{room}?via={}", here.name());
        bob.post(&path, json!({ "reason": "hello" })).await.ok();
        assert_eq!(state(&alice, &room).await, state(&bob, &room).await);
        let sync = eventually(&bob, |sync| {
            let room = &sync["rooms"]["join"][&room];
            room.is_object().then(|| room.clone())
        })
        .await;
        assert_eq!(sync["summary"]["m.joined_member_count"], 2);
        let members = alice
            .get(&format!("/rooms/{room}/joined_members"))
            .await
            .ok();
        assert!(members["joined"][&bob.id].is_object(), "{members}");
    }
}

#[tokio::test]
async fn somebody_on_another_server_is_invited_and_comes_or_not() {
    let (here, there) = (TestServer::federated().await, TestServer::federated().await);
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let room = alice
        .create_room(json!({ "name": "Two", "invite": [bob.id], "is_direct": true }))
        .await;
    let invite = eventually(&bob, |sync| {
        let invite = &sync["rooms"]["invite"][&room]["invite_state"]["events"];
        invite.as_array().cloned()
    })
    .await;
    let told = |kind: &str| invite.iter().find(|event| event["type"] == kind);
    assert_eq!(told("m.room.name").unwrap()["content"]["name"], "Two");
    assert!(told("m.room.create").unwrap()["origin_server_ts"].is_u64());
    let own = invite
        .iter()
        .find(|event| event["state_key"] == bob.id)
        .unwrap();
    assert_eq!(own["content"]["membership"], "invite");
    assert_eq!(own["content"]["is_direct"], true);
    assert_eq!(own["content"]["displayname"], "bob", "as their server says");

    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    let member = alice
        .get(&format!("/rooms/{room}/state/m.room.member/{}", bob.id))
        .await
        .ok();
    assert_eq!(member["membership"], "leave");
    bob.post(&format!("/rooms/{room}/join"), json!({}))
        .await
        .fails(404, "M_NOT_FOUND");

    let body = json!({ "user_id": bob.id });
    alice
        .post(&format!("/rooms/{room}/invite"), body)
        .await
        .ok();
    bob.post(&format!("/rooms/{room}/join"), json!({}))
        .await
        .ok();
    assert_eq!(state(&alice, &room).await, state(&bob, &room).await);
}

#[tokio::test]
async fn history_from_before_a_join_is_fetched() {
    let (here, there) = (TestServer::federated().await, TestServer::federated().await);
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let mut said = Vec::new();
    for number in 0..30 {
        said.push(alice.say(&room, &format!("message {number}")).await);
    }
    let path = format!("/join/{room}?via={}", here.name());
    bob.post(&path, json!({})).await.ok();
    let mut from = String::new();
    let mut seen = Vec::new();
    for _ in 0..20 {
        let path = format!("/rooms/{room}/messages?dir=b&limit=10{from}");
        let page = bob.get(&path).await.ok();
        for event in page["chunk"].as_array().unwrap() {
            seen.push(event["event_id"].as_str().unwrap().to_owned());
        }
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => break,
        }
    }
    let all = alice
        .get(&format!("/rooms/{room}/messages?dir=b&limit=100"))
        .await
        .ok();
    let all: Vec<&str> = all["chunk"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|event| event["event_id"].as_str())
        .collect();
    assert_eq!(seen, all);
    assert!(said.iter().all(|event| seen.contains(event)));
}

async fn set(user: &User<'_>, room: &str, kind: &str, content: Value) {
    let path = format!("/rooms/{room}/state/{kind}/");
    user.put(&path, content).await.ok();
}

#[tokio::test]
async fn what_is_said_arrives_both_ways() {
    let (here, there) = (TestServer::federated().await, TestServer::federated().await);
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let room = alice.create_room(json!({ "invite": [bob.id] })).await;
    eventually(&bob, |sync| {
        sync["rooms"]["invite"][&room].is_object().then_some(())
    })
    .await;
    bob.post(&format!("/rooms/{room}/join"), json!({}))
        .await
        .ok();
    for round in 0..3 {
        let said = alice.say(&room, &format!("hello {round}")).await;
        sees(&bob, &room, &said).await;
        let said = bob.say(&room, &format!("hi {round}")).await;
        sees(&alice, &room, &said).await;
    }
    // Both at once: a fork, that the next message closes.
    let (one, two) = tokio::join!(alice.say(&room, "one"), bob.say(&room, "two"));
    sees(&bob, &room, &one).await;
    sees(&alice, &room, &two).await;
    let levels = json!({ "users": { (alice.id.clone()): 100, (bob.id.clone()): 100 } });
    let levels = if alice.server.app.config.rooms.default_version.as_str() == "12" {
        json!({ "users": { (bob.id.clone()): 100 } })
    } else {
        levels
    };
    set(&alice, &room, "m.room.power_levels", levels).await;
    let last = alice.say(&room, "you too").await;
    sees(&bob, &room, &last).await;
    tokio::join!(
        set(&alice, &room, "m.room.name", json!({ "name": "Two" })),
        set(&bob, &room, "m.room.topic", json!({ "topic": "Both" })),
    );
    tokio::join!(
        set(&alice, &room, "m.room.name", json!({ "name": "A" })),
        set(&bob, &room, "m.room.name", json!({ "name": "B" })),
    );
    let (one, two) = (alice.say(&room, "done").await, bob.say(&room, "done").await);
    sees(&bob, &room, &one).await;
    sees(&alice, &room, &two).await;
    assert_eq!(state(&alice, &room).await, state(&bob, &room).await);
}

async fn joins(user: &User<'_>, room: &str, via: &TestServer) {
    let path = format!("/join/{room}?via={}", via.name());
    user.post(&path, json!({})).await.ok();
}

/// Waits until the state has a membership for somebody.
async fn sees_membership(user: &User<'_>, room: &str, of: &User<'_>, membership: &str) {
    let path = format!("/rooms/{room}/state/m.room.member/{}", of.id);
    eventually(user, |_| Some(())).await;
    let started = std::time::Instant::now();
    loop {
        let member = user.get(&path).await;
        if member.body["membership"] == membership {
            return;
        }
        assert!(started.elapsed().as_secs() < 20, "{}", member.body);
        user.sync("timeout=100").await;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_knock_is_taken_back_where_it_was_made() {
    let (here, there) = (TestServer::federated().await, TestServer::federated().await);
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let rules = json!([{ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }]);
    // The id of a room of version 12 names no server.
    for version in ["10", "12"] {
        let body = json!({ "initial_state": rules, "room_version": version });
        let room = alice.create_room(body).await;
        let path = format!("/knock/{room}?via={}", here.name());
        bob.post(&path, json!({})).await.ok();
        sees_membership(&alice, &room, &bob, "knock").await;
        // It is known who was asked the first time.
        let again = json!({ "reason": "again" });
        bob.post(&format!("/knock/{room}"), again).await.ok();
        eventually(&alice, |sync| {
            let timeline = &sync["rooms"]["join"][&room]["timeline"]["events"];
            timeline.to_string().contains("again").then_some(())
        })
        .await;
        let path = format!("/rooms/{room}/leave");
        bob.post(&path, json!({})).await.ok();
        sees_membership(&alice, &room, &bob, "leave").await;
    }
}

#[tokio::test]
async fn who_comes_back_at_once_is_let_in() {
    let (here, there) = (TestServer::federated().await, TestServer::federated().await);
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    for _ in 0..12 {
        joins(&bob, &room, &here).await;
        bob.say(&room, "and away").await;
        let path = format!("/rooms/{room}/leave");
        bob.post(&path, json!({})).await.ok();
    }
}

#[tokio::test]
async fn a_room_is_there_though_somebody_cannot_be_invited() {
    let (here, there) = (TestServer::federated().await, TestServer::federated().await);
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let body = json!({ "invite": ["@aaa:localhost:1", bob.id, "@zzz:localhost:1"] });
    let room = alice.create_room(body).await;
    eventually(&bob, |sync| {
        sync["rooms"]["invite"][&room].is_object().then_some(())
    })
    .await;
}

#[tokio::test]
async fn there_is_no_direct_chat_with_somebody_who_cannot_be_invited() {
    let here = TestServer::federated().await;
    let alice = here.register("alice").await;
    let body = json!({ "is_direct": true, "invite": ["@zoe:localhost:1"] });
    let answer = alice.post("/createRoom", body).await;
    answer.fails(502, "M_UNKNOWN");
    let rooms = alice.get("/joined_rooms").await.ok();
    assert_eq!(rooms["joined_rooms"], json!([]));
    let filter = json!({ "room": { "include_leave": true } });
    let told = alice.get(&format!("/sync?filter={filter}")).await.ok();
    assert!(told["rooms"]["leave"].is_null(), "{told}");
}

#[tokio::test]
async fn nobody_is_invited_to_a_new_room_that_is_closed_to_other_servers() {
    let here = TestServer::federated().await;
    let alice = here.register("alice").await;
    let body = json!({
        "invite": ["@zoe:other.example"], "creation_content": { "m.federate": false },
    });
    let answer = alice.post("/createRoom", body).await;
    answer.fails(403, "M_FORBIDDEN");
    let rooms = alice.get("/joined_rooms").await.ok();
    assert_eq!(rooms["joined_rooms"], json!([]));
}

#[tokio::test]
async fn a_room_may_be_named_by_an_alias_of_another_server() {
    let (here, there) = (TestServer::federated().await, TestServer::federated().await);
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    joins(&bob, &room, &here).await;
    let alias = format!("#ours:{}", there.name());
    let path = format!("/directory/room/{}", alias.replace('#', "%23"));
    bob.put(&path, json!({ "room_id": room })).await.ok();
    let path = format!("/rooms/{room}/state/m.room.canonical_alias");
    let content = json!({ "alt_aliases": [alias] });
    alice.put(&path, content).await.ok();
    let content = json!({ "alias": format!("#none:{}", there.name()) });
    alice.put(&path, content).await.fails(400, "M_BAD_ALIAS");
    let content = json!({ "alias": "#ours:localhost:1" });
    alice.put(&path, content).await.fails(502, "M_UNKNOWN");
}

#[tokio::test]
async fn a_summary_says_that_a_room_is_public() {
    let (here, there) = (TestServer::federated().await, TestServer::federated().await);
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    for (user, via) in [
        (&alice, String::new()),
        (&bob, format!("?via={}", here.name())),
    ] {
        let path = format!("/_matrix/client/v1/room_summary/{room}{via}");
        assert_eq!(user.get(&path).await.ok()["join_rule"], "public");
    }
}

#[tokio::test]
async fn a_withdrawn_invite_disappears() {
    let (here, there) = (TestServer::federated().await, TestServer::federated().await);
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let room = alice.create_room(json!({ "invite": [bob.id] })).await;
    eventually(&bob, |sync| {
        sync["rooms"]["invite"][&room].is_object().then_some(())
    })
    .await;
    let body = json!({ "user_id": bob.id });
    alice.post(&format!("/rooms/{room}/kick"), body).await.ok();
    eventually(&bob, |sync| {
        sync["rooms"]["invite"][&room].is_null().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_restricted_room_opens_to_members_of_another() {
    let (here, there) = (TestServer::federated().await, TestServer::federated().await);
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let space = alice.create_room(json!({ "preset": "public_chat" })).await;
    let rules = json!({
        "join_rule": "restricted",
        "allow": [{ "type": "m.room_membership", "room_id": space }],
    });
    let rules = json!([{ "type": "m.room.join_rules", "state_key": "", "content": rules }]);
    let room = alice.create_room(json!({ "initial_state": rules })).await;
    let path = format!("/join/{room}?via={}", here.name());
    bob.post(&path, json!({})).await.fails(403, "M_FORBIDDEN");
    joins(&bob, &space, &here).await;
    joins(&bob, &room, &here).await;
    assert_eq!(state(&alice, &room).await, state(&bob, &room).await);
    let said = bob.say(&room, "in").await;
    sees(&alice, &room, &said).await;
}

#[tokio::test]
async fn whoever_is_named_is_asked_to_let_somebody_in() {
    let (here, there) = (TestServer::federated().await, TestServer::federated().await);
    let third = TestServer::federated().await;
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let carol = third.register("carol").await;
    let space = alice.create_room(json!({ "preset": "public_chat" })).await;
    let rules = json!({
        "join_rule": "restricted",
        "allow": [{ "type": "m.room_membership", "room_id": space }],
    });
    let rules = json!([{ "type": "m.room.join_rules", "state_key": "", "content": rules }]);
    // Before version 12 the room's id has the name of a server in it.
    let body = json!({
        "room_version": "11", "initial_state": rules,
        "power_level_content_override": { "invite": 100 },
    });
    let room = alice.create_room(body).await;
    joins(&bob, &space, &here).await;
    joins(&bob, &room, &here).await;
    joins(&carol, &space, &here).await;
    sees_membership(&bob, &space, &carol, "join").await;
    let through = format!("/join/{room}?via={}", there.name());
    let unable = "M_UNABLE_TO_GRANT_JOIN";
    carol.post(&through, json!({})).await.fails(400, unable);
    let both = format!("{through}&via={}", here.name());
    carol.post(&both, json!({})).await.ok();
    sees_membership(&bob, &room, &carol, "join").await;
    carol
        .post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    sees_membership(&bob, &room, &carol, "leave").await;
    carol.post(&through, json!({})).await.fails(400, unable);
    // Where who is named does not know the room, those who were in it are asked, and who is not named likewise.
    let elsewhere = TestServer::federated().await;
    let path = format!("/join/{room}?via={}", elsewhere.name());
    carol.post(&path, json!({})).await.ok();
    let dave = elsewhere.register("dave").await;
    let path = format!("/join/{room}");
    dave.post(&path, json!({})).await.fails(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn people_knock_leave_come_back_and_are_banned_across_servers() {
    let (here, there) = (TestServer::federated().await, TestServer::federated().await);
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let rules = json!([{ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }]);
    let room = alice
        .create_room(json!({ "initial_state": rules, "name": "Door" }))
        .await;
    let path = format!("/knock/{room}?via={}", here.name());
    bob.post(&path, json!({ "reason": "let me in" })).await.ok();
    eventually(&bob, |sync| {
        let told = sync["rooms"]["knock"][&room]["knock_state"]["events"].as_array()?;
        told.iter()
            .find(|event| event["type"] == "m.room.name")
            .map(drop)
    })
    .await;
    sees_membership(&alice, &room, &bob, "knock").await;
    let body = json!({ "user_id": bob.id });
    alice
        .post(&format!("/rooms/{room}/invite"), body.clone())
        .await
        .ok();
    eventually(&bob, |sync| {
        sync["rooms"]["invite"][&room].is_object().then_some(())
    })
    .await;
    joins(&bob, &room, &here).await;
    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    sees_membership(&alice, &room, &bob, "leave").await;
    // What happens now is not for bob's server, and it is there when bob comes back.
    set(
        &alice,
        &room,
        "m.room.join_rules",
        json!({ "join_rule": "public" }),
    )
    .await;
    set(&alice, &room, "m.room.name", json!({ "name": "Open" })).await;
    alice.say(&room, "unheard").await;
    // Somebody whom bob's server has never met is there by then.
    let carol = here.register("carol").await;
    joins(&carol, &room, &here).await;
    joins(&bob, &room, &here).await;
    assert_eq!(state(&alice, &room).await, state(&bob, &room).await);
    let said = bob.say(&room, "back").await;
    sees(&alice, &room, &said).await;
    alice.post(&format!("/rooms/{room}/ban"), body).await.ok();
    eventually(&bob, |sync| {
        sync["rooms"]["join"][&room].is_null().then_some(())
    })
    .await;
    bob.post(&format!("/rooms/{room}/join"), json!({}))
        .await
        .fails(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn who_is_refused_does_not_get_in_by_asking_twice() {
    let (here, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = here.register("alice").await;
    let room = alice.create_room(json!({})).await;
    let said = alice.say(&room, "private").await;
    let events = alice.get(&format!("/rooms/{room}/state")).await.ok();
    let id = |kind: &str| -> ruma::OwnedEventId {
        let mut events = events.as_array().unwrap().iter();
        let event = events.find(|event| event["type"] == kind).unwrap();
        event["event_id"].as_str().unwrap().try_into().unwrap()
    };
    let user = format!("@mallory:{}", fake.name);
    let draft = homing_federation::Draft {
        room_id: Some(room.as_str().try_into().unwrap()),
        sender: user.as_str().try_into().unwrap(),
        event_type: "m.room.member".to_owned(),
        state_key: Some(user),
        content: homing_federation::strict_json(br#"{"membership":"join"}"#).unwrap(),
        redacts: None,
        origin_server_ts: ruma::MilliSecondsSinceUnixEpoch::now(),
        prev_events: vec![said.as_str().try_into().unwrap()],
        auth_events: vec![id("m.room.power_levels"), id("m.room.join_rules")],
        depth: 20,
    };
    let rules = homing_federation::room_version::rules(&ruma::RoomVersionId::V12).unwrap();
    let pdu = draft.sign(rules, &fake.name, &fake.key).unwrap();
    let path = format!("/_matrix/federation/v2/send_join/{room}/{}", pdu.event_id);
    for _ in 0..2 {
        let body = serde_json::from_str(&pdu.json).unwrap();
        fake.put(&here, &path, body).await.fails(403, "M_FORBIDDEN");
    }
}
