//! `key_backup`, `key_backup_newest`, `key_backup_session`, `key_backup_gone`: backups of the keys of encrypted rooms.

use std::collections::HashMap;

use super::{BackupNid, Db, Insert, Result, Row, UserNid, Write};
use crate::{args, sql};

/// One version of a user's backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Whose it is.
    pub user: UserNid,
    /// The version; later ones have higher numbers.
    pub version: i64,
    /// Which keys are its own.
    pub nid: BackupNid,
    /// How many they are.
    pub count: i64,
    /// How often they have changed.
    pub etag: i64,
    /// How they are encrypted.
    pub algorithm: String,
    /// What the algorithm needs: a JSON object.
    pub auth_data: String,
}

/// The key of one session, encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The room of the session.
    pub room_id: String,
    /// Its id.
    pub session_id: String,
    /// What it is worth.
    pub worth: Worth,
    /// Its `session_data`: a JSON object.
    pub json: String,
}

/// What the key of a session is worth. Of two keys the lesser is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Worth {
    /// Whether the device that it comes from was not verified.
    pub is_unverified: bool,
    /// The first message that it can decrypt.
    pub first_message_index: i64,
    /// How often it was forwarded.
    pub forwarded_count: i64,
}

/// The columns that [`backup`] reads.
macro_rules! backup_columns {
    ($($rest:literal),+) => {
        sql!("SELECT user_nid, version, nid, count, etag, algorithm, auth_data FROM key_backup WHERE user_nid = $1 ", $($rest),+)
    };
}

/// A version of a user's backup.
pub async fn get(db: &Db, user: UserNid, version: i64) -> Result<Option<Backup>> {
    let query = backup_columns!("AND version = $2");
    let row = db.maybe(query, args![user, version]).await?;
    row.as_ref().map(backup).transpose()
}

/// The newest version of a user's backup that is not deleted.
pub async fn current(db: &Db, user: UserNid) -> Result<Option<Backup>> {
    let query = backup_columns!("ORDER BY version DESC LIMIT 1");
    let row = db.maybe(query, args![user]).await?;
    row.as_ref().map(backup).transpose()
}

fn backup(row: &Row) -> Result<Backup> {
    Ok(Backup {
        user: UserNid(row.get(0)?),
        version: row.get(1)?,
        nid: BackupNid(row.get(2)?),
        count: row.get(3)?,
        etag: row.get(4)?,
        algorithm: row.get(5)?,
        auth_data: row.get(6)?,
    })
}

/// The newest version that a user has ever made; 0 if there was none.
pub async fn newest(db: &Db, user: UserNid) -> Result<i64> {
    let query = sql!("SELECT version FROM key_backup_newest WHERE user_nid = $1");
    match db.maybe(query, args![user]).await? {
        Some(row) => row.get(0),
        None => Ok(0),
    }
}

/// How many versions a user has, and how many keys are in them.
pub async fn held(db: &Db, user: UserNid) -> Result<(i64, i64)> {
    let query = sql!(
        "SELECT count(*), CAST(coalesce(sum(count), 0) AS BIGINT) FROM key_backup WHERE user_nid = $1"
    );
    let row = db.one(query, args![user]).await?;
    Ok((row.get(0)?, row.get(1)?))
}

static BACKUP: Insert = Insert {
    table: "key_backup",
    columns: &[
        "user_nid",
        "version",
        "nid",
        "algorithm",
        "auth_data",
        "count",
        "etag",
    ],
    key: 0,
    conflict: "",
};

/// Adds a version, which must follow the newest one that its user has ever made; else the change is refused.
#[must_use]
pub fn add(backup: &Backup) -> [Write; 2] {
    let newest = sql!(
        "INSERT INTO key_backup_newest (user_nid, version) VALUES ($1, $2) ",
        "ON CONFLICT (user_nid) DO UPDATE SET version = excluded.version ",
        "WHERE key_backup_newest.version = excluded.version - 1"
    );
    let row = args![
        backup.user,
        backup.version,
        backup.nid,
        &*backup.algorithm,
        &*backup.auth_data,
        backup.count,
        backup.etag,
    ];
    [
        Write::Expect(newest, args![backup.user, backup.version], 1),
        Write::Insert(&BACKUP, row),
    ]
}

/// Gives a version other auth data; the change is refused if the version is gone.
#[must_use]
pub fn set_auth_data(backup: &Backup, auth_data: &str) -> Write {
    let statement =
        sql!("UPDATE key_backup SET auth_data = $3 WHERE user_nid = $1 AND version = $2");
    Write::Expect(statement, args![backup.user, backup.version, auth_data], 1)
}

