//! `stripped_state`: what users were told of rooms that this server is not in.

use super::{Db, Insert, Result, RoomNid, UserNid, Write};
use crate::{args, sql};

static TOLD: Insert = Insert {
    table: "stripped_state",
    columns: &["room_nid", "user_nid", "json"],
    key: 2,
    conflict: "ON CONFLICT (room_nid, user_nid) DO UPDATE SET json = excluded.json",
};

/// A user is told this of a room: a JSON list of stripped state events.
#[must_use]
pub fn tell(room: RoomNid, user: UserNid, json: &str) -> Write {
    Write::Insert(&TOLD, args![room, user, json])
}

/// What a user was told of a room no longer counts.
#[must_use]
pub fn forget(room: RoomNid, user: UserNid) -> Write {
    Write::Run(
        sql!("DELETE FROM stripped_state WHERE room_nid = $1 AND user_nid = $2"),
        args![room, user],
    )
}

/// What a user was told of some rooms.
pub async fn told(db: &Db, user: UserNid, rooms: &[RoomNid]) -> Result<Vec<(RoomNid, String)>> {
    if rooms.is_empty() {
        return Ok(Vec::new());
    }
    let query = sql!(
        "SELECT room_nid, json FROM stripped_state WHERE user_nid = $2 AND room_nid ",
        list(1)
    );
    db.rows(query, args![rooms, user])
        .await?
        .iter()
        .map(|row| Ok((RoomNid(row.get(0)?), row.get(1)?)))
        .collect()
}
