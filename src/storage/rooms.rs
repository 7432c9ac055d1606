//! `room` and `room_head`: the rooms, and where each stands.

use super::{Arg, Db, EventNid, Insert, Pos, Result, RoomNid, Row, Write, pack, unpack};
use crate::{args, sql};

/// A room as it is stored.
#[derive(Clone, Debug)]
pub struct RoomRow {
    /// The room.
    pub nid: RoomNid,
    /// Its id.
    pub room_id: String,
    /// Its version.
    pub room_version: String,
    /// Its type, as its create event says.
    pub room_type: Option<String>,
    /// Where it stands.
    pub head: HeadRow,
    /// The position of its newest event.
    pub last_pos: Pos,
    /// The position of the newest event that a person would call news.
    pub bump_pos: Pos,
}

/// Where a room stands after a change.
#[derive(Clone, Debug, Default)]
pub struct HeadRow {
    /// The version of the head that the change was computed on; 0 for a new room.
    pub base: i64,
    /// The version after the change.
    pub version: i64,
    /// The room.
    pub room: i64,
    /// The forward extremities: events that no other event follows.
    pub extremities: Vec<EventNid>,
    /// The line of the current state.
    pub state_line: i64,
    /// The version of that line.
    pub state_sv: i64,
    /// The depth of the deepest event.
    pub max_depth: i64,
    /// How many events notify by default.
    pub unread_idx: i64,
    /// How many have joined.
    pub joined_count: i64,
    /// How many are invited.
    pub invited_count: i64,
    /// Whether the change has an event of this server, which others must be told.
    pub is_local: bool,
    /// Whether the change is what a person would call news.
    pub is_news: bool,
}

/// The rows of `room_head`. A row is written only where the head is at the version that the change builds on.
pub static HEAD: Insert = Insert {
    table: "room_head",
    columns: &[
        "room_nid",
        "base",
        "version",
        "extremities",
        "state_line",
        "state_sv",
        "max_depth",
        "unread_idx",
        "joined_count",
        "invited_count",
        "last_pos",
        "last_local_pos",
        "bump_pos",
    ],
    key: 0,
    // `last_local_pos` and `bump_pos` are 0 where the change leaves them alone.
    conflict: "ON CONFLICT (room_nid) DO UPDATE SET base = excluded.base, version = excluded.version, extremities = excluded.extremities, \
               state_line = excluded.state_line, state_sv = excluded.state_sv, max_depth = excluded.max_depth, \
               unread_idx = excluded.unread_idx, joined_count = excluded.joined_count, \
               invited_count = excluded.invited_count, last_pos = excluded.last_pos, \
               last_local_pos = CASE WHEN excluded.last_local_pos > 0 THEN excluded.last_local_pos \
               ELSE room_head.last_local_pos END, \
               bump_pos = CASE WHEN excluded.bump_pos > 0 THEN excluded.bump_pos ELSE room_head.bump_pos END \
               WHERE room_head.version = excluded.base",
};

/// A row of `room_head` with the positions that its change got.
#[derive(Clone, Debug)]
pub struct PlacedHead {
    /// Where the room stands.
    pub row: HeadRow,
    /// The position of the newest event.
    pub last_pos: Pos,
    /// The position of the newest event that others must be told; 0 if the change has none.
    pub local_pos: Pos,
    /// The position of the newest event that is news; 0 if the change has none.
    pub bump_pos: Pos,
}

impl PlacedHead {
    /// The head of a change whose last position is `pos`.
    #[must_use]
    pub fn new(row: HeadRow, pos: Pos) -> Self {
        let (local_pos, bump_pos) = (
            if row.is_local { pos } else { 0 },
            if row.is_news { pos } else { 0 },
        );
        Self {
            row,
            last_pos: pos,
            local_pos,
            bump_pos,
        }
    }

    /// This change and one that builds on it, as one.
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        Self {
            row: HeadRow {
                base: self.row.base,
                ..next.row
            },
            last_pos: next.last_pos,
            local_pos: self.local_pos.max(next.local_pos),
            bump_pos: self.bump_pos.max(next.bump_pos),
        }
    }

    /// The row for [`HEAD`].
    #[must_use]
    pub fn args(&self) -> Vec<Arg> {
        let row = &self.row;
        args![
            row.room,
            row.base,
            row.version,
            pack(row.extremities.iter().map(|nid| nid.0)),
            row.state_line,
            row.state_sv,
            row.max_depth,
            row.unread_idx,
            row.joined_count,
            row.invited_count,
            self.last_pos,
            self.local_pos,
            self.bump_pos,
        ]
    }
}

