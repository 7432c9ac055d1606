//! Invitations by address, once an identity server has found out whose address it is.

use std::sync::Arc;

use axum::{Json, response::IntoResponse as _};
use homing_federation::{SigningKey, received};
use reqwest::Method;
use ruma::room_version_rules::RoomVersionRules;
use serde_json::{Value, json};

use crate::{
    fake_room::{FakeRoom, pdu, value},
    fake_server::{FakeServer, Recorded},
    server::{Answer, TestServer, User},
    shared_rooms::eventually,
};

const VALID: &str = "/_matrix/identity/v2/pubkey/isvalid";
const EXCHANGE: &str = "/_matrix/federation/v1/exchange_third_party_invite/";
const ON_BIND: &str = "/_matrix/federation/v1/3pid/onbind";
const INVITE: &str = "/_matrix/federation/v2/invite/";

/// An identity server that says that its key is valid.
async fn identity_server() -> FakeServer {
    let identity = FakeServer::start().await;
    identity.answers(Method::GET, VALID, json!({ "valid": true }));
    identity
}

/// The content of an invitation that rests on a key of an identity server.
fn invitation(identity: &FakeServer) -> Value {
    let address = format!("https://{}{VALID}", identity.name);
    json!({
        "display_name": "z...", "key_validity_url": address,
        "public_key": identity.key.public_key(),
    })
}

/// What an identity server says about a user.
fn proof(identity: &FakeServer, user: &str, token: &str) -> Value {
    identity.sign(&identity.key, json!({ "mxid": user, "token": token }))
}

async fn invite_address(user: &User<'_>, room: &str, token: &str, content: Value) {
    let path = format!("/rooms/{room}/state/m.room.third_party_invite/{token}");
    user.put(&path, content).await.ok();
}

/// The server of somebody signs the invites that it gets.
fn countersigns(fake: &FakeServer, rules: &'static RoomVersionRules) {
    let (name, key): (_, Arc<SigningKey>) = (fake.name.clone(), Arc::clone(&fake.key));
    fake.on(Method::PUT, INVITE, move |request: &Recorded| {
        let event = pdu(&request.body["event"], rules);
        let event = received::sign_received(&event, rules, &name, &key).unwrap();
        Json(json!({ "event": value(&event) })).into_response()
    });
}

/// What the server of somebody sends when they have an address.
fn exchange(room: &str, inviter: &str, user: &str, proof: &Value) -> Value {
    json!({
        "type": "m.room.member", "room_id": room, "sender": inviter, "state_key": user,
        "content": {
            "membership": "invite", "displayname": "injected", "reason": "injected",
            "third_party_invite": { "display_name": "injected", "signed": proof },
        },
    })
}

async fn send(fake: &FakeServer, to: &TestServer, room: &str, body: &Value) -> Answer {
    fake.put(to, &format!("{EXCHANGE}{room}"), body.clone())
        .await
}

fn rules(server: &TestServer) -> &'static RoomVersionRules {
    let version = &server.app.config.rooms.default_version;
    homing_federation::room_version::rules(version).unwrap()
}

#[tokio::test]
async fn an_invitation_is_exchanged_for_an_invite() {
    let server = TestServer::federated().await;
    let (identity, other) = tokio::join!(identity_server(), FakeServer::start());
    countersigns(&other, rules(&server));
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    invite_address(&alice, &room, "t1", invitation(&identity)).await;
    let zoe = format!("@zoe:{}", other.name);
    let body = exchange(&room, &alice.id, &zoe, &proof(&identity, &zoe, "t1"));
    let answer = send(&other, &server, &room, &body).await.ok();
    assert_eq!(answer, json!({}));

    let asked = identity
        .wait_for(|request| request.path.starts_with(VALID))
        .await;
    let key = asked.path.split_once("public_key=").unwrap().1;
    let key = percent_encoding::percent_decode_str(key)
        .decode_utf8()
        .unwrap();
    assert_eq!(key, identity.key.public_key());
    let invite = other
        .wait_for(|request| request.path.starts_with(INVITE))
        .await;
    let told = &invite.body["event"];
    let expected = json!({
        "membership": "invite",
        "third_party_invite": { "display_name": "z...", "signed": proof(&identity, &zoe, "t1") },
    });
    assert_eq!(told["content"], expected);
    assert_eq!(told["sender"], alice.id);
    let member = format!("/rooms/{room}/state/m.room.member/{zoe}");
    assert_eq!(alice.get(&member).await.ok(), expected);

    // Another of the keys will do, and one without an address is valid for ever.
    let mut content = invitation(&server_that_never_answers().await);
    content["public_keys"] = json!([{ "public_key": identity.key.public_key() }]);
    invite_address(&alice, &room, "t2", content).await;
    let max = format!("@max:{}", other.name);
    let body = exchange(&room, &alice.id, &max, &proof(&identity, &max, "t2"));
    send(&other, &server, &room, &body).await.ok();
    assert_eq!(identity.count(&Method::GET, VALID), 1);
}

