//! Where a room stands, and what its state is there.

use std::{collections::HashMap, sync::Arc};

use ruma::{OwnedEventId, UserId, events::StateEventType};

use crate::{
    app::App,
    error::{Error, Result},
    names::Key,
    rooms::{Extremity, Head, Room},
    storage::{self, Event, EventNid, branches},
};

/// State events by type and state key; `None` where the state has none.
pub type StateMap = HashMap<Key, Option<Arc<Event>>>;

/// A pair of event type and state key.
#[must_use]
pub fn key(event_type: &StateEventType, state_key: &str) -> Key {
    (event_type.to_string().into(), state_key.into())
}

/// The head in a room's lock, read if it is not there, and up to date with what is committed.
///
/// # Errors
/// If the database fails.
pub async fn in_slot<'a>(
    app: &App,
    room: &Room,
    slot: &'a mut Option<Head>,
) -> Result<&'a mut Head> {
    let head = match slot {
        Some(head) => head,
        None => slot.insert(load(app, room).await?),
    };
    head.settle(room);
    Ok(head)
}

/// Forgets where a room stands, if that is what was computed from this reading, of which a change was refused.
///
/// # Errors
/// If the server is going down.
pub async fn forget(app: &App, room: &Room, reading: &Arc<()>) -> Result<()> {
    let mut slot = room.head.lock().await;
    if slot
        .as_ref()
        .is_some_and(|head| Arc::ptr_eq(&head.reading, reading))
    {
        *slot = None;
        // Whatever builds on the refused change is refused before the room is read again.
        app.log.settled().await?;
    }
    Ok(())
}

/// Reads where a room stands.
///
/// # Errors
/// If the database fails.
pub async fn load(app: &App, room: &Room) -> Result<Head> {
    let row = storage::rooms::many(&app.db, &[room.nid]).await?.pop();
    let row = row
        .ok_or_else(|| Error::internal(format!("{} has no head", room.id)))?
        .head;
    if room.seen().version < row.version {
        // It was read between a commit and its being told; the log tells in order.
        app.log.settled().await?;
    }
    let known: HashMap<_, _> = storage::events::senders(&app.db, &row.extremities)
        .await?
        .into_iter()
        .map(|(nid, id, sender)| (nid, (id, sender)))
        .collect();
    let after = branches::after(&app.db, &row.extremities).await?;
    let extremities = row
        .extremities
        .iter()
        .map(|nid| {
            let lost = |what| Error::internal(format!("{} has lost {what} {}", room.id, nid.0));
            let (id, sender) = known.get(nid).ok_or_else(|| lost("event"))?;
            let after = after.get(nid).ok_or_else(|| lost("the state after"))?;
            Ok(Extremity {
                nid: *nid,
                id: OwnedEventId::try_from(id.as_str()).map_err(Error::internal)?,
                server: <&UserId>::try_from(sender.as_str())
                    .map_err(Error::internal)?
                    .server_name()
                    .to_owned(),
                after: *after,
            })
        })
        .collect::<Result<_>>()?;
    Ok(Head {
        extremities,
        ..Head::new(row)
    })
}

/// The committed state of a room at these keys.
///
/// # Errors
/// If the database fails.
pub async fn current_state(app: &App, room: &Room, keys: &[Key]) -> Result<StateMap> {
    let mut found = StateMap::with_capacity(keys.len());
    let mut missing = Vec::new();
    let read_at = {
        let seen = room.seen();
        for key in keys {
            match seen.state.get(key) {
                Some(event) => {
                    found.insert(key.clone(), event.clone());
                }
                None => missing.push(key.clone()),
            }
        }
        seen.state_changes
    };
    if missing.is_empty() {
        return Ok(found);
    }
    let nids = app.names.find_keys(&app.db, &missing).await?;
    let wanted: Vec<_> = nids.values().copied().collect();
    let events = storage::state::current(&app.db, room.rules, room.nid, &wanted).await?;
    let by_nid: HashMap<_, _> = events
        .into_iter()
        .filter_map(|event| Some((event.key?, Arc::new(event))))
        .collect();
    let mut seen = room.seen_mut();
    for key in missing {
        // A key that was asked for twice is found twice.
        let event = nids.get(&key).and_then(|nid| by_nid.get(nid).cloned());
        seen.remember_state(read_at, key.clone(), event.clone());
        found.insert(key, event);
    }
    Ok(found)
}

/// Events of a room that are committed, from memory where that has them.
///
/// # Errors
/// If the database fails.
pub async fn events(
    app: &App,
    room: &Room,
    nids: &[EventNid],
) -> Result<HashMap<EventNid, Arc<Event>>> {
    let mut found = HashMap::with_capacity(nids.len());
    if nids.is_empty() {
        return Ok(found);
    }
    {
        let seen = room.seen();
        let known = seen.state.values().flatten().chain(&seen.events);
        let wanted: std::collections::HashSet<_> = nids.iter().collect();
        for event in known.filter(|event| wanted.contains(&event.nid)) {
            found.insert(event.nid, Arc::clone(event));
        }
    }
    let missing: Vec<EventNid> = nids
        .iter()
        .filter(|nid| !found.contains_key(nid))
        .copied()
        .collect();
    for event in storage::events::many(&app.db, room.rules, &missing).await? {
        found.insert(event.nid, Arc::new(event));
    }
    Ok(found)
}

/// One event of the committed state of a room.
///
/// # Errors
/// If the database fails.
pub async fn state_event(
    app: &App,
    room: &Room,
    event_type: &StateEventType,
    state_key: &str,
) -> Result<Option<Arc<Event>>> {
    let key = key(event_type, state_key);
    let mut found = current_state(app, room, std::slice::from_ref(&key)).await?;
    Ok(found.remove(&key).flatten())
}

/// The content of one event of the committed state, if there is one and it can be read as `T`.
///
/// # Errors
/// If the database fails.
pub async fn state_content<T: serde::de::DeserializeOwned>(
    app: &App,
    room: &Room,
    event_type: &StateEventType,
    state_key: &str,
) -> Result<Option<T>> {
    let event = state_event(app, room, event_type, state_key).await?;
    Ok(event.and_then(|event| event.pdu.content_as().ok()))
}

impl Head {
    /// Forgets which state events were on their way and have arrived.
    pub fn settle(&mut self, room: &Room) {
        if !self.pending.is_empty() {
            let committed = room.seen().version;
            self.pending.retain(|_, (_, version)| *version > committed);
        }
    }
}
