//! Sessions in memory, and who is to be told when one ends.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use quick_cache::sync::Cache;
use tokio_util::sync::CancellationToken;

use super::{Requester, TokenHash};
use crate::storage::{DeviceNid, UserNid};

/// How many sessions are kept in memory.
const CACHED_SESSIONS: usize = 50_000;

/// Sessions in memory, by token.
#[derive(Debug)]
pub struct Sessions {
    known: Cache<TokenHash, Arc<Requester>>,
    /// Counts how often sessions were forgotten, because one that was read before may be put in after.
    changes: AtomicU64,
    /// The devices for which something is going on that takes long.
    watched: Mutex<HashMap<DeviceNid, (UserNid, Arc<CancellationToken>)>>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            known: Cache::new(CACHED_SESSIONS),
            changes: AtomicU64::new(0),
            watched: Mutex::default(),
        }
    }
}

impl Sessions {
    /// Forgets the sessions that `chosen` chooses, because something else is true of them now. To be called after
    /// the database knows that, before the one who changed it is answered.
    pub fn forget(&self, chosen: impl Fn(&Requester) -> bool) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.known.retain(|_, requester| !chosen(requester));
    }

    /// Forgets the sessions of the devices that `ended` chooses, and ends what is going on for them. To be called
    /// after their tokens are gone from the database, before the one who ended them is answered.
    pub fn end(&self, ended: impl Fn(UserNid, DeviceNid) -> bool) {
        self.forget(|requester| ended(requester.user, requester.device));
        self.watched().retain(|device, (user, token)| {
            let ended = ended(*user, *device);
            if ended {
                token.cancel();
            }
            !ended
        });
    }

    /// A session, if memory knows it.
    pub(super) fn get(&self, token: &TokenHash) -> Option<Arc<Requester>> {
        self.known.get(token)
    }

    /// How often sessions were forgotten.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Keeps a session that was read from the database when `changes()` was `before`.
    pub(super) fn keep(&self, requester: &Arc<Requester>, before: u64) {
        self.known.insert(requester.token, Arc::clone(requester));
        if self.changes() != before {
            self.known.remove(&requester.token);
        }
    }

    /// Learns from now on when the requester's device ends.
    pub(super) fn watch(&self, requester: &Requester) -> Watch<'_> {
        let mut watched = self.watched();
        let (_, token) = watched
            .entry(requester.device)
            .or_insert_with(|| (requester.user, Arc::default()));
        Watch {
            sessions: self,
            device: requester.device,
            token: Arc::clone(token),
        }
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<DeviceNid, (UserNid, Arc<CancellationToken>)>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody wants to learn when a device ends.
#[derive(Debug)]
pub(super) struct Watch<'s> {
    sessions: &'s Sessions,
    device: DeviceNid,
    token: Arc<CancellationToken>,
}

impl Watch<'_> {
    /// What is cancelled when the device ends.
    pub(super) fn ended(&self) -> &CancellationToken {
        &self.token
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut watched = self.sessions.watched();
        // One count is the map's, one is this one's: nobody else watches.
        if let Some((_, token)) = watched.get(&self.device)
            && Arc::ptr_eq(token, &self.token)
            && Arc::strong_count(token) == 2
        {
            watched.remove(&self.device);
        }
    }
}
