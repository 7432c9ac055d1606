use reqwest::Method;
use serde_json::json;

use crate::server::TestServer;

/// The path of an alias in the directory.
fn path(alias: &str) -> String {
    let alias = alias.replace('#', "%23").replace(' ', "%20");
    format!("/directory/room/{alias}")
}

#[tokio::test]
async fn an_alias_is_made_found_joined_and_deleted() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let pub_path = path("#pub:localhost");
    alice.get(&pub_path).await.fails(404, "M_NOT_FOUND");
    alice.put(&pub_path, json!({ "room_id": room })).await.ok();
    let anonymous = format!("/_matrix/client/v3{pub_path}");
    let found = server
        .request(Method::GET, &anonymous, None, None)
        .await
        .ok();
    assert_eq!(found, json!({ "room_id": room, "servers": ["localhost"] }));
    let again = alice.put(&pub_path, json!({ "room_id": room })).await;
    again.fails(409, "M_UNKNOWN");
    let joined = bob.post("/join/%23pub:localhost", json!({})).await.ok();
    assert_eq!(joined["room_id"], room);
    let aliases = bob.get(&format!("/rooms/{room}/aliases")).await.ok();
    assert_eq!(aliases, json!({ "aliases": ["#pub:localhost"] }));

    // Bob neither made it nor has the power.
    bob.delete(&pub_path).await.fails(403, "M_FORBIDDEN");
    alice.delete(&pub_path).await.ok();
    alice.delete(&pub_path).await.fails(404, "M_NOT_FOUND");
    bob.post("/join/%23pub:localhost", json!({}))
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn who_made_an_alias_or_has_power_may_delete_it() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    for name in ["one", "two"] {
        let path = path(&format!("#{name}:localhost"));
        bob.put(&path, json!({ "room_id": room })).await.ok();
    }
    bob.delete(&path("#one:localhost")).await.ok();
    alice.delete(&path("#two:localhost")).await.ok();
    let aliases = bob.get(&format!("/rooms/{room}/aliases")).await.ok();
    assert_eq!(aliases, json!({ "aliases": [] }));
}

#[tokio::test]
async fn a_deleted_alias_leaves_the_state_of_its_room() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice
        .create_room(json!({ "preset": "public_chat", "room_alias_name": "main" }))
        .await;
    let state = format!("/rooms/{room}/state/m.room.canonical_alias/");
    let read = || async { alice.get(&state).await.ok() };
    assert_eq!(read().await, json!({ "alias": "#main:localhost" }));

    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    bob.put(&path("#other:localhost"), json!({ "room_id": room }))
        .await
        .ok();
    let both = json!({ "alias": "#main:localhost", "alt_aliases": ["#other:localhost"] });
    alice.put(&state, both.clone()).await.ok();
    // Bob made it and so may delete it, but he may not change the state.
    bob.delete(&path("#other:localhost")).await.ok();
    assert_eq!(read().await, both);

    alice
        .put(&path("#other:localhost"), json!({ "room_id": room }))
        .await
        .ok();
    alice.delete(&path("#other:localhost")).await.ok();
    assert_eq!(read().await, json!({ "alias": "#main:localhost" }));
    alice.delete(&path("#main:localhost")).await.ok();
    assert_eq!(read().await, json!({}));
}

#[tokio::test]
async fn only_members_give_aliases_and_outsiders_do_not_see_them() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({})).await;
    let body = json!({ "room_id": room });
    bob.put(&path("#mine:localhost"), body)
        .await
        .fails(403, "M_FORBIDDEN");
    let body = json!({ "room_id": "!unknown:localhost" });
    bob.put(&path("#mine:localhost"), body)
        .await
        .fails(403, "M_FORBIDDEN");
    let aliases = format!("/rooms/{room}/aliases");
    bob.get(&aliases).await.fails(403, "M_FORBIDDEN");
    bob.get("/rooms/!unknown:localhost/aliases")
        .await
        .fails(403, "M_FORBIDDEN");
    let visibility = format!("/rooms/{room}/state/m.room.history_visibility/");
    alice
        .put(
            &visibility,
            json!({ "history_visibility": "world_readable" }),
        )
        .await
        .ok();
    assert_eq!(bob.get(&aliases).await.ok(), json!({ "aliases": [] }));
}

#[tokio::test]
async fn bad_aliases_are_refused() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    let long = format!("#{}:localhost", "a".repeat(250));
    for alias in [
        "#a:elsewhere.org",
        "#:localhost",
        "#a b:localhost",
        "a:localhost",
        "#a",
        "#a%00:localhost",
        &long,
    ] {
        let answer = alice.put(&path(alias), json!({ "room_id": room })).await;
        answer.fails(400, "M_INVALID_PARAM");
    }
    alice
        .put(&path("#a:localhost"), json!({}))
        .await
        .fails(400, "M_MISSING_PARAM");
    alice
        .put(&path("#a:localhost"), json!({ "room_id": 1 }))
        .await
        .fails(400, "M_BAD_JSON");
    for name in ["a:b", "", "a b", "a\u{0}", &"a".repeat(250), "a\nb"] {
        let answer = alice
            .post("/createRoom", json!({ "room_alias_name": name }))
            .await;
        answer.fails(400, "M_INVALID_PARAM");
    }
    alice
        .create_room(json!({ "room_alias_name": "taken" }))
        .await;
    let answer = alice
        .post("/createRoom", json!({ "room_alias_name": "taken" }))
        .await;
    answer.fails(400, "M_ROOM_IN_USE");
}

#[tokio::test]
async fn a_canonical_alias_leads_to_its_room() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice
        .create_room(json!({ "room_alias_name": "here" }))
        .await;
    alice
        .create_room(json!({ "room_alias_name": "there" }))
        .await;
    let state = format!("/rooms/{room}/state/m.room.canonical_alias/");
    for content in [
        json!({ "alias": "#there:localhost" }),
        json!({ "alias": "#nowhere:localhost" }),
        json!({ "alt_aliases": ["#here:localhost", "#there:localhost"] }),
    ] {
        alice.put(&state, content).await.fails(400, "M_BAD_ALIAS");
    }
    alice
        .put(&state, json!({ "alias": "here" }))
        .await
        .fails(400, "M_INVALID_PARAM");
    alice
        .put(&state, json!({ "alias": 1 }))
        .await
        .fails(400, "M_BAD_JSON");
    alice
        .put(&state, json!({ "alt_aliases": ["#here:localhost"] }))
        .await
        .ok();
}
