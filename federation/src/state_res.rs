//! State resolution, fed with the conflicted part only.
//!
//! The algorithm (versions 2 and 2.1) is ruma's. It wants whole state sets and whole auth chains,
//! which in a large room are tens of thousands of events; here it gets what can make a difference:
//!
//! - of the state sets the keys that differ, and of the unconflicted state the keys that
//!   [`keys_needed`] names. The algorithm looks up no other;
//! - of the auth chains the difference, which a [`Walk`](crate::auth_graph::Walk) finds.
//!
//! The result is the same as with everything; the tests compare the two on random rooms.
//!
//! Specification: <https://spec.matrix.org/v1.19/rooms/v2/#state-resolution> and
//! <https://spec.matrix.org/v1.19/rooms/v12/#state-resolution>.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
};

use ruma::{
    EventId, OwnedEventId,
    events::StateEventType,
    room_version_rules::RoomVersionRules,
    state_res::{self, Event, utils::event_id_set::EventIdSet},
};

pub use ruma::state_res::StateMap;

/// How often an event may be looked at in one resolution. A conflict of five thousand events
/// needs a few hundred thousand looks.
const MAX_FETCHES: usize = 4_000_000;

/// Why state was not resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError<X> {
    /// An event could not be fetched: the error of the caller's function.
    #[error("an event could not be fetched: {0}")]
    Fetch(X),
    /// The events do not allow it: one is missing in the auth chain of another, is malformed, or
    /// they are made to take for ever.
    #[error("state cannot be resolved: {0}")]
    Unresolvable(String),
}

/// The keys of the unconflicted state that [`resolve`] must be given, as far as the unconflicted
/// state has them.
///
/// `events` are the full conflicted set: the conflicting events, the auth difference and, from
/// version 12 on, the conflicted state subgraph. The keys are those of these events, of what
/// authorizes them, and of the create event.
pub fn keys_needed<E: Event>(
    rules: &RoomVersionRules,
    events: impl IntoIterator<Item = E>,
) -> HashSet<(StateEventType, String)> {
    let mut keys = HashSet::from([
        (StateEventType::RoomCreate, String::new()),
        (StateEventType::RoomPowerLevels, String::new()),
    ]);
    for event in events {
        let Some(state_key) = event.state_key() else {
            continue;
        };
        let event_type = StateEventType::from(event.event_type().to_string());
        keys.insert((event_type, state_key.to_owned()));
        // A malformed event is allowed by nothing; ruma passes it over, too.
        let auth_types = state_res::auth_types_for_event(
            event.event_type(),
            event.sender(),
            Some(state_key),
            event.content(),
            &rules.authorization,
        );
        keys.extend(auth_types.into_iter().flatten());
    }
    keys
}

/// Resolves a conflict between state sets.
///
/// - `conflicted` has one map per state set, with its entries of the keys that do not have the
///   same event in every set. A key may be missing in some of them.
/// - `unconflicted` has the entries of the unconflicted state under [`keys_needed`]. More do no
///   harm.
/// - `difference` is the auth difference, and `subgraph` the conflicted state subgraph, which
///   only rules that know it look at. Whether the conflicting events are among them is the same.
/// - `fetch_event` gives an event of the room: the conflicting ones, those of the difference and
///   subgraph, the unconflicted ones, and what is in the auth chains of these, mostly the power
///   levels one after another. It is called often, so `E` should be an `Arc`. `None` means that
///   the event does not exist here, which makes ruma pass it over in silence; **what could not be
///   loaded must be an error**. The first error ends the resolution.
///
/// What comes out is what changes from the unconflicted state: for each conflicting key its event,
/// or `None` if it has none any more. Another key may be there, too, if an event of the
/// difference comes back to life. All else remains unconflicted.
///
/// It computes and blocks: a large conflict belongs into a thread of its own.
///
/// # Errors
///
/// See [`ResolveError`].
pub fn resolve<E, X>(
    rules: &RoomVersionRules,
    conflicted: &[StateMap<OwnedEventId>],
    unconflicted: &StateMap<OwnedEventId>,
    difference: impl IntoIterator<Item = OwnedEventId>,
    subgraph: impl IntoIterator<Item = OwnedEventId>,
    fetch_event: impl Fn(&EventId) -> Result<Option<E>, X>,
) -> Result<StateMap<Option<OwnedEventId>>, ResolveError<X>>
where
    E: Event<Id = OwnedEventId> + Clone,
{
    let version_2 = rules.state_res.v2_rules().ok_or_else(|| {
        ResolveError::Unresolvable("the room version has another algorithm".to_owned())
    })?;
    let sets: Vec<StateMap<OwnedEventId>> = conflicted
        .iter()
        .map(|set| {
            let mut whole = unconflicted.clone();
            whole.extend(set.iter().map(|(key, id)| (key.clone(), id.clone())));
            whole
        })
        .collect();
    // ruma counts in how many chains an event is. In one of two is in the difference.
    let chains = vec![difference.into_iter().collect(), EventIdSet::new()];
    let subgraph: EventIdSet<OwnedEventId> = subgraph.into_iter().collect();

    let failure = RefCell::new(None);
    let fetches = Cell::new(0_usize);
    let fetch = |id: &EventId| {
        if failure.borrow().is_some() {
            return None;
        }
        fetches.set(fetches.get() + 1);
        let fetched = if fetches.get() > MAX_FETCHES {
            Err(ResolveError::Unresolvable("it takes too long".to_owned()))
        } else {
            fetch_event(id).map_err(ResolveError::Fetch)
        };
        fetched.unwrap_or_else(|error| {
            *failure.borrow_mut() = Some(error);
            None
        })
    };
    let resolved = state_res::resolve(
        &rules.authorization,
        version_2,
        &sets,
        chains,
        fetch,
        |_| Some(subgraph.clone()),
    );
    if let Some(failure) = failure.into_inner() {
        return Err(failure);
    }
    let resolved = resolved.map_err(|error| ResolveError::Unresolvable(error.to_string()))?;

    let mut changes: StateMap<Option<OwnedEventId>> = conflicted
        .iter()
        .flat_map(StateMap::keys)
        .map(|key| (key.clone(), None))
        .collect();
    for (key, id) in resolved {
        if changes.contains_key(&key) || !unconflicted.contains_key(&key) {
            changes.insert(key, Some(id));
        }
    }
    Ok(changes)
}

/// Splits state sets into what is the same in all of them, and what each has under the keys where
/// they differ.
///
/// This is for state that is at hand as a whole, such as another server's answer. Who keeps state
/// as changes knows the difference without it.
#[must_use]
pub fn split(
    sets: &[StateMap<OwnedEventId>],
) -> (StateMap<OwnedEventId>, Vec<StateMap<OwnedEventId>>) {
    let Some((first, others)) = sets.split_first() else {
        return (StateMap::new(), Vec::new());
    };
    let is_same = |key: &(StateEventType, String), id: &OwnedEventId| {
        others.iter().all(|other| other.get(key) == Some(id))
    };
    let unconflicted: StateMap<OwnedEventId> = first
        .iter()
        .filter(|(key, id)| is_same(key, id))
        .map(|(key, id)| (key.clone(), id.clone()))
        .collect();
    let conflicted = sets
        .iter()
        .map(|set| {
            let differs = set
                .iter()
                .filter(|(key, _)| !unconflicted.contains_key(*key));
            differs.map(|(key, id)| (key.clone(), id.clone())).collect()
        })
        .collect();
    (unconflicted, conflicted)
}
