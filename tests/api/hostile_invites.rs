//! Invites of a server that is hostile, or broken.

use homing_federation::{Draft, Pdu};
use serde_json::{Value, json};

use crate::{
    fake_room::{FakeRoom, value},
    fake_server::FakeServer,
    server::{Answer, TestServer, User},
    shared_rooms::eventually,
};

/// Sends an invite, as it is called in the path.
async fn send(fake: &FakeServer, to: &TestServer, (room, id): (&str, &str), body: Value) -> Answer {
    let path = format!("/_matrix/federation/v2/invite/{room}/{id}");
    fake.put(to, &path, body).await
}

fn invite(room: &FakeRoom, user: &str) -> Draft {
    let content = json!({ "membership": "invite" });
    room.draft("m.room.member", Some(user), content)
}

fn body(room: &FakeRoom, event: &Pdu, told: &[Value]) -> Value {
    json!({
        "room_version": room.version.as_str(), "event": value(event), "invite_room_state": told,
    })
}

/// What a user is told of a room that they are invited to.
async fn told(user: &User<'_>, room: &FakeRoom) -> Vec<Value> {
    eventually(user, |sync| {
        let invite = &sync["rooms"]["invite"][room.id.as_str()]["invite_state"]["events"];
        invite.as_array().cloned()
    })
    .await
}

#[tokio::test]
async fn what_is_no_invite_is_refused() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let (third, alice) = (FakeServer::start().await, server.register("alice").await);
    let room = FakeRoom::create(&fake, "11");
    let nobody = format!("@nobody:{}", server.name());
    let sign = |draft: Draft| room.sign(&fake, draft);
    let good = sign(invite(&room, &alice.id));
    let of_third = Draft {
        sender: format!("@mallory:{}", third.name).try_into().unwrap(),
        ..invite(&room, &alice.id)
    };
    let by_third = of_third
        .clone()
        .sign(room.rules, &third.name, &third.key)
        .unwrap();
    let signed_by_third = invite(&room, &alice.id)
        .sign(room.rules, &third.name, &third.key)
        .unwrap();
    let join = room.draft(
        "m.room.member",
        Some(&alice.id),
        json!({ "membership": "join" }),
    );
    let cases = [
        (
            "somebody of another server",
            sign(invite(&room, "@alice:example.org")),
        ),
        ("somebody who is not here", sign(invite(&room, &nobody))),
        ("nobody", sign(invite(&room, "alice"))),
        ("in the name of a third server", sign(of_third)),
        ("of a third server", by_third),
        ("signed by a third server", signed_by_third),
        ("a join", sign(join)),
        ("a message", sign(room.message("x"))),
        (
            "no member",
            sign(room.draft("m.room.name", Some(&alice.id), json!({}))),
        ),
    ];
    for (case, event) in cases {
        let names = (room.id.as_str(), event.event_id.as_str());
        let answer = send(&fake, &server, names, body(&room, &event, &[])).await;
        assert!(answer.status.is_client_error(), "{case}: {}", answer.body);
    }
    let id = good.event_id.as_str();
    for names in [("!another:example.org", id), (room.id.as_str(), "$another")] {
        let answer = send(&fake, &server, names, body(&room, &good, &[])).await;
        assert!(
            answer.status.is_client_error(),
            "{names:?}: {}",
            answer.body
        );
    }
    let names = (room.id.as_str(), id);
    for (version, errcode) in [
        ("99", "M_INCOMPATIBLE_ROOM_VERSION"),
        ("1", "M_INCOMPATIBLE_ROOM_VERSION"),
    ] {
        let mut body = body(&room, &good, &[]);
        body["room_version"] = version.into();
        send(&fake, &server, names, body).await.fails(400, errcode);
    }
    for nonsense in [
        json!({}),
        json!({ "event": 5 }),
        json!({ "room_version": "11", "event": {} }),
    ] {
        let answer = send(&fake, &server, names, nonsense).await;
        assert!(answer.status.is_client_error(), "{}", answer.body);
    }
    let sync = alice.sync("").await;
    assert_eq!(sync["rooms"]["invite"], Value::Null);
    send(&fake, &server, names, body(&room, &good, &[]))
        .await
        .ok();
    told(&alice, &room).await;
}

