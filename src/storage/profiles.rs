//! `profile`: what local users say about themselves.

use super::{Db, Insert, Result, UserNid, Write};
use crate::{args, sql};

static FIELD: Insert = Insert {
    table: "profile",
    columns: &["user_nid", "field", "json", "folded"],
    key: 2,
    conflict: "ON CONFLICT (user_nid, field) DO UPDATE SET json = excluded.json, folded = excluded.folded",
};

/// Sets one field. `json` is its value; `folded` what the user directory finds it by.
#[must_use]
pub fn set(user: UserNid, field: &str, json: &str, folded: Option<&str>) -> Write {
    Write::Insert(&FIELD, args![user, field, json, folded])
}

/// Deletes one field.
#[must_use]
pub fn delete(user: UserNid, field: &str) -> Write {
    Write::Run(
        sql!("DELETE FROM profile WHERE user_nid = $1 AND field = $2"),
        args![user, field],
    )
}

/// Deletes all fields.
#[must_use]
pub fn delete_all(user: UserNid) -> Write {
    Write::Run(sql!("DELETE FROM profile WHERE user_nid = $1"), args![user])
}

/// All fields of a user and their values in JSON, by name.
pub async fn get(db: &Db, user: UserNid) -> Result<Vec<(String, String)>> {
    let query = sql!("SELECT field, json FROM profile WHERE user_nid = $1 ORDER BY field");
    db.rows(query, args![user])
        .await?
        .iter()
        .map(|row| Ok((row.get(0)?, row.get(1)?)))
        .collect()
}

/// Two fields of some users: user, field, value in JSON.
pub async fn many(
    db: &Db,
    users: &[UserNid],
    fields: [&str; 2],
) -> Result<Vec<(UserNid, String, String)>> {
    let query = sql!(
        "SELECT user_nid, field, json FROM profile WHERE field IN ($2, $3) AND user_nid ",
        list(1)
    );
    db.rows(query, args![users, fields[0], fields[1]])
        .await?
        .iter()
        .map(|row| Ok((UserNid(row.get(0)?), row.get(1)?, row.get(2)?)))
        .collect()
}
