//! Events from other servers: reading them, and checking who signed them.
//!
//! [`Unverified::parse`] reads an event as strictly as its room version asks, computes its id and
//! its content hash, and says whose signatures it must have. The caller gets the keys, and
//! [`Unverified::verify`] makes a [`Pdu`] of it. What fails here is no event at all and is dropped;
//! whether an event is allowed is another question ([`mod@crate::auth`]).
//!
//! Signatures are made of the redacted form, so they hold for a redacted copy too. An event whose
//! content hash is wrong is taken for such a copy: only what redaction leaves of it is kept.
//!
//! Specification: <https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu>.

use std::borrow::{Borrow, Cow};

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, OwnedRoomId, OwnedServerName,
    RoomVersionId, ServerName, UserId,
    canonical_json::RedactingSerializer,
    room_version_rules::{EventIdFormatVersion, RoomVersionRules},
    signatures::content_hash,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    Error, Pdu, VerifyKey,
    draft::{MAX_AUTH_EVENTS, MAX_FIELD_BYTES, MAX_PREV_EVENTS, event_id, within},
    keys, room_version, strict_json,
};

/// The largest event from another server, in bytes of its canonical JSON without `unsigned`.
///
/// The specification counts "the complete event … including any signatures", and allows one byte
/// more than this server uses for its own. `unsigned` is left out: each server writes its own, so
/// servers would not agree on which events exist if it counted.
pub const MAX_RECEIVED_BYTES: usize = 65_536;

/// The longest text that is looked at. An event grows by white space, by escaped characters and
/// by its `unsigned`, which for an invite holds some of the room's state.
pub const MAX_TEXT_BYTES: usize = 16 * MAX_RECEIVED_BYTES;

/// The most signatures of one server that are looked at. Servers have one key, or two while they
/// change it.
const MAX_SIGNATURES: usize = 32;

/// The id of the key of policy servers. It is no key that a server publishes, though a server with that name may have sent
/// the event too.
pub const POLICY_KEY: &str = "ed25519:policy_server";

/// What the signatures and the id of an event are not made of, besides what redaction takes away.
const NOT_SIGNED: &[&str] = &["signatures", "unsigned"];

/// An event whose signatures were not checked yet.
#[derive(Debug)]
#[non_exhaustive]
pub struct Unverified {
    /// The event; the redacted form of it if its content hash is wrong.
    pub pdu: Pdu,
    /// Whether the content hash is right. If it is not, `pdu` is redacted.
    pub intact: bool,
    /// Whose signatures it must have.
    signers: Vec<Signer>,
    /// The bytes that were signed.
    signed: String,
}

/// A server that must have signed an event.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Signer {
    /// The name of the server.
    pub server: OwnedServerName,
    /// Its ed25519 signatures: key ids (such as `ed25519:a_1`) and signatures in base64. There is
    /// at least one. Not each of these keys has to exist: what is no key of the server is ignored.
    pub signatures: Vec<(String, String)>,
}

impl Signer {
    /// The ids of the keys that it says to have signed with.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.signatures.iter().map(|(key_id, _)| key_id.as_str())
    }
}

impl Unverified {
    /// Reads an event of a room of this version.
    ///
    /// `unsigned` is dropped, it is the word of whoever sent the text; so is an `event_id`, which
    /// the id that is computed takes the place of.
    ///
    /// # Errors
    ///
    /// [`Error::NotJson`], [`Error::BadJson`], [`Error::TooLarge`] or [`Error::BadEvent`] if it is
    /// no event of this room version, and [`Error::BadSignature`] if a server that must have
    /// signed it has not.
    pub fn parse(text: &str, rules: &RoomVersionRules) -> Result<Self, Error> {
        within("event", text.len(), MAX_TEXT_BYTES)?;
        let mut event = object(text, rules)?;
        event.remove("unsigned");
        event.remove("event_id");

        let json = serialize(&event)?;
        within("event", json.len(), MAX_RECEIVED_BYTES)?;
        check_format(&event, rules)?;

        let intact = has_right_hash(&event)?;
        let signers = signers(&event, intact, rules)?;
        let signed = signed_form(&event, rules)?;
        let event_id = event_id(signed.as_bytes(), rules)?;
        let json = if intact {
            json
        } else {
            let serializer = RedactingSerializer::new().rules(&rules.redaction);
            serializer.serialize(&event).map_err(bad)?
        };
        Ok(Self {
            pdu: Pdu::from_canonical(event_id, json, rules)?,
            intact,
            signers,
            signed,
        })
    }

