//! The keys of devices: what is uploaded is found, one-time keys are handed out once, and devices know how many are left.

use std::collections::{BTreeMap, HashSet};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::server::{PASSWORD, TestServer, User};

/// The keys of a device, as it would upload them.
pub fn device_keys(user: &User<'_>) -> Value {
    let id = &user.device_id;
    json!({
        "user_id": user.id,
        "device_id": id,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": {
            format!("curve25519:{id}"): "3C5BFWi2Y8MaVvjM8M22DBmh24PmgR0nPvJOIArzgyI",
            format!("ed25519:{id}"): "lEuiRJBit0IG6nUf5pUzWTUEsRVVe/HJkoKuEww9ULI",
        },
        "signatures": { &user.id: { format!("ed25519:{id}"): "signature" } },
    })
}

/// What looks like a public key, with a text in it.
pub fn public_key(text: &str) -> String {
    format!("{text:A<43}")
}

/// A signed one-time key.
fn key(user: &User<'_>, text: &str) -> Value {
    let id = format!("ed25519:{}", user.device_id);
    json!({ "key": public_key(text), "signatures": { &user.id: { id: "signature" } } })
}

/// Some one-time keys, in their order.
pub fn one_time_keys(user: &User<'_>, numbers: std::ops::Range<usize>) -> Value {
    let keys = numbers.map(|n| {
        let id = format!("signed_curve25519:K{n:05}");
        (id, key(user, &format!("key{n}")))
    });
    keys.collect()
}

pub async fn upload(user: &User<'_>, body: Value) -> Value {
    user.post("/keys/upload", body).await.ok()
}

/// Claims a key of a device: its id and itself.
pub async fn claim(user: &User<'_>, of: (&str, &str)) -> Option<(String, Value)> {
    let body = json!({ "one_time_keys": { of.0: { of.1: "signed_curve25519" } } });
    let answer = user.post("/keys/claim", body).await.ok();
    let keys = answer["one_time_keys"][of.0][of.1].as_object()?;
    assert_eq!(keys.len(), 1, "{answer}");
    let (id, key) = keys.iter().next()?;
    Some((id.clone(), key.clone()))
}

async fn query(user: &User<'_>, of: &str) -> Value {
    let body = json!({ "device_keys": { of: [] } });
    let found = user.post("/keys/query", body).await.ok();
    json!({ "device_keys": found["device_keys"] })
}

/// How many one-time keys a sync says that there are, and the algorithms of unused fallback keys.
async fn counts(user: &User<'_>) -> (Value, Value) {
    let sync = user.sync("").await;
    (
        sync["device_one_time_keys_count"].clone(),
        sync["device_unused_fallback_key_types"].clone(),
    )
}

#[tokio::test]
async fn keys_of_devices_are_found() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let empty = json!({ "device_keys": { &bob.id: {} } });
    assert_eq!(query(&alice, &bob.id).await, empty);
    let keys = device_keys(&bob);
    let mut with_more = keys.clone();
    with_more["unsigned"] = json!({ "device_display_name": "not for clients to say" });
    upload(&bob, json!({ "device_keys": with_more })).await;
    let of_device = json!({ "device_keys": { &bob.id: { &bob.device_id: keys } } });
    assert_eq!(query(&alice, &bob.id).await, of_device);

    let path = format!("/devices/{}", bob.device_id);
    bob.put(&path, json!({ "display_name": "Phone" }))
        .await
        .ok();
    let mut named = of_device.clone();
    named["device_keys"][&bob.id][&bob.device_id]["unsigned"] =
        json!({ "device_display_name": "Phone" });
    assert_eq!(query(&alice, &bob.id).await, named);

    // One can ask for some of them, and of people who do not exist.
    let more = json!({ "device_id": "TABLET" });
    let tablet = User::new(&server, &server.login("bob", PASSWORD, more).await.ok());
    upload(&tablet, json!({ "device_keys": device_keys(&tablet) })).await;
    let body = json!({ "device_keys": { &bob.id: ["TABLET", "NONE"], "@nobody:localhost": [] } });
    let found = alice.post("/keys/query", body).await.ok();
    assert_eq!(
        found["device_keys"],
        json!({ &bob.id: { "TABLET": device_keys(&tablet) }, "@nobody:localhost": {} })
    );

    // They go with the device.
    tablet.post("/logout", json!({})).await.ok();
    assert_eq!(query(&alice, &bob.id).await, named);
}

