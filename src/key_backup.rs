//! Backups of the keys of encrypted rooms ("Server-side key backups"): what may change them, and how they stay right when several
//! requests do so at once.
//!
//! Every change of the keys depends on the etag of the backup as it was read (else it is computed again), so the count
//! that is kept is always the number of keys.

use http::StatusCode;
use ruma::api::error::{ErrorKind, WrongRoomKeysVersionErrorData};

use crate::{
    app::App,
    error::{Error, Result},
    log::{AppendError, Change},
    storage::{
        BackupNid, UserNid, accounts,
        key_backup::{self, Backup, Session},
    },
};

/// The most versions that one user can have.
const VERSIONS: i64 = 100;
/// The most keys that one user can have, in all versions together.
const KEYS: i64 = 500_000;
/// How many keys are deleted in one change: others wait for it.
const PIECE: i64 = 1000;

/// What clients are told of the keys of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// How often they have changed.
    pub etag: i64,
    /// How many they are.
    pub count: i64,
}

/// Some keys of a backup.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// All.
    All,
    /// Those of a room.
    Room(&'a str),
    /// That of a session in a room.
    Session(&'a str, &'a str),
}

/// The version with this name.
///
/// # Errors
/// `M_NOT_FOUND`.
pub async fn backup(app: &App, user: UserNid, version: &str) -> Result<Backup> {
    let found = match number(version) {
        Some(version) => key_backup::get(&app.db, user, version).await?,
        None => None,
    };
    found.ok_or_else(unknown)
}

/// The version that keys can be added to.
///
/// # Errors
/// `M_NOT_FOUND` if there is none.
pub async fn current(app: &App, user: UserNid) -> Result<Backup> {
    let current = key_backup::current(&app.db, user).await?;
    current.ok_or_else(|| Error::not_found("there is no key backup"))
}

/// The number of a version, if its name can be one.
fn number(version: &str) -> Option<i64> {
    let number = version.parse().ok()?;
    (i64::to_string(&number) == version).then_some(number)
}

fn unknown() -> Error {
    Error::not_found("there is no such version of the key backup")
}

/// Makes sure that a version can have keys added.
///
/// # Errors
/// `M_NOT_FOUND` if it never was, `M_WRONG_ROOM_KEYS_VERSION` if it is not the current one.
async fn writable(app: &App, user: UserNid, version: &str) -> Result<Backup> {
    let number = number(version).ok_or_else(unknown)?;
    let current = current(app, user).await?;
    if current.version == number {
        return Ok(current);
    }
    if !(1..=key_backup::newest(&app.db, user).await?).contains(&number) {
        return Err(unknown());
    }
    let data = WrongRoomKeysVersionErrorData::new(current.version.to_string());
    Err(Error::new(
        StatusCode::FORBIDDEN,
        ErrorKind::WrongRoomKeysVersion(data),
        "this is not the current version of the key backup",
    ))
}

