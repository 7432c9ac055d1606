//! The state at any event, where a room's history has branches ("State resolution").
//!
//! A state is told by how it differs from a stored version of a line, so that a room's size does not count, only what its
//! branches disagree about.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    append::{names::Names, step::Step},
    head,
    resolution::{self, Newest},
    visibility::VISIBILITY,
};
use crate::{
    app::App,
    error::{Error, Result},
    names::Key,
    rooms::Room,
    storage::{
        self, Event, EventNid, KeyNid, Position,
        branches::{difference, set_after, values},
        events::flags,
        state::{StateAt, ancestry},
    },
};

/// How deep lines may nest before a state is told anew by how it differs from the room's main line.
const MAX_NESTING: usize = 5;
/// How many merged states a room remembers.
const MERGES: usize = 32;

/// The state before a room's first event: there is no such line.
const NOTHING: StateAt = StateAt { line: 0, sv: 0 };

/// A state of a room: that of a version of a line, but for some keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Derived {
    /// The version.
    pub base: StateAt,
    /// The keys that have another event than there; `None` where the state has none.
    pub changes: HashMap<KeyNid, Option<EventNid>>,
}

impl Derived {
    /// A stored state.
    #[must_use]
    pub fn stored(base: StateAt) -> Self {
        Self {
            base,
            changes: HashMap::new(),
        }
    }

    /// The same with another event for one key.
    #[must_use]
    pub fn with(mut self, key: KeyNid, event: EventNid) -> Self {
        self.changes.insert(key, Some(event));
        self
    }

    /// The events at some keys.
    pub(super) async fn values(
        &self,
        app: &App,
        keys: &[KeyNid],
    ) -> Result<HashMap<KeyNid, Option<EventNid>>> {
        let mut found = values(&app.db, self.base, keys).await?;
        for (key, event) in &mut found {
            if let Some(changed) = self.changes.get(key) {
                *event = *changed;
            }
        }
        Ok(found)
    }
}

/// The keys about which states disagree, with the event that each state has there.
#[derive(Debug, Default)]
pub struct Conflict {
    /// The keys.
    pub keys: Vec<KeyNid>,
    /// For each state, the events at these keys, as far as it has any.
    pub states: Vec<HashMap<KeyNid, EventNid>>,
}

/// What some states disagree about.
///
/// # Errors
/// If the database fails.
pub async fn compare(app: &App, states: &[Derived]) -> Result<Conflict> {
    let Some((first, others)) = states.split_first() else {
        return Ok(Conflict::default());
    };
    let mut keys: HashSet<KeyNid> = states
        .iter()
        .flat_map(|state| state.changes.keys().copied())
        .collect();
    for other in others {
        keys.extend(
            difference(&app.db, first.base, other.base)
                .await?
                .into_keys(),
        );
    }
    if keys.is_empty() {
        return Ok(Conflict::default());
    }
    let mut keys: Vec<KeyNid> = keys.into_iter().collect();
    let mut found = Vec::with_capacity(states.len());
    for state in states {
        found.push(state.values(app, &keys).await?);
    }
    keys.retain(|key| {
        found
            .iter()
            .any(|state| state.get(key) != found[0].get(key))
    });
    keys.sort_unstable();
    let states = found
        .into_iter()
        .map(|state| {
            keys.iter()
                .filter_map(|key| Some((*key, (*state.get(key)?)?)))
                .collect()
        })
        .collect();
    Ok(Conflict { keys, states })
}

/// The state in which branches meet whose states are these: resolved where they disagree. `newest` is an event in them that
/// is not stored yet.
///
/// # Errors
/// If the database fails, or more must be looked at than is allowed.
pub async fn merge(
    app: &App,
    room: &Room,
    states: Vec<Derived>,
    newest: Option<Newest<'_>>,
) -> Result<Derived> {
    let conflict = compare(app, &states).await?;
    let mut states = states.into_iter();
    let Some(mut merged) = states.next() else {
        return Err(Error::internal("no states to merge"));
    };
    if !conflict.keys.is_empty() {
        let resolved = resolution::resolve(app, room, &merged, &conflict, newest).await?;
        merged.changes.extend(resolved);
    }
    Ok(merged)
}

