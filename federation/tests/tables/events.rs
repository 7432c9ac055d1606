use std::collections::BTreeMap;

use homing_federation::{Draft, Error, Pdu, draft::MAX_DEPTH, room_version};
use ruma::{
    CanonicalJsonObject, RoomVersionId, event_id, owned_event_id,
    serde::Base64,
    server_name,
    signatures::{PublicKeyMap, Verified, hash_and_sign_event, reference_hash, verify_event},
};
use serde_json::{Value, json};

use crate::{draft, object, spec_key};

type Edit = fn(&mut Draft);
type Resize = fn(&mut Draft, usize);

fn sign(draft: Draft, version: &RoomVersionId) -> Result<Pdu, Error> {
    let rules = room_version::rules(version).unwrap();
    draft.sign(rules, server_name!("domain"), &spec_key())
}

/// Drafts of which each is special in some version: where `redacts` stands, what redaction keeps.
fn drafts(version: &RoomVersionId) -> Vec<Draft> {
    let mut redaction = draft("m.room.redaction", json!({"reason": "spam"}));
    redaction.redacts = Some(owned_event_id!("$spam"));
    let state = |event_type: &str, key: &str, content: Value| {
        let mut draft = draft(event_type, content);
        draft.state_key = Some(key.to_owned());
        draft
    };
    let mut create = state(
        "m.room.create",
        "",
        json!({"creator": "@a:domain", "room_version": version.as_str(), "m.federate": false}),
    );
    create.prev_events.clear();
    create.auth_events.clear();
    if *version == RoomVersionId::V12 {
        create.room_id = None;
    }
    vec![
        redaction,
        create,
        draft(
            "m.room.message",
            json!({"body": "Grüße \u{1}\n\"\\ \u{1F600}", "n": [1, -2, null]}),
        ),
        draft("X", json!({})),
        state(
            "m.room.aliases",
            "domain",
            json!({"aliases": ["#a:domain"]}),
        ),
        state(
            "m.room.member",
            "@b:domain",
            json!({
                "membership": "invite",
                "displayname": "B",
                "join_authorised_via_users_server": "@a:domain",
                "third_party_invite": {"display_name": "b", "signed": {"token": "t"}},
            }),
        ),
        state(
            "m.room.join_rules",
            "",
            json!({"join_rule": "restricted", "allow": []}),
        ),
        state(
            "m.room.power_levels",
            "",
            json!({"invite": 50, "users": {}, "notifications": {}}),
        ),
        state(
            "m.room.history_visibility",
            "",
            json!({"history_visibility": "shared", "x": 1}),
        ),
        state(
            "org.example.\u{e9}",
            "k\"\\",
            json!({"z": {"b": 1, "a": 2}}),
        ),
    ]
}

/// Every event that is made here is the one that ruma makes of the same JSON, and verifies.
#[test]
fn drafts_are_signed_as_ruma_signs_them() {
    let public_key = Base64::parse(spec_key().public_key()).unwrap();
    let keys: PublicKeyMap = BTreeMap::from([(
        "domain".to_owned(),
        BTreeMap::from([("ed25519:1".to_owned(), public_key)]),
    )]);
    for version in 3..=12 {
        let version = RoomVersionId::try_from(version.to_string()).unwrap();
        let rules = room_version::rules(&version).unwrap();
        for draft in drafts(&version) {
            let what = format!("{} in version {version}", draft.event_type);
            let pdu = sign(draft, &version).unwrap();
            let made: CanonicalJsonObject = serde_json::from_str(&pdu.json).unwrap();
            assert_eq!(
                serde_json::to_string(&made).unwrap(),
                *pdu.json,
                "{what} is canonical"
            );

            let mut expected = made.clone();
            expected.remove("hashes");
            expected.remove("signatures");
            hash_and_sign_event("domain", &spec_key(), &mut expected, &rules.redaction).unwrap();
            assert_eq!(made, expected, "{what}");
            let hash = reference_hash(&made, rules).unwrap();
            assert_eq!(pdu.event_id.as_str(), format!("${hash}"), "{what}");
            let verified = verify_event(&keys, &made, rules).unwrap();
            assert_eq!(verified, Verified::All, "{what}");
        }
    }
}