#[tokio::test]
async fn what_is_empty_is_said_and_null_is_nothing() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let nothing = json!({ "device_keys": null, "one_time_keys": null, "fallback_keys": null });
    let counts = upload(&alice, nothing).await;
    assert_eq!(counts["one_time_key_counts"]["signed_curve25519"], 0);
    let wrong = json!({ "one_time_keys": 1, "fallback_keys": null });
    let wrong = alice.post("/keys/upload", wrong).await;
    wrong.fails(400, "M_BAD_JSON");
    // matrix-nio reads no answer without these.
    let found = alice
        .post("/keys/query", json!({ "device_keys": {} }))
        .await;
    let found = found.ok();
    for field in [
        "device_keys",
        "master_keys",
        "self_signing_keys",
        "user_signing_keys",
        "failures",
    ] {
        assert_eq!(found[field], json!({}), "{field}");
    }
    let claimed = alice
        .post("/keys/claim", json!({ "one_time_keys": {} }))
        .await;
    let nothing = json!({ "one_time_keys": {}, "failures": {} });
    assert_eq!(claimed.ok(), nothing);
}

#[tokio::test]
async fn keys_that_are_not_as_they_must_be_are_refused() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let good = device_keys(&alice);
    let with = |field: &str, value: Value| {
        let mut keys = good.clone();
        keys[field] = value;
        json!({ "device_keys": keys })
    };
    let signs_with = format!("ed25519:{}", alice.device_id);
    let one = |id: &str, key: Value| json!({ "one_time_keys": { id: key } });
    let fallback = |id: &str, key: Value| json!({ "fallback_keys": { id: key } });
    for body in [
        with("user_id", json!(bob.id)),
        with("user_id", json!(1)),
        with("device_id", json!(bob.device_id)),
        with("algorithms", json!("a")),
        with("keys", json!({})),
        with("keys", json!({ "ed25519:OTHER": public_key("k") })),
        with("keys", json!({ &signs_with: "k" })),
        with("keys", json!({ "alg": { "k": "v" } })),
        with("signatures", json!({ &alice.id: "signature" })),
        with("signatures", json!(null)),
        with("more", json!(1.5)),
        json!({ "device_keys": [] }),
        one("signed_curve25519:A", json!("no signature")),
        one("signed_curve25519:A", json!({ "key": public_key("k") })),
        one("signed_curve25519:A", json!({ "key": 1, "signatures": {} })),
        one(
            "signed_curve25519:A",
            json!({ "key": "k", "signatures": {} }),
        ),
        one("signed_curve25519", key(&alice, "k")),
        one("curve25519:A", json!(1)),
        one("curve25519:A", json!("k")),
        fallback("signed_curve25519:A", json!({ "key": public_key("k") })),
    ] {
        let answer = alice.post("/keys/upload", body.clone()).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["errcode"]),
            (400, &json!("M_BAD_JSON")),
            "{body}"
        );
    }
    let large = "x".repeat(70_000);
    for body in [
        with("more", json!(large)),
        one("signed_curve25519:A", key(&alice, &large)),
    ] {
        alice
            .post("/keys/upload", body)
            .await
            .fails(413, "M_TOO_LARGE");
    }
    let two =
        json!({ "signed_curve25519:A": key(&alice, "a"), "signed_curve25519:B": key(&alice, "b") });
    alice
        .post("/keys/upload", json!({ "fallback_keys": two }))
        .await
        .fails(400, "M_INVALID_PARAM");
    let many = json!({ "one_time_keys": one_time_keys(&alice, 0..501) });
    alice
        .post("/keys/upload", many)
        .await
        .fails(400, "M_INVALID_PARAM");
    let body = json!({ "one_time_keys": one_time_keys(&alice, 0..500) });
    upload(&alice, body.clone()).await;
    upload(&alice, body).await;
    let more = json!({ "one_time_keys": one_time_keys(&alice, 500..501) });
    alice
        .post("/keys/upload", more)
        .await
        .fails(400, "M_INVALID_PARAM");
    assert_eq!(
        query(&bob, &alice.id).await["device_keys"],
        json!({ &alice.id: {} })
    );
}

