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
