//! `to_device`, `to_device_out`, `to_device_in`, `to_device_txn`: messages that wait for devices and for other servers.

use super::{Db, DeviceNid, Insert, Pos, Position, Result, Row, ServerNid, UserNid, Write};
use crate::{args, sql};

/// A message that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its place in the log.
    pub pos: Pos,
    /// For a device: the event. For a server: the EDU.
    pub json: String,
}

/// What waits for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inbox {
    /// The oldest message.
    pub first: Pos,
    /// The newest.
    pub last: Pos,
}

impl Inbox {
    /// That of a device for which one message waits.
    #[must_use]
    pub fn of_one(pos: Pos) -> Self {
        Self {
            first: pos,
            last: pos,
        }
    }
}

static TO_DEVICE: Insert = Insert {
    table: "to_device",
    columns: &["device_nid", "pos", "json"],
    key: 2,
    conflict: "",
};

/// Adds a message for a device.
#[must_use]
pub fn add(device: DeviceNid, at: Position, json: &str) -> Write {
    Write::Insert(&TO_DEVICE, args![device, at, json])
}

/// Removes what a device has got: all up to `upto`.
#[must_use]
pub fn remove(device: DeviceNid, upto: Pos) -> Write {
    let statement = sql!("DELETE FROM to_device WHERE device_nid = $1 AND pos <= $2");
    Write::Run(statement, args![device, upto])
}

/// What waits for the devices of a user, if anything does.
pub async fn inboxes(db: &Db, user: UserNid) -> Result<Vec<(DeviceNid, Inbox)>> {
    let query = sql!(
        "SELECT t.device_nid, min(t.pos), max(t.pos) FROM device d JOIN to_device t ON t.device_nid = d.nid ",
        "WHERE d.user_nid = $1 GROUP BY t.device_nid"
    );
    db.rows(query, args![user])
        .await?
        .iter()
        .map(|row| {
            let (first, last) = (row.get(1)?, row.get(2)?);
            Ok((DeviceNid(row.get(0)?), Inbox { first, last }))
        })
        .collect()
}

/// The first messages for a device after one position and up to another.
pub async fn between(
    db: &Db,
    device: DeviceNid,
    after: Pos,
    upto: Pos,
    limit: i64,
) -> Result<Vec<Waiting>> {
    let query = sql!(
        "SELECT pos, json FROM to_device WHERE device_nid = $1 AND pos > $2 AND pos <= $3 ORDER BY pos LIMIT $4"
    );
    waiting(&db.rows(query, args![device, after, upto, limit]).await?)
}

fn waiting(rows: &[Row]) -> Result<Vec<Waiting>> {
    rows.iter()
        .map(|row| {
            let (pos, json) = (row.get(0)?, row.get(1)?);
            Ok(Waiting { pos, json })
        })
        .collect()
}

static OUT: Insert = Insert {
    table: "to_device_out",
    columns: &["server_nid", "pos", "json"],
    key: 2,
    conflict: "",
};

/// Adds an EDU for another server.
#[must_use]
pub fn add_out(server: ServerNid, at: Position, json: &str) -> Write {
    Write::Insert(&OUT, args![server, at, json])
}

/// Removes what a server has taken: all up to `upto`.
#[must_use]
pub fn remove_out(server: ServerNid, upto: Pos) -> Write {
    let statement = sql!("DELETE FROM to_device_out WHERE server_nid = $1 AND pos <= $2");
    Write::Run(statement, args![server, upto])
}

/// The first EDUs for a server.
pub async fn out(db: &Db, server: ServerNid, limit: i64) -> Result<Vec<Waiting>> {
    let query =
        sql!("SELECT pos, json FROM to_device_out WHERE server_nid = $1 ORDER BY pos LIMIT $2");
    waiting(&db.rows(query, args![server, limit]).await?)
}

/// The servers for which something waits, with their names.
pub async fn servers_waiting(db: &Db) -> Result<Vec<(ServerNid, String)>> {
    let query = sql!(
        "SELECT s.nid, s.name FROM server s WHERE s.nid IN (SELECT DISTINCT server_nid FROM to_device_out)"
    );
    servers(&db.rows(query, args![]).await?)
}

fn servers(rows: &[Row]) -> Result<Vec<(ServerNid, String)>> {
    rows.iter()
        .map(|row| Ok((ServerNid(row.get(0)?), row.get(1)?)))
        .collect()
}

/// The servers for which more than so many EDUs wait, with their names.
pub async fn crowded(db: &Db, kept: i64) -> Result<Vec<(ServerNid, String)>> {
    let query = sql!(
        "SELECT s.nid, s.name FROM server s WHERE s.nid IN ",
        "(SELECT server_nid FROM to_device_out GROUP BY server_nid HAVING count(*) > $1)"
    );
    servers(&db.rows(query, args![kept]).await?)
}

/// Removes all EDUs for a server but the newest.
#[must_use]
pub fn drop_oldest(server: ServerNid, kept: i64) -> Write {
    let statement = sql!(
        "DELETE FROM to_device_out WHERE server_nid = $1 AND pos <= ",
        "(SELECT pos FROM to_device_out WHERE server_nid = $1 ORDER BY pos DESC LIMIT 1 OFFSET $2)"
    );
    Write::Run(statement, args![server, kept])
}

static IN: Insert = Insert {
    table: "to_device_in",
    columns: &["server_nid", "message_id", "ts"],
    key: 0,
    conflict: "",
};

/// Notes that a message has come from a server; the change is refused if it had come before.
#[must_use]
pub fn came(server: ServerNid, message_id: &str, now: i64) -> Write {
    Write::Insert(&IN, args![server, message_id, now])
}

static TXN: Insert = Insert {
    table: "to_device_txn",
    columns: &["device_nid", "type", "txn_id", "ts"],
    key: 0,
    conflict: "",
};

/// Notes that a device has sent messages under a transaction id; the change is refused if it had done so before.
#[must_use]
pub fn sent(device: DeviceNid, event_type: &str, txn_id: &str, now: i64) -> Write {
    Write::Insert(&TXN, args![device, event_type, txn_id, now])
}

/// Forgets what came or was sent before `ts`, and what waits for devices that are gone.
#[must_use]
pub fn prune(ts: i64) -> [Write; 3] {
    [
        Write::Run(sql!("DELETE FROM to_device_in WHERE ts < $1"), args![ts]),
        Write::Run(sql!("DELETE FROM to_device_txn WHERE ts < $1"), args![ts]),
        Write::Run(
            sql!("DELETE FROM to_device WHERE device_nid NOT IN (SELECT nid FROM device)"),
            args![],
        ),
    ]
}
