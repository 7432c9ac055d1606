use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{Answer, TestServer, User};

async fn member(user: &User<'_>, room: &str, of: &User<'_>) -> Value {
    user.get(&format!("/rooms/{room}/state/m.room.member/{}", of.id))
        .await
        .ok()
}

async fn act(user: &User<'_>, room: &str, action: &str, whom: &User<'_>) -> Answer {
    let body = json!({ "user_id": whom.id, "reason": "because" });
    user.post(&format!("/rooms/{room}/{action}"), body).await
}

async fn join(user: &User<'_>, room: &str) -> Answer {
    user.post(&format!("/join/{room}"), json!({})).await
}

async fn join_rule(user: &User<'_>, room: &str, content: Value) {
    user.put(&format!("/rooms/{room}/state/m.room.join_rules/"), content)
        .await
        .ok();
}

#[tokio::test]
async fn people_are_invited_join_leave_and_come_back() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({})).await;
    join(&bob, &room).await.fails(403, "M_FORBIDDEN");
    act(&bob, &room, "invite", &bob)
        .await
        .fails(403, "M_FORBIDDEN");
    act(&alice, &room, "invite", &bob).await.ok();
    let invite = member(&alice, &room, &bob).await;
    assert_eq!(
        (&invite["membership"], &invite["reason"]),
        (&json!("invite"), &json!("because"))
    );
    let body = json!({ "reason": "hello", "org.example": 1 });
    bob.post(&format!("/rooms/{room}/join"), body).await.ok();
    let joined = member(&alice, &room, &bob).await;
    assert_eq!(
        (&joined["reason"], &joined["org.example"]),
        (&json!("hello"), &json!(1))
    );
    // Joining twice is joining once.
    let again = join(&bob, &room).await.ok();
    assert_eq!(again["room_id"], room);
    assert_eq!(member(&alice, &room, &bob).await, joined);
    act(&alice, &room, "invite", &bob)
        .await
        .fails(403, "M_FORBIDDEN");
    bob.post(&format!("/rooms/{room}/leave"), json!({ "reason": "bye" }))
        .await
        .ok();
    assert_eq!(
        member(&alice, &room, &bob).await,
        json!({ "membership": "leave", "reason": "bye" })
    );
    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    join(&bob, &room).await.fails(403, "M_FORBIDDEN");
    // An invite can be rejected.
    act(&alice, &room, "invite", &bob).await.ok();
    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    join(&bob, &room).await.fails(403, "M_FORBIDDEN");
    join_rule(&alice, &room, json!({ "join_rule": "public" })).await;
    join(&bob, &room).await.ok();
    bob.say(&room, "back").await;
}

#[tokio::test]
async fn moderators_kick_ban_and_unban() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    act(&alice, &room, "kick", &bob)
        .await
        .fails(403, "M_FORBIDDEN");
    act(&alice, &room, "unban", &bob)
        .await
        .fails(403, "M_FORBIDDEN");
    for user in [&bob, &carol] {
        join(user, &room).await.ok();
    }
    for action in ["kick", "ban"] {
        act(&bob, &room, action, &carol)
            .await
            .fails(403, "M_FORBIDDEN");
        act(&bob, &room, action, &alice)
            .await
            .fails(403, "M_FORBIDDEN");
    }
    act(&alice, &room, "kick", &bob).await.ok();
    assert_eq!(
        member(&alice, &room, &bob).await,
        json!({ "membership": "leave", "reason": "because" })
    );
    bob.put(&format!("/rooms/{room}/send/m.room.message/1"), json!({}))
        .await
        .fails(403, "M_FORBIDDEN");
    join(&bob, &room).await.ok();
    act(&alice, &room, "ban", &bob).await.ok();
    join(&bob, &room).await.fails(403, "M_FORBIDDEN");
    act(&alice, &room, "invite", &bob)
        .await
        .fails(403, "M_FORBIDDEN");
    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .fails(403, "M_FORBIDDEN");
    act(&carol, &room, "unban", &bob)
        .await
        .fails(403, "M_FORBIDDEN");
    act(&alice, &room, "unban", &bob).await.ok();
    join(&bob, &room).await.ok();
    for action in ["kick", "ban", "unban", "invite"] {
        let path = format!("/rooms/{room}/{action}");
        // An invite may also have other fields in its place.
        let missing = if action == "invite" {
            "M_BAD_JSON"
        } else {
            "M_MISSING_PARAM"
        };
        alice.post(&path, json!({})).await.fails(400, missing);
        alice
            .post(&path, json!({ "user_id": "bob" }))
            .await
            .fails(400, "M_BAD_JSON");
        let unknown = format!("/rooms/!unknown:localhost/{action}");
        alice
            .post(&unknown, json!({ "user_id": bob.id }))
            .await
            .fails(403, "M_FORBIDDEN");
    }
    // Somebody who never was there can be banned.
    let dave = server.register("dave").await;
    act(&alice, &room, "ban", &dave).await.ok();
    join(&dave, &room).await.fails(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn a_room_is_forgotten_after_it_was_left() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let forget = format!("/rooms/{room}/forget");
    bob.post(&forget, json!({})).await.fails(400, "M_UNKNOWN");
    join(&bob, &room).await.ok();
    bob.post(&forget, json!({})).await.fails(400, "M_UNKNOWN");
    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    bob.post(&forget, json!({})).await.ok();
    bob.post(&forget, json!({})).await.ok();
    bob.post("/rooms/!unknown:localhost/forget", json!({}))
        .await
        .fails(404, "M_NOT_FOUND");
    join(&bob, &room).await.ok();
    bob.say(&room, "back").await;
}

