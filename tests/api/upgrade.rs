use serde_json::{Value, json};

use crate::{
    server::{TestServer, User},
    shared_rooms::eventually,
};

async fn state(user: &User<'_>, room: &str, kind: &str, key: &str) -> Value {
    user.get(&format!("/rooms/{room}/state/{kind}/{key}"))
        .await
        .ok()
}

async fn upgrade(user: &User<'_>, room: &str, body: Value) -> String {
    let answer = user
        .post(&format!("/rooms/{room}/upgrade"), body)
        .await
        .ok();
    answer["replacement_room"]
        .as_str()
        .expect("a room id")
        .to_owned()
}

#[tokio::test]
async fn a_room_moves_to_another_version_with_all_that_belongs_to_it() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let mallory = server.register("mallory").await;
    let old = alice
        .create_room(json!({
            "room_version": "9", "preset": "public_chat", "visibility": "public", "name": "Pub", "topic": "Ale",
            "room_alias_name": "pub", "creation_content": { "m.federate": false, "type": "org.example.kind" },
            "power_level_content_override": { "users": { alice.id.clone(): "100", bob.id.clone(): 50 }, "kick": "60" },
        }))
        .await;
    for user in [&bob, &mallory] {
        user.post(&format!("/join/{old}"), json!({})).await.ok();
    }
    let ban = json!({ "user_id": mallory.id, "reason": "rude" });
    alice.post(&format!("/rooms/{old}/ban"), ban).await.ok();
    let new = upgrade(&alice, &old, json!({ "new_version": "12" })).await;

    let create = state(&alice, &new, "m.room.create", "").await;
    assert_eq!(
        create,
        json!({ "room_version": "12", "predecessor": { "room_id": old }, "m.federate": false, "type": "org.example.kind" })
    );
    let tombstone = state(&alice, &old, "m.room.tombstone", "").await;
    assert_eq!(tombstone["replacement_room"], new);
    assert_eq!(state(&alice, &new, "m.room.name", "").await["name"], "Pub");
    assert_eq!(
        state(&alice, &new, "m.room.topic", "").await["topic"],
        "Ale"
    );
    assert_eq!(
        state(&alice, &new, "m.room.join_rules", "").await["join_rule"],
        "public"
    );
    let levels = state(&alice, &new, "m.room.power_levels", "").await;
    assert_eq!(levels["users"], json!({ bob.id.clone(): 50 }));
    assert_eq!(levels["kick"], 60);
    assert_eq!(levels["invite"], 50);
    let ban = state(&alice, &new, "m.room.member", &mallory.id).await;
    assert_eq!(ban, json!({ "membership": "ban", "reason": "rude" }));

    let found = alice.get("/directory/room/%23pub:localhost").await.ok();
    assert_eq!(found["room_id"], new);
    assert_eq!(
        state(&alice, &new, "m.room.canonical_alias", "").await["alias"],
        "#pub:localhost"
    );
    assert_eq!(
        state(&alice, &old, "m.room.canonical_alias", "").await,
        json!({})
    );
    let listed = alice.get("/publicRooms").await.ok();
    assert_eq!(listed["chunk"].as_array().unwrap().len(), 1);
    assert_eq!(listed["chunk"][0]["room_id"], new);

    let levels = state(&alice, &old, "m.room.power_levels", "").await;
    assert_eq!(
        (&levels["events_default"], &levels["invite"]),
        (&json!(50), &json!(50))
    );
    let joined = bob.post("/join/%23pub:localhost", json!({})).await.ok();
    assert_eq!(joined["room_id"], new);
    mallory
        .post(&format!("/join/{new}"), json!({}))
        .await
        .fails(403, "M_FORBIDDEN");
    alice.say(&new, "hello again").await;
}

