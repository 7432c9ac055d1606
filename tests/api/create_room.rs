use serde_json::{Value, json};

use crate::server::{TestServer, User};

async fn state(user: &User<'_>, room: &str, kind: &str) -> Value {
    user.get(&format!("/rooms/{room}/state/{kind}/")).await.ok()
}

#[tokio::test]
async fn presets_set_the_access() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    for (body, join_rule, guests, invite) in [
        (json!({}), "invite", Some("can_join"), 0),
        (json!({ "visibility": "public" }), "public", None, 50),
        (
            json!({ "preset": "private_chat", "visibility": "public" }),
            "invite",
            Some("can_join"),
            0,
        ),
        (
            json!({ "preset": "trusted_private_chat" }),
            "invite",
            Some("can_join"),
            0,
        ),
        (
            json!({ "preset": "public_chat" }),
            "public",
            // Without such an event guests may not join.
            None,
            50,
        ),
    ] {
        let room = alice.create_room(body).await;
        assert_eq!(
            state(&alice, &room, "m.room.join_rules").await["join_rule"],
            join_rule
        );
        let path = format!("/rooms/{room}/state/m.room.guest_access/");
        match guests {
            Some(guests) => assert_eq!(alice.get(&path).await.ok()["guest_access"], guests),
            None => drop(alice.get(&path).await.fails(404, "M_NOT_FOUND")),
        }
        let visibility = state(&alice, &room, "m.room.history_visibility").await;
        assert_eq!(visibility["history_visibility"], "shared");
        let levels = state(&alice, &room, "m.room.power_levels").await;
        assert_eq!(levels["invite"], invite);
        assert_eq!(levels["events"]["m.room.tombstone"], 150);
        assert_eq!(levels["users"], json!({}));
    }
}

#[tokio::test]
async fn the_invited_of_a_trusted_chat_are_as_powerful_as_its_creator() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let body = json!({
        "preset": "trusted_private_chat", "invite": [bob.id, bob.id], "is_direct": true,
        "creation_content": { "additional_creators": [carol.id, bob.id] },
    });
    let room = alice.create_room(body).await;
    let create = state(&alice, &room, "m.room.create").await;
    assert_eq!(create["additional_creators"], json!([carol.id, bob.id]));
    let member = format!("/rooms/{room}/state/m.room.member/{}", bob.id);
    let member = alice.get(&member).await.ok();
    assert_eq!(
        (&member["membership"], &member["is_direct"]),
        (&json!("invite"), &json!(true))
    );

    let body =
        json!({ "preset": "trusted_private_chat", "invite": [bob.id], "room_version": "11" });
    let room = alice.create_room(body).await;
    let levels = state(&alice, &room, "m.room.power_levels").await;
    assert_eq!(
        levels["users"],
        json!({ alice.id.clone(): 100, bob.id.clone(): 100 })
    );
    assert_eq!(levels["events"]["m.room.tombstone"], 100);
}

#[tokio::test]
async fn the_create_event_says_what_the_client_may_say() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let content = json!({
        "creator": "@mallory:localhost", "room_version": "1", "m.federate": false, "type": "m.space",
        "org.example.key": [1],
    });
    let body = json!({ "creation_content": content, "room_version": "12" });
    let room = alice.create_room(body).await;
    assert_eq!(
        state(&alice, &room, "m.room.create").await,
        json!({ "room_version": "12", "m.federate": false, "type": "m.space", "org.example.key": [1] })
    );
    let body = json!({ "creation_content": content, "room_version": "10" });
    let room = alice.create_room(body).await;
    let create = state(&alice, &room, "m.room.create").await;
    assert_eq!(
        (&create["creator"], &create["room_version"]),
        (&json!(alice.id), &json!("10"))
    );
}

#[tokio::test]
async fn initial_state_comes_after_the_preset_and_before_name_and_topic() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice
        .create_room(json!({
            "preset": "private_chat", "name": "Name", "topic": "Topic",
            "initial_state": [
                { "type": "m.room.join_rules", "content": { "join_rule": "knock" } },
                { "type": "m.room.name", "state_key": "", "content": { "name": "other" } },
                { "type": "m.room.topic", "content": { "topic": "other" } },
                { "type": "org.example", "state_key": "key", "content": { "a": 1 } },
                { "type": "org.example", "state_key": "key", "content": { "a": 2 } },
            ],
        }))
        .await;
    assert_eq!(
        state(&alice, &room, "m.room.join_rules").await["join_rule"],
        "knock"
    );
    assert_eq!(state(&alice, &room, "m.room.name").await["name"], "Name");
    let topic = state(&alice, &room, "m.room.topic").await;
    assert_eq!(topic["topic"], "Topic");
    assert_eq!(topic["m.topic"]["m.text"][0]["body"], "Topic");
    let own = alice
        .get(&format!("/rooms/{room}/state/org.example/key"))
        .await
        .ok();
    assert_eq!(own, json!({ "a": 2 }));
}

