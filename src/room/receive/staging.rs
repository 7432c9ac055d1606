//! Events that have arrived and cannot be judged yet: kept, so that the server that sent them may forget them, and worked
//! on in the order in which they have come, for each room by one task.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use homing_federation::Pdu;
use ruma::{OwnedEventId, ServerName};
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

/// How many events may wait in a room; what comes then is not taken, and fetched when a later event needs it.
const WAITING: i64 = 1000;
/// How many events are read at once.
const AT_ONCE: i64 = 20;
/// How long until an event is tried again, at first; each time it is four times as long.
const FIRST_WAIT: Duration = Duration::from_secs(30);
/// How often an event is tried.
const ATTEMPTS: i64 = 7;

/// Keeps events until they can be judged. Answers for each whether there is room for it.
///
/// # Errors
/// If the database fails.
pub(super) async fn keep(
    app: &Arc<App>,
    room: &Arc<Room>,
    origin: &ServerName,
    pdus: &[Arc<Pdu>],
) -> Result<bool> {
    if inbound::count(&app.db, room.nid).await? >= WAITING {
        return Ok(false);
    }
    let mut change = Change::new();
    for pdu in pdus {
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
    work(app, room.nid);
    Ok(true)
}

/// Goes on with what waited when the server ended.
///
/// # Errors
/// If the database fails.
pub async fn resume(app: &Arc<App>) -> Result<()> {
    for room in inbound::rooms(&app.db).await? {
        work(app, room);
    }
    Ok(())
}

/// Sees to it that somebody works on the events that wait in a room.
fn work(app: &Arc<App>, room: RoomNid) {
    let mut working = app
        .staging
        .working
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(news) = working.get(&room) {
        news.notify_one();
        return;
    }
    let news = Arc::new(Notify::new());
    working.insert(room, Arc::clone(&news));
    drop(working);
    let app = Arc::clone(app);
    tokio::spawn(async move {
        let ended = app.shutdown.clone();
        let work = work_on(&app, room, &news);
        if let Some(Err(error)) = ended.run_until_cancelled(work).await {
            error!(%error, "events that wait in a room cannot be worked on");
        }
        let mut working = app
            .staging
            .working
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        working.remove(&room);
    });
}

async fn work_on(app: &Arc<App>, nid: RoomNid, news: &Notify) -> Result<()> {
    let rooms = app.rooms.many(&app.db, || app.head(), &[nid]).await?;
    let Some(room) = rooms.get(&nid) else {
        return Ok(());
    };
    loop {
        let ready = inbound::ready(&app.db, nid, app.clock.now(), AT_ONCE).await?;
        if ready.is_empty() {
            let Some(next) = inbound::next_try(&app.db, nid).await? else {
                // Who has added one meanwhile has left a note.
                if tokio::time::timeout(Duration::ZERO, news.notified())
                    .await
                    .is_ok()
                {
                    continue;
                }
                return Ok(());
            };
            let wait = u64::try_from(next - app.clock.now()).unwrap_or(0);
            let wait = Duration::from_millis(wait);
            // Either is a reason to look again.
            drop(tokio::time::timeout(wait, news.notified()).await);
            continue;
        }
        for waiting in ready {
            let _turn = app.staging.turns.acquire().await.map_err(Error::internal)?;
            if let Err(error) = try_one(app, room, &waiting).await {
                // One event must not keep the others of the room waiting.
                error!(%error, event = %waiting.event_id, "an event that waits cannot be worked on");
                let mut change = Change::new();
                change.write(later(app, room.nid, &waiting));
                app.log.append(change).await?;
            }
        }
    }
}

async fn try_one(app: &Arc<App>, room: &Arc<Room>, waiting: &Waiting) -> Result<()> {
    let remove = inbound::remove(room.nid, &waiting.event_id);
    let origin = ServerName::parse(waiting.origin.as_str()).map_err(Error::internal)?;
    let id = OwnedEventId::try_from(waiting.event_id.as_str()).map_err(Error::internal)?;
    let pdu = Arc::new(Pdu::from_canonical(id, waiting.json.as_str(), room.rules)?);
    let writes = std::slice::from_ref(&remove);
    let is_first = waiting.attempts == 0;
    let settled = gaps::settle(app, room, &origin, &pdu, writes, is_first).await?;
    let mut change = Change::new();
    match settled {
        Some(fate) => {
            debug!(event = %pdu.event_id, ?fate, "an event that waited was taken");
            return Ok(());
        }
        None if waiting.attempts + 1 >= ATTEMPTS => {
            debug!(event = %pdu.event_id, room = %room.id, "an event is given up: what it rests on cannot be got");
            change.write(remove);
        }
        None => {
            change.write(later(app, room.nid, waiting));
        }
    }
    app.log.append(change).await?;
    Ok(())
}

/// An event is tried again, later each time, and is gone after so many times.
fn later(app: &App, room: RoomNid, waiting: &Waiting) -> Write {
    let (id, attempts) = (&waiting.event_id, waiting.attempts + 1);
    if attempts >= ATTEMPTS {
        return inbound::remove(room, id);
    }
    let times = 4_i64.saturating_pow(u32::try_from(waiting.attempts).unwrap_or(0));
    let wait = i64::try_from(FIRST_WAIT.as_millis()).unwrap_or(i64::MAX);
    let next = app.clock.now() + wait.saturating_mul(times);
    inbound::postpone(room, id, attempts, next)
}
