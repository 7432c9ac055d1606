//! The devices of users of other servers, and other servers that hear of the devices here.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    fake_room::FakeRoom,
    fake_server::{FakeServer, Recorded},
    server::{PASSWORD, TestServer, User},
    shared_rooms::eventually,
};

const SEND: &str = "/_matrix/federation/v1/send/";
const DEVICES: &str = "/_matrix/federation/v1/user/devices/";
const QUERY: &str = "/_matrix/federation/v1/user/keys/query";

/// The keys of a device, as good as a server can tell.
fn keys(user: &str, device: &str, key: &str) -> Value {
    let name = format!("ed25519:{device}");
    json!({
        "user_id": user, "device_id": device, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": { &name: key }, "signatures": { user: { &name: "signature" } },
    })
}

async fn upload(user: &User<'_>) {
    let keys = keys(&user.id, &user.device_id, "key");
    let body = json!({ "device_keys": keys });
    user.post("/keys/upload", body).await.ok();
}

/// The keys of somebody's devices, by device.
async fn query(user: &User<'_>, whose: &str) -> Value {
    let body = json!({ "device_keys": { whose: [] } });
    let answer = user.post("/keys/query", body).await.ok();
    answer["device_keys"][whose].clone()
}

/// The EDUs of a type that a server was sent.
fn edus(other: &FakeServer, edu_type: &str) -> Vec<Value> {
    let mut found = Vec::new();
    for request in other.recorded() {
        let edus = request.body["edus"].as_array().cloned().unwrap_or_default();
        found.extend(edus.into_iter().filter(|edu| edu["edu_type"] == edu_type));
    }
    found
        .into_iter()
        .map(|edu| edu["content"].clone())
        .collect()
}

async fn so_many(other: &FakeServer, edu_type: &str, count: usize) -> Vec<Value> {
    other
        .wait_for(|_: &Recorded| edus(other, edu_type).len() >= count)
        .await;
    edus(other, edu_type)
}

const UPDATE: &str = "m.device_list_update";

#[tokio::test]
async fn servers_that_share_a_room_are_told_of_changes() {
    let (server, other) = (TestServer::federated().await, FakeServer::start().await);
    other.answers(Method::PUT, SEND, json!({ "pdus": {} }));
    let alice = server.register("alice").await;
    let eve = server.register("eve").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    FakeRoom::join(&other, &server, &room).await;
    upload(&eve).await;
    upload(&alice).await;
    let first = so_many(&other, UPDATE, 1).await.remove(0);
    assert_eq!(
        first["user_id"], alice.id,
        "who shares no room is nobody's business"
    );
    assert_eq!(first["device_id"], alice.device_id);
    assert_eq!(first["keys"], keys(&alice.id, &alice.device_id, "key"));
    assert_eq!(first["prev_id"], json!([]));

    let path = format!("/devices/{}", alice.device_id);
    alice
        .put(&path, json!({ "display_name": "secret" }))
        .await
        .ok();
    let second = so_many(&other, UPDATE, 2).await.remove(1);
    assert_eq!(second["prev_id"], json!([first["stream_id"]]));
    assert!(!second.to_string().contains("secret"), "{second}");

    let list = other.get(&server, &format!("{DEVICES}{}", alice.id)).await;
    assert_eq!(list.ok()["stream_id"], second["stream_id"]);

    // What happens while the server is away is told when it is back, also after a restart.
    other.refuses(Method::PUT, SEND, 500, "M_UNKNOWN");
    let more = json!({ "device_id": "PHONE" });
    let phone = User::new(&server, &server.login("alice", PASSWORD, more).await.ok());
    let before = other.recorded().len();
    upload(&phone).await;
    other.wait_for(|_| other.recorded().len() > before).await;
    phone.post("/logout", json!({})).await.ok();
    let count = edus(&other, UPDATE).len();
    other.answers(Method::PUT, SEND, json!({ "pdus": {} }));
    let server = server.restart().await;
    server.app.clock.advance(Duration::from_mins(2));
    let updates = so_many(&other, UPDATE, count + 2).await;
    let last = &updates[updates.len() - 2..];
    for update in last {
        assert_eq!(
            (&update["device_id"], &update["deleted"]),
            (&json!("PHONE"), &json!(true))
        );
    }
    assert_eq!(last[0]["prev_id"], json!([second["stream_id"]]));
    assert_eq!(last[1]["prev_id"], json!([last[0]["stream_id"]]));
}

