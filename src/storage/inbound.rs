//! `inbound_pdu`: events of other servers that have arrived and wait for others that they rest on.

use super::{Db, Insert, Result, RoomNid, Write};
use crate::{args, sql};

/// An event that waits.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// What it is called here while it waits.
    pub nid: i64,
    /// Its id.
    pub event_id: String,
    /// The server that sent it.
    pub origin: String,
    /// Its JSON, whose signatures are good.
    pub json: String,
    /// How often it was tried in vain to find what it rests on.
    pub attempts: i64,
}

static INBOUND: Insert = Insert {
    table: "inbound_pdu",
    columns: &[
        "room_nid", "event_id", "origin", "nid", "json", "ts", "attempts", "next_ts",
    ],
    key: 3,
    conflict: "ON CONFLICT (room_nid, event_id, origin) DO NOTHING",
};

/// An event waits from `now` on (milliseconds since 1970).
#[must_use]
pub fn add(room: RoomNid, waiting: &Waiting, now: i64) -> Write {
    Write::Insert(
        &INBOUND,
        args![
            room,
            waiting.event_id.as_str(),
            waiting.origin.as_str(),
            waiting.nid,
            waiting.json.as_str(),
            now,
            0_i64,
            0_i64,
        ],
    )
}

/// An event waits no longer, whoever has sent it.
#[must_use]
pub fn remove(room: RoomNid, event_id: &str) -> Write {
    Write::Run(
        sql!("DELETE FROM inbound_pdu WHERE room_nid = $1 AND event_id = $2"),
        args![room, event_id],
    )
}

/// An event of which a server does not tell what it rests on is given up, as far as that server goes.
#[must_use]
pub fn give_up(room: RoomNid, waiting: &Waiting) -> Write {
    Write::Run(
        sql!("DELETE FROM inbound_pdu WHERE room_nid = $1 AND event_id = $2 AND origin = $3"),
        args![room, waiting.event_id.as_str(), waiting.origin.as_str()],
    )
}

/// An event is not to be tried again before `next` (milliseconds since 1970).
#[must_use]
pub fn postpone(room: RoomNid, waiting: &Waiting, attempts: i64, next: i64) -> Write {
    Write::Run(
        sql!(
            "UPDATE inbound_pdu SET attempts = $4, next_ts = $5 WHERE room_nid = $1 AND event_id = $2 AND origin = $3"
        ),
        args![
            room,
            waiting.event_id.as_str(),
            waiting.origin.as_str(),
            attempts,
            next
        ],
    )
}

/// How many events wait.
#[derive(Clone, Copy, Debug)]
pub struct Count {
    /// In the room.
    pub room: i64,
    /// Of the server, in the room.
    pub server_in_room: i64,
    /// Of the server, in all rooms.
    pub server: i64,
}

/// How many events wait in a room, and how many of a server.
pub async fn count(db: &Db, room: RoomNid, origin: &str) -> Result<Count> {
    let query = sql!(
        "SELECT (SELECT count(*) FROM inbound_pdu WHERE room_nid = $1), ",
        "(SELECT count(*) FROM inbound_pdu WHERE origin = $2 AND room_nid = $1), ",
        "(SELECT count(*) FROM inbound_pdu WHERE origin = $2)"
    );
    let row = db.one(query, args![room, origin]).await?;
    Ok(Count {
        room: row.get(0)?,
        server_in_room: row.get(1)?,
        server: row.get(2)?,
    })
}

/// The events that a server has sent to a room and that may be tried now, in the order in which they have come, at most
/// `limit`.
pub async fn ready(
    db: &Db,
    room: RoomNid,
    origin: &str,
    now: i64,
    limit: i64,
) -> Result<Vec<Waiting>> {
    let query = sql!(
        "SELECT nid, event_id, origin, json, attempts FROM inbound_pdu WHERE origin = $4 AND room_nid = $1 ",
        "AND next_ts <= $2 ORDER BY nid LIMIT $3"
    );
    db.rows(query, args![room, now, limit, origin])
        .await?
        .iter()
        .map(|row| {
            Ok(Waiting {
                nid: row.get(0)?,
                event_id: row.get(1)?,
                origin: row.get(2)?,
                json: row.get(3)?,
                attempts: row.get(4)?,
            })
        })
        .collect()
}

/// When the next event that a server has sent to a room may be tried again; `None` if none waits.
pub async fn next_try(db: &Db, room: RoomNid, origin: &str) -> Result<Option<i64>> {
    let query = sql!("SELECT min(next_ts) FROM inbound_pdu WHERE origin = $2 AND room_nid = $1");
    db.one(query, args![room, origin]).await?.get(0)
}

/// The rooms in which events wait, with the servers that have sent them.
pub async fn all(db: &Db) -> Result<Vec<(RoomNid, String)>> {
    let query = sql!("SELECT DISTINCT room_nid, origin FROM inbound_pdu");
    let rows = db.rows(query, args![]).await?;
    rows.iter()
        .map(|row| Ok((RoomNid(row.get(0)?), row.get(1)?)))
        .collect()
}