    /// The servers that must have signed the event. There is none for an invite that answers an
    /// invitation by e-mail, which any server may send in the inviter's name: authorization checks
    /// the signature in its content.
    #[must_use]
    pub fn signers(&self) -> &[Signer] {
        &self.signers
    }

    /// Checks the signatures.
    ///
    /// `key` gives the key of a server by its id, and `None` if the server has no such key or it
    /// was not valid at `pdu.origin_server_ts` (where `rules.enforce_key_validity`). As the
    /// specification has it, a signature made with an unknown key is ignored, and all others
    /// must be right.
    ///
    /// # Errors
    ///
    /// [`Error::NoKey`] if no key is known of a server that must have signed, which may be
    /// different at another time; [`Error::BadSignature`] if one of its signatures is wrong.
    pub fn verify<K: Borrow<VerifyKey>>(
        self,
        key: impl Fn(&ServerName, &str) -> Option<K>,
    ) -> Result<Pdu, Error> {
        for signer in &self.signers {
            let mut checked = false;
            for (key_id, signature) in &signer.signatures {
                let Some(key) = key(&signer.server, key_id) else {
                    continue;
                };
                if !is_signature(signature, self.signed.as_bytes(), key.borrow()) {
                    return Err(Error::BadSignature {
                        server: signer.server.clone(),
                        reason: "its signature is wrong",
                    });
                }
                checked = true;
            }
            if !checked {
                return Err(Error::NoKey {
                    server: signer.server.clone(),
                });
            }
        }
        Ok(self.pdu)
    }
}

/// The room that an event is in, without reading the event: its room version is not known yet.
///
/// A create event of a version that makes the room id of it is read in whole, by the rules of the
/// version that its content names.
///
/// # Errors
///
/// [`Error::NotJson`] or [`Error::BadJson`] if it is not a JSON object with a valid `room_id`,
/// [`Error::BadEvent`] if the room id is missing, and what [`Unverified::parse`] says about a
/// create event.
pub fn room_id_of(text: &str) -> Result<OwnedRoomId, Error> {
    #[derive(Deserialize)]
    struct Peek<'a> {
        room_id: Option<OwnedRoomId>,
        #[serde(borrow, rename = "type")]
        event_type: Option<Cow<'a, str>>,
        #[serde(borrow)]
        content: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Content {
        room_version: RoomVersionId,
    }

    within("event", text.len(), MAX_TEXT_BYTES)?;
    let event: Peek<'_> = serde_json::from_str(text).map_err(unreadable)?;
    if let Some(room_id) = event.room_id {
        return Ok(room_id);
    }
    let rules = event
        .content
        .filter(|_| event.event_type.as_deref() == Some("m.room.create"))
        .and_then(|content| serde_json::from_str::<Content>(content.get()).ok())
        .and_then(|content| room_version::rules(&content.room_version))
        .filter(|rules| !rules.event_format.require_room_create_room_id)
        .ok_or_else(|| missing("room_id"))?;
    Ok(Unverified::parse(text, rules)?.pdu.room_id)
}

/// The id of an event that [`Unverified::parse`] refuses, so that its sender can be told which it is; `None` if the text is
/// not such JSON as events are made of.
#[must_use]
pub fn event_id_of(text: &str, rules: &RoomVersionRules) -> Option<OwnedEventId> {
    within("event", text.len(), MAX_TEXT_BYTES).ok()?;
    let mut event = object(text, rules).ok()?;
    event.remove("event_id");
    let signed = signed_form(&event, rules).ok()?;
    event_id(signed.as_bytes(), rules).ok()
}

