//! Servers through which somebody here wants to join, knock or leave, and that are hostile, or broken.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json,
    body::Body,
    response::{IntoResponse as _, Response},
};
use reqwest::Method;
use ruma::MilliSecondsSinceUnixEpoch;
use serde_json::{Value, json};

use crate::{
    fake_room::{FakeRoom, value},
    fake_server::{FakeServer, endless_counted},
    server::{TestServer, User},
    shared_rooms::{eventually, sees},
};

const FEDERATION: &str = "/_matrix/federation";

/// The fields of a member event as this server makes it.
const FIELDS: &[&str] = &[
    "auth_events",
    "content",
    "depth",
    "hashes",
    "origin_server_ts",
    "prev_events",
    "room_id",
    "sender",
    "signatures",
    "state_key",
    "type",
];

type Answers = Box<dyn Fn(&mut Value) + Send + Sync>;
type Change = fn(&mut Value, &FakeRoom, &str);

/// Changes to a template that make it one for something else, or for nothing.
const FOREIGN: &[Change] = &[
    |event, room, _| event["sender"] = room.user.as_str().into(),
    |event, room, _| event["state_key"] = room.user.as_str().into(),
    |event, _, _| event["state_key"] = Value::Null,
    |event, _, _| event["room_id"] = "!another:example.org".into(),
    |event, _, _| event["type"] = "m.room.power_levels".into(),
    |event, _, _| event["content"]["membership"] = "ban".into(),
    |event, _, _| event["content"]["membership"] = "invite".into(),
    |event, _, _| event["content"] = "join".into(),
    |event, room, _| event["prev_events"] = vec![room.latest[0].as_str(); 21].into(),
    |event, _, _| event["prev_events"] = json!(["$short"]),
    |event, _, _| event["prev_events"] = json!([format!("${}", "a".repeat(100_000))]),
    |event, _, _| event["prev_events"] = json!([5]),
    |event, room, _| event["auth_events"] = vec![room.latest[0].as_str(); 11].into(),
    |event, _, _| event["auth_events"] = json!([["$a", { "sha256": "b" }]]),
    |event, _, _| event["depth"] = json!(1.5),
    |event, _, _| event["depth"] = json!(-1),
    |event, _, _| event["depth"] = json!("5"),
];

/// Changes to a template that have no effect.
const HARMLESS: &[Change] = &[
    |event, _, _| event["origin_server_ts"] = json!(1_u64 << 50),
    |event, _, _| event["content"]["displayname"] = "Mallory".into(),
    |event, _, _| event["content"]["third_party_invite"] = json!({ "signed": {} }),
    |event, _, _| event["content"]["org.example"] = json!({ "deep": [[[]]] }),
    |event, _, _| event["redacts"] = "$something".into(),
    |event, _, _| event["unsigned"] = json!({ "replaces_state": "$something" }),
    |event, _, _| event["hashes"] = json!({ "sha256": "x", "md5": "y" }),
    |event, room, _| {
        event["signatures"] = json!({ room.user.server_name().as_str(): { "ed25519:1": "x" } });
    },
    |event, _, _| event["origin"] = "example.org".into(),
    |event, _, _| event["membership"] = "ban".into(),
];

/// A room of a fake server, and what it answers to who wants to be something there.
struct Door {
    fake: FakeServer,
    room: FakeRoom,
}

impl Door {
    async fn new(version: &str) -> Self {
        let fake = FakeServer::start().await;
        let room = FakeRoom::create(&fake, version);
        let knocked = json!({ "knock_room_state": [] });
        fake.answers(
            Method::PUT,
            &format!("{FEDERATION}/v1/send_knock/"),
            knocked,
        );
        fake.answers(
            Method::PUT,
            &format!("{FEDERATION}/v2/send_leave/"),
            json!({}),
        );
        Self { fake, room }
    }

    /// Lets the user try with a template that `change` has changed. Answers what was sent then, if anything was.
    async fn tries(
        &self,
        user: &User<'_>,
        membership: &'static str,
        change: Change,
    ) -> Option<Value> {
        let room = self.room.clone();
        let own = user.id.clone();
        self.room.prepares(&self.fake, membership, move |answer| {
            change(&mut answer["event"], &room, &own);
        });
        let sent = format!("/send_{membership}/{}", self.room.id);
        let before = self.sent(&sent).len();
        let (id, name) = (&self.room.id, &self.fake.name);
        let path = match membership {
            "leave" => format!("/rooms/{id}/leave"),
            _ => format!("/{membership}/{id}?via={name}"),
        };
        let answer = user.post(&path, json!({})).await;
        let sent = self.sent(&sent);
        if sent.len() == before && membership != "leave" {
            assert_eq!(answer.status, 502, "{}", answer.body);
        }
        sent.get(before).cloned()
    }

