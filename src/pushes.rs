//! What people with pushers may have to be told, on its way from where it happens to the task that finds out and tells it.
//!
//! Nobody waits here, and the queue has an end: what finds no place in it is noted, and then read from the log.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::mpsc;

use crate::{
    rooms::Room,
    storage::{Event, EventNid, Pos, PusherNid, UserNid, events::flags},
};

/// How much may wait in the queue.
const QUEUE: usize = 8192;

/// Something that may concern people with pushers.
#[derive(Debug)]
pub enum Push {
    /// An event has come into a room.
    Event {
        /// The room.
        room: Arc<Room>,
        /// The event, with its position.
        event: Arc<Event>,
    },
    /// Somebody was invited to a room in which this server is not.
    Invite {
        /// The room.
        room: Arc<Room>,
        /// Who.
        user: UserNid,
        /// The invite.
        event: EventNid,
        /// When.
        pos: Pos,
    },
    /// Somebody has less that is unread than before, perhaps.
    Read(UserNid),
    /// A pusher was set.
    Set {
        /// Whose it is.
        user: UserNid,
        /// The pusher.
        pusher: PusherNid,
        /// When.
        pos: Pos,
    },
}

/// The queue, and for whom there is something in it.
#[derive(Debug)]
pub struct Pushes {
    /// Those who have pushers, and those who had some since the server was started.
    users: RwLock<HashSet<UserNid>>,
    /// Whether somebody takes from the queue.
    is_open: AtomicBool,
    /// Whether something found no place in it.
    is_lossy: AtomicBool,
    queue: mpsc::Sender<Push>,
    other_end: Mutex<Option<mpsc::Receiver<Push>>>,
}

impl Default for Pushes {
    fn default() -> Self {
        let (queue, other_end) = mpsc::channel(QUEUE);
        Self {
            users: RwLock::default(),
            is_open: AtomicBool::new(false),
            is_lossy: AtomicBool::new(false),
            queue,
            other_end: Mutex::new(Some(other_end)),
        }
    }
}

impl Pushes {
    /// Opens the queue and answers the end from which it is emptied; `None` if somebody has it. Before that nothing is put
    /// into it.
    pub fn open(&self) -> Option<mpsc::Receiver<Push>> {
        let mut end = self
            .other_end
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let end = end.take();
        self.is_open.store(end.is_some(), Ordering::Release);
        end
    }

    /// From now on what happens may concern these users.
    pub fn expect(&self, users: impl IntoIterator<Item = UserNid>) {
        self.users
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(users);
    }

    /// A pusher was set at a position.
    pub(crate) fn set(&self, user: UserNid, pusher: PusherNid, pos: Pos) {
        self.expect([user]);
        self.tell(Push::Set { user, pusher, pos });
    }

    fn users(&self) -> RwLockReadGuard<'_, HashSet<UserNid>> {
        self.users.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a user may have pushers.
    pub fn concern(&self, user: UserNid) -> bool {
        self.users().contains(&user)
    }

    /// Whether an event may concern anybody: those who have joined its room, or whom it is about.
    pub(crate) fn is_for_anybody(
        &self,
        joined: &HashMap<UserNid, Option<Arc<str>>>,
        event: &Event,
    ) -> bool {
        if event.flags & flags::HIDDEN != 0 {
            return false;
        }
        let users = self.users();
        if users.is_empty() {
            return false;
        }
        if &*event.pdu.event_type == "m.room.member" {
            return true;
        }
        if joined.len() < users.len() {
            joined.keys().any(|user| users.contains(user))
        } else {
            users.iter().any(|user| joined.contains_key(user))
        }
    }

    /// Puts something into the queue.
    pub fn tell(&self, push: Push) {
        if self.is_open.load(Ordering::Acquire) && self.queue.try_send(push).is_err() {
            self.is_lossy.store(true, Ordering::Release);
        }
    }

    /// Whether something found no place in the queue since this was asked last.
    pub fn has_lost(&self) -> bool {
        self.is_lossy.swap(false, Ordering::AcqRel)
    }
}
