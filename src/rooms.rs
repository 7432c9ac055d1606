//! What memory holds of each room: where it stands, and what happened last.
//!
//! [`Head`] is for whoever changes the room: it moves on as soon as a change is handed to the log. [`Seen`] is for
//! readers: it moves on when the change is committed. The rules of rooms are in `room/`.

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
        atomic::{AtomicI64, Ordering},
    },
};

use homing_federation::auth_graph::AuthGraph;
use quick_cache::{Weighter, sync::Cache};
use ruma::{
    OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, RoomVersionId,
    events::room::server_acl::RoomServerAclEventContent, room_version_rules::RoomVersionRules,
};

use crate::{
    error::{Error, Result},
    log::Log,
    names::Key,
    storage::{
        self, Db, Event, EventNid, Pos, ReadMarker, Receipt, RoomNid, ServerInRoom, ServerNid,
        UserNid, members,
        rooms::{HeadRow, RoomRow},
        servers,
        state::StateAt,
        threads::ThreadCount,
    },
};

/// About how many rooms stay in memory.
const ROOMS: usize = 20_000;
/// About how many bytes they may take, those aside that somebody is using.
const ROOMS_BYTES: u64 = 128 << 20;
/// What a room takes in memory without its events and members, in bytes.
const ROOM_BYTES: usize = 2048;
/// What a local member of a room takes, or a thread, or a receipt.
const ENTRY_BYTES: usize = 128;
/// What an event takes beside its JSON.
const EVENT_BYTES: usize = 1024;
/// How many of its latest events a room keeps in memory, and how many bytes of them beside the very latest.
const RECENT_EVENTS: usize = 32;
const RECENT_BYTES: usize = 256 << 10;
/// How many of its latest receipts a room keeps in memory.
const RECENT_RECEIPTS: usize = 64;
/// How many state events a room keeps in memory, and how many bytes of them.
const STATE_EVENTS: usize = 512;
const STATE_BYTES: usize = 1 << 20;

/// Who is in a room, as it is loaded.
#[derive(Debug, Default)]
struct Members {
    local: HashMap<UserNid, Option<Arc<str>>>,
    servers: HashMap<OwnedServerName, ServerInRoom>,
}

/// A room in memory. There is never more than one for the same room.
#[derive(Debug)]
pub struct Room {
    /// The room.
    pub nid: RoomNid,
    /// Its id.
    pub id: OwnedRoomId,
    /// Its version.
    pub version: RoomVersionId,
    /// The rules of its version.
    pub rules: &'static RoomVersionRules,
    /// Where the room stands for who changes it; `None` until first asked for, and after a change failed.
    pub head: tokio::sync::Mutex<Option<Head>>,
    /// Held by who joins the room through another server. Others wait a little, since they could join here afterwards.
    pub joining: tokio::sync::Mutex<()>,
    /// Held while something of what comes for a join is written.
    pub ingest: tokio::sync::Mutex<()>,
    /// Held by who fetches history of the room from other servers. If nobody could help last: until when nobody is asked
    /// again (milliseconds since 1970), and how often in a row that was so.
    pub history: tokio::sync::Mutex<Option<(i64, u32)>>,
    /// Which events allow which, as far as resolving the room's state had to know.
    pub auth_graph: tokio::sync::Mutex<AuthGraph<EventNid>>,
    seen: RwLock<Seen>,
}

/// Where a room stands for who changes it, with changes that are on their way into the log.
#[derive(Clone, Debug)]
pub struct Head {
    /// Where it stands after the last change that was handed to the log.
    pub row: HeadRow,
    /// One for each time that the room is read: changes that were computed from one reading build on each other, and fall
    /// with the first of them that is refused.
    pub reading: Arc<()>,
    /// The forward extremities, which are those of `row`.
    pub extremities: Vec<Extremity>,
    /// States that were found where branches meet: what they have in common, by the states that met.
    pub merges: VecDeque<(Vec<StateAt>, StateAt)>,
    /// State events on their way into the log (`None`: the state has none any more), with the version of the change that
    /// brings them.
    pub pending: HashMap<Key, (Option<Arc<Event>>, i64)>,
    /// The threads that had an event since the room was loaded.
    pub threads: HashMap<EventNid, ThreadCount>,
    /// Up to where those have read who sent or read something since the room was loaded, by user and thread (0: none).
    pub markers: HashMap<(UserNid, i64), ReadMarker>,
    /// How many events that they have not read count otherwise for people than for most, as far as it was asked for.
    pub highlights: HashMap<UserNid, i64>,
    /// How many users of other servers have joined, and from where on their servers hear of the room, for those servers
    /// of which that has changed since the room was loaded.
    pub servers: HashMap<OwnedServerName, ServerCount>,
}

