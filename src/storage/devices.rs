//! `device` and `device_seen`: what people sign in with.

use super::{Db, DeviceNid, Insert, Result, UserNid, Write};
use crate::{args, sql};

/// A device of a local user.
#[derive(Clone, Debug)]
pub struct Device {
    /// The device.
    pub nid: DeviceNid,
    /// As clients name it.
    pub device_id: String,
    /// What its user calls it.
    pub display_name: Option<String>,
    /// When it was last seen, in milliseconds since 1970.
    pub last_seen_ts: Option<i64>,
    /// The address that it had then.
    pub last_seen_ip: Option<String>,
}

/// All devices of a user, in the order in which they came.
pub async fn of_user(db: &Db, user: UserNid) -> Result<Vec<Device>> {
    let query = sql!(
        "SELECT d.nid, d.device_id, d.display_name, s.ts, s.ip FROM device d ",
        "LEFT JOIN device_seen s ON s.device_nid = d.nid WHERE d.user_nid = $1 ORDER BY d.nid"
    );
    let rows = db.rows(query, args![user]).await?;
    rows.iter()
        .map(|row| {
            Ok(Device {
                nid: DeviceNid(row.get(0)?),
                device_id: row.get(1)?,
                display_name: row.get(2)?,
                last_seen_ts: row.get(3)?,
                last_seen_ip: row.get(4)?,
            })
        })
        .collect()
}

/// The devices of some users: user, id, device.
pub async fn of_users(db: &Db, users: &[UserNid]) -> Result<Vec<(UserNid, String, DeviceNid)>> {
    let query = sql!(
        "SELECT user_nid, device_id, nid FROM device WHERE user_nid ",
        list(1)
    );
    db.rows(query, args![users])
        .await?
        .iter()
        .map(|row| Ok((UserNid(row.get(0)?), row.get(1)?, DeviceNid(row.get(2)?))))
        .collect()
}

/// Those of these devices that have keys: whose each is, and its id.
pub async fn with_keys(db: &Db, devices: &[DeviceNid]) -> Result<Vec<(UserNid, String)>> {
    let query = sql!(
        "SELECT d.user_nid, d.device_id FROM device d JOIN device_key k ON k.device_nid = d.nid WHERE d.nid ",
        list(1)
    );
    db.rows(query, args![devices])
        .await?
        .iter()
        .map(|row| Ok((UserNid(row.get(0)?), row.get(1)?)))
        .collect()
}

/// The device that a user names so, if there is one.
pub async fn find(db: &Db, user: UserNid, device_id: &str) -> Result<Option<DeviceNid>> {
    let query = sql!("SELECT nid FROM device WHERE user_nid = $1 AND device_id = $2");
    let row = db.maybe(query, args![user, device_id]).await?;
    row.map(|row| row.get(0).map(DeviceNid)).transpose()
}

static DEVICE: Insert = Insert {
    table: "device",
    columns: &["nid", "user_nid", "device_id", "display_name", "created_ts"],
    key: 0,
    conflict: "",
};

/// Adds a device; the change is refused if the user has one of this name.
#[must_use]
pub fn add(
    nid: DeviceNid,
    user: UserNid,
    device_id: &str,
    display_name: Option<&str>,
    now: i64,
) -> Write {
    Write::Insert(&DEVICE, args![nid, user, device_id, display_name, now])
}

/// Refuses the change if the device is gone.
#[must_use]
pub fn expect(nid: DeviceNid) -> Write {
    let statement = sql!("UPDATE device SET nid = nid WHERE nid = $1");
    Write::Expect(statement, args![nid], 1)
}

/// Gives a device another name.
#[must_use]
pub fn rename(nid: DeviceNid, display_name: &str) -> Write {
    let statement = sql!("UPDATE device SET display_name = $2 WHERE nid = $1");
    Write::Run(statement, args![nid, display_name])
}

/// The statements that delete those devices whose nids are as it is said, with their tokens and keys and what waits for them.
macro_rules! delete {
    ($($whose:tt)*) => {
        [
            sql!("DELETE FROM access_token WHERE device_nid ", $($whose)*),
            sql!("DELETE FROM refresh_token WHERE device_nid ", $($whose)*),
            sql!("DELETE FROM device_seen WHERE device_nid ", $($whose)*),
            sql!("DELETE FROM device_key WHERE device_nid ", $($whose)*),
            sql!("DELETE FROM one_time_key WHERE device_nid ", $($whose)*),
            sql!("DELETE FROM one_time_key_used WHERE device_nid ", $($whose)*),
            sql!("DELETE FROM fallback_key WHERE device_nid ", $($whose)*),
            sql!("DELETE FROM to_device WHERE device_nid ", $($whose)*),
            sql!("DELETE FROM to_device_txn WHERE device_nid ", $($whose)*),
            sql!("DELETE FROM pusher WHERE device_nid ", $($whose)*),
            sql!(
                "DELETE FROM key_signature WHERE (user_nid, key_id) IN (SELECT user_nid, device_id FROM device WHERE nid ",
                $($whose)*,
                ")"
            ),
            // What it has signed: another device of this name would not have.
            sql!(
                "DELETE FROM key_signature WHERE (signer_nid, signer_key) IN ",
                "(SELECT user_nid, 'ed25519:' || device_id FROM device WHERE nid ",
                $($whose)*,
                ")"
            ),
            sql!("DELETE FROM dehydrated_device WHERE device_nid ", $($whose)*),
            sql!("DELETE FROM device WHERE nid ", $($whose)*),
        ]
    };
}

/// Deletes devices, with all that is theirs.
#[must_use]
pub fn delete(nids: &[DeviceNid]) -> Vec<Write> {
    let writes = delete!(list(1)).map(|statement| Write::Run(statement, args![nids]));
    writes.into()
}

/// Deletes all devices of a user but `kept`, with all that is theirs.
#[must_use]
pub fn delete_all(user: UserNid, kept: Option<DeviceNid>) -> Vec<Write> {
    // No device has this one.
    let kept = kept.unwrap_or(DeviceNid(-1));
    let writes = delete!("IN (SELECT nid FROM device WHERE user_nid = $1 AND nid <> $2)")
        .map(|statement| Write::Run(statement, args![user, kept]));
    writes.into()
}

static SEEN: Insert = Insert {
    table: "device_seen",
    columns: &["device_nid", "ts", "ip"],
    key: 1,
    conflict: "ON CONFLICT (device_nid) DO UPDATE SET ts = excluded.ts, ip = excluded.ip",
};

/// Notes when a device was last seen, and where.
#[must_use]
pub fn seen(nid: DeviceNid, ts: i64, ip: Option<String>) -> Write {
    Write::Insert(&SEEN, args![nid, ts, ip])
}
