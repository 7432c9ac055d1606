//! `device_change`: whose devices or keys have changed, and who is to hear of it.

use super::{Db, Insert, Pos, Position, Result, RoomNid, Row, ServerNid, UserNid, Write};
use crate::{args, sql};

static CHANGE: Insert = Insert {
    table: "device_change",
    columns: &["pos", "user_nid", "device_id"],
    key: 1,
    conflict: "",
};

/// A device of a user has changed; with an empty id, the keys of the user, or something of a user of another server.
#[must_use]
pub fn change(at: Position, user: UserNid, device_id: &str) -> Write {
    Write::Insert(&CHANGE, args![at, user, device_id])
}

static SIGNED: Insert = Insert {
    table: "signature_change",
    columns: &["signer_nid", "user_nid", "pos"],
    key: 2,
    conflict: "ON CONFLICT (signer_nid, user_nid) DO UPDATE SET pos = excluded.pos",
};

/// Somebody has signed another user, or has no signatures of theirs any more.
#[must_use]
pub fn signed(at: Position, signer: UserNid, user: UserNid) -> Write {
    Write::Insert(&SIGNED, args![signer, user, at])
}

/// Forgets whom a user has signed.
#[must_use]
pub fn forget_signed(signer: UserNid) -> Write {
    let statement = sql!("DELETE FROM signature_change WHERE signer_nid = $1");
    Write::Run(statement, args![signer])
}

/// Forgets all changes but so many, and but for the newest of each user and of each user's devices: what comes next refers
/// to it.
#[must_use]
pub fn prune(kept: i64) -> Write {
    let statement = sql!(
        "DELETE FROM device_change WHERE pos <= (SELECT k.pos FROM device_change k ORDER BY k.pos DESC LIMIT 1 OFFSET $1) ",
        "AND pos < (SELECT max(n.pos) FROM device_change n WHERE n.user_nid = device_change.user_nid) ",
        "AND (device_id = '' OR pos < (SELECT max(n.pos) FROM device_change n ",
        "WHERE n.user_nid = device_change.user_nid AND n.device_id <> ''))"
    );
    Write::Run(statement, args![kept])
}

/// The users whose devices have changed after one position and up to another: of those who share a joined room with `user`
/// now, and `user`; and those whom `user` has signed meanwhile.
pub async fn changed(db: &Db, user: UserNid, (from, upto): (Pos, Pos)) -> Result<Vec<UserNid>> {
    let query = sql!(
        "SELECT c.user_nid FROM (SELECT DISTINCT user_nid FROM device_change WHERE pos > $2 AND pos <= $3) c ",
        "WHERE (c.user_nid = $1 OR EXISTS (",
        "SELECT 1 FROM membership mine JOIN membership theirs ON theirs.room_nid = mine.room_nid ",
        "WHERE mine.user_nid = $1 AND mine.is_local AND mine.membership = 2 ",
        "AND theirs.user_nid = c.user_nid AND theirs.membership = 2)) ",
        "UNION SELECT user_nid FROM signature_change WHERE signer_nid = $1 AND pos > $2 AND pos <= $3"
    );
    users(&db.rows(query, args![user, from, upto]).await?)
}

/// Those of `others` who share a joined room with `user`.
pub async fn sharing(db: &Db, user: UserNid, others: &[UserNid]) -> Result<Vec<UserNid>> {
    if others.is_empty() {
        return Ok(Vec::new());
    }
    let query = sql!(
        "SELECT DISTINCT theirs.user_nid FROM membership mine JOIN membership theirs ON theirs.room_nid = mine.room_nid ",
        "WHERE mine.user_nid = $2 AND mine.is_local AND mine.membership = 2 AND theirs.membership = 2 AND theirs.user_nid ",
        list(1)
    );
    users(&db.rows(query, args![others, user]).await?)
}

/// The joined members of some rooms.
pub async fn members(db: &Db, rooms: &[RoomNid]) -> Result<Vec<UserNid>> {
    if rooms.is_empty() {
        return Ok(Vec::new());
    }
    let query = sql!(
        "SELECT DISTINCT user_nid FROM membership WHERE membership = 2 AND room_nid ",
        list(1)
    );
    users(&db.rows(query, args![rooms]).await?)
}

/// The local users who share a joined room with a user, who is a local one or not.
pub async fn watchers(db: &Db, user: UserNid, is_local: bool) -> Result<Vec<UserNid>> {
    // There is an index for each of the two.
    let query = if is_local {
        sql!(
            "SELECT DISTINCT theirs.user_nid FROM membership mine JOIN membership theirs ON theirs.room_nid = mine.room_nid ",
            "WHERE mine.user_nid = $1 AND mine.is_local AND mine.membership = 2 AND theirs.membership = 2 AND theirs.is_local"
        )
    } else {
        sql!(
            "SELECT DISTINCT theirs.user_nid FROM membership mine JOIN membership theirs ON theirs.room_nid = mine.room_nid ",
            "WHERE mine.user_nid = $1 AND NOT mine.is_local AND mine.membership = 2 AND theirs.membership = 2 AND theirs.is_local"
        )
    };
    users(&db.rows(query, args![user]).await?)
}

pub(super) fn users(rows: &[Row]) -> Result<Vec<UserNid>> {
    rows.iter().map(|row| row.get(0).map(UserNid)).collect()
}

