//! `login_token`, `openid_token` and `registration_token`: tokens for one purpose.

use super::{Db, Insert, Result, UserNid, Write};
use crate::{args, sql};

static LOGIN: Insert = Insert {
    table: "login_token",
    columns: &["hash", "user_nid", "expires"],
    key: 0,
    conflict: "",
};

/// Adds a token for one login, and drops those that have expired by `now`.
#[must_use]
pub fn add_login(hash: &[u8], user: UserNid, expires: i64, now: i64) -> [Write; 2] {
    let statement = sql!("DELETE FROM login_token WHERE expires <= $1");
    [
        Write::Run(statement, args![now]),
        Write::Insert(&LOGIN, args![hash, user, expires]),
    ]
}

/// The user whom a token signs in, and until when.
pub async fn login(db: &Db, hash: &[u8]) -> Result<Option<(UserNid, i64)>> {
    let query = sql!("SELECT user_nid, expires FROM login_token WHERE hash = $1");
    let row = db.maybe(query, args![hash]).await?;
    row.map(|row| Ok((UserNid(row.get(0)?), row.get(1)?)))
        .transpose()
}

/// Uses a token up; the change is refused if it is gone.
#[must_use]
pub fn use_login(hash: &[u8]) -> Write {
    let statement = sql!("DELETE FROM login_token WHERE hash = $1");
    Write::Expect(statement, args![hash], 1)
}

static OPENID: Insert = Insert {
    table: "openid_token",
    columns: &["hash", "user_nid", "expires"],
    key: 0,
    conflict: "",
};

/// Adds an OpenID token, and drops those that have expired by `now`.
#[must_use]
pub fn add_openid(hash: &[u8], user: UserNid, expires: i64, now: i64) -> [Write; 2] {
    let statement = sql!("DELETE FROM openid_token WHERE expires <= $1");
    [
        Write::Run(statement, args![now]),
        Write::Insert(&OPENID, args![hash, user, expires]),
    ]
}

/// The user whom an OpenID token speaks for, and until when.
pub async fn openid(db: &Db, hash: &[u8]) -> Result<Option<(UserNid, i64)>> {
    let query = sql!("SELECT user_nid, expires FROM openid_token WHERE hash = $1");
    let row = db.maybe(query, args![hash]).await?;
    row.map(|row| Ok((UserNid(row.get(0)?), row.get(1)?)))
        .transpose()
}

/// Ends the tokens for a login and the OpenID tokens of a user.
#[must_use]
pub fn end(user: UserNid) -> [Write; 2] {
    [
        sql!("DELETE FROM login_token WHERE user_nid = $1"),
        sql!("DELETE FROM openid_token WHERE user_nid = $1"),
    ]
    .map(|statement| Write::Run(statement, args![user]))
}

/// The token of the first administrator, if there is one.
pub async fn first(db: &Db) -> Result<Option<String>> {
    let query = sql!("SELECT token FROM registration_token WHERE is_first");
    let row = db.maybe(query, args![]).await?;
    row.map(|row| row.get(0)).transpose()
}

static REGISTRATION: Insert = Insert {
    table: "registration_token",
    columns: &["token", "uses_allowed", "uses", "expires", "is_first"],
    key: 0,
    conflict: "",
};

/// Adds the token of the first administrator.
#[must_use]
pub fn add_first(token: &str) -> Write {
    let row = args![token, Some(1_i64), 0_i64, None::<i64>, true];
    Write::Insert(&REGISTRATION, row)
}

/// Uses up the token of the first administrator; the change is refused if that is not (any more) `token`.
#[must_use]
pub fn use_first(token: &str) -> Write {
    let statement = sql!("DELETE FROM registration_token WHERE token = $1 AND is_first");
    Write::Expect(statement, args![token], 1)
}

/// Drops the token of the first administrator: there is one now.
#[must_use]
pub fn drop_first() -> Write {
    let statement = sql!("DELETE FROM registration_token WHERE is_first");
    Write::Run(statement, args![])
}

/// What a registration token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Whether it is the token of the first administrator.
    pub is_first: bool,
}

/// A registration token that is valid at `now`.
pub async fn registration(db: &Db, token: &str, now: i64) -> Result<Option<Registration>> {
    let query = sql!(
        "SELECT is_first FROM registration_token WHERE token = $1 ",
        "AND (uses_allowed IS NULL OR uses < uses_allowed) AND (expires IS NULL OR expires > $2)"
    );
    let row = db.maybe(query, args![token, now]).await?;
    row.map(|row| {
        Ok(Registration {
            is_first: row.get(0)?,
        })
    })
    .transpose()
}

/// Counts a use of a registration token; the change is refused if it is not valid at `now` (any more).
#[must_use]
pub fn use_registration(token: &str, now: i64) -> Write {
    let statement = sql!(
        "UPDATE registration_token SET uses = uses + 1 WHERE token = $1 AND NOT is_first ",
        "AND (uses_allowed IS NULL OR uses < uses_allowed) AND (expires IS NULL OR expires > $2)"
    );
    Write::Expect(statement, args![token, now], 1)
}
