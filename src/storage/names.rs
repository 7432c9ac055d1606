//! `user_id`, `event_type`, `state_key`: the tables that give names their integers.

use super::{Db, EventNid, Insert, KeyNid, Result, TypeNid, UserNid, Write};
use crate::{args, sql};

/// The nids of those users that have one.
pub async fn users(db: &Db, ids: Vec<String>) -> Result<Vec<(String, UserNid)>> {
    db.rows(
        sql!("SELECT mxid, nid FROM user_id WHERE mxid ", list(1)),
        args![ids],
    )
    .await?
    .iter()
    .map(|row| Ok((row.get(0)?, UserNid(row.get(1)?))))
    .collect()
}

/// The names of users.
pub async fn user_ids(db: &Db, nids: &[UserNid]) -> Result<Vec<(UserNid, String)>> {
    db.rows(
        sql!("SELECT nid, mxid FROM user_id WHERE nid ", list(1)),
        args![nids],
    )
    .await?
    .iter()
    .map(|row| Ok((UserNid(row.get(0)?), row.get(1)?)))
    .collect()
}

/// The nids of those event types that have one.
pub async fn types(db: &Db, types: Vec<String>) -> Result<Vec<(String, TypeNid)>> {
    db.rows(
        sql!("SELECT type, nid FROM event_type WHERE type ", list(1)),
        args![types],
    )
    .await?
    .iter()
    .map(|row| Ok((row.get(0)?, TypeNid(row.get(1)?))))
    .collect()
}

/// The nids of those pairs of type and state key that have one. A pair is looked up by both parts; the answer may hold
/// further pairs made of the same parts.
pub async fn keys(
    db: &Db,
    types: Vec<String>,
    keys: Vec<String>,
) -> Result<Vec<(String, String, KeyNid)>> {
    let query = sql!(
        "SELECT type, key, nid FROM state_key WHERE type ",
        list(1),
        " AND key ",
        list(2)
    );
    db.rows(query, args![types, keys])
        .await?
        .iter()
        .map(|row| Ok((row.get(0)?, row.get(1)?, KeyNid(row.get(2)?))))
        .collect()
}

/// What keys stand for.
pub async fn key_names(db: &Db, nids: &[KeyNid]) -> Result<Vec<(KeyNid, String, String)>> {
    db.rows(
        sql!("SELECT nid, type, key FROM state_key WHERE nid ", list(1)),
        args![nids],
    )
    .await?
    .iter()
    .map(|row| Ok((KeyNid(row.get(0)?), row.get(1)?, row.get(2)?)))
    .collect()
}

/// The event with this id, if it is known here.
pub async fn event(db: &Db, event_id: &str) -> Result<Option<EventNid>> {
    let row = db
        .maybe(
            sql!("SELECT nid FROM event WHERE event_id = $1"),
            args![event_id],
        )
        .await?;
    row.map(|row| row.get(0).map(EventNid)).transpose()
}

static USER: Insert = Insert {
    table: "user_id",
    columns: &["nid", "mxid"],
    key: 0,
    conflict: "ON CONFLICT (mxid) DO NOTHING",
};

/// Names a user. Where the name has a nid already, that one stays.
#[must_use]
pub fn add_user(nid: UserNid, id: &str) -> Write {
    Write::Insert(&USER, args![nid, id])
}

static TYPE: Insert = Insert {
    table: "event_type",
    columns: &["nid", "type"],
    key: 0,
    conflict: "ON CONFLICT (type) DO NOTHING",
};

/// Names an event type. Where it has a nid already, that one stays.
#[must_use]
pub fn add_type(nid: TypeNid, event_type: &str) -> Write {
    Write::Insert(&TYPE, args![nid, event_type])
}

static KEY: Insert = Insert {
    table: "state_key",
    columns: &["nid", "type", "key"],
    key: 0,
    conflict: "ON CONFLICT (type, key) DO NOTHING",
};

/// Names a pair of type and state key. Where it has a nid already, that one stays.
#[must_use]
pub fn add_key(nid: KeyNid, event_type: &str, state_key: &str) -> Write {
    Write::Insert(&KEY, args![nid, event_type, state_key])
}
