//! `pusher` and `push_cursor`: where people want to be told of what happens, and how far that has come.

use super::{
    Db, DeviceNid, Insert, Pos, Position, PusherNid, Result, RoomNid, Row, UserNid, Write,
};
use crate::{args, sql};

/// A pusher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pusher {
    /// The pusher.
    pub nid: PusherNid,
    /// Whose it is.
    pub user: UserNid,
    /// The device that has set it.
    pub device: DeviceNid,
    /// The application.
    pub app_id: String,
    /// How the application's gateway knows the recipient.
    pub pushkey: String,
    /// When it was set, in milliseconds since 1970.
    pub set_ts: i64,
    /// The pusher as it was set: a JSON object.
    pub json: String,
}

/// How far a pusher has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The pusher.
    pub nid: PusherNid,
    /// Whose it is.
    pub user: UserNid,
    /// What came later is for it.
    pub pos: Pos,
    /// Whether not all of that has been taken which the log was gone through for.
    pub waits: bool,
}

/// The columns that [`pusher`] reads.
macro_rules! pushers {
    ($rest:literal) => {
        sql!(
            "SELECT nid, user_nid, device_nid, app_id, pushkey, set_ts, json FROM pusher WHERE ",
            $rest
        )
    };
}

fn pusher(row: &Row) -> Result<Pusher> {
    Ok(Pusher {
        nid: PusherNid(row.get(0)?),
        user: UserNid(row.get(1)?),
        device: DeviceNid(row.get(2)?),
        app_id: row.get(3)?,
        pushkey: row.get(4)?,
        set_ts: row.get(5)?,
        json: row.get(6)?,
    })
}

/// The pushers of a user, in the order in which they came.
pub async fn of_user(db: &Db, user: UserNid) -> Result<Vec<Pusher>> {
    let rows = db.rows(pushers!("user_nid = $1 ORDER BY nid"), args![user]);
    rows.await?.iter().map(pusher).collect()
}

/// A pusher, if it is still there.
pub async fn get(db: &Db, nid: PusherNid) -> Result<Option<Pusher>> {
    let row = db.maybe(pushers!("nid = $1"), args![nid]).await?;
    row.as_ref().map(pusher).transpose()
}

/// How far all pushers have come.
pub async fn progress(db: &Db) -> Result<Vec<Progress>> {
    let query = sql!("SELECT nid, user_nid, pos, waits FROM pusher");
    db.rows(query, args![])
        .await?
        .iter()
        .map(|row| {
            Ok(Progress {
                nid: PusherNid(row.get(0)?),
                user: UserNid(row.get(1)?),
                pos: row.get(2)?,
                waits: row.get(3)?,
            })
        })
        .collect()
}

static PUSHER: Insert = Insert {
    table: "pusher",
    columns: &[
        "nid",
        "user_nid",
        "device_nid",
        "app_id",
        "pushkey",
        "set_ts",
        "json",
        "pos",
        "waits",
    ],
    key: 0,
    conflict: "",
};

/// Adds a pusher, for what comes after `at`; the change is refused if its user has one with this application and key.
#[must_use]
pub fn add(new: &Pusher, at: Position) -> Write {
    let row = args![
        new.nid,
        new.user,
        new.device,
        &*new.app_id,
        &*new.pushkey,
        new.set_ts,
        &*new.json,
        at,
        false
    ];
    Write::Insert(&PUSHER, row)
}

/// Sets a pusher anew; the change is refused if it is gone.
#[must_use]
pub fn change(new: &Pusher) -> Write {
    let statement =
        sql!("UPDATE pusher SET device_nid = $2, set_ts = $3, json = $4 WHERE nid = $1");
    Write::Expect(
        statement,
        args![new.nid, new.device, new.set_ts, &*new.json],
        1,
    )
}

/// Removes the pushers that other users have with the same application and key.
#[must_use]
pub fn remove_of_others(new: &Pusher) -> Write {
    let statement =
        sql!("DELETE FROM pusher WHERE app_id = $1 AND pushkey = $2 AND user_nid <> $3");
    Write::Run(statement, args![&*new.app_id, &*new.pushkey, new.user])
}

