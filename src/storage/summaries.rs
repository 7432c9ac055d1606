//! What is told of rooms to people outside: many rooms at once, never one query for each.

use super::{Arg, Db, KeyNid, Membership, Result, RoomNid, Row, UserNid};
use crate::{args, sql};

/// What is told of a room and is not in its state.
#[derive(Clone, Debug)]
pub struct SummaryRow {
    /// The room.
    pub nid: RoomNid,
    /// Its id.
    pub room_id: String,
    /// Its version.
    pub room_version: String,
    /// Its type.
    pub room_type: Option<String>,
    /// How many have joined.
    pub joined_count: i64,
}

/// The rooms with these ids, as far as they are known here.
pub async fn by_ids(db: &Db, ids: Vec<String>) -> Result<Vec<SummaryRow>> {
    let query = sql!(
        "SELECT r.nid, r.room_id, r.room_version, r.room_type, h.joined_count ",
        "FROM room r JOIN room_head h ON h.room_nid = r.nid WHERE r.room_id ",
        list(1)
    );
    db.rows(query, args![ids]).await?.iter().map(row).collect()
}

/// Rooms in the directory, the largest first, after a place: a number of members and a room that has so many.
pub async fn published_after(
    db: &Db,
    place: (i64, RoomNid),
    limit: i64,
) -> Result<Vec<SummaryRow>> {
    let query = sql!(
        "SELECT r.nid, r.room_id, r.room_version, r.room_type, h.joined_count ",
        "FROM room r JOIN room_head h ON h.room_nid = r.nid ",
        "WHERE r.published AND (h.joined_count < $1 OR (h.joined_count = $1 AND r.nid > $2)) ",
        "ORDER BY h.joined_count DESC, r.nid LIMIT $3"
    );
    let args = args![place.0, place.1, limit];
    db.rows(query, args).await?.iter().map(row).collect()
}

/// The same before a place, the nearest first.
pub async fn published_before(
    db: &Db,
    place: (i64, RoomNid),
    limit: i64,
) -> Result<Vec<SummaryRow>> {
    let query = sql!(
        "SELECT r.nid, r.room_id, r.room_version, r.room_type, h.joined_count ",
        "FROM room r JOIN room_head h ON h.room_nid = r.nid ",
        "WHERE r.published AND (h.joined_count > $1 OR (h.joined_count = $1 AND r.nid < $2)) ",
        "ORDER BY h.joined_count, r.nid DESC LIMIT $3"
    );
    let args = args![place.0, place.1, limit];
    db.rows(query, args).await?.iter().map(row).collect()
}

/// How many rooms are in the directory.
pub async fn published_count(db: &Db) -> Result<i64> {
    let query = sql!("SELECT count(*) FROM room WHERE published");
    db.one(query, args![]).await?.get(0)
}

/// Whether a room is in the directory.
pub async fn is_published(db: &Db, room: RoomNid) -> Result<bool> {
    let query = sql!("SELECT published FROM room WHERE nid = $1");
    let row = db.maybe(query, args![room]).await?;
    row.map_or(Ok(false), |row| row.get(0))
}

/// The JSON of the state events of rooms at some keys.
pub async fn state(
    db: &Db,
    rooms: &[RoomNid],
    keys: &[KeyNid],
) -> Result<Vec<(RoomNid, KeyNid, String)>> {
    let query = sql!(
        "SELECT c.room_nid, c.key_nid, j.json FROM current_state c JOIN event_json j ON j.nid = c.event_nid ",
        "WHERE c.room_nid ",
        list(1),
        " AND c.key_nid ",
        list(2)
    );
    db.rows(query, args![rooms, keys])
        .await?
        .iter()
        .map(|row| Ok((RoomNid(row.get(0)?), KeyNid(row.get(1)?), row.get(2)?)))
        .collect()
}

/// The JSON of all state events of a type in some rooms, at most `limit` of them.
pub async fn state_of_type(
    db: &Db,
    rooms: &[RoomNid],
    event_type: &str,
    limit: i64,
) -> Result<Vec<(RoomNid, String)>> {
    let query = sql!(
        "SELECT c.room_nid, j.json FROM state_key k JOIN current_state c ON c.key_nid = k.nid ",
        "JOIN event_json j ON j.nid = c.event_nid WHERE k.type = $2 AND c.room_nid ",
        list(1),
        " ORDER BY c.room_nid, c.event_nid LIMIT $3"
    );
    db.rows(query, args![rooms, event_type, limit])
        .await?
        .iter()
        .map(|row| Ok((RoomNid(row.get(0)?), row.get(1)?)))
        .collect()
}

/// What a user is to some rooms.
pub async fn memberships(
    db: &Db,
    user: UserNid,
    rooms: &[RoomNid],
) -> Result<Vec<(RoomNid, Membership)>> {
    let query = sql!(
        "SELECT room_nid, membership FROM membership WHERE user_nid = $1 AND room_nid ",
        list(2)
    );
    db.rows(query, args![user, rooms])
        .await?
        .iter()
        .map(|row| Ok((RoomNid(row.get(0)?), Membership::from_number(row.get(1)?))))
        .collect()
}

/// Those of the rooms with these ids that a user has joined.
pub async fn joined_among(db: &Db, user: UserNid, ids: Vec<String>) -> Result<Vec<String>> {
    let query = sql!(
        "SELECT r.room_id FROM room r JOIN membership m ON m.room_nid = r.nid ",
        "WHERE m.user_nid = $1 AND m.membership = 2 AND r.room_id ",
        list(2)
    );
    db.rows(query, vec![user.into(), Arg::Texts(ids)])
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect()
}

/// Those of the rooms with these ids to which a user is invited, or that they have joined.
pub async fn invited_among(db: &Db, user: UserNid, ids: Vec<String>) -> Result<Vec<String>> {
    let query = sql!(
        "SELECT r.room_id FROM room r JOIN membership m ON m.room_nid = r.nid ",
        "WHERE m.user_nid = $1 AND m.membership < 3 AND r.room_id ",
        list(2)
    );
    db.rows(query, vec![user.into(), Arg::Texts(ids)])
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect()
}

fn row(row: &Row) -> Result<SummaryRow> {
    Ok(SummaryRow {
        nid: RoomNid(row.get(0)?),
        room_id: row.get(1)?,
        room_version: row.get(2)?,
        room_type: row.get(3)?,
        joined_count: row.get(4)?,
    })
}
