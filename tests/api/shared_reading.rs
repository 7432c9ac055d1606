//! What servers read of rooms that they are in, or were in once.

use homing::{args, sql};
use homing_federation::client::Error;
use reqwest::Method;
use ruma::{
    EventId, RoomId, UInt,
    api::federation::{
        backfill::get_backfill,
        event::{get_event, get_missing_events, get_room_state_ids},
        space::get_hierarchy,
    },
};
use serde_json::{Value, json};

use crate::{
    server::{TestServer, User},
    shared_rooms::{eventually, sees},
};

/// Joins a room through a server.
async fn join(user: &User<'_>, room: &str, via: &TestServer) {
    let path = format!("/join/{room}?via={}", via.name());
    user.post(&path, json!({})).await.ok();
}

/// Leaves a room, and waits until somebody in it knows.
async fn leave(user: &User<'_>, room: &str, witness: &User<'_>) {
    let path = format!("/rooms/{room}/leave");
    user.post(&path, json!({})).await.ok();
    eventually(witness, |sync| {
        let state = sync["rooms"]["join"][room]["state"]["events"].as_array()?;
        let timeline = sync["rooms"]["join"][room]["timeline"]["events"].as_array()?;
        let is_it = |event: &&Value| {
            event["state_key"] == user.id && event["content"]["membership"] == "leave"
        };
        state.iter().chain(timeline).find(is_it).map(drop)
    })
    .await;
}

/// The content of an event as one server tells it to another, or the error.
async fn content(of: &TestServer, to: &TestServer, event: &str) -> Result<Value, String> {
    let request = get_event::v1::Request::new(EventId::parse(event).unwrap());
    match to.app.federation.send(of.name(), request).await {
        Ok(told) => {
            let pdu: Value = serde_json::from_str(told.pdu.get()).unwrap();
            Ok(pdu["content"].clone())
        }
        Err(error) => Err(refusal(&error)),
    }
}

fn refusal(error: &Error) -> String {
    let refusal = error.refusal().unwrap_or_else(|| panic!("{error}"));
    let kind = refusal.kind().expect("a Matrix error");
    format!("{} {}", refusal.status.as_u16(), kind.errcode())
}

/// The texts that one server tells another of a room's past.
async fn past(of: &TestServer, to: &TestServer, room: &str, from: &str) -> Vec<Value> {
    let (room, from) = (RoomId::parse(room).unwrap(), EventId::parse(from).unwrap());
    let request = get_backfill::v1::Request::new(room, vec![from], UInt::from(100_u32));
    let told = to.app.federation.send(of.name(), request).await.unwrap();
    let pdus = told.pdus.iter();
    let pdus = pdus.map(|pdu| serde_json::from_str::<Value>(pdu.get()).unwrap());
    let messages = pdus.filter(|pdu| pdu["type"] == "m.room.message");
    messages.map(|pdu| pdu["content"]["body"].clone()).collect()
}

#[tokio::test]
async fn servers_see_what_their_users_saw() {
    let (here, there) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    for visibility in ["joined", "shared"] {
        let history = json!({
            "type": "m.room.history_visibility",
            "content": { "history_visibility": visibility },
        });
        let body = json!({ "preset": "public_chat", "initial_state": [history] });
        let room = alice.create_room(body).await;
        let before = alice.say(&room, "before").await;
        assert_eq!(
            content(&here, &there, &before).await,
            Err("403 M_FORBIDDEN".to_owned())
        );
        join(&bob, &room, &here).await;
        let during = alice.say(&room, "during").await;
        let whole = json!({ "body": "during", "msgtype": "m.text" });
        assert_eq!(content(&here, &there, &during).await.unwrap(), whole);
        let told = content(&here, &there, &before).await.unwrap();
        let expected = match visibility {
            "joined" => (json!({}), json!(["during", null])),
            _ => (
                json!({ "body": "before", "msgtype": "m.text" }),
                json!(["during", "before"]),
            ),
        };
        assert_eq!(
            (told, json!(past(&here, &there, &room, &during).await)),
            expected
        );

        leave(&bob, &room, &alice).await;
        let after = alice.say(&room, "after").await;
        assert_eq!(
            content(&here, &there, &after).await,
            Err("403 M_FORBIDDEN".to_owned()),
            "{visibility}"
        );
        assert_eq!(content(&here, &there, &during).await.unwrap(), whole);
        let room_id = RoomId::parse(&room).unwrap();
        for (event, may) in [(&during, true), (&after, false)] {
            let event = EventId::parse(event).unwrap();
            let request = get_room_state_ids::v1::Request::new(event, room_id.clone());
            let answer = there.app.federation.send(here.name(), request).await;
            match answer {
                Ok(told) => assert!(may && told.pdu_ids.len() > 5),
                Err(error) => assert!(!may && refusal(&error) == "403 M_FORBIDDEN"),
            }
        }
        let told = past(&here, &there, &room, &after).await;
        assert!(!told.contains(&json!("after")) && told.contains(&json!("during")));
    }
}

