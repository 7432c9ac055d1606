//! What users have set that the server itself goes by: their push rules and whom they ignore.
//!
//! Both are account data. Most people never touch their push rules, so "the default rules" is kept as `None`, and all
//! who have the default can be judged at once.

mod default_rules;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use quick_cache::sync::Cache;
use ruma::{OwnedUserId, UserId, push::Ruleset};
use serde::{Deserialize, Serialize};

pub use default_rules::default_rules;

use crate::{
    app::App,
    error::{Error, Result},
    storage::{RoomNid, UserNid, account_data},
};

/// The type of the account data that holds push rules.
pub const PUSH_RULES: &str = "m.push_rules";
/// The type of the account data that names ignored users.
pub const IGNORED_USERS: &str = "m.ignored_user_list";

/// How many users' preferences stay in memory.
const CACHED_USERS: usize = 50_000;
/// Of how many rooms it is kept what a user's push rules make of them.
const VOLUMES: usize = 10_000;
/// How many users can edit at once.
const EDITS: u64 = 64;

/// What one user has set.
#[derive(Debug, Default)]
pub struct Preferences {
    /// The user's push rules; `None`: the default ones.
    pub rules: Option<Arc<Ruleset>>,
    /// Whom the user ignores.
    pub ignored: Arc<HashSet<UserNid>>,
    /// What `rules` make of rooms, with how many had joined these when that was found out.
    volumes: Mutex<HashMap<RoomNid, (i64, Volume)>>,
}

/// How much of a room somebody's push rules let through, apart from events that they single out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Volume {
    /// What notifies by default.
    #[default]
    All,
    /// Messages do not notify, mentions do.
    Mentions,
    /// Mentions do not notify either.
    Nothing,
}

impl Preferences {
    /// What was found out of a room when it had this many members.
    #[must_use]
    pub fn volume(&self, room: RoomNid, member_count: i64) -> Option<Volume> {
        let volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, volume) = volumes.get(&room)?;
        (*count == member_count).then_some(*volume)
    }

    /// Keeps what was found out of a room.
    pub fn keep_volume(&self, room: RoomNid, member_count: i64, volume: Volume) {
        let mut volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        if volumes.len() >= VOLUMES {
            volumes.clear();
        }
        volumes.insert(room, (member_count, volume));
    }
}

/// The preferences in memory.
#[derive(Debug)]
pub struct KnownPreferences {
    /// The default rules without those that name their user.
    pub common: Ruleset,
    users: Cache<UserNid, Arc<Preferences>>,
    /// What most users have.
    usual: Arc<Preferences>,
    /// Counts changes, so that a slow reader does not put old preferences into `users`.
    changes: Mutex<u64>,
    /// Held by who reads what a user has set, changes it and writes it back.
    edits: Vec<tokio::sync::Mutex<()>>,
}

impl Default for KnownPreferences {
    fn default() -> Self {
        Self {
            common: default_rules::common_rules(),
            edits: (0..EDITS).map(|_| tokio::sync::Mutex::default()).collect(),
            users: Cache::new(CACHED_USERS),
            usual: Arc::default(),
            changes: Mutex::default(),
        }
    }
}

impl KnownPreferences {
    /// Forgets what is known of a user. To be called once a change of their push rules or ignored users is committed.
    pub fn forget(&self, user: UserNid) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        *changes += 1;
        self.users.remove(&user);
    }

    /// Waits until nobody else edits what this user has set.
    pub async fn edit(&self, user: UserNid) -> tokio::sync::MutexGuard<'_, ()> {
        let index = user.0.unsigned_abs() % EDITS;
        let index = usize::try_from(index).unwrap_or(0);
        self.edits[index].lock().await
    }

    fn changes(&self) -> u64 {
        *self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, read_at: u64, user: UserNid, preferences: &Arc<Preferences>) {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if *changes == read_at {
            self.users.insert(user, Arc::clone(preferences));
        }
    }
}

/// The content of `m.push_rules`.
#[derive(Debug, Deserialize, Serialize)]
pub struct PushRules {
    /// The rules.
    pub global: Ruleset,
}

