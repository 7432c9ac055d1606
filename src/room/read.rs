//! How far somebody has read. Sending moves the same marks (one's own messages are not unread), so both do it under the
//! room's lock.

use std::sync::Arc;

use super::head;
use crate::{
    app::App,
    bus::Effect,
    error::Result,
    log::Change,
    rooms::{Head, Room},
    storage::{
        Event, Pos, ReadMarker, UserNid,
        events::{self, flags},
        receipts,
    },
};

/// How far somebody has read, in a thread or (0) in what is in none.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    /// The thread.
    pub thread: i64,
    /// The position of the last event that was read.
    pub pos: Pos,
    /// The count of notifying events there.
    pub idx: i64,
}

/// Moves the marks of a user forward, together with what else is in `change`. `own` are those whose events do not count
/// as unread: the reader, and whom the reader ignores. Answers the first position of the change.
///
/// # Errors
/// If the database fails.
pub async fn move_markers(
    app: &App,
    room: &Arc<Room>,
    user: UserNid,
    own: &[UserNid],
    reached: &[Reach],
    mut change: Change,
) -> Result<Pos> {
    let place = app.log.place().await?;
    let mut slot = room.head.lock().await;
    let head = head::in_slot(app, room, &mut slot).await?;
    // What is sent from here on is counted from the new marks.
    for reach in reached {
        let Some(marker) = moved(app, room, head, user, own, reach).await? else {
            continue;
        };
        set(head, &mut change, user, room, reach.thread, marker);
    }
    head.highlights.remove(&user);
    let reading = Arc::clone(&head.reading);
    let pending = place.append(change);
    drop(slot);
    match pending.committed().await {
        Ok(first) => Ok(first),
        Err(error) => {
            head::forget(app, room, &reading).await?;
            Err(error.into())
        }
    }
}

/// Puts right the marks of a user who ignores others than before: what these have sent after a mark counts as unread
/// from now on (`sign` -1), or no more (`sign` 1).
///
/// # Errors
/// If the database fails.
pub async fn leave_out(app: &App, user: UserNid, senders: &[UserNid], sign: i64) -> Result<()> {
    if senders.is_empty() {
        return Ok(());
    }
    let sent = receipts::sent_after_marks(&app.db, user, senders).await?;
    let nids: Vec<_> = sent.iter().map(|(room, ..)| *room).collect();
    let rooms = app.rooms.many(&app.db, &app.log, &nids).await?;
    for (nid, thread, count) in sent {
        let Some(room) = rooms.get(&nid) else {
            continue;
        };
        let place = app.log.place().await?;
        let mut slot = room.head.lock().await;
        let head = head::in_slot(app, room, &mut slot).await?;
        let mut marker = marker(app, room, head, user, thread).await?;
        marker.own = (marker.own + sign * count).max(0);
        let mut change = Change::new();
        set(head, &mut change, user, room, thread, marker);
        let reading = Arc::clone(&head.reading);
        let pending = place.append(change);
        drop(slot);
        if let Err(error) = pending.committed().await {
            head::forget(app, room, &reading).await?;
            return Err(error.into());
        }
    }
    Ok(())
}

fn set(
    head: &mut Head,
    change: &mut Change,
    user: UserNid,
    room: &Room,
    thread: i64,
    marker: ReadMarker,
) {
    change.write(receipts::set_marker(user, room.nid, thread, marker));
    change.effect(Effect::Marker {
        user,
        room: room.nid,
        thread,
        marker,
    });
    head.markers.insert((user, thread), marker);
}

async fn marker(
    app: &App,
    room: &Room,
    head: &Head,
    user: UserNid,
    thread: i64,
) -> Result<ReadMarker> {
    if let Some(marker) = head.markers.get(&(user, thread)) {
        return Ok(*marker);
    }
    let marker = receipts::marker(&app.db, user, room.nid, thread).await?;
    Ok(marker.unwrap_or_default())
}

/// The marker at `reach`, if that is further than the one of now: of the events that did not count since that one,
/// those remain that are after `reach`; none if it is the end of the room and nothing is on its way into it.
async fn moved(
    app: &App,
    room: &Room,
    head: &Head,
    user: UserNid,
    own: &[UserNid],
    reach: &Reach,
) -> Result<Option<ReadMarker>> {
    let now = marker(app, room, head, user, reach.thread).await?;
    if now.pos >= reach.pos {
        return Ok(None);
    }
    let is_all = {
        let seen = room.seen();
        seen.version == head.row.version && seen.last_pos <= reach.pos
    };
    if is_all {
        return Ok(Some(ReadMarker {
            pos: reach.pos,
            idx: reach.idx,
            own: 0,
        }));
    }
    let span = (now.pos, reach.pos);
    let passed = match sent_between(room, own, reach.thread, span) {
        _ if now.own == 0 => 0,
        Some(passed) => passed,
        None => events::sent_between(&app.db, room.nid, own, reach.thread, span).await?,
    };
    Ok(Some(ReadMarker {
        pos: reach.pos,
        idx: reach.idx,
        own: (now.own - passed).max(0),
    }))
}

/// How many events that notify by default these users have sent between two positions, if memory reaches back so far.
fn sent_between(
    room: &Room,
    users: &[UserNid],
    thread: i64,
    (from, to): (Pos, Pos),
) -> Option<i64> {
    let seen = room.seen();
    let is_one = |event: &&Arc<Event>| {
        event.pos.is_some_and(|pos| from < pos && pos <= to)
            && event.flags & flags::NOTIFIES != 0
            && event.thread.map_or(0, |root| root.0) == thread
            && users.contains(&event.sender)
    };
    let is_whole = seen.events_from <= from && to <= seen.last_pos;
    is_whole.then(|| i64::try_from(seen.events.iter().filter(is_one).count()).unwrap_or(0))
}