/// Removes a user's pusher.
#[must_use]
pub fn remove(user: UserNid, app_id: &str, pushkey: &str) -> Write {
    let statement = sql!("DELETE FROM pusher WHERE app_id = $1 AND pushkey = $2 AND user_nid = $3");
    Write::Run(statement, args![app_id, pushkey, user])
}

/// Removes a pusher whose gateway rejects its key, unless it was set anew meanwhile.
#[must_use]
pub fn reject(rejected: &Pusher) -> Write {
    let statement = sql!("DELETE FROM pusher WHERE nid = $1 AND set_ts = $2");
    Write::Run(statement, args![rejected.nid, rejected.set_ts])
}

/// Removes the pushers that a device has set.
#[must_use]
pub fn end(device: DeviceNid) -> Write {
    Write::Run(
        sql!("DELETE FROM pusher WHERE device_nid = $1"),
        args![device],
    )
}

/// Writes down how far a pusher has come.
#[must_use]
pub fn save(progress: Progress) -> Write {
    let statement = sql!("UPDATE pusher SET pos = $2, waits = $3 WHERE nid = $1");
    Write::Run(statement, args![progress.nid, progress.pos, progress.waits])
}

/// Up to where the log was gone through for all pushers; `None` if it never was.
pub async fn cursor(db: &Db) -> Result<Option<Pos>> {
    let row = db
        .maybe(sql!("SELECT pos FROM push_cursor"), args![])
        .await?;
    row.map(|row| row.get(0)).transpose()
}

static CURSOR: Insert = Insert {
    table: "push_cursor",
    columns: &["nid", "pos"],
    key: 1,
    conflict: "ON CONFLICT (nid) DO UPDATE SET pos = excluded.pos",
};

/// Writes down up to where the log was gone through.
#[must_use]
pub fn set_cursor(pos: Pos) -> Write {
    Write::Insert(&CURSOR, args![0, pos])
}

/// The users with pushers in whose rooms something has happened after a position, or who were invited.
pub async fn behind(db: &Db, pos: Pos) -> Result<Vec<UserNid>> {
    let query = sql!(
        "SELECT p.user_nid FROM (SELECT DISTINCT user_nid FROM pusher) p WHERE EXISTS ",
        "(SELECT 1 FROM membership m JOIN room_head h ON h.room_nid = m.room_nid WHERE m.user_nid = p.user_nid ",
        "AND m.is_local AND ((m.membership = 2 AND h.last_pos > $1) OR (m.membership = 1 AND m.pos > $1)))"
    );
    let rows = db.rows(query, args![pos]).await?;
    rows.iter().map(|row| row.get(0).map(UserNid)).collect()
}

/// The rooms that a user has joined and in which something may be unread.
pub async fn unread_rooms(db: &Db, user: UserNid) -> Result<Vec<RoomNid>> {
    let query = sql!(
        "SELECT m.room_nid FROM membership m JOIN room_head h ON h.room_nid = m.room_nid ",
        "LEFT JOIN read_marker r ON r.user_nid = m.user_nid AND r.room_nid = m.room_nid AND r.thread_nid = 0 ",
        "LEFT JOIN read_marker a ON a.user_nid = m.user_nid AND a.room_nid = m.room_nid AND a.thread_nid = -2 ",
        "WHERE m.user_nid = $1 AND m.is_local AND m.membership = 2 AND ",
        "(h.unread_idx > coalesce(r.idx, 0) + coalesce(r.own, 0) OR EXISTS ",
        "(SELECT 1 FROM highlight x WHERE x.user_nid = m.user_nid AND x.room_nid = m.room_nid) OR EXISTS ",
        "(SELECT 1 FROM thread t WHERE t.room_nid = m.room_nid AND t.last_pos > coalesce(a.pos, 0)))"
    );
    let rows = db.rows(query, args![user]).await?;
    rows.iter().map(|row| row.get(0).map(RoomNid)).collect()
}
