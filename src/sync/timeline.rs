//! What happened in rooms.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    Context,
    batch::{Batch, Part},
    filter,
    lookup::{self, key},
};
use crate::{
    error::Result,
    room::visibility::{Sight, sees_all},
    storage::{self, Event, EventNid, Pos, RoomNid, events::flags},
    token::Token,
};

/// How much further back is looked, each time, for events that the filter lets through.
const FURTHER: [usize; 3] = [1, 8, 64];

/// Finds the events that are told of each room.
pub(super) async fn load<'a>(context: &'a Context<'a>, batch: &mut Batch<'a>) -> Result<()> {
    let limit = filter::timeline_limit(context.filter());
    let mut open: Vec<usize> = Vec::new();
    let mut found: HashMap<usize, (Vec<Arc<Event>>, bool)> = HashMap::new();
    for (index, part) in batch.parts.iter_mut().enumerate() {
        let events = if part.is_strange {
            (own(part, &batch.known), true)
        } else {
            in_memory(part)
        };
        found.insert(index, events);
    }
    for further in FURTHER {
        load_sights(context, batch, &found).await?;
        for (index, (events, is_all)) in found.drain() {
            if !batch.parts[index].take(context, events, is_all, limit) {
                open.push(index);
            }
        }
        if open.is_empty() {
            break;
        }
        let window = (limit + 1) * further;
        found = stored(context, batch, &std::mem::take(&mut open), window).await?;
    }
    // Where so many events do not pass the filter, the rest is left to `/messages`.
    load_sights(context, batch, &found).await?;
    for (index, (events, is_all)) in found {
        let part = &mut batch.parts[index];
        if !part.take(context, events, is_all, limit) {
            part.limited = true;
        }
    }
    for part in &mut batch.parts {
        // Whatever the client may know of a room from an earlier visit does not go on here.
        part.limited |= part.since < context.since && part.is_joined();
    }
    Ok(())
}

/// Of a room that the user was never in there is nothing to tell but what the user is to it now, if that is new.
fn own(part: &Part<'_>, known: &HashMap<EventNid, Arc<Event>>) -> Vec<Arc<Event>> {
    let is_new = part.member.pos > part.since;
    let own = known.get(&part.member.event).filter(|_| is_new);
    own.cloned().into_iter().collect()
}

/// The events that memory has, and whether these are all.
fn in_memory(part: &mut Part<'_>) -> (Vec<Arc<Event>>, bool) {
    let seen = part.room.seen();
    let events: Vec<Arc<Event>> = seen
        .events
        .iter()
        .filter(|event| {
            event
                .pos
                .is_some_and(|pos| pos > part.since && pos <= part.upto)
        })
        .cloned()
        .collect();
    let is_all = seen.events_from <= part.since || is_start(&events);
    drop(seen);
    if is_all {
        part.recent = Some(events.clone());
    }
    (events, is_all)
}

/// Whether the first of the events is the first of the room.
fn is_start(events: &[Arc<Event>]) -> bool {
    events
        .first()
        .is_some_and(|event| event.pdu.prev_events.is_empty())
}

/// The newest events that the database has of some parts, at most `window` of each.
async fn stored(
    context: &Context<'_>,
    batch: &mut Batch<'_>,
    open: &[usize],
    window: usize,
) -> Result<HashMap<usize, (Vec<Arc<Event>>, bool)>> {
    let mut by_since: HashMap<Pos, Vec<RoomNid>> = HashMap::new();
    for index in open {
        let part = &batch.parts[*index];
        by_since.entry(part.since).or_default().push(part.room.nid);
    }
    let mut events: HashMap<RoomNid, Vec<Option<Event>>> = HashMap::new();
    for (since, rooms) in by_since {
        let stored = storage::sync::timelines(
            &context.app.db,
            &batch.rules,
            context.viewer.user,
            &rooms,
            (since, context.upto),
            i64::try_from(window).unwrap_or(i64::MAX),
        )
        .await?;
        for (room, event) in stored {
            events.entry(room).or_default().push(event);
        }
    }
    Ok(open
        .iter()
        .map(|index| {
            let events = events
                .remove(&batch.parts[*index].room.nid)
                .unwrap_or_default();
            let is_all = events.len() < window;
            let events = events.into_iter().flatten().map(Arc::new).collect();
            (*index, (events, is_all))
        })
        .collect())
}

