//! The keys with which people sign their devices and each other: who may set them, and who sees what of them.

use futures_util::{StreamExt, stream::FuturesUnordered};
use homing_federation::SigningKey;
use reqwest::Method;
use ruma::CanonicalJsonObject;
use serde_json::{Value, json};

use crate::{
    keys::upload,
    server::{PASSWORD, TestServer, User},
};

const PATH: &str = "/keys/device_signing/upload";

/// The private halves of somebody's keys.
pub struct Identity {
    pub master: SigningKey,
    pub self_signing: SigningKey,
    pub user_signing: SigningKey,
}

fn new_key() -> SigningKey {
    SigningKey::generate(&mut rand::rng())
}

/// Adds somebody's signature to an object.
pub fn sign(mut object: Value, user: &str, key_id: &str, key: &SigningKey) -> Value {
    let mut signed = object.clone();
    let fields = signed.as_object_mut().unwrap();
    fields.remove("signatures");
    fields.remove("unsigned");
    let signed: CanonicalJsonObject = serde_json::from_value(signed).unwrap();
    let text = ruma::CanonicalJsonValue::Object(signed).to_string();
    let signature = key.sign_bytes(text.as_bytes());
    object["signatures"][user][format!("ed25519:{key_id}")] = json!(signature);
    object
}

fn public(user: &str, usage: &str, key: &SigningKey) -> Value {
    let id = key.public_key();
    json!({ "user_id": user, "usage": [usage], "keys": { format!("ed25519:{id}"): id } })
}

impl Identity {
    pub fn new() -> Self {
        Self {
            master: new_key(),
            self_signing: new_key(),
            user_signing: new_key(),
        }
    }

    /// The public master key.
    pub fn public_master(&self, user: &str) -> Value {
        public(user, "master", &self.master)
    }

    fn signed(&self, user: &str, usage: &str, key: &SigningKey) -> Value {
        let object = public(user, usage, key);
        sign(object, user, &self.master.public_key(), &self.master)
    }

    /// What is uploaded.
    pub fn body(&self, user: &str) -> Value {
        json!({
            "master_key": self.public_master(user),
            "self_signing_key": self.signed(user, "self_signing", &self.self_signing),
            "user_signing_key": self.signed(user, "user_signing", &self.user_signing),
        })
    }
}

/// The keys of a device that has a key to sign with.
fn device_keys(user: &User<'_>, key: &SigningKey) -> Value {
    let id = format!("ed25519:{}", user.device_id);
    let keys = json!({
        "user_id": user.id, "device_id": user.device_id, "algorithms": [],
        "keys": { id: key.public_key() },
    });
    sign(keys, &user.id, &user.device_id, key)
}

async fn query(user: &User<'_>, of: &str) -> Value {
    let body = json!({ "device_keys": { of: [] } });
    user.post("/keys/query", body).await.ok()
}

async fn add(user: &User<'_>, signed: Value) -> Value {
    let answer = user.post("/keys/signatures/upload", signed).await.ok();
    answer["failures"].clone()
}

#[tokio::test]
async fn the_first_keys_are_free_and_others_need_the_password() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let first = Identity::new();
    let mut body = first.body(&alice.id);
    let master = first.public_master(&alice.id);
    body["master_key"] = sign(master, &alice.id, &alice.device_id, &new_key());
    // Nobody says who else has signed their key, or what servers say of it.
    let mut spoofed = sign(body["master_key"].clone(), &bob.id, "KEY", &new_key());
    spoofed["unsigned"] = json!({ "verified": true });
    let mut with_more = body.clone();
    with_more["master_key"] = spoofed;
    for _ in 0..2 {
        // The same again is nothing new.
        alice.post(PATH, with_more.clone()).await.ok();
    }
    let second = Identity::new();
    for body in [
        second.body(&alice.id),
        json!({ "self_signing_key": first.signed(&alice.id, "self_signing", &new_key()) }),
    ] {
        let answer = alice.post(PATH, body).await;
        assert_eq!(answer.status, 401, "{}", answer.body);
    }
    // A device may have signed the master key before that came here.
    upload(
        &alice,
        json!({ "device_keys": device_keys(&alice, &new_key()) }),
    )
    .await;
    let key = |of: &Value, usage: &str| of[usage][&alice.id].clone();
    let found = query(&bob, &alice.id).await;
    assert_eq!(key(&found, "master_keys"), body["master_key"]);
    assert_eq!(key(&found, "self_signing_keys"), body["self_signing_key"]);
    assert_eq!(
        key(&found, "user_signing_keys"),
        Value::Null,
        "it is Alice's alone"
    );
    let found = query(&alice, &alice.id).await;
    assert_eq!(key(&found, "user_signing_keys"), body["user_signing_key"]);

    let body = second.body(&alice.id);
    let done = alice
        .send_with_password(Method::POST, PATH, body.clone())
        .await;
    done.ok();
    let found = query(&bob, &alice.id).await;
    assert_eq!(key(&found, "master_keys"), body["master_key"]);
}

