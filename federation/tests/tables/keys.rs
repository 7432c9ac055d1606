use homing_federation::{Error, SigningKey};
use rand::{SeedableRng, rngs::StdRng};
use ruma::{RoomVersionId, server_name, signatures::hash_and_sign_event};
use serde_json::{Value, json};

use crate::{object, spec_key};

/// The vectors of <https://spec.matrix.org/v1.19/appendices/#cryptographic-test-vectors>.
#[test]
fn json_signatures_of_the_specification() {
    let table = [
        (
            json!({}),
            "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ",
        ),
        (
            json!({"one": 1, "two": "Two"}),
            "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
        ),
    ];
    for (plain, signature) in table {
        let mut signed = object(plain);
        spec_key()
            .sign_json(server_name!("domain"), &mut signed)
            .unwrap();
        let signed: Value = serde_json::to_value(&signed).unwrap();
        assert_eq!(signed["signatures"]["domain"]["ed25519:1"], signature);
    }
}

/// The specification's signed events have fields that a draft does not write (`origin`), so only
/// the key is under test here; drafts are compared with ruma's signing in `events.rs`.
#[test]
fn event_signatures_of_the_specification() {
    let rules = RoomVersionId::V1.rules().unwrap();
    let table = [
        (
            json!({
                "room_id": "!x:domain", "sender": "@a:domain", "origin": "domain",
                "origin_server_ts": 1_000_000, "signatures": {}, "hashes": {}, "type": "X",
                "content": {}, "prev_events": [], "auth_events": [], "depth": 3,
                "unsigned": {"age_ts": 1_000_000},
            }),
            "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos",
            "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg",
        ),
        (
            json!({
                "content": {"body": "Here is the message content"}, "event_id": "$0:domain",
                "origin": "domain", "origin_server_ts": 1_000_000, "type": "m.room.message",
                "room_id": "!r:domain", "sender": "@u:domain", "signatures": {},
                "unsigned": {"age_ts": 1_000_000},
            }),
            "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g",
            "Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA",
        ),
    ];
    for (plain, hash, signature) in table {
        let mut signed = object(plain);
        hash_and_sign_event("domain", &spec_key(), &mut signed, &rules.redaction).unwrap();
        let signed = serde_json::to_value(&signed).unwrap();
        assert_eq!(signed["hashes"]["sha256"], hash);
        assert_eq!(signed["signatures"]["domain"]["ed25519:1"], signature);
    }
}

#[test]
fn key_files() {
    let text = "ed25519 a_AbCd YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n\
                \n\
                ed25519 old YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1=\r\n";
    let keys = SigningKey::parse_file(text).unwrap();
    let ids: Vec<&str> = keys.iter().map(SigningKey::id).collect();
    assert_eq!(ids, ["ed25519:a_AbCd", "ed25519:old"]);
    assert_eq!(keys[0].version(), "a_AbCd");
    assert_eq!(
        keys[0].public_key(),
        "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI"
    );
    assert_eq!(keys[0].public_key(), keys[1].public_key());
}

#[test]
fn bad_key_files() {
    let seed = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1";
    let table = [
        ("", "no key"),
        ("\n\n", "no key"),
        ("ed25519 a_AbCd", "line 1"),
        (&format!("ed25519 a_AbCd {seed} more"), "line 1"),
        (&format!("\nrsa a_AbCd {seed}"), "line 2: the algorithm"),
        (&format!("ed25519 a:b {seed}"), "version"),
        ("ed25519 a_AbCd YJDBA9Xnr2sVqXD9Vj7XVQ", "32 bytes"),
        ("ed25519 a_AbCd !!!", "base64"),
    ];
    for (text, reason) in table {
        let error = SigningKey::parse_file(text).unwrap_err();
        assert!(matches!(error, Error::BadKey(_)), "{text}: {error}");
        assert!(error.to_string().contains(reason), "{text}: {error}");
        assert!(!error.to_string().contains("YJDB"), "{error}");
    }
}

#[test]
fn generated_keys() {
    let mut rng = StdRng::seed_from_u64(1);
    let key = SigningKey::generate(&mut rng);
    let other = SigningKey::generate(&mut rng);
    assert_ne!(key.public_key(), other.public_key());
    assert_eq!(key.version().len(), 6);
    assert!(key.version().starts_with("a_"));

    let read = SigningKey::parse_file(&key.to_file_line())
        .unwrap()
        .remove(0);
    assert_eq!(read.id(), key.id());
    assert_eq!(read.sign_bytes(b"x"), key.sign_bytes(b"x"));

    let secret = key.to_file_line();
    let seed = secret.trim().rsplit(' ').next().unwrap();
    let debug = format!("{key:?} {key:#?}");
    assert!(debug.contains(key.id()), "{debug}");
    assert!(!debug.contains(seed), "{debug}");
}
