//! How much is unread ("Receiving notifications").
//!
//! Nobody counts for each reader: each room and each thread has a running count of the events that notify by default,
//! and what is unread is that count now, minus the count where the reader has read to, minus what the reader sent since.
//! Where the reader's own rules decide otherwise about single events there is a row for each; where they mute a whole room,
//! that is seen here. See `ARCHITECTURE.md`, "Unread counts".

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ruma::OwnedEventId;

use super::{
    Context,
    answer::Unread,
    batch::{Batch, Part},
};
use crate::{
    app::App,
    bus::{Feed, FeedState},
    error::{Error, Result},
    preferences::{self, Volume},
    room::{push, visibility::Viewer},
    rooms::Room,
    storage::{
        EventNid, Membership, ReadMarker,
        highlights::{HIGHLIGHT, Highlight, LOUD, NOTIFIES, SILENT, SINGLED_OUT},
        pushers,
        receipts::EVERYTHING,
        threads,
    },
};

/// What is unread of a room.
#[derive(Debug, Default)]
pub(super) struct PartUnread {
    /// In the room; without threads, if the client asks for these.
    pub(super) room: Unread,
    /// In each thread where anything is.
    pub(super) threads: BTreeMap<OwnedEventId, Unread>,
    /// Whether the user may have read something since the last sync.
    pub(super) changed: bool,
}

/// Counts what is unread in each room, with no query where memory has its threads.
pub(super) async fn load(context: &Context<'_>, batch: &mut Batch<'_>) -> Result<Vec<PartUnread>> {
    let app = context.app;
    let joined = batch.parts.iter().filter(|part| part.is_joined());
    let rooms: Vec<Arc<Room>> = joined.map(|part| Arc::clone(&part.room)).collect();
    let mut counted = count_all(app, context.viewer, &rooms).await?.into_iter();
    let counted: Vec<Counted> = batch
        .parts
        .iter()
        .map(|part| {
            let counted = part.is_joined().then(|| counted.next());
            counted.flatten().unwrap_or_default()
        })
        .collect();
    let by_thread = context.filter().room.timeline.unread_thread_notifications;
    let roots: Vec<EventNid> = counted
        .iter()
        .filter(|_| by_thread)
        .flat_map(|counted| counted.threads.keys().copied())
        .collect();
    let ids = app.names.event_ids(&app.db, &roots).await?;
    let mut unread = Vec::with_capacity(counted.len());
    for (part, counted) in batch.parts.iter().zip(counted) {
        let mut of_part = PartUnread {
            room: counted.room,
            threads: BTreeMap::new(),
            changed: has_read(context, part),
        };
        for (root, count) in counted.threads {
            if !by_thread {
                of_part.room.highlight_count += count.highlight_count;
                of_part.room.notification_count += count.notification_count;
            } else if let Some(id) = ids.get(&root) {
                let id = OwnedEventId::try_from(&**id).map_err(Error::internal)?;
                of_part.threads.insert(id, count);
            }
        }
        unread.push(of_part);
    }
    Ok(unread)
}

/// How much waits for somebody: what is unread in all their rooms, threads included, and the invites that they have.
///
/// # Errors
/// If the database fails.
pub async fn badge(app: &App, viewer: &Viewer) -> Result<i64> {
    let nids = pushers::unread_rooms(&app.db, viewer.user).await?;
    let rooms = app.rooms.many(&app.db, &app.log, &nids).await?;
    let rooms: Vec<Arc<Room>> = rooms.into_values().collect();
    let counted = count_all(app, viewer, &rooms).await?;
    let unread: i64 = counted
        .iter()
        .flat_map(|counted| std::iter::once(&counted.room).chain(counted.threads.values()))
        .map(|unread| unread.notification_count)
        .sum();
    let feed = app.bus.feed(&app.db, &app.log, viewer.user).await?;
    let state = feed.state();
    let invites = state.memberships.values().filter(|member| {
        member.membership == Membership::Invite && !viewer.ignored.contains(&member.sender)
    });
    Ok(unread + i64::try_from(invites.count()).unwrap_or(i64::MAX))
}

/// Counts what is unread to somebody in rooms that they have joined.
async fn count_all(app: &App, viewer: &Viewer, rooms: &[Arc<Room>]) -> Result<Vec<Counted>> {
    let feed = app.bus.feed(&app.db, &app.log, viewer.user).await?;
    load_threads(app, viewer, rooms, &feed).await?;
    load_markers(app, viewer, rooms, &feed).await?;
    let volumes = volumes(app, viewer, rooms).await?;
    let _settled = app.bus.settled();
    // A room is never looked at while the feed is locked: the log locks them the other way round.
    let threads: Vec<Vec<i64>> = rooms.iter().map(|room| threads_of(room)).collect();
    let state = feed.state();
    let parts = rooms.iter().zip(threads).zip(volumes);
    let known: Vec<Known> = parts
        .map(|((room, threads), volume)| known(&state, room, threads, volume))
        .collect();
    drop(state);
    let rooms = rooms.iter().zip(known);
    Ok(rooms.map(|(room, known)| count(room, &known)).collect())
}

/// Whether there is a receipt of the user since the last sync, as far as memory knows.
fn has_read(context: &Context<'_>, part: &Part<'_>) -> bool {
    let seen = part.room.seen();
    part.is_joined()
        && (seen.receipts_from > part.since
            || seen
                .receipts
                .iter()
                .any(|receipt| receipt.user == context.viewer.user && receipt.pos > part.since))
}

/// What the user has read of a room.
struct Known {
    volume: Volume,
    markers: HashMap<i64, ReadMarker>,
    highlights: Vec<Highlight>,
}

impl Known {
    /// Up to where everything is read.
    fn everything(&self) -> i64 {
        self.markers.get(&EVERYTHING).map_or(0, |marker| marker.pos)
    }
}