/// A server of a room for who changes the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerCount {
    /// How many of its users have joined.
    pub joined: i64,
    /// What is committed after this position is for the server.
    pub from_pos: Pos,
}

/// An event that no other event of its room follows.
#[derive(Clone, Debug)]
pub struct Extremity {
    /// The event.
    pub nid: EventNid,
    /// Its id.
    pub id: OwnedEventId,
    /// The server of who sent it.
    pub server: OwnedServerName,
    /// The state after it.
    pub after: StateAt,
}

impl Head {
    /// The head of a room that has no events yet.
    #[must_use]
    pub fn new(row: HeadRow) -> Self {
        Self {
            row,
            reading: Arc::default(),
            extremities: Vec::new(),
            merges: VecDeque::new(),
            pending: HashMap::new(),
            threads: HashMap::new(),
            markers: HashMap::new(),
            highlights: HashMap::new(),
            servers: HashMap::new(),
        }
    }
}

/// What readers see of a room: all that is committed, and nothing else.
#[derive(Debug, Default)]
pub struct Seen {
    /// The version of the head that was committed last.
    pub version: i64,
    /// The line of the current state.
    pub state_line: i64,
    /// The depth of the deepest event; 0 of a room that this server was never in.
    pub max_depth: i64,
    /// How many have joined.
    pub joined_count: i64,
    /// How many are invited.
    pub invited_count: i64,
    /// How many events notify by default.
    pub unread_idx: i64,
    /// The same for each thread with an event after `threads_from`, with the position of its last event.
    pub threads: HashMap<EventNid, (i64, Pos)>,
    /// Where `threads` begins.
    pub threads_from: Pos,
    /// The position of the newest event.
    pub last_pos: Pos,
    /// The position of the newest event that is news.
    pub bump_pos: Pos,
    /// The local users who have joined, with their display names here.
    pub local: HashMap<UserNid, Option<Arc<str>>>,
    /// The other servers that are in the room, or were once.
    pub servers: HashMap<OwnedServerName, ServerInRoom>,
    /// The latest events, oldest first: all after `events_from`.
    pub events: VecDeque<Arc<Event>>,
    /// Where `events` begins.
    pub events_from: Pos,
    /// What `events` take, in bytes.
    events_bytes: usize,
    /// The latest receipts, oldest first: all after `receipts_from`.
    pub receipts: VecDeque<Receipt>,
    /// Where `receipts` begins.
    pub receipts_from: Pos,
    /// Current state events that somebody asked for; `None`: there is none with this key.
    pub state: HashMap<Key, Option<Arc<Event>>>,
    /// What `state` takes, in bytes.
    state_bytes: usize,
    /// Which servers may take part, as this state event says.
    pub server_acl: Option<(EventNid, Arc<RoomServerAclEventContent>)>,
    /// Counts the changes of state, so that a slow reader does not put an old event into `state`.
    pub state_changes: u64,
}

