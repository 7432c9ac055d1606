//! `access_token` and `refresh_token`: which device a token speaks for.

use super::{Db, DeviceNid, Insert, Result, UserNid, Write};
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
    /// The refresh token that came with the access token, if the one it replaces is still valid.
    pub unconfirmed: Option<Vec<u8>>,
}

/// The session that the token with this hash belongs to.
pub async fn by_token(db: &Db, hash: &[u8]) -> Result<Option<Session>> {
    let query = sql!(
        "SELECT d.user_nid, u.mxid, d.nid, d.device_id, t.expires, a.is_admin, a.is_guest, r.hash FROM access_token t ",
        "JOIN device d ON d.nid = t.device_nid JOIN account a ON a.user_nid = d.user_nid ",
        "JOIN user_id u ON u.nid = d.user_nid ",
        "LEFT JOIN refresh_token r ON r.hash = t.refresh_hash AND r.parent_hash IS NOT NULL WHERE t.hash = $1"
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
        unconfirmed: row.get(7)?,
    }))
}

/// A refresh token that was not replaced yet.
#[derive(Clone, Copy, Debug)]
pub struct Refresh {
    /// The device it speaks for.
    pub device: DeviceNid,
    /// When it ends, in milliseconds since 1970.
    pub expires: Option<i64>,
}

/// The refresh token with this hash.
pub async fn refresh_token(db: &Db, hash: &[u8]) -> Result<Option<Refresh>> {
    let query = sql!("SELECT device_nid, expires FROM refresh_token WHERE hash = $1");
    let Some(row) = db.maybe(query, args![hash]).await? else {
        return Ok(None);
    };
    Ok(Some(Refresh {
        device: DeviceNid(row.get(0)?),
        expires: row.get(1)?,
    }))
}

static ACCESS: Insert = Insert {
    table: "access_token",
    columns: &["hash", "device_nid", "expires", "refresh_hash"],
    key: 0,
    conflict: "",
};

/// Adds an access token, and the refresh token that it is given out with.
#[must_use]
pub fn add(hash: &[u8], device: DeviceNid, expires: Option<i64>, refresh: Option<&[u8]>) -> Write {
    let row = args![hash, device, expires, refresh.map(<[u8]>::to_vec)];
    Write::Insert(&ACCESS, row)
}

static REFRESH: Insert = Insert {
    table: "refresh_token",
    columns: &["hash", "device_nid", "expires", "parent_hash"],
    key: 0,
    conflict: "",
};

/// Adds a refresh token. `parent`: the one that it replaces as soon as it or its access token is used.
#[must_use]
pub fn add_refresh(
    hash: &[u8],
    device: DeviceNid,
    expires: Option<i64>,
    parent: Option<&[u8]>,
) -> Write {
    let row = args![hash, device, expires, parent.map(<[u8]>::to_vec)];
    Write::Insert(&REFRESH, row)
}

/// Refuses the change if the refresh token was replaced meanwhile.
#[must_use]
pub fn expect_refresh(hash: &[u8]) -> Write {
    let statement = sql!("UPDATE refresh_token SET expires = expires WHERE hash = $1");
    Write::Expect(statement, args![hash], 1)
}

/// Ends the tokens that a refresh token replaces: the client has got the new ones.
#[must_use]
pub fn confirm(hash: &[u8]) -> [Write; 3] {
    [
        sql!(
            "DELETE FROM access_token WHERE refresh_hash IN (SELECT parent_hash FROM refresh_token WHERE hash = $1)"
        ),
        sql!(
            "DELETE FROM refresh_token WHERE hash IN (SELECT parent_hash FROM refresh_token WHERE hash = $1)"
        ),
        sql!("UPDATE refresh_token SET parent_hash = NULL WHERE hash = $1"),
    ]
    .map(|statement| Write::Run(statement, args![hash]))
}

/// Ends the tokens that were given out for a refresh token and never used: the client did not get them.
#[must_use]
pub fn drop_children(hash: &[u8]) -> [Write; 2] {
    [
        sql!(
            "DELETE FROM access_token WHERE refresh_hash IN (SELECT hash FROM refresh_token WHERE parent_hash = $1)"
        ),
        sql!("DELETE FROM refresh_token WHERE parent_hash = $1"),
    ]
    .map(|statement| Write::Run(statement, args![hash]))
}

/// Ends all tokens of a device.
#[must_use]
pub fn end(device: DeviceNid) -> [Write; 2] {
    [
        sql!("DELETE FROM access_token WHERE device_nid = $1"),
        sql!("DELETE FROM refresh_token WHERE device_nid = $1"),
    ]
    .map(|statement| Write::Run(statement, args![device]))
}
