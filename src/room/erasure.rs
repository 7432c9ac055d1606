//! What others still see of users who had themselves erased ("Account deactivation"): who was in the room when such a
//! user sent an event sees it as it was, all others see it as if it were redacted, and so do other servers. What holds in
//! the room stays as it is: a room keeps its name and its rules, whoever gave them.

use std::{borrow::Borrow, collections::HashMap, sync::Arc};

use homing_federation::{Pdu, event::redact};

use super::{head, visibility::Sight};
use crate::{
    app::App,
    error::{Error, Result},
    names::Key,
    rooms::Room,
    storage::{Event, EventNid, Membership},
};

/// The redacted forms of events of which a viewer may see no more.
#[derive(Debug, Default)]
pub struct Pruned(HashMap<EventNid, Pdu>);

impl Pruned {
    /// An event as the viewer may see it.
    #[must_use]
    pub fn pdu<'e>(&'e self, event: &'e Event) -> &'e Pdu {
        self.0.get(&event.nid).unwrap_or(&event.pdu)
    }

    /// Whether the viewer may see no more than the redacted form of an event.
    #[must_use]
    pub fn has(&self, event: &Event) -> bool {
        self.0.contains_key(&event.nid)
    }
}

/// Finds those of `events` of which a viewer may see the redacted form only. It needs no query as long as no event is
/// of an erased user.
///
/// # Errors
/// If the database fails.
pub async fn prune<'e, E: Borrow<Event> + 'e>(
    app: &App,
    room: &Room,
    sight: &Sight<'_>,
    events: impl Iterator<Item = &'e E>,
) -> Result<Pruned> {
    let mut pruned = Pruned::default();
    if app.erased.is_empty() {
        return Ok(pruned);
    }
    let events: Vec<Arc<Event>> = events
        .map(Borrow::borrow)
        .filter(|event| app.erased.contains(event.sender))
        .map(|event| Arc::new(event.clone()))
        .collect();
    let known;
    let mut sight = sight;
    if events.iter().any(|event| sight.membership(event).is_none()) {
        known = Sight::load(app, room, sight.viewer, &events).await?;
        sight = &known;
    }
    for event in events {
        let was_there = sight.membership(&event) == Some(Membership::Join);
        if !was_there && !holds(app, room, &event).await? {
            let redacted = redact(&event.pdu, room.rules).map_err(Error::internal)?;
            pruned.0.insert(event.nid, redacted);
        }
    }
    Ok(pruned)
}

/// Whether an event is part of the room's current state and about the room, not about somebody.
pub(super) async fn holds(app: &App, room: &Room, event: &Event) -> Result<bool> {
    let pdu = &event.pdu;
    let Some(state_key) = pdu.state_key.as_deref() else {
        return Ok(false);
    };
    if &*pdu.event_type == "m.room.member" {
        return Ok(false);
    }
    let key: Key = ((&*pdu.event_type).into(), state_key.into());
    let state = head::current_state(app, room, std::slice::from_ref(&key)).await?;
    let current = state.get(&key).and_then(Option::as_ref);
    Ok(current.is_some_and(|current| current.nid == event.nid))
}