#[tokio::test]
async fn two_who_come_first_are_not_both_first() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let (one, two) = (Identity::new(), Identity::new());
    let (one, two) = tokio::join!(
        alice.post(PATH, one.body(&alice.id)),
        alice.post(PATH, two.body(&alice.id))
    );
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 401]);
}

#[tokio::test]
async fn keys_that_are_not_as_they_must_be_are_refused() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let id = &alice.id;
    let (good, other) = (Identity::new(), Identity::new());
    let only = |name: &str| json!({ name: good.body(id)[name] });
    alice
        .post(PATH, only("self_signing_key"))
        .await
        .fails(400, "M_MISSING_PARAM");
    let mut body = good.body(id);
    body["self_signing_key"] = other.body(id)["self_signing_key"].clone();
    alice
        .post(PATH, body)
        .await
        .fails(400, "M_INVALID_SIGNATURE");
    let mut unsigned = good.body(id);
    unsigned["user_signing_key"]["signatures"] = json!({});
    alice
        .post(PATH, unsigned)
        .await
        .fails(400, "M_INVALID_SIGNATURE");
    let master = good.master.public_key();
    for (field, value) in [
        ("user_id", json!("@bob:localhost")),
        ("usage", json!(["self_signing"])),
        ("usage", json!("master")),
        ("keys", json!({})),
        ("keys", json!({ "ed25519:x": "x" })),
        ("keys", json!({ "ed25519:x": master })),
        ("keys", json!({ format!("curve25519:{master}"): master })),
        ("keys", json!([])),
        ("signatures", json!("x")),
    ] {
        let mut body = good.body(id);
        body["master_key"][field] = value;
        alice.post(PATH, body).await.fails(400, "M_BAD_JSON");
    }
    let more = json!({ "device_id": master });
    server.login("alice", PASSWORD, more).await.ok();
    alice
        .post(PATH, good.body(id))
        .await
        .fails(403, "M_FORBIDDEN");

    // Nor is a device called as a key.
    alice.post(PATH, other.body(id)).await.ok();
    let more = json!({ "device_id": other.master.public_key() });
    let device = User::new(&server, &server.login("alice", PASSWORD, more).await.ok());
    let body = json!({ "device_keys": device_keys(&device, &new_key()) });
    device
        .post("/keys/upload", body)
        .await
        .fails(403, "M_FORBIDDEN");
    assert_eq!(query(&alice, id).await["device_keys"][id], json!({}));
}