static GONE: Insert = Insert {
    table: "key_backup_gone",
    columns: &["nid"],
    key: 0,
    conflict: "",
};

/// Deletes a version; the change is refused if its keys have changed.
#[must_use]
pub fn delete(backup: &Backup) -> [Write; 2] {
    let statement =
        sql!("DELETE FROM key_backup WHERE user_nid = $1 AND version = $2 AND etag = $3");
    [
        Write::Expect(
            statement,
            args![backup.user, backup.version, backup.etag],
            1,
        ),
        Write::Insert(&GONE, args![backup.nid]),
    ]
}

/// Deletes all backups of a user, and the memory of how many there were.
#[must_use]
pub fn delete_all(user: UserNid) -> [Write; 3] {
    [
        sql!("INSERT INTO key_backup_gone (nid) SELECT nid FROM key_backup WHERE user_nid = $1"),
        sql!("DELETE FROM key_backup WHERE user_nid = $1"),
        sql!("DELETE FROM key_backup_newest WHERE user_nid = $1"),
    ]
    .map(|statement| Write::Run(statement, args![user]))
}

/// Notes that the keys of a version are `added` more; the change is refused if they have changed since it was read.
#[must_use]
pub fn changed(backup: &Backup, added: i64) -> Write {
    let statement = sql!(
        "UPDATE key_backup SET count = count + $4, etag = etag + 1 ",
        "WHERE user_nid = $1 AND version = $2 AND etag = $3"
    );
    let args = args![backup.user, backup.version, backup.etag, added];
    Write::Expect(statement, args, 1)
}

/// Deletes all keys of a version, which has those of `nid` from now on; the change is refused if they have changed since it
/// was read.
#[must_use]
pub fn clear(backup: &Backup, nid: BackupNid) -> [Write; 2] {
    let statement = sql!(
        "UPDATE key_backup SET count = 0, etag = etag + 1, nid = $4 ",
        "WHERE user_nid = $1 AND version = $2 AND etag = $3"
    );
    let args = args![backup.user, backup.version, backup.etag, nid];
    [
        Write::Expect(statement, args, 1),
        Write::Insert(&GONE, args![backup.nid]),
    ]
}

static SESSION: Insert = Insert {
    table: "key_backup_session",
    columns: &[
        "backup_nid",
        "room_id",
        "session_id",
        "first_message_index",
        "forwarded_count",
        "is_verified",
        "json",
    ],
    key: 3,
    conflict: "ON CONFLICT (backup_nid, room_id, session_id) DO UPDATE SET first_message_index = excluded.first_message_index, \
        forwarded_count = excluded.forwarded_count, is_verified = excluded.is_verified, json = excluded.json",
};

/// Sets the key of a session.
#[must_use]
pub fn set(nid: BackupNid, session: &Session) -> Write {
    let row = args![
        nid,
        &*session.room_id,
        &*session.session_id,
        session.worth.first_message_index,
        session.worth.forwarded_count,
        !session.worth.is_unverified,
        &*session.json,
    ];
    Write::Insert(&SESSION, row)
}

/// Deletes the key of a session; the change is refused if it is not there.
#[must_use]
pub fn remove(nid: BackupNid, room_id: &str, session_id: &str) -> Write {
    let statement = sql!(
        "DELETE FROM key_backup_session WHERE backup_nid = $1 AND room_id = $2 AND session_id = $3"
    );
    Write::Expect(statement, args![nid, room_id, session_id], 1)
}

/// Deletes the first keys of a room; the change is refused if there are not so many.
#[must_use]
pub fn remove_some(nid: BackupNid, room_id: &str, count: u64) -> Write {
    let statement = sql!(
        "DELETE FROM key_backup_session WHERE backup_nid = $1 AND room_id = $2 AND session_id IN ",
        "(SELECT session_id FROM key_backup_session WHERE backup_nid = $1 AND room_id = $2 ORDER BY session_id LIMIT $3)"
    );
    let limit = i64::try_from(count).unwrap_or(i64::MAX);
    Write::Expect(statement, args![nid, room_id, limit], count)
}

