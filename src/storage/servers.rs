//! `server` and `room_server`: other servers, and the rooms that they are in.

use super::{Arg, Db, Insert, Pos, Position, Result, RoomNid, ServerNid, Write};
use crate::{args, sql};

/// Another server in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerInRoom {
    /// The server.
    pub server: ServerNid,
    /// How many of its users have joined; 0 if it was in the room once, or somebody's invite was taken back.
    pub joined: i64,
    /// What happened in the room after this position is for the server.
    pub from_pos: Pos,
    /// Up to this position, if it is not in the room any more.
    pub left_pos: Option<Pos>,
}

impl ServerInRoom {
    /// Whether the server is to hear of what happened in the room at a position.
    #[must_use]
    pub fn hears(&self, pos: Pos) -> bool {
        self.from_pos < pos && (self.joined > 0 || self.left_pos.is_some_and(|left| left >= pos))
    }
}

/// The nids of those servers that have one.
pub async fn servers(db: &Db, names: Vec<String>) -> Result<Vec<(String, ServerNid)>> {
    db.rows(
        sql!("SELECT name, nid FROM server WHERE name ", list(1)),
        args![names],
    )
    .await?
    .iter()
    .map(|row| Ok((row.get(0)?, ServerNid(row.get(1)?))))
    .collect()
}

static SERVER: Insert = Insert {
    table: "server",
    columns: &["nid", "name"],
    key: 0,
    conflict: "ON CONFLICT (name) DO NOTHING",
};

/// Names a server. Where the name has a nid already, that one stays.
#[must_use]
pub fn add(nid: ServerNid, name: &str) -> Write {
    Write::Insert(&SERVER, args![nid, name])
}

static ROOM_SERVER: Insert = Insert {
    table: "room_server",
    columns: &[
        "room_nid",
        "server_nid",
        "joined_count",
        "from_pos",
        "left_pos",
    ],
    key: 2,
    conflict: "ON CONFLICT (room_nid, server_nid) DO UPDATE SET joined_count = excluded.joined_count, \
               from_pos = excluded.from_pos, left_pos = excluded.left_pos",
};

/// Sets how many of a server's users have joined a room; if none has, the server is not in the room after `at`.
#[must_use]
pub fn set(room: RoomNid, server: ServerNid, joined: i64, from_pos: Pos, at: Position) -> Write {
    let left = if joined > 0 {
        Arg::Int(None)
    } else {
        at.into()
    };
    Write::Insert(&ROOM_SERVER, args![room, server, joined, from_pos, left])
}

/// The other servers in some rooms, now or once.
pub async fn of_rooms(db: &Db, rooms: &[RoomNid]) -> Result<Vec<(RoomNid, String, ServerInRoom)>> {
    let query = sql!(
        "SELECT r.room_nid, s.name, r.server_nid, r.joined_count, r.from_pos, r.left_pos ",
        "FROM room_server r JOIN server s ON s.nid = r.server_nid WHERE r.room_nid ",
        list(1)
    );
    db.rows(query, args![rooms])
        .await?
        .iter()
        .map(|row| {
            let server = ServerInRoom {
                server: ServerNid(row.get(2)?),
                joined: row.get(3)?,
                from_pos: row.get(4)?,
                left_pos: row.get(5)?,
            };
            Ok((RoomNid(row.get(0)?), row.get(1)?, server))
        })
        .collect()
}

/// Those of the rooms with these ids that a server is in, by id.
pub async fn joined_among(db: &Db, server: &str, ids: Vec<String>) -> Result<Vec<String>> {
    let query = sql!(
        "SELECT o.room_id FROM server s JOIN room_server r ON r.server_nid = s.nid JOIN room o ON o.nid = r.room_nid ",
        "WHERE s.name = $1 AND r.joined_count > 0 AND o.room_id ",
        list(2)
    );
    let rows = db.rows(query, args![server, ids]).await?;
    rows.iter().map(|row| row.get(0)).collect()
}
