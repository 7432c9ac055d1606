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
    let head = match slot.as_mut() {
        Some(head) => head,
        None => slot.insert(head::load(app, room).await?),
    };
    // What is sent from here on is counted from the new marks.
    for reach in reached {
        let Some(marker) = moved(app, room, head, user, own, reach).await? else {
            continue;
        };
        change.write(receipts::set_marker(user, room.nid, reach.thread, marker));
        change.effect(Effect::Marker {
            user,
            room: room.nid,
            thread: reach.thread,
            marker,
        });
        head.markers.insert((user, reach.thread), marker);
    }
    head.highlights.remove(&user);
    let pending = place.append(change);
    drop(slot);
    match pending.committed().await {
        Ok(first) => Ok(first),
        Err(error) => {
            *room.head.lock().await = None;
            Err(error.into())
        }
    }
}

/// The marker at `reach`, if that is further than the one of now: of the events that did not count since that one,
/// those remain that are after `reach`.
async fn moved(
    app: &App,
    room: &Room,
    head: &Head,
    user: UserNid,
    own: &[UserNid],
    reach: &Reach,
) -> Result<Option<ReadMarker>> {
    let now = match head.markers.get(&(user, reach.thread)) {
        Some(marker) => *marker,
        None => receipts::marker(&app.db, user, room.nid, reach.thread)
            .await?
            .unwrap_or_default(),
    };
    if now.pos >= reach.pos {
        return Ok(None);
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