    fn sent(&self, path: &str) -> Vec<Value> {
        let recorded = self.fake.recorded().into_iter();
        let sent = recorded.filter(|it| it.path.contains(path));
        sent.map(|it| it.body).collect()
    }

    /// Invites a user.
    async fn invites(&self, user: &User<'_>) {
        let invite = json!({ "membership": "invite" });
        let draft = self.room.draft("m.room.member", Some(&user.id), invite);
        let invite = self.room.sign(&self.fake, draft);
        let path = format!(
            "{FEDERATION}/v2/invite/{}/{}",
            self.room.id, invite.event_id
        );
        let body = json!({
            "room_version": self.room.version.as_str(), "event": value(&invite), "invite_room_state": [],
        });
        self.fake.put(user.server, &path, body).await.ok();
    }
}

/// Checks that an event has nothing in it that is not the user's.
fn expect_own(event: &Value, user: &User<'_>, membership: &str) {
    let fields: Vec<_> = event.as_object().unwrap().keys().collect();
    assert_eq!(fields, FIELDS, "{event}");
    assert_eq!(event["content"], json!({ "membership": membership }));
    assert_eq!(event["sender"], user.id.as_str());
    assert_eq!(event["state_key"], user.id.as_str());
    let servers: Vec<_> = event["signatures"].as_object().unwrap().keys().collect();
    assert_eq!(servers, [user.server.name().as_str()]);
    let now = i64::from(MilliSecondsSinceUnixEpoch::now().0);
    let ts = event["origin_server_ts"].as_i64().unwrap();
    assert!((now - 60_000..=now).contains(&ts), "{event}");
}

#[tokio::test]
async fn nothing_foreign_is_signed() {
    let server = TestServer::federated().await;
    let alice = server.register("alice").await;
    alice
        .delete(&format!("/profile/{}/displayname", alice.id))
        .await
        .ok();
    let door = Door::new("11").await;
    for membership in ["join", "knock"] {
        for (index, change) in FOREIGN.iter().enumerate() {
            let sent = door.tries(&alice, membership, *change).await;
            assert_eq!(sent, None, "{membership} {index}");
        }
        for change in HARMLESS {
            let sent = door.tries(&alice, membership, *change).await.unwrap();
            expect_own(&sent, &alice, membership);
        }
    }
    // Who leaves is rid of it all the same, so each needs an invite of its own.
    for (index, change) in FOREIGN.iter().enumerate() {
        door.invites(&alice).await;
        let sent = door.tries(&alice, "leave", *change).await;
        assert_eq!(sent, None, "leave {index}");
    }
    for change in HARMLESS {
        door.invites(&alice).await;
        let sent = door.tries(&alice, "leave", *change).await.unwrap();
        expect_own(&sent, &alice, "leave");
    }
}

#[tokio::test]
async fn only_the_server_that_is_asked_lets_people_in() {
    let server = TestServer::federated().await;
    let alice = server.register("alice").await;
    let door = Door::new("11").await;
    let strange: &[Change] = &[
        |event, _, own| event["content"]["join_authorised_via_users_server"] = own.into(),
        |event, _, _| {
            event["content"]["join_authorised_via_users_server"] = "@x:example.org".into();
        },
        |event, _, _| event["content"]["join_authorised_via_users_server"] = "x".into(),
        |event, _, _| event["content"]["join_authorised_via_users_server"] = 5.into(),
    ];
    for change in strange {
        assert_eq!(door.tries(&alice, "join", *change).await, None);
    }
    let right: Change = |event, room, _| {
        let user = room.user.as_str();
        event["content"]["join_authorised_via_users_server"] = user.into();
    };
    let sent = door.tries(&alice, "join", right).await.unwrap();
    let said = &sent["content"]["join_authorised_via_users_server"];
    assert_eq!(said, door.room.user.as_str());
    let sent = door.tries(&alice, "knock", right).await.unwrap();
    assert_eq!(
        sent["content"]["join_authorised_via_users_server"],
        Value::Null
    );
}

#[tokio::test]
async fn rooms_of_versions_that_nobody_knows_are_not_joined() {
    let server = TestServer::federated().await;
    let alice = server.register("alice").await;
    let door = Door::new("11").await;
    for version in ["1", "2", "99", "org.example"] {
        door.room.prepares(&door.fake, "join", move |answer| {
            answer["room_version"] = version.into();
        });
        let path = format!("/join/{}?via={}", door.room.id, door.fake.name);
        let refused = alice.post(&path, json!({})).await;
        refused.fails(400, "M_UNSUPPORTED_ROOM_VERSION");
    }
    assert_eq!(door.sent("/send_join/").len(), 0);
}