/// Whether `server` has signed the event with this key, as policy servers do.
#[must_use]
pub fn is_signed_by(
    pdu: &Pdu,
    rules: &RoomVersionRules,
    server: &ServerName,
    key_id: &str,
    key: &VerifyKey,
) -> bool {
    let signature = |event: &CanonicalJsonObject| {
        let signatures = event.get("signatures")?.as_object()?;
        let of_server = signatures.get(server.as_str())?.as_object()?;
        of_server.get(key_id)?.as_str().map(ToOwned::to_owned)
    };
    object(&pdu.json, rules).is_ok_and(|event| {
        signature(&event).is_some_and(|signature| {
            signed_form(&event, rules)
                .is_ok_and(|signed| is_signature(&signature, signed.as_bytes(), key))
        })
    })
}

/// Adds a signature of this server to an event of another one: an invite that is accepted for a
/// local user, or a join that a local user authorizes. The event stays the same, with the same id.
///
/// # Errors
///
/// [`Error::TooLarge`] if the event has no room for the signature.
pub fn sign_received(
    pdu: &Pdu,
    rules: &RoomVersionRules,
    server: &ServerName,
    key: &crate::SigningKey,
) -> Result<Pdu, Error> {
    let signed = signed_form(&object(&pdu.json, rules)?, rules)?;
    let signature = key.sign_bytes(signed.as_bytes());
    add_signature(pdu, rules, server, key.id(), &signature)
}

/// Adds a signature that a server made of the event, such as a policy server's answer. It is not
/// checked; [`is_signed_by`] does that. The event stays the same, with the same id.
///
/// # Errors
///
/// [`Error::TooLarge`] if the event has no room for the signature.
pub fn add_signature(
    pdu: &Pdu,
    rules: &RoomVersionRules,
    server: &ServerName,
    key_id: &str,
    signature: &str,
) -> Result<Pdu, Error> {
    let mut event = object(&pdu.json, rules)?;
    let empty = || CanonicalJsonValue::Object(CanonicalJsonObject::new());
    let of_server = event
        .entry("signatures".to_owned())
        .or_insert_with(empty)
        .as_object_mut()
        .ok_or_else(|| wrong("signatures"))?
        .entry(server.to_string())
        .or_insert_with(empty)
        .as_object_mut()
        .ok_or_else(|| wrong("signatures"))?;
    of_server.insert(key_id.to_owned(), signature.into());
    let json = serialize(&event)?;
    within("event", json.len(), MAX_RECEIVED_BYTES)?;
    let mut signed = Pdu::from_canonical(pdu.event_id.clone(), json, rules)?;
    signed.rejected = pdu.rejected;
    Ok(signed)
}

/// Reads the JSON of an event. Before version 6 it need not be strict, but numbers that canonical
/// JSON has not are refused all the same: there is no form in which they could be hashed here.
fn object(text: &str, rules: &RoomVersionRules) -> Result<CanonicalJsonObject, Error> {
    if rules.authorization.strict_canonical_json {
        strict_json(text.as_bytes())
    } else {
        serde_json::from_str(text).map_err(unreadable)
    }
}

fn serialize(event: &CanonicalJsonObject) -> Result<String, Error> {
    serde_json::to_string(event).map_err(bad)
}

/// The bytes that the signatures and the event id are made of: the redacted event in canonical
/// JSON, without `signatures`.
fn signed_form(event: &CanonicalJsonObject, rules: &RoomVersionRules) -> Result<String, Error> {
    RedactingSerializer::new()
        .rules(&rules.redaction)
        .custom_redacted_root_fields(NOT_SIGNED)
        .serialize(event)
        .map_err(bad)
}

fn is_signature(signature: &str, signed: &[u8], key: &VerifyKey) -> bool {
    keys::decode(signature).is_some_and(|signature| key.verify(signed, &signature))
}

