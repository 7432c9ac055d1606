//! "Account deactivation".

use homing::{
    log::Change,
    storage::{Membership, accounts, members},
};
use reqwest::Method;
use ruma::{RoomId, UserId};
use serde_json::json;

use crate::server::{PASSWORD, TestServer, User};

async fn membership(server: &TestServer, room: &str, user: &str) -> Membership {
    let room = RoomId::parse(room).unwrap();
    let user = UserId::parse(user).unwrap();
    let room = server.app.room(&room).await.unwrap();
    let user = server.app.user(&user).await.unwrap();
    let member = members::get(&server.app.db, room.nid, user).await.unwrap();
    member.unwrap().membership
}

async fn deactivate(user: &User<'_>, erase: bool) {
    let body = json!({ "erase": erase });
    let answer = user.send_with_password(Method::POST, "/account/deactivate", body);
    let answer = answer.await.ok();
    assert_eq!(answer["id_server_unbind_result"], "success");
}

/// Rooms that bob has joined, is invited to, and knocks on.
async fn rooms(alice: &User<'_>, bob: &User<'_>) -> [String; 3] {
    let joined = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/join/{joined}"), json!({})).await.ok();
    let invited = alice.create_room(json!({ "invite": [bob.id] })).await;
    let rule = json!({ "join_rule": "knock" });
    let rule = json!([{ "type": "m.room.join_rules", "state_key": "", "content": rule }]);
    let knocked = alice.create_room(json!({ "initial_state": rule })).await;
    bob.post(&format!("/knock/{knocked}"), json!({})).await.ok();
    [joined, invited, knocked]
}

#[tokio::test]
async fn deactivated_account_is_gone_for_good() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let other = User::new(
        &server,
        &server.login("bob", PASSWORD, json!({})).await.ok(),
    );
    let rooms = rooms(&alice, &bob).await;

    deactivate(&bob, false).await;
    for user in [&bob, &other] {
        user.get("/account/whoami")
            .await
            .fails(401, "M_UNKNOWN_TOKEN");
    }
    let answer = server.login("bob", PASSWORD, json!({})).await;
    answer.fails(403, "M_USER_DEACTIVATED");
    let body =
        json!({ "username": "bob", "password": PASSWORD, "auth": { "type": "m.login.dummy" } });
    server
        .post("/register", body)
        .await
        .fails(400, "M_USER_IN_USE");
    for room in rooms {
        assert_eq!(membership(&server, &room, &bob.id).await, Membership::Leave);
    }
}

#[tokio::test]
async fn a_deactivation_that_was_cut_off_is_finished_at_the_next_start() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let rooms = rooms(&alice, &bob).await;
    let (id, token) = (bob.id.clone(), bob.token.clone());
    // As after a crash: this is the first thing that a deactivation writes.
    let user = server.app.user(&UserId::parse(&id).unwrap()).await.unwrap();
    let mut change = Change::new();
    change.write(accounts::deactivate(user, false));
    for write in homing::storage::devices::delete_all(user, None) {
        change.write(write);
    }
    server.app.log.append(change).await.unwrap();
    assert_eq!(membership(&server, &rooms[0], &id).await, Membership::Join);

    let server = server.restart().await;
    let answer = server.request(
        Method::GET,
        "/_matrix/client/v3/account/whoami",
        Some(&token),
        None,
    );
    answer.await.fails(401, "M_UNKNOWN_TOKEN");
    let left = async {
        for room in rooms {
            while membership(&server, &room, &id).await != Membership::Leave {
                tokio::task::yield_now().await;
            }
        }
    };
    let left = tokio::time::timeout(std::time::Duration::from_secs(20), left).await;
    left.expect("the rooms are left");
}

/// All that `viewer` is shown of bob's message and of what bob is called, by each way to read.
async fn shown(viewer: &User<'_>, room: &str, event: &str) -> Vec<(&'static str, String)> {
    let mut shown = Vec::new();
    for (what, path) in [
        ("event", format!("/rooms/{room}/event/{event}")),
        (
            "context",
            format!("/rooms/{room}/context/{event}?limit=100"),
        ),
        (
            "messages",
            format!("/rooms/{room}/messages?dir=b&limit=100"),
        ),
        (
            "forwards",
            format!("/rooms/{room}/messages?dir=f&limit=100"),
        ),
        ("members", format!("/rooms/{room}/members")),
        ("state", format!("/rooms/{room}/state")),
        (
            "relations",
            format!("/_matrix/client/v1/rooms/{room}/relations/{event}"),
        ),
        (
            "sync",
            r#"/sync?filter={"room":{"timeline":{"limit":100}}}"#.to_owned(),
        ),
        (
            "federation",
            r#"/sync?filter={"event_format":"federation","room":{"timeline":{"limit":100}}}"#
                .to_owned(),
        ),
    ] {
        let path = path.replace('{', "%7B").replace('}', "%7D");
        let path = path.replace('"', "%22");
        let sent = viewer.get(&path).await;
        shown.push((what, sent.ok().to_string()));
    }
    let wanted = json!({ "search_term": "secret" });
    let body = json!({ "search_categories": { "room_events": wanted } });
    shown.push((
        "search",
        viewer.post("/search", body).await.ok().to_string(),
    ));
    shown
}

