//! The keys with which people sign their devices and each other: who may set them, and who sees what of them.

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
    for _ in 0..2 {
        // The same again is nothing new.
        alice.post(PATH, body.clone()).await.ok();
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
