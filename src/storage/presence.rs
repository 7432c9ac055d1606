//! `presence`: when users who are offline were last active.

use super::{Db, Insert, Result, UserNid, Write};
use crate::{args, sql};

/// What is remembered of a user who is offline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastSeen {
    /// When the user was last active, in milliseconds since 1970.
    pub last_active_ts: i64,
    /// What the user said of being there or not.
    pub status_msg: Option<String>,
}

static PRESENCE: Insert = Insert {
    table: "presence",
    columns: &["user_nid", "last_active_ts", "status_msg"],
    key: 1,
    conflict: "ON CONFLICT (user_nid) DO UPDATE SET last_active_ts = excluded.last_active_ts, \
               status_msg = excluded.status_msg",
};

/// Remembers when a user was last active.
#[must_use]
pub fn set(user: UserNid, seen: &LastSeen) -> Write {
    Write::Insert(
        &PRESENCE,
        args![user, seen.last_active_ts, seen.status_msg.clone()],
    )
}

/// What is remembered of some users.
pub async fn many(db: &Db, users: &[UserNid]) -> Result<Vec<(UserNid, LastSeen)>> {
    let query = sql!(
        "SELECT user_nid, last_active_ts, status_msg FROM presence WHERE user_nid ",
        list(1)
    );
    db.rows(query, args![users])
        .await?
        .iter()
        .map(|row| {
            let seen = LastSeen {
                last_active_ts: row.get(1)?,
                status_msg: row.get(2)?,
            };
            Ok((UserNid(row.get(0)?), seen))
        })
        .collect()
}
