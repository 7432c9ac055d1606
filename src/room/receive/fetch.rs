//! Asking other servers for events that are missing ("Backfilling and retrieving missing events", "Retrieving events").
//!
//! What comes back is checked like everything else that comes from there. A server that does not answer, or not sensibly,
//! is no failure of this one: then the answer is `None`.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use homing_federation::{Pdu, client};
use ruma::{
    EventId, OwnedEventId, OwnedServerName, ServerName, UInt,
    api::{
        OutgoingRequest,
        federation::{
            authentication::ServerSignatures,
            authorization::get_event_authorization,
            backfill::get_backfill,
            event::{get_event, get_missing_events, get_room_state, get_room_state_ids},
        },
        path_builder::SinglePath,
    },
};
use serde_json::value::RawValue;
use tracing::debug;

use super::{
    outliers,
    parts::{self, Part},
    verify::verify,
};
use crate::{
    app::App,
    error::Result,
    room::branches::Derived,
    rooms::Room,
    storage::{
        self, EventNid, KeyNid,
        events::{Stub, flags},
        gaps,
        state::StateAt,
    },
};

/// How many missing events are asked for at once.
const MISSING_EVENTS: u32 = 20;
/// How many events are asked for at once when somebody reads history.
pub(super) const BACKFILL: u32 = 100;
/// How many events are asked for one by one, and how many at the same time.
const SINGLE_EVENTS: usize = 100;
const SINGLE_AT_ONCE: usize = 4;
/// The most events of a state that are looked at, and of the auth chain of an event.
const MAX_STATE: usize = 100_000;
const MAX_CHAIN: usize = 20_000;
/// The most bytes of events that wait for others which they rest on.
const MAX_DEFERRED: usize = 64 << 20;
/// How often events that rest on later ones are tried again.
const ROUNDS: usize = 5;
/// What an answer with a few events may cost.
const FEW: client::Limits = client::Limits {
    time: Duration::from_secs(30),
    bytes: 10 << 20,
};
/// What the ids of a state may cost, an auth chain, and a state.
const IDS: client::Limits = client::Limits {
    time: Duration::from_mins(1),
    bytes: 16 << 20,
};
const CHAIN: client::Limits = client::Limits {
    time: Duration::from_mins(1),
    bytes: 64 << 20,
};
const STATE: client::Limits = client::Limits {
    time: Duration::from_mins(2),
    bytes: 256 << 20,
};

/// What is asked of others because of one event: until when, and of whom no more.
#[derive(Debug)]
pub(super) struct Search {
    until: Instant,
    silent: Mutex<HashSet<OwnedServerName>>,
}

impl Search {
    /// A search that may take this long.
    pub(super) fn within(time: Duration) -> Self {
        Self {
            until: Instant::now() + time,
            silent: Mutex::default(),
        }
    }

    /// The limits as far as there is time left, for a server that has answered so far.
    fn limits(&self, server: &ServerName, limits: client::Limits) -> Option<client::Limits> {
        let left = self.until.saturating_duration_since(Instant::now());
        let is_silent = self.silent().contains(server);
        (!is_silent && !left.is_zero()).then(|| limits.time(limits.time.min(left)))
    }

    fn silent(&self) -> MutexGuard<'_, HashSet<OwnedServerName>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What came of a question. A server that cannot be reached, or is too slow, is not asked again.
    fn answer<T>(
        &self,
        what: &str,
        server: &ServerName,
        result: Result<T, client::Error>,
    ) -> Option<T> {
        match result {
            Ok(answer) => Some(answer),
            Err(error) => {
                debug!(%server, %error, "cannot get {what}");
                if error.refusal().is_none() {
                    self.silent().insert(server.to_owned());
                }
                None
            }
        }
    }

    async fn ask<R>(
        &self,
        app: &App,
        server: &ServerName,
        limits: client::Limits,
        what: &str,
        request: R,
    ) -> Option<R::IncomingResponse>
    where
        R: OutgoingRequest<Authentication = ServerSignatures, PathBuilder = SinglePath>,
    {
        let limits = self.limits(server, limits)?;
        let answered = app.federation.send_within(limits, server, request).await;
        self.answer(what, server, answered)
    }

    /// Asks for many events, and keeps those that are good ones of the room.
    async fn ask_for_many<R>(
        &self,
        app: &App,
        room: &Arc<Room>,
        server: &ServerName,
        (limits, most): (client::Limits, usize),
        request: R,
    ) -> Result<()>
    where
        R: OutgoingRequest<Authentication = ServerSignatures, PathBuilder = SinglePath>,
    {
        let Some(limits) = self.limits(server, limits) else {
            return Ok(());
        };
        let answered = app.federation.open(limits, server, request).await;
        let Some(answered) = self.answer("many events", server, answered) else {
            return Ok(());
        };
        let mut parts = parts::read(answered.into_body());
        let mut left = most;
        let mut deferred: Vec<Arc<Pdu>> = Vec::new();
        while let Some(part) = parts.recv().await {
            let texts = match part {
                Part::AuthChain(texts) | Part::State(texts) => texts,
                Part::Event(_) => continue,
                Part::End => break,
                Part::Failed(error) => {
                    debug!(%server, %error, "an answer with many events breaks off");
                    self.silent().insert(server.to_owned());
                    break;
                }
            };
            // What is no good event is looked at too.
            left = left.saturating_sub(texts.len());
            let events = good(app, room, texts).await?;
            deferred.extend(keep(app, room, events).await?);
            let bytes: usize = deferred.iter().map(|pdu| pdu.json.len()).sum();
            if left == 0 || bytes > MAX_DEFERRED {
                debug!(%server, "an answer with too many events");
                break;
            }
        }
        for _ in 0..ROUNDS {
            let before = deferred.len();
            deferred = keep(app, room, deferred).await?;
            if deferred.len() == before {
                break;
            }
        }
        Ok(())
    }
}

