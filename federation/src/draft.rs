//! Making events: canonical JSON, content hash, signature, event id.
//!
//! Of an event's JSON only the content is large, so it is serialized once and copied into the
//! three forms that are needed: the whole event for the content hash, the redacted event for both
//! the signature and the reference hash, and the signed event.
//!
//! Specification: <https://spec.matrix.org/v1.19/server-server-api/#signing-events>.

use std::collections::BTreeMap;

use base64::{
    Engine,
    prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD},
};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId,
    OwnedRoomId, OwnedUserId, RoomId, ServerName, UserId,
    canonical_json::redact_content_in_place,
    events::TimelineEventType,
    room_version_rules::{EventIdFormatVersion, RoomVersionRules},
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use sha2::{Digest, Sha256};

use crate::{Error, Pdu, SigningKey, event, room_version};

/// The largest event, in bytes of its canonical JSON with hashes and signatures.
pub const MAX_EVENT_BYTES: usize = 65_535;
/// The largest `sender`, `room_id`, `state_key`, `type` and event id, in bytes.
pub const MAX_FIELD_BYTES: usize = 255;
/// The most `prev_events` that an event may have.
pub const MAX_PREV_EVENTS: usize = 20;
/// The most `auth_events` that an event may have.
pub const MAX_AUTH_EVENTS: usize = 10;
/// The greatest depth, being the greatest integer of canonical JSON. Events behind one of this
/// depth have it too.
pub const MAX_DEPTH: i64 = (1 << 53) - 1;

/// An event to be: all that its sender's server decides, before it is hashed and signed.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The room; `None` only for the create event in versions where the room id is made of it.
    pub room_id: Option<OwnedRoomId>,
    /// Who sends it.
    pub sender: OwnedUserId,
    /// Its type.
    pub event_type: String,
    /// Its state key, for a state event.
    pub state_key: Option<String>,
    /// Its content. Content from a client comes through [`strict_json`](crate::strict_json).
    pub content: CanonicalJsonObject,
    /// For a redaction, what it redacts. It is written where the room version has it: beside the
    /// content, or into the content from version 11 on.
    pub redacts: Option<OwnedEventId>,
    /// Now.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    /// The room's forward extremities.
    pub prev_events: Vec<OwnedEventId>,
    /// The events that [`auth_types_for_event`](crate::auth_types_for_event) asks for.
    pub auth_events: Vec<OwnedEventId>,
    /// One more than the greatest depth among `prev_events`; what is over [`MAX_DEPTH`] is
    /// written as [`MAX_DEPTH`].
    pub depth: i64,
}

/// An event's JSON. The fields are in the order of canonical JSON, so that serde writes it as is.
#[derive(Clone, Serialize)]
struct Form<'a> {
    auth_events: &'a [OwnedEventId],
    content: &'a RawValue,
    depth: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    hashes: Option<Hashes<'a>>,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    prev_events: &'a [OwnedEventId],
    #[serde(skip_serializing_if = "Option::is_none")]
    redacts: Option<&'a EventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_id: Option<&'a RoomId>,
    sender: &'a UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    signatures: Option<Signatures<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<&'a str>,
    #[serde(rename = "type")]
    event_type: &'a str,
}

#[derive(Clone, Copy, Serialize)]
struct Hashes<'a> {
    sha256: &'a str,
}

/// Signatures by server name and key id.
type Signatures<'a> = BTreeMap<&'a str, BTreeMap<&'a str, &'a str>>;

impl Draft {
    /// Hashes and signs the event and gives it its id.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] if the event or one of its fields is over the limit,
    /// [`Error::BadJson`] if the type or state key has a null character (PostgreSQL cannot store
    /// one, and no honest client sends it), and [`Error::BadEvent`] if the draft is not an event
    /// of this room version at all, which is a mistake of the caller.
    pub fn sign(
        mut self,
        rules: &RoomVersionRules,
        server_name: &ServerName,
        key: &SigningKey,
    ) -> Result<Pdu, Error> {
        let kind = TimelineEventType::from(self.event_type.as_str());
        self.check(&kind, rules)?;

        self.depth = self.depth.min(MAX_DEPTH);
        let mut top_level_redacts = self.redacts.clone();
        if rules.redaction.content_field_redacts
            && let Some(event_id) = top_level_redacts.take()
        {
            let value = CanonicalJsonValue::String(event_id.to_string());
            self.content.insert("redacts".to_owned(), value);
        }

        let content = to_raw_value(&self.content).map_err(unserializable)?;
        redact_content_in_place(&mut self.content, &rules.redaction, &self.event_type);
        let redacted_content = to_raw_value(&self.content).map_err(unserializable)?;

        let mut form = self.form(&content, top_level_redacts.as_deref());
        let unsigned = serde_json::to_vec(&form).map_err(unserializable)?;
        let content_hash = BASE64_STANDARD_NO_PAD.encode(Sha256::digest(&unsigned));
        form.hashes = Some(Hashes {
            sha256: &content_hash,
        });

        let redacted = Form {
            content: &redacted_content,
            redacts: None,
            ..form.clone()
        };
        let redacted = serde_json::to_vec(&redacted).map_err(unserializable)?;
        let signature = key.sign_bytes(&redacted);
        let event_id = event_id(&redacted, rules)?;
        form.signatures = Some(BTreeMap::from([(
            server_name.as_str(),
            BTreeMap::from([(key.id(), signature.as_str())]),
        )]));

        let json = serde_json::to_string(&form).map_err(unserializable)?;
        within("event", json.len(), MAX_EVENT_BYTES)?;

        // A redaction whose content says what it redacts needs no draft that says so too.
        let redacts = self.redacts.filter(|id| event::is_possible(id));
        let redacts = redacts.or_else(|| event::redacts(&kind, &content, None, &rules.redaction));
        let has_room_id = self.room_id.is_some();
        let room_id = match self.room_id {
            Some(room_id) => room_id,
            None => room_version::room_id_of_create_event(&event_id)?,
        };
        Ok(Pdu {
            event_id,
            room_id,
            sender: self.sender,
            event_type: self.event_type.into(),
            kind,
            state_key: self.state_key.map(Into::into),
            content,
            origin_server_ts: self.origin_server_ts,
            depth: self.depth,
            prev_events: self.prev_events.into(),
            auth_events: self.auth_events.into(),
            redacts,
            rejected: false,
            json: json.into(),
            has_room_id,
        })
    }