/// What one server tells another of an event: `w`hole, `r`edacted, or `n`othing, for each way to ask.
async fn sight(of: &TestServer, to: &TestServer, room: &str, event: &str) -> String {
    let id = RoomId::parse(room).unwrap();
    let event_id = EventId::parse(event).unwrap();
    let form = |content: &Value| match &content["body"] {
        Value::Null => 'r',
        _ => 'w',
    };
    let alone = match content(of, to, event).await {
        Ok(content) => form(&content),
        Err(error) => {
            assert_eq!(error, "403 M_FORBIDDEN");
            'n'
        }
    };
    let limit = UInt::from(1_u32);
    let request = get_backfill::v1::Request::new(id.clone(), vec![event_id.clone()], limit);
    let past = match to.app.federation.send(of.name(), request).await {
        Ok(told) => told.pdus.first().map_or('n', |pdu| {
            let pdu: Value = serde_json::from_str(pdu.get()).unwrap();
            form(&pdu["content"])
        }),
        Err(error) => {
            assert_eq!(refusal(&error), "403 M_FORBIDDEN");
            'n'
        }
    };
    let request = get_room_state_ids::v1::Request::new(event_id, id);
    let state = match to.app.federation.send(of.name(), request).await {
        Ok(_) => 'w',
        Err(error) => {
            assert_eq!(refusal(&error), "403 M_FORBIDDEN");
            'n'
        }
    };
    [alone, past, state].into_iter().collect()
}

#[tokio::test]
async fn each_server_sees_what_the_visibility_allows() {
    let (here, there) = tokio::join!(TestServer::federated(), TestServer::federated());
    let third = TestServer::federated().await;
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    // Before the invite, while invited, while in the room, after leaving it.
    let in_room = [
        ("world_readable", ["www", "www", "www", ""]),
        ("shared", ["www", "www", "www", ""]),
        ("invited", ["rrw", "www", "www", ""]),
        ("joined", ["rrw", "rrw", "www", ""]),
    ];
    let gone = [
        ["www", "www", "www", "www"],
        ["www", "www", "www", "nnn"],
        ["nnn", "www", "www", "nnn"],
        ["nnn", "nnn", "www", "nnn"],
    ];
    for ((visibility, in_room), gone) in in_room.into_iter().zip(gone) {
        let history = json!({
            "type": "m.room.history_visibility",
            "content": { "history_visibility": visibility },
        });
        let body = json!({ "preset": "private_chat", "initial_state": [history] });
        let room = alice.create_room(body).await;
        let mut events = vec![alice.say(&room, "before").await];
        let invite = json!({ "user_id": bob.id });
        let path = format!("/rooms/{room}/invite");
        alice.post(&path, invite).await.ok();
        events.push(alice.say(&room, "invited").await);
        join(&bob, &room, &here).await;
        events.push(alice.say(&room, "joined").await);
        for (event, expected) in events.iter().zip(in_room) {
            let seen = sight(&here, &there, &room, event).await;
            assert_eq!(seen, expected, "{visibility} {event}");
        }
        leave(&bob, &room, &alice).await;
        events.push(alice.say(&room, "left").await);
        for (event, expected) in events.iter().zip(gone) {
            let seen = sight(&here, &there, &room, event).await;
            assert_eq!(seen, expected, "{visibility} {event}");
            let never = if visibility == "world_readable" {
                "www"
            } else {
                "nnn"
            };
            let seen = sight(&here, &third, &room, event).await;
            assert_eq!(seen, never, "{visibility} {event}");
        }
    }
}

