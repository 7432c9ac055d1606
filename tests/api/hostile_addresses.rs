//! Nobody makes this server connect to where only its own network may: every way out, one after the other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    response::{IntoResponse as _, Redirect, Response},
};
use homing_federation::Draft;
use reqwest::Method;
use serde_json::json;

use crate::{
    fake_room::{FakeRoom, transaction, value},
    fake_server::FakeServer,
    hostile_gaps::{until_tried, waiting},
    hostile_transactions::shared,
    outbound::has_joined,
    server::{TestServer, User},
};

const V1: &str = "/_matrix/federation/v1";

/// Something in the server's own network. It counts who comes.
struct Inner {
    /// Its address and port, which is a server name too.
    name: String,
    came: Arc<AtomicUsize>,
}

impl Inner {
    async fn new() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
        let name = listener.local_addr().unwrap().to_string();
        let came = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&came);
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { name, came }
    }

    fn count(&self) -> usize {
        self.came.load(Ordering::SeqCst)
    }
}

/// Something that makes the server ask another one.
#[derive(Clone, Copy, Debug)]
enum Way {
    Request,
    Event,
    Notary,
    Join,
    Knock,
    JoinAlias,
    Invite,
    Alias,
    Profile,
    PublicRooms,
    Media,
    Thumbnail,
    MediaElsewhere,
    MediaRedirected,
    Summary,
    Space,
    KeyOfInvitation,
    Bound,
    Transaction,
    MissingEvents,
    PolicyServer,
}

const WAYS: &[Way] = &[
    Way::Request,
    Way::Event,
    Way::Notary,
    Way::Join,
    Way::Knock,
    Way::JoinAlias,
    Way::Invite,
    Way::Alias,
    Way::Profile,
    Way::PublicRooms,
    Way::Media,
    Way::Thumbnail,
    Way::MediaElsewhere,
    Way::MediaRedirected,
    Way::Summary,
    Way::Space,
    Way::KeyOfInvitation,
    Way::Bound,
    Way::Transaction,
    Way::MissingEvents,
    Way::PolicyServer,
];

impl Way {
    /// Goes it to `inner`. What the server answers is another question.
    async fn go(self, user: &User<'_>, fake: &FakeServer, inner: &str) {
        let server = user.server;
        match self {
            Self::Request => claims(server, inner).await,
            Self::Event => event_of(user, fake, inner).await,
            Self::Notary => {
                let path = format!("/_matrix/key/v2/query/{inner}");
                server.request(Method::GET, &path, None, None).await;
            }
            Self::Join => {
                let path = format!("/join/!x:{}?via={inner}", fake.name);
                user.post(&path, json!({})).await;
            }
            Self::Knock => {
                let path = format!("/knock/!x:{}?via={inner}", fake.name);
                user.post(&path, json!({})).await;
            }
            Self::JoinAlias => {
                let path = format!("/join/%23a:{inner}");
                user.post(&path, json!({})).await;
            }
            Self::Invite => {
                let room = user.create_room(json!({})).await;
                let body = json!({ "user_id": format!("@x:{inner}") });
                user.post(&format!("/rooms/{room}/invite"), body).await;
            }
            Self::Alias => drop(user.get(&format!("/directory/room/%23a:{inner}")).await),
            Self::Profile => drop(user.get(&format!("/profile/@x:{inner}")).await),
            Self::PublicRooms => {
                let path = format!("/publicRooms?server={inner}");
                user.post(&path, json!({})).await;
            }
            Self::Media => {
                let path = format!("/_matrix/client/v1/media/download/{inner}/x");
                user.get(&path).await;
            }
            Self::Thumbnail => {
                let path = format!(
                    "/_matrix/client/v1/media/thumbnail/{inner}/x?width=32&height=32&method=crop"
                );
                user.get(&path).await;
            }
            Self::MediaElsewhere | Self::MediaRedirected => {
                self.media(user, fake, inner).await;
            }
            Self::Summary => {
                let id = inner.replace([':', '.', '[', ']'], "");
                let path = format!("/_matrix/client/v1/room_summary/!{id}:x.example?via={inner}");
                user.get(&path).await;
            }
            Self::Space => space(user, inner).await,
            Self::KeyOfInvitation => key_of_invitation(user, fake, inner).await,
            Self::Bound => bound(user, fake, inner).await,
            Self::Transaction => {
                let room = user.create_room(json!({})).await;
                has_joined(server, &room, &format!("@x:{inner}")).await;
                user.say(&room, "hello").await;
                let name = inner.try_into().unwrap();
                until(|| {
                    server
                        .app
                        .bus
                        .outgoing
                        .failing()
                        .contains::<ruma::ServerName>(name)
                })
                .await;
            }
            Self::MissingEvents => missing_events(user, fake, inner).await,
            Self::PolicyServer => {
                let room = user.create_room(json!({})).await;
                has_joined(server, &room, &format!("@x:{inner}")).await;
                let key = fake.key.public_key();
                let content = json!({ "via": inner, "public_keys": { "ed25519": key } });
                let path = format!("/rooms/{room}/state/m.room.policy/");
                user.put(&path, content).await.ok();
                let path = format!("/rooms/{room}/send/m.room.message/x");
                let body = json!({ "msgtype": "m.text", "body": "x" });
                user.put(&path, body).await.fails(502, "M_UNKNOWN");
            }
        }
    }