/// Somebody here in a room with somebody of another server.
struct Shared<'s> {
    server: &'s TestServer,
    other: FakeServer,
    alice: User<'s>,
    zoe: String,
    count: u32,
}

impl<'s> Shared<'s> {
    async fn new(server: &'s TestServer) -> Self {
        let other = FakeServer::start().await;
        other.answers(Method::PUT, SEND, json!({ "pdus": {} }));
        let alice = server.register("alice").await;
        let room = alice.create_room(json!({ "preset": "public_chat" })).await;
        let room = FakeRoom::join(&other, server, &room).await;
        let zoe = room.user.to_string();
        Self {
            server,
            other,
            alice,
            zoe,
            count: 0,
        }
    }

    /// What the other server answers who asks for the list.
    fn list(&self, stream_id: i64, devices: &[(&str, &str)]) {
        let devices = devices.iter().map(
            |(device, key)| json!({ "device_id": device, "keys": keys(&self.zoe, device, key) }),
        );
        let devices: Vec<Value> = devices.collect();
        let list = json!({ "user_id": self.zoe, "stream_id": stream_id, "devices": devices });
        self.other.answers(Method::GET, DEVICES, list);
    }

    async fn says(&mut self, edu_type: &str, content: Value) {
        self.count += 1;
        let edu = json!({ "edu_type": edu_type, "content": content });
        let body = json!({
            "origin": self.other.name, "origin_server_ts": 1, "pdus": [], "edus": [edu],
        });
        let path = format!("{SEND}{}", self.count);
        self.other.put(self.server, &path, body).await.ok();
    }

    fn update(&self, device: &str, key: &str, stream_id: i64, prev_id: &[i64]) -> Value {
        json!({
            "user_id": self.zoe, "device_id": device, "stream_id": stream_id, "prev_id": prev_id,
            "keys": keys(&self.zoe, device, key),
        })
    }

    /// The keys of the other's devices.
    async fn keys(&self) -> Value {
        let devices = query(&self.alice, &self.zoe).await;
        let devices = devices.as_object().unwrap().iter();
        let key = |(id, keys): (&String, &Value)| {
            (id.clone(), keys["keys"][format!("ed25519:{id}")].clone())
        };
        Value::Object(devices.map(key).collect())
    }

    fn asked(&self) -> usize {
        self.other.count(&Method::GET, DEVICES)
    }
}

#[tokio::test]
async fn a_list_is_asked_for_once_and_kept_up_to_date() {
    let server = TestServer::federated().await;
    let mut shared = Shared::new(&server).await;
    shared.list(5, &[("A", "a"), ("B", "b")]);
    for _ in 0..2 {
        assert_eq!(shared.keys().await, json!({ "A": "a", "B": "b" }));
    }
    assert_eq!(
        (shared.asked(), shared.other.count(&Method::POST, QUERY)),
        (1, 0)
    );

    let since = shared.alice.sync("").await["next_batch"].clone();
    shared.says(UPDATE, shared.update("C", "c", 6, &[5])).await;
    let gone = json!({
        "user_id": shared.zoe, "device_id": "A", "stream_id": 8, "prev_id": [6], "deleted": true,
    });
    shared.says(UPDATE, gone).await;
    let sync = shared
        .alice
        .sync(&format!("since={}", since.as_str().unwrap()))
        .await;
    assert_eq!(sync["device_lists"]["changed"], json!([shared.zoe]));
    assert_eq!(shared.keys().await, json!({ "B": "b", "C": "c" }));
    // What was said before is not said again.
    shared
        .says(UPDATE, shared.update("C", "old", 6, &[5]))
        .await;
    assert_eq!(shared.keys().await, json!({ "B": "b", "C": "c" }));
    assert_eq!(shared.asked(), 1);

    // Something is missing before this one, and there is nothing before that one.
    for (stream_id, prev_id) in [(20, &[19][..]), (30, &[])] {
        shared.list(stream_id, &[("D", "d")]);
        shared
            .says(UPDATE, shared.update("E", "e", stream_id, prev_id))
            .await;
        let before = shared.asked();
        for _ in 0..2 {
            assert_eq!(shared.keys().await, json!({ "D": "d" }));
        }
        assert_eq!(shared.asked(), before + 1);
    }
    shared
        .says(UPDATE, shared.update("F", "f", 31, &[30]))
        .await;
    assert_eq!(shared.keys().await, json!({ "D": "d", "F": "f" }));
}