impl Step<'_> {
    /// The state before an event that follows events after which the state is `states`, of which each is told once, in
    /// order.
    pub(in crate::room) async fn met(&self, states: &[StateAt]) -> Result<Derived> {
        match states {
            [] => return Ok(Derived::stored(NOTHING)),
            [only] => return Ok(self.told(*only)),
            _ => {}
        }
        let known = self.head.merges.iter().find(|(met, _)| met == states);
        if let Some((_, merged)) = known {
            return Ok(Derived::stored(*merged));
        }
        let extremities = self.extremities.iter().map(|one| one.after);
        let mut current: Vec<StateAt> = extremities.collect();
        current.sort_unstable_by_key(|at| (at.line, at.sv));
        current.dedup();
        if current == states {
            return Ok(Derived::stored(self.current()));
        }
        let states = states.iter().copied().map(Derived::stored).collect();
        merge(self.app, self.room, states, None).await
    }

    /// Makes a state a stored one in which the states `met` have met.
    pub(in crate::room) async fn keep_state(
        &mut self,
        met: &[StateAt],
        state: &Derived,
    ) -> Result<StateAt> {
        if let [only] = met {
            return Ok(*only);
        }
        if state.changes.is_empty() {
            return Ok(state.base);
        }
        let db = &self.app.db;
        let is_deep = ancestry(db, state.base).await?.len() >= MAX_NESTING;
        let (parent, changes) = if is_deep {
            self.against_main_line(state).await?
        } else {
            (state.base, state.changes.clone())
        };
        let at = self.open_line(parent)?;
        for (key, event) in changes {
            self.change
                .write(storage::state::set_in_line(at, key, event));
        }
        if met.len() > 1 {
            self.head.merges.push_back((met.to_vec(), at));
            if self.head.merges.len() > MERGES {
                self.head.merges.pop_front();
            }
        }
        Ok(at)
    }

    /// How a state differs from the newest version of the main line.
    async fn against_main_line(
        &self,
        state: &Derived,
    ) -> Result<(StateAt, HashMap<KeyNid, Option<EventNid>>)> {
        let main = self.current();
        let both = [Derived::stored(main), state.clone()];
        let conflict = compare(self.app, &both).await?;
        let of_state = conflict.states.get(1);
        let changes = conflict.keys.iter().map(|key| {
            let event = of_state.and_then(|events| events.get(key));
            (*key, event.copied())
        });
        Ok((main, changes.collect()))
    }

    fn open_line(&mut self, parent: StateAt) -> Result<StateAt> {
        let line = self.app.log.new_id()?;
        let parent = (parent != NOTHING).then_some(parent);
        let write = storage::state::add_line(line, self.room.nid, parent);
        self.change.write(write);
        self.past.begin(line);
        Ok(StateAt { line, sv: 1 })
    }

    /// The state after a state event whose place is not on top of the current state. Answers also whether that is another
    /// version than the next one of the line of the state before it.
    pub(in crate::room) async fn branch_off(
        &mut self,
        before: StateAt,
        key: KeyNid,
        event: EventNid,
    ) -> Result<(StateAt, bool)> {
        let next = StateAt {
            sv: before.sv + 1,
            ..before
        };
        let is_main = before.line == self.row.state_line;
        let follows = self.past.has_begun(before.line)
            || (!is_main && before != NOTHING && self.tip(before.line).await? == before.sv);
        let after = if follows {
            self.tell((before, next), key, event);
            next
        } else if ancestry(&self.app.db, before).await?.len() >= MAX_NESTING {
            let (main, changes) = self.against_main_line(&self.told(before)).await?;
            let at = self.open_line(main)?;
            for (key, event) in changes {
                self.change
                    .write(storage::state::set_in_line(at, key, event));
            }
            StateAt { sv: 2, ..at }
        } else {
            self.open_line(before)?
        };
        self.change
            .write(storage::state::set_in_line(after, key, Some(event)));
        if !follows {
            self.change.write(set_after(event, after));
        }
        Ok((after, !follows))
    }

    /// Makes `state` the current one. Answers whether anything has changed beside `own`, the key of the event that has
    /// just come, and whether that key has this event now.
    pub(in crate::room) async fn set_current(
        &mut self,
        state: &Derived,
        own: Option<(&Key, &Event)>,
        at: Position,
    ) -> Result<Changed> {
        let both = [Derived::stored(self.current()), state.clone()];
        let conflict = compare(self.app, &both).await?;
        let mut changed = Changed::default();
        if conflict.keys.is_empty() {
            return Ok(changed);
        }
        let [before, after] = [0, 1].map(|index| conflict.states.get(index));
        let nids: Vec<EventNid> = before
            .into_iter()
            .chain(after)
            .flat_map(HashMap::values)
            .copied()
            .collect();
        let mut events = head::events(self.app, self.room, &nids).await?;
        if let Some((_, own)) = own {
            events.insert(own.nid, Arc::new(own.clone()));
        }
        // Members whose own events do not come now are told of too.
        let pdus: Vec<_> = events
            .values()
            .map(|event| Arc::clone(&event.pdu))
            .collect();
        self.others = Names::give_for(self.app, &pdus).await?;
        let names = self
            .app
            .names
            .key_names(&self.app.db, &conflict.keys)
            .await?;
        self.row.state_sv += 1;
        for nid in conflict.keys {
            let Some(key) = names.get(&nid) else {
                return Err(Error::internal("a key has no name"));
            };
            let find =
                |state: Option<&HashMap<KeyNid, EventNid>>| events.get(state?.get(&nid)?).cloned();
            let (old, mut new) = (find(before), find(after));
            if let (Some(_), Some(event)) = (&old, &mut new)
                && event.replaces.is_none()
                && *key.0 == *VISIBILITY
            {
                // Else the room would seem to have shown all of its history as it does now.
                Arc::make_mut(event).flags |= flags::TOOK_OVER;
                self.change.write(storage::events::take_over(event.nid));
            }
            self.set_state(key.clone(), Some(nid), new.as_deref(), old.as_deref(), at)?;
            let is_own =
                own.is_some_and(|(_, own)| new.as_ref().is_some_and(|new| new.nid == own.nid));
            if is_own {
                changed.own = true;
                changed.replaces = old.map(|old| old.nid);
            } else {
                changed.others.push((key.clone(), new));
            }
        }
        Ok(changed)
    }
}

/// What became of the current state.
#[derive(Debug, Default)]
pub(in crate::room) struct Changed {
    /// The event that has just come holds now.
    pub(in crate::room) own: bool,
    /// The event whose place it took.
    pub(in crate::room) replaces: Option<EventNid>,
    /// The other keys that have changed, with what they have now.
    pub(in crate::room) others: Vec<(Key, Option<Arc<Event>>)>,
}
