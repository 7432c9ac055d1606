//! What must hold whatever a stranger sends. Each function panics if it does not.

use std::sync::Arc;

use homing::{filter::parse, media::preview::page, token::Token};
use homing_federation::{
    Draft, Error, Pdu, SigningKey, Unverified, auth_types_for_event, authorize,
    received::{MAX_RECEIVED_BYTES, is_signed_by, room_id_of, sign_received},
    redact, room_version,
    server_keys::{KeyDocument, MAX_KEYS},
    strict_json,
};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, MilliSecondsSinceUnixEpoch, RoomId,
    RoomVersionId, UInt, UserId, room_version_rules::RoomVersionRules, server_name,
    signatures::reference_hash,
};
use url::Url;

const KEY: &str = "ed25519 a AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const ID: &str = "$31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM";
const ROOM: &str = "!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM";

/// Reads `data` as an event from the database, and as the event that a client wants to send: the latter is refused, or
/// it becomes an event that every server reads in the same way.
pub fn event(data: &[u8]) {
    let versions = room_version::creatable();
    let rules =
        room_version::rules(&versions[data.len() % versions.len()]).expect("a known version");
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(pdu) = Pdu::from_canonical(EventId::parse(ID).expect("an id"), text, rules)
    {
        examine(&pdu, rules);
    }
    let Ok(object) = strict_json(data) else {
        return;
    };
    let text = serde_json::to_string(&object).expect("canonical JSON is JSON");
    assert_eq!(
        strict_json(text.as_bytes()).expect("it was read before"),
        object
    );
    assert_eq!(
        serde_json::from_str::<CanonicalJsonObject>(&text).expect("others read it too"),
        object
    );
    if let Some(draft) = draft(&object, rules) {
        send(draft, rules);
    }
}

