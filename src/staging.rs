//! Where events of other servers wait for what they rest on; `room/receive/staging.rs` works on them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ruma::{OwnedServerName, ServerName};
use tokio::sync::{Notify, Semaphore};

use crate::storage::RoomNid;

/// On how many events is worked at the same time, and on how many of one server: whoever works on one may have to wait for
/// that server for minutes. Each asks for a few things at once, which together are fewer than the requests that this
/// server makes at one time.
const TURNS: usize = 24;
const TURNS_OF_ONE: usize = 2;
/// How many servers have turns of their own before those are forgotten that use none.
const CROWDED: usize = 64;

/// Whose events somebody works on, by their room and the server that has sent them, each with what tells that there is
/// more to do.
pub type Working = HashMap<(RoomNid, OwnedServerName), Arc<Notify>>;

/// The work on events that wait.
#[derive(Debug)]
pub struct Staging {
    working: Mutex<Working>,
    /// Turns at the work.
    pub turns: Semaphore,
    of_servers: Mutex<HashMap<OwnedServerName, Arc<Semaphore>>>,
}

impl Default for Staging {
    fn default() -> Self {
        Self {
            working: Mutex::default(),
            turns: Semaphore::new(TURNS),
            of_servers: Mutex::default(),
        }
    }
}

impl Staging {
    /// Whose events somebody works on.
    pub fn working(&self) -> MutexGuard<'_, Working> {
        self.working.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Turns at the work on the events of one server.
    pub fn turns_of(&self, server: &ServerName) -> Arc<Semaphore> {
        let mut turns = self
            .of_servers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if turns.len() >= CROWDED {
            turns.retain(|_, turns| Arc::strong_count(turns) > 1);
        }
        let of_server = turns
            .entry(server.to_owned())
            .or_insert_with(|| Arc::new(Semaphore::new(TURNS_OF_ONE)));
        Arc::clone(of_server)
    }
}