#[tokio::test]
async fn what_is_told_of_a_room_is_bounded() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = FakeRoom::create(&fake, "11");
    let event = room.sign(&fake, invite(&room, &alice.id));
    let names = (room.id.as_str(), event.event_id.as_str());
    let stripped = |kind: &str, content: Value| json!({ "type": kind, "state_key": "", "sender": room.user, "content": content });
    let large = stripped("org.example.large", json!({ "a": "a".repeat(60_000) }));
    let huge = vec![large.clone(); 20];
    let answer = send(&fake, &server, names, body(&room, &event, &huge)).await;
    answer.fails(413, "M_TOO_LARGE");
    for nonsense in [json!(5), json!(null), json!([])] {
        let answer = send(&fake, &server, names, body(&room, &event, &[nonsense])).await;
        answer.fails(400, "M_BAD_JSON");
    }
    let mut strange = vec![
        json!({}),
        json!({ "type": 5, "state_key": {}, "sender": [], "content": "x" }),
        stripped("org.example.content", json!("x")),
        stripped(
            "m.room.create",
            json!({ "type": 5, "room_version": { "a": 1 } }),
        ),
        stripped("m.room.name", json!({ "name": "a\0b" })),
    ];
    strange.extend(vec![large; 10]);
    strange.extend((0..100).map(|number| stripped(&format!("org.example.{number}"), json!({}))));
    send(&fake, &server, names, body(&room, &event, &strange))
        .await
        .ok();
    let told = told(&alice, &room).await;
    assert!(told.len() <= 51, "{}", told.len());
    assert!(json!(told).to_string().len() < 200_000);
    assert!(
        told.iter().all(|event| event["content"].is_object()),
        "{told:?}"
    );
    let own = told
        .iter()
        .find(|event| event["state_key"] == alice.id)
        .unwrap();
    assert_eq!(own["content"]["membership"], "invite");
}

#[tokio::test]
async fn a_create_event_of_another_room_is_no_proof() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let (room, other) = (FakeRoom::create(&fake, "12"), FakeRoom::create(&fake, "12"));
    let create = |room: &FakeRoom| value(&room.state[&("m.room.create".to_owned(), String::new())]);
    let event = room.sign(&fake, invite(&room, &alice.id));
    let names = (room.id.as_str(), event.event_id.as_str());
    let mut changed = create(&room);
    changed["content"]["room_version"] = "11".into();
    for told in [vec![], vec![create(&other)], vec![changed], vec![json!({})]] {
        let refused = send(&fake, &server, names, body(&room, &event, &told)).await;
        refused.fails(400, "M_MISSING_PARAM");
    }
    send(&fake, &server, names, body(&room, &event, &[create(&room)]))
        .await
        .ok();
}

#[tokio::test]
async fn nobody_is_flooded_with_invites() {
    let server = TestServer::federated_with(|config| config.rate_limits.enabled = true).await;
    let fake = FakeServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let mut taken = 0;
    loop {
        let room = FakeRoom::create(&fake, "11");
        let event = room.sign(&fake, invite(&room, &alice.id));
        let names = (room.id.as_str(), event.event_id.as_str());
        let answer = send(&fake, &server, names, body(&room, &event, &[])).await;
        if !answer.status.is_success() {
            answer.fails(429, "M_LIMIT_EXCEEDED");
            break;
        }
        taken += 1;
        assert!(taken < 100, "no end");
    }
    assert!(taken >= 10, "{taken}");
    let room = FakeRoom::create(&fake, "11");
    let event = room.sign(&fake, invite(&room, &bob.id));
    let names = (room.id.as_str(), event.event_id.as_str());
    send(&fake, &server, names, body(&room, &event, &[]))
        .await
        .ok();
}

#[tokio::test]
async fn an_invite_need_not_say_what_the_room_is() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = FakeRoom::create(&fake, "11");
    let event = room.sign(&fake, invite(&room, &alice.id));
    let body = json!({ "room_version": "11", "event": value(&event) });
    let ids = (room.id.as_str(), event.event_id.as_str());
    let answer = send(&fake, &server, ids, body).await.ok();
    assert!(answer["event"]["signatures"][server.name().as_str()].is_object());
    let told = told(&alice, &room).await;
    assert_eq!(told.len(), 1, "the invite itself: {told:?}");
}