    async fn media(self, user: &User<'_>, fake: &FakeServer, inner: &str) {
        let elsewhere = match self {
            Self::MediaRedirected => format!("https://{}/moved", fake.name),
            _ => format!("https://{inner}/"),
        };
        let to = format!("https://{inner}/");
        fake.on(Method::GET, "/moved", move |_| {
            Redirect::temporary(&to).into_response()
        });
        fake.on(Method::GET, &format!("{V1}/media/download/"), move |_| {
            let body = format!(
                "--xyz\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--xyz\r\nLocation: {elsewhere}\r\n\r\n\r\n--xyz--\r\n"
            );
            Response::builder()
                .header("content-type", "multipart/mixed; boundary=\"xyz\"")
                .body(Body::from(body))
                .unwrap()
        });
        let path = format!("/_matrix/client/v1/media/download/{}/{self:?}", fake.name);
        user.get(&path).await;
    }
}

/// A request that claims to come from there.
async fn claims(server: &TestServer, inner: &str) {
    let header = format!(
        "X-Matrix origin=\"{inner}\",destination=\"{}\",key=\"ed25519:1\",sig=\"{}\"",
        server.name(),
        "A".repeat(86)
    );
    let headers = [("authorization", header)];
    let path = format!("{V1}/query/profile?user_id=@alice:x.example");
    let answer = server
        .request_with(Method::GET, &path, &headers, None)
        .await;
    answer.fails(401, "M_UNAUTHORIZED");
}

/// An event that claims to come from there.
async fn event_of(user: &User<'_>, fake: &FakeServer, inner: &str) {
    let room = shared(user, fake, "12").await;
    let draft = Draft {
        sender: format!("@x:{inner}").try_into().unwrap(),
        ..room.message("x")
    };
    let name = inner.try_into().unwrap();
    let event = draft.sign(room.rules, name, &fake.key).unwrap();
    transaction(fake, user.server, &[value(&event)], &[])
        .await
        .ok();
}

/// A space whose child is there.
async fn space(user: &User<'_>, inner: &str) {
    let body = json!({ "creation_content": { "type": "m.space" } });
    let space = user.create_room(body).await;
    let child = inner.replace([':', '.', '[', ']'], "");
    let path = format!("/rooms/{space}/state/m.space.child/!{child}:x.example");
    user.put(&path, json!({ "via": [inner] })).await.ok();
    let path = format!("/_matrix/client/v1/rooms/{space}/hierarchy");
    user.get(&path).await.ok();
}

/// An invitation by address whose key is to be asked for there.
async fn key_of_invitation(user: &User<'_>, fake: &FakeServer, inner: &str) {
    let room = user.create_room(json!({ "preset": "public_chat" })).await;
    let path = format!("/rooms/{room}/state/m.room.third_party_invite/t");
    let content = json!({
        "display_name": "z...", "key_validity_url": format!("https://{inner}/"),
        "public_key": fake.key.public_key(),
    });
    user.put(&path, content).await.ok();
    let zoe = format!("@zoe:{}", fake.name);
    let proof = fake.sign(&fake.key, json!({ "mxid": zoe, "token": "t" }));
    let body = json!({
        "type": "m.room.member", "room_id": room, "sender": user.id, "state_key": zoe,
        "content": {
            "membership": "invite", "third_party_invite": { "display_name": "z...", "signed": proof },
        },
    });
    let path = format!("{V1}/exchange_third_party_invite/{room}");
    let answer = fake.put(user.server, &path, body).await;
    answer.fails(502, "M_UNKNOWN");
}

/// An invitation by address whose sender is there.
async fn bound(user: &User<'_>, fake: &FakeServer, inner: &str) {
    let proof = fake.sign(&fake.key, json!({ "mxid": user.id, "token": "t" }));
    let invite = json!({
        "medium": "email", "address": "b@b.example", "mxid": user.id, "room_id": format!("!x:{inner}"),
        "sender": format!("@x:{inner}"), "signed": proof,
    });
    let body = json!({
        "medium": "email", "address": "b@b.example", "mxid": user.id, "invites": [invite],
    });
    let path = format!("{V1}/3pid/onbind");
    let server = user.server;
    server
        .request(Method::PUT, &path, None, Some(body))
        .await
        .ok();
}

/// Events of which the server that sends them does not tell what they rest on, in a room in which that one is too.
async fn missing_events(user: &User<'_>, fake: &FakeServer, inner: &str) {
    let server = user.server;
    let room: FakeRoom = shared(user, fake, "12").await;
    has_joined(server, room.id.as_str(), &format!("@x:{inner}")).await;
    let mut ahead = room.clone();
    ahead.say(fake, "not sent");
    let late = ahead.say(fake, "late");
    room.send(fake, server, &[&late]).await.ok();
    assert_eq!(waiting(server).await, 1);
    until_tried(server).await;
    assert_eq!(waiting(server).await, 1);
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn nobody_is_led_into_the_network_of_the_server() {
    // The fake server is at 127.0.0.1, and what is beside it is either of the network of the server, or not.
    for (allowed, is_open) in [("127.0.0.1/32", false), ("127.0.0.0/8", true)] {
        let allow = |config: &mut homing::config::Config| {
            config.federation.allow_addresses = vec![allowed.parse().unwrap()];
        };
        let server = TestServer::federated_with(allow).await;
        let (fake, alice) = (FakeServer::start().await, server.register("alice").await);
        for way in WAYS {
            let inner = Inner::new().await;
            let gone = way.go(&alice, &fake, &inner.name);
            let gone = tokio::time::timeout(Duration::from_secs(30), gone).await;
            assert!(gone.is_ok(), "{way:?} takes too long");
            assert_eq!(inner.count() > 0, is_open, "{way:?}");
            if !is_open
                && !matches!(
                    way,
                    Way::Transaction | Way::MissingEvents | Way::PolicyServer
                )
            {
                // The same address as one of IPv6.
                let port = inner.name.split_once(':').unwrap().1;
                let name = format!("[::ffff:127.0.0.2]:{port}");
                way.go(&alice, &fake, &name).await;
                assert_eq!(inner.count(), 0, "{way:?} {name}");
            }
        }
    }
}
