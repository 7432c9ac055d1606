//! Several events of a room's past in one change: what the first ones of them have told cannot be read from the database
//! when the next are judged.

use std::{collections::HashMap, sync::Arc};

use ruma::{EventId, OwnedEventId};

use super::{append::step::Step, branches::Derived, head};
use crate::{
    error::Result,
    names::Key,
    storage::{Event, EventNid, KeyNid, branches, gaps, relations::Early, state::StateAt},
};

/// What a change has told so far of a room's past.
#[derive(Debug, Default)]
pub(in crate::room) struct Past {
    /// The states after its events.
    after: HashMap<OwnedEventId, StateAt>,
    /// What those states are that the database does not have yet.
    told: HashMap<StateAt, Derived>,
    /// The newest versions of the lines that it goes on with.
    tips: HashMap<i64, i64>,
    /// The line that it has begun. What rests on that is told in the next change.
    opened: Option<i64>,
    /// Events that are no longer missing.
    closed: Vec<String>,
    /// Events that have come before those which they relate to.
    early: Vec<Early>,
    /// Its events, and those of the states that were looked at.
    events: HashMap<EventNid, Arc<Event>>,
    /// What states had that were looked at.
    values: HashMap<StateAt, HashMap<KeyNid, Option<EventNid>>>,
}

impl Past {
    /// Whether it has told nothing.
    pub(in crate::room) fn is_empty(&self) -> bool {
        self.after.is_empty()
    }

    /// Whether a line has begun in this change.
    pub(in crate::room) fn has_opened(&self) -> bool {
        self.opened.is_some()
    }

    /// Whether this line has.
    pub(in crate::room) fn has_begun(&self, line: i64) -> bool {
        self.opened == Some(line)
    }

    /// Notes a line that has begun.
    pub(in crate::room) fn begin(&mut self, line: i64) {
        self.opened = Some(line);
    }

    /// The state after one of its events.
    pub(in crate::room) fn after(&self, event: &EventId) -> Option<StateAt> {
        self.after.get(event).copied()
    }

    /// Notes the state after an event.
    pub(in crate::room) fn follow(&mut self, event: OwnedEventId, after: StateAt) {
        self.after.insert(event, after);
    }

    /// Notes an event.
    pub(in crate::room) fn keep(&mut self, event: Arc<Event>) {
        self.events.insert(event.nid, event);
    }

    /// One of its events.
    pub(in crate::room) fn find(&self, event: &EventId) -> Option<&Arc<Event>> {
        self.after.get(event)?;
        let mut events = self.events.values();
        events.find(|known| known.pdu.event_id == event)
    }

    /// Notes that an event is here now.
    pub(in crate::room) fn close(&mut self, event: &EventId) {
        self.closed.push(event.to_string());
    }

    /// Notes an event that has come before the one that it relates to.
    pub(in crate::room) fn came_early(&mut self, early: Early) {
        self.early.push(early);
    }

    /// Those events that have come before the ones that they relate to, and were not asked for yet.
    pub(in crate::room) fn take_early(&mut self) -> Vec<Early> {
        std::mem::take(&mut self.early)
    }
}

impl Step<'_> {
    /// A version of a line, as the database knows it or told by how it differs from one that it does.
    pub(in crate::room) fn told(&self, at: StateAt) -> Derived {
        let told = self.past.told.get(&at);
        told.cloned().unwrap_or_else(|| Derived::stored(at))
    }

    /// Notes the version that follows another on its line, with another event for one key; not once a line has begun, as
    /// nothing in this change rests on what comes then.
    pub(in crate::room) fn tell(
        &mut self,
        (before, after): (StateAt, StateAt),
        key: KeyNid,
        event: EventNid,
    ) {
        if self.past.has_opened() {
            return;
        }
        let told = self.told(before).with(key, event);
        self.past.told.insert(after, told);
        self.past.tips.insert(after.line, after.sv);
    }

    /// The newest version of a line.
    pub(in crate::room) async fn tip(&self, line: i64) -> Result<i64> {
        match self.past.tips.get(&line) {
            Some(tip) => Ok(*tip),
            None => Ok(branches::tip(&self.app.db, line).await?),
        }
    }

    /// The state events at some keys of a state. What was read once is not read again.
    pub(in crate::room) async fn events_of(
        &mut self,
        state: &Derived,
        keys: &[Key],
    ) -> Result<head::StateMap> {
        let (app, room) = (self.app, self.room);
        let nids = app.names.find_keys(&app.db, keys).await?;
        let known = self.past.values.entry(state.base).or_default();
        let unknown = nids.values().filter(|key| !known.contains_key(key));
        let unknown: Vec<KeyNid> = unknown.copied().collect();
        if !unknown.is_empty() {
            known.extend(branches::values(&app.db, state.base, &unknown).await?);
        }
        let value = |key: &Key| {
            let nid = nids.get(key)?;
            let changed = state.changes.get(nid).or_else(|| known.get(nid));
            changed.copied().flatten()
        };
        let events = &mut self.past.events;
        let missing = keys.iter().filter_map(value);
        let missing: Vec<EventNid> = missing.filter(|nid| !events.contains_key(nid)).collect();
        events.extend(head::events(app, room, &missing).await?);
        let event_at = |key: &Key| events.get(&value(key)?).cloned();
        Ok(keys
            .iter()
            .map(|key| (key.clone(), event_at(key)))
            .collect())
    }

    /// Writes down which events are no longer missing.
    pub(in crate::room) fn close_gaps(&mut self) {
        let closed = std::mem::take(&mut self.past.closed);
        if !closed.is_empty() {
            self.change.write(gaps::close(self.room.nid, closed));
        }
    }
}
