//! Whether an event is allowed.
//!
//! The rules themselves are ruma's; this module feeds them with the state that a local event is
//! built on.
//!
//! Specification: <https://spec.matrix.org/v1.19/server-server-api/#authorization-rules>.

use std::borrow::Borrow;

use ruma::{
    EventId, UserId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
    state_res::{self, Event},
};
use serde_json::value::{RawValue, to_raw_value};

use crate::{Draft, Error, Pdu};

/// Why an event is not allowed (`M_FORBIDDEN`), in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejection(pub String);

/// Which state events an event has to name in its `auth_events`, as far as the room has them.
///
/// A create event names none, and from version 12 on no event names the create event.
///
/// # Errors
///
/// [`Error::BadJson`] if it is a member event without a state key or with a malformed content.
pub fn auth_types_for_event(
    rules: &RoomVersionRules,
    event_type: &TimelineEventType,
    sender: &UserId,
    state_key: Option<&str>,
    content: &RawValue,
) -> Result<Vec<(StateEventType, String)>, Error> {
    state_res::auth_types_for_event(event_type, sender, state_key, content, &rules.authorization)
        .map_err(Error::BadJson)
}

impl Draft {
    /// [`auth_types_for_event`] for this draft.
    ///
    /// # Errors
    ///
    /// Those of [`auth_types_for_event`].
    pub fn auth_types(
        &self,
        rules: &RoomVersionRules,
    ) -> Result<Vec<(StateEventType, String)>, Error> {
        let kind = TimelineEventType::from(self.event_type.as_str());
        let state_key = self.state_key.as_deref();
        // Only the content of member events has a say, so no other is serialized for it.
        if kind == TimelineEventType::RoomMember {
            let content =
                to_raw_value(&self.content).map_err(|error| Error::BadJson(error.to_string()))?;
            auth_types_for_event(rules, &kind, &self.sender, state_key, &content)
        } else {
            auth_types_for_event(rules, &kind, &self.sender, state_key, RawValue::NULL)
        }
    }
}

/// Checks an event against the authorization rules of its room version, both those about the
/// event itself with its `auth_events` and those about the state it is built on.
///
/// `fetch_state` gives the event at a type and state key in the state before the event. The
/// `auth_events` must be from this state, as they are in an event that this server makes. `None`
/// means that the state has no such event: what could not be loaded has to be dealt with before.
///
/// Signatures are not checked.
///
/// # Errors
///
/// The [`Rejection`] of the first rule that the event breaks.
pub fn authorize<E: Event + Clone>(
    rules: &RoomVersionRules,
    pdu: &Pdu,
    fetch_state: impl Fn(&StateEventType, &str) -> Option<E>,
) -> Result<(), Rejection> {
    let mut types = state_res::auth_types_for_event(
        &pdu.kind,
        &pdu.sender,
        pdu.state_key.as_deref(),
        &pdu.content,
        &rules.authorization,
    )
    .map_err(Rejection)?;
    if rules.authorization.room_create_event_id_as_room_id
        && pdu.kind != TimelineEventType::RoomCreate
    {
        types.push((StateEventType::RoomCreate, String::new()));
    }
    let known: Vec<E> = types
        .iter()
        .filter_map(|(event_type, state_key)| fetch_state(event_type, state_key))
        .collect();
    authorize_alone(rules, pdu, &known)?;
    authorize_by_state(rules, pdu, fetch_state)
}

/// Checks an event from another server against the state that its `auth_events` make up: step 4 of
/// the [checks on receipt of a PDU][checks].
///
/// `auth_events` are the events that it names, all of them, with `rejected` set where they were;
/// `create` is the create event of the room, which from version 12 on is not among them.
///
/// # Errors
///
/// The [`Rejection`] of the first rule that the event breaks, also if one of the events that it
/// names is missing.
///
/// [checks]: https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu
pub fn authorize_by_auth_events<E: Event + Clone>(
    rules: &RoomVersionRules,
    pdu: &Pdu,
    auth_events: &[E],
    create: Option<&E>,
) -> Result<(), Rejection> {
    let known: Vec<E> = auth_events.iter().chain(create).cloned().collect();
    authorize_alone(rules, pdu, &known)?;
    authorize_by_state(rules, pdu, |event_type, state_key| {
        let is_it = |event: &&E| {
            event.state_key() == Some(state_key)
                && event.event_type().to_string() == event_type.to_string()
        };
        known.iter().find(is_it).cloned()
    })
}

/// Checks the event itself and the choice of its `auth_events`, which are among `known`.
fn authorize_alone<E: Event + Clone>(
    rules: &RoomVersionRules,
    pdu: &Pdu,
    known: &[E],
) -> Result<(), Rejection> {
    let fetch_event = |id: &EventId| {
        let found = known.iter().find(|event| event.event_id().borrow() == id);
        found.cloned()
    };
    state_res::check_state_independent_auth_rules(&rules.authorization, pdu, fetch_event)
        .map_err(Rejection)
}

/// Checks an event against a state: steps 5 and 6 of the checks on receipt of a PDU.
///
/// `fetch_state` gives the event at a type and state key. `None` means that the state has no such
/// event: what could not be loaded has to be dealt with before.
///
/// # Errors
///
/// The [`Rejection`] of the first rule that the event breaks.
pub fn authorize_by_state<E: Event>(
    rules: &RoomVersionRules,
    pdu: &Pdu,
    fetch_state: impl Fn(&StateEventType, &str) -> Option<E>,
) -> Result<(), Rejection> {
    state_res::check_state_dependent_auth_rules(&rules.authorization, pdu, fetch_state)
        .map_err(Rejection)
}