async fn server_that_never_answers() -> FakeServer {
    FakeServer::start().await
}

#[tokio::test]
async fn what_does_not_prove_it_is_no_invite() {
    let server = TestServer::federated().await;
    let (identity, other) = tokio::join!(identity_server(), FakeServer::start());
    countersigns(&other, rules(&server));
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    invite_address(&alice, &room, "t", invitation(&identity)).await;
    let zoe = format!("@zoe:{}", other.name);
    let good = exchange(&room, &alice.id, &zoe, &proof(&identity, &zoe, "t"));
    let changed = |field: &str, value: Value| {
        let mut body = good.clone();
        *body.pointer_mut(field).unwrap() = value;
        body
    };
    let signed = "/content/third_party_invite/signed";
    let elsewhere = "@max:elsewhere.example";
    let table = [
        (
            changed("/type", json!("m.room.topic")),
            400,
            "M_INVALID_PARAM",
        ),
        (
            changed("/room_id", json!("!other:x")),
            400,
            "M_INVALID_PARAM",
        ),
        (
            changed("/content/membership", json!("join")),
            400,
            "M_INVALID_PARAM",
        ),
        (
            changed("/content/third_party_invite", json!({})),
            400,
            "M_INVALID_PARAM",
        ),
        (
            changed(signed, json!({ "mxid": zoe, "token": "t" })),
            400,
            "M_INVALID_PARAM",
        ),
        (
            changed(signed, proof(&identity, &alice.id, "t")),
            400,
            "M_INVALID_PARAM",
        ),
        // Nobody takes somebody else's invitation, and no server speaks for another.
        (
            exchange(
                &room,
                &alice.id,
                elsewhere,
                &proof(&identity, elsewhere, "t"),
            ),
            400,
            "M_INVALID_PARAM",
        ),
        (changed("/sender", json!(zoe)), 403, "M_FORBIDDEN"),
        (changed("/sender", json!(bob.id)), 403, "M_FORBIDDEN"),
        (
            changed(signed, proof(&identity, &zoe, "unknown")),
            403,
            "M_FORBIDDEN",
        ),
        (
            changed(signed, proof(&identity, &zoe, "nul\0")),
            400,
            "M_INVALID_PARAM",
        ),
        (
            changed(signed, proof(&other, &zoe, "t")),
            403,
            "M_FORBIDDEN",
        ),
        (
            changed(
                signed,
                json!({ "mxid": zoe, "token": "t", "signatures": 1 }),
            ),
            403,
            "M_FORBIDDEN",
        ),
    ];
    for (body, status, errcode) in table {
        let answer = send(&other, &server, &room, &body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.body["errcode"].as_str()),
            (status, Some(errcode)),
            "{body} {}",
            answer.body
        );
    }
    assert_eq!(identity.count(&Method::GET, VALID), 0, "nothing was signed");
    let unknown = changed("/room_id", json!("!unknown:x"));
    send(&other, &server, "!unknown:x", &unknown)
        .await
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn an_invitation_is_as_good_as_its_key() {
    let server = TestServer::federated().await;
    let (identity, other) = tokio::join!(identity_server(), FakeServer::start());
    countersigns(&other, rules(&server));
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    invite_address(&alice, &room, "t", invitation(&identity)).await;
    let zoe = format!("@zoe:{}", other.name);
    let good = exchange(&room, &alice.id, &zoe, &proof(&identity, &zoe, "t"));
    identity.answers(Method::GET, VALID, json!({ "valid": false }));
    send(&other, &server, &room, &good)
        .await
        .fails(403, "M_FORBIDDEN");
    for answer in [json!({}), json!([]), json!({ "valid": "yes" })] {
        identity.answers(Method::GET, VALID, answer);
        send(&other, &server, &room, &good)
            .await
            .fails(502, "M_UNKNOWN");
    }
    identity.refuses(Method::GET, VALID, 500, "M_UNKNOWN");
    send(&other, &server, &room, &good)
        .await
        .fails(502, "M_UNKNOWN");
    // Only what every server may be asked is asked.
    let mut content = invitation(&identity);
    for address in [
        "http://localhost/",
        "file:///etc/passwd",
        "https://10.0.0.1/",
        "",
        "/x",
    ] {
        content["key_validity_url"] = address.into();
        invite_address(&alice, &room, "t", content.clone()).await;
        send(&other, &server, &room, &good)
            .await
            .fails(502, "M_UNKNOWN");
    }
    assert_eq!(other.count(&Method::PUT, INVITE), 0);
}

