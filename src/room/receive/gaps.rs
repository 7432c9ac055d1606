//! Events that rest on others which are not here: finding these, from the server that sent the event or from others in the
//! room.

use std::{collections::HashSet, sync::Arc, time::Duration};

use homing_federation::Pdu;
use ruma::{OwnedEventId, OwnedServerName, ServerName};
use tracing::debug;

use super::{
    Fate, Missing, Received,
    fetch::{self, Search},
    take,
};
use crate::{
    app::App,
    error::Result,
    room::{
        branches::{Derived, merge},
        head, policy_server,
    },
    rooms::Room,
    storage::{
        self, EventNid, Write, branches,
        events::{Stub, flags},
    },
};

/// How often what an event rests on is asked for.
const ROUNDS: usize = 4;
/// How many other servers are asked when the one that sent the event does not help.
const OTHERS: usize = 3;
/// How long other servers are asked for what one event rests on.
const TIME: Duration = Duration::from_mins(5);

/// Takes an event into the room, with all that must be fetched for it. `None` if what it rests on cannot be got now.
/// `writes` are made in the commit that settles what becomes of it.
///
/// Who sends an event has those before it. If they answer without them, there may be something wrong with these; then, if
/// it `is_first`, nobody is asked for the state there, which many events would be fetched for.
///
/// # Errors
/// If the database fails.
pub(super) async fn settle(
    app: &App,
    room: &Arc<Room>,
    origin: &ServerName,
    pdu: &Arc<Pdu>,
    writes: &[Write],
    is_first: bool,
) -> Result<Option<Fate>> {
    let search = &Search::within(TIME);
    let mut received = Received {
        writes: writes.to_vec(),
        ..Received::new(Arc::clone(pdu))
    };
    policy_server::settle(app, room, &mut received).await?;
    let mut has_answered = false;
    let mut asked = HashSet::new();
    for round in 0..ROUNDS {
        let missing = match attempt(search, app, room, origin, &mut received, &mut asked).await? {
            Attempt::Settled(fate) => return Ok(fate),
            Attempt::Again => continue,
            Attempt::Missing(missing) => missing,
        };
        if round == 0 {
            let tried = bridge(search, app, room, origin, pdu).await?;
            has_answered = tried.is_some();
            let goes_on = match tried {
                Some(0) => has_come(app, room, &missing).await?,
                Some(_) => true,
                None => false,
            };
            if goes_on {
                continue;
            }
        }
        if is_first && has_answered {
            return Ok(None);
        }
        received.before = state_before(search, app, room, origin, pdu, &missing).await?;
        if received.before.is_none() {
            return Ok(None);
        }
    }
    Ok(None)
}

/// Whether some of what an event follows has come meanwhile: others bring events too, and who was asked leaves out what
/// is here.
async fn has_come(app: &App, room: &Room, missing: &Missing) -> Result<bool> {
    Ok(!placed(app, room, &missing.prev_events).await?.is_empty())
}

/// Those of some events that have their place in the room.
async fn placed(app: &App, room: &Room, ids: &[OwnedEventId]) -> Result<Vec<EventNid>> {
    let ids = ids.iter().map(ToString::to_string).collect();
    let stubs = storage::events::stubs(&app.db, ids).await?;
    let is_placed = |stub: &&Stub| stub.room == room.nid && stub.flags & flags::OUTLIER == 0;
    let placed = stubs.values().filter(is_placed);
    Ok(placed.map(|stub| stub.nid).collect())
}

/// How far one attempt to take an event has led.
enum Attempt {
    /// This has become of it.
    Settled(Option<Fate>),
    /// It may be taken now.
    Again,
    /// It follows events that are not here.
    Missing(Missing),
}

/// Tries to take an event. The events that allow it are fetched if they are missing, and the signature of the room's
/// policy server, if it has got one meanwhile.
async fn attempt(
    search: &Search,
    app: &App,
    room: &Arc<Room>,
    origin: &ServerName,
    received: &mut Received,
    asked: &mut HashSet<OwnedServerName>,
) -> Result<Attempt> {
    let missing = match take(app, room, vec![received.clone()]).await?.pop() {
        Some(Fate::Missing(missing)) => missing,
        Some(Fate::Unsigned) => {
            policy_server::settle(app, room, received).await?;
            return Ok(Attempt::Again);
        }
        fate => return Ok(Attempt::Settled(fate)),
    };
    let auth = &missing.auth_events;
    if !auth.is_empty() {
        allow(search, app, room, origin, &received.pdu, auth, asked).await?;
    }
    if missing.prev_events.is_empty() {
        return Ok(Attempt::Again);
    }
    Ok(Attempt::Missing(missing))
}