/// The room with this id.
pub async fn by_id(db: &Db, room_id: &str) -> Result<Option<RoomRow>> {
    let query = sql!(
        "SELECT r.nid, r.room_id, r.room_version, r.room_type, h.version, h.extremities, h.state_line, h.state_sv, ",
        "h.max_depth, h.unread_idx, h.joined_count, h.invited_count, h.last_pos, h.bump_pos ",
        "FROM room r JOIN room_head h ON h.room_nid = r.nid WHERE r.room_id = $1"
    );
    db.maybe(query, args![room_id])
        .await?
        .map(|row| room(&row))
        .transpose()
}

/// The rooms with these nids.
pub async fn many(db: &Db, nids: &[RoomNid]) -> Result<Vec<RoomRow>> {
    let query = sql!(
        "SELECT r.nid, r.room_id, r.room_version, r.room_type, h.version, h.extremities, h.state_line, h.state_sv, ",
        "h.max_depth, h.unread_idx, h.joined_count, h.invited_count, h.last_pos, h.bump_pos ",
        "FROM room r JOIN room_head h ON h.room_nid = r.nid WHERE r.nid ",
        list(1)
    );
    db.rows(query, args![nids])
        .await?
        .iter()
        .map(room)
        .collect()
}

fn room(row: &Row) -> Result<RoomRow> {
    let nid: i64 = row.get(0)?;
    let version = row.get(4)?;
    Ok(RoomRow {
        nid: RoomNid(nid),
        room_id: row.get(1)?,
        room_version: row.get(2)?,
        room_type: row.get(3)?,
        head: HeadRow {
            base: version,
            version,
            room: nid,
            extremities: unpack(&row.get::<Vec<u8>>(5)?)
                .into_iter()
                .map(EventNid)
                .collect(),
            state_line: row.get(6)?,
            state_sv: row.get(7)?,
            max_depth: row.get(8)?,
            unread_idx: row.get(9)?,
            joined_count: row.get(10)?,
            invited_count: row.get(11)?,
            is_local: false,
            is_news: false,
        },
        last_pos: row.get(12)?,
        bump_pos: row.get(13)?,
    })
}

static ROOM: Insert = Insert {
    table: "room",
    columns: &[
        "nid",
        "room_id",
        "room_version",
        "room_type",
        "created_ts",
        "published",
    ],
    key: 0,
    conflict: "",
};

/// A new room. Its head is written by the change that creates it.
#[must_use]
pub fn add(nid: RoomNid, row: &RoomRow, created_ts: i64, published: bool) -> Write {
    let RoomRow {
        room_id,
        room_version,
        room_type,
        ..
    } = row.clone();
    Write::Insert(
        &ROOM,
        args![nid, room_id, room_version, room_type, created_ts, published],
    )
}

/// Gives another version to a room that this server was never in, and removes the events of it that say nothing about what
/// users of this server are to it.
#[must_use]
pub fn set_version(room: RoomNid, version: &str) -> [Write; 3] {
    [
        Write::Run(
            sql!("UPDATE room SET room_version = $2 WHERE nid = $1"),
            args![room, version],
        ),
        Write::Run(
            sql!(
                "DELETE FROM event_json WHERE nid IN (SELECT nid FROM event WHERE room_nid = $1 ",
                "AND nid NOT IN (SELECT event_nid FROM membership WHERE room_nid = $1))"
            ),
            args![room],
        ),
        Write::Run(
            sql!(
                "DELETE FROM event WHERE room_nid = $1 ",
                "AND nid NOT IN (SELECT event_nid FROM membership WHERE room_nid = $1)"
            ),
            args![room],
        ),
    ]
}

/// Shows the room in the directory, or not.
#[must_use]
pub fn publish(room: RoomNid, published: bool) -> Write {
    Write::Run(
        sql!("UPDATE room SET published = $2 WHERE nid = $1"),
        args![room, published],
    )
}

/// The ids of rooms.
pub async fn ids(db: &Db, nids: &[RoomNid]) -> Result<Vec<(RoomNid, String)>> {
    let query = sql!("SELECT nid, room_id FROM room WHERE nid ", list(1));
    db.rows(query, args![nids])
        .await?
        .iter()
        .map(|row| Ok((RoomNid(row.get(0)?), row.get(1)?)))
        .collect()
}
