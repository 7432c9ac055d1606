//! Events from other servers: what is read, what is refused, and whose signatures count.

use std::fmt::Write as _;

use homing_federation::{
    Error, Pdu, SigningKey, Unverified, VerifyKey,
    received::{
        MAX_RECEIVED_BYTES, MAX_TEXT_BYTES, add_signature, is_signed_by, room_id_of, sign_received,
    },
    redact, room_version,
};
use ruma::{
    CanonicalJsonObject, RoomVersionId, ServerName, room_version_rules::RoomVersionRules,
    server_name, signatures::hash_and_sign_event,
};
use serde_json::{Value, json};

use crate::{object, spec_key};

const ID: &str = "$31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM";
const ROOM_12: &str = "!41hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM";

fn rules(version: &str) -> &'static RoomVersionRules {
    room_version::rules(&RoomVersionId::try_from(version).unwrap()).unwrap()
}

/// A key of another server than `domain`.
fn other_key() -> SigningKey {
    let file = "ed25519 x AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n";
    SigningKey::parse_file(file).unwrap().remove(0)
}

/// Both servers of these tests have published their key.
fn known(server: &ServerName, key_id: &str) -> Option<VerifyKey> {
    match (server.as_str(), key_id) {
        ("domain", "ed25519:1") => Some(spec_key().verify_key()),
        ("other", "ed25519:x") => Some(other_key().verify_key()),
        _ => None,
    }
}

fn nobody(_: &ServerName, _: &str) -> Option<VerifyKey> {
    None
}

fn event(version: &str) -> Value {
    json!({
        "type": "m.room.message",
        "room_id": if version == "12" { ROOM_12 } else { "!x:domain" },
        "sender": "@a:domain",
        "content": {"body": "é", "msgtype": "m.text"},
        "origin_server_ts": 1_000_000,
        "depth": 3,
        "prev_events": [ID],
        "auth_events": [ID],
    })
}

fn member(content: Value, sender: &str, state_key: &str) -> Value {
    let mut event = event("11");
    event["type"] = json!("m.room.member");
    event["sender"] = json!(sender);
    event["state_key"] = json!(state_key);
    event["content"] = content;
    event
}

/// The event as its server sends it.
fn signed(event: Value, version: &str) -> CanonicalJsonObject {
    let mut event = object(event);
    let rules = rules(version);
    hash_and_sign_event("domain", &spec_key(), &mut event, &rules.redaction).unwrap();
    event
}

fn text(event: &CanonicalJsonObject) -> String {
    serde_json::to_string(event).unwrap()
}

fn receive(text: &str, version: &str) -> Result<Pdu, Error> {
    Unverified::parse(text, rules(version))?.verify(known)
}

#[test]
fn good_events_are_read_in_every_version() {
    for version in 3..=12 {
        let version = version.to_string();
        let mut sent = event(&version);
        if version == "3" {
            // The ids of version 3 have another alphabet.
            sent["prev_events"] = json!(["$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk"]);
            sent["auth_events"] = json!([]);
        }
        let sent = signed(sent, &version);
        let rules = rules(&version);
        // What stands under the id and the unsigned data is the sender's word, and is dropped.
        let mut wire: Value = serde_json::from_str(&text(&sent)).unwrap();
        wire["unsigned"] = json!({"age": 5});
        wire["event_id"] = json!("$wrong");
        let received = Unverified::parse(&serde_json::to_string_pretty(&wire).unwrap(), rules);
        let received = received.unwrap();
        assert!(received.intact);
        let signers = received.signers();
        assert_eq!(signers.len(), 1);
        assert_eq!(signers[0].server, "domain");
        assert_eq!(signers[0].key_ids().collect::<Vec<_>>(), ["ed25519:1"]);

        let pdu = received.verify(known).unwrap();
        assert_eq!(*pdu.json, *text(&sent));
        let hash = ruma::signatures::reference_hash(&sent, rules).unwrap();
        assert_eq!(pdu.event_id.as_str(), format!("${hash}"));
        let stored = Pdu::from_canonical(pdu.event_id.clone(), pdu.json.clone(), rules).unwrap();
        assert_eq!(stored.content.get(), pdu.content.get());
        assert_eq!(room_id_of(&pdu.json).unwrap(), pdu.room_id);
    }
}

