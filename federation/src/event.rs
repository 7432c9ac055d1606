//! Events as servers exchange them.
//!
//! A [`Pdu`] is an event that was parsed once and is never changed. The canonical JSON it came
//! from is kept beside the parsed fields, byte for byte, because hashes and signatures are made
//! of these bytes. Servers hold it in an `Arc`.
//!
//! Specification: <https://spec.matrix.org/v1.19/server-server-api/#pdus>.

use std::{borrow::Cow, fmt};

use ruma::{
    CanonicalJsonObject, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId,
    OwnedUserId, RoomId, UserId,
    canonical_json::redact_in_place,
    events::TimelineEventType,
    room_version_rules::{RedactionRules, RoomVersionRules},
    state_res,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{Error, draft::MAX_FIELD_BYTES, room_version};

/// An event of a room.
///
/// The fields are there to be read; an event that differs in any of them is another event.
#[derive(Clone)]
#[non_exhaustive]
pub struct Pdu {
    /// The id: `$` and the reference hash of the event.
    pub event_id: OwnedEventId,
    /// The room. For the create event of a room of version 12 or later, whose JSON has no
    /// `room_id`, it is derived from the event id.
    pub room_id: OwnedRoomId,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// The type exactly as the event has it.
    pub event_type: Box<str>,
    /// The type as ruma's enum, to match on. Types that ruma does not know keep their name.
    pub kind: TimelineEventType,
    /// The state key, if it is a state event.
    pub state_key: Option<Box<str>>,
    /// The content, as it stands in [`json`](Self::json).
    pub content: Box<RawValue>,
    /// When the sender's server says that it was sent.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    /// One more than the greatest depth among the events before it, as its server says.
    pub depth: i64,
    /// The events directly before this one, each once.
    pub prev_events: Box<[OwnedEventId]>,
    /// The state events that allow this one.
    pub auth_events: Box<[OwnedEventId]>,
    /// What a redaction redacts, from where the room version has it: beside the content, or in it
    /// from version 11 on. `None` in every other event.
    pub redacts: Option<OwnedEventId>,
    /// Whether the event failed its checks when it was received. It is not part of the event, and
    /// whoever loads an event sets it.
    pub rejected: bool,
    /// The whole event in canonical JSON, with hashes and signatures and without `unsigned`.
    pub json: Box<str>,
    /// Whether the JSON has a `room_id`, which authorization checks in create events.
    pub(crate) has_room_id: bool,
}

/// The fields of an event that are read back from its JSON.
#[derive(Deserialize)]
struct Fields<'a> {
    auth_events: Vec<OwnedEventId>,
    #[serde(borrow)]
    content: &'a RawValue,
    depth: i64,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    prev_events: Vec<OwnedEventId>,
    #[serde(borrow)]
    redacts: Option<&'a RawValue>,
    room_id: Option<OwnedRoomId>,
    sender: OwnedUserId,
    #[serde(borrow)]
    state_key: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "type")]
    event_type: Cow<'a, str>,
}

impl Pdu {
    /// Reads an event that is known to be good: one that was checked or made by this server and
    /// stored. The JSON is parsed once and kept as it is; neither hash, signature nor sizes are
    /// looked at, and `rejected` is `false`.
    ///
    /// # Errors
    ///
    /// [`Error::BadEvent`] if a field that every event has is missing or of the wrong type.
    pub fn from_canonical(
        event_id: OwnedEventId,
        json: impl Into<Box<str>>,
        rules: &RoomVersionRules,
    ) -> Result<Self, Error> {
        let json = json.into();
        let fields: Fields<'_> = serde_json::from_str(&json)
            .map_err(|error| Error::BadEvent(format!("{event_id}: {error}")))?;

        let kind = TimelineEventType::from(&*fields.event_type);
        let has_room_id = fields.room_id.is_some();
        let room_id = match fields.room_id {
            Some(room_id) => room_id,
            None if kind == TimelineEventType::RoomCreate
                && rules.authorization.room_create_event_id_as_room_id =>
            {
                room_version::room_id_of_create_event(&event_id)?
            }
            None => return Err(Error::BadEvent(format!("{event_id}: missing `room_id`"))),
        };
        let redacts = redacts(&kind, fields.content, fields.redacts, &rules.redaction);
        // One event twice is one edge. Twice among the auth events it is a reason to reject.
        let mut prev_events: Vec<OwnedEventId> = Vec::with_capacity(fields.prev_events.len());
        for id in fields.prev_events {
            if !prev_events.contains(&id) {
                prev_events.push(id);
            }
        }

        Ok(Self {
            room_id,
            sender: fields.sender,
            event_type: fields.event_type.into(),
            kind,
            state_key: fields.state_key.map(Into::into),
            content: fields.content.to_owned(),
            origin_server_ts: fields.origin_server_ts,
            depth: fields.depth,
            prev_events: prev_events.into(),
            auth_events: fields.auth_events.into(),
            redacts,
            rejected: false,
            has_room_id,
            event_id,
            json,
        })
    }

