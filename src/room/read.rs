//! How far somebody has read. Sending moves the same marks (one's own messages are not unread), so both do it under the
//! room's lock.

use std::sync::Arc;

use super::head;
use crate::{
    app::App,
    bus::Effect,
    error::Result,
    log::Change,
    rooms::Room,
    storage::{Pos, ReadMarker, UserNid, receipts},
};

/// Sets up to where a user has read, in one or more threads (0: what is in none), together with what else is in
/// `change`. `own` of each marker says how many notifying events the reader has sent after `pos`. Answers the first
/// position of the change.
///
/// # Errors
/// If the database fails.
pub async fn set_markers(
    app: &App,
    room: &Arc<Room>,
    user: UserNid,
    markers: &[(i64, ReadMarker)],
    mut change: Change,
) -> Result<Pos> {
    for (thread, marker) in markers {
        change.write(receipts::set_marker(user, room.nid, *thread, *marker));
        change.effect(Effect::Marker {
            user,
            room: room.nid,
            thread: *thread,
            marker: *marker,
        });
    }
    let place = app.log.place().await?;
    let mut slot = room.head.lock().await;
    let head = match slot.as_mut() {
        Some(head) => head,
        None => slot.insert(head::load(app, room).await?),
    };
    for (thread, marker) in markers {
        head.markers.insert((user, *thread), *marker);
    }
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
