//! History that other servers have and this one has not: fetched when somebody here reads so far ("Backfilling").

use std::{collections::VecDeque, ops::RangeInclusive, sync::Arc, time::Duration};

use homing_federation::Pdu;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedServerName, ServerName, UInt,
    api::{Direction, federation::event::get_event_by_timestamp},
};
use tracing::debug;

use super::{
    Fate, Received,
    fetch::{self, BACKFILL, Search},
    gaps, take,
};
use crate::{
    app::App,
    error::Result,
    remote,
    room::timeline,
    rooms::Room,
    storage::{
        self, Event,
        timeline::{Place, Range},
    },
};

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
/// How many events may be missing, as depths tell it, for all of them to be fetched when somebody walks forward; of more
/// those are asked for that are near in time. How often.
const FAR: i64 = 500;
const LEAPS: usize = 5;

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

/// The least depth of an event after this place, and of at most this depth, directly before which something is missing.
/// For who begins at the start that is what is known first.
///
/// # Errors
/// If the database fails.
pub async fn first_gap(app: &App, room: &Room, from: Place, last: i64) -> Result<Option<i64>> {
    if room.seen().servers.is_empty() {
        return Ok(None);
    }
    let from = match from {
        Place::START => first_after(app, room, from)
            .await?
            .map_or(from, |first| Place::after(&first)),
        from => from,
    };
    let depths = from.depth.saturating_add(1)..=last;
    Ok(storage::gaps::first(&app.db, room.nid, &depths).await?)
}

/// The first event after a place, whoever may see it.
async fn first_after(app: &App, room: &Room, place: Place) -> Result<Option<Event>> {
    let range = Range::after(room.nid, place);
    let (mut page, _) = storage::timeline::page(&app.db, room.rules, &range, 1).await?;
    Ok(page.pop())
}

/// What is done for somebody who walks forward.
#[derive(Debug, Default)]
pub struct Forward {
    leaps: usize,
}

impl Forward {
    /// Fetches some of what is missing after a place and directly before the events of the depth `gap`. Answers whether
    /// something has come.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn extend(
        &mut self,
        app: &App,
        room: &Arc<Room>,
        from: Place,
        gap: i64,
    ) -> Result<bool> {
        if gap - from.depth.max(0) > FAR && self.leaps < LEAPS {
            self.leaps += 1;
            if leap(app, room, from, gap).await? {
                return Ok(true);
            }
            self.leaps = LEAPS;
        }
        extend(app, room, &(gap..=gap)).await
    }
}

/// Fetches events of which the newest has happened when about as many as are told at once had happened after a place, if as
/// much is missing there as depths say and all happened at the same pace. Answers whether something has come.
async fn leap(app: &App, room: &Arc<Room>, from: Place, gap: i64) -> Result<bool> {
    let just_before = Place {
        depth: gap - 1,
        ord: i64::MAX,
    };
    let Some(next) = first_after(app, room, just_before).await? else {
        return Ok(false);
    };
    let Some(last) = timeline::last_before(app, room, from).await? else {
        return Ok(false);
    };
    let [start, end] = [&*last, &next].map(|event| i64::from(event.pdu.origin_server_ts.0));
    let span = i128::from(end - start) * i128::from(BACKFILL) / i128::from(gap - last.depth());
    let Ok(ts) = UInt::try_from(start.saturating_add(i64::try_from(span).unwrap_or(0))) else {
        return Ok(false);
    };
    let near = (MilliSecondsSinceUnixEpoch(ts), Direction::Forward);
    let is_between = |told: MilliSecondsSinceUnixEpoch| (start..end).contains(&i64::from(told.0));
    reach_if(app, room, near, is_between).await
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
    reach_if(app, room, (ts, direction), is_nearer).await
}

/// The same if others know one of a time that is wanted.
async fn reach_if(
    app: &App,
    room: &Arc<Room>,
    (ts, direction): (MilliSecondsSinceUnixEpoch, Direction),
    is_wanted: impl Fn(MilliSecondsSinceUnixEpoch) -> bool,
) -> Result<bool> {
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
        if !is_wanted(told.origin_server_ts) {
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
