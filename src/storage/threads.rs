//! `thread`: the threads of a room.

use super::{Db, EventNid, Insert, Position, Result, RoomNid, Write};
use crate::{args, sql};

/// What is counted of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadCount {
    /// How many events it has, without its root.
    pub count: i64,
    /// How many of them notify by default.
    pub unread_idx: i64,
}

static THREAD: Insert = Insert {
    table: "thread",
    columns: &[
        "room_nid",
        "root_nid",
        "last_nid",
        "last_pos",
        "count",
        "unread_idx",
    ],
    key: 2,
    conflict: "ON CONFLICT (room_nid, root_nid) DO UPDATE SET last_nid = excluded.last_nid, \
               last_pos = excluded.last_pos, count = excluded.count, unread_idx = excluded.unread_idx",
};

/// A thread has a new event.
#[must_use]
pub fn set(
    room: RoomNid,
    root: EventNid,
    last: EventNid,
    at: Position,
    count: ThreadCount,
) -> Write {
    Write::Insert(
        &THREAD,
        args![room, root, last, at, count.count, count.unread_idx],
    )
}

/// The counts of the thread with this root; zero if there is none yet.
pub async fn count(db: &Db, room: RoomNid, root: EventNid) -> Result<ThreadCount> {
    let query = sql!("SELECT count, unread_idx FROM thread WHERE room_nid = $1 AND root_nid = $2");
    match db.maybe(query, args![room, root]).await? {
        Some(row) => Ok(ThreadCount {
            count: row.get(0)?,
            unread_idx: row.get(1)?,
        }),
        None => Ok(ThreadCount::default()),
    }
}