#[tokio::test]
async fn own_devices_and_the_master_key_are_signed() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (identity, device) = (Identity::new(), new_key());
    alice.post(PATH, identity.body(&alice.id)).await.ok();
    let keys = device_keys(&alice, &device);
    upload(&alice, json!({ "device_keys": keys })).await;
    let self_signing = identity.self_signing.public_key();
    let signed = sign(
        keys.clone(),
        &alice.id,
        &self_signing,
        &identity.self_signing,
    );
    let master = identity.public_master(&alice.id);
    let master = sign(master, &alice.id, &alice.device_id, &device);
    let public = identity.master.public_key();
    let body = json!({ &alice.id: { &alice.device_id: signed, &public: master } });
    assert_eq!(add(&alice, body.clone()).await, json!({}));
    let head = server.app.head();
    assert_eq!(add(&alice, body).await, json!({}));
    assert_eq!(server.app.head(), head, "they are known");
    let found = query(&bob, &alice.id).await;
    assert_eq!(found["device_keys"][&alice.id][&alice.device_id], signed);
    assert_eq!(found["master_keys"][&alice.id], master);

    let wrong = sign(keys.clone(), &alice.id, &self_signing, &new_key());
    let mut other = signed.clone();
    other["algorithms"] = json!(["other"]);
    let other = sign(other, &alice.id, &self_signing, &identity.self_signing);
    let by_nobody = identity.public_master(&alice.id);
    for (key_id, json, errcode) in [
        (&alice.device_id, wrong, "M_INVALID_SIGNATURE"),
        (&alice.device_id, other, "M_INVALID_SIGNATURE"),
        (&alice.device_id, json!({ "a": 1.5 }), "M_INVALID_SIGNATURE"),
        (&public, by_nobody, "M_INVALID_SIGNATURE"),
        (&"NONE".to_owned(), signed.clone(), "M_NOT_FOUND"),
    ] {
        let failures = add(&alice, json!({ &alice.id: { key_id: json } })).await;
        assert_eq!(failures[&alice.id][key_id]["errcode"], errcode);
    }
    assert_eq!(query(&bob, &alice.id).await, found);

    // A new device under the old name is not signed.
    let keys = device_keys(&alice, &new_key());
    upload(&alice, json!({ "device_keys": keys })).await;
    let found = query(&bob, &alice.id).await;
    assert_eq!(found["device_keys"][&alice.id][&alice.device_id], keys);
}

#[tokio::test]
async fn whom_one_has_signed_is_nobody_elses_business() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let (of_alice, of_bob) = (Identity::new(), Identity::new());
    alice.post(PATH, of_alice.body(&alice.id)).await.ok();
    bob.post(PATH, of_bob.body(&bob.id)).await.ok();
    let public = of_bob.master.public_key();
    let master = of_bob.public_master(&bob.id);
    let user_signing = of_alice.user_signing.public_key();
    let signed = sign(
        master.clone(),
        &alice.id,
        &user_signing,
        &of_alice.user_signing,
    );
    assert_eq!(
        add(&alice, json!({ &bob.id: { &public: signed } })).await,
        json!({})
    );
    for (viewer, expected) in [(&alice, &signed), (&bob, &master), (&carol, &master)] {
        let found = query(viewer, &bob.id).await;
        assert_eq!(&found["master_keys"][&bob.id], expected, "{}", viewer.id);
    }
    // Carol has no key to sign with, and nobody signs another's devices.
    for (user, key_id, json) in [
        (&carol, &public, &signed),
        (&alice, &bob.device_id, &signed),
    ] {
        let failures = add(user, json!({ &bob.id: { key_id: json } })).await;
        assert_eq!(failures[&bob.id][key_id]["errcode"], "M_NOT_FOUND");
    }
    let wrong = sign(master.clone(), &alice.id, &user_signing, &new_key());
    let failures = add(&alice, json!({ &bob.id: { &public: wrong } })).await;
    assert_eq!(failures[&bob.id][&public]["errcode"], "M_INVALID_SIGNATURE");
}

