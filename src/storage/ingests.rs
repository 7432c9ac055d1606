//! `room_ingest`: joins whose room is being taken in.

use super::{Db, Insert, Result, RoomNid, Write};
use crate::{args, sql};

static INGEST: Insert = Insert {
    table: "room_ingest",
    columns: &["room_nid", "line", "started_ts"],
    key: 1,
    conflict: "ON CONFLICT (room_nid) DO UPDATE SET line = excluded.line, started_ts = excluded.started_ts",
};

/// The state of a room is written from `now` on (milliseconds since 1970), as a line that nobody refers to yet.
#[must_use]
pub fn begin(room: RoomNid, line: i64, now: i64) -> Write {
    Write::Insert(&INGEST, args![room, line, now])
}

/// The state of a room that was written as this line is whole.
#[must_use]
pub fn end(room: RoomNid, line: i64) -> Write {
    Write::Run(
        sql!("DELETE FROM room_ingest WHERE room_nid = $1 AND line = $2"),
        args![room, line],
    )
}

/// The rooms whose state is not whole, with the lines of their states.
pub async fn all(db: &Db) -> Result<Vec<(RoomNid, i64)>> {
    let query = sql!("SELECT room_nid, line FROM room_ingest");
    let rows = db.rows(query, args![]).await?;
    rows.iter()
        .map(|row| Ok((RoomNid(row.get(0)?), row.get(1)?)))
        .collect()
}

/// Removes a state that is not whole. What users of this server are to the room stays; and of a room that is here, all but
/// that line.
#[must_use]
pub fn clear(room: RoomNid, line: i64) -> [Write; 5] {
    [
        Write::Run(
            sql!("DELETE FROM state_change WHERE line = $1"),
            args![line],
        ),
        Write::Run(sql!("DELETE FROM state_line WHERE line = $1"), args![line]),
        Write::Run(
            sql!(
                "DELETE FROM current_state WHERE room_nid = $1 ",
                "AND NOT EXISTS (SELECT 1 FROM room_head WHERE room_nid = $1 AND max_depth > 0)"
            ),
            args![room],
        ),
        Write::Run(
            sql!(
                "DELETE FROM membership WHERE room_nid = $1 AND NOT is_local ",
                "AND NOT EXISTS (SELECT 1 FROM room_head WHERE room_nid = $1 AND max_depth > 0)"
            ),
            args![room],
        ),
        end(room, line),
    ]
}