fn threads_of(room: &Room) -> Vec<i64> {
    room.seen().threads.keys().map(|root| root.0).collect()
}

/// How much of each room the user's rules let through.
async fn volumes(app: &App, viewer: &Viewer, rooms: &[Arc<Room>]) -> Result<Vec<Volume>> {
    let preferences = preferences::get(app, viewer.user).await?;
    let mut volumes = Vec::with_capacity(rooms.len());
    for room in rooms {
        let member_count = room.seen().joined_count;
        let volume = push::volume(room, &preferences, &viewer.user_id, member_count);
        volumes.push(volume.await?);
    }
    Ok(volumes)
}

fn known(state: &FeedState, room: &Room, threads: Vec<i64>, volume: Volume) -> Known {
    let room = room.nid;
    let highlights = state.highlights.get(&room);
    Known {
        volume,
        markers: threads
            .into_iter()
            .chain([0, EVERYTHING])
            .filter_map(|thread| Some((thread, *state.markers.get(&(room, thread))?)))
            .collect(),
        highlights: highlights
            .into_iter()
            .flat_map(BTreeMap::values)
            .cloned()
            .collect(),
    }
}

#[derive(Default)]
struct Counted {
    room: Unread,
    threads: HashMap<EventNid, Unread>,
}

fn count(room: &Room, known: &Known) -> Counted {
    let seen = room.seen();
    let main = known.markers.get(&0).copied().unwrap_or_default();
    let mut counted = Counted {
        room: unread(seen.unread_idx, main, known, 0),
        threads: HashMap::new(),
    };
    for (root, (idx, last_pos)) in &seen.threads {
        let marker = known.markers.get(&root.0).copied().unwrap_or_default();
        if *last_pos > known.everything().max(marker.pos) {
            let unread = unread(*idx, marker, known, root.0);
            if unread != Unread::default() {
                counted.threads.insert(*root, unread);
            }
        }
    }
    counted
}

fn unread(idx: i64, marker: ReadMarker, known: &Known, thread: i64) -> Unread {
    let mut unread = Unread::default();
    if known.volume == Volume::All {
        unread.notification_count = idx - marker.idx - marker.own;
    }
    for highlight in known
        .highlights
        .iter()
        .filter(|highlight| highlight.thread == thread && highlight.pos > marker.pos)
    {
        let has = |flags| highlight.flags & flags != 0;
        let (notifies, highlights) = match known.volume {
            Volume::All => (has(NOTIFIES), has(HIGHLIGHT)),
            Volume::Mentions => (
                has(HIGHLIGHT | NOTIFIES | SINGLED_OUT | LOUD),
                has(HIGHLIGHT),
            ),
            Volume::Nothing => (has(LOUD), has(LOUD) && has(HIGHLIGHT)),
        };
        unread.notification_count += i64::from(notifies);
        unread.highlight_count += i64::from(highlights);
        if known.volume == Volume::All {
            unread.notification_count -= i64::from(has(SILENT));
        }
    }
    unread.notification_count = unread.notification_count.max(unread.highlight_count).max(0);
    unread
}

/// Reads the threads of which memory knows nothing yet and in which something may be unread.
async fn load_threads(app: &App, viewer: &Viewer, rooms: &[Arc<Room>], feed: &Feed) -> Result<()> {
    let mut missing: HashMap<_, (&Room, i64)> = HashMap::new();
    for room in rooms {
        let read = {
            let state = feed.state();
            let marker = state.markers.get(&(room.nid, EVERYTHING));
            marker.map_or(0, |marker| marker.pos)
        };
        if read < room.seen().threads_from {
            missing.insert(room.nid, (room, read));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let nids: Vec<_> = missing.keys().copied().collect();
    let stored = threads::unread(&app.db, viewer.user, &nids).await?;
    for thread in stored {
        if let Some((room, _)) = missing.get(&thread.room) {
            let entry = (thread.unread_idx, thread.last_pos);
            // What memory has is never older.
            room.seen_mut().threads.entry(thread.root).or_insert(entry);
        }
    }
    for (room, read) in missing.into_values() {
        let mut seen = room.seen_mut();
        seen.threads_from = seen.threads_from.min(read);
    }
    Ok(())
}

/// Finds where in a thread somebody is who has read everything in its room but never this thread.
async fn load_markers(app: &App, viewer: &Viewer, rooms: &[Arc<Room>], feed: &Feed) -> Result<()> {
    let mut missing = HashMap::new();
    for room in rooms {
        let threads: Vec<_> = {
            let seen = room.seen();
            let threads = seen.threads.iter();
            threads.map(|(root, (_, last))| (*root, *last)).collect()
        };
        let state = feed.state();
        let room = room.nid;
        let read = state.markers.get(&(room, EVERYTHING));
        let read = read.map_or(0, |marker| marker.pos);
        for (root, last) in threads {
            let marker = state.markers.get(&(room, root.0));
            if last > read && marker.is_none_or(|marker| marker.pos == 0) {
                missing.insert(root, (room, read));
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let roots: Vec<EventNid> = missing.keys().copied().collect();
    let mut own = vec![viewer.user];
    own.extend(viewer.ignored.iter());
    let counts = threads::read_counts(&app.db, viewer.user, &own, &roots).await?;
    let mut state = feed.state();
    for (root, idx, own) in counts {
        let Some((room, read)) = missing.get(&root) else {
            continue;
        };
        let marker = state.markers.entry((*room, root.0)).or_default();
        if marker.pos == 0 {
            // Never 0, so that this is not asked again.
            let pos = (*read).max(1);
            let own = own.max(marker.own);
            *marker = ReadMarker { pos, idx, own };
        }
    }
    Ok(())
}
