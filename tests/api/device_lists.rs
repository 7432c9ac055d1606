//! Who hears whose devices have changed, and with whom no room is shared any more.

use homing::{device_lists, log::Change};
use reqwest::Method;
use ruma::UserId;
use serde_json::{Value, json};

use crate::server::{TestServer, User};

/// Something of the devices of a user changes.
async fn changes(server: &TestServer, user: &str, devices: &[&str]) {
    let app = &server.app;
    let user = app.user(&UserId::parse(user).unwrap()).await.unwrap();
    let mut change = Change::new();
    device_lists::changed(app, &mut change, user, devices)
        .await
        .unwrap();
    app.log.append(change).await.unwrap();
}

/// What outlives a restart of somebody who is signed in.
struct Session(Value);

impl Session {
    fn of(user: &User<'_>) -> Self {
        Self(json!({ "user_id": user.id, "access_token": user.token, "device_id": user.device_id }))
    }

    fn on(self, server: &TestServer) -> User<'_> {
        User::new(server, &self.0)
    }
}

fn next(sync: &Value) -> String {
    format!("since={}", sync["next_batch"].as_str().unwrap())
}

/// Where a user is now.
async fn now(user: &User<'_>) -> String {
    next(&user.sync("").await)
}

/// The same as `/keys/changes` tells it.
async fn changes_since(user: &User<'_>, since: &str) -> (Vec<String>, Vec<String>) {
    let from = since.trim_start_matches("since=");
    let to = now(user).await;
    let to = to.trim_start_matches("since=");
    let path = format!("/keys/changes?from={from}&to={to}");
    lists(&json!({ "device_lists": user.get(&path).await.ok() }))
}

/// Whose devices have changed, and who is gone.
fn lists(sync: &Value) -> (Vec<String>, Vec<String>) {
    let names = |name: &str| {
        let names = sync["device_lists"][name].as_array().into_iter().flatten();
        let mut names: Vec<_> = names
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
        names.sort_unstable();
        names
    };
    (names("changed"), names("left"))
}

async fn told(user: &User<'_>, since: &str) -> (Vec<String>, Vec<String>) {
    let told = lists(&user.sync(since).await);
    if !since.is_empty() && !since.contains('&') {
        assert_eq!(changes_since(user, since).await, told, "/keys/changes");
    }
    told
}

fn changed(users: &[&str]) -> (Vec<String>, Vec<String>) {
    let users = users.iter().map(|user| (*user).to_owned());
    (users.collect(), Vec::new())
}

fn left(users: &[&str]) -> (Vec<String>, Vec<String>) {
    let (users, none) = changed(users);
    (none, users)
}

async fn joins(user: &User<'_>, room: &str) {
    user.post(&format!("/join/{room}"), json!({})).await.ok();
}

async fn leaves(user: &User<'_>, room: &str) {
    let path = format!("/rooms/{room}/leave");
    user.post(&path, json!({})).await.ok();
}

#[tokio::test]
async fn those_who_share_a_room_hear_of_changes() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let eve = server.register("eve").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    joins(&bob, &room).await;
    let all = [&alice, &bob, &eve];
    let mut since = Vec::new();
    for user in all {
        since.push(now(user).await);
    }
    changes(&server, &alice.id, &["PHONE", "TABLET"]).await;
    assert_eq!(told(&alice, &since[0]).await, changed(&[&alice.id]));
    assert_eq!(told(&bob, &since[1]).await, changed(&[&alice.id]));
    assert_eq!(told(&eve, &since[2]).await, changed(&[]));
    // Who begins anew asks for all devices anyway.
    assert_eq!(told(&bob, "").await, changed(&[]));
    let later = next(&bob.sync(&since[1]).await);
    assert_eq!(told(&bob, &later).await, changed(&[]));

    // The same from the database.
    let (id, [_, bob, eve]) = (alice.id.clone(), all.map(Session::of));
    let server = server.restart().await;
    let (bob, eve) = (bob.on(&server), eve.on(&server));
    assert_eq!(told(&bob, &since[1]).await, changed(&[&id]));
    assert_eq!(told(&eve, &since[2]).await, changed(&[]));
    assert_eq!(told(&bob, &later).await, changed(&[]));
}

#[tokio::test]
async fn a_sync_that_waits_is_woken_by_a_change() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    joins(&bob, &room).await;
    let query = format!("{}&timeout=30000", now(&bob).await);
    let (sync, ()) = tokio::join!(bob.sync(&query), changes(&server, &alice.id, &["PHONE"]));
    assert_eq!(lists(&sync), changed(&[&alice.id]));
}

