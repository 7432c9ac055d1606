//! `backward_extremity`: where history is missing.

use super::{Db, Insert, Result, RoomNid, Write};
use crate::{args, sql};

static EXTREMITY: Insert = Insert {
    table: "backward_extremity",
    columns: &["room_nid", "event_id", "depth"],
    key: 2,
    conflict: "ON CONFLICT (room_nid, event_id) DO UPDATE SET depth = excluded.depth",
};

/// An event that is not here is followed by one of this depth.
#[must_use]
pub fn open(room: RoomNid, event_id: &str, depth: i64) -> Write {
    Write::Insert(&EXTREMITY, args![room, event_id, depth])
}

/// An event is no longer missing.
#[must_use]
pub fn close(room: RoomNid, event_id: &str) -> Write {
    Write::Run(
        sql!("DELETE FROM backward_extremity WHERE room_nid = $1 AND event_id = $2"),
        args![room, event_id],
    )
}

/// The missing events of a room that are followed by one of at least this depth, the deepest first, at most `limit`.
pub async fn from_depth(
    db: &Db,
    room: RoomNid,
    depth: i64,
    limit: i64,
) -> Result<Vec<(String, i64)>> {
    let query = sql!(
        "SELECT event_id, depth FROM backward_extremity WHERE room_nid = $1 AND depth >= $2 ",
        "ORDER BY depth DESC LIMIT $3"
    );
    db.rows(query, args![room, depth, limit])
        .await?
        .iter()
        .map(|row| Ok((row.get(0)?, row.get(1)?)))
        .collect()
}
