//! `dehydrated_device`: which devices collect messages while nobody is signed in on them.

use super::{Db, DeviceNid, Insert, Result, UserNid, Write};
use crate::{args, sql};

/// The dehydrated device of a user.
#[derive(Clone, Debug)]
pub struct Dehydrated {
    /// The device.
    pub device: DeviceNid,
    /// As clients name it.
    pub device_id: String,
    /// What clients need to take it over: JSON.
    pub json: String,
}

/// The dehydrated device of a user, if there is one.
pub async fn get(db: &Db, user: UserNid) -> Result<Option<Dehydrated>> {
    let query = sql!(
        "SELECT d.nid, d.device_id, h.json FROM dehydrated_device h JOIN device d ON d.nid = h.device_nid ",
        "WHERE h.user_nid = $1"
    );
    let row = db.maybe(query, args![user]).await?;
    row.map(|row| {
        Ok(Dehydrated {
            device: DeviceNid(row.get(0)?),
            device_id: row.get(1)?,
            json: row.get(2)?,
        })
    })
    .transpose()
}

static DEHYDRATED: Insert = Insert {
    table: "dehydrated_device",
    columns: &["user_nid", "device_nid", "json"],
    key: 0,
    conflict: "",
};

/// Makes a device the dehydrated one of its user; the change is refused if there is one.
#[must_use]
pub fn add(user: UserNid, device: DeviceNid, json: &str) -> Write {
    Write::Insert(&DEHYDRATED, args![user, device, json])
}

/// Forgets the dehydrated device of a user; the change is refused if it is another one.
#[must_use]
pub fn remove(user: UserNid, device: DeviceNid) -> Write {
    let statement = sql!("DELETE FROM dehydrated_device WHERE user_nid = $1 AND device_nid = $2");
    Write::Expect(statement, args![user, device], 1)
}

/// Refuses the change if a device is gone, or dehydrated: then nobody signs in on it.
#[must_use]
pub fn expect_not(device: DeviceNid) -> Write {
    let statement = sql!(
        "UPDATE device SET nid = nid WHERE nid = $1 ",
        "AND NOT EXISTS (SELECT 1 FROM dehydrated_device h WHERE h.device_nid = $1)"
    );
    Write::Expect(statement, args![device], 1)
}