/// The draft that an object describes, if it describes one.
fn draft(object: &CanonicalJsonObject, rules: &RoomVersionRules) -> Option<Draft> {
    let string = |key: &str| match object.get(key) {
        Some(CanonicalJsonValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let CanonicalJsonValue::Object(content) = object.get("content")? else {
        return None;
    };
    let event_type = string("type")?;
    let makes_room_id =
        event_type == "m.room.create" && !rules.event_format.require_room_create_room_id;
    let redacts = string("redacts").filter(|_| event_type == "m.room.redaction");
    Some(Draft {
        room_id: (!makes_room_id).then(|| RoomId::parse(ROOM).expect("an id")),
        sender: UserId::parse(string("sender")?).ok()?,
        state_key: string("state_key"),
        content: content.clone(),
        redacts: redacts.and_then(|id| EventId::parse(id).ok()),
        event_type,
        origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::from(1u32)),
        prev_events: Vec::new(),
        auth_events: Vec::new(),
        depth: 1,
    })
}

fn send(draft: Draft, rules: &RoomVersionRules) {
    // A bad member event is refused here already.
    let _ = draft.auth_types(rules);
    let key = SigningKey::parse_file(KEY).expect("a key").remove(0);
    let pdu = match draft.sign(rules, server_name!("localhost"), &key) {
        Ok(pdu) => pdu,
        Err(Error::TooLarge { .. } | Error::BadJson(_)) => return,
        Err(error) => panic!("not the sender's mistake: {error}"),
    };
    assert!(pdu.json.len() <= 65_535);
    let object = strict_json(pdu.json.as_bytes()).expect("an event is strict JSON");
    assert_eq!(
        serde_json::to_string(&object).expect("JSON"),
        *pdu.json,
        "an event is canonical JSON"
    );
    let hash = reference_hash(&object, rules).expect("an event has a hash");
    assert_eq!(pdu.event_id.as_str(), format!("${hash}"));
    let read = Pdu::from_canonical(pdu.event_id.clone(), pdu.json.clone(), rules)
        .expect("an event is read");
    assert_eq!((&read.room_id, &read.redacts), (&pdu.room_id, &pdu.redacts));
    let once = redact(&read, rules).expect("an event is redacted");
    let twice = redact(&once, rules).expect("a redacted event is redacted");
    assert_eq!(once.json, twice.json);
    let object = strict_json(once.json.as_bytes()).expect("a redacted event is strict JSON");
    assert_eq!(reference_hash(&object, rules).expect("a hash"), hash);
    examine(&pdu, rules);
}

/// Nothing that the server does with an event may panic.
fn examine(pdu: &Pdu, rules: &RoomVersionRules) {
    let _ = redact(pdu, rules);
    let state_key = pdu.state_key.as_deref();
    let _ = auth_types_for_event(rules, &pdu.kind, &pdu.sender, state_key, &pdu.content);
    let _ = authorize(rules, pdu, |_, _| None::<Arc<Pdu>>);
    // The same event as the state that it is sent into: each part of its content is then read as a rule.
    let itself = Pdu::from_canonical(pdu.event_id.clone(), pdu.json.clone(), rules);
    if let Ok(itself) = itself.map(Arc::new) {
        let state = |kind: &ruma::events::StateEventType, key: &str| {
            let same = itself.kind.to_string() == kind.to_string()
                && itself.state_key.as_deref() == Some(key);
            same.then(|| Arc::clone(&itself))
        };
        let _ = authorize(rules, pdu, state);
    }
}

/// Reads `data` as an event from another server. What is kept of it is the same event to whoever reads it again.
pub fn received(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let version = (3 + data.len() % 10).to_string();
    let version = RoomVersionId::try_from(version).expect("a version");
    let rules = room_version::rules(&version).expect("a known version");
    let room_id = room_id_of(text);
    let Ok(event) = Unverified::parse(text, rules) else {
        return;
    };
    assert!(
        event
            .signers()
            .iter()
            .all(|signer| signer.key_ids().count() > 0)
    );
    let (pdu, intact) = (event.pdu, event.intact);
    assert!(pdu.json.len() <= MAX_RECEIVED_BYTES);
    let object: CanonicalJsonObject = serde_json::from_str(&pdu.json).expect("an event is JSON");
    assert_eq!(
        serde_json::to_string(&object).expect("JSON"),
        *pdu.json,
        "an event is kept as canonical JSON"
    );
    assert!(!object.contains_key("unsigned") && !object.contains_key("event_id"));
    if object.contains_key("room_id") && rules.authorization.strict_canonical_json {
        assert_eq!(room_id.expect("the room is known before"), pdu.room_id);
    }
    let hash = reference_hash(&object, rules).expect("an event has a hash");
    assert_eq!(pdu.event_id.as_str(), format!("${hash}"));

    let again = Unverified::parse(&pdu.json, rules).expect("what is kept is read again");
    assert_eq!(
        (&again.pdu.event_id, &again.pdu.json),
        (&pdu.event_id, &pdu.json)
    );
    // A redacted form may be whole again, where only what redaction takes away was added.
    assert!(again.intact || !intact);
    assert_eq!(again.pdu.prev_events, pdu.prev_events);

    // Signatures take most of the time, so not every event gets one.
    if data.len().is_multiple_of(8) {
        countersign(&pdu, rules);
    }
    examine(&pdu, rules);
}

/// Our signature on another server's event changes nothing else.
fn countersign(pdu: &Pdu, rules: &RoomVersionRules) {
    let (server, key) = (server_name!("localhost"), SigningKey::parse_file(KEY));
    let key = key.expect("a key").remove(0);
    match sign_received(pdu, rules, server, &key) {
        Ok(signed) => {
            assert_eq!(signed.event_id, pdu.event_id);
            assert!(is_signed_by(
                &signed,
                rules,
                server,
                key.id(),
                &key.verify_key()
            ));
        }
        Err(error) => assert!(matches!(error, Error::TooLarge { .. }), "{error}"),
    }
}

/// Reads `data` as another server's document of keys, and as it would be if it were signed with the key of these tests:
/// most documents are refused for their signature alone.
pub fn key_document(data: &[u8]) {
    let server = server_name!("a.test");
    let _ = KeyDocument::parse(data, server);
    let Ok(mut object) = strict_json(data) else {
        return;
    };
    let key = SigningKey::parse_file(KEY).expect("a key").remove(0);
    if let Some(CanonicalJsonValue::Object(keys)) = object.get_mut("verify_keys") {
        let public = CanonicalJsonValue::String(key.public_key());
        let entry = CanonicalJsonObject::from([("key".to_owned(), public)]);
        keys.insert(key.id().to_owned(), CanonicalJsonValue::Object(entry));
    }
    object.remove("signatures");
    key.sign_json(server, &mut object)
        .expect("an object is signed");
    let text = serde_json::to_vec(&object).expect("JSON");
    let Ok(document) = KeyDocument::parse(&text, server) else {
        return;
    };
    assert_eq!(document.json.as_bytes(), text);
    assert_eq!(document.verify_keys.get(key.id()), Some(&key.verify_key()));
    assert!(document.verify_keys.len() + document.old_verify_keys.len() <= MAX_KEYS);
    let notary = server_name!("b.test");
    let answer = document
        .countersigned(notary, &key)
        .expect("a notary signs it");
    let answer = KeyDocument::parse(answer.as_bytes(), server).expect("a notary's answer is read");
    assert!(answer.is_signed_by(notary, key.id(), &key.verify_key()));
    assert_eq!(answer.valid_until, document.valid_until);
}

/// Reads `data` as a filter. What is read can be stored and read again.
pub fn filter(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(filter) = parse(text) else { return };
    let stored = serde_json::to_string(&filter).expect("a filter is JSON");
    let again = parse(&stored).expect("a stored filter is read");
    assert_eq!(
        serde_json::to_string(&again).expect("a filter is JSON"),
        stored
    );
}

/// Reads `data` as a token. Only what this server prints is read.
pub fn token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(token) = text.parse::<Token>() {
        assert_eq!(token.to_string(), text);
    }
}

/// Reads `data` as a page to which somebody links. What is shown of it is short, and leads to nothing but the web.
pub fn page(data: &[u8]) {
    let address = Url::parse("https://a.test/b/c").expect("an address");
    let charset = data
        .first()
        .and_then(|first| ["utf-16", "shift_jis", "x"].get(usize::from(*first)));
    let page = page::read(&address, data, charset.copied());
    // Title and description may be there beside the 32 that are taken.
    assert!(page.properties.len() <= 34);
    for (name, value) in &page.properties {
        assert!(name.starts_with("og:") && name.len() <= 64, "{name}");
        assert!((1..=1000).contains(&value.chars().count()), "{value}");
        assert!(!value.chars().any(char::is_control), "{value}");
    }
    for address in page.image.into_iter().chain(
        page.properties
            .get("og:url")
            .map(|text| Url::parse(text).expect("an address")),
    ) {
        assert!(matches!(address.scheme(), "http" | "https"), "{address}");
        assert!(
            address.username().is_empty() && address.password().is_none(),
            "{address}"
        );
    }
}