/// Checks that a user is not in a room, and can join it when all is well.
async fn expect_clean(user: &User<'_>, fake: &FakeServer, room: &FakeRoom, case: &str) {
    let id = room.id.as_str();
    let joined = user.get("/joined_rooms").await.ok();
    let joined = joined["joined_rooms"].as_array().unwrap();
    assert!(!joined.iter().any(|it| it == id), "{case}");
    let sync = user.sync("").await;
    assert_eq!(sync["rooms"]["join"][id], Value::Null, "{case}");
    let state = user.get(&format!("/rooms/{id}/state")).await;
    assert!(state.status.is_client_error(), "{case}");
    room.host(fake, |_| {});
    let path = format!("/join/{id}?via={}", fake.name);
    let answer = user.post(&path, json!({})).await;
    assert_eq!(answer.status, 200, "{case}: {}", answer.body);
    let state = user.get(&format!("/rooms/{id}/state")).await.ok();
    let kinds = state.as_array().unwrap().iter();
    let mut ids: Vec<_> = kinds
        .map(|event| event["event_id"].as_str().unwrap().to_owned())
        .collect();
    ids.retain(|id| room.state.values().any(|pdu| pdu.event_id == *id));
    assert_eq!(ids.len(), room.state.len(), "{case}: {state}");
    let said = user.say(id, "in").await;
    sees(user, id, &said).await;
}

#[tokio::test]
async fn a_bad_answer_to_a_join_leaves_no_trace() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let other = FakeRoom::create(&fake, "11");
    let without = |kind: &'static str| {
        move |answer: &mut Value| {
            for list in ["state", "auth_chain"] {
                let events = answer[list].as_array_mut().unwrap();
                events.retain(|event| event["type"] != kind);
            }
        }
    };
    let foreign = other.state();
    let cases: Vec<(&str, Answers)> = vec![
        ("no create event", Box::new(without("m.room.create"))),
        (
            "no member, so nothing holds",
            Box::new(without("m.room.member")),
        ),
        (
            "another room",
            Box::new(move |answer| {
                answer["state"] = foreign.clone().into();
                answer["auth_chain"] = foreign.clone().into();
            }),
        ),
        ("empty", Box::new(|answer| *answer = json!({}))),
        (
            "of other types",
            Box::new(|answer| answer["state"] = json!({ "a": 5 })),
        ),
        (
            "no events",
            Box::new(|answer| answer["state"] = json!([5, null, "x", {}, []])),
        ),
        (
            "members are left out",
            Box::new(|answer| answer["members_omitted"] = true.into()),
        ),
        (
            "bad signatures",
            Box::new(|answer| {
                for list in ["state", "auth_chain"] {
                    for event in answer[list].as_array_mut().unwrap() {
                        event["depth"] = 77.into();
                    }
                }
            }),
        ),
        (
            "another event",
            Box::new(|answer| answer["event"] = answer["state"][0].clone()),
        ),
        ("no event", Box::new(|answer| answer["event"] = 5.into())),
        (
            "a changed event",
            Box::new(|answer| {
                answer["event"]["content"]["displayname"] = "Mallory".into();
            }),
        ),
        (
            "a large event",
            Box::new(|answer| {
                let large = json!({ "type": "x", "content": { "a": "a".repeat(3 << 20) } });
                answer["state"].as_array_mut().unwrap().push(large);
            }),
        ),
        (
            "a large nothing",
            Box::new(|answer| answer["aaa"] = "a".repeat(3 << 20).into()),
        ),
    ];
    for (case, change) in cases {
        let room = FakeRoom::create(&fake, "11");
        let change = Arc::new(change);
        room.host(&fake, move |answer| change(answer));
        let path = format!("/join/{}?via={}", room.id, fake.name);
        let answer = alice.post(&path, json!({})).await;
        let status = answer.status.as_u16();
        assert!(
            [400, 403, 502].contains(&status),
            "{case}: {status} {}",
            answer.body
        );
        expect_clean(&alice, &fake, &room, case).await;
    }
}

#[tokio::test]
async fn a_room_has_one_create_event() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = FakeRoom::create(&fake, "10");
    let mut second = FakeRoom::create(&fake, "10");
    second.id = room.id.clone();
    (second.latest, second.depth) = (Vec::new(), 0);
    let content = json!({ "creator": room.user, "room_version": "10", "org.example": 1 });
    let second = value(&second.set(&fake, "m.room.create", "", content));
    room.host(&fake, move |answer| {
        answer["state"].as_array_mut().unwrap().push(second.clone());
    });
    let path = format!("/join/{}?via={}", room.id, fake.name);
    assert_eq!(alice.post(&path, json!({})).await.status, 502);
    expect_clean(&alice, &fake, &room, "two create events").await;
}

