//! `device_key`, `one_time_key`, `one_time_key_used`, `fallback_key`: what the devices of local users have uploaded, for others
//! to encrypt to them.

use super::{Db, DeviceNid, Insert, Pos, Result, Row, UserNid, Write};
use crate::{args, sql};

/// The keys of a device.
#[derive(Clone, Debug)]
pub struct DeviceKeys {
    /// Whose device it is.
    pub user: UserNid,
    /// The device, as clients name it.
    pub device_id: String,
    /// What its user calls it.
    pub display_name: Option<String>,
    /// The keys, as canonical JSON.
    pub json: String,
}

/// A key that is handed out once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneTimeKey {
    /// Its place in the order in which they are handed out.
    pub nid: i64,
    /// As its device calls it, without the algorithm.
    pub key_id: String,
    /// The key, as canonical JSON.
    pub json: String,
}

/// What is handed out when no one-time key is left.
#[derive(Clone, Debug)]
pub struct FallbackKey {
    /// As its device calls it, without the algorithm.
    pub key_id: String,
    /// The key, as canonical JSON.
    pub json: String,
    /// Whether it was handed out.
    pub used: bool,
}

/// What a device learns of its keys with every sync.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// How many one-time keys are left, by algorithm; none where there are none.
    pub one_time: Vec<(String, u64)>,
    /// The algorithms of fallback keys that were never handed out.
    pub unused_fallback: Vec<String>,
}

/// The keys of the devices of some users, of those devices that have any.
pub async fn of_users(db: &Db, users: &[UserNid]) -> Result<Vec<DeviceKeys>> {
    let query = sql!(
        "SELECT d.user_nid, d.device_id, d.display_name, k.json FROM device d ",
        "JOIN device_key k ON k.device_nid = d.nid WHERE d.user_nid ",
        list(1)
    );
    db.rows(query, args![users])
        .await?
        .iter()
        .map(device_keys)
        .collect()
}

/// The keys of a device, if it has any.
pub async fn of_device(db: &Db, device: DeviceNid) -> Result<Option<String>> {
    let query = sql!("SELECT json FROM device_key WHERE device_nid = $1");
    let row = db.maybe(query, args![device]).await?;
    row.map(|row| row.get(0)).transpose()
}

/// The devices of a user that have keys: device, id.
pub async fn devices(db: &Db, user: UserNid) -> Result<Vec<(DeviceNid, String)>> {
    let query = sql!(
        "SELECT d.nid, d.device_id FROM device d JOIN device_key k ON k.device_nid = d.nid ",
        "WHERE d.user_nid = $1"
    );
    db.rows(query, args![user])
        .await?
        .iter()
        .map(|row| Ok((DeviceNid(row.get(0)?), row.get(1)?)))
        .collect()
}

static DEVICE_KEY: Insert = Insert {
    table: "device_key",
    columns: &["device_nid", "json"],
    key: 1,
    conflict: "ON CONFLICT (device_nid) DO UPDATE SET json = excluded.json",
};

static FIRST_DEVICE_KEY: Insert = Insert {
    table: "device_key",
    columns: &["device_nid", "json"],
    key: 0,
    conflict: "",
};

/// Sets the keys of a device that has none. If it has some by then, the change is a duplicate.
#[must_use]
pub fn set_first(device: DeviceNid, json: &str) -> Write {
    Write::Insert(&FIRST_DEVICE_KEY, args![device, json])
}

/// Sets the keys of a device.
#[must_use]
pub fn set(device: DeviceNid, json: &str) -> Write {
    Write::Insert(&DEVICE_KEY, args![device, json])
}