#[tokio::test]
async fn only_ones_own_devices_hear_of_whom_one_has_signed() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    for user in [&bob, &carol] {
        let path = format!("/join/{room}");
        user.post(&path, json!({})).await.ok();
    }
    let (of_alice, of_bob) = (Identity::new(), Identity::new());
    alice.post(PATH, of_alice.body(&alice.id)).await.ok();
    bob.post(PATH, of_bob.body(&bob.id)).await.ok();
    let more = json!({ "device_id": "PHONE" });
    let phone = User::new(&server, &server.login("alice", PASSWORD, more).await.ok());
    let mut since = Vec::new();
    for user in [&phone, &bob, &carol] {
        let next = user.sync("").await["next_batch"].clone();
        since.push(format!("since={}", next.as_str().unwrap()));
    }
    let user_signing = of_alice.user_signing.public_key();
    let master = of_bob.public_master(&bob.id);
    let signed = sign(master, &alice.id, &user_signing, &of_alice.user_signing);
    let body = json!({ &bob.id: { of_bob.master.public_key(): signed } });
    assert_eq!(add(&alice, body).await, json!({}));
    let sync = phone.sync(&since[0]).await;
    assert_eq!(sync["device_lists"]["changed"], json!([bob.id]));
    for (user, since) in [(&bob, &since[1]), (&carol, &since[2])] {
        assert_eq!(
            user.sync(since).await["device_lists"],
            serde_json::Value::Null
        );
    }
    let later = sync["next_batch"].as_str().unwrap().to_owned();

    // The same from the database.
    let (id, token) = (bob.id.clone(), phone.token.clone());
    let (alice, carol) = (phone.id.clone(), carol.token.clone());
    let server = server.restart().await;
    let user = |id: &str, token: String| User {
        server: &server,
        id: id.to_owned(),
        token,
        device_id: String::new(),
    };
    let (phone, carol) = (user(&alice, token), user("@carol:localhost", carol));
    let sync = phone.sync(&since[0]).await;
    assert_eq!(sync["device_lists"]["changed"], json!([id]));
    let sync = phone.sync(&format!("since={later}")).await;
    assert_eq!(sync["device_lists"], serde_json::Value::Null);
    let sync = carol.sync(&since[2]).await;
    assert_eq!(sync["device_lists"], serde_json::Value::Null);
}

#[tokio::test]
async fn what_an_old_master_key_has_signed_goes_with_it() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (first, second, of_bob) = (Identity::new(), Identity::new(), Identity::new());
    alice.post(PATH, first.body(&alice.id)).await.ok();
    bob.post(PATH, of_bob.body(&bob.id)).await.ok();
    let keys = device_keys(&alice, &new_key());
    upload(&alice, json!({ "device_keys": keys })).await;
    let by_self = first.self_signing.public_key();
    let device = sign(keys.clone(), &alice.id, &by_self, &first.self_signing);
    let of_alice = json!({ &alice.device_id: device });
    let by_alice = first.user_signing.public_key();
    let master = of_bob.public_master(&bob.id);
    let signed = sign(master.clone(), &alice.id, &by_alice, &first.user_signing);
    let of_bob_key = of_bob.master.public_key();
    let body = json!({ &alice.id: of_alice, &bob.id: { &of_bob_key: signed } });
    assert_eq!(add(&alice, body).await, json!({}));
    let by_bob = of_bob.user_signing.public_key();
    let public = first.public_master(&alice.id);
    let signed = sign(public, &bob.id, &by_bob, &of_bob.user_signing);
    let body = json!({ &alice.id: { first.master.public_key(): signed } });
    assert_eq!(add(&bob, body).await, json!({}));

    // The master key alone: the others were signed by the old one.
    let body = json!({ "master_key": second.public_master(&alice.id) });
    alice
        .send_with_password(Method::POST, PATH, body)
        .await
        .ok();
    let found = query(&alice, &alice.id).await;
    assert_eq!(
        found["master_keys"][&alice.id],
        second.public_master(&alice.id)
    );
    for gone in ["self_signing_keys", "user_signing_keys"] {
        assert_eq!(found[gone][&alice.id], Value::Null, "{gone}");
    }
    assert_eq!(found["device_keys"][&alice.id][&alice.device_id], keys);
    let found = query(&alice, &bob.id).await;
    assert_eq!(found["master_keys"][&bob.id], master);
    let found = query(&bob, &alice.id).await;
    assert_eq!(
        found["master_keys"][&alice.id],
        second.public_master(&alice.id)
    );

    // The same key that signs devices stays what it is under another master key, and so do its signatures.
    let body = json!({ "self_signing_key": second.body(&alice.id)["self_signing_key"] });
    alice
        .send_with_password(Method::POST, PATH, body)
        .await
        .ok();
    let third = Identity {
        self_signing: second.self_signing,
        ..Identity::new()
    };
    let by_self = third.self_signing.public_key();
    let device = sign(keys, &alice.id, &by_self, &third.self_signing);
    let body = json!({ &alice.id: { &alice.device_id: device } });
    assert_eq!(add(&alice, body).await, json!({}));
    let body = third.body(&alice.id);
    alice
        .send_with_password(Method::POST, PATH, body.clone())
        .await
        .ok();
    let found = query(&bob, &alice.id).await;
    assert_eq!(
        found["self_signing_keys"][&alice.id],
        body["self_signing_key"]
    );
    assert_eq!(found["device_keys"][&alice.id][&alice.device_id], device);
}

