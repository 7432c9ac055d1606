//! The devices of users of other servers, and other servers that hear of the devices here.

use std::time::Duration;

use homing::storage::device_lists;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    cross_signing::Identity,
    fake_room::FakeRoom,
    fake_server::{FakeServer, Recorded},
    keys::public_key,
    server::{PASSWORD, TestServer, User},
    shared_rooms::eventually,
};

const SEND: &str = "/_matrix/federation/v1/send/";
const DEVICES: &str = "/_matrix/federation/v1/user/devices/";
const QUERY: &str = "/_matrix/federation/v1/user/keys/query";

/// The keys of a device, as good as a server can tell.
fn keys(user: &str, device: &str, key: &str) -> Value {
    let (name, key) = (format!("ed25519:{device}"), public_key(key));
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

#[tokio::test]
async fn servers_that_meet_somebody_are_told_of_their_devices() {
    let (server, other) = (TestServer::federated().await, FakeServer::start().await);
    other.answers(Method::PUT, SEND, json!({ "pdus": {} }));
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    upload(&bob).await;
    for _ in 0..2 {
        let room = alice.create_room(json!({ "preset": "public_chat" })).await;
        FakeRoom::join(&other, &server, &room).await;
        bob.post(&format!("/join/{room}"), json!({})).await.ok();
    }
    // Who knows them already is not told again: the next news is this.
    let path = format!("/devices/{}", bob.device_id);
    let name = json!({ "display_name": "new" });
    bob.put(&path, name).await.ok();
    let updates = so_many(&other, UPDATE, 2).await;
    for update in &updates {
        assert_eq!(update["user_id"], bob.id);
        assert_eq!(update["keys"], keys(&bob.id, &bob.device_id, "key"));
    }
    assert_eq!(updates[1]["prev_id"], json!([updates[0]["stream_id"]]));
    let path = format!("{DEVICES}{}", bob.id);
    let list = other.get(&server, &path).await.ok();
    assert_eq!(
        list["stream_id"], updates[1]["stream_id"],
        "nothing else was told"
    );
}

#[tokio::test]
async fn who_knows_somebodys_devices_is_not_told_again_when_others_meet_them() {
    let server = TestServer::federated().await;
    let (old, new) = (FakeServer::start().await, FakeServer::start().await);
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    upload(&bob).await;
    for other in [&old, &new] {
        other.answers(Method::PUT, SEND, json!({ "pdus": {} }));
        let room = alice.create_room(json!({ "preset": "public_chat" })).await;
        FakeRoom::join(other, &server, &room).await;
        // A join by its event is a join too.
        let path = format!("/rooms/{room}/state/m.room.member/{}", bob.id);
        bob.put(&path, json!({ "membership": "join" })).await.ok();
        so_many(other, UPDATE, 1).await;
    }
    let met = so_many(&new, UPDATE, 1).await.remove(0);
    assert_eq!(met["deleted"], Value::Null);
    assert_eq!(met["keys"], keys(&bob.id, &bob.device_id, "key"));
    assert_eq!(met["prev_id"], json!([]));
    let path = format!("/devices/{}", bob.device_id);
    let name = json!({ "display_name": "new" });
    bob.put(&path, name).await.ok();
    for other in [&old, &new] {
        let updates = so_many(other, UPDATE, 2).await;
        assert_eq!(updates[1]["prev_id"], json!([met["stream_id"]]));
        assert_eq!(updates.len(), 2, "{updates:?}");
    }
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
            let key = keys["keys"][format!("ed25519:{id}")].as_str().unwrap();
            (id.clone(), json!(key.trim_end_matches('A')))
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
    // What nobody has asked for, and nobody can encrypt with, is no news.
    let since = shared.alice.sync("").await["next_batch"].clone();
    let without = json!({
        "user_id": shared.zoe, "device_id": "NONE", "stream_id": 1, "prev_id": [], "deleted": true,
    });
    shared.says(UPDATE, without).await;
    let sync = shared
        .alice
        .sync(&format!("since={}", since.as_str().unwrap()))
        .await;
    assert_eq!(sync.get("device_lists"), None);
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
    // What came with the list, or was said before, changes nothing.
    shared.says(UPDATE, shared.update("C", "c", 6, &[5])).await;
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

/// Several servers count anew from time to time, or do not count at all and only say that something is new.
#[tokio::test]
async fn an_update_that_follows_nothing_has_the_list_asked_for_again() {
    let server = TestServer::federated().await;
    let mut shared = Shared::new(&server).await;
    shared.list(50, &[("A", "a")]);
    assert_eq!(shared.keys().await, json!({ "A": "a" }));
    let news = json!({
        "user_id": shared.zoe, "device_id": "placeholder", "stream_id": 1, "prev_id": [],
    });
    let mut gone = shared.update("B", "b", 4, &[3]);
    gone["deleted"] = json!(true);
    let nameless = shared.update(&"long".repeat(100), "b", 51, &[50]);
    let updates = [
        (news, "b"),
        (shared.update("A", "older", 7, &[6]), "c"),
        (shared.update("A", "c", 8, &[]), "d"),
        (nameless, "e"),
        (gone, "e"),
    ];
    for (asked, (update, key)) in (2..).zip(updates) {
        let since = shared.alice.sync("").await["next_batch"].clone();
        // The last one is of a device that nobody has heard of.
        let asked = asked - usize::from(update["deleted"] == true);
        shared.list(50, &[("A", key)]);
        shared.says(UPDATE, update).await;
        let sync = format!("since={}", since.as_str().unwrap());
        let sync = shared.alice.sync(&sync).await;
        assert_eq!(sync["device_lists"]["changed"], json!([shared.zoe]));
        for _ in 0..2 {
            assert_eq!(shared.keys().await, json!({ "A": key }));
        }
        assert_eq!(shared.asked(), asked);
    }
    // Keys that are not said are asked for.
    let keys = json!({ "user_id": shared.zoe });
    shared.says("m.signing_key_update", keys).await;
    shared.list(51, &[("A", "f")]);
    assert_eq!(shared.keys().await, json!({ "A": "f" }));
}

/// Whose keys were asked for without their list may be known to clients; that they have news is told.
#[tokio::test]
async fn news_of_somebody_whose_list_is_not_known_is_told() {
    let server = TestServer::federated().await;
    let mut shared = Shared::new(&server).await;
    let since = shared.alice.sync("").await["next_batch"].clone();
    let news = json!({
        "user_id": shared.zoe, "device_id": "placeholder", "stream_id": 1, "prev_id": [],
    });
    shared.says(UPDATE, news).await;
    let sync = format!("since={}", since.as_str().unwrap());
    let sync = shared.alice.sync(&sync).await;
    assert_eq!(sync["device_lists"]["changed"], json!([shared.zoe]));
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

#[tokio::test]
async fn a_list_with_devices_without_keys_or_sense_is_kept() {
    let server = TestServer::federated().await;
    let mut shared = Shared::new(&server).await;
    let long = "x".repeat(300);
    let list = json!({ "user_id": shared.zoe, "stream_id": 5, "master_key": null, "devices": [
        { "device_id": "NONE" },
        { "device_id": "NAMED", "device_display_name": "Telephone" },
        { "device_id": 1 },
        "no device",
        { "device_id": "A", "keys": keys(&shared.zoe, "A", "a"), "device_display_name": long },
        { "device_id": "B", "keys": keys(&shared.zoe, "B", "b"), "device_display_name": "Tablet" },
        { "device_id": "C", "keys": keys(&shared.zoe, "OTHER", "c") },
        { "device_id": "N\u{0}", "keys": keys(&shared.zoe, "N\u{0}", "n") },
        { "device_id": "M", "keys": keys(&shared.zoe, "M", "m"), "device_display_name": "\u{0}" },
    ] });
    shared.other.answers(Method::GET, DEVICES, list);
    for _ in 0..2 {
        let devices = json!({ "A": "a", "B": "b", "M": "m" });
        assert_eq!(shared.keys().await, devices);
    }
    assert_eq!(
        (shared.asked(), shared.other.count(&Method::POST, QUERY)),
        (1, 0)
    );
    let devices = query(&shared.alice, &shared.zoe).await;
    assert_eq!(devices["A"]["unsigned"], Value::Null);
    let name = json!({ "device_display_name": "Tablet" });
    assert_eq!(devices["B"]["unsigned"], name);

    // What makes no sense is asked for; it does not keep the server from telling more.
    let since = shared.alice.sync("").await["next_batch"].clone();
    let update = shared.update("N\u{0}", "n", 6, &[5]);
    shared.says(UPDATE, update).await;
    let mut update = shared.update("D", "d", 7, &[6]);
    update["user_id"] = json!(format!("@zo\u{0}e:{}", shared.other.name));
    shared.says(UPDATE, update).await;
    let query = format!("since={}", since.as_str().unwrap());
    let sync = shared.alice.sync(&query).await;
    assert_eq!(sync["device_lists"]["changed"], json!([shared.zoe]));
    shared.list(7, &[("E", "e")]);
    assert_eq!(shared.keys().await, json!({ "E": "e" }));
}

#[tokio::test]
async fn a_new_master_key_of_somebody_elsewhere_takes_the_old_keys_with_it() {
    let server = TestServer::federated().await;
    let mut shared = Shared::new(&server).await;
    let (first, second) = (Identity::new(), Identity::new());
    let body = first.body(&shared.zoe);
    let list = json!({
        "user_id": shared.zoe, "stream_id": 5, "devices": [],
        "master_key": body["master_key"], "self_signing_key": body["self_signing_key"],
    });
    shared.other.answers(Method::GET, DEVICES, list);
    let of_zoe = json!({ "device_keys": { &shared.zoe: [] } });
    let known = async |alice: &User<'_>, zoe: &str| {
        let found = alice.post("/keys/query", of_zoe.clone()).await.ok();
        [&found["master_keys"][zoe], &found["self_signing_keys"][zoe]].map(Clone::clone)
    };
    let expected = [body["master_key"].clone(), body["self_signing_key"].clone()];
    assert_eq!(known(&shared.alice, &shared.zoe).await, expected);
    // The key that signs devices comes alone, and so does another master key.
    let body = second.body(&shared.zoe);
    let update = json!({ "user_id": shared.zoe, "master_key": body["master_key"] });
    shared.says("m.signing_key_update", update.clone()).await;
    let expected = [body["master_key"].clone(), Value::Null];
    assert_eq!(known(&shared.alice, &shared.zoe).await, expected);
    let more = json!({ "user_id": shared.zoe, "self_signing_key": body["self_signing_key"] });
    shared.says("m.signing_key_update", more).await;
    shared.says("m.signing_key_update", update).await;
    let expected = [body["master_key"].clone(), body["self_signing_key"].clone()];
    assert_eq!(known(&shared.alice, &shared.zoe).await, expected);
    assert_eq!(shared.asked(), 1);
}

#[tokio::test]
async fn who_closes_the_account_has_no_keys_any_more_and_others_hear_of_it() {
    let server = TestServer::federated().await;
    let shared = Shared::new(&server).await;
    let (alice, other) = (&shared.alice, &shared.other);
    let bob = server.register("bob").await;
    let rooms = alice.get("/joined_rooms").await.ok();
    let path = format!("/join/{}", rooms["joined_rooms"][0].as_str().unwrap());
    bob.post(&path, json!({})).await.ok();
    let more = json!({ "device_id": "PHONE" });
    let phone = User::new(&server, &server.login("alice", PASSWORD, more).await.ok());
    for user in [alice, &phone] {
        upload(user).await;
    }
    let identity = Identity::new();
    let path = "/keys/device_signing/upload";
    alice.post(path, identity.body(&alice.id)).await.ok();
    so_many(other, "m.signing_key_update", 1).await;
    let count = so_many(other, UPDATE, 2).await.len();
    let since = bob.sync("").await["next_batch"].clone();
    let body = json!({ "device_keys": { &alice.id: [] } });
    let asked = alice.post("/keys/query", body.clone()).await.ok();
    assert_eq!(asked["user_signing_keys"].as_object().unwrap().len(), 1);

    let told = server.app.head();
    let answer = alice.send_with_password(Method::POST, "/account/deactivate", json!({}));
    answer.await.ok();
    let sync = bob
        .sync(&format!("since={}", since.as_str().unwrap()))
        .await;
    let lists = &sync["device_lists"];
    assert!(
        lists["changed"] == json!([alice.id]) || lists["left"] == json!([alice.id]),
        "{lists}"
    );
    let found = bob.post("/keys/query", body).await.ok();
    assert_eq!(found["device_keys"], json!({ &alice.id: {} }));
    for field in ["master_keys", "self_signing_keys", "user_signing_keys"] {
        assert_eq!(found[field], json!({}), "{field}");
    }
    // Also who reads only now what is to be told finds it: she has left since.
    let app = &server.app;
    let name = app.names.server(&app.db, &app.log, &other.name);
    let untold = device_lists::untold(&app.db, name.await.unwrap(), told, 100);
    assert_eq!(untold.await.unwrap().len(), 3, "two devices and her keys");
    let updates = so_many(other, UPDATE, count + 2).await;
    let mut gone: Vec<&Value> = updates[count..]
        .iter()
        .filter(|update| update["deleted"] == true)
        .map(|update| &update["device_id"])
        .collect();
    gone.sort_by_key(ToString::to_string);
    gone.dedup();
    let mut expected = [json!(alice.device_id), json!("PHONE")];
    expected.sort_by_key(Value::to_string);
    assert_eq!(gone, expected.iter().collect::<Vec<_>>());
}
