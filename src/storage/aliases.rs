//! `alias`: the names of rooms on this server.

use ruma::RoomAliasId;

use super::{Db, Insert, Result, RoomNid, UserNid, Write};
use crate::{args, sql};

static ALIAS: Insert = Insert {
    table: "alias",
    columns: &["alias", "room_nid", "creator_nid"],
    key: 0,
    conflict: "",
};

/// Names a room. Refused as a duplicate if the alias is taken.
#[must_use]
pub fn add(alias: &RoomAliasId, room: RoomNid, creator: UserNid) -> Write {
    Write::Insert(&ALIAS, args![alias.as_str(), room, creator])
}

/// Takes the name from the room that it names.
#[must_use]
pub fn delete(alias: &RoomAliasId) -> Write {
    Write::Expect(
        sql!("DELETE FROM alias WHERE alias = $1"),
        args![alias.as_str()],
        1,
    )
}

/// The id of the room that an alias names, and who made the alias.
pub async fn get(db: &Db, alias: &RoomAliasId) -> Result<Option<(String, UserNid)>> {
    let query = sql!(
        "SELECT r.room_id, a.creator_nid FROM alias a JOIN room r ON r.nid = a.room_nid WHERE a.alias = $1"
    );
    let row = db.maybe(query, args![alias.as_str()]).await?;
    row.map(|row| Ok((row.get(0)?, UserNid(row.get(1)?))))
        .transpose()
}

/// The aliases of a room on this server.
pub async fn of_room(db: &Db, room: RoomNid) -> Result<Vec<String>> {
    let query = sql!("SELECT alias FROM alias WHERE room_nid = $1 ORDER BY alias");
    db.rows(query, args![room])
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect()
}

/// Makes all aliases of a room lead to another one.
#[must_use]
pub fn move_all(from: RoomNid, to: RoomNid) -> Write {
    Write::Run(
        sql!("UPDATE alias SET room_nid = $2 WHERE room_nid = $1"),
        args![from, to],
    )
}
