//! Asking other servers for events that are missing ("Backfilling and retrieving missing events", "Retrieving events").
//!
//! What comes back is checked like everything else that comes from there. A server that does not answer, or not sensibly,
//! is no failure of this one: then the answer is `None`.

use std::{collections::HashMap, sync::Arc};

use futures_util::{StreamExt as _, stream};
use homing_federation::{Pdu, client};
use ruma::{
    EventId, OwnedEventId, ServerName, UInt,
    api::federation::{
        authorization::get_event_authorization,
        backfill::get_backfill,
        event::{get_event, get_missing_events, get_room_state, get_room_state_ids},
    },
};
use serde_json::value::RawValue;
use tracing::debug;

use super::{outliers, verify::verify};
use crate::{
    app::App,
    error::Result,
    room::branches::Derived,
    rooms::Room,
    storage::{
        self, EventNid, KeyNid,
        events::{Stub, flags},
        state::StateAt,
    },
};

/// How many missing events are asked for at once.
const MISSING_EVENTS: u32 = 20;
/// How many events are asked for at once when somebody reads history.
pub(super) const BACKFILL: u32 = 100;
/// How many events are asked for one by one, and how many at the same time.
const SINGLE_EVENTS: usize = 100;
const SINGLE_AT_ONCE: usize = 8;
/// The most events of a state, or of an auth chain, that are looked at.
const MAX_STATE: usize = 100_000;
/// The most that an answer with events may have, in bytes.
const STATE_LIMITS: client::Limits = client::Limits {
    time: std::time::Duration::from_mins(2),
    bytes: 256 << 20,
};

fn answer<T>(what: &str, server: &ServerName, result: Result<T, client::Error>) -> Option<T> {
    match result {
        Ok(answer) => Some(answer),
        Err(error) => {
            debug!(%server, %error, "cannot get {what}");
            None
        }
    }
}

/// Those of some texts that are good events of the room.
async fn good(app: &App, room: &Room, texts: Vec<Box<RawValue>>) -> Result<Vec<Arc<Pdu>>> {
    let mut good = Vec::with_capacity(texts.len());
    for checked in verify(app, room.rules, texts).await? {
        match checked {
            Ok(pdu) if pdu.room_id == room.id => good.push(pdu),
            Ok(pdu) => debug!(event = %pdu.event_id, "an event of another room was answered"),
            Err(error) => debug!(%error, "what was answered is no good event"),
        }
    }
    Ok(good)
}

/// The events between those that the room has last and one that follows them, oldest first; `None` if the other server does
/// not answer.
///
/// # Errors
/// If the database fails.
pub(super) async fn missing_events(
    app: &App,
    room: &Room,
    from: &ServerName,
    latest: &EventId,
    earliest: Vec<OwnedEventId>,
) -> Result<Option<Vec<Arc<Pdu>>>> {
    let mut request =
        get_missing_events::v1::Request::new(room.id.clone(), earliest, vec![latest.to_owned()]);
    request.limit = UInt::from(MISSING_EVENTS);
    let mut answered = match app.federation.send(from, request).await {
        Ok(answered) => answered,
        // It has answered, if not well.
        Err(client::Error::Nonsense(_)) => return Ok(Some(Vec::new())),
        Err(error) => {
            debug!(server = %from, %error, "cannot get missing events");
            return Ok(None);
        }
    };
    answered.events.truncate(MISSING_EVENTS as usize);
    let mut events = good(app, room, answered.events).await?;
    events.sort_by_key(|pdu| pdu.depth);
    Ok(Some(events))
}

/// Events from `latest` on backwards, oldest first.
///
/// # Errors
/// If the database fails.
pub(super) async fn history(
    app: &App,
    room: &Room,
    from: &ServerName,
    latest: Vec<OwnedEventId>,
) -> Result<Option<Vec<Arc<Pdu>>>> {
    let request = get_backfill::v1::Request::new(room.id.clone(), latest, UInt::from(BACKFILL));
    let answered = app.federation.send(from, request).await;
    let Some(mut answered) = answer("history", from, answered) else {
        return Ok(None);
    };
    answered.pdus.truncate(BACKFILL as usize);
    let mut events = good(app, room, answered.pdus).await?;
    events.sort_by_key(|pdu| pdu.depth);
    Ok(Some(events))
}

/// Keeps the events that an event rests on, as another server tells of them.
///
/// # Errors
/// If the database fails.
pub(super) async fn auth_chain(
    app: &App,
    room: &Arc<Room>,
    from: &ServerName,
    event_id: &EventId,
) -> Result<()> {
    let request = get_event_authorization::v1::Request::new(room.id.clone(), event_id.to_owned());
    let answered = app
        .federation
        .send_within(STATE_LIMITS, from, request)
        .await;
    if let Some(mut answered) = answer("an auth chain", from, answered) {
        answered.auth_chain.truncate(MAX_STATE);
        let events = good(app, room, answered.auth_chain).await?;
        outliers::keep(app, room, events).await?;
    }
    Ok(())
}