#[tokio::test]
async fn what_a_device_has_signed_goes_with_it() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (identity, device) = (Identity::new(), new_key());
    alice.post(PATH, identity.body(&alice.id)).await.ok();
    let more = json!({ "device_id": "PHONE" });
    let phone = User::new(&server, &server.login("alice", PASSWORD, more).await.ok());
    let keys = device_keys(&phone, &device);
    upload(&phone, json!({ "device_keys": keys })).await;
    let public = identity.public_master(&alice.id);
    let signed = sign(public.clone(), &alice.id, "PHONE", &device);
    let body = json!({ &alice.id: { identity.master.public_key(): signed } });
    assert_eq!(add(&phone, body).await, json!({}));
    let found = query(&bob, &alice.id).await;
    assert_eq!(found["master_keys"][&alice.id], signed);

    // More signatures of the same keys take nothing from those that there are.
    let self_signing = identity.self_signing.public_key();
    let by_self = sign(keys, &alice.id, &self_signing, &identity.self_signing);
    upload(&phone, json!({ "device_keys": by_self })).await;
    let found = query(&bob, &alice.id).await;
    assert_eq!(found["master_keys"][&alice.id], signed);
    assert_eq!(found["device_keys"][&alice.id]["PHONE"], by_self);
    phone.post("/logout", json!({})).await.ok();
    let found = query(&bob, &alice.id).await;
    assert_eq!(found["master_keys"][&alice.id], public);
}

#[tokio::test]
async fn the_same_device_keys_may_come_many_times_at_once_while_they_are_signed() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let identity = Identity::new();
    alice.post(PATH, identity.body(&alice.id)).await.ok();
    let self_signing = identity.self_signing.public_key();
    for number in 0..10 {
        let more = json!({ "device_id": format!("PHONE{number}") });
        let phone = User::new(&server, &server.login("alice", PASSWORD, more).await.ok());
        let keys = device_keys(&phone, &new_key());
        let uploads = (0..16).map(|_| phone.post("/keys/upload", json!({ "device_keys": keys })));
        let mut uploads: FuturesUnordered<_> = uploads.collect();
        uploads.next().await.unwrap().ok();
        let signed = sign(keys, &alice.id, &self_signing, &identity.self_signing);
        let body = json!({ &alice.id: { &phone.device_id: signed } });
        let others = async {
            while let Some(answer) = uploads.next().await {
                answer.ok();
            }
        };
        let (failures, ()) = tokio::join!(add(&phone, body), others);
        assert_eq!(failures, json!({}));
        let found = query(&alice, &alice.id).await;
        let found = &found["device_keys"][&alice.id][&phone.device_id];
        assert_eq!(found["signatures"], signed["signatures"]);
    }
}

/// Clients upload their keys twice at the beginning, once with the signature, and in no certain order.
#[tokio::test]
async fn a_signature_stays_when_the_device_uploads_its_keys_without_it() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let identity = Identity::new();
    alice.post(PATH, identity.body(&alice.id)).await.ok();
    let keys = device_keys(&alice, &new_key());
    let self_signing = identity.self_signing.public_key();
    let signed = sign(
        keys.clone(),
        &alice.id,
        &self_signing,
        &identity.self_signing,
    );
    upload(&alice, json!({ "device_keys": signed })).await;
    let body = json!({ &alice.id: { &alice.device_id: signed } });
    assert_eq!(add(&alice, body).await, json!({}));
    upload(&alice, json!({ "device_keys": keys })).await;
    let found = query(&alice, &alice.id).await;
    let found = &found["device_keys"][&alice.id][&alice.device_id];
    assert_eq!(found["signatures"], signed["signatures"]);
}
