//! `thread`: the threads of a room.

use ruma::room_version_rules::RoomVersionRules;

use super::{
    Db, Event, EventNid, Insert, Pos, Position, Result, RoomNid, UserNid, Write, events::readable,
};
use crate::{args, sql};

/// What is counted of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadCount {
    /// How many of its events notify by default.
    pub unread_idx: i64,
    /// Its last event.
    pub last: EventNid,
}

static THREAD: Insert = Insert {
    table: "thread",
    columns: &["room_nid", "root_nid", "last_nid", "last_pos", "unread_idx"],
    key: 2,
    conflict: "ON CONFLICT (room_nid, root_nid) DO UPDATE SET last_nid = excluded.last_nid, \
               last_pos = excluded.last_pos, unread_idx = excluded.unread_idx",
};

/// A thread has a new event, or one that is there only because of what it relates to.
#[must_use]
pub fn set(room: RoomNid, root: EventNid, at: Position, count: ThreadCount) -> Write {
    Write::Insert(&THREAD, args![room, root, count.last, at, count.unread_idx])
}

/// The event with which a thread begins has come after one of its replies.
#[must_use]
pub fn begin(room: RoomNid, root: EventNid, reply: EventNid) -> [Write; 2] {
    [
        Write::Run(
            sql!("UPDATE event SET thread_nid = $2 WHERE nid = $1 AND thread_nid IS NULL"),
            args![reply, root],
        ),
        Write::Run(
            sql!(
                "INSERT INTO thread (room_nid, root_nid, last_nid, last_pos, unread_idx) ",
                "SELECT room_nid, $2, nid, coalesce(pos, 0), 0 FROM event WHERE room_nid = $1 AND nid = $3 ",
                "ON CONFLICT (room_nid, root_nid) DO UPDATE SET last_nid = excluded.last_nid, ",
                "last_pos = excluded.last_pos WHERE thread.last_pos < excluded.last_pos"
            ),
            args![room, root, reply],
        ),
    ]
}

/// The counts of the thread with this root; zero if there is none yet.
pub async fn count(db: &Db, room: RoomNid, root: EventNid) -> Result<ThreadCount> {
    let query =
        sql!("SELECT unread_idx, last_nid FROM thread WHERE room_nid = $1 AND root_nid = $2");
    match db.maybe(query, args![room, root]).await? {
        Some(row) => Ok(ThreadCount {
            unread_idx: row.get(0)?,
            last: EventNid(row.get(1)?),
        }),
        None => Ok(ThreadCount {
            unread_idx: 0,
            last: root,
        }),
    }
}

/// A thread as a reader finds it.
#[derive(Clone, Copy, Debug)]
pub struct Thread {
    /// The room.
    pub room: RoomNid,
    /// The event that it began with.
    pub root: EventNid,
    /// How many of its events notify by default.
    pub unread_idx: i64,
    /// The position of its last event.
    pub last_pos: Pos,
}

/// The threads of some rooms with an event after the one up to which a user has read everything there.
pub async fn unread(db: &Db, user: UserNid, rooms: &[RoomNid]) -> Result<Vec<Thread>> {
    let query = sql!(
        "SELECT t.room_nid, t.root_nid, t.unread_idx, t.last_pos FROM thread t LEFT JOIN read_marker m ",
        "ON m.user_nid = $2 AND m.room_nid = t.room_nid AND m.thread_nid = -2 ",
        "WHERE t.last_pos > coalesce(m.pos, 0) AND t.room_nid ",
        list(1)
    );
    db.rows(query, args![rooms, user])
        .await?
        .iter()
        .map(|row| {
            Ok(Thread {
                room: RoomNid(row.get(0)?),
                root: EventNid(row.get(1)?),
                unread_idx: row.get(2)?,
                last_pos: row.get(3)?,
            })
        })
        .collect()
}