#[tokio::test]
async fn who_comes_is_changed_and_who_goes_is_left() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let carl = server.register("carl").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    joins(&carl, &room).await;
    let (mut of_alice, mut of_bob) = (now(&alice).await, now(&bob).await);

    joins(&bob, &room).await;
    assert_eq!(told(&alice, &of_alice).await, changed(&[&bob.id]));
    let (here, _) = told(&bob, &of_bob).await;
    assert!(
        here.contains(&alice.id) && here.contains(&carl.id),
        "{here:?}"
    );

    // Another name is nothing new.
    of_alice = now(&alice).await;
    let path = format!("/profile/{}/displayname", bob.id);
    bob.put(&path, json!({ "displayname": "Bobby" })).await.ok();
    assert_eq!(told(&alice, &of_alice).await, changed(&[]));
    of_bob = now(&bob).await;
    let path = format!("/profile/{}/displayname", bob.id);
    bob.put(&path, json!({ "displayname": "Bob" })).await.ok();
    assert_eq!(told(&bob, &of_bob).await, changed(&[]));

    // Who shares another room is not gone.
    let other = alice.create_room(json!({ "preset": "public_chat" })).await;
    joins(&bob, &other).await;
    (of_alice, of_bob) = (now(&alice).await, now(&bob).await);
    leaves(&bob, &room).await;
    assert_eq!(told(&alice, &of_alice).await, changed(&[]));
    assert_eq!(told(&bob, &of_bob).await, left(&[&carl.id]));

    // Also who has forgotten the room at once.
    let third = carl.create_room(json!({ "preset": "public_chat" })).await;
    joins(&bob, &third).await;
    of_bob = now(&bob).await;
    leaves(&bob, &third).await;
    let forget = format!("/rooms/{third}/forget");
    bob.post(&forget, json!({})).await.ok();
    assert_eq!(told(&bob, &of_bob).await, left(&[&carl.id]));

    (of_alice, of_bob) = (now(&alice).await, now(&bob).await);
    let body = json!({ "user_id": bob.id });
    let path = format!("/rooms/{other}/kick");
    alice.post(&path, body).await.ok();
    changes(&server, &bob.id, &["PHONE"]).await;
    assert_eq!(told(&alice, &of_alice).await, left(&[&bob.id]));
    let (own, gone) = told(&bob, &of_bob).await;
    assert_eq!((own, gone), (vec![bob.id.clone()], vec![alice.id.clone()]));

    // The same from the database, and with few events told.
    let filter =
        json!({ "room": { "timeline": { "limit": 1 }, "state": { "lazy_load_members": true } } });
    let (id, alice) = (bob.id.clone(), Session::of(&alice));
    let server = server.restart().await;
    let alice = alice.on(&server);
    let query = format!("{of_alice}&filter={filter}");
    assert_eq!(told(&alice, &query).await, left(&[&id]));
}

#[tokio::test]
async fn who_has_gone_and_come_back_is_changed() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    joins(&bob, &room).await;
    let since = now(&alice).await;
    leaves(&bob, &room).await;
    changes(&server, &bob.id, &["PHONE"]).await;
    joins(&bob, &room).await;
    assert_eq!(told(&alice, &since).await, changed(&[&bob.id]));
    let filter =
        json!({ "room": { "timeline": { "limit": 1 }, "state": { "lazy_load_members": true } } });
    let query = format!("{since}&filter={filter}");
    assert_eq!(told(&alice, &query).await, changed(&[&bob.id]));
}

#[tokio::test]
async fn an_invite_is_no_company() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let since = now(&bob).await;
    let of_alice = now(&alice).await;
    let room = alice.create_room(json!({ "invite": [bob.id] })).await;
    changes(&server, &alice.id, &["PHONE"]).await;
    assert_eq!(told(&bob, &since).await, changed(&[]));
    leaves(&bob, &room).await;
    assert_eq!(told(&bob, &since).await, changed(&[]));
    assert_eq!(told(&alice, &of_alice).await, changed(&[&alice.id]));
}

#[tokio::test]
async fn a_device_without_keys_comes_and_goes_unnoticed() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    joins(&bob, &room).await;
    let since = now(&bob).await;
    let more = json!({ "device_id": "PHONE" });
    server
        .login("alice", crate::server::PASSWORD, more)
        .await
        .ok();
    alice
        .send_with_password(Method::DELETE, "/devices/PHONE", json!({}))
        .await
        .ok();
    assert_eq!(told(&bob, &since).await, changed(&[]));
}

#[tokio::test]
async fn changes_are_told_from_tokens_of_syncs() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    for from in ["x", "t1_2", "s1"] {
        let path = format!("/keys/changes?from={from}&to=s1_0_0");
        alice.get(&path).await.fails(400, "M_INVALID_PARAM");
    }
    let path = "/keys/changes?to=s1_0_0";
    alice.get(path).await.fails(400, "M_MISSING_PARAM");
    let lists = alice.get("/keys/changes?from=s0_0_0&to=s0_0_0").await.ok();
    assert_eq!(lists, json!({ "changed": [], "left": [] }));
}
