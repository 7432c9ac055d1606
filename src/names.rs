//! Ids and the integers that stand for them, kept in memory as they are used.
//!
//! A name gets its integer in a commit of its own, before anything refers to it; so a cached integer is always one that
//! the database knows. "Not found" is never kept.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use quick_cache::sync::Cache;
use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};

use crate::{
    error::{Error, Result},
    log::{Change, Log},
    storage::{Db, EventNid, KeyNid, ServerNid, TypeNid, UserNid, events, names, servers},
};

const CACHED_USERS: usize = 200_000;
const CACHED_SERVERS: usize = 20_000;
const CACHED_TYPES: usize = 10_000;
const CACHED_KEYS: usize = 200_000;
const CACHED_EVENTS: usize = 20_000;

/// A pair of event type and state key.
pub type Key = (Arc<str>, Arc<str>);

/// The names in memory.
#[derive(Debug)]
pub struct Names {
    users: Cache<OwnedUserId, UserNid>,
    user_ids: Cache<UserNid, OwnedUserId>,
    servers: Cache<OwnedServerName, ServerNid>,
    types: Cache<Arc<str>, TypeNid>,
    keys: Cache<Key, KeyNid>,
    by_key: Cache<KeyNid, Key>,
    event_ids: Cache<EventNid, Arc<str>>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            users: Cache::new(CACHED_USERS),
            user_ids: Cache::new(CACHED_USERS),
            servers: Cache::new(CACHED_SERVERS),
            types: Cache::new(CACHED_TYPES),
            keys: Cache::new(CACHED_KEYS),
            by_key: Cache::new(CACHED_KEYS),
            event_ids: Cache::new(CACHED_EVENTS),
        }
    }
}

#[expect(
    clippy::missing_errors_doc,
    reason = "each of these fails if the database does, and only then"
)]
impl Names {
    /// The nid of a user, if the user was ever seen here.
    pub async fn find_user(&self, db: &Db, id: &UserId) -> Result<Option<UserNid>> {
        Ok(self
            .find_users(db, std::iter::once(id))
            .await?
            .get(id)
            .copied())
    }