#[tokio::test]
async fn an_answer_to_a_join_that_breaks_off_is_given_up() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let answers: [fn(&FakeRoom, &Value) -> Response; 4] = [
        |room, join| {
            let text = room.welcome(join).to_string();
            Response::new(Body::from(text[..text.len() / 2].to_owned()))
        },
        // All that is needed is there, but not the end.
        |room, join| {
            let text = room.welcome(join).to_string();
            Response::new(Body::from(text[..text.len() - 1].to_owned()))
        },
        |room, join| {
            let text = room.welcome(join).to_string();
            let stream = futures_util::stream::iter([
                Ok(text[..text.len() - 1].to_owned()),
                Err(std::io::Error::other("gone")),
            ]);
            Response::new(Body::from_stream(stream))
        },
        |room, join| Response::new(Body::from(room.welcome(join).to_string() + "{}")),
    ];
    for (index, answer) in answers.into_iter().enumerate() {
        let room = FakeRoom::create(&fake, "11");
        room.host(&fake, |_| {});
        let hosted = room.clone();
        let path = format!("{FEDERATION}/v2/send_join/{}", room.id);
        fake.on(Method::PUT, &path, move |request| {
            answer(&hosted, &request.body)
        });
        let path = format!("/join/{}?via={}", room.id, fake.name);
        let answer = alice.post(&path, json!({})).await;
        assert_eq!(answer.status, 502, "{index} {}", answer.body);
        expect_clean(&alice, &fake, &room, &index.to_string()).await;
    }
}

/// Lets somebody join through a server whose answer has no end and comes in such pieces. Answers how long it took, and how
/// many bytes of the answer were taken.
async fn tries_without_end(piece: &'static [u8], pause: Duration) -> (Duration, usize) {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let alice = server.register("alice").await;
    let room = FakeRoom::create(&fake, "11");
    room.host(&fake, |_| {});
    let path = format!("{FEDERATION}/v2/send_join/{}", room.id);
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    fake.on(Method::PUT, &path, move |_| {
        endless_counted(piece, pause, Arc::clone(&count))
    });
    let path = format!("/join/{}?via={}", room.id, fake.name);
    let began = std::time::Instant::now();
    let answer = alice.post(&path, json!({})).await;
    let (time, taken) = (began.elapsed(), taken.load(Ordering::Relaxed));
    assert_eq!(answer.status, 502, "{}", answer.body);
    expect_clean(&alice, &fake, &room, "without end").await;
    (time, taken)
}

#[tokio::test]
async fn an_answer_to_a_join_that_has_no_end_is_given_up() {
    // What is no event, and lists of what is none.
    let pieces: [&'static [u8]; 2] = [&[b' '; 1 << 14], &[b'['; 1 << 14]];
    for piece in pieces {
        let (_, taken) = tries_without_end(piece, Duration::ZERO).await;
        assert!(taken < 20 << 20, "{taken}");
    }
}

#[tokio::test]
async fn an_answer_to_a_join_that_drips_is_given_up() {
    let (time, _) = tries_without_end(b" ", Duration::from_millis(100)).await;
    assert!(time < Duration::from_mins(1), "{time:?}");
}

#[tokio::test]
async fn a_wrong_version_keeps_nobody_out_of_a_room() {
    let (server, fake) = (TestServer::federated().await, FakeServer::start().await);
    let (hostile, alice) = (FakeServer::start().await, server.register("alice").await);
    // Said while somebody joins.
    let room = FakeRoom::create(&fake, "11");
    let lie = room.clone();
    lie.prepares(&hostile, "join", |answer| {
        answer["room_version"] = "9".into();
    });
    let welcome = room.clone();
    let path = format!("{FEDERATION}/v2/send_join/{}", room.id);
    hostile.on(Method::PUT, &path, move |request| {
        Json(welcome.welcome(&request.body)).into_response()
    });
    let path = format!("/join/{}?via={}", room.id, hostile.name);
    assert!(!alice.post(&path, json!({})).await.status.is_success());
    assert_eq!(hostile.count(&Method::PUT, FEDERATION), 1);
    expect_clean(&alice, &fake, &room, "said for a join").await;

    // Said with an invite.
    let room = FakeRoom::create(&fake, "11");
    let mut lie = FakeRoom::create(&hostile, "9");
    lie.id = room.id.clone();
    let lie = Door {
        fake: hostile,
        room: lie,
    };
    lie.invites(&alice).await;
    let invited = |sync: &Value| {
        sync["rooms"]["invite"][room.id.as_str()]
            .is_object()
            .then_some(())
    };
    eventually(&alice, invited).await;
    let truth = Door {
        fake,
        room: room.clone(),
    };
    truth.invites(&alice).await;
    eventually(&alice, invited).await;
    expect_clean(&alice, &truth.fake, &room, "said with an invite").await;
}
