//! `receipt` and `read_marker`: what people have read.

use super::{Db, EventNid, Insert, Pos, Position, Result, RoomNid, Row, UserNid, Write};
use crate::{args, sql};

/// The kinds of receipts, with the numbers that the table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReceiptKind {
    /// `m.read`, for all to see.
    Read = 1,
    /// `m.read.private`, for the reader alone.
    ReadPrivate = 2,
}

impl ReceiptKind {
    fn from_number(number: i64) -> Self {
        if number == 1 {
            Self::Read
        } else {
            Self::ReadPrivate
        }
    }
}

/// A receipt: somebody has read up to an event.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// The room.
    pub room: RoomNid,
    /// Who has read.
    pub user: UserNid,
    /// Which part of the room.
    pub thread: ReceiptThread,
    /// Who may know.
    pub kind: ReceiptKind,
    /// Up to where.
    pub event: EventNid,
    /// The same as clients name it.
    pub event_id: String,
    /// When, in milliseconds since 1970.
    pub ts: i64,
    /// The receipt's place in the log.
    pub pos: Pos,
}

/// The part of a room that a receipt is about ("Threaded read receipts").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReceiptThread {
    /// Everything: the receipt names no thread.
    Unthreaded,
    /// What is in no thread: `main`.
    Main,
    /// A thread, by its root.
    Thread(EventNid),
}

impl ReceiptThread {
    /// The number that stands for it in the tables.
    #[must_use]
    pub fn number(self) -> i64 {
        match self {
            Self::Unthreaded => 0,
            Self::Main => -1,
            Self::Thread(root) => root.0,
        }
    }

    /// What a number in the tables stands for.
    #[must_use]
    pub fn from_number(number: i64) -> Self {
        match number {
            0 => Self::Unthreaded,
            -1 => Self::Main,
            root => Self::Thread(EventNid(root)),
        }
    }
}

static RECEIPT: Insert = Insert {
    table: "receipt",
    columns: &[
        "room_nid",
        "user_nid",
        "thread_nid",
        "kind",
        "event_nid",
        "ts",
        "pos",
    ],
    key: 4,
    conflict: "ON CONFLICT (room_nid, user_nid, thread_nid, kind) DO UPDATE SET event_nid = excluded.event_nid, \
               ts = excluded.ts, pos = excluded.pos",
};

/// Sets a receipt; `receipt.pos` does not count, `at` does.
#[must_use]
pub fn set(receipt: &Receipt, at: Position) -> Write {
    let thread = receipt.thread.number();
    let row = args![
        receipt.room,
        receipt.user,
        thread,
        receipt.kind as i64,
        receipt.event,
        receipt.ts,
        at
    ];
    Write::Insert(&RECEIPT, row)
}

/// Reads a receipt: room, user, thread, kind, event, event id, time, position.
pub(super) fn receipt(row: &Row) -> Result<Receipt> {
    Ok(Receipt {
        room: RoomNid(row.get(0)?),
        user: UserNid(row.get(1)?),
        thread: ReceiptThread::from_number(row.get(2)?),
        kind: ReceiptKind::from_number(row.get(3)?),
        event: EventNid(row.get(4)?),
        event_id: row.get(5)?,
        ts: row.get(6)?,
        pos: row.get(7)?,
    })
}

/// In the place of a thread: the marker of all that was read with whatever thread it is in. Its counts mean nothing.
pub const EVERYTHING: i64 = -2;

/// Up to where a user has read a room or a thread, in counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadMarker {
    /// The position of the last event that was read.
    pub pos: Pos,
    /// The count of notifying events there.
    pub idx: i64,
    /// How many notifying events the reader has sent since.
    pub own: i64,
}

static MARKER: Insert = Insert {
    table: "read_marker",
    columns: &["user_nid", "room_nid", "thread_nid", "pos", "idx", "own"],
    key: 3,
    conflict: "ON CONFLICT (user_nid, room_nid, thread_nid) DO UPDATE SET pos = excluded.pos, idx = excluded.idx, \
               own = excluded.own",
};

/// Sets up to where a user has read. `thread` 0 is what is in no thread.
#[must_use]
pub fn set_marker(user: UserNid, room: RoomNid, thread: i64, marker: ReadMarker) -> Write {
    Write::Insert(
        &MARKER,
        args![user, room, thread, marker.pos, marker.idx, marker.own],
    )
}

/// All read markers of a user: room, thread (0: none), marker.
pub async fn markers(db: &Db, user: UserNid) -> Result<Vec<(RoomNid, i64, ReadMarker)>> {
    let query =
        sql!("SELECT room_nid, thread_nid, pos, idx, own FROM read_marker WHERE user_nid = $1");
    db.rows(query, args![user])
        .await?
        .iter()
        .map(|row| {
            let marker = ReadMarker {
                pos: row.get(2)?,
                idx: row.get(3)?,
                own: row.get(4)?,
            };
            Ok((RoomNid(row.get(0)?), row.get(1)?, marker))
        })
        .collect()
}

/// How many events that notify by default some senders have sent after a user's markers: room, thread (0: none), count.
pub async fn sent_after_marks(
    db: &Db,
    user: UserNid,
    senders: &[UserNid],
) -> Result<Vec<(RoomNid, i64, i64)>> {
    let query = sql!(
        "SELECT m.room_nid, m.thread_nid, count(*) FROM read_marker m JOIN event e ON e.room_nid = m.room_nid ",
        "AND e.pos > m.pos AND coalesce(e.thread_nid, 0) = m.thread_nid ",
        "WHERE m.user_nid = $1 AND m.thread_nid >= 0 AND e.flags & 16 <> 0 AND e.sender_nid ",
        list(2),
        " GROUP BY m.room_nid, m.thread_nid"
    );
    db.rows(query, args![user, senders])
        .await?
        .iter()
        .map(|row| Ok((RoomNid(row.get(0)?), row.get(1)?, row.get(2)?)))
        .collect()
}

/// Up to where a user has read a room (thread 0) or a thread.
pub async fn marker(
    db: &Db,
    user: UserNid,
    room: RoomNid,
    thread: i64,
) -> Result<Option<ReadMarker>> {
    let query = sql!(
        "SELECT pos, idx, own FROM read_marker WHERE user_nid = $1 AND room_nid = $2 AND thread_nid = $3"
    );
    let row = db.maybe(query, args![user, room, thread]).await?;
    row.map(|row| {
        Ok(ReadMarker {
            pos: row.get(0)?,
            idx: row.get(1)?,
            own: row.get(2)?,
        })
    })
    .transpose()
}

/// The receipts of one user in a room: part of the room, kind, the event, its position.
pub async fn of_user(
    db: &Db,
    room: RoomNid,
    user: UserNid,
) -> Result<Vec<(ReceiptThread, ReceiptKind, EventNid, Pos)>> {
    let query = sql!(
        "SELECT r.thread_nid, r.kind, r.event_nid, coalesce(e.pos, 0) FROM receipt r ",
        "JOIN event e ON e.nid = r.event_nid WHERE r.room_nid = $1 AND r.user_nid = $2"
    );
    db.rows(query, args![room, user])
        .await?
        .iter()
        .map(|row| {
            let thread = ReceiptThread::from_number(row.get(0)?);
            let kind = ReceiptKind::from_number(row.get(1)?);
            Ok((thread, kind, EventNid(row.get(2)?), row.get(3)?))
        })
        .collect()
}