#[tokio::test]
async fn the_creators_of_old_rooms_keep_their_power() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let old = alice
        .create_room(json!({ "preset": "trusted_private_chat", "invite": [bob.id] }))
        .await;
    // From a version with creators to one without: they can do all that the room asks power for.
    let middle = upgrade(&alice, &old, json!({ "new_version": "11" })).await;
    let levels = state(&alice, &middle, "m.room.power_levels", "").await;
    assert_eq!(
        levels["users"],
        json!({ alice.id.clone(): 150, bob.id.clone(): 150 })
    );
    let create = state(&alice, &middle, "m.room.create", "").await;
    assert_eq!(create["predecessor"]["room_id"], old);
    assert!(create["predecessor"]["event_id"].is_string());
    // And back: who is named as a creator is one, the other stays powerful.
    let new = upgrade(&alice, &middle, json!({ "new_version": "12" })).await;
    let levels = state(&alice, &new, "m.room.power_levels", "").await;
    assert_eq!(levels["users"], json!({ bob.id.clone(): 150 }));
    let body = json!({ "new_version": "12", "additional_creators": [bob.id, bob.id] });
    let new = upgrade(&alice, &middle, body).await;
    let levels = state(&alice, &new, "m.room.power_levels", "").await;
    assert_eq!(levels["users"], json!({}));
    let create = state(&alice, &new, "m.room.create", "").await;
    assert_eq!(create["additional_creators"], json!([bob.id]));
    // Between versions with creators, those of the old room are none in the new one unless they are named.
    let levels = json!({ "users": { bob.id.clone(): 150 } });
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let path = format!("/rooms/{room}/state/m.room.power_levels");
    alice.put(&path, levels).await.ok();
    let newer = upgrade(&bob, &room, json!({ "new_version": "12" })).await;
    let levels = state(&bob, &newer, "m.room.power_levels", "").await;
    assert_eq!(levels["users"], json!({}));
    for version in ["6", "7", "8", "10"] {
        let new = upgrade(&alice, &new, json!({ "new_version": version })).await;
        assert_eq!(
            state(&alice, &new, "m.room.create", "").await["room_version"],
            version
        );
    }
}

#[tokio::test]
async fn a_space_takes_its_children_along() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let body = json!({ "room_version": "10", "creation_content": { "type": "m.space" } });
    let old = alice.create_room(body).await;
    let (child, gone) = (
        alice.create_room(json!({})).await,
        alice.create_room(json!({})).await,
    );
    let via = json!({ "via": ["localhost"], "suggested": true });
    alice
        .put(
            &format!("/rooms/{old}/state/m.space.child/{child}"),
            via.clone(),
        )
        .await
        .ok();
    alice
        .put(
            &format!("/rooms/{old}/state/m.space.child/{gone}"),
            json!({}),
        )
        .await
        .ok();
    let new = upgrade(&alice, &old, json!({ "new_version": "12" })).await;
    assert_eq!(state(&alice, &new, "m.space.child", &child).await, via);
    let answer = alice
        .get(&format!("/rooms/{new}/state/m.space.child/{gone}"))
        .await;
    answer.fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn a_space_of_another_server_takes_its_children_along() {
    let (here, there) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let users = json!({ "users": { alice.id.clone(): 100, bob.id.clone(): 100 } });
    let space = alice
        .create_room(json!({
            "room_version": "11", "preset": "public_chat", "creation_content": { "type": "m.space" },
            "power_level_content_override": users,
        }))
        .await;
    let child = alice.create_room(json!({})).await;
    let via = json!({ "via": [here.name()] });
    let path = format!("/rooms/{space}/state/m.space.child/{child}");
    alice.put(&path, via.clone()).await.ok();
    let path = format!("/join/{space}?via={}", here.name());
    bob.post(&path, json!({})).await.ok();
    eventually(&bob, |sync| {
        sync["rooms"]["join"][&space].is_object().then_some(())
    })
    .await;
    let new = upgrade(&bob, &space, json!({ "new_version": "11" })).await;
    assert_eq!(state(&bob, &new, "m.space.child", &child).await, via);
}

#[tokio::test]
async fn a_moderator_without_all_power_closes_what_they_can() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let old = alice
        .create_room(json!({
            "room_version": "11", "invite": [bob.id],
            "power_level_content_override": {
                "users": { alice.id.clone(): 100, bob.id.clone(): 50 },
                "events": { "m.room.tombstone": 50, "m.room.power_levels": 100 },
            },
        }))
        .await;
    bob.post(&format!("/join/{old}"), json!({})).await.ok();
    let new = upgrade(&bob, &old, json!({ "new_version": "11" })).await;
    let levels = state(&bob, &new, "m.room.power_levels", "").await;
    assert_eq!(levels["users"][&bob.id], 50);
    assert_eq!(
        state(&bob, &old, "m.room.power_levels", "").await["events_default"],
        0
    );
    assert_eq!(
        state(&bob, &old, "m.room.tombstone", "").await["replacement_room"],
        new
    );
}