impl Room {
    fn new(row: &RoomRow, head: Pos, members: Members) -> Result<Self> {
        let version =
            RoomVersionId::try_from(row.room_version.as_str()).map_err(Error::internal)?;
        let rules = homing_federation::room_version::rules(&version).ok_or_else(|| {
            Error::internal(format!(
                "room {} has the unknown version {version}",
                row.room_id
            ))
        })?;
        let seen = Seen {
            version: row.head.version,
            state_line: row.head.state_line,
            max_depth: row.head.max_depth,
            joined_count: row.head.joined_count,
            invited_count: row.head.invited_count,
            unread_idx: row.head.unread_idx,
            last_pos: row.last_pos,
            bump_pos: row.bump_pos,
            local: members.local,
            servers: members.servers,
            events_from: head,
            receipts_from: head,
            threads_from: head,
            ..Seen::default()
        };
        Ok(Self {
            nid: row.nid,
            id: OwnedRoomId::try_from(row.room_id.as_str()).map_err(Error::internal)?,
            version,
            rules,
            head: tokio::sync::Mutex::new(None),
            joining: tokio::sync::Mutex::default(),
            ingest: tokio::sync::Mutex::default(),
            history: tokio::sync::Mutex::default(),
            auth_graph: tokio::sync::Mutex::default(),
            seen: RwLock::new(seen),
        })
    }

    /// Whether this server is in the room: somebody here has joined it, or nobody elsewhere ever did.
    pub fn is_here(&self) -> bool {
        let seen = self.seen();
        !seen.local.is_empty() || (seen.servers.is_empty() && seen.max_depth > 0)
    }

    /// The other servers that are in the room, those with the most people there first.
    pub fn other_servers(&self) -> Vec<OwnedServerName> {
        let seen = self.seen();
        let mut there: Vec<_> = seen
            .servers
            .iter()
            .filter(|(_, server)| server.joined > 0)
            .map(|(name, server)| (Reverse(server.joined), name.clone()))
            .collect();
        there.sort_unstable();
        there.into_iter().map(|(_, name)| name).collect()
    }

    /// What is committed. Not to be held across an await.
    pub fn seen(&self) -> RwLockReadGuard<'_, Seen> {
        self.seen.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is committed, to be changed by the log alone.
    pub(crate) fn seen_mut(&self) -> RwLockWriteGuard<'_, Seen> {
        self.seen.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// Adds a committed event.
    pub(crate) fn add_event(&mut self, event: Arc<Event>) {
        if let Some(pos) = event.pos {
            self.last_pos = pos;
        }
        self.events_bytes += bytes(&event);
        self.events.push_back(event);
        while self.events.len() > RECENT_EVENTS
            || (self.events_bytes > RECENT_BYTES && self.events.len() > 1)
        {
            let Some(event) = self.events.pop_front() else {
                break;
            };
            self.events_bytes -= bytes(&event);
            self.events_from = event.pos.unwrap_or(self.events_from);
        }
    }

    /// Sets how many users of another server have joined, since the change at `pos`. Answers whether they are the first.
    pub(crate) fn set_server(
        &mut self,
        name: OwnedServerName,
        server: ServerNid,
        joined: i64,
        pos: Pos,
    ) -> bool {
        let before = self.servers.get(&name);
        let before = before.filter(|before| before.joined > 0);
        let has_come = joined > 0 && before.is_none();
        let from_pos = before.map_or(pos - 1, |before| before.from_pos);
        let now = ServerInRoom {
            server,
            joined,
            from_pos,
            left_pos: (joined == 0).then_some(pos),
        };
        self.servers.insert(name, now);
        has_come
    }

    /// Adds a committed receipt.
    pub(crate) fn add_receipt(&mut self, receipt: Receipt) {
        self.receipts.push_back(receipt);
        if self.receipts.len() > RECENT_RECEIPTS
            && let Some(receipt) = self.receipts.pop_front()
        {
            self.receipts_from = receipt.pos;
        }
    }

    /// Sets what is committed of the state.
    pub(crate) fn set_state(&mut self, key: Key, event: Option<Arc<Event>>) {
        self.state_changes += 1;
        self.keep_state(key, event);
    }

    /// Forgets what is known of the state.
    pub(crate) fn forget_state(&mut self) {
        self.state_changes += 1;
        self.state.clear();
        self.state_bytes = 0;
    }

    /// Forgets the latest events: what they did to the state is not all that has become of it up to `pos`.
    pub(crate) fn start_anew(&mut self, pos: Pos) {
        self.events.clear();
        self.events_bytes = 0;
        self.events_from = pos;
    }