/// The other servers that share a joined room with a local user, or did at a place in the log, with their names.
pub async fn servers(db: &Db, user: UserNid, at: Pos) -> Result<Vec<(ServerNid, String)>> {
    let query = sql!(
        "SELECT DISTINCT s.nid, s.name FROM membership m JOIN room_server r ON r.room_nid = m.room_nid ",
        "JOIN server s ON s.nid = r.server_nid ",
        "WHERE m.user_nid = $1 AND m.is_local AND (m.membership = 2 OR m.membership >= 4 AND m.pos > $2) ",
        "AND r.joined_count > 0"
    );
    named(&db.rows(query, args![user, at]).await?)
}

/// The servers in a room that share no other room with a local user, with their names.
pub async fn strangers(db: &Db, room: RoomNid, user: UserNid) -> Result<Vec<(ServerNid, String)>> {
    let query = sql!(
        "SELECT s.nid, s.name FROM room_server r JOIN server s ON s.nid = r.server_nid ",
        "WHERE r.room_nid = $1 AND r.joined_count > 0 AND NOT EXISTS (",
        "SELECT 1 FROM room_server o JOIN membership m ON m.room_nid = o.room_nid ",
        "WHERE o.server_nid = r.server_nid AND o.room_nid <> $1 AND o.joined_count > 0 ",
        "AND m.user_nid = $2 AND m.is_local AND m.membership = 2)"
    );
    named(&db.rows(query, args![room, user]).await?)
}

fn named(rows: &[Row]) -> Result<Vec<(ServerNid, String)>> {
    rows.iter()
        .map(|row| Ok((ServerNid(row.get(0)?), row.get(1)?)))
        .collect()
}

/// Something that a server is to be told.
#[derive(Clone, Debug)]
pub struct Untold {
    /// When it happened.
    pub pos: Pos,
    /// Whose device it is.
    pub user: UserNid,
    /// The device; empty: the keys of the user.
    pub device_id: String,
    /// When a device of the same user had changed before.
    pub before: Option<Pos>,
}

/// Up to where a server was told whose devices have changed; at first, up to where it came into a room.
pub async fn told(db: &Db, server: ServerNid) -> Result<Pos> {
    let query = sql!(
        "SELECT coalesce((SELECT pos FROM destination_devices WHERE server_nid = $1), ",
        "(SELECT min(from_pos) FROM room_server WHERE server_nid = $1), 0)"
    );
    db.one(query, args![server]).await?.get(0)
}

static TOLD: Insert = Insert {
    table: "destination_devices",
    columns: &["server_nid", "pos"],
    key: 1,
    conflict: "ON CONFLICT (server_nid) DO UPDATE SET pos = excluded.pos",
};

/// Sets up to where a server was told.
#[must_use]
pub fn set_told(server: ServerNid, pos: Pos) -> Write {
    Write::Insert(&TOLD, args![server, pos])
}

/// The first changes after a position that a server is to be told: those of local users with whom it shares a room, or did
/// when they happened.
pub async fn untold(db: &Db, server: ServerNid, after: Pos, limit: i64) -> Result<Vec<Untold>> {
    let query = sql!(
        "SELECT c.pos, c.user_nid, c.device_id, ",
        "(SELECT max(b.pos) FROM device_change b WHERE b.user_nid = c.user_nid AND b.pos < c.pos AND b.device_id <> '') ",
        "FROM device_change c WHERE c.pos > $2 AND EXISTS (",
        "SELECT 1 FROM membership m JOIN room_server r ON r.room_nid = m.room_nid AND r.server_nid = $1 ",
        "WHERE m.user_nid = c.user_nid AND m.is_local AND (m.membership = 2 OR m.membership >= 4 AND m.pos > c.pos) ",
        "AND r.joined_count > 0) ORDER BY c.pos LIMIT $3"
    );
    db.rows(query, args![server, after, limit])
        .await?
        .iter()
        .map(|row| {
            Ok(Untold {
                pos: row.get(0)?,
                user: UserNid(row.get(1)?),
                device_id: row.get(2)?,
                before: row.get(3)?,
            })
        })
        .collect()
}

/// The servers that may not have been told of all changes, with their names.
pub async fn servers_behind(db: &Db) -> Result<Vec<(ServerNid, String)>> {
    // Of each room only the newest change counts, or the leaving of whom it is about: there are many servers in a room.
    let query = sql!(
        "WITH newest AS (SELECT user_nid, max(pos) AS pos FROM device_change GROUP BY user_nid), ",
        "of_room AS (SELECT m.room_nid, max(CASE WHEN m.membership = 2 OR n.pos < m.pos THEN n.pos ELSE m.pos END) AS pos ",
        "FROM newest n JOIN membership m ON m.user_nid = n.user_nid AND m.is_local ",
        "AND (m.membership = 2 OR m.membership >= 4) GROUP BY m.room_nid) ",
        "SELECT DISTINCT s.nid, s.name FROM of_room o ",
        "JOIN room_server r ON r.room_nid = o.room_nid AND r.joined_count > 0 JOIN server s ON s.nid = r.server_nid ",
        "LEFT JOIN destination_devices d ON d.server_nid = r.server_nid WHERE o.pos > coalesce(d.pos, r.from_pos)"
    );
    named(&db.rows(query, args![]).await?)
}