/// Keeps events as outliers. Answers those that rest on events which are not here.
async fn keep(app: &App, room: &Arc<Room>, events: Vec<Arc<Pdu>>) -> Result<Vec<Arc<Pdu>>> {
    let kept = outliers::keep(app, room, events.clone()).await?;
    let is_left = |pdu: &Arc<Pdu>| !kept.contains_key(&pdu.event_id);
    Ok(events.into_iter().filter(is_left).collect())
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

/// The events between those that the room has last, `earliest`, and one that follows them, oldest first; `None` if the other
/// server does not answer.
///
/// # Errors
/// If the database fails.
pub(super) async fn missing_events(
    search: &Search,
    app: &App,
    room: &Room,
    from: &ServerName,
    (latest, earliest): (&EventId, Vec<OwnedEventId>),
) -> Result<Option<Vec<Arc<Pdu>>>> {
    let mut request =
        get_missing_events::v1::Request::new(room.id.clone(), earliest, vec![latest.to_owned()]);
    request.limit = UInt::from(MISSING_EVENTS);
    let least = gaps::depth_of_join(&app.db, room.nid).await?;
    request.min_depth = UInt::try_from(least).unwrap_or_default();
    let Some(limits) = search.limits(from, FEW) else {
        return Ok(None);
    };
    let answered = app.federation.send_within(limits, from, request).await;
    if let Err(client::Error::Nonsense(_)) = answered {
        // It has answered, if not well.
        return Ok(Some(Vec::new()));
    }
    let Some(answered) = search.answer("missing events", from, answered) else {
        return Ok(None);
    };
    let events = oldest_first(app, room, answered.events, MISSING_EVENTS);
    events.await.map(Some)
}

/// The good ones of the first `most` events, oldest first.
async fn oldest_first(
    app: &App,
    room: &Room,
    mut texts: Vec<Box<RawValue>>,
    most: u32,
) -> Result<Vec<Arc<Pdu>>> {
    texts.truncate(most as usize);
    let mut events = good(app, room, texts).await?;
    events.sort_by_key(|pdu| pdu.depth);
    Ok(events)
}

/// Events from `latest` on backwards, oldest first.
///
/// # Errors
/// If the database fails.
pub(super) async fn history(
    search: &Search,
    app: &App,
    room: &Room,
    from: &ServerName,
    latest: Vec<OwnedEventId>,
) -> Result<Option<Vec<Arc<Pdu>>>> {
    let request = get_backfill::v1::Request::new(room.id.clone(), latest, UInt::from(BACKFILL));
    let answered = search.ask(app, from, FEW, "history", request);
    let Some(answered) = answered.await else {
        return Ok(None);
    };
    let events = oldest_first(app, room, answered.pdus, BACKFILL);
    events.await.map(Some)
}

/// Keeps the events that an event rests on, as another server tells of them.
///
/// # Errors
/// If the database fails.
pub(super) async fn auth_chain(
    search: &Search,
    app: &App,
    room: &Arc<Room>,
    from: &ServerName,
    event_id: &EventId,
) -> Result<()> {
    let request = get_event_authorization::v1::Request::new(room.id.clone(), event_id.to_owned());
    search
        .ask_for_many(app, room, from, (CHAIN, MAX_CHAIN), request)
        .await
}

/// Keeps single events as outliers.
///
/// # Errors
/// If the database fails.
pub(super) async fn single_events(
    search: &Search,
    app: &App,
    room: &Arc<Room>,
    from: &ServerName,
    ids: &[OwnedEventId],
) -> Result<HashMap<OwnedEventId, Stub>> {
    let mut answers = stream::iter(ids.to_vec())
        .map(|id| single_event(search, app, from, id))
        .buffer_unordered(SINGLE_AT_ONCE);
    let mut texts = Vec::new();
    while let Some(text) = answers.next().await {
        texts.extend(text);
    }
    drop(answers);
    let events = good(app, room, texts).await?;
    outliers::keep(app, room, events).await
}

async fn single_event(
    search: &Search,
    app: &App,
    from: &ServerName,
    id: OwnedEventId,
) -> Option<Box<RawValue>> {
    let request = get_event::v1::Request::new(id);
    let answered = search.ask(app, from, FEW, "an event", request).await;
    answered.map(|answered| answered.pdu)
}

/// The state after an event that is not here, as another server tells of it; `None` if that server cannot tell.
///
/// # Errors
/// If the database fails.
pub(super) async fn state_after(
    search: &Search,
    app: &App,
    room: &Arc<Room>,
    from: &ServerName,
    event_id: &EventId,
) -> Result<Option<Derived>> {
    let Some(mut state) = state_before(search, app, room, from, event_id).await? else {
        return Ok(None);
    };
    // What allows it is in that state, and must be here first.
    let event = single_events(search, app, room, from, &[event_id.to_owned()]).await?;
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
    search: &Search,
    app: &App,
    room: &Arc<Room>,
    from: &ServerName,
    event_id: &EventId,
) -> Result<Option<Derived>> {
    let request = get_room_state_ids::v1::Request::new(event_id.to_owned(), room.id.clone());
    let answered = search.ask(app, from, IDS, "the ids of a state", request);
    let Some(answered) = answered.await else {
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
        let request = get_room_state::v1::Request::new(event_id.to_owned(), room.id.clone());
        search
            .ask_for_many(app, room, from, (STATE, MAX_STATE), request)
            .await?;
    } else if !missing.is_empty() {
        single_events(search, app, room, from, &missing).await?;
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