/// Of some ids, those under which a device has one-time keys of some algorithms: algorithm, id, key.
pub async fn named(
    db: &Db,
    device: DeviceNid,
    algorithms: Vec<String>,
    key_ids: Vec<String>,
) -> Result<Vec<(String, String, String)>> {
    let query = sql!(
        "SELECT algorithm, key_id, json FROM one_time_key WHERE device_nid = $1 AND algorithm ",
        list(2),
        " AND key_id ",
        list(3)
    );
    db.rows(query, args![device, algorithms, key_ids])
        .await?
        .iter()
        .map(|row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .collect()
}

/// Of some ids, those whose keys of some algorithms were handed out: algorithm, id, hash.
pub async fn used(
    db: &Db,
    device: DeviceNid,
    algorithms: Vec<String>,
    key_ids: Vec<String>,
) -> Result<Vec<(String, String, Vec<u8>)>> {
    let query = sql!(
        "SELECT algorithm, key_id, hash FROM one_time_key_used WHERE device_nid = $1 AND algorithm ",
        list(2),
        " AND key_id ",
        list(3)
    );
    db.rows(query, args![device, algorithms, key_ids])
        .await?
        .iter()
        .map(|row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .collect()
}

static ONE_TIME_KEY: Insert = Insert {
    table: "one_time_key",
    columns: &["nid", "device_nid", "algorithm", "key_id", "json"],
    key: 0,
    conflict: "",
};

/// Adds a one-time key; the change is refused if the device has one under this id.
#[must_use]
pub fn add(nid: i64, device: DeviceNid, algorithm: &str, key_id: &str, json: &str) -> Write {
    Write::Insert(&ONE_TIME_KEY, args![nid, device, algorithm, key_id, json])
}

/// Forgets all one-time keys and fallback keys of a device, also those that were handed out.
#[must_use]
pub fn delete_small(device: DeviceNid) -> [Write; 3] {
    [
        sql!("DELETE FROM one_time_key WHERE device_nid = $1"),
        sql!("DELETE FROM one_time_key_used WHERE device_nid = $1"),
        sql!("DELETE FROM fallback_key WHERE device_nid = $1"),
    ]
    .map(|statement| Write::Run(statement, args![device]))
}

/// The one-time keys of some devices that come next, in their order and of each device so many, without some of them.
pub async fn next(
    db: &Db,
    devices: &[DeviceNid],
    algorithm: &str,
    without: Vec<i64>,
    limit: i64,
) -> Result<Vec<(DeviceNid, OneTimeKey)>> {
    // For each device the first keys are found by the index. SQLite knows no `LATERAL`, and PostgreSQL would try every key.
    let query = sql!(
        "SELECT list.value, k.nid, k.key_id, k.json FROM ",
        rows(1),
        only {
            sqlite: " CROSS JOIN one_time_key k WHERE k.nid IN ",
            postgres: " CROSS JOIN LATERAL "
        },
        "(SELECT n.nid FROM one_time_key n WHERE n.device_nid = list.value AND n.algorithm = $2 AND NOT (n.nid ",
        list(3),
        ") ORDER BY n.nid LIMIT $4)",
        only {
            sqlite: "",
            postgres: " AS first JOIN one_time_key k ON k.nid = first.nid"
        },
        " ORDER BY k.nid"
    );
    db.rows(query, args![devices, algorithm, without, limit])
        .await?
        .iter()
        .map(|row| {
            let key = OneTimeKey {
                nid: row.get(1)?,
                key_id: row.get(2)?,
                json: row.get(3)?,
            };
            Ok((DeviceNid(row.get(0)?), key))
        })
        .collect()
}

static USED: Insert = Insert {
    table: "one_time_key_used",
    columns: &["device_nid", "algorithm", "key_id", "hash"],
    key: 3,
    conflict: "ON CONFLICT (device_nid, algorithm, key_id) DO UPDATE SET hash = excluded.hash",
};

/// A one-time key that is handed out.
#[derive(Debug)]
pub struct HandedOut<'a> {
    /// Whose key it is.
    pub device: DeviceNid,
    /// Its algorithm.
    pub algorithm: &'a str,
    /// The key.
    pub key: &'a OneTimeKey,
    /// The SHA-256 of its JSON.
    pub hash: Vec<u8>,
}

/// Hands one-time keys out; the change is refused if that was done before with one of them.
#[must_use]
pub fn hand_out(keys: Vec<HandedOut<'_>>) -> Vec<Write> {
    let nids: Vec<i64> = keys.iter().map(|one| one.key.nid).collect();
    if nids.is_empty() {
        return Vec::new();
    }
    let expected = nids.len() as u64;
    let delete = sql!("DELETE FROM one_time_key WHERE nid ", list(1));
    let mut writes = vec![Write::Expect(delete, args![nids], expected)];
    writes.extend(keys.into_iter().map(|one| {
        let key_id = one.key.key_id.as_str();
        Write::Insert(&USED, args![one.device, one.algorithm, key_id, one.hash])
    }));
    writes
}

/// The fallback keys of some devices, of those that have one.
pub async fn fallbacks(
    db: &Db,
    devices: &[DeviceNid],
    algorithm: &str,
) -> Result<Vec<(DeviceNid, FallbackKey)>> {
    let query = sql!(
        "SELECT device_nid, key_id, json, used FROM fallback_key WHERE algorithm = $2 AND device_nid ",
        list(1)
    );
    db.rows(query, args![devices, algorithm])
        .await?
        .iter()
        .map(|row| {
            let key = FallbackKey {
                key_id: row.get(1)?,
                json: row.get(2)?,
                used: row.get(3)?,
            };
            Ok((DeviceNid(row.get(0)?), key))
        })
        .collect()
}

/// For which algorithms a device has fallback keys.
pub async fn fallback_algorithms(db: &Db, device: DeviceNid) -> Result<Vec<String>> {
    let query = sql!("SELECT algorithm FROM fallback_key WHERE device_nid = $1");
    let rows = db.rows(query, args![device]).await?;
    rows.iter().map(|row| row.get(0)).collect()
}

/// Sets the fallback key of a device. The same once more stays as used as it was.
#[must_use]
pub fn set_fallback(device: DeviceNid, algorithm: &str, key_id: &str, json: &str) -> Write {
    let statement = sql!(
        "INSERT INTO fallback_key (device_nid, algorithm, key_id, json, used) ",
        "VALUES ($1, $2, $3, $4, FALSE) ON CONFLICT (device_nid, algorithm) DO UPDATE SET ",
        "used = fallback_key.used AND fallback_key.key_id = excluded.key_id ",
        "AND fallback_key.json = excluded.json, ",
        "key_id = excluded.key_id, json = excluded.json"
    );
    Write::Run(statement, args![device, algorithm, key_id, json])
}

/// Notes that the fallback keys of some devices were handed out: device, id. One that was replaced meanwhile is not meant.
#[must_use]
pub fn use_fallbacks(algorithm: &str, keys: &[(DeviceNid, &str)]) -> Write {
    let statement = sql!(
        "UPDATE fallback_key SET used = TRUE WHERE algorithm = $1 AND device_nid ",
        list(2),
        " AND device_nid || ':' || key_id ",
        list(3)
    );
    let devices: Vec<DeviceNid> = keys.iter().map(|(device, _)| *device).collect();
    let keys = keys.iter();
    let keys: Vec<String> = keys
        .map(|(device, id)| format!("{}:{id}", device.0))
        .collect();
    Write::Run(statement, args![algorithm, &devices[..], keys])
}

/// What is left of the keys of a device.
pub async fn counts(db: &Db, device: DeviceNid) -> Result<Counts> {
    let query = sql!(
        "SELECT algorithm, count(*) FROM one_time_key WHERE device_nid = $1 GROUP BY algorithm ",
        "UNION ALL SELECT algorithm, -1 FROM fallback_key WHERE device_nid = $1 AND NOT used"
    );
    let mut counts = Counts::default();
    for row in db.rows(query, args![device]).await? {
        match u64::try_from(row.get::<i64>(1)?) {
            Ok(count) => counts.one_time.push((row.get(0)?, count)),
            Err(_) => counts.unused_fallback.push(row.get(0)?),
        }
    }
    Ok(counts)
}

/// When something of the devices of a user has changed last; 0 if nothing ever has.
pub async fn changed(db: &Db, user: UserNid) -> Result<Pos> {
    let query = sql!(
        "SELECT coalesce(max(pos), 0) FROM device_change WHERE user_nid = $1 AND device_id <> ''"
    );
    db.one(query, args![user]).await?.get(0)
}

/// What is known of the keys of the devices of some users of other servers, of those devices that have any.
pub async fn of_others(db: &Db, users: &[UserNid]) -> Result<Vec<DeviceKeys>> {
    let query = sql!(
        "SELECT user_nid, device_id, display_name, keys_json FROM remote_device ",
        "WHERE keys_json IS NOT NULL AND user_nid ",
        list(1)
    );
    db.rows(query, args![users])
        .await?
        .iter()
        .map(device_keys)
        .collect()
}

fn device_keys(row: &Row) -> Result<DeviceKeys> {
    Ok(DeviceKeys {
        user: UserNid(row.get(0)?),
        device_id: row.get(1)?,
        display_name: row.get(2)?,
        json: row.get(3)?,
    })
}