/// What is stored reads back as what was signed, field by field.
#[test]
fn stored_events_read_back() {
    for version in room_version::creatable() {
        let rules = room_version::rules(&version).unwrap();
        for draft in drafts(&version) {
            let made = sign(draft, &version).unwrap();
            let read =
                Pdu::from_canonical(made.event_id.clone(), made.json.clone(), rules).unwrap();
            assert_eq!(read.event_id, made.event_id);
            assert_eq!(read.room_id, made.room_id);
            assert_eq!(read.sender, made.sender);
            assert_eq!(read.event_type, made.event_type);
            assert_eq!(read.kind, made.kind);
            assert_eq!(read.state_key, made.state_key);
            assert_eq!(read.content.get(), made.content.get());
            assert_eq!(read.origin_server_ts, made.origin_server_ts);
            assert_eq!(read.depth, made.depth);
            assert_eq!(read.prev_events, made.prev_events);
            assert_eq!(read.auth_events, made.auth_events);
            assert_eq!(read.redacts, made.redacts);
            assert_eq!(read.rejected, made.rejected);
            assert_eq!(read.json, made.json);
        }
    }
}

/// The event ids of versions 3 and 4 are the same hash in two alphabets.
#[test]
fn alphabets_of_event_ids() {
    let mut differ = 0;
    for n in 0..20 {
        let id = |version| {
            sign(draft("X", json!({"n": n})), &version)
                .unwrap()
                .event_id
        };
        let (v3, v4) = (id(RoomVersionId::V3), id(RoomVersionId::V4));
        assert_eq!(v3.as_str().replace('+', "-").replace('/', "_"), v4.as_str());
        differ += u8::from(v3 != v4);
    }
    assert_ne!(differ, 0);
}

/// A fixed event, whose hash, signature and id were computed by another program.
#[test]
fn event_ids_do_not_change() {
    let mut minimal = draft("X", json!({}));
    minimal.prev_events.clear();
    minimal.auth_events.clear();
    let pdu = sign(minimal, &RoomVersionId::V6).unwrap();
    assert_eq!(
        *pdu.json,
        *r#"{"auth_events":[],"content":{},"depth":3,"hashes":{"sha256":"GA3VT6H/fLyYY/LiF5MPRhuUsd7dZtjSaVROjgJXGFk"},"origin_server_ts":1000000,"prev_events":[],"room_id":"!x:domain","sender":"@a:domain","signatures":{"domain":{"ed25519:1":"QezHQ+5+lzNfNGZDh0C4rfMEZMkEDHaiMqdqbm+ApjMOtOryupOvwzqkgPHQ2LVztoVtNp3IA03pvWzcn4CuCQ"}},"type":"X"}"#
    );
    assert_eq!(pdu.event_id, "$9xEvTFx3q4M-28paGI40DUQbyDrMNKfeCkOT-3h4Jv8");
}

#[test]
fn create_events_of_version_12_make_the_room_id() {
    let rules = room_version::rules(&RoomVersionId::V12).unwrap();
    let create = sign(drafts(&RoomVersionId::V12).remove(1), &RoomVersionId::V12).unwrap();
    assert_eq!(create.room_id.strip_sigil(), &create.event_id.as_str()[1..]);
    assert!(!create.json.contains("room_id"));
    // Read back, it has the room id again; under another version's rules it is malformed.
    let read = Pdu::from_canonical(create.event_id.clone(), create.json.clone(), rules).unwrap();
    assert_eq!(read.room_id, create.room_id);
    let v11 = room_version::rules(&RoomVersionId::V11).unwrap();
    let error = Pdu::from_canonical(create.event_id.clone(), create.json.clone(), v11).unwrap_err();
    assert!(matches!(error, Error::BadEvent(_)), "{error}");

    // No later event may name it as an auth event.
    let mut later = draft("X", json!({}));
    later.room_id = Some(create.room_id.clone());
    assert!(sign(later.clone(), &RoomVersionId::V12).is_ok());
    later.auth_events.push(create.event_id.clone());
    let error = sign(later, &RoomVersionId::V12).unwrap_err();
    assert!(matches!(error, Error::BadEvent(_)), "{error}");
}

