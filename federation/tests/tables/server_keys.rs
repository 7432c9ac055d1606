//! Documents of keys.

use homing_federation::{
    Error, SigningKey,
    server_keys::{KeyDocument, OwnKeys},
};
use ruma::{ServerName, server_name};
use serde_json::{Value, json};

const NOW: i64 = 1_700_000_000_000;

/// What makes a good document a bad one.
type Change = fn(&mut Value);

fn name() -> &'static ServerName {
    server_name!("a.example")
}

fn key(version: &str, seed: &str) -> String {
    // 32 bytes are 43 letters.
    format!("ed25519 {version} {}", seed.repeat(43))
}

fn own() -> OwnKeys {
    let old = key("old", "E");
    OwnKeys::parse(&format!(
        "# keys\n{}\n\n{}\n{old} 1234\n",
        key("a", "A"),
        key("b", "I")
    ))
    .unwrap()
}

/// A document as a server would sign it after `change` has changed it.
fn document(change: impl FnOnce(&mut Value), signers: &[&SigningKey]) -> Vec<u8> {
    let own = own();
    let text = own.document(name(), NOW).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    json.as_object_mut().unwrap().remove("signatures");
    change(&mut json);
    let mut object = serde_json::from_value(json).unwrap();
    for signer in signers {
        signer.sign_json(name(), &mut object).unwrap();
    }
    serde_json::to_vec(&object).unwrap()
}

#[test]
fn own_keys_are_published_as_others_read_them() {
    let own = own();
    let ids: Vec<_> = own.signing.iter().map(|key| key.id()).collect();
    assert_eq!(ids, ["ed25519:a", "ed25519:b"]);
    let text = own.document(name(), NOW).unwrap();
    let read = KeyDocument::parse(text.as_bytes(), name()).unwrap();
    assert_eq!(&*read.json, text);
    assert_eq!(read.valid_until, NOW + 24 * 60 * 60 * 1000);
    assert_eq!(read.verify_keys.len(), 2);
    assert_eq!(read.verify_keys["ed25519:b"], own.signing[1].verify_key());
    assert_eq!(read.old_verify_keys.len(), 1);
    let (old, expired) = &read.old_verify_keys["ed25519:old"];
    assert_eq!(*expired, 1234);
    assert_eq!(
        own.verify_key("ed25519:old"),
        Some((old.clone(), Some(1234)))
    );
    assert_eq!(own.verify_key("ed25519:c"), None);
    assert_eq!(read.signers(name()).len(), 2);

    let notary = server_name!("n.example");
    let by = SigningKey::generate(&mut rand::rng());
    assert!(!read.is_signed_by(notary, by.id(), &by.verify_key()));
    let countersigned = read.countersigned(notary, &by).unwrap();
    let read = KeyDocument::parse(countersigned.as_bytes(), name()).unwrap();
    assert!(read.is_signed_by(notary, by.id(), &by.verify_key()));
    assert!(!read.is_signed_by(notary, by.id(), &own.signing[0].verify_key()));
    assert_eq!(read.signers(notary), [by.id().into()]);
}

#[test]
fn files_of_keys_are_checked() {
    for text in [
        String::new(),
        "# nothing".to_owned(),
        "ed25519 a".to_owned(),
        "rsa a AAAA".to_owned(),
        format!("{} 1234", key("a", "A")),
        format!("{}\n{} soon", key("a", "A"), key("b", "A")),
        format!("{}\n{} -1", key("a", "A"), key("b", "A")),
        format!("{}\n{}", key("a", "A"), key("a", "I")),
        format!("{} 1 2", key("a", "A")),
    ] {
        let read = OwnKeys::parse(&text);
        assert!(matches!(read, Err(Error::BadKey(_))), "{text}: {read:?}");
    }
}

#[test]
fn documents_are_the_servers_own_word() {
    let own = own();
    let (a, b) = (&*own.signing[0], &*own.signing[1]);
    let stranger = SigningKey::generate(&mut rand::rng());
    let parse = |document: &[u8]| KeyDocument::parse(document, name());
    let same = |_: &mut Value| {};
    parse(&document(same, &[a])).unwrap();
    parse(&document(same, &[a, &stranger])).unwrap();
    parse(&document(
        |json| drop(json.as_object_mut().unwrap().remove("old_verify_keys")),
        &[a],
    ))
    .unwrap();
    let with_others = document(
        |json| json["verify_keys"]["curve:x"] = json!({ "key": 1 }),
        &[a],
    );
    assert_eq!(parse(&with_others).unwrap().verify_keys.len(), 2);

    let mut cases: Vec<(&str, Vec<u8>)> = vec![
        ("not signed", document(same, &[])),
        ("signed by a stranger", document(same, &[&stranger])),
        ("not JSON", b"{".to_vec()),
        ("a list", b"[]".to_vec()),
    ];
    let changed = String::from_utf8(document(same, &[a, b])).unwrap();
    cases.push((
        "changed later",
        changed.replace("1234", "1235").into_bytes(),
    ));
    let wrong = format!("\"ed25519:b\":\"{}\"", "A".repeat(86));
    let mut json: Value = serde_json::from_str(&changed).unwrap();
    json["signatures"]["a.example"]["ed25519:b"] = json!("A".repeat(86));
    assert!(json.to_string().contains(&wrong));
    cases.push(("one of two is wrong", json.to_string().into_bytes()));
    let changes: [(&str, Change); 9] = [
        ("another server", |json| {
            json["server_name"] = json!("b.example");
        }),
        ("no server", |json| json["server_name"] = json!(null)),
        ("no time", |json| json["valid_until_ts"] = json!("soon")),
        ("no keys", |json| json["verify_keys"] = json!([])),
        ("a key that is none", |json| {
            json["verify_keys"]["ed25519:x"] = json!({ "key": "AAAA" });
        }),
        ("a key that is no text", |json| {
            json["verify_keys"]["ed25519:x"] = json!({ "key": 1 });
        }),
        ("old without a time", |json| {
            json["old_verify_keys"]["ed25519:x"] = json!({ "key": "A".repeat(43) });
        }),
        ("too many", |json| {
            for number in 0..100 {
                let entry = json!({ "key": "A".repeat(43) });
                json["verify_keys"][format!("ed25519:{number}")] = entry;
            }
        }),
        ("too large", |json| json["x"] = json!("x".repeat(70_000))),
    ];
    for (what, change) in changes {
        cases.push((what, document(change, &[a])));
    }
    for (what, document) in cases {
        assert!(parse(&document).is_err(), "{what}");
    }
}
