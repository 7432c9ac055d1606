//! Whether a room's rules allow an event of another server: steps 4 to 6 of the checks.

use std::sync::Arc;

use homing_federation::{
    Pdu, Rejection, auth_types_for_event, authorize_by_auth_events, authorize_by_state,
};
use ruma::events::StateEventType;

use crate::{
    names::Key,
    room::{
        append::step::key_of,
        head::{self, StateMap},
    },
    rooms::Room,
    storage::Event,
};

/// What the rules say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is allowed.
    Accepted,
    /// It is not.
    Rejected(String),
}

impl From<Result<(), Rejection>> for Verdict {
    fn from(result: Result<(), Rejection>) -> Self {
        match result {
            Ok(()) => Self::Accepted,
            Err(rejection) => Self::Rejected(rejection.to_string()),
        }
    }
}

/// The keys of the state that an event is judged by, and of what it takes the place of.
pub(super) fn keys(room: &Room, pdu: &Pdu) -> Vec<Key> {
    let types = auth_types_for_event(
        room.rules,
        &pdu.kind,
        &pdu.sender,
        pdu.state_key.as_deref(),
        &pdu.content,
    );
    // What makes no sense is judged by nothing: the rules refuse it first.
    let types = types.unwrap_or_default();
    let mut keys: Vec<Key> = types
        .iter()
        .map(|(kind, state_key)| head::key(kind, state_key))
        .collect();
    for kind in [StateEventType::RoomCreate, StateEventType::RoomPowerLevels] {
        keys.push(head::key(&kind, ""));
    }
    keys.extend(key_of(pdu));
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Whether the events that it names allow it. The create event is taken from `state`.
pub(super) fn by_auth_events(
    room: &Room,
    pdu: &Pdu,
    auth_events: &[Arc<Event>],
    state: &StateMap,
) -> Verdict {
    let create = state
        .get(&head::key(&StateEventType::RoomCreate, ""))
        .and_then(Option::as_ref);
    let auth_events: Vec<Arc<Pdu>> = auth_events
        .iter()
        .map(|event| Arc::clone(&event.pdu))
        .collect();
    let create = create.map(|event| Arc::clone(&event.pdu));
    authorize_by_auth_events(room.rules, pdu, &auth_events, create.as_ref()).into()
}

/// Whether a state allows it.
pub(super) fn by_state(room: &Room, pdu: &Pdu, state: &StateMap) -> Verdict {
    authorize_by_state(room.rules, pdu, |kind, state_key| {
        let event = state.get(&head::key(kind, state_key))?.as_ref()?;
        Some(Arc::clone(&event.pdu))
    })
    .into()
}