    /// The JSON to be, without hashes and signatures.
    fn form<'a>(&'a self, content: &'a RawValue, redacts: Option<&'a EventId>) -> Form<'a> {
        Form {
            auth_events: &self.auth_events,
            content,
            depth: self.depth,
            hashes: None,
            origin_server_ts: self.origin_server_ts,
            prev_events: &self.prev_events,
            redacts,
            room_id: self.room_id.as_deref(),
            sender: &self.sender,
            signatures: None,
            state_key: self.state_key.as_deref(),
            event_type: &self.event_type,
        }
    }

    /// Checks what can be checked before anything is serialized.
    fn check(&self, kind: &TimelineEventType, rules: &RoomVersionRules) -> Result<(), Error> {
        within("type", self.event_type.len(), MAX_FIELD_BYTES)?;
        within("sender", self.sender.as_str().len(), MAX_FIELD_BYTES)?;
        let state_key = self.state_key.as_deref().unwrap_or_default();
        within("state_key", state_key.len(), MAX_FIELD_BYTES)?;
        if self.event_type.contains('\0') || state_key.contains('\0') {
            return Err(Error::BadJson(
                "type and state_key must not have null characters".to_owned(),
            ));
        }

        let is_create = *kind == TimelineEventType::RoomCreate;
        let makes_room_id = is_create && !rules.event_format.require_room_create_room_id;
        let bad = match &self.room_id {
            Some(_) if makes_room_id => Some("a create event makes its room id"),
            None if !makes_room_id => Some("missing `room_id`"),
            _ if self.redacts.is_some() && *kind != TimelineEventType::RoomRedaction => {
                Some("only redactions redact")
            }
            _ if self.prev_events.len() > MAX_PREV_EVENTS => Some("too many `prev_events`"),
            _ if self.auth_events.len() > MAX_AUTH_EVENTS => Some("too many `auth_events`"),
            _ if self.depth < 0 => Some("negative `depth`"),
            _ => None,
        };
        if let Some(bad) = bad {
            return Err(Error::BadEvent(bad.to_owned()));
        }

        if let Some(room_id) = &self.room_id {
            within("room_id", room_id.as_str().len(), MAX_FIELD_BYTES)?;
            let names_create =
                |id: &OwnedEventId| id.as_str().strip_prefix('$') == Some(room_id.strip_sigil());
            if !rules.event_format.allow_room_create_in_auth_events
                && self.auth_events.iter().any(names_create)
            {
                return Err(Error::BadEvent(
                    "the create event is not an auth event in this room version".to_owned(),
                ));
            }
        }
        Ok(())
    }
}

/// The event id of an event, from its redacted form without signatures.
pub(crate) fn event_id(redacted: &[u8], rules: &RoomVersionRules) -> Result<OwnedEventId, Error> {
    let hash = Sha256::digest(redacted);
    let hash = match rules.event_id_format {
        EventIdFormatVersion::V2 => BASE64_STANDARD_NO_PAD.encode(hash),
        EventIdFormatVersion::V3 => BASE64_URL_SAFE_NO_PAD.encode(hash),
        _ => return Err(Error::BadEvent("unknown format of event ids".to_owned())),
    };
    EventId::parse(format!("${hash}")).map_err(|error| Error::BadEvent(error.to_string()))
}

pub(crate) fn within(what: &'static str, bytes: usize, limit: usize) -> Result<(), Error> {
    if bytes > limit {
        return Err(Error::TooLarge { what, bytes, limit });
    }
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn unserializable(error: serde_json::Error) -> Error {
    Error::BadEvent(error.to_string())
}