#[tokio::test]
async fn power_levels_are_overridden_key_by_key() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let body = json!({ "power_level_content_override": { "invite": 75, "users": { bob.id.clone(): 60 } } });
    let room = alice.create_room(body).await;
    let levels = state(&alice, &room, "m.room.power_levels").await;
    assert_eq!(
        (&levels["invite"], &levels["ban"]),
        (&json!(75), &json!(50))
    );
    assert_eq!(levels["users"], json!({ bob.id.clone(): 60 }));
    // Creators have no level in rooms of version 12.
    let body = json!({ "power_level_content_override": { "users": { alice.id.clone(): 100 } } });
    alice
        .post("/createRoom", body)
        .await
        .fails(400, "M_INVALID_ROOM_STATE");
    // Who gives up the power to name the room cannot name it.
    let body = json!({
        "room_version": "11", "name": "Room",
        "power_level_content_override": { "users": { alice.id.clone(): 0 } },
    });
    alice
        .post("/createRoom", body)
        .await
        .fails(400, "M_INVALID_ROOM_STATE");
    let body = json!({ "power_level_content_override": { "ban": "many" } });
    alice
        .post("/createRoom", body)
        .await
        .fails(400, "M_BAD_JSON");
}

#[tokio::test]
async fn bad_requests_create_nothing() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let many: Vec<String> = (0..1000).map(|n| format!("@user{n}:localhost")).collect();
    let event = |kind: &str, content: Value| json!({ "initial_state": [{ "type": kind, "content": content }] });
    for (body, status, code) in [
        (json!([]), 400, "M_BAD_JSON"),
        (json!({ "preset": "nonsense" }), 400, "M_INVALID_PARAM"),
        (json!({ "visibility": "secret" }), 400, "M_INVALID_PARAM"),
        (json!({ "room_version": 12 }), 400, "M_BAD_JSON"),
        (
            json!({ "room_version": "99" }),
            400,
            "M_UNSUPPORTED_ROOM_VERSION",
        ),
        (json!({ "name": 1 }), 400, "M_BAD_JSON"),
        (json!({ "name": "a".repeat(70_000) }), 413, "M_TOO_LARGE"),
        (json!({ "invite": ["bob"] }), 400, "M_BAD_JSON"),
        (json!({ "invite": many }), 400, "M_INVALID_PARAM"),
        (
            json!({ "invite": ["@bob:elsewhere.org"] }),
            403,
            "M_FORBIDDEN",
        ),
        (json!({ "invite": [alice.id] }), 400, "M_INVALID_ROOM_STATE"),
        (json!({ "is_direct": "yes" }), 400, "M_BAD_JSON"),
        (json!({ "creation_content": [] }), 400, "M_BAD_JSON"),
        (
            json!({ "creation_content": { "m.federate": "no" } }),
            400,
            "M_BAD_JSON",
        ),
        (
            json!({ "creation_content": { "additional_creators": "x" } }),
            400,
            "M_BAD_JSON",
        ),
        (
            json!({ "creation_content": { "additional_creators": ["x"] } }),
            400,
            "M_BAD_JSON",
        ),
        (
            json!({ "creation_content": { "type": "a\u{0}b" } }),
            400,
            "M_INVALID_PARAM",
        ),
        (
            json!({ "creation_content": { "n": 1.5 } }),
            400,
            "M_BAD_JSON",
        ),
        (
            json!({ "power_level_content_override": [] }),
            400,
            "M_BAD_JSON",
        ),
        (json!({ "initial_state": [{}] }), 400, "M_BAD_JSON"),
        (
            json!({ "initial_state": [{ "type": 1, "content": {} }] }),
            400,
            "M_BAD_JSON",
        ),
        (event("org.example", json!([])), 400, "M_BAD_JSON"),
        (
            event("org.example", json!({ "n": 1e300 })),
            400,
            "M_BAD_JSON",
        ),
        (event("a\u{0}b", json!({})), 400, "M_BAD_JSON"),
        (event(&"a".repeat(256), json!({})), 413, "M_TOO_LARGE"),
        (event("m.room.create", json!({})), 400, "M_INVALID_PARAM"),
        (
            event("m.room.member", json!({ "membership": "join" })),
            400,
            "M_INVALID_PARAM",
        ),
        (
            event("m.room.canonical_alias", json!({ "alias": "#a:localhost" })),
            400,
            "M_BAD_ALIAS",
        ),
        (
            json!({ "invite_3pid": [{ "id_server": "a", "id_access_token": "b", "medium": "email", "address": "c" }] }),
            400,
            "M_THREEPID_DENIED",
        ),
    ] {
        let shown = body.to_string().chars().take(100).collect::<String>();
        let answer = alice.post("/createRoom", body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.body["errcode"].as_str()),
            (status, Some(code)),
            "{shown}: {}",
            answer.body
        );
    }
    let joined = alice.get("/joined_rooms").await.ok();
    assert_eq!(joined, json!({ "joined_rooms": [] }));
}

#[tokio::test]
async fn rooms_that_are_alike_are_different_rooms() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let body = json!({ "preset": "private_chat" });
    let rooms = (0..20).map(|_| alice.create_room(body.clone()));
    let rooms = futures_util::future::join_all(rooms).await;
    let different: std::collections::HashSet<_> = rooms.iter().collect();
    assert_eq!(different.len(), 20);
}