/// Makes a new version; answers its number.
///
/// # Errors
/// `M_TOO_LARGE` if there are too many.
pub async fn create(app: &App, user: UserNid, algorithm: &str, auth_data: &str) -> Result<i64> {
    let turn = app.key_backups.turn(&user);
    let _turn = turn.lock().await;
    loop {
        let (versions, _) = key_backup::held(&app.db, user).await?;
        if versions >= VERSIONS {
            return Err(Error::too_large(format!(
                "there are {versions} key backups already: delete some"
            )));
        }
        let backup = Backup {
            user,
            version: key_backup::newest(&app.db, user).await? + 1,
            nid: BackupNid(app.log.new_id()?),
            count: 0,
            etag: 0,
            algorithm: algorithm.to_owned(),
            auth_data: auth_data.to_owned(),
        };
        let mut change = Change::new();
        // An account that was deactivated meanwhile gets none.
        change.write(accounts::expect_active(user));
        for write in key_backup::add(&backup) {
            change.write(write);
        }
        match app.log.append(change).await {
            Ok(_) => return Ok(backup.version),
            Err(AppendError::Unexpected) if accounts::is_active(&app.db, user).await? => {}
            Err(AppendError::Unexpected) => return Err(Error::unknown_token(false)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Gives a version other auth data.
///
/// # Errors
/// `M_NOT_FOUND`, `M_INVALID_PARAM` if the algorithm is another one.
pub async fn update(
    app: &App,
    user: UserNid,
    version: &str,
    algorithm: &str,
    auth_data: &str,
) -> Result<()> {
    let backup = backup(app, user, version).await?;
    if backup.algorithm != algorithm {
        return Err(Error::invalid_param(
            "the algorithm of a key backup does not change",
        ));
    }
    let mut change = Change::new();
    change.write(key_backup::set_auth_data(&backup, auth_data));
    match app.log.append(change).await {
        Ok(_) => Ok(()),
        Err(AppendError::Unexpected) => Err(unknown()),
        Err(error) => Err(error.into()),
    }
}

/// Deletes a version, if it is not deleted already.
///
/// # Errors
/// `M_NOT_FOUND` if it never was.
pub async fn delete_version(app: &App, user: UserNid, version: &str) -> Result<()> {
    let number = number(version).ok_or_else(unknown)?;
    let turn = app.key_backups.turn(&user);
    let _turn = turn.lock().await;
    loop {
        let Some(backup) = key_backup::get(&app.db, user, number).await? else {
            let newest = key_backup::newest(&app.db, user).await?;
            return if (1..=newest).contains(&number) {
                Ok(())
            } else {
                Err(unknown())
            };
        };
        let mut change = Change::new();
        for write in key_backup::delete(&backup) {
            change.write(write);
        }
        match app.log.append(change).await {
            Ok(_) => return Ok(()),
            Err(AppendError::Unexpected) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Adds keys to the current version. Of two keys for one session the better one stays.
///
/// # Errors
/// `M_NOT_FOUND`, `M_WRONG_ROOM_KEYS_VERSION`, `M_TOO_LARGE` if there are too many keys.
pub async fn put(app: &App, user: UserNid, version: &str, sessions: &[Session]) -> Result<State> {
    let names = sessions.iter().map(name).collect::<Result<Vec<_>>>()?;
    let turn = app.key_backups.turn(&user);
    let _turn = turn.lock().await;
    loop {
        let backup = writable(app, user, version).await?;
        let known = key_backup::worths(&app.db, backup.nid, names.clone()).await?;
        let mut change = Change::new();
        let (mut added, mut replaced) = (0, 0);
        for (session, name) in sessions.iter().zip(&names) {
            match known.get(name) {
                Some(worth) if session.worth >= *worth => continue,
                Some(_) => replaced += 1,
                None => added += 1,
            }
            change.write(key_backup::set(backup.nid, session));
        }
        if added + replaced == 0 {
            return Ok(State::of(&backup, 0, 0));
        }
        if added > 0 && key_backup::held(&app.db, user).await?.1 + added > KEYS {
            return Err(Error::too_large(format!(
                "a user can have {KEYS} keys in key backups"
            )));
        }
        change.write(key_backup::changed(&backup, added));
        match app.log.append(change).await {
            Ok(_) => return Ok(State::of(&backup, added, 1)),
            Err(AppendError::Unexpected) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// How [`key_backup::worths`] wants a session to be named.
fn name(session: &Session) -> Result<String> {
    serde_json::to_string(&(&session.room_id, &session.session_id)).map_err(Error::internal)
}

impl State {
    /// The state of a backup after it was changed.
    fn of(backup: &Backup, added: i64, changes: i64) -> Self {
        Self {
            etag: backup.etag + changes,
            count: backup.count + added,
        }
    }
}

/// Deletes keys of a version.
///
/// # Errors
/// `M_NOT_FOUND` if there is no such version.
pub async fn delete(app: &App, user: UserNid, version: &str, part: Part<'_>) -> Result<State> {
    let turn = app.key_backups.turn(&user);
    let _turn = turn.lock().await;
    loop {
        let backup = backup(app, user, version).await?;
        let count = count(app, &backup, part).await?;
        if count == 0 {
            return Ok(State::of(&backup, 0, 0));
        }
        let mut change = Change::new();
        match part {
            Part::All => {
                let nid = BackupNid(app.log.new_id()?);
                for write in key_backup::clear(&backup, nid) {
                    change.write(write);
                }
            }
            Part::Room(room) => {
                let count = count.unsigned_abs();
                change.write(key_backup::remove_some(backup.nid, room, count));
                change.write(key_backup::changed(&backup, -count.cast_signed()));
            }
            Part::Session(room, session) => {
                change.write(key_backup::remove(backup.nid, room, session));
                change.write(key_backup::changed(&backup, -1));
            }
        }
        match app.log.append(change).await {
            // There may be more.
            Ok(_) if matches!(part, Part::Room(_)) && count == PIECE => {}
            Ok(_) => return Ok(State::of(&backup, -count, 1)),
            Err(AppendError::Unexpected) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// How many keys one change is to delete.
async fn count(app: &App, backup: &Backup, part: Part<'_>) -> Result<i64> {
    Ok(match part {
        Part::All => backup.count,
        Part::Room(room) => key_backup::count_some(&app.db, backup.nid, room, PIECE).await?,
        Part::Session(room, session) => {
            let session = key_backup::session(&app.db, backup.nid, room, session).await?;
            i64::from(session.is_some())
        }
    })
}

/// Deletes the keys that nobody can see any more, bit by bit.
///
/// # Errors
/// If the database fails.
pub async fn sweep(app: &App) -> Result<()> {
    while let Some((nid, has_keys)) = key_backup::gone(&app.db).await? {
        let mut change = Change::new();
        change.write(if has_keys {
            key_backup::forget_some(nid, PIECE)
        } else {
            key_backup::forget(nid)
        });
        app.log.append(change).await?;
    }
    Ok(())
}

/// The key of a session.
///
/// # Errors
/// `M_NOT_FOUND`.
pub async fn session(
    app: &App,
    user: UserNid,
    version: &str,
    room_id: &str,
    session_id: &str,
) -> Result<Session> {
    let backup = backup(app, user, version).await?;
    let found = key_backup::session(&app.db, backup.nid, room_id, session_id).await?;
    found.ok_or_else(|| Error::not_found("there is no key for this session"))
}