fn without_state(what: &str) -> bool {
    !matches!(what, "members" | "state" | "relations")
}

#[tokio::test]
async fn those_who_come_later_see_nothing_of_who_was_erased() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    bob.put(
        &format!("/profile/{}/displayname", bob.id),
        json!({ "displayname": "Bobby Tables" }),
    )
    .await
    .ok();
    let room = bob.create_room(json!({ "preset": "public_chat", "name": "Lounge" }));
    let room = room.await;
    alice.post(&format!("/join/{room}"), json!({})).await.ok();
    let event = bob.say(&room, "the first secret").await;
    let edit = json!({
        "msgtype": "m.text",
        "body": "* another secret",
        "m.new_content": { "msgtype": "m.text", "body": "another secret" },
        "m.relates_to": { "rel_type": "m.replace", "event_id": event },
    });
    bob.put(&format!("/rooms/{room}/send/m.room.message/edit"), edit)
        .await
        .ok();
    for (what, seen) in shown(&alice, &room, &event).await {
        let should = without_state(what);
        assert_eq!(seen.contains("first secret"), should, "{what}: {seen}");
    }
    let data = format!("/user/{}/account_data/org.example.kept", bob.id);
    bob.put(&data, json!({ "a": 1 })).await.ok();

    deactivate(&bob, true).await;
    let profile = alice.get(&format!("/profile/{}", bob.id)).await;
    profile.fails(404, "M_NOT_FOUND");
    let user = server
        .app
        .user(&UserId::parse(&bob.id).unwrap())
        .await
        .unwrap();
    let data = homing::storage::account_data::all(&server.app.db, user).await;
    assert_eq!(data.unwrap(), []);

    // Alice was there.
    for (what, seen) in shown(&alice, &room, &event).await {
        let should = without_state(what);
        assert_eq!(seen.contains("first secret"), should, "{what}: {seen}");
    }
    let (alice, room_id) = (alice.token.clone(), room.clone());
    let server = server.restart().await;
    let alice = User {
        server: &server,
        id: "@alice:localhost".to_owned(),
        token: alice,
        device_id: String::new(),
    };
    let dave = server.register("dave").await;
    dave.post(&format!("/join/{room_id}"), json!({})).await.ok();
    for (what, seen) in shown(&dave, &room, &event).await {
        assert!(
            !seen.contains("secret") || what == "search",
            "{what}: {seen}"
        );
        assert!(!seen.contains("Bobby Tables"), "{what}: {seen}");
        assert!(
            seen.contains(&event) == without_state(what) && what != "search"
                || matches!(what, "federation" | "search" | "relations"),
            "{what}: {seen}"
        );
        if what == "search" {
            assert!(seen.contains("\"count\":0"), "{seen}");
        }
        // The room is still called what it is called.
        if matches!(what, "state" | "sync") {
            assert!(seen.contains("Lounge"), "{what}: {seen}");
        }
    }
    for (what, seen) in shown(&alice, &room, &event).await {
        let should = without_state(what);
        assert_eq!(seen.contains("first secret"), should, "{what}: {seen}");
    }
}

#[tokio::test]
async fn who_is_not_erased_keeps_the_profile_but_is_not_found() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let carol = server.register("carol").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    bob.say(&room, "what bob said").await;
    deactivate(&bob, false).await;
    alice.get(&format!("/profile/{}", bob.id)).await.ok();
    let body = json!({ "search_term": "bob" });
    let found = alice.post("/user_directory/search", body).await.ok();
    assert_eq!(found["results"], json!([]));
    carol.post(&format!("/join/{room}"), json!({})).await.ok();
    let messages = format!("/rooms/{room}/messages?dir=b&limit=100");
    let messages = carol.get(&messages).await.ok().to_string();
    assert!(messages.contains("what bob said"));
}