#[tokio::test]
async fn who_is_kept_out_cannot_be_invited_by_address() {
    let server = TestServer::federated().await;
    let (identity, other) = tokio::join!(identity_server(), FakeServer::start());
    countersigns(&other, rules(&server));
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    invite_address(&alice, &room, "t", invitation(&identity)).await;
    let zoe = format!("@zoe:{}", other.name);
    let good = exchange(&room, &alice.id, &zoe, &proof(&identity, &zoe, "t"));
    let acl = json!({ "allow": ["*"], "deny": [other.name.host()] });
    let path = format!("/rooms/{room}/state/m.room.server_acl/");
    alice.put(&path, acl).await.ok();
    send(&other, &server, &room, &good)
        .await
        .fails(403, "M_FORBIDDEN");
    alice.put(&path, json!({ "allow": ["*"] })).await.ok();
    let ban = json!({ "user_id": zoe });
    alice
        .post(&format!("/rooms/{room}/ban"), ban.clone())
        .await
        .ok();
    send(&other, &server, &room, &good)
        .await
        .fails(403, "M_FORBIDDEN");
    alice.post(&format!("/rooms/{room}/unban"), ban).await.ok();
    send(&other, &server, &room, &good).await.ok();
}

async fn bound(server: &TestServer, user: &str, invites: Value) -> Answer {
    let body = json!({
        "medium": "email", "address": "b@b.example", "mxid": user, "invites": invites,
    });
    server.request(Method::PUT, ON_BIND, None, Some(body)).await
}

fn pending(room: &str, inviter: &str, user: &str, proof: &Value) -> Value {
    json!({
        "medium": "email", "address": "b@b.example", "mxid": user, "room_id": room,
        "sender": inviter, "signed": proof,
    })
}

#[tokio::test]
async fn the_server_of_who_has_invited_is_asked_for_the_invite() {
    let server = TestServer::federated().await;
    let (identity, host) = tokio::join!(identity_server(), FakeServer::start());
    host.answers(Method::PUT, EXCHANGE, json!({}));
    let bob = server.register("bob").await;
    let (room, inviter) = (format!("!r:{}", host.name), format!("@ann:{}", host.name));
    let proof_of_bob = proof(&identity, &bob.id, "t");
    let one = pending(&room, &inviter, &bob.id, &proof_of_bob);
    assert_eq!(bound(&server, &bob.id, json!([one])).await.ok(), json!({}));
    let asked = host
        .wait_for(|request| request.path.starts_with(EXCHANGE))
        .await;
    let path = percent_encoding::percent_decode_str(&asked.path)
        .decode_utf8()
        .unwrap();
    assert_eq!(path, format!("{EXCHANGE}{room}"));
    assert!(asked.headers.contains_key("authorization"));
    let expected = json!({
        "type": "m.room.member", "room_id": room, "sender": inviter, "state_key": bob.id,
        "content": {
            "membership": "invite",
            "third_party_invite": { "display_name": "", "signed": proof_of_bob },
        },
    });
    assert_eq!(asked.body, expected);

    // A failure is not the identity server's business.
    host.refuses(Method::PUT, EXCHANGE, 403, "M_FORBIDDEN");
    bound(&server, &bob.id, json!([one])).await.ok();
    let before = host.count(&Method::PUT, EXCHANGE);
    // Nobody is bound to somebody else's invitations.
    let eve = format!("@eve:{}", host.name);
    let others = json!([
        pending(&room, &inviter, &eve, &proof(&identity, &eve, "t")),
        pending(&room, &inviter, &bob.id, &proof(&identity, &eve, "t")),
        pending(
            &room,
            &inviter,
            &bob.id,
            &json!({ "mxid": bob.id, "token": "t" })
        ),
    ]);
    bound(&server, &bob.id, others).await.ok();
    assert_eq!(host.count(&Method::PUT, EXCHANGE), before);
    for user in [eve, format!("@nobody:{}", server.name())] {
        bound(&server, &user, json!([one]))
            .await
            .fails(404, "M_NOT_FOUND");
    }
    bound(&server, "bob", json!([]))
        .await
        .fails(400, "M_BAD_JSON");
    // Anybody could send a long list.
    bound(&server, &bob.id, json!(vec![one; 60])).await.ok();
    assert_eq!(host.count(&Method::PUT, EXCHANGE), before + 50);
}

