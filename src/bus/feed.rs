//! What is new for one user.

use std::{
    collections::{BTreeMap, HashMap, btree_map, hash_map},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, OnceCell, Semaphore};

use crate::{
    error::Result,
    storage::{
        self, Db, DeviceNid, Member, Membership, Pos, ReadMarker, RoomNid, UserNid,
        highlights::{self, Highlight},
        keys::Counts,
        to_device::Inbox,
    },
};

/// How many answers with everything are made for one user at a time.
const WHOLE_ANSWERS: usize = 2;

/// What memory holds of a user who syncs.
#[derive(Debug)]
pub struct Feed {
    /// The user.
    pub user: UserNid,
    /// Wakes the user's sleeping syncs.
    pub news: Notify,
    /// Turns at an answer with everything, which may be large.
    pub whole: Arc<Semaphore>,
    state: Mutex<FeedState>,
    loaded: OnceCell<()>,
}

/// The contents of a [`Feed`].
#[derive(Debug)]
pub struct FeedState {
    /// Changes up to here may be missing from `changed` and `own_pos`.
    pub from: Pos,
    /// The same for `typing` and `presence`.
    pub ephemeral_from: u64,
    /// The rooms of the user, apart from forgotten ones.
    pub memberships: HashMap<RoomNid, Member>,
    /// Rooms that the user has forgotten since `from`: that they left is told once more to who does not know.
    pub forgotten: HashMap<RoomNid, Member>,
    /// Rooms with news since `from`, by the position of the newest.
    changed: BTreeMap<Pos, RoomNid>,
    newest: HashMap<RoomNid, Pos>,
    /// The position of the newest change of what is the user's own.
    pub own_pos: Pos,
    /// Rooms in which somebody has begun or ended typing, with the ephemeral count of the newest change.
    pub typing: HashMap<RoomNid, u64>,
    /// Users whose presence has changed, likewise.
    pub presence: HashMap<UserNid, u64>,
    /// Up to where the user has read, by room and thread (0: none).
    pub markers: HashMap<(RoomNid, i64), ReadMarker>,
    /// Where the user's counts differ from most people's, by room and position.
    pub highlights: HashMap<RoomNid, BTreeMap<Pos, Highlight>>,
    /// Users whose devices have changed, by when, and when the newest has.
    devices: HashMap<UserNid, Pos>,
    devices_pos: Pos,
    /// What waits for the user's devices.
    inboxes: HashMap<DeviceNid, Inbox>,
    /// How many keys of the user's devices are left, as far as that was asked for.
    key_counts: HashMap<DeviceNid, Arc<Counts>>,
    /// Counts how often counts of keys were dropped, because one that was read before may be put in after.
    key_changes: u64,
    used: Instant,
    /// Something was told and the user is about to be woken.
    told: bool,
}

impl Feed {
    pub(super) fn new(user: UserNid, head: Pos, ephemeral: u64) -> Self {
        Self {
            user,
            news: Notify::new(),
            state: Mutex::new(FeedState {
                from: head,
                ephemeral_from: ephemeral,
                memberships: HashMap::new(),
                forgotten: HashMap::new(),
                changed: BTreeMap::new(),
                newest: HashMap::new(),
                own_pos: 0,
                typing: HashMap::new(),
                presence: HashMap::new(),
                markers: HashMap::new(),
                highlights: HashMap::new(),
                devices: HashMap::new(),
                devices_pos: 0,
                inboxes: HashMap::new(),
                key_counts: HashMap::new(),
                key_changes: 0,
                used: Instant::now(),
                told: false,
            }),
            whole: Arc::new(Semaphore::new(WHOLE_ANSWERS)),
            loaded: OnceCell::new(),
        }
    }

    /// What is known now. Not to be held across an await.
    pub fn state(&self) -> MutexGuard<'_, FeedState> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.used = Instant::now();
        state
    }

    /// Reads what the database knows, once. Changes that are committed meanwhile are newer than what is read.
    pub(super) async fn load(&self, db: &Db) -> Result<()> {
        self.loaded
            .get_or_try_init(async || {
                let members = storage::members::of_user(db, self.user).await?;
                let markers = storage::receipts::markers(db, self.user).await?;
                let highlights = highlights::of_user(db, self.user).await?;
                let inboxes = storage::to_device::inboxes(db, self.user).await?;
                let mut state = self.state();
                for member in members {
                    let known = state.memberships.get(&member.room).map(|known| known.pos);
                    if known.is_none_or(|known| known < member.pos) {
                        state.memberships.insert(member.room, member);
                    }
                }
                for (room, thread, marker) in markers {
                    state.markers.entry((room, thread)).or_insert(marker);
                }
                for highlight in highlights {
                    state.highlighted(&highlight);
                }
                for (device, inbox) in inboxes {
                    state.add_messages(device, inbox);
                }
                Ok(())
            })
            .await
            .copied()
    }

    /// Answers whether this is the first thing told since the user was woken last.
    pub(super) fn tell(&self, tell: impl Fn(&mut FeedState)) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        tell(&mut state);
        !std::mem::replace(&mut state.told, true)
    }

    pub(super) fn wake(&self) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .told = false;
        self.news.notify_waiters();
    }

    pub(super) fn used_within(&self, now: Instant, time: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        now.duration_since(state.used) < time
    }
}

