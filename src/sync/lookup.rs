//! Events of the current state of many rooms.

use std::{collections::HashMap, sync::Arc};

use super::Context;
use crate::{
    error::Result,
    names::Key,
    rooms::Room,
    storage::{self, Event, RoomNid, sync::Rules},
};

/// State events by room, type and state key.
pub(super) type Found = HashMap<(RoomNid, Key), Arc<Event>>;

/// The rules of some rooms.
pub(super) fn rules<'r>(rooms: impl IntoIterator<Item = &'r Arc<Room>>) -> Rules {
    rooms
        .into_iter()
        .map(|room| (room.nid, room.rules))
        .collect()
}

/// The events of the current state with these keys: from memory, and what is not there with one query for all rooms.
pub(super) async fn state(context: &Context<'_>, wanted: Vec<(Arc<Room>, Key)>) -> Result<Found> {
    let app = context.app;
    let mut found = Found::with_capacity(wanted.len());
    let mut missing = Vec::new();
    for (room, key) in wanted {
        let seen = room.seen();
        match seen.state.get(&key) {
            Some(Some(event)) => drop(found.insert((room.nid, key), Arc::clone(event))),
            Some(None) => {}
            None => {
                let read_at = seen.state_changes;
                drop(seen);
                missing.push((room, key, read_at));
            }
        }
    }
    if missing.is_empty() {
        return Ok(found);
    }
    let mut keys: Vec<Key> = missing.iter().map(|(_, key, _)| key.clone()).collect();
    keys.sort_unstable();
    keys.dedup();
    let nids = app.names.find_keys(&app.db, &keys).await?;
    let mut pairs: Vec<_> = missing
        .iter()
        .filter_map(|(room, key, _)| Some((room.nid, *nids.get(key)?)))
        .collect();
    pairs.sort_unstable();
    pairs.dedup();
    let rules = rules(missing.iter().map(|(room, _, _)| room));
    let by_key: HashMap<_, _> = storage::sync::state_of(&app.db, &rules, &pairs)
        .await?
        .into_iter()
        .map(|(key, event)| (key, event.map(Arc::new)))
        .collect();
    for (room, key, read_at) in missing {
        let event = match nids.get(&key).map(|nid| by_key.get(&(room.nid, *nid))) {
            // One that cannot be read is no reason for others to believe that there is none.
            Some(Some(None)) => continue,
            event => event.flatten().cloned().flatten(),
        };
        room.seen_mut()
            .remember_state(read_at, key.clone(), event.clone());
        if let Some(event) = event {
            found.insert((room.nid, key), event);
        }
    }
    Ok(found)
}

/// Makes a key.
pub(super) fn key(event_type: &str, state_key: &str) -> Key {
    (event_type.into(), state_key.into())
}
