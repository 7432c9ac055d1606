//! What a commit means to those who are connected: which users it concerns, and waking them.
//!
//! Each user who syncs has a [`Feed`]: their memberships, what they have read, and which rooms have news since when. It
//! answers "what is new for me?" without a query and without a look at the rooms that are quiet.

mod effect;
mod feed;

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    error::Result,
    log::{Committed, Log},
    names::Key,
    outgoing::{News, Outgoing},
    pushes::{Push, Pushes},
    rooms::{Room, Rooms},
    storage::{
        self, Db, Event, Member, Membership, Pos, Receipt, ReceiptKind, UserNid, events::flags,
        rooms::HeadRow, to_device::Inbox,
    },
};
pub use effect::{Effect, StateChanges};
pub use feed::{Feed, FeedState};

/// How long a feed outlives its last use.
const FEED_IDLE: Duration = Duration::from_mins(10);

/// All that are connected.
#[derive(Debug)]
pub struct Bus {
    feeds: RwLock<HashMap<UserNid, Arc<Feed>>>,
    /// All up to here has been told. Locked while a commit is being told, so that nobody sees half of it.
    settled: RwLock<Pos>,
    /// Counts changes of what only memory knows: typing and presence.
    ephemeral: AtomicU64,
    /// What other servers are to be told.
    pub outgoing: Outgoing,
    /// What people with pushers may have to be told.
    pub pushes: Pushes,
    /// Tells this run of the server from others: the count begins anew with each.
    run: u64,
}

impl Default for Bus {
    fn default() -> Self {
        Self {
            feeds: RwLock::default(),
            settled: RwLock::default(),
            ephemeral: AtomicU64::new(1),
            outgoing: Outgoing::default(),
            pushes: Pushes::default(),
            run: u64::from(rand::random::<u32>()),
        }
    }
}

