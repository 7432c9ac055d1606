//! History that other servers have and this one has not: fetched when somebody here reads so far ("Backfilling").

use std::{collections::VecDeque, ops::RangeInclusive, sync::Arc, time::Duration};

use homing_federation::Pdu;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedServerName, ServerName,
    api::{Direction, federation::event::get_event_by_timestamp},
};
use tracing::debug;

use super::{
    Fate, Received,
    fetch::{self, Search},
    gaps, take,
};
use crate::{app::App, error::Result, remote, rooms::Room, storage};

/// From how many missing events on backwards is asked at once.
const MISSING: i64 = 5;
/// The largest answer to the question which event is near a time, in bytes.
const ANSWER_BYTES: u64 = 16 << 10;
/// How many servers are asked.
const SERVERS: usize = 4;
/// How long nobody is asked again after nobody could help, in milliseconds.
const PAUSE: i64 = 30_000;
/// How often in a row nobody can help until it is not worth waiting for, and how long who asks again is kept waiting.
const TIMES: u32 = 4;
const WAIT: Duration = Duration::from_secs(2);
/// How long other servers are asked for one part of history.
const TIME: Duration = Duration::from_mins(2);
/// How many states are asked for, for one part of history.
const STATES: usize = 5;

/// Fetches what is missing directly before the events of a room's history between these depths. Answers whether something
/// has come.
///
/// # Errors
/// If the database fails.
pub async fn extend(app: &App, room: &Arc<Room>, depths: &RangeInclusive<i64>) -> Result<bool> {
    if room.seen().servers.is_empty() {
        return Ok(false);
    }
    let missing = storage::gaps::within(&app.db, room.nid, depths, MISSING).await?;
    if missing.is_empty() {
        return Ok(false);
    }
    let mut failed = room.history.lock().await;
    if failed.is_some_and(|(until, _)| app.clock.now() < until) {
        return Ok(false);
    }
    // Somebody else may have fetched it meanwhile.
    let now = storage::gaps::within(&app.db, room.nid, depths, MISSING).await?;
    if now != missing {
        return Ok(true);
    }
    let ids: Vec<OwnedEventId> = missing
        .iter()
        .filter_map(|(id, _)| OwnedEventId::try_from(id.as_str()).ok())
        .collect();
    let search = &Search::within(TIME);
    for server in servers(room) {
        let Some(events) = fetch::history(search, app, room, &server, ids.clone()).await? else {
            continue;
        };
        let has_come = add(search, app, room, &server, &events).await?;
        // What was missing may have come as news meanwhile.
        let left = storage::gaps::within(&app.db, room.nid, depths, MISSING).await?;
        if has_come || left != missing {
            *failed = None;
            return Ok(true);
        }
    }
    let times = failed.map_or(1, |(_, times)| times + 1);
    *failed = Some((app.clock.now() + PAUSE, times));
    Ok(false)
}

/// Whether it is worth asking again for what could not be fetched; who is told so is kept waiting for a while first, so that
/// asking again and again costs little. It is not when nobody could help several times in a row.
pub async fn is_hopeful(app: &App, room: &Room) -> bool {
    let failed = *room.history.lock().await;
    if let Some((until, times)) = failed {
        if times >= TIMES {
            return false;
        }
        let wait = u64::try_from(until - app.clock.now()).unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(wait).min(WAIT)).await;
    }
    true
}

/// Fetches the event nearest to a time on one side of it, with some of those before it, if others know a nearer one than
/// the `nearest` that is here. Answers whether something has come.
///
/// # Errors
/// If the database fails.
pub async fn reach(
    app: &App,
    room: &Arc<Room>,
    (ts, direction): (MilliSecondsSinceUnixEpoch, Direction),
    nearest: Option<MilliSecondsSinceUnixEpoch>,
) -> Result<bool> {
    if next_gap(app, room, &(0..=i64::MAX)).await?.is_none() {
        return Ok(false);
    }
    let is_nearer = |told: MilliSecondsSinceUnixEpoch| match direction {
        Direction::Forward => told >= ts && nearest.is_none_or(|nearest| told < nearest),
        Direction::Backward => told <= ts && nearest.is_none_or(|nearest| told > nearest),
    };
    let search = &Search::within(TIME);
    for server in servers(room) {
        let request = get_event_by_timestamp::v1::Request::new(room.id.clone(), ts, direction);
        let told = match remote::ask(app, &server, request, ANSWER_BYTES).await {
            Ok(told) => told,
            Err(error) => {
                debug!(%server, %error, "another server knows no event near a time");
                continue;
            }
        };
        if !is_nearer(told.origin_server_ts) {
            return Ok(false);
        }
        if let Some(events) =
            fetch::history(search, app, room, &server, vec![told.event_id]).await?
        {
            return add(search, app, room, &server, &events).await;
        }
    }
    Ok(false)
}

/// The deepest event between these depths directly before which something is missing: its depth.
///
/// # Errors
/// If the database fails.
pub async fn next_gap(app: &App, room: &Room, depths: &RangeInclusive<i64>) -> Result<Option<i64>> {
    if room.seen().servers.is_empty() {
        return Ok(None);
    }
    let missing = storage::gaps::within(&app.db, room.nid, depths, 1).await?;
    Ok(missing.first().map(|(_, depth)| *depth))
}

/// The servers with the most people in the room.
fn servers(room: &Room) -> Vec<OwnedServerName> {
    let mut servers = room.other_servers();
    servers.truncate(SERVERS);
    servers
}

/// Takes a part of history, oldest first. Answers whether any of it is new.
async fn add(
    search: &Search,
    app: &App,
    room: &Arc<Room>,
    server: &ServerName,
    events: &[Arc<Pdu>],
) -> Result<bool> {
    let old = |pdu| Received {
        is_history: true,
        ..Received::new(pdu)
    };
    let mut left: VecDeque<Received> = events.iter().cloned().map(old).collect();
    let mut has_come = false;
    let mut states = 0;
    // Whether the events were asked for that allow the first one.
    let mut has_asked = false;
    while !left.is_empty() {
        let fates = take(app, room, left.iter().cloned().collect()).await?;
        let mut missing = None;
        for fate in fates {
            has_come |= fate == Fate::Accepted;
            if let Fate::Missing(of_first) = fate {
                missing = Some(of_first);
                break;
            }
            has_asked = false;
            let taken = left.pop_front();
            if let Some(taken) = taken.filter(|_| !matches!(fate, Fate::Accepted | Fate::Known)) {
                debug!(event = %taken.pdu.event_id, ?fate, "an old event is not taken");
            }
        }
        let (Some(missing), Some(first)) = (missing, left.front_mut()) else {
            continue;
        };
        if !missing.auth_events.is_empty() && !has_asked {
            has_asked = true;
            fetch::auth_chain(search, app, room, server, &first.pdu.event_id).await?;
            continue;
        }
        if missing.auth_events.is_empty() && first.before.is_none() && states < STATES {
            states += 1;
            let pdu = &first.pdu;
            first.before = gaps::state_before(search, app, room, server, pdu, &missing).await?;
            if first.before.is_some() {
                continue;
            }
        }
        debug!(event = %first.pdu.event_id, ?missing, "what an old event rests on cannot be got");
        has_asked = false;
        left.pop_front();
    }
    Ok(has_come)
}