#[tokio::test]
async fn one_time_keys_go_out_once_in_their_order_and_never_with_another_key_again() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let first = json!({ "one_time_keys": one_time_keys(&bob, 5..7) });
    let expected = json!({ "one_time_key_counts": { "signed_curve25519": 2 } });
    assert_eq!(upload(&bob, first.clone()).await, expected);
    // Those that come later go out later, whatever they are called.
    upload(&bob, json!({ "one_time_keys": one_time_keys(&bob, 0..2) })).await;
    let of_bob = (bob.id.as_str(), bob.device_id.as_str());
    for n in [5, 6, 0] {
        let (id, found) = claim(&alice, of_bob).await.expect("a key is left");
        assert_eq!(id, format!("signed_curve25519:K{n:05}"));
        assert_eq!(found, key(&bob, &format!("key{n}")));
    }
    // The same once more is fine, whether it is still there or not, and nothing new; another key under the id is refused.
    let same = json!({ "one_time_keys": one_time_keys(&bob, 0..2) });
    for body in [json!({}), first, same] {
        let answer = upload(&bob, body).await;
        assert_eq!(answer["one_time_key_counts"]["signed_curve25519"], 1);
    }
    for id in ["K00000", "K00001"] {
        let id = format!("signed_curve25519:{id}");
        let body = json!({ "one_time_keys": { id: key(&bob, "another") } });
        bob.post("/keys/upload", body)
            .await
            .fails(400, "M_INVALID_PARAM");
    }
    assert!(claim(&alice, of_bob).await.is_some());
    assert!(claim(&alice, of_bob).await.is_none());
    assert!(claim(&alice, (&bob.id, "NONE")).await.is_none());
    assert!(claim(&alice, ("@nobody:localhost", "D")).await.is_none());
}