    /// The content as a type of the caller's choice.
    ///
    /// # Errors
    ///
    /// serde's error if the content does not fit the type. Contents are written by anyone, so
    /// this must be expected.
    pub fn content_as<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_str(self.content.get())
    }

    /// Whether this is a state event.
    #[must_use]
    pub fn is_state(&self) -> bool {
        self.state_key.is_some()
    }
}

/// What a redaction redacts. A value that is no event id redacts nothing: such an event is valid,
/// it just has no effect.
pub(crate) fn redacts(
    kind: &TimelineEventType,
    content: &RawValue,
    top_level: Option<&RawValue>,
    rules: &RedactionRules,
) -> Option<OwnedEventId> {
    #[derive(Deserialize)]
    struct Content {
        redacts: OwnedEventId,
    }

    let redacts: Option<OwnedEventId> = if *kind != TimelineEventType::RoomRedaction {
        None
    } else if rules.content_field_redacts {
        let content: Option<Content> = serde_json::from_str(content.get()).ok();
        content.map(|content| content.redacts)
    } else {
        serde_json::from_str(top_level?.get()).ok()
    };
    redacts.filter(|id| is_possible(id))
}

/// Whether an event could have this id, which somebody has written into a content. No id is as long as some that are
/// written there, or has null characters, and databases cannot take them.
#[must_use]
pub fn is_possible(id: &EventId) -> bool {
    id.as_str().len() <= MAX_FIELD_BYTES && !id.as_str().contains('\0')
}

/// The redacted form of an event: only the fields that its room version protects remain. The
/// event keeps its id, hashes and signatures, which were made of this form.
///
/// # Errors
///
/// [`Error::BadEvent`] if the event is not canonical JSON, which only events of versions before 6
/// can be.
pub fn redact(pdu: &Pdu, rules: &RoomVersionRules) -> Result<Pdu, Error> {
    let bad = |error: &dyn fmt::Display| Error::BadEvent(format!("{}: {error}", pdu.event_id));
    let mut object: CanonicalJsonObject =
        serde_json::from_str(&pdu.json).map_err(|error| bad(&error))?;
    redact_in_place(&mut object, &rules.redaction, None).map_err(|error| bad(&error))?;
    let json = serde_json::to_string(&object).map_err(|error| bad(&error))?;
    let mut redacted = Pdu::from_canonical(pdu.event_id.clone(), json, rules)?;
    redacted.rejected = pdu.rejected;
    Ok(redacted)
}

impl state_res::Event for Pdu {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        &self.event_id
    }

    /// The room id that stands in the JSON: authorization rejects a create event that brings one
    /// where it has to be derived.
    fn room_id(&self) -> Option<&RoomId> {
        self.has_room_id.then_some(&*self.room_id)
    }

    fn sender(&self) -> &UserId {
        &self.sender
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.origin_server_ts
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.kind
    }

    fn content(&self) -> &RawValue {
        &self.content
    }

    fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.prev_events.iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.auth_events.iter())
    }

    fn redacts(&self) -> Option<&OwnedEventId> {
        self.redacts.as_ref()
    }

    fn rejected(&self) -> bool {
        self.rejected
    }
}

/// Prints what names the event. Contents are people's words and stay out of logs.
impl fmt::Debug for Pdu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event_id: &EventId = &self.event_id;
        f.debug_struct("Pdu")
            .field("event_id", &event_id)
            .field("room_id", &self.room_id)
            .field("event_type", &self.event_type)
            .finish_non_exhaustive()
    }
}