#[test]
fn a_wrong_hash_leaves_the_redacted_form() {
    let mut sent = signed(event("11"), "11");
    let whole = receive(&text(&sent), "11").unwrap();
    sent.append(&mut object(
        json!({"content": {"body": "forged"}, "extra": 1}),
    ));
    let received = Unverified::parse(&text(&sent), rules("11")).unwrap();
    assert!(!received.intact);
    let pdu = received.verify(known).unwrap();
    assert_eq!(pdu.json, redact(&whole, rules("11")).unwrap().json);
    assert_eq!(pdu.content.get(), "{}");
    assert_eq!(pdu.event_id, whole.event_id);
    // A redacted copy is read as such.
    let again = receive(&pdu.json, "11").unwrap();
    assert_eq!(
        (again.json, again.event_id),
        (pdu.json, whole.event_id.clone())
    );
    // What redaction keeps is signed.
    let mut sent = signed(event("11"), "11");
    sent.append(&mut object(json!({"depth": 4})));
    let error = receive(&text(&sent), "11").unwrap_err();
    assert!(matches!(error, Error::BadSignature { .. }), "{error}");
}

#[test]
fn prev_events_are_read_once_each() {
    let mut sent = event("11");
    sent["prev_events"] = json!([ID, ID]);
    let pdu = receive(&text(&signed(sent, "11")), "11").unwrap();
    assert_eq!(pdu.prev_events.len(), 1);
}

/// What is no event: the field, the value to set (or to remove, if null), and the version.
#[test]
fn malformed_events_are_refused() {
    let long = "x".repeat(256);
    let ids = |count: usize| Value::from(vec![ID; count]);
    let table = [
        ("type", json!(null), "11"),
        ("type", json!(1), "11"),
        ("type", json!("a\0"), "11"),
        ("state_key", json!(1), "11"),
        ("state_key", json!("\0"), "11"),
        ("sender", json!(null), "11"),
        ("sender", json!("a"), "11"),
        ("sender", json!("@a"), "11"),
        ("sender", json!("@a:"), "11"),
        ("sender", json!("@a\0:domain"), "11"),
        ("room_id", json!(null), "11"),
        ("room_id", json!(7), "11"),
        ("room_id", json!("x:domain"), "11"),
        ("room_id", json!("!x"), "11"),
        ("room_id", json!("!x:domain"), "12"),
        ("room_id", json!(format!("!{}", &ID[1..])), "12"),
        ("content", json!(null), "11"),
        ("content", json!([]), "11"),
        ("depth", json!(null), "11"),
        ("depth", json!("1"), "11"),
        ("depth", json!(-1), "11"),
        ("origin_server_ts", json!(null), "11"),
        ("origin_server_ts", json!(-1), "11"),
        ("prev_events", json!(null), "11"),
        ("prev_events", json!({}), "11"),
        ("prev_events", json!([1]), "11"),
        ("prev_events", json!([[ID, {"sha256": "x"}]]), "11"),
        ("prev_events", json!(["$x"]), "11"),
        ("prev_events", json!(["$x:domain"]), "11"),
        (
            "prev_events",
            json!(["$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk"]),
            "11",
        ),
        ("prev_events", json!([ID]), "3"),
        ("prev_events", ids(21), "11"),
        ("auth_events", json!(null), "11"),
        ("auth_events", ids(11), "11"),
        ("hashes", json!(null), "11"),
        ("hashes", json!({}), "11"),
        ("hashes", json!({"sha256": 1}), "11"),
        ("signatures", json!(null), "11"),
        ("signatures", json!({"other": 1}), "11"),
        ("signatures", json!({"other": {"ed25519:x": 1}}), "11"),
    ];
    for (field, value, version) in table {
        let mut sent = signed(event(version), version);
        if version == "3" {
            sent.append(&mut object(json!({"prev_events": [], "auth_events": []})));
        }
        sent.remove(field);
        if !value.is_null() {
            sent.append(&mut object(json!({ field: value })));
        }
        let error = Unverified::parse(&text(&sent), rules(version)).unwrap_err();
        assert!(matches!(error, Error::BadEvent(_)), "{field}: {error}");
    }
    for (field, value) in [
        ("type", long.clone()),
        ("state_key", "é".repeat(128)),
        ("sender", format!("@{}:domain", &long[..248])),
        ("room_id", format!("!{}:domain", &long[..248])),
    ] {
        let mut sent = signed(event("11"), "11");
        sent.append(&mut object(json!({ field: value })));
        let error = Unverified::parse(&text(&sent), rules("11")).unwrap_err();
        let is_long = matches!(error, Error::TooLarge { what, bytes: 256, .. } if what == field);
        assert!(is_long, "{field}: {error}");
    }
}

