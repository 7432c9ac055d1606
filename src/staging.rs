//! Where events of other servers wait for what they rest on; `room/receive/staging.rs` works on them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ruma::OwnedServerName;
use tokio::sync::{Notify, Semaphore};

use crate::{storage::RoomNid, turns::FewTurns};

/// On how many events is worked at the same time, and on how many of one server: whoever works on one may have to wait for
/// that server for minutes. Each asks for a few things at once, which together are fewer than the requests that this
/// server makes at one time.
const TURNS: usize = 24;
const TURNS_OF_ONE: usize = 2;
/// On how many events of servers that nobody here knows to be in the room: anybody can have as many of these as they like.
const TURNS_OF_STRANGERS: usize = 8;

/// Whose events somebody works on, by their room and the server that has sent them, each with what tells that there is
/// more to do.
pub type Working = HashMap<(RoomNid, OwnedServerName), Arc<Notify>>;

/// The work on events that wait.
#[derive(Debug)]
pub struct Staging {
    working: Mutex<Working>,
    turns: Semaphore,
    turns_of_strangers: Semaphore,
    turns_of_servers: FewTurns<OwnedServerName>,
}

impl Default for Staging {
    fn default() -> Self {
        Self {
            working: Mutex::default(),
            turns: Semaphore::new(TURNS),
            turns_of_strangers: Semaphore::new(TURNS_OF_STRANGERS),
            turns_of_servers: FewTurns::new(TURNS_OF_ONE),
        }
    }
}

impl Staging {
    /// Whose events somebody works on.
    pub fn working(&self) -> MutexGuard<'_, Working> {
        self.working.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Turns at the work on the events of one server.
    pub fn turns_of(&self, server: &OwnedServerName) -> Arc<Semaphore> {
        self.turns_of_servers.of(server)
    }

    /// Turns at the work on the events of all servers that are in the room, or of all others.
    pub fn turns(&self, is_stranger: bool) -> &Semaphore {
        if is_stranger {
            &self.turns_of_strangers
        } else {
            &self.turns
        }
    }
}