#[tokio::test]
async fn who_knocks_is_let_in() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice
        .create_room(json!({ "room_alias_name": "door" }))
        .await;
    let knock = || bob.post("/knock/%23door:localhost", json!({ "reason": "please" }));
    knock().await.fails(403, "M_FORBIDDEN");
    join_rule(&alice, &room, json!({ "join_rule": "knock" })).await;
    join(&bob, &room).await.fails(403, "M_FORBIDDEN");
    assert_eq!(knock().await.ok()["room_id"], room);
    let content = member(&alice, &room, &bob).await;
    assert_eq!(
        (&content["membership"], &content["reason"]),
        (&json!("knock"), &json!("please"))
    );
    // It can be taken back, refused, and granted.
    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    knock().await.ok();
    act(&alice, &room, "kick", &bob).await.ok();
    knock().await.ok();
    act(&alice, &room, "invite", &bob).await.ok();
    join(&bob, &room).await.ok();
    knock().await.fails(403, "M_FORBIDDEN");
    bob.post("/knock/!unknown:localhost", json!({}))
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn members_of_one_room_may_join_another() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let club = alice.create_room(json!({ "preset": "public_chat" })).await;
    let allow =
        json!([{ "type": "m.room_membership", "room_id": club }, { "type": "org.example" }]);
    for (version, rule) in [
        ("8", "restricted"),
        ("11", "knock_restricted"),
        ("12", "restricted"),
    ] {
        let room = alice.create_room(json!({ "room_version": version })).await;
        join_rule(&alice, &room, json!({ "join_rule": rule, "allow": allow })).await;
        join(&bob, &room).await.fails(403, "M_FORBIDDEN");
        // A client cannot vouch for itself.
        let path = format!("/rooms/{room}/state/m.room.member/{}", bob.id);
        let forged = json!({ "membership": "join", "join_authorised_via_users_server": alice.id });
        bob.put(&path, forged.clone())
            .await
            .fails(403, "M_FORBIDDEN");
        bob.post(&format!("/join/{room}"), forged.clone())
            .await
            .fails(403, "M_FORBIDDEN");
        join(&bob, &club).await.ok();
        join(&bob, &room).await.ok();
        let content = member(&alice, &room, &bob).await;
        assert_eq!(content["join_authorised_via_users_server"], alice.id);
        bob.post(&format!("/rooms/{room}/leave"), json!({}))
            .await
            .ok();
        bob.put(&path, json!({ "membership": "join" })).await.ok();
        // Who is in stays in, whatever becomes of the other room.
        bob.post(&format!("/rooms/{club}/leave"), json!({}))
            .await
            .ok();
        bob.say(&room, "still here").await;
        bob.put(&path, json!({ "membership": "join", "displayname": "B" }))
            .await
            .ok();
        bob.post(&format!("/rooms/{room}/leave"), json!({}))
            .await
            .ok();
        join(&bob, &room).await.fails(403, "M_FORBIDDEN");
        act(&alice, &room, "invite", &bob).await.ok();
        join(&bob, &room).await.ok();
    }
    // Nobody who could let Bob in is there any more.
    join(&bob, &club).await.ok();
    let room = alice.create_room(json!({})).await;
    join_rule(
        &alice,
        &room,
        json!({ "join_rule": "restricted", "allow": allow }),
    )
    .await;
    alice
        .post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    join(&bob, &room).await.fails(400, "M_UNABLE_TO_GRANT_JOIN");
}

#[tokio::test]
async fn strangers_by_mail_or_on_other_servers_are_out_of_reach() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    let path = format!("/rooms/{room}/invite");
    let mail = json!({ "id_server": "a.org", "id_access_token": "t", "medium": "email", "address": "b@c.org" });
    alice
        .post(&path, mail)
        .await
        .fails(400, "M_THREEPID_DENIED");
    let stranger = "@bob:elsewhere.org";
    alice
        .post(&path, json!({ "user_id": stranger }))
        .await
        .fails(403, "M_FORBIDDEN");
    let path = format!("/rooms/{room}/state/m.room.member/{stranger}");
    alice
        .put(&path, json!({ "membership": "invite" }))
        .await
        .fails(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn rooms_are_joined_by_valid_names_only() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    for (name, status, code) in [
        ("nonsense", 400, "M_INVALID_PARAM"),
        ("%23nowhere:localhost", 404, "M_NOT_FOUND"),
        ("%23nowhere:elsewhere.org", 404, "M_NOT_FOUND"),
        ("!nowhere:elsewhere.org", 404, "M_NOT_FOUND"),
        ("!a%00b", 400, "M_INVALID_PARAM"),
        ("@alice:localhost", 400, "M_INVALID_PARAM"),
    ] {
        for action in ["join", "knock"] {
            let answer = alice.post(&format!("/{action}/{name}"), json!({})).await;
            assert_eq!(
                (answer.status.as_u16(), answer.body["errcode"].as_str()),
                (status, Some(code)),
                "{action} {name}"
            );
        }
    }
    alice
        .post("/join/!nowhere:localhost", json!([]))
        .await
        .fails(400, "M_BAD_JSON");
    alice
        .post("/join/!nowhere:localhost", json!({ "reason": 1 }))
        .await
        .fails(400, "M_BAD_JSON");
}

#[tokio::test]
async fn after_a_restart_one_leaves_as_before() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let token = bob.token.clone();
    let server = server.restart().await;
    let path = format!("/_matrix/client/v3/rooms/{room}/leave");
    let answer = server.request(Method::POST, &path, Some(&token), Some(json!({})));
    answer.await.ok();
}
