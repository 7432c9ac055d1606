//! `account`: the people who have an account here.

use super::{Db, Insert, Result, UserNid, Write};
use crate::{args, sql};

/// An account.
#[derive(Clone, Debug)]
pub struct Account {
    /// Whose it is.
    pub user: UserNid,
    /// The Argon2 hash of the password; accounts without one cannot sign in with a password.
    pub password_hash: Option<String>,
    /// When it was made, in milliseconds since 1970.
    pub created_ts: i64,
    /// Whether the user may use the admin API.
    pub is_admin: bool,
    /// Whether this is a guest.
    pub is_guest: bool,
    /// Whether the account was closed for good.
    pub deactivated: bool,
    /// What kind of user administrators say it is.
    pub user_type: Option<String>,
}

/// The account with this name, if there is one.
pub async fn by_localpart(db: &Db, localpart: &str) -> Result<Option<Account>> {
    let query = sql!(
        "SELECT user_nid, password_hash, created_ts, is_admin, is_guest, deactivated, user_type ",
        "FROM account WHERE localpart = $1"
    );
    let Some(row) = db.maybe(query, args![localpart]).await? else {
        return Ok(None);
    };
    Ok(Some(Account {
        user: UserNid(row.get(0)?),
        password_hash: row.get(1)?,
        created_ts: row.get(2)?,
        is_admin: row.get(3)?,
        is_guest: row.get(4)?,
        deactivated: row.get(5)?,
        user_type: row.get(6)?,
    }))
}

/// Whether there is any administrator.
pub async fn any_admin(db: &Db) -> Result<bool> {
    let query = sql!("SELECT 1 FROM account WHERE is_admin AND NOT deactivated LIMIT 1");
    Ok(!db.rows(query, args![]).await?.is_empty())
}

/// The user id of one of the accounts, if there are any: it tells whose database this is.
pub async fn any_user_id(db: &Db) -> Result<Option<String>> {
    let query =
        sql!("SELECT mxid FROM account JOIN user_id ON user_id.nid = account.user_nid LIMIT 1");
    let row = db.maybe(query, args![]).await?;
    row.map(|row| row.get(0)).transpose()
}

static ACCOUNT: Insert = Insert {
    table: "account",
    columns: &[
        "user_nid",
        "localpart",
        "password_hash",
        "created_ts",
        "is_admin",
        "is_guest",
        "deactivated",
        "erased",
        "user_type",
    ],
    key: 0,
    conflict: "",
};

/// Makes an account; the change is refused if the name is taken.
#[must_use]
pub fn add(localpart: &str, account: Account) -> Write {
    let row = args![
        account.user,
        localpart,
        account.password_hash,
        account.created_ts,
        account.is_admin,
        account.is_guest,
        account.deactivated,
        false,
        account.user_type
    ];
    Write::Insert(&ACCOUNT, row)
}

/// Gives an account that is not deactivated another password; the change is refused if there is none.
#[must_use]
pub fn set_password(user: UserNid, hash: &str) -> Write {
    let statement =
        sql!("UPDATE account SET password_hash = $2 WHERE user_nid = $1 AND NOT deactivated");
    Write::Expect(statement, args![user, hash], 1)
}

/// Closes an account for good. `erase`: the user's messages are not to be shown to those who have not seen them yet.
#[must_use]
pub fn deactivate(user: UserNid, erase: bool) -> Write {
    let statement = sql!(
        "UPDATE account SET deactivated = TRUE, password_hash = NULL, is_admin = FALSE, erased = $2 WHERE user_nid = $1"
    );
    Write::Run(statement, args![user, erase])
}

/// The users who had themselves erased.
pub async fn erased(db: &Db) -> Result<Vec<UserNid>> {
    let query = sql!("SELECT user_nid FROM account WHERE erased");
    let rows = db.rows(query, args![]).await?;
    rows.iter().map(|row| row.get(0).map(UserNid)).collect()
}

/// Whether there is such an account and it is not deactivated.
pub async fn is_active(db: &Db, user: UserNid) -> Result<bool> {
    let query = sql!("SELECT 1 FROM account WHERE user_nid = $1 AND NOT deactivated");
    Ok(!db.rows(query, args![user]).await?.is_empty())
}

/// Refuses the change if there is no such account or it is deactivated.
#[must_use]
pub fn expect_active(user: UserNid) -> Write {
    let statement =
        sql!("UPDATE account SET deactivated = FALSE WHERE user_nid = $1 AND NOT deactivated");
    Write::Expect(statement, args![user], 1)
}

/// Refuses the change if there is no such account, it is deactivated or has another password.
#[must_use]
pub fn expect_password(user: UserNid, hash: &str) -> Write {
    let statement = sql!(
        "UPDATE account SET deactivated = FALSE WHERE user_nid = $1 AND password_hash = $2 AND NOT deactivated"
    );
    Write::Expect(statement, args![user, hash], 1)
}

/// Whether the hash of a user's password is this one.
pub async fn has_password(db: &Db, user: UserNid, hash: &str) -> Result<bool> {
    let query = sql!("SELECT 1 FROM account WHERE user_nid = $1 AND password_hash = $2");
    Ok(db.maybe(query, args![user, hash]).await?.is_some())
}

/// Gives a guest a password and makes an ordinary account of it; the change is refused if there is no such guest.
#[must_use]
pub fn upgrade_guest(user: UserNid, hash: &str, is_admin: bool) -> Write {
    let statement = sql!(
        "UPDATE account SET is_guest = FALSE, password_hash = $2, is_admin = $3 ",
        "WHERE user_nid = $1 AND is_guest AND NOT deactivated"
    );
    Write::Expect(statement, args![user, hash, is_admin], 1)
}