#[test]
fn json_that_is_not_canonical_is_refused() {
    let with = |member: &str| {
        let sent = text(&signed(event("11"), "11"));
        format!("{{{member},{}", &sent[1..])
    };
    let deep = format!("\"x\":{}{}", "[".repeat(100), "]".repeat(100));
    for member in [
        "\"x\":1.0",
        "\"x\":1e3",
        "\"x\":-0",
        "\"x\":9007199254740992",
        "\"x\":-9007199254740992",
        "\"depth\":3",
        "\"x\":{\"y\":1,\"y\":1}",
        &deep,
    ] {
        let error = Unverified::parse(&with(member), rules("6")).unwrap_err();
        assert!(matches!(error, Error::BadJson(_)), "{member}: {error}");
    }
    for text in ["", "{", "{\"a\":\"\\ud800\"}", "{} {}"] {
        let error = Unverified::parse(text, rules("6")).unwrap_err();
        assert!(matches!(error, Error::NotJson(_)), "{text}: {error}");
    }
    for text in ["[]", "1", "null"] {
        for version in ["5", "6"] {
            let error = Unverified::parse(text, rules(version)).unwrap_err();
            assert!(matches!(error, Error::BadJson(_)), "{text}: {error}");
        }
    }
    // Before version 6 a key may occur twice, but numbers that cannot be carried are refused.
    let twice = Unverified::parse(&with("\"depth\":3"), rules("5")).unwrap();
    assert_eq!(twice.pdu.depth, 3);
    for member in ["\"x\":1.5", "\"x\":9007199254740992"] {
        let error = Unverified::parse(&with(member), rules("5")).unwrap_err();
        assert!(matches!(error, Error::BadJson(_)), "{member}: {error}");
    }
}