/// Fetches the events that allow an event.
async fn allow(
    search: &Search,
    app: &App,
    room: &Arc<Room>,
    origin: &ServerName,
    pdu: &Pdu,
    missing: &[OwnedEventId],
    asked: &mut HashSet<OwnedServerName>,
) -> Result<()> {
    for server in servers(room, origin) {
        if !asked.insert(server.clone()) {
            continue;
        }
        fetch::auth_chain(search, app, room, &server, &pdu.event_id).await?;
        let ids = missing.iter().map(ToString::to_string).collect();
        let known = storage::events::stubs(&app.db, ids).await?;
        let still: Vec<OwnedEventId> = missing
            .iter()
            .filter(|id| !known.contains_key(id.as_str()))
            .cloned()
            .collect();
        if still.is_empty() {
            return Ok(());
        }
        fetch::single_events(search, app, room, &server, &still).await?;
        return Ok(());
    }
    Ok(())
}

/// Takes the events between the end of the room and `pdu`, as far as they can be got. Answers how many were tried; `None` if
/// the other server has not answered.
async fn bridge(
    search: &Search,
    app: &App,
    room: &Arc<Room>,
    origin: &ServerName,
    pdu: &Arc<Pdu>,
) -> Result<Option<usize>> {
    let earliest = {
        let mut slot = room.head.lock().await;
        let head = head::in_slot(app, room, &mut slot).await?;
        head.extremities.iter().map(|one| one.id.clone()).collect()
    };
    let ends = (&*pdu.event_id, earliest);
    let Some(mut between) = fetch::missing_events(search, app, room, origin, ends).await? else {
        return Ok(None);
    };
    between.retain(|older| older.event_id != pdu.event_id);
    for older in &between {
        settle_older(search, app, room, origin, older).await?;
    }
    Ok(Some(between.len()))
}

/// The same as [`settle`] for an event that was fetched: what comes before it is not asked for, only the state there.
async fn settle_older(
    search: &Search,
    app: &App,
    room: &Arc<Room>,
    origin: &ServerName,
    pdu: &Arc<Pdu>,
) -> Result<()> {
    let mut received = Received::new(Arc::clone(pdu));
    policy_server::settle(app, room, &mut received).await?;
    let mut asked = HashSet::new();
    for _ in 0..ROUNDS {
        let missing = match attempt(search, app, room, origin, &mut received, &mut asked).await? {
            Attempt::Settled(_) => return Ok(()),
            Attempt::Again => continue,
            Attempt::Missing(missing) => missing,
        };
        received.before = state_before(search, app, room, origin, pdu, &missing).await?;
        if received.before.is_none() {
            break;
        }
    }
    debug!(event = %pdu.event_id, room = %room.id, "what an event rests on cannot be got");
    Ok(())
}

/// The state before an event of which some of the events before it are not here: resolved from the states after those that
/// are, and what other servers tell of the others.
pub(super) async fn state_before(
    search: &Search,
    app: &App,
    room: &Arc<Room>,
    origin: &ServerName,
    pdu: &Pdu,
    missing: &Missing,
) -> Result<Option<Derived>> {
    let nids = placed(app, room, &pdu.prev_events).await?;
    let mut states: Vec<Derived> = branches::after(&app.db, &nids)
        .await?
        .into_values()
        .map(Derived::stored)
        .collect();
    for id in &missing.prev_events {
        let mut found = None;
        for server in servers(room, origin) {
            found = fetch::state_after(search, app, room, &server, id).await?;
            if found.is_some() {
                break;
            }
        }
        match found {
            Some(state) => states.push(state),
            None => return Ok(None),
        }
    }
    merge(app, room, states, None).await.map(Some)
}

/// Whom to ask: the server that sent the event, then some others in the room.
fn servers(room: &Room, origin: &ServerName) -> Vec<OwnedServerName> {
    let others = room.other_servers().into_iter();
    let others = others.filter(|name| name != origin);
    std::iter::once(origin.to_owned())
        .chain(others.take(OTHERS))
        .collect()
}