#[tokio::test]
async fn who_comes_later_does_not_see_what_was_said_to_others() {
    let (here, there) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let carol = there.register("carol").await;
    let history = json!({
        "type": "m.room.history_visibility",
        "content": { "history_visibility": "joined" },
    });
    let body = json!({ "preset": "public_chat", "initial_state": [history] });
    let room = alice.create_room(body).await;
    join(&bob, &room, &here).await;
    let secret = alice.say(&room, "secret").await;
    sees(&bob, &room, &secret).await;
    leave(&bob, &room, &alice).await;
    // This server learns of it only when somebody comes back.
    let path = format!("/rooms/{room}/state/m.room.history_visibility");
    let shared = json!({ "history_visibility": "shared" });
    alice.put(&path, shared).await.ok();
    join(&carol, &room, &here).await;
    let said = alice.say(&room, "hello carol").await;
    sees(&carol, &room, &said).await;
    let messages = format!("/rooms/{room}/messages?dir=b&limit=100");
    let read = carol.get(&messages).await.ok().to_string();
    assert!(
        read.contains("hello carol") && !read.contains("secret"),
        "{read}"
    );
    let event = format!("/rooms/{room}/event/{secret}");
    carol.get(&event).await.fails(404, "M_NOT_FOUND");
    let filter = "%7B%22room%22:%7B%22timeline%22:%7B%22limit%22:100%7D%7D%7D";
    let sync = carol.sync(&format!("filter={filter}")).await.to_string();
    assert!(sync.contains("hello carol") && !sync.contains("secret"));
    // It is so after a restart too, and now that the event which changed it has its place in the history.
    let query = sql!("SELECT count(*) FROM event WHERE flags & 256 <> 0 AND flags & 1 = 0");
    let row = there.app.db.one(query, args![]).await.unwrap();
    assert_eq!(row.get::<i64>(0).unwrap(), 1);
    // Nor does a server that comes later.
    let third = TestServer::federated().await;
    let dave = third.register("dave").await;
    join(&dave, &room, &there).await;
    let told = content(&there, &third, &secret).await.unwrap();
    assert_eq!(told, json!({}));
    // Bob was there.
    join(&bob, &room, &here).await;
    bob.get(&event).await.ok();
}

#[tokio::test]
async fn other_servers_are_told_nothing_of_who_was_erased() {
    let (here, there) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let name = json!({ "displayname": "Alice Secret" });
    let path = format!("/profile/{}/displayname", alice.id);
    alice.put(&path, name).await.ok();
    let body = json!({ "preset": "public_chat", "name": "Lounge", "topic": "a secret topic" });
    let room = alice.create_room(body).await;
    join(&bob, &room, &here).await;
    let dave = here.register("dave").await;
    dave.post(&format!("/join/{room}"), json!({})).await.ok();
    let said = alice.say(&room, "a secret").await;
    let path = format!("/rooms/{room}/state/m.room.topic");
    alice.put(&path, json!({ "topic": "harmless" })).await.ok();
    let last = dave.say(&room, "last").await;
    let whole = json!({ "body": "a secret", "msgtype": "m.text" });
    assert_eq!(content(&here, &there, &said).await.unwrap(), whole);

    let body = json!({ "erase": true });
    alice
        .send_with_password(Method::POST, "/account/deactivate", body)
        .await
        .ok();
    assert_eq!(content(&here, &there, &said).await.unwrap(), json!({}));
    let (room_id, from) = (
        RoomId::parse(&room).unwrap(),
        EventId::parse(&last).unwrap(),
    );
    let limit = UInt::from(100_u32);
    let request = get_backfill::v1::Request::new(room_id.clone(), vec![from.clone()], limit);
    let told = there.app.federation.send(here.name(), request).await;
    let told: Vec<&str> = told
        .as_ref()
        .unwrap()
        .pdus
        .iter()
        .map(|pdu| pdu.get())
        .collect();
    let told = told.join(" ");
    assert!(!told.to_lowercase().contains("secret"), "{told}");
    assert!(told.contains("Lounge") && told.contains("harmless") && told.contains("last"));
    let mut request = get_missing_events::v1::Request::new(room_id, Vec::new(), vec![from]);
    request.limit = UInt::from(20_u32);
    let told = there.app.federation.send(here.name(), request).await;
    let events = told.unwrap().events;
    assert!(events.len() > 5);
    let told: Vec<&str> = events.iter().map(|pdu| pdu.get()).collect();
    assert!(
        !told.join(" ").to_lowercase().contains("secret"),
        "{told:?}"
    );
}

