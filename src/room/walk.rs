//! Walking back along the edges of a room's graph, for servers that miss events.

use std::{
    collections::{BinaryHeap, HashMap, HashSet},
    sync::Arc,
};

use ruma::{EventId, OwnedEventId};

use crate::{
    app::App,
    error::Result,
    rooms::Room,
    storage::{
        self, Event,
        events::{Stub, flags},
        graph,
        timeline::Place,
    },
};

/// The most events that are met on one walk for each that is wanted: some are in the way and may not be told.
const MET_FOR_EACH: usize = 5;

/// These events and those before them, the deepest first, at most `limit`. Rejected events are passed over.
///
/// # Errors
/// If the database fails.
pub async fn back(
    app: &App,
    room: &Room,
    from: &[OwnedEventId],
    limit: usize,
) -> Result<Vec<Arc<Event>>> {
    let mut met: HashSet<OwnedEventId> = from.iter().cloned().collect();
    let mut known = HashMap::new();
    let mut heap = BinaryHeap::new();
    let start: Vec<&EventId> = from.iter().map(|id| &**id).collect();
    for event in take(app, room, &mut known, start).await? {
        heap.push(Deepest(event));
    }
    // What is likely to be met, in one query.
    if let Some(Deepest(first)) = heap.peek() {
        let most = i64::try_from(limit).unwrap_or(i64::MAX);
        let place = Place::after(first);
        for event in graph::before(&app.db, room.rules, room.nid, place, most).await? {
            known.insert(event.pdu.event_id.clone(), Arc::new(event));
        }
    }
    let mut found = Vec::new();
    let mut left = limit.saturating_mul(MET_FOR_EACH);
    while let Some(Deepest(event)) = heap.pop()
        && found.len() < limit
        && left > 0
    {
        left -= 1;
        let before = event.pdu.prev_events.iter();
        let new: Vec<&EventId> = before
            .filter(|id| met.insert((*id).clone()))
            .map(|id| &**id)
            .collect();
        for event in take(app, room, &mut known, new).await? {
            heap.push(Deepest(event));
        }
        if event.flags & flags::REJECTED == 0 {
            found.push(event);
        }
    }
    Ok(found)
}

/// The events between `latest` and `earliest`, without these, the oldest first: at most `limit` of those nearest to
/// `latest` that are at least `min_depth` deep. Rejected events are passed over.
///
/// # Errors
/// If the database fails.
pub async fn between(
    app: &App,
    room: &Room,
    (earliest, latest): (&[OwnedEventId], &[OwnedEventId]),
    min_depth: i64,
    limit: usize,
) -> Result<Vec<Arc<Event>>> {
    let mut met: HashSet<OwnedEventId> = earliest.iter().chain(latest).cloned().collect();
    let mut known = HashMap::new();
    let start = latest.iter().filter(|id| !earliest.contains(id));
    let start: Vec<&EventId> = start.map(|id| &**id).collect();
    let mut level = take(app, room, &mut known, start).await?;
    let mut found = Vec::new();
    let mut left = limit.saturating_mul(MET_FOR_EACH);
    while !level.is_empty() && found.len() < limit && left > 0 {
        let before = level.iter().flat_map(|event| event.pdu.prev_events.iter());
        let new: Vec<&EventId> = before
            .filter(|id| met.insert((*id).clone()))
            .map(|id| &**id)
            .take(left)
            .collect();
        left -= new.len();
        let mut next = take(app, room, &mut known, new).await?;
        next.retain(|event| event.depth() >= min_depth);
        let told = next
            .iter()
            .filter(|event| event.flags & flags::REJECTED == 0);
        found.extend(told.cloned());
        level = next;
    }
    found.truncate(limit);
    found.sort_by_key(|event| Place::after(event));
    Ok(found)
}

/// The events with these ids that have a place in the room's history.
async fn take(
    app: &App,
    room: &Room,
    known: &mut HashMap<OwnedEventId, Arc<Event>>,
    ids: Vec<&EventId>,
) -> Result<Vec<Arc<Event>>> {
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for id in ids {
        match known.remove(id) {
            Some(event) => found.push(event),
            None => missing.push(id.to_string()),
        }
    }
    let stubs = storage::events::stubs(&app.db, missing).await?;
    let is_placed = |stub: &&Stub| stub.room == room.nid && stub.flags & flags::OUTLIER == 0;
    let placed = stubs.values().filter(is_placed);
    let nids: Vec<_> = placed.map(|stub| stub.nid).collect();
    let read = storage::events::some(&app.db, room.rules, &nids).await?;
    found.extend(read.into_iter().map(Arc::new));
    Ok(found)
}

/// An event, ordered by its place in the room's history.
struct Deepest(Arc<Event>);

impl PartialEq for Deepest {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Deepest {}

impl PartialOrd for Deepest {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Deepest {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        Place::after(&self.0).cmp(&Place::after(&other.0))
    }
}
