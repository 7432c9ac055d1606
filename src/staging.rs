//! In which rooms events of other servers wait for what they rest on; `room/receive/staging.rs` works on them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::{Notify, Semaphore};

use crate::storage::RoomNid;

/// In how many rooms is worked at the same time.
const ROOMS: usize = 16;

/// The rooms in which somebody works on events that wait.
#[derive(Debug)]
pub struct Staging {
    /// The rooms, each with what tells that there is more to do.
    pub working: Mutex<HashMap<RoomNid, Arc<Notify>>>,
    /// Turns at the work.
    pub turns: Semaphore,
}

impl Default for Staging {
    fn default() -> Self {
        Self {
            working: Mutex::default(),
            turns: Semaphore::new(ROOMS),
        }
    }
}