impl FeedState {
    /// The rooms with news after `since`, oldest news first. Only complete for `since >= from`.
    pub fn changed_since(&self, since: Pos) -> impl Iterator<Item = RoomNid> {
        self.changed.range(since + 1..).map(|(_, room)| *room)
    }

    /// Whether anything that is committed has news for the user after `since`.
    #[must_use]
    pub fn has_news(&self, since: Pos) -> bool {
        self.own_pos > since
            || self.devices_pos > since
            || self
                .changed
                .last_key_value()
                .is_some_and(|(pos, _)| *pos > since)
    }

    pub(super) fn room_changed(&mut self, room: RoomNid, pos: Pos) {
        if let Some(before) = self.newest.insert(room, pos) {
            self.changed.remove(&before);
        }
        self.changed.insert(pos, room);
    }

    pub(super) fn member_changed(&mut self, member: &Member) {
        self.room_changed(member.room, member.pos);
        if member.membership != Membership::Join {
            self.typing.remove(&member.room);
        }
        self.forgotten.remove(&member.room);
        let before = self.memberships.insert(member.room, member.clone());
        let is_same = before.is_some_and(|before| before.membership == member.membership);
        if !is_same && member.membership != Membership::Invite {
            self.highlights.remove(&member.room);
        }
    }

    pub(super) fn forgotten(&mut self, room: RoomNid) {
        if let Some(mut member) = self.memberships.remove(&room) {
            member.forgotten = true;
            self.forgotten.insert(room, member);
        }
        self.highlights.remove(&room);
    }

    pub(super) fn typing_changed(&mut self, room: RoomNid, at: u64) {
        self.typing.insert(room, at);
    }

    pub(super) fn presence_changed(&mut self, user: UserNid, at: u64) {
        self.presence.insert(user, at);
    }

    pub(super) fn marker_changed(&mut self, room: RoomNid, thread: i64, marker: ReadMarker) {
        let known = self.markers.entry((room, thread)).or_default();
        if marker.pos == 0 && known.pos > 0 {
            // The user wrote in a thread that they have read only as part of the room.
            known.own += 1;
            return;
        }
        *known = marker;
        if let Some(highlights) = self.highlights.get_mut(&room) {
            highlights
                .retain(|_, highlight| highlight.thread != thread || highlight.pos > marker.pos);
        }
    }

    pub(super) fn highlighted(&mut self, highlight: &Highlight) {
        self.highlights
            .entry(highlight.room)
            .or_default()
            .insert(highlight.pos, highlight.clone());
    }

    pub(super) fn redacted(&mut self, room: RoomNid, pos: Pos) {
        if let Some(of_room) = self.highlights.get_mut(&room)
            && let btree_map::Entry::Occupied(redacted) = of_room.entry(pos)
            && redacted.get().flags & highlights::SILENT == 0
        {
            redacted.remove();
        }
    }

    /// The users whose devices have changed after `since`. Only complete for `since >= from`.
    pub fn devices_since(&self, since: Pos) -> impl Iterator<Item = UserNid> {
        let changed = self.devices.iter().filter(move |(_, pos)| **pos > since);
        changed.map(|(user, _)| *user)
    }

    pub(super) fn devices_changed(&mut self, user: UserNid, pos: Pos) {
        self.devices.insert(user, pos);
        self.devices_pos = pos;
    }

    /// Whether there is a message for a device after `since`.
    #[must_use]
    pub fn has_message(&self, device: DeviceNid, since: Pos) -> bool {
        self.inboxes
            .get(&device)
            .is_some_and(|inbox| inbox.last > since)
    }

    /// What waits for a device, if anything does.
    #[must_use]
    pub fn inbox(&self, device: DeviceNid) -> Option<Inbox> {
        self.inboxes.get(&device).copied()
    }

    /// The messages for a device up to `upto` were removed.
    pub fn messages_removed(&mut self, device: DeviceNid, upto: Pos) {
        if let hash_map::Entry::Occupied(mut inbox) = self.inboxes.entry(device) {
            if inbox.get().last <= upto {
                inbox.remove();
            } else {
                inbox.get_mut().first = upto + 1;
            }
        }
    }

    pub(super) fn add_messages(&mut self, device: DeviceNid, added: Inbox) {
        let inbox = self.inboxes.entry(device).or_insert(added);
        inbox.first = inbox.first.min(added.first);
        inbox.last = inbox.last.max(added.last);
    }

    /// How many keys of a device are left, if memory knows it, and what [`FeedState::keep_key_counts`] needs.
    #[must_use]
    pub fn key_counts(&self, device: DeviceNid) -> (Option<Arc<Counts>>, u64) {
        (self.key_counts.get(&device).cloned(), self.key_changes)
    }

    /// Keeps what was read from the database after [`FeedState::key_counts`] answered `before`.
    pub fn keep_key_counts(&mut self, device: DeviceNid, counts: &Arc<Counts>, before: u64) {
        if self.key_changes == before {
            self.key_counts.insert(device, Arc::clone(counts));
        }
    }

    pub(super) fn key_counts_changed(&mut self, device: DeviceNid) {
        self.key_changes += 1;
        self.key_counts.remove(&device);
    }

    pub(super) fn own_changed(&mut self, pos: Pos) {
        self.own_pos = self.own_pos.max(pos);
    }
}