#[test]
fn redacts_stands_where_the_version_has_it() {
    for version in room_version::creatable() {
        let pdu = sign(drafts(&version).remove(0), &version).unwrap();
        let json: Value = serde_json::from_str(&pdu.json).unwrap();
        let in_content = matches!(version, RoomVersionId::V11 | RoomVersionId::V12);
        assert_eq!(json["redacts"].is_string(), !in_content, "{version}");
        assert_eq!(
            json["content"]["redacts"].is_string(),
            in_content,
            "{version}"
        );
        assert_eq!(
            pdu.redacts.as_deref(),
            Some(event_id!("$spam")),
            "{version}"
        );
    }
}

/// Values of `redacts` that redact nothing, and must not make the event unreadable.
#[test]
fn odd_redacts_redact_nothing() {
    let table = [
        ("m.room.redaction", json!({"redacts": 7})),
        ("m.room.redaction", json!({"redacts": "no event id"})),
        ("m.room.redaction", json!({})),
        ("m.room.message", json!({"redacts": "$spam"})),
    ];
    for (event_type, content) in table {
        let pdu = sign(draft(event_type, content), &RoomVersionId::V11).unwrap();
        let rules = room_version::rules(&RoomVersionId::V11).unwrap();
        let read = Pdu::from_canonical(pdu.event_id, pdu.json, rules).unwrap();
        assert_eq!(read.redacts, None, "{}", read.json);
    }
}

#[test]
fn sizes_are_limited() {
    let largest = {
        let empty = sign(draft("X", json!({"body": ""})), &RoomVersionId::V12).unwrap();
        65_535 - empty.json.len()
    };
    let body = |bytes: usize| draft("X", json!({"body": "x".repeat(bytes)}));
    let pdu = sign(body(largest), &RoomVersionId::V12).unwrap();
    assert_eq!(pdu.json.len(), 65_535);
    let error = sign(body(largest + 1), &RoomVersionId::V12).unwrap_err();
    assert!(
        matches!(
            error,
            Error::TooLarge {
                what: "event",
                bytes: 65_536,
                limit: 65_535
            }
        ),
        "{error}"
    );

    let fields: [(&str, Resize); 2] = [
        ("type", |draft, bytes| draft.event_type = "t".repeat(bytes)),
        // Bytes count, not characters.
        ("state_key", |draft, bytes| {
            draft.state_key = Some(format!(
                "{}{}",
                "é".repeat(bytes / 2),
                "k".repeat(bytes % 2)
            ));
        }),
    ];
    for (field, edit) in fields {
        let mut fits = draft("X", json!({}));
        edit(&mut fits, 255);
        sign(fits, &RoomVersionId::V12).unwrap();
        let mut over = draft("X", json!({}));
        edit(&mut over, 256);
        let error = sign(over, &RoomVersionId::V12).unwrap_err();
        assert!(
            matches!(error, Error::TooLarge { what, bytes: 256, limit: 255 } if what == field),
            "{field}: {error}"
        );
    }
}