#[tokio::test]
async fn fallback_keys_are_handed_out_when_no_other_is_left_and_the_device_learns_of_it() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let none = json!({ "signed_curve25519": 0 });
    assert_eq!(counts(&bob).await, (none.clone(), json!([])));
    let fallback = |id: &str| {
        let mut fallback = key(&bob, id);
        fallback["fallback"] = json!(true);
        json!({ "fallback_keys": { format!("signed_curve25519:{id}"): fallback } })
    };
    let mut body = fallback("F1");
    body["one_time_keys"] = one_time_keys(&bob, 0..1);
    upload(&bob, body).await;
    let unused = json!(["signed_curve25519"]);
    let one = json!({ "signed_curve25519": 1 });
    assert_eq!(counts(&bob).await, (one, unused.clone()));
    let of_bob = (bob.id.as_str(), bob.device_id.as_str());
    claim(&alice, of_bob).await.unwrap();
    assert_eq!(counts(&bob).await, (none.clone(), unused.clone()));
    for _ in 0..2 {
        let (id, found) = claim(&alice, of_bob).await.unwrap();
        assert_eq!(
            (&*id, &found["fallback"]),
            ("signed_curve25519:F1", &json!(true))
        );
        assert_eq!(counts(&bob).await, (none.clone(), json!([])));
    }
    // The same again is as used as it was.
    upload(&bob, fallback("F1")).await;
    assert_eq!(counts(&bob).await, (none.clone(), json!([])));
    upload(&bob, fallback("F2")).await;
    assert_eq!(counts(&bob).await, (none, unused));
    assert_eq!(
        claim(&alice, of_bob).await.unwrap().0,
        "signed_curve25519:F2"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_claim_at_the_same_moment_get_each_another_key() {
    const KEYS: usize = 120;
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let mut body = json!({ "one_time_keys": one_time_keys(&bob, 0..KEYS) });
    body["fallback_keys"] = json!({ "signed_curve25519:F": key(&bob, "fallback") });
    upload(&bob, body).await;
    let of_bob = (bob.id.as_str(), bob.device_id.as_str());
    let mut got = HashSet::new();
    for round in 0..2 {
        let claims = (0..64).map(|_| claim(&alice, of_bob));
        for (id, _) in join_all(claims).await.into_iter().flatten() {
            let is_new = got.insert(id.clone());
            assert!(is_new || id.ends_with(":F"), "{id} twice");
        }
        let left = counts(&bob).await.0["signed_curve25519"].as_u64().unwrap();
        let expected = KEYS.saturating_sub(64 * (round + 1));
        assert_eq!(usize::try_from(left).unwrap(), expected);
    }
    assert_eq!(got.len(), KEYS + 1, "and the fallback key");

    // Several devices are claimed as one, or not at all.
    let more = json!({ "device_id": "TABLET" });
    let tablet = User::new(&server, &server.login("bob", PASSWORD, more).await.ok());
    for user in [&bob, &tablet] {
        upload(
            user,
            json!({ "one_time_keys": one_time_keys(user, 1000..1030) }),
        )
        .await;
    }
    let body = json!({ "one_time_keys": { &bob.id: {
        &bob.device_id: "signed_curve25519", "TABLET": "signed_curve25519",
    } } });
    let claims = (0..30).map(|_| alice.post("/keys/claim", body.clone()));
    let mut of_devices: BTreeMap<String, HashSet<String>> = BTreeMap::new();
    for answer in join_all(claims).await {
        let answer = answer.ok();
        for (device, keys) in answer["one_time_keys"][&bob.id].as_object().unwrap() {
            let id = keys.as_object().unwrap().keys().next().unwrap();
            assert!(
                of_devices
                    .entry(device.clone())
                    .or_default()
                    .insert(id.clone())
            );
        }
    }
    assert!(of_devices.len() == 2 && of_devices.values().all(|ids| ids.len() == 30));
}

#[tokio::test]
async fn a_claim_for_many_devices_is_a_few_statements() {
    const DEVICES: usize = 20;
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let mut devices = Vec::new();
    for n in 0..DEVICES {
        let more = json!({ "device_id": format!("D{n:02}") });
        devices.push(User::new(
            &server,
            &server.login("bob", PASSWORD, more).await.ok(),
        ));
    }
    // Every other device has but a fallback key, and another algorithm counts for itself.
    for (n, device) in devices.iter().enumerate() {
        let of_one_kind = if n % 2 == 0 {
            json!({ "one_time_keys": one_time_keys(device, n * 100..n * 100 + 60) })
        } else {
            let fallback = key(device, &format!("fallback{n}"));
            json!({
                "fallback_keys": { "signed_curve25519:F": fallback },
                "one_time_keys": { "signed_other:O": key(device, "other") },
            })
        };
        upload(device, of_one_kind).await;
    }
    let wanted: BTreeMap<&str, &str> = devices
        .iter()
        .map(|device| (device.device_id.as_str(), "signed_curve25519"))
        .collect();
    let body = json!({ "one_time_keys": { &bob.id: wanted } });
    let mut costs = Vec::new();
    for round in 0..3 {
        let before = server.app.db.statistics();
        let answer = alice.post("/keys/claim", body.clone()).await.ok();
        let after = server.app.db.statistics();
        costs.push((after.reads - before.reads, after.writes - before.writes));
        for (n, device) in devices.iter().enumerate() {
            let of_device = &answer["one_time_keys"][&bob.id][&device.device_id];
            let expected = if n % 2 == 0 {
                let number = n * 100 + round;
                let one = key(device, &format!("key{number}"));
                json!({ format!("signed_curve25519:K{number:05}"): one })
            } else {
                json!({ "signed_curve25519:F": key(device, &format!("fallback{n}")) })
            };
            assert_eq!(*of_device, expected);
        }
    }
    // The devices, the keys, the fallback keys.
    let (reads, _) = costs.iter().min().unwrap();
    assert!(*reads <= 5, "{costs:?}");
    // The keys go and are noted as used.
    let (_, writes) = costs.iter().min_by_key(|(_, writes)| writes).unwrap();
    assert!(*writes <= 3, "{costs:?}");
    for (n, device) in devices.iter().enumerate().take(2) {
        let expected = if n % 2 == 0 {
            (json!({ "signed_curve25519": 57 }), json!([]))
        } else {
            let none = json!({ "signed_curve25519": 0, "signed_other": 1 });
            (none, json!([]))
        };
        assert_eq!(counts(device).await, expected);
    }
}

#[tokio::test]
async fn a_device_has_keys_of_a_few_algorithms() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let fallback = |n: usize, id: &str| json!({ "fallback_keys": { format!("signed_{n}:{id}"): key(&alice, id) } });
    let one_time = |n: usize, id: &str| json!({ "one_time_keys": { format!("signed_{n}:{id}"): key(&alice, id) } });
    for kind in [&fallback as &dyn Fn(usize, &str) -> Value, &one_time] {
        for n in 0..16 {
            upload(&alice, kind(n, "A")).await;
        }
        for body in [kind(16, "A"), kind(17, "A")] {
            alice
                .post("/keys/upload", body)
                .await
                .fails(400, "M_INVALID_PARAM");
        }
        upload(&alice, kind(15, "B")).await;
    }
    let (counts, unused) = counts(&alice).await;
    // One that every device is told of stands beside them.
    assert_eq!(counts.as_object().unwrap().len(), 17);
    assert_eq!(unused.as_array().unwrap().len(), 16);
    // Nor do many requests at the same moment bring more.
    let bob = server.register("bob").await;
    let uploads = (0..24).map(|n| {
        let body = json!({
            "one_time_keys": { format!("signed_{n}:A"): key(&bob, "A") },
            "fallback_keys": { format!("signed_{n}:A"): key(&bob, "A") },
        });
        bob.post("/keys/upload", body)
    });
    let taken = join_all(uploads).await;
    let taken = taken.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(taken, 16);
    let all: serde_json::Map<String, Value> = (0..17)
        .map(|n| (format!("signed_{n}:A"), key(&alice, "A")))
        .collect();
    let carol = server.register("carol").await;
    carol
        .post("/keys/upload", json!({ "one_time_keys": all }))
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn keys_that_were_handed_out_stay_so_after_a_restart() {
    let server = TestServer::start().await;
    let (alice, bob, first) = {
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        upload(&bob, json!({ "one_time_keys": one_time_keys(&bob, 0..3) })).await;
        let (first, _) = claim(&alice, (&bob.id, &bob.device_id)).await.unwrap();
        let plain = |user: User<'_>| (user.id, user.token, user.device_id);
        (plain(alice), plain(bob), first)
    };
    let server = server.restart().await;
    let [alice, bob] = [alice, bob].map(|(id, token, device_id)| User {
        server: &server,
        id,
        token,
        device_id,
    });
    let of_bob = (bob.id.as_str(), bob.device_id.as_str());
    let (second, _) = claim(&alice, of_bob).await.unwrap();
    assert_eq!(first, "signed_curve25519:K00000");
    assert_eq!(second, "signed_curve25519:K00001");
    let body = json!({ "one_time_keys": { first: key(&bob, "another") } });
    bob.post("/keys/upload", body)
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn keys_go_with_their_device() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let more = json!({ "device_id": "TABLET" });
    let tablet = User::new(
        &server,
        &server.login("bob", PASSWORD, more.clone()).await.ok(),
    );
    let body = json!({
        "one_time_keys": one_time_keys(&tablet, 0..3),
        "fallback_keys": { "signed_curve25519:F": key(&tablet, "fallback") },
    });
    upload(&tablet, body).await;
    assert!(claim(&alice, (&bob.id, "TABLET")).await.is_some());
    tablet.post("/logout", json!({})).await.ok();
    assert!(claim(&alice, (&bob.id, "TABLET")).await.is_none());
    let tablet = User::new(&server, &server.login("bob", PASSWORD, more).await.ok());
    assert!(claim(&alice, (&bob.id, "TABLET")).await.is_none());
    // What one device has used is free for another of the same name.
    let body = json!({ "one_time_keys": { "signed_curve25519:K00000": key(&tablet, "new") } });
    upload(&tablet, body).await;
    assert_eq!(
        claim(&alice, (&bob.id, "TABLET")).await.unwrap().1,
        key(&tablet, "new")
    );
}

/// Whoever has lost their keys signs in on the same device, makes new ones and counts from the start again.
#[tokio::test]
async fn a_device_that_begins_anew_keeps_nothing_of_its_old_keys() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let of_bob = (bob.id.as_str(), bob.device_id.as_str());
    let mut keys = device_keys(&bob);
    let body = json!({
        "device_keys": keys,
        "one_time_keys": one_time_keys(&bob, 0..3),
        "fallback_keys": { "signed_curve25519:F": key(&bob, "fallback") },
    });
    upload(&bob, body).await;
    let (first, old) = claim(&alice, of_bob).await.unwrap();
    assert_eq!(old, key(&bob, "key0"));
    // The same keys with something more to say of them are no others.
    keys["algorithms"] = json!(["m.olm.v1.curve25519-aes-sha2"]);
    upload(&bob, json!({ "device_keys": keys })).await;
    assert_eq!(counts(&bob).await.0, json!({ "signed_curve25519": 2 }));

    let name = format!("curve25519:{}", bob.device_id);
    keys["keys"][name] = json!(public_key("other"));
    let body = json!({
        "device_keys": keys, "one_time_keys": { &first: key(&bob, "new") },
    });
    let left = upload(&bob, body).await;
    let one = json!({ "signed_curve25519": 1 });
    assert_eq!(left["one_time_key_counts"], one);
    assert_eq!(counts(&bob).await.0, one);
    assert_eq!(claim(&alice, of_bob).await, Some((first, key(&bob, "new"))));
    assert_eq!(claim(&alice, of_bob).await, None, "nor the fallback key");
}

#[tokio::test]
async fn a_quiet_sync_asks_the_database_nothing_about_keys() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    upload(&bob, json!({ "one_time_keys": one_time_keys(&bob, 0..3) })).await;
    let mut since = String::new();
    let mut sync = async |expected: u64| {
        let before = server.app.db.statistics().reads;
        let sync = bob.sync(&since).await;
        let reads = server.app.db.statistics().reads - before;
        since = format!("since={}", sync["next_batch"].as_str().unwrap());
        let left = sync["device_one_time_keys_count"]["signed_curve25519"].as_u64();
        assert_eq!(left, Some(expected));
        reads
    };
    sync(3).await;
    assert_eq!(sync(3).await, 0);
    claim(&alice, (&bob.id, &bob.device_id)).await.unwrap();
    assert_eq!(sync(2).await, 1);
    assert_eq!(sync(2).await, 0);
}
