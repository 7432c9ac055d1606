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

/// Forgets changes up to a position, but for the newest of each user: the next one refers to it.
#[must_use]
pub fn prune(upto: Pos) -> Write {
    let statement = sql!(
        "DELETE FROM device_change WHERE pos <= $1 ",
        "AND pos < (SELECT max(n.pos) FROM device_change n WHERE n.user_nid = device_change.user_nid)"
    );
    Write::Run(statement, args![upto])
}

/// The users whose devices have changed after one position and up to another: of those who share a joined room with `user`
/// now, and `user`.
pub async fn changed(db: &Db, user: UserNid, (from, upto): (Pos, Pos)) -> Result<Vec<UserNid>> {
    let query = sql!(
        "SELECT DISTINCT c.user_nid FROM device_change c WHERE c.pos > $2 AND c.pos <= $3 AND (c.user_nid = $1 OR EXISTS (",
        "SELECT 1 FROM membership mine JOIN membership theirs ON theirs.room_nid = mine.room_nid ",
        "WHERE mine.user_nid = $1 AND mine.is_local AND mine.membership = 2 ",
        "AND theirs.user_nid = c.user_nid AND theirs.membership = 2))"
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

/// The local users who share a joined room with a user.
pub async fn watchers(db: &Db, user: UserNid) -> Result<Vec<UserNid>> {
    let query = sql!(
        "SELECT DISTINCT theirs.user_nid FROM membership mine JOIN membership theirs ON theirs.room_nid = mine.room_nid ",
        "WHERE mine.user_nid = $1 AND mine.membership = 2 AND theirs.membership = 2 AND theirs.is_local"
    );
    users(&db.rows(query, args![user]).await?)
}

fn users(rows: &[Row]) -> Result<Vec<UserNid>> {
    rows.iter().map(|row| row.get(0).map(UserNid)).collect()
}

/// The other servers that share a joined room with a local user, with their names.
pub async fn servers(db: &Db, user: UserNid) -> Result<Vec<(ServerNid, String)>> {
    let query = sql!(
        "SELECT DISTINCT s.nid, s.name FROM membership m JOIN room_server r ON r.room_nid = m.room_nid ",
        "JOIN server s ON s.nid = r.server_nid ",
        "WHERE m.user_nid = $1 AND m.is_local AND m.membership = 2 AND r.joined_count > 0"
    );
    db.rows(query, args![user])
        .await?
        .iter()
        .map(|row| Ok((ServerNid(row.get(0)?), row.get(1)?)))
        .collect()
}