#[test]
fn the_whole_event_has_a_limit() {
    let of_size = |bytes: usize| {
        let mut sent = event("11");
        sent["content"]["body"] = json!("");
        let empty = text(&signed(sent.clone(), "11")).len();
        sent["content"]["body"] = json!("x".repeat(bytes - empty));
        text(&signed(sent, "11"))
    };
    let largest = of_size(MAX_RECEIVED_BYTES);
    assert_eq!(largest.len(), 65_536);
    let pdu = receive(&largest, "11").unwrap();
    assert_eq!(*pdu.json, *largest);
    // Neither white space nor what others add under `unsigned` counts.
    let spaced = format!(
        "{{ \"unsigned\": {{\"x\":\"{}\"}}, {}",
        "x".repeat(99),
        &largest[1..]
    );
    assert_eq!(*receive(&spaced, "11").unwrap().json, *largest);

    let error = receive(&of_size(MAX_RECEIVED_BYTES + 1), "11").unwrap_err();
    assert!(
        matches!(
            error,
            Error::TooLarge {
                what: "event",
                bytes: 65_537,
                limit: 65_536
            }
        ),
        "{error}"
    );
    let error = receive(&" ".repeat(MAX_TEXT_BYTES + 1), "11").unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    let error = room_id_of(&" ".repeat(MAX_TEXT_BYTES + 1)).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    // There is no room left for our signature.
    let error = sign_received(&pdu, rules("11"), server_name!("other"), &other_key()).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[test]
fn names_are_counted_in_characters_before_version_11() {
    for (version, name, is_good) in [
        ("10", "\u{1F4A5}".repeat(255), true),
        ("10", "\u{1F4A5}".repeat(256), false),
        ("11", "\u{1F4A5}".repeat(63), true),
        ("11", "\u{1F4A5}".repeat(64), false),
    ] {
        for field in ["type", "state_key"] {
            let mut sent = event(version);
            sent[field] = json!(name);
            let read = receive(&text(&signed(sent, version)), version);
            assert_eq!(read.is_ok(), is_good, "{version} {field} {read:?}");
        }
    }
}

#[test]
fn signatures_that_do_not_count() {
    let good = signed(event("11"), "11");
    let with = |signatures: Value| {
        let mut sent = good.clone();
        sent.append(&mut object(json!({ "signatures": signatures })));
        receive(&text(&sent), "11")
    };
    let value: Value = serde_json::from_str(&text(&good)).unwrap();
    let signature = value["signatures"]["domain"]["ed25519:1"].clone();
    with(json!({"domain": {"ed25519:1": signature}})).unwrap();
    // Others, other algorithms and keys that nobody knows are ignored.
    with(
        json!({"domain": {"ed25519:1": signature, "rsa:1": "x", "ed25519:unknown": "x"},
        "other": {"ed25519:x": "x"}}),
    )
    .unwrap();

    let missing = [
        json!({}),
        json!({"domain": {}}),
        json!({"domain": {"rsa:1": signature}}),
        json!({"other": {"ed25519:x": signature}}),
    ];
    for signatures in missing {
        let error = with(signatures.clone()).unwrap_err();
        assert!(
            matches!(&error, Error::BadSignature { server, .. } if server == "domain"),
            "{signatures}: {error}"
        );
    }
    let unknown = with(json!({"domain": {"ed25519:unknown": signature}})).unwrap_err();
    assert!(matches!(&unknown, Error::NoKey { server } if server == "domain"));

    let right = signature.as_str().unwrap();
    let mut flipped = right.to_owned();
    let first = if right.starts_with('A') { "B" } else { "A" };
    flipped.replace_range(..1, first);
    for wrong in ["", "*", &right[..40], &flipped] {
        let error = with(json!({"domain": {"ed25519:1": wrong}})).unwrap_err();
        assert!(
            matches!(error, Error::BadSignature { .. }),
            "{wrong}: {error}"
        );
    }
    // All signatures by known keys must be right.
    let sent = Unverified::parse(&text(&good), rules("11")).unwrap();
    let error = sent.verify(|_, _| Some(other_key().verify_key()));
    assert!(matches!(error.unwrap_err(), Error::BadSignature { .. }));
}

#[test]
fn invites_by_third_parties_need_no_signature_of_the_sender() {
    let content = json!({
        "membership": "invite",
        "third_party_invite": {"display_name": "b", "signed": {"mxid": "@b:other", "token": "t"}},
    });
    let invite = |content: &Value, version: &str, wrong_hash: bool| {
        let mut event = object(member(content.clone(), "@a:domain", "@b:other"));
        let rules = rules(version);
        hash_and_sign_event("other", &other_key(), &mut event, &rules.redaction).unwrap();
        if wrong_hash {
            event.append(&mut object(json!({"extra": 1})));
        }
        let parsed = Unverified::parse(&text(&event), rules)?;
        assert!(parsed.signers().is_empty());
        assert_eq!(parsed.intact, !wrong_hash);
        parsed.verify(nobody)
    };
    for version in ["6", "8", "10", "11"] {
        invite(&content, version, false).unwrap();
    }
    // Whoever is no third party signs for themselves.
    for content in [
        json!({"membership": "join", "third_party_invite": {"signed": {}}}),
        json!({"membership": "invite", "third_party_invite": true}),
        json!({"membership": "invite"}),
        json!({"membership": 1}),
    ] {
        let error = invite(&content, "11", false).unwrap_err();
        assert!(
            matches!(error, Error::BadSignature { .. }),
            "{content}: {error}"
        );
    }
    // A wrong hash would make an ordinary invite of it, in anybody's name.
    let error = invite(&content, "10", true).unwrap_err();
    assert!(matches!(error, Error::BadSignature { .. }), "{error}");
    let pdu = invite(&content, "11", true).unwrap();
    assert_eq!(
        pdu.content.get(),
        r#"{"membership":"invite","third_party_invite":{"signed":{"mxid":"@b:other","token":"t"}}}"#
    );
}

#[test]
fn restricted_joins_are_signed_by_who_authorizes_them() {
    let content = json!({
        "membership": "join",
        "join_authorised_via_users_server": "@b:other",
    });
    let join = member(content, "@a:domain", "@a:domain");
    for version in ["7", "8", "9", "11"] {
        let rules = rules(version);
        let sent = text(&signed(join.clone(), version));
        if version == "7" {
            receive(&sent, version).unwrap();
            continue;
        }
        let error = receive(&sent, version).unwrap_err();
        assert!(
            matches!(&error, Error::BadSignature { server, .. } if server == "other"),
            "{version}: {error}"
        );
        // Who authorizes it adds a signature, which changes nothing else.
        let ours = Pdu::from_canonical(ID.try_into().unwrap(), sent.clone(), rules).unwrap();
        let both = sign_received(&ours, rules, server_name!("other"), &other_key()).unwrap();
        let received = Unverified::parse(&both.json, rules).unwrap();
        let servers: Vec<_> = received.signers().iter().map(|s| &*s.server).collect();
        assert_eq!(servers, ["domain", "other"], "{version}");
        let pdu = received.verify(known).unwrap();
        assert_eq!(pdu.json, both.json);
    }
    let same = member(
        json!({"membership": "join", "join_authorised_via_users_server": "@c:domain"}),
        "@a:domain",
        "@a:domain",
    );
    receive(&text(&signed(same, "11")), "11").unwrap();
    let nonsense = member(
        json!({"membership": "join", "join_authorised_via_users_server": 1}),
        "@a:domain",
        "@a:domain",
    );
    let error = receive(&text(&signed(nonsense, "11")), "11").unwrap_err();
    assert!(matches!(error, Error::BadEvent(_)), "{error}");
}

#[test]
fn create_events_of_version_12_are_peeked_into() {
    let mut create = event("12");
    create["type"] = json!("m.room.create");
    create["state_key"] = json!("");
    create["content"] = json!({"room_version": "12"});
    create["prev_events"] = json!([]);
    create["auth_events"] = json!([]);
    let with_id = text(&signed(create.clone(), "12"));
    create.as_object_mut().unwrap().remove("room_id");
    let sent = text(&signed(create.clone(), "12"));

    let pdu = receive(&sent, "12").unwrap();
    assert_eq!(pdu.room_id.strip_sigil(), &pdu.event_id.as_str()[1..]);
    assert_eq!(room_id_of(&sent).unwrap(), pdu.room_id);
    let error = receive(&with_id, "12").unwrap_err();
    assert!(matches!(error, Error::BadEvent(_)), "{error}");
    // The same without a room id in a version that has one, in an unknown version, and in none.
    for content in [
        json!({"room_version": "11"}),
        json!({"room_version": "99"}),
        json!({"room_version": 12}),
        json!({}),
        json!([]),
    ] {
        create["content"] = content;
        assert!(room_id_of(&create.to_string()).is_err(), "{create}");
    }
    for text in [
        "{}",
        "[]",
        "",
        r#"{"room_id":7}"#,
        r#"{"room_id":"x"}"#,
        r#"{"type":"m.room.create"}"#,
    ] {
        assert!(room_id_of(text).is_err(), "{text}");
    }
    // Whatever else is wrong with it, the room is known.
    let room_id = room_id_of(r#"{"content":7,"type":[],"room_id":"!x:domain"}"#);
    assert!(matches!(room_id, Err(Error::BadJson(_))));
    let room_id = room_id_of(r#"{"content":7.5,"room_id":"!x:domain"}"#).unwrap();
    assert_eq!(room_id, "!x:domain");
}

#[test]
fn signatures_of_policy_servers() {
    let rules = rules("11");
    let server = server_name!("other");
    let pdu = receive(&text(&signed(event("11"), "11")), "11").unwrap();
    let key = other_key().verify_key();
    let holds = |pdu: &Pdu| is_signed_by(pdu, rules, server, "ed25519:policy_server", &key);
    assert!(!holds(&pdu));

    let with = |signature: &str| {
        let signed = add_signature(&pdu, rules, server, "ed25519:policy_server", signature);
        let signed = signed.unwrap();
        assert_eq!(signed.event_id, pdu.event_id);
        signed
    };
    let signed = sign_received(&pdu, rules, server, &other_key()).unwrap();
    let json: Value = serde_json::from_str(&signed.json).unwrap();
    let signature = json["signatures"]["other"]["ed25519:x"].as_str().unwrap();
    assert!(holds(&with(signature)));
    assert!(!holds(&with("x")));
    // The server that has sent the event may be the policy server. Nobody looks for its key among those it publishes.
    let server = server_name!("domain");
    let own = add_signature(&pdu, rules, server, "ed25519:policy_server", "x").unwrap();
    let received = Unverified::parse(&own.json, rules).unwrap();
    let ids: Vec<&str> = received.signers()[0].key_ids().collect();
    assert_eq!(ids, ["ed25519:1"]);
    received.verify(known).unwrap();
    let mut alone: Value = serde_json::from_str(&own.json).unwrap();
    alone["signatures"] = json!({"domain": {"ed25519:policy_server": "x"}});
    let error = Unverified::parse(&text(&object(alone)), rules).unwrap_err();
    assert!(matches!(error, Error::BadSignature { .. }), "{error}");
    // It is none of those that everybody must know.
    let received = Unverified::parse(&with("x").json, rules).unwrap();
    received.verify(known).unwrap();
}

/// The place to measure it: `cargo test -p homing-federation --release -- --ignored --nocapture received::speed`.
#[test]
#[ignore = "prints timings"]
fn speed() {
    let mut body = String::new();
    for n in 0..50 {
        write!(body, "word {n} ").unwrap();
    }
    let mut sent = event("11");
    sent["content"]["body"] = json!(body);
    let sent = text(&signed(sent, "11"));
    let rounds = 2_000;
    let start = std::time::Instant::now();
    for _ in 0..rounds {
        std::hint::black_box(Unverified::parse(&sent, rules("11")).unwrap());
    }
    println!("parse: {:?}", start.elapsed() / rounds);
    let key = spec_key().verify_key();
    let parsed: Vec<_> = (0..rounds)
        .map(|_| Unverified::parse(&sent, rules("11")).unwrap())
        .collect();
    let start = std::time::Instant::now();
    for event in parsed {
        std::hint::black_box(event.verify(|_, _| Some(&key)).unwrap());
    }
    println!("verify: {:?}", start.elapsed() / rounds);
}

/// Events of a join are verified on all cores.
#[test]
fn they_can_be_sent_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<Unverified>();
    check::<Pdu>();
    check::<VerifyKey>();
}
