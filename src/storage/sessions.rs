//! `access_token`: which device a token speaks for.

use super::{Db, DeviceNid, Result, UserNid};
use crate::{args, sql};

/// A device with a valid or expired access token.
#[derive(Clone, Debug)]
pub struct Session {
    /// Whose it is.
    pub user_nid: UserNid,
    /// Whose it is, in full.
    pub user_id: String,
    /// The device.
    pub device_nid: DeviceNid,
    /// The device, as clients name it.
    pub device_id: String,
    /// When the token ends, in milliseconds since 1970.
    pub expires: Option<i64>,
    /// Whether the user may use the admin API.
    pub is_admin: bool,
    /// Whether this is a guest.
    pub is_guest: bool,
}

/// The session that the token with this hash belongs to.
pub async fn by_token(db: &Db, hash: &[u8]) -> Result<Option<Session>> {
    let query = sql!(
        "SELECT d.user_nid, u.mxid, d.nid, d.device_id, t.expires, a.is_admin, a.is_guest FROM access_token t ",
        "JOIN device d ON d.nid = t.device_nid JOIN account a ON a.user_nid = d.user_nid ",
        "JOIN user_id u ON u.nid = d.user_nid WHERE t.hash = $1"
    );
    let Some(row) = db.maybe(query, args![hash]).await? else {
        return Ok(None);
    };
    Ok(Some(Session {
        user_nid: UserNid(row.get(0)?),
        user_id: row.get(1)?,
        device_nid: DeviceNid(row.get(2)?),
        device_id: row.get(3)?,
        expires: row.get(4)?,
        is_admin: row.get(5)?,
        is_guest: row.get(6)?,
    }))
}