/// How many keys of a room there are, counted up to `limit`.
pub async fn count_some(db: &Db, nid: BackupNid, room_id: &str, limit: i64) -> Result<i64> {
    let query = sql!(
        "SELECT count(*) FROM (SELECT 1 FROM key_backup_session WHERE backup_nid = $1 AND room_id = $2 LIMIT $3) AS counted"
    );
    db.one(query, args![nid, room_id, limit]).await?.get(0)
}

/// What the keys are worth that are there for some sessions, each named by the JSON list of its room's and its own id.
pub async fn worths(
    db: &Db,
    nid: BackupNid,
    sessions: Vec<String>,
) -> Result<HashMap<String, Worth>> {
    let query = sql!(
        "SELECT list.value, k.session_id, k.is_verified, k.first_message_index, k.forwarded_count FROM ",
        rows(2),
        // The list first: SQLite would go through all keys and look for each in the list.
        " CROSS JOIN key_backup_session k WHERE k.backup_nid = $1 AND k.room_id = list.value",
        only {
            sqlite: "",
            postgres: "::json"
        },
        " ->> 0 AND k.session_id = list.value",
        only {
            sqlite: "",
            postgres: "::json"
        },
        " ->> 1"
    );
    db.rows(query, args![nid, sessions])
        .await?
        .iter()
        .map(|row| Ok((row.get(0)?, worth(row)?)))
        .collect()
}

/// The columns that [`read`] reads.
macro_rules! session_columns {
    ($rest:literal) => {
        sql!(
            "SELECT room_id, session_id, is_verified, first_message_index, forwarded_count, json FROM key_backup_session ",
            "WHERE backup_nid = $1 ", $rest
        )
    };
}

/// The key of a session.
pub async fn session(
    db: &Db,
    nid: BackupNid,
    room_id: &str,
    session_id: &str,
) -> Result<Option<Session>> {
    let query = session_columns!("AND room_id = $2 AND session_id = $3");
    let row = db.maybe(query, args![nid, room_id, session_id]).await?;
    row.as_ref().map(read).transpose()
}

/// Which keys of a backup are gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walked {
    /// All.
    All,
    /// Those of one room.
    Room,
}

/// The keys after that of a session, by room and session.
pub async fn page(
    db: &Db,
    nid: BackupNid,
    part: Walked,
    (room_id, session_id): (&str, &str),
    limit: i64,
) -> Result<Vec<Session>> {
    let query = match part {
        Walked::All => session_columns!(
            "AND (room_id, session_id) > ($2, $3) ORDER BY room_id, session_id LIMIT $4"
        ),
        Walked::Room => {
            session_columns!("AND room_id = $2 AND session_id > $3 ORDER BY session_id LIMIT $4")
        }
    };
    let rows = db.rows(query, args![nid, room_id, session_id, limit]);
    rows.await?.iter().map(read).collect()
}

fn read(row: &Row) -> Result<Session> {
    Ok(Session {
        room_id: row.get(0)?,
        session_id: row.get(1)?,
        worth: worth(row)?,
        json: row.get(5)?,
    })
}

fn worth(row: &Row) -> Result<Worth> {
    Ok(Worth {
        is_unverified: !row.get::<bool>(2)?,
        first_message_index: row.get(3)?,
        forwarded_count: row.get(4)?,
    })
}

/// One of those whose keys nobody can see any more, and whether there still are some.
pub async fn gone(db: &Db) -> Result<Option<(BackupNid, bool)>> {
    let query = sql!(
        "SELECT g.nid, EXISTS (SELECT 1 FROM key_backup_session s WHERE s.backup_nid = g.nid) ",
        "FROM key_backup_gone g ORDER BY g.nid LIMIT 1"
    );
    let row = db.maybe(query, args![]).await?;
    row.map(|row| Ok((BackupNid(row.get(0)?), row.get(1)?)))
        .transpose()
}

/// Deletes the first keys of a backup that nobody can see any more.
#[must_use]
pub fn forget_some(nid: BackupNid, limit: i64) -> Write {
    let statement = sql!(
        "DELETE FROM key_backup_session WHERE backup_nid = $1 AND (room_id, session_id) IN ",
        "(SELECT room_id, session_id FROM key_backup_session WHERE backup_nid = $1 ",
        "ORDER BY room_id, session_id LIMIT $2)"
    );
    Write::Run(statement, args![nid, limit])
}

/// Forgets a backup that has no keys any more.
#[must_use]
pub fn forget(nid: BackupNid) -> Write {
    Write::Run(
        sql!("DELETE FROM key_backup_gone WHERE nid = $1"),
        args![nid],
    )
}
