//! What other servers are to be told, on its way from where it happens to those who send it.
//!
//! Nobody waits here: what happens is put into a queue, and the federation sender (`outbound/`) takes it from there. What
//! is durable need not be kept for it either, since the sender finds in the database what a server has not been sent.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use quick_cache::sync::Cache;
use ruma::{OwnedServerName, ServerName};
use tokio::sync::mpsc;

use crate::{
    rooms::Room,
    storage::{Event, Pos, Receipt, ServerNid, UserNid},
};

/// Of how many servers it is remembered that they were heard from.
const HEARD: usize = 20_000;

/// Something that other servers are to be told.
#[derive(Debug)]
pub enum News {
    /// An event that this server must send has entered a room.
    Event {
        /// The room.
        room: Arc<Room>,
        /// The event, with its position.
        event: Arc<Event>,
    },
    /// A local user has read something, for all to see.
    Receipt {
        /// The room.
        room: Arc<Room>,
        /// What was read.
        receipt: Receipt,
    },
    /// A local user types, or does not any more.
    Typing {
        /// The room.
        room: Arc<Room>,
        /// The user.
        user: UserNid,
        /// Whether the user types.
        typing: bool,
    },
    /// The presence of a local user has changed.
    Presence(UserNid),
    /// A local user has come into a room in which other servers are.
    Joined {
        /// The room.
        room: Arc<Room>,
        /// The user.
        user: UserNid,
    },
    /// Another server has come into a room.
    Came {
        /// The room.
        room: Arc<Room>,
        /// The server.
        name: OwnedServerName,
        /// The same.
        server: ServerNid,
    },
    /// Devices or keys of a local user have changed, at this place in the log.
    Devices(UserNid, Pos),
    /// Messages wait in the database for devices on another server.
    Messages {
        /// The server.
        name: OwnedServerName,
        /// The same.
        server: ServerNid,
    },
    /// A server was heard from that could not be reached, or of which nobody has heard for long.
    Heard(OwnedServerName),
}

/// The queue of the federation sender.
#[derive(Debug)]
pub struct Outgoing {
    /// Whether somebody takes from the queue.
    is_open: AtomicBool,
    queue: mpsc::UnboundedSender<News>,
    other_end: Mutex<Option<mpsc::UnboundedReceiver<News>>>,
    /// The servers that could not be reached when they were tried last.
    failing: Mutex<HashSet<OwnedServerName>>,
    /// Servers that have made a request.
    heard: Cache<OwnedServerName, ()>,
}

impl Default for Outgoing {
    fn default() -> Self {
        let (queue, other_end) = mpsc::unbounded_channel();
        Self {
            is_open: AtomicBool::new(false),
            queue,
            other_end: Mutex::new(Some(other_end)),
            failing: Mutex::default(),
            heard: Cache::new(HEARD),
        }
    }
}

impl Outgoing {
    /// Opens the queue and answers the end from which the news are taken; `None` if somebody has it. Before that nothing
    /// is put into it.
    pub fn open(&self) -> Option<mpsc::UnboundedReceiver<News>> {
        let end = self
            .other_end
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.is_open.store(end.is_some(), Ordering::Release);
        end
    }

    /// Puts news into the queue.
    pub fn tell(&self, news: News) {
        if self.is_open.load(Ordering::Acquire) {
            // When the server goes down nobody takes it any more.
            drop(self.queue.send(news));
        }
    }

    /// A server has made a request that it has signed: if it could not be reached, it is tried again now.
    pub fn heard_from(&self, server: &ServerName) {
        let is_new = !self.was_heard(server);
        if is_new {
            self.heard.insert(server.to_owned(), ());
        }
        if is_new || self.failing().contains(server) {
            self.tell(News::Heard(server.to_owned()));
        }
    }

    /// Whether a server has made a request, as far as that is remembered.
    pub fn was_heard(&self, server: &ServerName) -> bool {
        self.heard.get(server).is_some()
    }

    /// The servers that could not be reached when they were tried last.
    pub fn failing(&self) -> MutexGuard<'_, HashSet<OwnedServerName>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
