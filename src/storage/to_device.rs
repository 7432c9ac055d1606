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
    // Each end is one look-up, however much lies between.
    let query = sql!(
        "SELECT d.nid, (SELECT min(pos) FROM to_device t WHERE t.device_nid = d.nid), ",
        "(SELECT max(pos) FROM to_device t WHERE t.device_nid = d.nid) FROM device d WHERE d.user_nid = $1"
    );
    let mut inboxes = Vec::new();
    for row in db.rows(query, args![user]).await? {
        let (first, last): (Option<Pos>, Option<Pos>) = (row.get(1)?, row.get(2)?);
        if let (Some(first), Some(last)) = (first, last) {
            inboxes.push((DeviceNid(row.get(0)?), Inbox { first, last }));
        }
    }
    Ok(inboxes)
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

/// A query that begins with the table `waiting`: its column `nid` has each value of the first column of a key, and at last a
/// NULL. Each is found by one look-up behind the one before, so all that waits is not read.
macro_rules! of_waiting {
    ($table:tt, $column:tt, $($query:tt)*) => {
        sql!(
            "WITH RECURSIVE waiting(nid) AS (SELECT min(", $column, ") FROM ", $table,
            " UNION ALL SELECT (SELECT min(t.", $column, ") FROM ", $table, " t WHERE t.", $column, " > w.nid) ",
            "FROM waiting w WHERE w.nid IS NOT NULL) ",
            $($query)*
        )
    };
}

/// The servers for which something waits, with their names.
pub async fn servers_waiting(db: &Db) -> Result<Vec<(ServerNid, String)>> {
    let query = of_waiting!(
        "to_device_out",
        "server_nid",
        "SELECT s.nid, s.name FROM waiting w JOIN server s ON s.nid = w.nid"
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
    let query = of_waiting!(
        "to_device_out",
        "server_nid",
        "SELECT s.nid, s.name FROM waiting w JOIN server s ON s.nid = w.nid WHERE EXISTS ",
        "(SELECT 1 FROM to_device_out o WHERE o.server_nid = w.nid ORDER BY o.pos LIMIT 1 OFFSET $1)"
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

/// The devices that are gone and for which something waits all the same: it was sent while they went.
pub async fn gone(db: &Db) -> Result<Vec<DeviceNid>> {
    let query = of_waiting!(
        "to_device",
        "device_nid",
        "SELECT w.nid FROM waiting w WHERE w.nid IS NOT NULL ",
        "AND NOT EXISTS (SELECT 1 FROM device d WHERE d.nid = w.nid)"
    );
    let rows = db.rows(query, args![]).await?;
    rows.iter().map(|row| row.get(0).map(DeviceNid)).collect()
}

/// Forgets what came or was sent before `ts`, and what waits for devices that are [`gone`].
#[must_use]
pub fn prune(ts: i64, gone: &[DeviceNid]) -> Vec<Write> {
    let mut writes = vec![
        Write::Run(sql!("DELETE FROM to_device_in WHERE ts < $1"), args![ts]),
        Write::Run(sql!("DELETE FROM to_device_txn WHERE ts < $1"), args![ts]),
    ];
    if !gone.is_empty() {
        let statement = sql!("DELETE FROM to_device WHERE device_nid ", list(1));
        writes.push(Write::Run(statement, args![gone]));
    }
    writes
}
