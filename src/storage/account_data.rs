//! `account_data`: what users keep here for their clients, for themselves or for a room.

use super::{Db, Insert, Pos, Position, Result, RoomNid, Row, UserNid, Write};
use crate::{args, sql};

/// One item of account data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountData {
    /// The room that it is for; `None` if it is for none.
    pub room: Option<RoomNid>,
    /// Its type.
    pub event_type: String,
    /// Its content: a JSON object.
    pub json: String,
    /// Its place in the log.
    pub pos: Pos,
}

/// The number in the table for account data that is for no room.
fn number(room: Option<RoomNid>) -> i64 {
    room.map_or(0, |room| room.0)
}

static ACCOUNT_DATA: Insert = Insert {
    table: "account_data",
    columns: &["user_nid", "room_nid", "type", "json", "pos"],
    key: 3,
    conflict: "ON CONFLICT (user_nid, room_nid, type) DO UPDATE SET json = excluded.json, pos = excluded.pos",
};

/// Sets one item, for a room or for none.
#[must_use]
pub fn set(
    user: UserNid,
    room: Option<RoomNid>,
    event_type: &str,
    json: &str,
    at: Position,
) -> Write {
    Write::Insert(
        &ACCOUNT_DATA,
        args![user, number(room), event_type, json, at],
    )
}

/// Deletes all items of a user.
#[must_use]
pub fn delete_all(user: UserNid) -> Write {
    let statement = sql!("DELETE FROM account_data WHERE user_nid = $1");
    Write::Run(statement, args![user])
}

/// The content of one item.
pub async fn get(
    db: &Db,
    user: UserNid,
    room: Option<RoomNid>,
    event_type: &str,
) -> Result<Option<String>> {
    let query =
        sql!("SELECT json FROM account_data WHERE user_nid = $1 AND room_nid = $2 AND type = $3");
    db.maybe(query, args![user, number(room), event_type])
        .await?
        .map(|row| row.get(0))
        .transpose()
}

/// The contents of two global types for some users: user, type, content.
pub async fn of_users(
    db: &Db,
    users: &[UserNid],
    types: [&str; 2],
) -> Result<Vec<(UserNid, String, String)>> {
    let query = sql!(
        "SELECT user_nid, type, json FROM account_data WHERE room_nid = 0 AND type IN ($2, $3) AND user_nid ",
        list(1)
    );
    db.rows(query, args![users, types[0], types[1]])
        .await?
        .iter()
        .map(|row| Ok((UserNid(row.get(0)?), row.get(1)?, row.get(2)?)))
        .collect()
}

/// How many items a user has.
pub async fn count(db: &Db, user: UserNid) -> Result<i64> {
    db.one(
        sql!("SELECT count(*) FROM account_data WHERE user_nid = $1"),
        args![user],
    )
    .await?
    .get(0)
}

/// All items that changed after `since`, for rooms and for none, oldest change first.
pub async fn since(db: &Db, user: UserNid, since: Pos) -> Result<Vec<AccountData>> {
    let query = sql!(
        "SELECT room_nid, type, json, pos FROM account_data WHERE user_nid = $1 AND pos > $2 ORDER BY pos"
    );
    db.rows(query, args![user, since])
        .await?
        .iter()
        .map(item)
        .collect()
}

/// All items of a user.
pub async fn all(db: &Db, user: UserNid) -> Result<Vec<AccountData>> {
    since(db, user, 0).await
}

fn item(row: &Row) -> Result<AccountData> {
    let room: i64 = row.get(0)?;
    Ok(AccountData {
        room: (room != 0).then_some(RoomNid(room)),
        event_type: row.get(1)?,
        json: row.get(2)?,
        pos: row.get(3)?,
    })
}