/// Finds out what the user may see where that is not plain. What is needed is read for all rooms at once, so that no
/// room whose history is shared needs a query of its own.
async fn load_sights<'a>(
    context: &'a Context<'a>,
    batch: &mut Batch<'a>,
    found: &HashMap<usize, (Vec<Arc<Event>>, bool)>,
) -> Result<()> {
    let doubtful: Vec<usize> = found
        .iter()
        .filter(|(index, (events, _))| {
            let part = &batch.parts[**index];
            part.sight.is_none() && !part.was_in_a_line(events)
        })
        .map(|(index, _)| *index)
        .collect();
    if doubtful.is_empty() {
        return Ok(());
    }
    let visibility = key("m.room.history_visibility", "");
    let member = key("m.room.member", context.requester.user_id.as_str());
    let mut keys = Vec::with_capacity(2 * doubtful.len());
    for index in &doubtful {
        let room = &batch.parts[*index].room;
        keys.push((Arc::clone(room), visibility.clone()));
        keys.push((Arc::clone(room), member.clone()));
    }
    let state = lookup::state(context, keys).await?;
    for index in doubtful {
        let part = &mut batch.parts[index];
        let events = found.get(&index).map_or(&[][..], |(events, _)| events);
        let now = [&visibility, &member].map(|key| {
            let event = state.get(&(part.room.nid, key.clone()));
            event.map(AsRef::as_ref)
        });
        if !part.was_in_all(events) || !sees_all(&part.room, now, part.member.pos, events) {
            part.sight = Some(Sight::quick(context.app, &part.room, context.viewer).await?);
        }
    }
    Ok(())
}

impl Part<'_> {
    /// Whether all of the events came when the user had joined, who is still there.
    fn was_in_all(&self, events: &[Arc<Event>]) -> bool {
        let is_later = |event: &Arc<Event>| event.pos.is_some_and(|pos| pos >= self.member.pos);
        events.is_empty() || (self.is_joined() && events.iter().all(is_later))
    }

    /// The same where no event can have come late, because there was never another server.
    fn was_in_a_line(&self, events: &[Arc<Event>]) -> bool {
        let is_alone = || self.room.seen().servers.is_empty();
        events.is_empty() || (self.was_in_all(events) && is_alone())
    }

    fn sees(&self, context: &Context<'_>, event: &Event) -> bool {
        if self.is_strange && event.nid == self.member.event {
            return true;
        }
        match &self.sight {
            Some(sight) => sight.sees(event),
            None => {
                event.flags & flags::HIDDEN == 0
                    && (event.key.is_some() || !context.viewer.ignored.contains(&event.sender))
            }
        }
    }

    /// Takes those of `events` that the user may see and wants to, if these are enough or all there are.
    fn take(
        &mut self,
        context: &Context<'_>,
        events: Vec<Arc<Event>>,
        is_all: bool,
        limit: usize,
    ) -> bool {
        let wanted = &context.filter().room.timeline;
        if !filter::admits_room(wanted, &self.room.id) {
            return true;
        }
        let mut events = events;
        let gap = events
            .iter()
            .rposition(|event| event.flags & flags::AFTER_GAP != 0);
        events.drain(..gap.unwrap_or(0));
        events.retain(|event| filter::admits_event(wanted, event) && self.sees(context, event));
        let too_many = events.len().saturating_sub(limit);
        self.limited = too_many > 0 || gap.is_some();
        self.timeline = events.split_off(too_many);
        is_all || self.limited
    }

    /// The events of the timeline.
    pub(super) fn told(&self) -> HashSet<EventNid> {
        self.timeline.iter().map(|event| event.nid).collect()
    }
}

/// Where `/messages` finds what was before the timeline.
pub(super) fn prev_batch(context: &Context<'_>, part: &Part<'_>) -> String {
    let first = part.timeline.first();
    let token = first.and_then(|event| Token::timeline(event));
    let token = token.unwrap_or(Token::Sync {
        pos: part.upto,
        ephemeral: 0,
        run: context.app.bus.run(),
        to_device: None,
    });
    token.to_string()
}