/// Keeps single events as outliers. Only so many are asked for.
///
/// # Errors
/// If the database fails.
pub(super) async fn single_events(
    app: &App,
    room: &Arc<Room>,
    from: &ServerName,
    ids: &[OwnedEventId],
) -> Result<HashMap<OwnedEventId, Stub>> {
    let ids: Vec<OwnedEventId> = ids.iter().take(SINGLE_EVENTS).cloned().collect();
    let mut answers = stream::iter(ids)
        .map(|id| single_event(app, from, id))
        .buffer_unordered(SINGLE_AT_ONCE);
    let mut texts = Vec::new();
    while let Some(text) = answers.next().await {
        texts.extend(text);
    }
    drop(answers);
    let events = good(app, room, texts).await?;
    outliers::keep(app, room, events).await
}

async fn single_event(app: &App, from: &ServerName, id: OwnedEventId) -> Option<Box<RawValue>> {
    let request = get_event::v1::Request::new(id);
    let answered = app.federation.send(from, request).await;
    answer("an event", from, answered).map(|answered| answered.pdu)
}

/// The state after an event that is not here, as another server tells of it; `None` if that server cannot tell.
///
/// # Errors
/// If the database fails.
pub(super) async fn state_after(
    app: &App,
    room: &Arc<Room>,
    from: &ServerName,
    event_id: &EventId,
) -> Result<Option<Derived>> {
    let event = single_events(app, room, from, &[event_id.to_owned()]).await?;
    let Some(mut state) = state_before(app, room, from, event_id).await? else {
        return Ok(None);
    };
    // An event that cannot be got may be state too; then its state before it is the nearest that can be known.
    if let Some(stub) = event.get(event_id)
        && stub.flags & flags::REJECTED == 0
    {
        let found = storage::events::many(&app.db, room.rules, &[stub.nid]).await?;
        if let Some(key) = found.first().and_then(|event| event.key) {
            state = state.with(key, stub.nid);
        }
    }
    Ok(Some(state))
}

/// The state before an event, as another server tells of it; `None` if that server cannot tell.
///
/// # Errors
/// If the database fails.
pub(super) async fn state_before(
    app: &App,
    room: &Arc<Room>,
    from: &ServerName,
    event_id: &EventId,
) -> Result<Option<Derived>> {
    let request = get_room_state_ids::v1::Request::new(event_id.to_owned(), room.id.clone());
    let answered = app
        .federation
        .send_within(STATE_LIMITS, from, request)
        .await;
    let Some(answered) = answer("the ids of a state", from, answered) else {
        return Ok(None);
    };
    let (state, chain) = (answered.pdu_ids, answered.auth_chain_ids);
    if state.len() + chain.len() > MAX_STATE {
        return Ok(None);
    }
    let all = || state.iter().chain(&chain).map(ToString::to_string);
    let known = storage::events::stubs(&app.db, all().collect()).await?;
    let missing: Vec<OwnedEventId> = state
        .iter()
        .chain(&chain)
        .filter(|id| !known.contains_key(id.as_str()))
        .cloned()
        .collect();
    if missing.len() > SINGLE_EVENTS {
        whole_state(app, room, from, event_id).await?;
    } else if !missing.is_empty() {
        single_events(app, room, from, &missing).await?;
    }
    let ids = state.iter().map(ToString::to_string).collect();
    let known = storage::events::stubs(&app.db, ids).await?;
    let is_good = |stub: &&Stub| stub.room == room.nid && stub.flags & flags::REJECTED == 0;
    let nids: Vec<EventNid> = known
        .values()
        .filter(is_good)
        .map(|stub| stub.nid)
        .collect();
    as_derived(app, room, &nids).await.map(Some)
}

/// Keeps all events of the state before an event.
async fn whole_state(
    app: &App,
    room: &Arc<Room>,
    from: &ServerName,
    event_id: &EventId,
) -> Result<()> {
    let request = get_room_state::v1::Request::new(event_id.to_owned(), room.id.clone());
    let answered = app
        .federation
        .send_within(STATE_LIMITS, from, request)
        .await;
    if let Some(answered) = answer("a state", from, answered) {
        let mut texts = answered.auth_chain;
        texts.extend(answered.pdus);
        texts.truncate(MAX_STATE);
        let events = good(app, room, texts).await?;
        outliers::keep(app, room, events).await?;
    }
    Ok(())
}

/// A state that consists of some events, told by how it differs from the current one.
async fn as_derived(app: &App, room: &Room, events: &[EventNid]) -> Result<Derived> {
    let keys = storage::events::keys(&app.db, events).await?;
    let wanted: HashMap<KeyNid, EventNid> = keys.into_iter().collect();
    let head = storage::rooms::many(&app.db, &[room.nid]).await?.pop();
    let base = head.map_or(StateAt { line: 0, sv: 0 }, |row| StateAt {
        line: row.head.state_line,
        sv: row.head.state_sv,
    });
    let current: HashMap<KeyNid, EventNid> = storage::state::all_at(&app.db, base)
        .await?
        .into_iter()
        .collect();
    let mut state = Derived::stored(base);
    for key in current.keys().chain(wanted.keys()) {
        if current.get(key) != wanted.get(key) {
            state.changes.insert(*key, wanted.get(key).copied());
        }
    }
    Ok(state)
}
