//! `filter`: filters that clients have stored.

use super::{Db, Insert, Result, UserNid, Write};
use crate::{args, sql};

static FILTER: Insert = Insert {
    table: "filter",
    columns: &["user_nid", "filter_id", "json", "created_ts"],
    key: 2,
    conflict: "ON CONFLICT (user_nid, filter_id) DO NOTHING",
};

/// Stores a filter, if it is not stored already.
#[must_use]
pub fn add(user: UserNid, filter_id: &str, json: &str, now: i64) -> Write {
    Write::Insert(&FILTER, args![user, filter_id, json, now])
}

/// Forgets all filters of a user but the newest `kept`.
#[must_use]
pub fn keep_newest(user: UserNid, kept: i64) -> Write {
    let sql = sql!(
        "DELETE FROM filter WHERE user_nid = $1 AND filter_id IN (SELECT filter_id FROM filter WHERE user_nid = $1 ",
        "ORDER BY created_ts DESC, filter_id LIMIT 1000000 OFFSET $2)"
    );
    Write::Run(sql, args![user, kept])
}

/// The JSON of a filter.
pub async fn get(db: &Db, user: UserNid, filter_id: &str) -> Result<Option<String>> {
    let query = sql!("SELECT json FROM filter WHERE user_nid = $1 AND filter_id = $2");
    db.maybe(query, args![user, filter_id])
        .await?
        .map(|row| row.get(0))
        .transpose()
}