#[test]
fn drafts_that_are_no_events() {
    let table: [(&str, Edit); 6] = [
        ("no room id", |draft| draft.room_id = None),
        ("redacts in a message", |draft| {
            draft.redacts = Some(owned_event_id!("$x"));
        }),
        ("negative depth", |draft| draft.depth = -1),
        ("prev_events", |draft| {
            draft.prev_events = vec![owned_event_id!("$x"); 21];
        }),
        ("auth_events", |draft| {
            draft.auth_events = vec![owned_event_id!("$x"); 11];
        }),
        ("create event with a room id", |draft| {
            draft.event_type = "m.room.create".to_owned();
        }),
    ];
    for (what, edit) in table {
        let mut draft = draft("X", json!({}));
        edit(&mut draft);
        let error = sign(draft, &RoomVersionId::V12).unwrap_err();
        assert!(matches!(error, Error::BadEvent(_)), "{what}: {error}");
    }
    for (event_type, state_key) in [("a\0", ""), ("a", "\0")] {
        let mut draft = draft(event_type, json!({}));
        draft.state_key = Some(state_key.to_owned());
        let error = sign(draft, &RoomVersionId::V12).unwrap_err();
        assert!(matches!(error, Error::BadJson(_)), "{error}");
    }
}

#[test]
fn depth_stops_at_the_greatest_integer() {
    let mut deep = draft("X", json!({}));
    deep.depth = MAX_DEPTH + 1;
    let pdu = sign(deep, &RoomVersionId::V12).unwrap();
    assert_eq!(pdu.depth, 9_007_199_254_740_991);
    assert!(pdu.json.contains("\"depth\":9007199254740991"));
}

#[test]
fn malformed_stored_events_are_errors() {
    let good = sign(draft("X", json!({})), &RoomVersionId::V11).unwrap();
    let good: CanonicalJsonObject = serde_json::from_str(&good.json).unwrap();
    let rules = room_version::rules(&RoomVersionId::V11).unwrap();
    for field in [
        "auth_events",
        "content",
        "depth",
        "prev_events",
        "room_id",
        "sender",
        "type",
    ] {
        for bad in [None, Some(json!(null)), Some(json!(true))] {
            // Any JSON will do as content here; what it has to be is for its reader to say.
            if field == "content" && bad.is_some() {
                continue;
            }
            let mut event = good.clone();
            event.remove(field);
            if let Some(bad) = &bad {
                event.append(&mut object(json!({ field: bad })));
            }
            let json = serde_json::to_string(&event).unwrap();
            let error = Pdu::from_canonical(owned_event_id!("$x"), json, rules).unwrap_err();
            assert!(
                matches!(error, Error::BadEvent(_)),
                "{field} = {bad:?}: {error}"
            );
        }
    }
}

/// Logs show which event it is, not what people wrote.
#[test]
fn debug_hides_the_content() {
    let pdu = sign(draft("X", json!({"body": "secret"})), &RoomVersionId::V12).unwrap();
    let debug = format!("{pdu:?}");
    assert!(debug.contains(pdu.event_id.as_str()), "{debug}");
    assert!(!debug.contains("secret"), "{debug}");
}

/// Not a test of speed, but the place to measure it:
/// `cargo test -p homing-federation --release -- --ignored --nocapture speed`.
#[test]
#[ignore = "prints timings"]
fn speed() {
    let rules = room_version::rules(&RoomVersionId::V12).unwrap();
    let key = spec_key();
    let message = draft(
        "m.room.message",
        json!({"body": "x".repeat(500), "msgtype": "m.text"}),
    );
    let rounds = 1_000;
    let start = std::time::Instant::now();
    for _ in 0..rounds {
        let pdu = message
            .clone()
            .sign(rules, server_name!("domain"), &key)
            .unwrap();
        std::hint::black_box(pdu);
    }
    println!("sign: {:?}", start.elapsed() / rounds);
    let pdu = message.sign(rules, server_name!("domain"), &key).unwrap();
    let start = std::time::Instant::now();
    for _ in 0..rounds {
        let read = Pdu::from_canonical(pdu.event_id.clone(), pdu.json.clone(), rules).unwrap();
        std::hint::black_box(read);
    }
    println!("from_canonical: {:?}", start.elapsed() / rounds);
}