#[tokio::test]
async fn people_of_other_servers_are_found() {
    let (here, there) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let (carol, zoe) = (here.register("carol").await, there.register("zoe").await);
    for (user, name) in [(&bob, "Bob Builder"), (&zoe, "Zoe Builder")] {
        let path = format!("/profile/{}/displayname", user.id);
        user.put(&path, json!({ "displayname": name })).await.ok();
    }
    let open = alice.create_room(json!({ "preset": "public_chat" })).await;
    join(&bob, &open, &here).await;
    let closed = alice.create_room(json!({ "invite": [zoe.id] })).await;
    eventually(&zoe, |sync| sync["rooms"]["invite"].get(&closed).map(drop)).await;
    zoe.post(&format!("/join/{closed}"), json!({})).await.ok();
    let search = async |user: &User<'_>| {
        let body = json!({ "search_term": "builder" });
        let found = user.post("/user_directory/search", body).await.ok();
        let mut found: Vec<String> = found["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|user| format!("{} {}", user["user_id"], user["display_name"]))
            .collect();
        found.sort();
        found
    };
    let person = |user: &User<'_>, name: &str| format!("{} {}", json!(user.id), json!(name));
    let (bob_found, zoe_found) = (person(&bob, "Bob Builder"), person(&zoe, "Zoe Builder"));
    assert_eq!(search(&alice).await, [bob_found.clone(), zoe_found]);
    // She shares no room with either.
    assert_eq!(search(&carol).await, [bob_found]);
    leave(&bob, &open, &alice).await;
    assert!(search(&carol).await.is_empty());
}

#[tokio::test]
async fn an_alias_leads_to_all_servers_of_its_room() {
    let (here, there) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let body = json!({ "preset": "public_chat", "room_alias_name": "pub" });
    let room = alice.create_room(body).await;
    let path = format!("/directory/room/%23pub:{}", here.name());
    let join = format!("/join/%23pub:{}", here.name());
    bob.post(&join, json!({})).await.ok();
    let expected = json!({ "room_id": room, "servers": [here.name(), there.name()] });
    assert_eq!(alice.get(&path).await.ok(), expected);
    assert_eq!(bob.get(&path).await.ok(), expected);
}

#[tokio::test]
async fn a_restricted_room_is_told_to_servers_that_could_join() {
    let (here, there) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let space = json!({ "preset": "public_chat", "creation_content": { "type": "m.space" } });
    let space = alice.create_room(space).await;
    let rules = json!({
        "type": "m.room.join_rules",
        "content": { "join_rule": "restricted", "allow": [{ "type": "m.room_membership", "room_id": space }] },
    });
    let body = json!({ "preset": "private_chat", "name": "inner", "initial_state": [rules] });
    let inner = alice.create_room(body).await;
    let child = format!("/rooms/{space}/state/m.space.child/{inner}");
    let via = json!({ "via": [here.name()] });
    alice.put(&child, via).await.ok();
    let ask = async || {
        let request = get_hierarchy::v1::Request::new(RoomId::parse(&space).unwrap());
        let told = there.app.federation.send(here.name(), request).await;
        let told = told.unwrap();
        (told.children.len(), told.inaccessible_children.len())
    };
    let tree = async || {
        let path = format!("/_matrix/client/v1/rooms/{space}/hierarchy");
        let tree = bob.get(&path).await.ok();
        tree["rooms"].as_array().unwrap().len()
    };
    assert_eq!(ask().await, (0, 1));
    join(&bob, &space, &here).await;
    assert_eq!(ask().await, (1, 0));
    assert_eq!(tree().await, 2);
    leave(&bob, &space, &alice).await;
    assert_eq!(ask().await, (0, 1));
}

#[tokio::test]
async fn an_event_near_a_time_may_be_elsewhere() {
    let (here, there) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let mut times = Vec::new();
    for number in 0..60 {
        here.app.clock.advance(std::time::Duration::from_mins(1));
        let event = alice.say(&room, &format!("message {number}")).await;
        let path = format!("/rooms/{room}/event/{event}");
        let ts = alice.get(&path).await.ok()["origin_server_ts"].as_i64();
        times.push((event, ts.unwrap()));
    }
    join(&bob, &room, &here).await;
    let (event, ts) = &times[5];
    for (ts, dir) in [(ts - 1000, "f"), (ts + 1000, "b")] {
        let path = format!("/_matrix/client/v1/rooms/{room}/timestamp_to_event?ts={ts}&dir={dir}");
        let near = bob.get(&path).await.ok();
        assert_eq!(near["event_id"], *event, "{dir}");
    }
    let path = format!("/rooms/{room}/context/{event}");
    let context = bob.get(&path).await.ok();
    assert_eq!(context["event"]["content"]["body"], "message 5");
}