#[tokio::test]
async fn upgrades_are_refused() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let path = format!("/rooms/{room}/upgrade");
    bob.post(&path, json!({ "new_version": "12" }))
        .await
        .fails(403, "M_FORBIDDEN");
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    bob.post(&path, json!({ "new_version": "12" }))
        .await
        .fails(403, "M_FORBIDDEN");
    for version in ["1", "99", "nonsense"] {
        let answer = alice.post(&path, json!({ "new_version": version })).await;
        answer.fails(400, "M_UNSUPPORTED_ROOM_VERSION");
    }
    alice
        .post(&path, json!({}))
        .await
        .fails(400, "M_MISSING_PARAM");
    alice
        .post(&path, json!({ "new_version": 12 }))
        .await
        .fails(400, "M_BAD_JSON");
    let body = json!({ "new_version": "12", "additional_creators": ["bob"] });
    alice.post(&path, body).await.fails(400, "M_BAD_JSON");
    let unknown = "/rooms/!unknown:localhost/upgrade";
    alice
        .post(unknown, json!({ "new_version": "12" }))
        .await
        .fails(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn what_people_have_set_for_a_room_goes_with_them() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let mute = json!({ "actions": [], "conditions":
        [{ "kind": "event_match", "key": "room_id", "pattern": room }] });
    for user in [&alice, &bob] {
        let of_user = format!("/user/{}", user.id);
        let direct = json!({ "@x:y": [room] });
        user.put(&format!("{of_user}/account_data/m.direct"), direct)
            .await
            .ok();
        let tag = format!("{of_user}/rooms/{room}/tags/m.favourite");
        user.put(&tag, json!({ "order": 0.5 })).await.ok();
        let rule = format!("/pushrules/global/override/{room}");
        user.put(&rule, mute.clone()).await.ok();
        let rule = format!("/pushrules/global/room/{room}");
        user.put(&rule, json!({ "actions": ["notify"] })).await.ok();
        user.put(&format!("{rule}/enabled"), json!({ "enabled": false }))
            .await
            .ok();
    }
    let new = upgrade(&alice, &room, json!({ "new_version": "12" })).await;
    bob.post(&format!("/join/{new}"), json!({})).await.ok();
    for user in [&alice, &bob] {
        let of_user = format!("/user/{}", user.id);
        let tags = user.get(&format!("{of_user}/rooms/{new}/tags")).await.ok();
        assert_eq!(tags["tags"]["m.favourite"]["order"], 0.5);
        let path = format!("{of_user}/account_data/m.direct");
        let direct = user.get(&path).await.ok();
        assert_eq!(direct["@x:y"], json!([room, new]));
        let rule = user.get(&format!("/pushrules/global/override/{new}")).await;
        assert_eq!(rule.ok()["conditions"][0]["pattern"], json!(new));
        let rule = user
            .get(&format!("/pushrules/global/room/{new}"))
            .await
            .ok();
        assert_eq!(
            (&rule["actions"][0], &rule["enabled"]),
            (&json!("notify"), &json!(false))
        );
    }
    // Some make the new room first, and then say so in the old one.
    let made = json!({ "creation_content": { "predecessor": { "room_id": new } } });
    let made = alice.create_room(made).await;
    let tombstone = json!({ "body": "moved", "replacement_room": made });
    let path = format!("/rooms/{new}/state/m.room.tombstone");
    alice.put(&path, tombstone).await.ok();
    let path = format!("/user/{}/rooms/{made}/tags", alice.id);
    let tags = alice.get(&path).await.ok();
    assert_eq!(tags["tags"]["m.favourite"]["order"], 0.5);
    // A room that merely says so replaces nothing.
    let claim = json!({ "creation_content": { "predecessor": { "room_id": room } }, "preset": "public_chat" });
    let claims = alice.create_room(claim).await;
    bob.post(&format!("/join/{claims}"), json!({})).await.ok();
    let tags = bob
        .get(&format!("/user/{}/rooms/{claims}/tags", bob.id))
        .await;
    assert_eq!(tags.ok()["tags"], json!({}));
}
