//! Events that have arrived and cannot be judged yet: kept, so that the server that sent them may forget them, and worked
//! on in the order in which they have come, by one task for each room and each server that has sent some of them: who does
//! not tell what its events rest on holds up nobody else's.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use homing_federation::Pdu;
use ruma::{OwnedEventId, OwnedServerName, ServerName};
use tokio::sync::Notify;
use tracing::{debug, error};

use super::gaps;
use crate::{
    app::App,
    error::{Error, Result},
    log::Change,
    rooms::Room,
    storage::{
        RoomNid, Write,
        inbound::{self, Waiting},
    },
};

/// How many events may wait in a room, how many of them of one server, and how many of one server in all rooms; what comes
/// then is not taken, and fetched when a later event needs it.
const WAITING: i64 = 1000;
const WAITING_OF_ONE: i64 = 200;
const WAITING_OF_ONE_IN_ALL: i64 = 2000;
/// How many events are read at once.
const AT_ONCE: i64 = 20;
/// How long until an event is tried again, at first; each time it is four times as long.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// How often an event is tried, in half a day.
const ATTEMPTS: i64 = 9;

/// Keeps events until they can be judged, as far as there is room for them. Answers how many of them are kept, from the
/// first on.
///
/// # Errors
/// If the database fails.
pub(super) async fn keep(
    app: &Arc<App>,
    room: &Arc<Room>,
    origin: &ServerName,
    pdus: &[Arc<Pdu>],
) -> Result<usize> {
    if pdus.is_empty() {
        return Ok(0);
    }
    let count = inbound::count(&app.db, room.nid, origin.as_str()).await?;
    // Who is in the room is not kept from it by those who are not.
    let most = if is_stranger(room, origin) {
        WAITING / 2
    } else {
        WAITING
    };
    let left = (most - count.room)
        .min(WAITING_OF_ONE - count.server_in_room)
        .min(WAITING_OF_ONE_IN_ALL - count.server);
    let left = usize::try_from(left).unwrap_or(0).min(pdus.len());
    if left == 0 {
        return Ok(0);
    }
    let mut change = Change::new();
    for pdu in &pdus[..left] {
        let waiting = Waiting {
            nid: app.log.new_id()?,
            event_id: pdu.event_id.to_string(),
            origin: origin.to_string(),
            json: pdu.json.to_string(),
            attempts: 0,
        };
        change.write(inbound::add(room.nid, &waiting, app.clock.now()));
    }
    app.log.append(change).await?;
    work(app, room.nid, origin.to_owned());
    Ok(left)
}

/// Whether a server is not known to be in a room. It may be all the same: its first join may be what is missing.
fn is_stranger(room: &Room, server: &ServerName) -> bool {
    let seen = room.seen();
    let there = seen.servers.get(server);
    there.is_none_or(|there| there.joined == 0)
}

/// Goes on with what waited when the server ended.
///
/// # Errors
/// If the database fails.
pub async fn resume(app: &Arc<App>) -> Result<()> {
    for (room, origin) in inbound::all(&app.db).await? {
        let origin = OwnedServerName::try_from(origin).map_err(Error::internal)?;
        work(app, room, origin);
    }
    Ok(())
}

/// Sees to it that somebody works on the events that a server has sent to a room and that wait.
fn work(app: &Arc<App>, room: RoomNid, origin: OwnedServerName) {
    let mut working = app.staging.working();
    if let Some(news) = working.get(&(room, origin.clone())) {
        news.notify_one();
        return;
    }
    let news = Arc::new(Notify::new());
    working.insert((room, origin.clone()), Arc::clone(&news));
    drop(working);
    let app = Arc::clone(app);
    tokio::spawn(async move {
        let work = async {
            while let Err(error) = work_on(&app, room, &origin, &news).await {
                error!(%error, "events that wait in a room cannot be worked on");
                tokio::time::sleep(FIRST_WAIT).await;
            }
        };
        app.shutdown.run_until_cancelled(work).await;
    });
}

async fn work_on(
    app: &Arc<App>,
    nid: RoomNid,
    origin: &OwnedServerName,
    news: &Notify,
) -> Result<()> {
    let rooms = app.rooms.many(&app.db, &app.log, &[nid]).await?;
    let room = rooms.get(&nid);
    let room = room.ok_or_else(|| Error::internal("events wait in a room that is not there"))?;
    let turns = app.staging.turns_of(origin);
    let from = origin.as_str();
    loop {
        let ready = inbound::ready(&app.db, nid, from, app.clock.now(), AT_ONCE).await?;
        if ready.is_empty() {
            let Some(next) = inbound::next_try(&app.db, nid, from).await? else {
                let mut working = app.staging.working();
                // Who has added one meanwhile has left a note.
                if news.notified().now_or_never().is_none() {
                    working.remove(&(nid, origin.clone()));
                    return Ok(());
                }
                continue;
            };
            let wait = u64::try_from(next - app.clock.now()).unwrap_or(0);
            let wait = Duration::from_millis(wait);
            // Either is a reason to look again.
            drop(tokio::time::timeout(wait, news.notified()).await);
            continue;
        }
        for waiting in ready {
            let _turn_of_server = turns.acquire().await.map_err(Error::internal)?;
            let turns = app.staging.turns(is_stranger(room, origin));
            let _turn = turns.acquire().await.map_err(Error::internal)?;
            if let Err(error) = try_one(app, room, origin, &waiting).await {
                // One event must not keep the others of the room waiting.
                error!(%error, event = %waiting.event_id, "an event that waits cannot be worked on");
                let mut change = Change::new();
                change.write(later(app, room.nid, &waiting));
                app.log.append(change).await?;
            }
        }
    }
}

async fn try_one(
    app: &Arc<App>,
    room: &Arc<Room>,
    origin: &ServerName,
    waiting: &Waiting,
) -> Result<()> {
    let remove = inbound::remove(room.nid, &waiting.event_id);
    let id = OwnedEventId::try_from(waiting.event_id.as_str()).map_err(Error::internal)?;
    let pdu = Arc::new(Pdu::from_canonical(id, waiting.json.as_str(), room.rules)?);
    let writes = std::slice::from_ref(&remove);
    let is_first = waiting.attempts == 0;
    let settled = gaps::settle(app, room, origin, &pdu, writes, is_first).await?;
    let mut change = Change::new();
    match settled {
        Some(fate) => {
            debug!(event = %pdu.event_id, ?fate, "an event that waited was taken");
            return Ok(());
        }
        None => {
            debug!(event = %pdu.event_id, room = %room.id, "what an event rests on cannot be got");
            change.write(later(app, room.nid, waiting));
        }
    }
    app.log.append(change).await?;
    Ok(())
}

/// An event is tried again, later each time, and is gone after so many times.
fn later(app: &App, room: RoomNid, waiting: &Waiting) -> Write {
    let attempts = waiting.attempts + 1;
    if attempts >= ATTEMPTS {
        return inbound::give_up(room, waiting);
    }
    let times = 4_i64.saturating_pow(u32::try_from(waiting.attempts).unwrap_or(0));
    let wait = i64::try_from(FIRST_WAIT.as_millis()).unwrap_or(i64::MAX);
    let next = app.clock.now() + wait.saturating_mul(times);
    inbound::postpone(room, waiting, attempts, next)
}