#[tokio::test]
async fn a_list_counts_only_while_a_room_is_shared() {
    let server = TestServer::federated().await;
    let shared = Shared::new(&server).await;
    shared.list(5, &[("A", "a")]);
    assert_eq!(shared.keys().await, json!({ "A": "a" }));
    let rooms = shared.alice.get("/joined_rooms").await.ok();
    let room = rooms["joined_rooms"][0].as_str().unwrap().to_owned();
    let bob = server.register("bob").await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let leave = format!("/rooms/{room}/leave");
    shared.alice.post(&leave, json!({})).await.ok();
    shared.list(6, &[("B", "b")]);
    bob.post(&leave, json!({})).await.ok();
    let none = json!({ "device_keys": { &shared.zoe: { "C": keys(&shared.zoe, "C", "c") } } });
    shared.other.answers(Method::POST, QUERY, none);
    assert_eq!(
        shared.keys().await,
        json!({ "C": "c" }),
        "nobody tells of changes"
    );
    assert_eq!(shared.asked(), 1);
}

#[tokio::test]
async fn only_their_own_server_tells_of_devices() {
    let server = TestServer::federated().await;
    let mut shared = Shared::new(&server).await;
    shared.list(5, &[("A", "a")]);
    assert_eq!(shared.keys().await, json!({ "A": "a" }));
    let since = shared.alice.sync("").await["next_batch"].clone();
    let zoe = std::mem::replace(&mut shared.zoe, "@zoe:else.example".to_owned());
    shared.says(UPDATE, shared.update("B", "b", 6, &[5])).await;
    shared.zoe = shared.alice.id.clone();
    shared.says(UPDATE, shared.update("B", "b", 6, &[5])).await;
    shared.zoe = zoe;
    let mut wrong = shared.update("B", "b", 6, &[5]);
    wrong["user_id"] = json!(format!("@other:{}", shared.other.name));
    shared.says(UPDATE, wrong).await;
    let sync = shared
        .alice
        .sync(&format!("since={}", since.as_str().unwrap()))
        .await;
    assert_eq!(sync["device_lists"], Value::Null);
    assert_eq!(shared.keys().await, json!({ "A": "a" }));
    // Keys of another device under this one's name are not taken.
    let mut wrong = shared.update("B", "b", 6, &[5]);
    wrong["device_id"] = json!("A");
    shared.list(7, &[("A", "new")]);
    shared.says(UPDATE, wrong).await;
    assert_eq!(shared.keys().await, json!({ "A": "new" }));
    assert_eq!(shared.asked(), 2);
}

#[tokio::test]
async fn two_servers_know_each_others_devices() {
    let (one, two) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, zoe) = (one.register("alice").await, two.register("zoe").await);
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let path = format!("/join/{room}?server_name={}", one.name());
    zoe.post(&path, json!({})).await.ok();
    upload(&alice).await;
    assert_eq!(
        query(&zoe, &alice.id).await[&alice.device_id]["keys"]
            .as_object()
            .unwrap()
            .len(),
        1
    );
    let more = json!({ "device_id": "PHONE" });
    let phone = User::new(&one, &one.login("alice", PASSWORD, more).await.ok());
    let since = zoe.sync("").await["next_batch"].clone();
    upload(&phone).await;
    let path = format!("since={}&timeout=20000", since.as_str().unwrap());
    let sync = zoe.sync(&path).await;
    assert_eq!(sync["device_lists"]["changed"], json!([alice.id]));
    assert_eq!(query(&zoe, &alice.id).await["PHONE"]["device_id"], "PHONE");
    phone.post("/logout", json!({})).await.ok();
    eventually(&zoe, |_| Some(())).await;
    let gone = async {
        while !query(&zoe, &alice.id).await["PHONE"].is_null() {
            tokio::task::yield_now().await;
        }
    };
    let gone = tokio::time::timeout(Duration::from_secs(20), gone).await;
    gone.expect("the phone is gone");
}