/// Checks the format of an event: that each field is there, of its type and within its limits.
fn check_format(event: &CanonicalJsonObject, rules: &RoomVersionRules) -> Result<(), Error> {
    let event_type = name(event, "type", rules)?;
    let state_key = match event.get("state_key") {
        Some(_) => Some(name(event, "state_key", rules)?),
        None => None,
    };
    if event_type.contains('\0') || state_key.is_some_and(|key| key.contains('\0')) {
        return Err(Error::BadEvent(
            "type and state_key must not have null characters".to_owned(),
        ));
    }
    UserId::parse(string(event, "sender")?)
        .map_err(|error| Error::BadEvent(format!("`sender`: {error}")))?;
    get(event, "content", CanonicalJsonValue::as_object)?;
    for field in ["depth", "origin_server_ts"] {
        let number = get(event, field, CanonicalJsonValue::as_integer)?;
        if i64::from(number) < 0 {
            return Err(Error::BadEvent(format!("`{field}` is negative")));
        }
    }
    for (field, most) in [
        ("prev_events", MAX_PREV_EVENTS),
        ("auth_events", MAX_AUTH_EVENTS),
    ] {
        let events = get(event, field, CanonicalJsonValue::as_array)?;
        if events.len() > most {
            return Err(Error::BadEvent(format!("more than {most} `{field}`")));
        }
        let is_id =
            |value: &CanonicalJsonValue| value.as_str().is_some_and(|id| is_event_id(id, rules));
        if !events.iter().all(is_id) {
            return Err(Error::BadEvent(format!("`{field}` are not all event ids")));
        }
    }
    check_room_id(event, event_type, rules)
}

/// Checks the room id, which is of another grammar where it is made of the create event.
fn check_room_id(
    event: &CanonicalJsonObject,
    event_type: &str,
    rules: &RoomVersionRules,
) -> Result<(), Error> {
    if event_type == "m.room.create" && !rules.event_format.require_room_create_room_id {
        return match event.get("room_id") {
            None => Ok(()),
            Some(_) => Err(Error::BadEvent(
                "a create event makes its room id".to_owned(),
            )),
        };
    }
    let room_id = OwnedRoomId::try_from(string(event, "room_id")?)
        .map_err(|error| Error::BadEvent(format!("`room_id`: {error}")))?;
    let is_valid = if rules.authorization.room_create_event_id_as_room_id {
        is_hash(room_id.strip_sigil(), rules)
    } else {
        room_id.server_name().is_some()
    };
    if !is_valid {
        return Err(wrong("room_id"));
    }
    let names_create = |id: &CanonicalJsonValue| {
        id.as_str().and_then(|id| id.strip_prefix('$')) == Some(room_id.strip_sigil())
    };
    if !rules.event_format.allow_room_create_in_auth_events
        && get(event, "auth_events", CanonicalJsonValue::as_array)?
            .iter()
            .any(names_create)
    {
        return Err(Error::BadEvent(
            "the create event is not an auth event in this room version".to_owned(),
        ));
    }
    Ok(())
}

/// Whether this could be the id of an event: `$` and a SHA-256 hash in base64.
fn is_event_id(id: &str, rules: &RoomVersionRules) -> bool {
    id.strip_prefix('$')
        .is_some_and(|hash| is_hash(hash, rules))
}

fn is_hash(hash: &str, rules: &RoomVersionRules) -> bool {
    let others: &[u8] = match rules.event_id_format {
        EventIdFormatVersion::V2 => b"+/",
        _ => b"-_",
    };
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || others.contains(&byte);
    hash.len() == 43 && hash.bytes().all(is_letter)
}

fn has_right_hash(event: &CanonicalJsonObject) -> Result<bool, Error> {
    let hashes = get(event, "hashes", CanonicalJsonValue::as_object)?;
    let claimed = get(hashes, "sha256", CanonicalJsonValue::as_str)?;
    let hash = content_hash(event).map_err(bad)?;
    Ok(keys::decode(claimed).is_some_and(|claimed| claimed == hash.as_bytes()))
}