impl Bus {
    /// The feed of a user, made if there is none.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn feed(&self, db: &Db, log: &Log, user: UserNid) -> Result<Arc<Feed>> {
        let feed = self.find(user).unwrap_or_else(|| {
            let mut feeds = self.feeds.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(
                feeds
                    .entry(user)
                    .or_insert_with(|| Arc::new(Feed::new(user, log.head(), self.ephemeral()))),
            )
        });
        feed.load(db).await?;
        Ok(feed)
    }

    /// The feed of a user, if there is one.
    #[must_use]
    pub fn find(&self, user: UserNid) -> Option<Arc<Feed>> {
        self.feeds
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&user)
            .cloned()
    }

    /// How many users have a feed.
    #[must_use]
    pub fn feeds(&self) -> usize {
        self.feeds
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Drops the feeds that nobody has used for long.
    pub fn drop_idle(&self) {
        let now = Instant::now();
        let mut feeds = self.feeds.write().unwrap_or_else(PoisonError::into_inner);
        feeds.retain(|_, feed| Arc::strong_count(feed) > 1 || feed.used_within(now, FEED_IDLE));
    }

    /// The position up to which memory is complete. While the answer is held nothing is told, so what is read
    /// meanwhile of feeds and rooms belongs together; not to be held across an await, nor while a change is made.
    pub fn settled(&self) -> RwLockReadGuard<'_, Pos> {
        self.settled.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets where the log stands when the server starts.
    pub(crate) fn start_at(&self, head: Pos) {
        *self.settled.write().unwrap_or_else(PoisonError::into_inner) = head;
    }

    /// Calls `tell` for each of `users` who has a feed.
    fn each(
        &self,
        users: &HashMap<UserNid, Option<Arc<str>>>,
        told: &mut Told,
        tell: impl Fn(&mut FeedState),
    ) {
        let feeds = self.feeds.read().unwrap_or_else(PoisonError::into_inner);
        if users.len() < feeds.len() {
            for feed in users.keys().filter_map(|user| feeds.get(user)) {
                told.tell(feed, &tell);
            }
        } else {
            for feed in feeds.values().filter(|feed| users.contains_key(&feed.user)) {
                told.tell(feed, &tell);
            }
        }
    }

    fn one(&self, user: UserNid, told: &mut Told, tell: impl Fn(&mut FeedState)) {
        if let Some(feed) = self.find(user) {
            told.tell(&feed, tell);
        }
    }

    /// Tells this run of the server from others.
    #[must_use]
    pub fn run(&self) -> u64 {
        self.run
    }

    /// The newest change of what only memory knows.
    #[must_use]
    pub fn ephemeral(&self) -> u64 {
        self.ephemeral.load(Ordering::Acquire)
    }

    /// Tells the joined users of a room that somebody has begun or ended typing.
    pub fn typing(&self, room: &Room) {
        let at = self.ephemeral.fetch_add(1, Ordering::AcqRel) + 1;
        let mut told = Told::default();
        self.each(&room.seen().local, &mut told, |feed| {
            feed.typing_changed(room.nid, at);
        });
        told.wake();
    }

    /// Tells `watchers` that the presence of `user` has changed.
    pub fn presence(&self, user: UserNid, watchers: impl IntoIterator<Item = UserNid>) {
        let at = self.ephemeral.fetch_add(1, Ordering::AcqRel) + 1;
        let mut told = Told::default();
        for watcher in watchers {
            self.one(watcher, &mut told, |feed| feed.presence_changed(user, at));
        }
        told.wake();
    }

    /// Somebody has joined those who are in a room: all of them learn how the others are.
    fn met(&self, user: UserNid, local: &HashMap<UserNid, Option<Arc<str>>>, told: &mut Told) {
        let at = self.ephemeral.fetch_add(1, Ordering::AcqRel) + 1;
        self.each(local, told, |feed| feed.presence_changed(user, at));
        let Some(feed) = self.find(user) else {
            return;
        };
        // Who has no feed has not been seen for a while.
        let there: Vec<UserNid> = {
            let feeds = self.feeds.read().unwrap_or_else(PoisonError::into_inner);
            let is_there = |user: &&UserNid| feeds.contains_key(user);
            local.keys().filter(is_there).copied().collect()
        };
        told.tell(&feed, |feed| {
            for other in &there {
                feed.presence_changed(*other, at);
            }
        });
    }

    /// Brings memory up to a commit. Answers whom it concerns, to be woken.
    pub(crate) fn apply(&self, rooms: &Rooms, committed: Committed) -> Told {
        let mut told = Told::default();
        let mut settled = self.settled.write().unwrap_or_else(PoisonError::into_inner);
        for (first, effects) in committed.changes {
            for effect in effects {
                self.apply_one(rooms, first, effect, &mut told);
            }
        }
        *settled = committed.head;
        told
    }

    fn redacted(
        &self,
        room: &Room,
        event: &Arc<Event>,
        nameless: Option<UserNid>,
        told: &mut Told,
    ) {
        let mut seen = room.seen_mut();
        seen.replace_event(event);
        if let Some(name) = nameless.and_then(|user| seen.local.get_mut(&user)) {
            *name = None;
        }
        if let Some(pos) = event.pos {
            self.each(&seen.local, told, |feed| feed.redacted(room.nid, pos));
        }
    }

    fn event(
        &self,
        room: &Arc<Room>,
        key: Option<Key>,
        event: Arc<Event>,
        pos: Pos,
        told: &mut Told,
    ) {
        let mut seen = room.seen_mut();
        let is_ours = event.flags & (flags::OURS | flags::HIDDEN) == flags::OURS;
        if is_ours && !seen.servers.is_empty() {
            let (room, event) = (Arc::clone(room), Arc::clone(&event));
            self.outgoing.tell(News::Event { room, event });
        }
        if self.pushes.is_for_anybody(&seen.local, &event) {
            let (room, event) = (Arc::clone(room), Arc::clone(&event));
            self.pushes.tell(Push::Event { room, event });
        }
        if let Some(key) = key {
            seen.set_state(key, Some(Arc::clone(&event)));
        }
        seen.add_event(event);
        self.each(&seen.local, told, |feed| feed.room_changed(room.nid, pos));
    }

    fn receipt(&self, room: &Arc<Room>, receipt: Receipt, told: &mut Told) {
        let (pos, user) = (receipt.pos, receipt.user);
        let mut seen = room.seen_mut();
        let is_public = receipt.kind == ReceiptKind::Read;
        if is_public && !seen.servers.is_empty() && seen.local.contains_key(&user) {
            let (room, receipt) = (Arc::clone(room), receipt.clone());
            self.outgoing.tell(News::Receipt { room, receipt });
        }
        seen.add_receipt(receipt);
        if self.pushes.concern(user) {
            self.pushes.tell(Push::Read(user));
        }
        if is_public {
            self.each(&seen.local, told, |feed| feed.room_changed(room.nid, pos));
        } else {
            self.one(user, told, |feed| feed.room_changed(room.nid, pos));
        }
    }

    fn member(&self, room: &Arc<Room>, member: &Member, told: &mut Told) {
        if !member.is_local {
            return;
        }
        let mut seen = room.seen_mut();
        if member.membership == Membership::Join {
            let name = member.display_name.as_deref().map(Into::into);
            if seen.local.insert(member.user, name).is_none() {
                self.met(member.user, &seen.local, told);
                if !seen.servers.is_empty() {
                    let (room, user) = (Arc::clone(room), member.user);
                    self.outgoing.tell(News::Joined { room, user });
                }
            }
        } else {
            seen.local.remove(&member.user);
        }
        drop(seen);
        self.one(member.user, told, |feed| feed.member_changed(member));
        self.push_membership(room, member);
    }

    /// A user with pushers is something else to a room. Invites to rooms in which this server is come as events too.
    fn push_membership(&self, room: &Arc<Room>, member: &Member) {
        let user = member.user;
        if !self.pushes.concern(user) {
            return;
        }
        if member.membership == Membership::Invite && !room.is_here() {
            self.pushes.tell(Push::Invite {
                room: Arc::clone(room),
                user,
                event: member.event,
                pos: member.pos,
            });
        } else if member.membership != Membership::Invite {
            self.pushes.tell(Push::Read(user));
        }
    }

    fn devices(&self, user: UserNid, watchers: Vec<UserNid>, pos: Pos, told: &mut Told) {
        for watcher in watchers {
            self.one(watcher, told, |feed| feed.devices_changed(user, pos));
        }
    }

    fn resolved(&self, room: &Room, changes: Option<StateChanges>, pos: Pos, told: &mut Told) {
        let mut seen = room.seen_mut();
        match changes {
            Some(changes) => {
                for (key, event) in changes {
                    seen.set_state(key, event);
                }
            }
            None => seen.forget_state(),
        }
        seen.start_anew(pos);
        self.each(&seen.local, told, |feed| feed.room_changed(room.nid, pos));
    }

    fn apply_one(&self, rooms: &Rooms, first: Pos, effect: Effect, told: &mut Told) {
        match effect {
            Effect::Room(room) => rooms.keep(&room),
            Effect::Event {
                room,
                mut event,
                key,
                at,
            } => {
                let pos = at.after(first);
                (event.pos, event.ord) = (Some(pos), pos);
                let event = Arc::new(event);
                self.event(&room, key, event, pos, told);
            }
            Effect::State { room, changes, at } => {
                self.resolved(&room, changes, at.after(first), told);
            }
            Effect::Head {
                room,
                row,
                at,
                threads,
            } => {
                head(&room, &row, at.after(first), &threads);
                rooms.used(&room);
            }
            Effect::Member {
                room,
                mut member,
                at,
            } => {
                member.pos = at.after(first);
                self.member(&room, &member, told);
            }
            Effect::Server {
                room,
                name,
                server,
                joined,
                at,
            } => {
                let pos = at.after(first);
                let has_come = room
                    .seen_mut()
                    .set_server(name.clone(), server, joined, pos);
                if has_come {
                    self.outgoing.tell(News::Came { room, name, server });
                }
            }
            Effect::Forgotten { room, user } => self.one(user, told, |feed| feed.forgotten(room)),
            Effect::Redacted {
                room,
                event,
                nameless,
            } => self.redacted(&room, &event, nameless, told),
            Effect::Receipt { room, receipt, at } => {
                let pos = at.after(first);
                self.receipt(&room, Receipt { pos, ..receipt }, told);
            }
            Effect::Marker {
                user,
                room,
                thread,
                marker,
            } => {
                self.one(user, told, |feed| feed.marker_changed(room, thread, marker));
            }
            Effect::Highlight(mut highlight, at) => {
                highlight.pos = at.after(first);
                self.one(highlight.user, told, |feed| feed.highlighted(&highlight));
            }
            Effect::Own { user, at } => {
                self.one(user, told, |feed| feed.own_changed(at.after(first)));
            }
            Effect::Devices {
                user,
                is_local,
                watchers,
                at,
            } => {
                let pos = at.after(first);
                if is_local {
                    self.outgoing.tell(News::Devices(user, pos));
                }
                self.devices(user, watchers, pos, told);
            }
            Effect::ToDevice { user, device, at } => {
                let new = Inbox::of_one(at.after(first));
                self.one(user, told, |feed| feed.add_messages(device, new));
            }
            Effect::KeyCounts { user, device } => {
                self.one(user, told, |feed| feed.key_counts_changed(device));
            }
            Effect::Pusher { user, pusher, at } => {
                self.pushes.set(user, pusher, at.after(first));
            }
            Effect::ToServer { name, server } => {
                self.outgoing.tell(News::Messages { name, server });
            }
        }
    }
}

/// A room stands somewhere else now.
fn head(room: &Room, row: &HeadRow, pos: Pos, threads: &[(storage::EventNid, i64)]) {
    let mut seen = room.seen_mut();
    seen.version = row.version;
    seen.state_line = row.state_line;
    seen.max_depth = row.max_depth;
    seen.joined_count = row.joined_count;
    seen.invited_count = row.invited_count;
    seen.unread_idx = row.unread_idx;
    if row.is_news {
        seen.bump_pos = pos;
    }
    let threads = threads.iter();
    seen.threads
        .extend(threads.map(|(root, idx)| (*root, (*idx, pos))));
}

/// Those who have been told something and are still to be woken.
#[derive(Debug, Default)]
pub struct Told(Vec<Arc<Feed>>);

impl Told {
    fn tell(&mut self, feed: &Arc<Feed>, tell: impl Fn(&mut FeedState)) {
        if feed.tell(tell) {
            self.0.push(Arc::clone(feed));
        }
    }

    /// Wakes their syncs.
    pub fn wake(self) {
        for feed in self.0 {
            feed.wake();
        }
    }
}
