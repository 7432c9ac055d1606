//! `highlight`: events that count otherwise for a user than the default push rules say.

use super::{Db, EventNid, Insert, Pos, Position, Result, RoomNid, UserNid, Write};
use crate::{args, sql};

/// An event that counts otherwise for a user than for most.
#[derive(Clone, Debug)]
pub struct Highlight {
    /// The user.
    pub user: UserNid,
    /// The room.
    pub room: RoomNid,
    /// The thread; 0 for what is in none.
    pub thread: i64,
    /// The event.
    pub event: EventNid,
    /// Its position.
    pub pos: Pos,
    /// How it counts: [`HIGHLIGHT`], [`NOTIFIES`], [`SILENT`], [`SINGLED_OUT`], [`LOUD`].
    pub flags: i64,
}

/// It highlights.
pub const HIGHLIGHT: i64 = 1;
/// It notifies this user although it would not notify most.
pub const NOTIFIES: i64 = 2;
/// It does not notify this user although it notifies most.
pub const SILENT: i64 = 4;
/// It notifies this user although messages of the room do not.
pub const SINGLED_OUT: i64 = 8;
/// It notifies this user although not even mentions in the room do.
pub const LOUD: i64 = 16;

static HIGHLIGHTS: Insert = Insert {
    table: "highlight",
    columns: &[
        "user_nid",
        "room_nid",
        "pos",
        "thread_nid",
        "event_nid",
        "flags",
    ],
    key: 3,
    conflict: "ON CONFLICT (user_nid, room_nid, pos) DO UPDATE SET flags = excluded.flags",
};

/// Adds one; `highlight.pos` does not count, `at` does.
#[must_use]
pub fn add(highlight: &Highlight, at: Position) -> Write {
    let row = args![
        highlight.user,
        highlight.room,
        at,
        highlight.thread,
        highlight.event,
        highlight.flags
    ];
    Write::Insert(&HIGHLIGHTS, row)
}

/// Forgets those that a user has read: in one thread (0: none), up to a position.
#[must_use]
pub fn read(user: UserNid, room: RoomNid, thread: i64, pos: Pos) -> Write {
    let sql = sql!(
        "DELETE FROM highlight WHERE user_nid = $1 AND room_nid = $2 AND thread_nid = $3 AND pos <= $4"
    );
    Write::Run(sql, args![user, room, thread, pos])
}

/// Forgets those that a user has in a room.
#[must_use]
pub fn clear(user: UserNid, room: RoomNid) -> Write {
    let sql = sql!("DELETE FROM highlight WHERE user_nid = $1 AND room_nid = $2");
    Write::Run(sql, args![user, room])
}

/// An event was redacted: it highlights for nobody any more.
#[must_use]
pub fn redacted(event: EventNid) -> Write {
    let sql = sql!("DELETE FROM highlight WHERE event_nid = $1 AND flags & 4 = 0");
    Write::Run(sql, args![event])
}

/// How many some users have in a room; who has none is left out.
pub async fn counts(db: &Db, room: RoomNid, users: &[UserNid]) -> Result<Vec<(UserNid, i64)>> {
    let query = sql!(
        "SELECT user_nid, count(*) FROM highlight WHERE room_nid = $1 AND user_nid ",
        list(2),
        " GROUP BY user_nid"
    );
    db.rows(query, args![room, users])
        .await?
        .iter()
        .map(|row| Ok((UserNid(row.get(0)?), row.get(1)?)))
        .collect()
}

/// All that a user has not read yet.
pub async fn of_user(db: &Db, user: UserNid) -> Result<Vec<Highlight>> {
    let query = sql!(
        "SELECT room_nid, thread_nid, event_nid, pos, flags FROM highlight WHERE user_nid = $1"
    );
    db.rows(query, args![user])
        .await?
        .iter()
        .map(|row| {
            Ok(Highlight {
                user,
                room: RoomNid(row.get(0)?),
                thread: row.get(1)?,
                event: EventNid(row.get(2)?),
                pos: row.get(3)?,
                flags: row.get(4)?,
            })
        })
        .collect()
}

/// What may have notified a user: events of these rooms with positions from `from` to before `to`, newest first, that
/// notify by default or count otherwise for the user, and that somebody else sent.
pub async fn candidates(
    db: &Db,
    user: UserNid,
    rooms: &[RoomNid],
    from: Pos,
    to: Pos,
    limit: i64,
) -> Result<Vec<(RoomNid, EventNid, Pos)>> {
    let query = sql!(
        "SELECT e.room_nid, e.nid, e.pos FROM event e WHERE e.pos >= $3 AND e.pos < $4 AND e.sender_nid <> $1 ",
        "AND e.redacted_by IS NULL AND ((e.flags & 16) <> 0 OR EXISTS (SELECT 1 FROM highlight h ",
        "WHERE h.user_nid = $1 AND h.room_nid = e.room_nid AND h.pos = e.pos)) AND e.room_nid ",
        list(2),
        " ORDER BY e.pos DESC LIMIT $5"
    );
    db.rows(query, args![user, rooms, from, to, limit])
        .await?
        .iter()
        .map(|row| Ok((RoomNid(row.get(0)?), EventNid(row.get(1)?), row.get(2)?)))
        .collect()
}