    /// Keeps what was read of the state, if nothing has changed since `state_changes` was `read_at`.
    pub(crate) fn remember_state(&mut self, read_at: u64, key: Key, event: Option<Arc<Event>>) {
        if self.state_changes == read_at {
            self.keep_state(key, event);
        }
    }

    fn keep_state(&mut self, key: Key, event: Option<Arc<Event>>) {
        let more = event.as_ref().map_or(ENTRY_BYTES, bytes);
        let is_full = self.state.len() >= STATE_EVENTS || self.state_bytes + more > STATE_BYTES;
        if is_full && !self.state.contains_key(&key) {
            self.state.retain(|(_, state_key), _| state_key.is_empty());
            self.weigh_state();
            if self.state_bytes + more > STATE_BYTES {
                self.state.clear();
                self.state_bytes = 0;
            }
        }
        self.state_bytes += more;
        if let Some(before) = self.state.insert(key, event) {
            self.state_bytes -= before.as_ref().map_or(ENTRY_BYTES, bytes);
        }
    }

    /// Puts the redacted form in the place of an event.
    pub(crate) fn replace_event(&mut self, redacted: &Arc<Event>) {
        let known = self.events.iter_mut();
        for event in known.chain(self.state.values_mut().flatten()) {
            if event.nid == redacted.nid {
                *event = Arc::clone(redacted);
            }
        }
        self.events_bytes = self.events.iter().map(bytes).sum();
        self.weigh_state();
    }

    fn weigh_state(&mut self) {
        let state = self.state.values();
        let bytes = state.map(|event| event.as_ref().map_or(ENTRY_BYTES, bytes));
        self.state_bytes = bytes.sum();
    }

    /// About how many bytes the room takes.
    fn bytes(&self) -> usize {
        let people = self.local.len() + self.servers.len();
        let entries = people + self.threads.len() + self.receipts.len();
        ROOM_BYTES + self.events_bytes + self.state_bytes + ENTRY_BYTES * entries
    }
}

/// About how many bytes an event takes; its content is there twice.
fn bytes(event: &Arc<Event>) -> usize {
    EVENT_BYTES + event.pdu.json.len() + event.pdu.content.get().len()
}

/// A room that stays in memory, and what it took when it was used last.
#[derive(Clone, Debug)]
struct Kept {
    #[expect(dead_code, reason = "it stays in memory as long as this")]
    room: Arc<Room>,
    bytes: u64,
}

#[derive(Clone, Debug)]
struct ByBytes;

impl Weighter<RoomNid, Kept> for ByBytes {
    fn weight(&self, _: &RoomNid, kept: &Kept) -> u64 {
        kept.bytes
    }
}

/// The rooms in memory.
#[derive(Debug)]
pub struct Rooms {
    by_id: Mutex<HashMap<OwnedRoomId, Weak<Room>>>,
    by_nid: Mutex<HashMap<RoomNid, Weak<Room>>>,
    used: Cache<RoomNid, Kept, ByBytes>,
    created: AtomicI64,
    loading: tokio::sync::Mutex<()>,
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            by_id: Mutex::default(),
            by_nid: Mutex::default(),
            used: Cache::with_weighter(ROOMS, ROOMS_BYTES, ByBytes),
            created: AtomicI64::new(0),
            loading: tokio::sync::Mutex::default(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Rooms {
    /// The room with this id, if this server knows it.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn by_id(&self, db: &Db, log: &Log, id: &RoomId) -> Result<Option<Arc<Room>>> {
        let known = lock(&self.by_id).get(id).and_then(Weak::upgrade);
        if let Some(room) = known {
            // Using it keeps it.
            self.used.get(&room.nid);
            return Ok(Some(room));
        }
        let _one_at_a_time = self.loading.lock().await;
        if let Some(room) = lock(&self.by_id).get(id).and_then(Weak::upgrade) {
            return Ok(Some(room));
        }
        let head = log.head();
        let Some(row) = storage::rooms::by_id(db, id.as_str()).await? else {
            return Ok(None);
        };
        // A room that has just been created is in the database a moment before it is in memory.
        log.settled().await?;
        if let Some(room) = lock(&self.by_id).get(id).and_then(Weak::upgrade) {
            return Ok(Some(room));
        }
        Ok(self.load(db, head, vec![row]).await?.pop())
    }

    /// The rooms with these nids.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn many(
        &self,
        db: &Db,
        log: &Log,
        nids: &[RoomNid],
    ) -> Result<HashMap<RoomNid, Arc<Room>>> {
        let mut found = HashMap::with_capacity(nids.len());
        let missing = self.in_memory(nids, &mut found);
        if missing.is_empty() {
            return Ok(found);
        }
        let _one_at_a_time = self.loading.lock().await;
        let missing = self.in_memory(&missing, &mut found);
        let head = log.head();
        let mut rows = storage::rooms::many(db, &missing).await?;
        log.settled().await?;
        self.in_memory(&missing, &mut found);
        rows.retain(|row| !found.contains_key(&row.nid));
        for room in self.load(db, head, rows).await? {
            found.insert(room.nid, room);
        }
        Ok(found)
    }