/// How many events of threads notified by default up to where a user has read everything in their room: thread, count,
/// how many of them `own` (the user, and whom they ignore) have sent after that.
pub async fn read_counts(
    db: &Db,
    user: UserNid,
    own: &[UserNid],
    roots: &[EventNid],
) -> Result<Vec<(EventNid, i64, i64)>> {
    let query = sql!(
        "SELECT t.root_nid, ",
        "sum(CASE WHEN e.pos <= coalesce(m.pos, 0) AND e.flags & 16 <> 0 THEN 1 ELSE 0 END), ",
        "sum(CASE WHEN e.pos > coalesce(m.pos, 0) AND e.flags & 16 <> 0 AND e.sender_nid ",
        list(3),
        " THEN 1 ELSE 0 END) ",
        "FROM thread t JOIN event e ON e.room_nid = t.room_nid AND e.thread_nid = t.root_nid AND e.pos IS NOT NULL ",
        "LEFT JOIN read_marker m ON m.user_nid = $2 AND m.room_nid = t.room_nid AND m.thread_nid = -2 ",
        "WHERE t.root_nid ",
        list(1),
        " GROUP BY t.root_nid"
    );
    db.rows(query, args![roots, user, own])
        .await?
        .iter()
        .map(|row| Ok((EventNid(row.get(0)?), row.get(1)?, row.get(2)?)))
        .collect()
}

/// The threads of a room with an event after a position.
pub async fn since(db: &Db, room: RoomNid, pos: Pos) -> Result<Vec<Thread>> {
    let query = sql!(
        "SELECT root_nid, unread_idx, last_pos FROM thread WHERE room_nid = $1 AND last_pos > $2"
    );
    db.rows(query, args![room, pos])
        .await?
        .iter()
        .map(|row| {
            Ok(Thread {
                room,
                root: EventNid(row.get(0)?),
                unread_idx: row.get(1)?,
                last_pos: row.get(2)?,
            })
        })
        .collect()
}

/// How many events of threads notified by default up to a position.
pub async fn counts_at(db: &Db, roots: &[EventNid], pos: Pos) -> Result<Vec<(EventNid, i64)>> {
    if roots.is_empty() {
        return Ok(Vec::new());
    }
    let query = sql!(
        "SELECT thread_nid, count(*) FROM event WHERE flags & 16 <> 0 AND pos <= $2 AND thread_nid ",
        list(1),
        " GROUP BY thread_nid"
    );
    db.rows(query, args![roots, pos])
        .await?
        .iter()
        .map(|row| Ok((EventNid(row.get(0)?), row.get(1)?)))
        .collect()
}

/// The roots of a room's threads whose latest event is before `before` in the log, latest first, with the positions of
/// these latest events; with `participant` only threads in which that user has sent something. A thread of which
/// everything was redacted is none any more.
pub async fn page(
    db: &Db,
    rules: &RoomVersionRules,
    room: RoomNid,
    before: Pos,
    participant: Option<UserNid>,
    limit: i64,
) -> Result<Vec<(Event, Pos)>> {
    let query = sql!(
        "SELECT ",
        (event_columns),
        ", t.last_pos FROM thread t JOIN event e ON e.nid = t.root_nid JOIN event_json j ON j.nid = e.nid ",
        "WHERE t.room_nid = $1 AND t.last_pos < $2 AND e.flags & 7 = 0 AND EXISTS ",
        "(SELECT 1 FROM relation r JOIN event c ON c.nid = r.child_nid WHERE r.parent_nid = t.root_nid ",
        "AND r.rel_type = 'm.thread' AND c.redacted_by IS NULL ",
        "AND ($3 = 0 OR e.sender_nid = $3 OR c.sender_nid = $3)) ",
        "ORDER BY t.last_pos DESC LIMIT $4"
    );
    let participant = participant.map_or(0, |user| user.0);
    db.rows(query, args![room, before, participant, limit])
        .await?
        .iter()
        .filter_map(|row| {
            let root = readable(row, rules).transpose()?;
            Some(root.and_then(|root| Ok((root, row.get(18)?))))
        })
        .collect()
}
