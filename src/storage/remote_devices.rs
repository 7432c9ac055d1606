//! `remote_device` and `remote_device_list`: what is known of the devices of users of other servers.

use super::{Db, Insert, Pos, Result, UserNid, Write};
use crate::{args, sql};

/// A device of a user of another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteDevice {
    /// Its id.
    pub device_id: String,
    /// What its user calls it.
    pub display_name: Option<String>,
    /// Its keys, as canonical JSON; `None` if it has none.
    pub keys: Option<String>,
}

/// Of some users, those whose devices are known as they are now: their lists are not stale, and since they were asked for
/// there has always been somebody here in a room with them.
pub async fn known(db: &Db, users: &[UserNid]) -> Result<Vec<UserNid>> {
    let query = sql!(
        "SELECT l.user_nid FROM remote_device_list l WHERE NOT l.is_stale AND EXISTS (",
        "SELECT 1 FROM membership theirs JOIN membership ours ON ours.room_nid = theirs.room_nid ",
        "WHERE theirs.user_nid = l.user_nid AND NOT theirs.is_local AND theirs.membership = 2 AND theirs.pos <= l.pos ",
        "AND ours.is_local AND ours.membership = 2 AND ours.pos <= l.pos) AND l.user_nid ",
        list(1)
    );
    super::device_lists::users(&db.rows(query, args![users]).await?)
}

/// Of some users of other servers, those with whom somebody here shares a room.
pub async fn near(db: &Db, users: &[UserNid]) -> Result<Vec<UserNid>> {
    let query = sql!(
        "SELECT DISTINCT theirs.user_nid FROM membership theirs WHERE NOT theirs.is_local AND theirs.membership = 2 AND EXISTS (",
        "SELECT 1 FROM membership ours WHERE ours.room_nid = theirs.room_nid AND ours.is_local AND ours.membership = 2) ",
        "AND theirs.user_nid ",
        list(1)
    );
    super::device_lists::users(&db.rows(query, args![users]).await?)
}

/// Up to where a user's list is known, as their server counts.
pub async fn stream_id(db: &Db, user: UserNid) -> Result<Option<i64>> {
    let query = sql!("SELECT stream_id FROM remote_device_list WHERE user_nid = $1");
    let row = db.maybe(query, args![user]).await?;
    row.map(|row| row.get(0)).transpose()
}

/// What is known of a device.
pub async fn get(db: &Db, user: UserNid, device_id: &str) -> Result<Option<RemoteDevice>> {
    let query = sql!(
        "SELECT display_name, keys_json FROM remote_device WHERE user_nid = $1 AND device_id = $2"
    );
    let row = db.maybe(query, args![user, device_id]).await?;
    row.map(|row| {
        Ok(RemoteDevice {
            device_id: device_id.to_owned(),
            display_name: row.get(0)?,
            keys: row.get(1)?,
        })
    })
    .transpose()
}

/// How many devices of a user are known.
pub async fn count(db: &Db, user: UserNid) -> Result<i64> {
    let query = sql!("SELECT count(*) FROM remote_device WHERE user_nid = $1");
    db.one(query, args![user]).await?.get(0)
}

static LIST: Insert = Insert {
    table: "remote_device_list",
    columns: &["user_nid", "stream_id", "is_stale", "pos"],
    key: 1,
    conflict: "ON CONFLICT (user_nid) DO UPDATE SET stream_id = excluded.stream_id, is_stale = excluded.is_stale, \
               pos = excluded.pos",
};

/// A user's list is known, as it was asked for at `pos`.
#[must_use]
pub fn set_list(user: UserNid, stream_id: i64, pos: Pos) -> Write {
    Write::Insert(&LIST, args![user, stream_id, false, pos])
}

/// A user's list is known up to this change.
#[must_use]
pub fn advance(user: UserNid, stream_id: i64) -> Write {
    let statement = sql!("UPDATE remote_device_list SET stream_id = $2 WHERE user_nid = $1");
    Write::Run(statement, args![user, stream_id])
}

/// A user's list, if it is known, must be asked for again.
#[must_use]
pub fn set_stale(user: UserNid) -> Write {
    let statement = sql!("UPDATE remote_device_list SET is_stale = TRUE WHERE user_nid = $1");
    Write::Run(statement, args![user])
}

static DEVICE: Insert = Insert {
    table: "remote_device",
    columns: &["user_nid", "device_id", "display_name", "keys_json"],
    key: 2,
    conflict: "ON CONFLICT (user_nid, device_id) DO UPDATE SET display_name = excluded.display_name, \
               keys_json = excluded.keys_json",
};

/// Sets what is known of a device.
#[must_use]
pub fn set(user: UserNid, device: &RemoteDevice) -> Write {
    let RemoteDevice {
        device_id,
        display_name,
        keys,
    } = device;
    Write::Insert(
        &DEVICE,
        args![
            user,
            device_id.as_str(),
            display_name.as_deref(),
            keys.as_deref()
        ],
    )
}

/// A device is gone.
#[must_use]
pub fn delete(user: UserNid, device_id: &str) -> Write {
    let statement = sql!("DELETE FROM remote_device WHERE user_nid = $1 AND device_id = $2");
    Write::Run(statement, args![user, device_id])
}

/// Forgets all devices of a user.
#[must_use]
pub fn delete_all(user: UserNid) -> Write {
    let statement = sql!("DELETE FROM remote_device WHERE user_nid = $1");
    Write::Run(statement, args![user])
}