    fn in_memory(&self, nids: &[RoomNid], found: &mut HashMap<RoomNid, Arc<Room>>) -> Vec<RoomNid> {
        let by_nid = lock(&self.by_nid);
        let mut missing = Vec::new();
        for nid in nids {
            match by_nid.get(nid).and_then(Weak::upgrade) {
                Some(room) => {
                    found.insert(*nid, room);
                }
                None => missing.push(*nid),
            }
        }
        missing
    }

    /// Takes rooms into memory that are not there. A change to a room needs the room in memory, so while it is being loaded
    /// nothing of it changes: what is read belongs to `head`.
    async fn load(&self, db: &Db, head: Pos, rows: Vec<RoomRow>) -> Result<Vec<Arc<Room>>> {
        let nids: Vec<RoomNid> = rows.iter().map(|row| row.nid).collect();
        let mut members: HashMap<RoomNid, Members> = HashMap::new();
        for (room, user, name) in members::local_joined(db, &nids).await? {
            let name = name.map(Into::into);
            members.entry(room).or_default().local.insert(user, name);
        }
        for (room, name, server) in servers::of_rooms(db, &nids).await? {
            let name = OwnedServerName::try_from(name).map_err(Error::internal)?;
            members
                .entry(room)
                .or_default()
                .servers
                .insert(name, server);
        }
        rows.into_iter()
            .map(|row| {
                let room = Arc::new(Room::new(
                    &row,
                    head,
                    members.remove(&row.nid).unwrap_or_default(),
                )?);
                self.keep(&room);
                Ok(room)
            })
            .collect()
    }

    /// Takes a room that is about to be created into memory. It becomes known to others once `keep` is called.
    ///
    /// # Errors
    /// If its id or version is not valid.
    pub fn create(row: &RoomRow, head: Pos) -> Result<Arc<Room>> {
        Ok(Arc::new(Room::new(row, head, Members::default())?))
    }

    /// When a room is created that is created now: a millisecond that no other room was created in. The id of a room is a
    /// hash of who creates it, how and when, so two that were alike in all of these would be the same room.
    pub fn creation_ts(&self, now: i64) -> i64 {
        let later = |last: i64| now.max(last + 1);
        let last = self
            .created
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(later(last))
            });
        later(last.unwrap_or(now))
    }

    /// Makes a room known.
    pub(crate) fn keep(&self, room: &Arc<Room>) {
        let mut by_id = lock(&self.by_id);
        let mut nids = lock(&self.by_nid);
        if by_id.len() >= 2 * ROOMS && by_id.len().is_power_of_two() {
            by_id.retain(|_, room| room.strong_count() > 0);
            nids.retain(|_, room| room.strong_count() > 0);
        }
        by_id.insert(room.id.clone(), Arc::downgrade(room));
        nids.insert(room.nid, Arc::downgrade(room));
        drop((by_id, nids));
        self.used(room);
    }

    /// Keeps a room in memory, which has changed. Not to be called while it is locked.
    pub(crate) fn used(&self, room: &Arc<Room>) {
        let bytes = room.seen().bytes() as u64;
        let room = Arc::clone(room);
        self.used.insert(room.nid, Kept { room, bytes });
    }
}