#[tokio::test]
async fn a_server_in_the_room_makes_the_invite_itself() {
    let server = TestServer::federated().await;
    let (identity, other) = tokio::join!(identity_server(), FakeServer::start());
    other.answers(
        Method::PUT,
        "/_matrix/federation/v1/send/",
        json!({ "pdus": {} }),
    );
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    invite_address(&alice, &room, "t", invitation(&identity)).await;
    let invited = async |user: &User<'_>| {
        eventually(user, |sync| {
            let invite = &sync["rooms"]["invite"][&room]["invite_state"]["events"];
            let mut events = invite.as_array()?.iter();
            let own = events.find(|event| event["state_key"] == user.id)?;
            Some(own["sender"].clone())
        })
        .await
    };
    let one = pending(&room, &alice.id, &bob.id, &proof(&identity, &bob.id, "t"));
    bound(&server, &bob.id, json!([one])).await.ok();
    assert_eq!(invited(&bob).await, alice.id);
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    // It is no way to throw people out.
    bound(&server, &bob.id, json!([one])).await.ok();
    let member = format!("/rooms/{room}/state/m.room.member/{}", bob.id);
    assert_eq!(bob.get(&member).await.ok()["membership"], "join");

    // Somebody on another server has sent the invitation.
    let mut fake = FakeRoom::join(&other, &server, &room).await;
    let path = format!("/rooms/{room}/state/m.room.power_levels/");
    let mut levels = alice.get(&path).await.ok();
    levels["users"][fake.user.as_str()] = json!(50);
    let set = alice.put(&path, levels).await.ok();
    let path = format!(
        "/_matrix/federation/v1/event/{}",
        set["event_id"].as_str().unwrap()
    );
    let set = other.get(&server, &path).await.ok();
    fake.follow(&pdu(&set["pdus"][0], fake.rules));
    let sent = fake.set(
        &other,
        "m.room.third_party_invite",
        "u",
        invitation(&identity),
    );
    fake.send(&other, &server, &[&sent]).await.ok();
    let inviter = fake.user.to_string();
    let one = pending(
        &room,
        &inviter,
        &carol.id,
        &proof(&identity, &carol.id, "u"),
    );
    bound(&server, &carol.id, json!([one])).await.ok();
    assert_eq!(invited(&carol).await, inviter);
    let told = other
        .wait_for(|request| {
            request.path.contains("/send/")
                && request
                    .body
                    .to_string()
                    .contains("third_party_invite\":{\"display_name\"")
        })
        .await;
    assert!(told.body.to_string().contains(&carol.id));
}

#[tokio::test]
async fn nobody_is_bound_without_end() {
    let server = TestServer::federated_with(|config| config.rate_limits.enabled = true).await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let mut taken = 0;
    let refused = loop {
        let answer = bound(&server, &alice.id, json!([])).await;
        if !answer.status.is_success() {
            break answer;
        }
        taken += 1;
        assert!(taken < 1000);
    };
    refused.fails(429, "M_LIMIT_EXCEEDED");
    assert!(taken > 0);
    bound(&server, &bob.id, json!([])).await.ok();
}
