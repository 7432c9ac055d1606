//! `backward_extremity`: where history is missing.

use std::ops::RangeInclusive;

use super::{Db, Insert, Result, RoomNid, Write};
use crate::{args, sql};

static EXTREMITY: Insert = Insert {
    table: "backward_extremity",
    columns: &["room_nid", "event_id", "depth", "join_depth"],
    key: 2,
    conflict: "ON CONFLICT (room_nid, event_id) DO UPDATE SET depth = excluded.depth, \
               join_depth = coalesce(backward_extremity.join_depth, excluded.join_depth)",
};

/// An event that is not here is followed by one of this depth. `before_join`: it happened before somebody here joined the
/// room; whoever else follows it later, that stays so.
#[must_use]
pub fn open(room: RoomNid, event_id: &str, depth: i64, before_join: bool) -> Write {
    let join_depth = before_join.then_some(depth);
    Write::Insert(&EXTREMITY, args![room, event_id, depth, join_depth])
}

/// What is less deep than this and not here happened before somebody here joined the room; 0 if there is no such thing.
pub async fn depth_of_join(db: &Db, room: RoomNid) -> Result<i64> {
    let query =
        sql!("SELECT coalesce(max(join_depth), 0) FROM backward_extremity WHERE room_nid = $1");
    db.one(query, args![room]).await?.get(0)
}

/// Some events are no longer missing.
#[must_use]
pub fn close(room: RoomNid, event_ids: Vec<String>) -> Write {
    Write::Run(
        sql!(
            "DELETE FROM backward_extremity WHERE room_nid = $1 AND event_id ",
            list(2)
        ),
        args![room, event_ids],
    )
}

/// The least depth between these of an event that follows one which is missing in a room.
pub async fn first(db: &Db, room: RoomNid, depths: &RangeInclusive<i64>) -> Result<Option<i64>> {
    let query = sql!(
        "SELECT min(depth) FROM backward_extremity WHERE room_nid = $1 AND depth >= $2 AND depth <= $3"
    );
    let (least, most) = (*depths.start(), *depths.end());
    db.one(query, args![room, least, most]).await?.get(0)
}

/// The missing events of a room that are followed by one of a depth between these, which is told too; the deepest first, at
/// most `limit`.
pub async fn within(
    db: &Db,
    room: RoomNid,
    depths: &RangeInclusive<i64>,
    limit: i64,
) -> Result<Vec<(String, i64)>> {
    let query = sql!(
        "SELECT event_id, depth FROM backward_extremity WHERE room_nid = $1 AND depth >= $2 AND depth <= $3 ",
        "ORDER BY depth DESC LIMIT $4"
    );
    let (least, most) = (*depths.start(), *depths.end());
    db.rows(query, args![room, least, most, limit])
        .await?
        .iter()
        .map(|row| Ok((row.get(0)?, row.get(1)?)))
        .collect()
}
