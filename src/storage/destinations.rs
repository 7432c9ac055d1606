//! `destination`: what other servers have been sent; and what they are still to be sent.

use super::{Db, Insert, Pos, Result, RoomNid, Row, ServerNid, Write, events::json};
use crate::{args, sql};

/// Another server, as far as sending to it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationRow {
    /// The server.
    pub server: ServerNid,
    /// Its name.
    pub name: String,
    /// All that is for the server up to here has reached it.
    pub last_ok_pos: Pos,
    /// How often in a row it could not be reached.
    pub failures: i64,
    /// Since when, in milliseconds since 1970.
    pub fail_since: Option<i64>,
    /// When it may be tried again.
    pub next_try: Option<i64>,
}

/// A room in which something happened that a server has not been sent.
#[derive(Clone, Copy, Debug)]
pub struct RoomBehind {
    /// The room.
    pub room: RoomNid,
    /// What happened after this position is for the server.
    pub from_pos: Pos,
    /// The position of the newest event that may be for the server.
    pub upto: Pos,
}

/// An event to be sent.
#[derive(Clone, Debug)]
pub struct Unsent {
    /// Its position.
    pub pos: Pos,
    /// Who sent it.
    pub sender: String,
    /// The event as it was signed.
    pub json: String,
}

static DESTINATION: Insert = Insert {
    table: "destination",
    columns: &[
        "server_nid",
        "last_ok_pos",
        "failures",
        "fail_since",
        "next_try",
    ],
    key: 1,
    conflict: "ON CONFLICT (server_nid) DO UPDATE SET last_ok_pos = excluded.last_ok_pos, \
               failures = excluded.failures, fail_since = excluded.fail_since, next_try = excluded.next_try",
};

/// Sets how far sending to a server has come.
#[must_use]
pub fn set(row: &DestinationRow) -> Write {
    Write::Insert(
        &DESTINATION,
        args![
            row.server,
            row.last_ok_pos,
            row.failures,
            row.fail_since,
            row.next_try
        ],
    )
}

fn destination(row: &Row) -> Result<DestinationRow> {
    Ok(DestinationRow {
        server: ServerNid(row.get(0)?),
        name: row.get(1)?,
        last_ok_pos: row.get(2)?,
        failures: row.get(3)?,
        fail_since: row.get(4)?,
        next_try: row.get(5)?,
    })
}

/// The servers for which something may have happened that they have not been sent.
pub async fn behind(db: &Db) -> Result<Vec<DestinationRow>> {
    let query = sql!(
        "SELECT DISTINCT s.nid, s.name, coalesce(d.last_ok_pos, 0), coalesce(d.failures, 0), d.fail_since, d.next_try ",
        "FROM room_server r JOIN room_head h ON h.room_nid = r.room_nid JOIN server s ON s.nid = r.server_nid ",
        "LEFT JOIN destination d ON d.server_nid = r.server_nid ",
        "WHERE h.last_local_pos > coalesce(d.last_ok_pos, 0) AND h.last_local_pos > r.from_pos ",
        "AND (r.joined_count > 0 OR r.left_pos > coalesce(d.last_ok_pos, 0))"
    );
    db.rows(query, args![])
        .await?
        .iter()
        .map(destination)
        .collect()
}

/// The servers that could not be reached when they were tried last.
pub async fn failing(db: &Db) -> Result<Vec<DestinationRow>> {
    let query = sql!(
        "SELECT s.nid, s.name, d.last_ok_pos, d.failures, d.fail_since, d.next_try ",
        "FROM destination d JOIN server s ON s.nid = d.server_nid WHERE d.failures > 0"
    );
    db.rows(query, args![])
        .await?
        .iter()
        .map(destination)
        .collect()
}

/// The servers that took what they were sent last.
pub async fn alive(db: &Db) -> Result<Vec<ServerNid>> {
    let query = sql!("SELECT server_nid FROM destination WHERE failures = 0");
    let rows = db.rows(query, args![]).await?;
    rows.iter().map(|row| Ok(ServerNid(row.get(0)?))).collect()
}

/// The rooms in which something may have happened after a position that is for a server; those in which the newest of it
/// is oldest come first.
pub async fn rooms_behind(
    db: &Db,
    server: ServerNid,
    after: Pos,
    limit: i64,
) -> Result<Vec<RoomBehind>> {
    let query = sql!(
        "SELECT b.room_nid, b.from_pos, b.upto FROM (SELECT r.room_nid, r.from_pos, ",
        "CASE WHEN r.joined_count = 0 AND r.left_pos < h.last_local_pos THEN r.left_pos ELSE h.last_local_pos END AS upto ",
        "FROM room_server r JOIN room_head h ON h.room_nid = r.room_nid WHERE r.server_nid = $1) AS b ",
        "WHERE b.upto > $2 AND b.upto > b.from_pos ORDER BY b.upto LIMIT $3"
    );
    db.rows(query, args![server, after, limit])
        .await?
        .iter()
        .map(|row| {
            Ok(RoomBehind {
                room: RoomNid(row.get(0)?),
                from_pos: row.get(1)?,
                upto: row.get(2)?,
            })
        })
        .collect()
}

/// The latest events of a room between two positions that this server must send, newest first. What cannot be read is left
/// out: nobody would take what is sent with it.
pub async fn latest(
    db: &Db,
    room: RoomNid,
    after: Pos,
    upto: Pos,
    limit: i64,
) -> Result<Vec<Unsent>> {
    let query = sql!(
        "SELECT e.pos, u.mxid, j.json, e.event_id FROM event e JOIN event_json j ON j.nid = e.nid JOIN user_id u ON u.nid = e.sender_nid ",
        "WHERE e.room_nid = $1 AND e.pos > $2 AND e.pos <= $3 AND e.flags & 32 <> 0 AND e.flags & 7 = 0 ",
        "ORDER BY e.pos DESC LIMIT $4"
    );
    db.rows(query, args![room, after, upto, limit])
        .await?
        .iter()
        .filter_map(|row| {
            let unsent = |json| {
                Ok(Unsent {
                    pos: row.get(0)?,
                    sender: row.get(1)?,
                    json,
                })
            };
            json(row, 2, 3).transpose().map(|json| unsent(json?))
        })
        .collect()
}