    /// The nids of those users that were ever seen here.
    pub async fn find_users<'a>(
        &self,
        db: &Db,
        ids: impl IntoIterator<Item = &'a UserId>,
    ) -> Result<HashMap<OwnedUserId, UserNid>> {
        let mut found = HashMap::new();
        let mut missing = Vec::new();
        for id in ids {
            match self.users.get(id) {
                Some(nid) => {
                    found.insert(id.to_owned(), nid);
                }
                None => missing.push(id.to_string()),
            }
        }
        if !missing.is_empty() {
            for (id, nid) in names::users(db, missing).await? {
                let id = OwnedUserId::try_from(id).map_err(Error::internal)?;
                self.keep_user(&id, nid);
                found.insert(id, nid);
            }
        }
        Ok(found)
    }

    /// The nid of a user, given now if it must be.
    pub async fn user(&self, db: &Db, log: &Log, id: &UserId) -> Result<UserNid> {
        let users = self.users(db, log, std::iter::once(id)).await?;
        users
            .get(id)
            .copied()
            .ok_or_else(|| Error::internal("a user just named is not known"))
    }

    /// The nids of users, given now where they must be.
    pub async fn users<'a>(
        &self,
        db: &Db,
        log: &Log,
        ids: impl IntoIterator<Item = &'a UserId> + Clone,
    ) -> Result<HashMap<OwnedUserId, UserNid>> {
        let found = self.find_users(db, ids.clone()).await?;
        let mut change = Change::new();
        let mut missing = 0;
        for id in ids.clone() {
            if !found.contains_key(id) {
                change.write(names::add_user(UserNid(log.new_id()?), id.as_str()));
                missing += 1;
            }
        }
        if missing == 0 {
            return Ok(found);
        }
        log.append(change).await?;
        self.find_users(db, ids).await
    }

    /// The ids of users.
    pub async fn user_ids(
        &self,
        db: &Db,
        nids: &[UserNid],
    ) -> Result<HashMap<UserNid, OwnedUserId>> {
        let mut found = HashMap::new();
        let mut missing = Vec::new();
        for nid in nids {
            match self.user_ids.get(nid) {
                Some(id) => {
                    found.insert(*nid, id);
                }
                None => missing.push(*nid),
            }
        }
        if !missing.is_empty() {
            for (nid, id) in names::user_ids(db, &missing).await? {
                let id = OwnedUserId::try_from(id).map_err(Error::internal)?;
                self.keep_user(&id, nid);
                found.insert(nid, id);
            }
        }
        Ok(found)
    }

    /// The id of a user.
    pub async fn user_id(&self, db: &Db, nid: UserNid) -> Result<OwnedUserId> {
        let mut found = self.user_ids(db, &[nid]).await?;
        found
            .remove(&nid)
            .ok_or_else(|| Error::internal("a user has no name"))
    }

    fn keep_user(&self, id: &OwnedUserId, nid: UserNid) {
        self.users.insert(id.clone(), nid);
        self.user_ids.insert(nid, id.clone());
    }

    /// The nids of those other servers that were ever seen here.
    pub async fn find_servers<'a>(
        &self,
        db: &Db,
        names: impl IntoIterator<Item = &'a ServerName>,
    ) -> Result<HashMap<OwnedServerName, ServerNid>> {
        let mut found = HashMap::new();
        let mut missing = Vec::new();
        for name in names {
            match self.servers.get(name) {
                Some(nid) => {
                    found.insert(name.to_owned(), nid);
                }
                None => missing.push(name.to_string()),
            }
        }
        if !missing.is_empty() {
            for (name, nid) in servers::servers(db, missing).await? {
                let name = OwnedServerName::try_from(name).map_err(Error::internal)?;
                self.servers.insert(name.clone(), nid);
                found.insert(name, nid);
            }
        }
        Ok(found)
    }

    /// The nids of other servers, given now where they must be.
    pub async fn servers<'a>(
        &self,
        db: &Db,
        log: &Log,
        names: impl IntoIterator<Item = &'a ServerName> + Clone,
    ) -> Result<HashMap<OwnedServerName, ServerNid>> {
        let found = self.find_servers(db, names.clone()).await?;
        let mut change = Change::new();
        let mut missing = HashSet::new();
        for name in names.clone() {
            if !found.contains_key(name) && missing.insert(name) {
                change.write(servers::add(ServerNid(log.new_id()?), name.as_str()));
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        log.append(change).await?;
        self.find_servers(db, names).await
    }

    /// The nid of another server, given now if it must be.
    pub async fn server(&self, db: &Db, log: &Log, name: &ServerName) -> Result<ServerNid> {
        let servers = self.servers(db, log, std::iter::once(name)).await?;
        servers
            .get(name)
            .copied()
            .ok_or_else(|| Error::internal("a server just named is not known"))
    }

    /// The nid of an event type, given now if it must be.
    pub async fn event_type(&self, db: &Db, log: &Log, name: &str) -> Result<TypeNid> {
        if let Some(nid) = self.find_type(db, name).await? {
            return Ok(nid);
        }
        let mut change = Change::new();
        change.write(names::add_type(TypeNid(log.new_id()?), name));
        log.append(change).await?;
        self.find_type(db, name)
            .await?
            .ok_or_else(|| Error::internal("a type just named is not known"))
    }

    /// The nid of an event type, if such an event was ever seen here.
    pub async fn find_type(&self, db: &Db, name: &str) -> Result<Option<TypeNid>> {
        if let Some(nid) = self.types.get(name) {
            return Ok(Some(nid));
        }
        let found = names::types(db, vec![name.to_owned()]).await?.pop();
        Ok(found.map(|(name, nid)| {
            self.types.insert(name.into(), nid);
            nid
        }))
    }

    /// The nids of those pairs that have one.
    pub async fn find_keys(&self, db: &Db, keys: &[Key]) -> Result<HashMap<Key, KeyNid>> {
        let mut found = HashMap::new();
        let wanted: HashSet<&Key> = keys.iter().collect();
        let (mut types, mut state_keys) = (Vec::new(), Vec::new());
        for key in keys {
            match self.keys.get(key) {
                Some(nid) => {
                    found.insert(key.clone(), nid);
                }
                None => {
                    types.push(key.0.to_string());
                    state_keys.push(key.1.to_string());
                }
            }
        }
        if !types.is_empty() {
            types.sort_unstable();
            types.dedup();
            for (event_type, state_key, nid) in names::keys(db, types, state_keys).await? {
                let key: Key = (event_type.into(), state_key.into());
                self.keep_key(&key, nid);
                if wanted.contains(&key) {
                    found.insert(key, nid);
                }
            }
        }
        Ok(found)
    }

    /// The nids of pairs, given now where they must be.
    pub async fn keys(&self, db: &Db, log: &Log, keys: &[Key]) -> Result<HashMap<Key, KeyNid>> {
        let found = self.find_keys(db, keys).await?;
        let missing: Vec<&Key> = keys
            .iter()
            .filter(|key| !found.contains_key(*key))
            .collect();
        if missing.is_empty() {
            return Ok(found);
        }
        let mut change = Change::new();
        for (event_type, state_key) in missing {
            change.write(names::add_key(KeyNid(log.new_id()?), event_type, state_key));
        }
        log.append(change).await?;
        self.find_keys(db, keys).await
    }

    /// What keys stand for.
    pub async fn key_names(&self, db: &Db, nids: &[KeyNid]) -> Result<HashMap<KeyNid, Key>> {
        let mut found = HashMap::new();
        let mut missing = Vec::new();
        for nid in nids {
            match self.by_key.get(nid) {
                Some(key) => {
                    found.insert(*nid, key);
                }
                None => missing.push(*nid),
            }
        }
        if !missing.is_empty() {
            for (nid, event_type, state_key) in names::key_names(db, &missing).await? {
                let key: Key = (event_type.into(), state_key.into());
                self.keep_key(&key, nid);
                found.insert(nid, key);
            }
        }
        Ok(found)
    }

    /// The ids of events, for those that are named again and again, like the roots of threads.
    pub async fn event_ids(
        &self,
        db: &Db,
        nids: &[EventNid],
    ) -> Result<HashMap<EventNid, Arc<str>>> {
        let mut found = HashMap::new();
        let mut missing = Vec::new();
        for nid in nids {
            match self.event_ids.get(nid) {
                Some(id) => {
                    found.insert(*nid, id);
                }
                None => missing.push(*nid),
            }
        }
        if !missing.is_empty() {
            for (nid, id) in events::ids(db, &missing).await? {
                let id: Arc<str> = id.into();
                self.event_ids.insert(nid, Arc::clone(&id));
                found.insert(nid, id);
            }
        }
        Ok(found)
    }

    fn keep_key(&self, key: &Key, nid: KeyNid) {
        self.keys.insert(key.clone(), nid);
        self.by_key.insert(nid, key.clone());
    }
}