/// The content of `m.ignored_user_list`, as far as it can be read.
#[derive(Debug, Deserialize)]
struct IgnoredUsers {
    #[serde(default)]
    ignored_users: serde_json::Map<String, serde_json::Value>,
}

/// The users whom the content of an `m.ignored_user_list` names. What cannot be read names nobody.
#[must_use]
pub fn ignored_users(json: &str) -> Vec<OwnedUserId> {
    serde_json::from_str::<IgnoredUsers>(json)
        .map(|content| content.ignored_users)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(id, _)| OwnedUserId::try_from(id).ok())
        .collect()
}

/// What a user has set.
///
/// # Errors
/// If the database fails.
pub async fn get(app: &App, user: UserNid) -> Result<Arc<Preferences>> {
    let mut found = many(app, &[user]).await?;
    Ok(found.remove(&user).unwrap_or_default())
}

/// What some users have set: each of `users` has an entry.
///
/// # Errors
/// If the database fails.
pub async fn many(app: &App, users: &[UserNid]) -> Result<HashMap<UserNid, Arc<Preferences>>> {
    let known = &app.preferences;
    let mut found = HashMap::with_capacity(users.len());
    let mut missing = Vec::new();
    for user in users {
        match known.users.get(user) {
            Some(preferences) => drop(found.insert(*user, preferences)),
            None => missing.push(*user),
        }
    }
    if missing.is_empty() {
        return Ok(found);
    }
    let read_at = known.changes();
    let mut rows: HashMap<UserNid, Vec<(String, String)>> = HashMap::new();
    for (user, event_type, json) in
        account_data::of_users(&app.db, &missing, [PUSH_RULES, IGNORED_USERS]).await?
    {
        rows.entry(user).or_default().push((event_type, json));
    }
    for user in missing {
        let preferences = match rows.remove(&user) {
            None => Arc::clone(&known.usual),
            Some(rows) => Arc::new(read(app, user, rows).await?),
        };
        known.keep(read_at, user, &preferences);
        found.insert(user, preferences);
    }
    Ok(found)
}

async fn read(app: &App, user: UserNid, rows: Vec<(String, String)>) -> Result<Preferences> {
    let mut preferences = Preferences::default();
    for (event_type, json) in rows {
        if event_type == PUSH_RULES {
            let id = app.names.user_id(&app.db, user).await?;
            preferences.rules = Some(Arc::new(read_rules(&json, &id)?));
        } else {
            let ids = ignored_users(&json);
            let found = app
                .names
                .find_users(&app.db, ids.iter().map(AsRef::as_ref))
                .await?;
            preferences.ignored = Arc::new(found.into_values().collect());
        }
    }
    Ok(preferences)
}

/// Stored rules, with predefined rules that came into the specification since.
fn read_rules(json: &str, user_id: &UserId) -> Result<Ruleset> {
    let content: PushRules = serde_json::from_str(json).map_err(Error::internal)?;
    let mut rules = content.global;
    rules.update_with_server_default(default_rules(user_id));
    Ok(rules)
}

/// The push rules of a user.
///
/// # Errors
/// If the database fails.
pub async fn push_rules(app: &App, user: UserNid, user_id: &UserId) -> Result<Arc<Ruleset>> {
    let preferences = get(app, user).await?;
    Ok(preferences
        .rules
        .clone()
        .unwrap_or_else(|| Arc::new(default_rules(user_id))))
}

/// The content of a user's `m.push_rules`, which the server keeps for them.
///
/// # Errors
/// If the database fails.
pub async fn push_rules_content(app: &App, user: UserNid, user_id: &UserId) -> Result<String> {
    let global = Ruleset::clone(&*push_rules(app, user, user_id).await?);
    serde_json::to_string(&PushRules { global }).map_err(Error::internal)
}

/// Whom a user ignores.
///
/// # Errors
/// If the database fails.
pub async fn ignored(app: &App, user: UserNid) -> Result<Arc<HashSet<UserNid>>> {
    Ok(Arc::clone(&get(app, user).await?.ignored))
}