/// The servers that must have signed an event, with their signatures.
fn signers(
    event: &CanonicalJsonObject,
    intact: bool,
    rules: &RoomVersionRules,
) -> Result<Vec<Signer>, Error> {
    let text = |object: &CanonicalJsonObject, field: &str| {
        let value = object.get(field).and_then(CanonicalJsonValue::as_str);
        value.unwrap_or_default().to_owned()
    };
    let content = get(event, "content", CanonicalJsonValue::as_object)?;
    let is_member = text(event, "type") == "m.room.member";
    let membership = text(content, "membership");

    let mut users = Vec::with_capacity(2);
    // Where redaction takes away what makes it such an invite, a wrong hash makes it an ordinary
    // one. It must be signed then like any other: anybody could write it.
    let stays_third_party = intact || rules.redaction.keep_room_member_third_party_invite_signed;
    let third_party = content.get("third_party_invite");
    let is_third_party = third_party.is_some_and(CanonicalJsonValue::is_object);
    if !(is_member && membership == "invite" && is_third_party && stays_third_party) {
        users.push(text(event, "sender"));
    }
    if rules.signatures.check_join_authorised_via_users_server
        && is_member
        && membership == "join"
        && content.contains_key("join_authorised_via_users_server")
    {
        users.push(text(content, "join_authorised_via_users_server"));
    }

    let signatures = signatures(event)?;
    let mut signers: Vec<Signer> = Vec::with_capacity(users.len());
    for user in users {
        let user = UserId::parse(user).map_err(bad)?;
        let server = user.server_name();
        if signers.iter().any(|signer| signer.server == server) {
            continue;
        }
        let of_server = signatures
            .get(server.as_str())
            .and_then(CanonicalJsonValue::as_object);
        let of_server: Vec<_> = of_server
            .into_iter()
            .flatten()
            .filter(|(key_id, _)| key_id.starts_with("ed25519:") && *key_id != POLICY_KEY)
            .filter_map(|(key_id, signature)| Some((key_id, signature.as_str()?)))
            .map(|(key_id, signature)| (key_id.clone(), signature.to_owned()))
            .take(MAX_SIGNATURES)
            .collect();
        if of_server.is_empty() {
            return Err(Error::BadSignature {
                server: server.to_owned(),
                reason: "its signature is missing",
            });
        }
        signers.push(Signer {
            server: server.to_owned(),
            signatures: of_server,
        });
    }
    Ok(signers)
}

/// The signatures of an event, all of which are texts by server and key.
fn signatures(event: &CanonicalJsonObject) -> Result<&CanonicalJsonObject, Error> {
    let signatures = get(event, "signatures", CanonicalJsonValue::as_object)?;
    let are_texts = |of_server: &CanonicalJsonValue| {
        of_server
            .as_object()
            .is_some_and(|keys| keys.values().all(CanonicalJsonValue::is_string))
    };
    if signatures.values().all(are_texts) {
        Ok(signatures)
    } else {
        Err(wrong("signatures"))
    }
}

/// A field of the type that `read` reads.
fn get<'a, T>(
    object: &'a CanonicalJsonObject,
    field: &str,
    read: impl Fn(&'a CanonicalJsonValue) -> Option<T>,
) -> Result<T, Error> {
    let value = object.get(field).ok_or_else(|| missing(field))?;
    read(value).ok_or_else(|| wrong(field))
}

/// A field that is a text of at most [`MAX_FIELD_BYTES`].
fn string<'a>(event: &'a CanonicalJsonObject, field: &'static str) -> Result<&'a str, Error> {
    let text = get(event, field, CanonicalJsonValue::as_str)?;
    within(field, text.len(), MAX_FIELD_BYTES)?;
    Ok(text)
}

/// A type or a state key.
///
/// The specification counts bytes. Until room version 11 Synapse counted characters, and what it let
/// into a room all servers must know, or they do not agree on what the room is.
fn name<'a>(
    event: &'a CanonicalJsonObject,
    field: &'static str,
    rules: &RoomVersionRules,
) -> Result<&'a str, Error> {
    if rules.authorization.use_room_create_sender {
        return string(event, field);
    }
    let text = get(event, field, CanonicalJsonValue::as_str)?;
    within(field, text.chars().count(), MAX_FIELD_BYTES)?;
    Ok(text)
}

fn missing(field: &str) -> Error {
    Error::BadEvent(format!("missing `{field}`"))
}

fn wrong(field: &str) -> Error {
    Error::BadEvent(format!("`{field}` is not what it should be"))
}

fn bad(error: impl std::fmt::Display) -> Error {
    Error::BadEvent(error.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn unreadable(error: serde_json::Error) -> Error {
    if error.is_data() {
        Error::BadJson(error.to_string())
    } else {
        Error::NotJson(error.to_string())
    }
}
