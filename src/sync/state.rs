//! The state of rooms, or how it changed.
//!
//! Clients are told of state either as it is after the timeline, which is what the database has, or as it is before it:
//! then events that are in the timeline are left out, and what they took the place of is put in.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    Context, StateForm,
    batch::{Batch, Part, senders},
    filter,
};
use crate::{
    error::Result,
    storage::{self, Event, EventNid, KeyNid, RoomNid, TypeNid, sync::Delta},
};

/// With lazily loaded members, all members that changed are told if they are not more than this, else those only that
/// the client has met.
const MEMBER_CHANGES: usize = 100;

/// Finds the state events that are told of each room, apart from lazily loaded members.
pub(super) async fn load(context: &Context<'_>, batch: &mut Batch<'_>) -> Result<()> {
    for part in &batch.parts {
        let events = part.timeline.iter().chain(part.recent.iter().flatten());
        for event in events {
            batch
                .known
                .entry(event.nid)
                .or_insert_with(|| Arc::clone(event));
        }
    }
    let mut whole = whole_states(context, batch).await?;
    load_deltas(context, batch).await?;
    let mut told: Vec<Vec<EventNid>> = Vec::with_capacity(batch.parts.len());
    for part in &batch.parts {
        told.push(match whole.remove(&part.room.nid) {
            Some(state) => whole_events(context, part, state),
            None => changed_events(context, part),
        });
    }
    batch
        .read(context, told.iter().flatten().copied().collect())
        .await?;
    for (index, told) in told.into_iter().enumerate() {
        let events: Vec<_> = told
            .iter()
            .filter_map(|nid| batch.known.get(nid).cloned())
            .collect();
        batch.parts[index].state = keep_wanted(context, &batch.parts[index], events);
    }
    Ok(())
}

/// The whole current state (the state at the leave, of a room that was left) of the rooms that the client must be told
/// all of.
async fn whole_states(
    context: &Context<'_>,
    batch: &mut Batch<'_>,
) -> Result<HashMap<RoomNid, Vec<(KeyNid, EventNid)>>> {
    let app = context.app;
    let mut whole: HashMap<RoomNid, Vec<(KeyNid, EventNid)>> = HashMap::new();
    let mut joined = Vec::new();
    let mut left = Vec::new();
    for part in batch.parts.iter().filter(|part| part.is_whole(context)) {
        whole.insert(part.room.nid, Vec::new());
        if part.is_joined() {
            joined.push(part.room.nid);
        } else {
            left.push((part.room.nid, part.member.event, part.is_strange));
        }
    }
    let without = member_type(context).await?;
    let events = storage::sync::states(&app.db, &batch.rules, &joined, without).await?;
    for event in &events {
        if let (Some(key), Some(state)) = (event.key, whole.get_mut(&event.room)) {
            state.push((key, event.nid));
        }
    }
    batch.keep(events);
    let leaves: Vec<EventNid> = left.iter().map(|(_, leave, _)| *leave).collect();
    batch.read(context, leaves).await?;
    for (room, leave, is_strange) in left {
        let Some(leave) = batch.known.get(&leave) else {
            continue;
        };
        let at = storage::state::StateAt {
            line: leave.state_line,
            sv: leave.state_sv,
        };
        let mut state = if is_strange {
            Vec::new()
        } else {
            storage::state::all_at(&app.db, at).await?
        };
        state.retain(|(key, _)| Some(*key) != leave.key);
        state.extend(leave.key.map(|key| (key, leave.nid)));
        whole.insert(room, state);
    }
    Ok(whole)
}

/// The type of member events, if these are loaded lazily.
async fn member_type(context: &Context<'_>) -> Result<Option<TypeNid>> {
    if filter::lazy_members(context.filter()).is_none() {
        return Ok(None);
    }
    let app = context.app;
    app.names.find_type(&app.db, "m.room.member").await
}

fn whole_events(
    context: &Context<'_>,
    part: &Part<'_>,
    state: Vec<(KeyNid, EventNid)>,
) -> Vec<EventNid> {
    if context.request.state != StateForm::Before {
        return state.into_iter().map(|(_, nid)| nid).collect();
    }
    let mut first: HashMap<KeyNid, Option<EventNid>> = HashMap::new();
    for event in &part.timeline {
        if let Some(key) = event.key {
            first.entry(key).or_insert(event.replaces);
        }
    }
    state
        .into_iter()
        .filter(|(key, _)| !first.contains_key(key))
        .map(|(_, nid)| nid)
        .chain(first.values().flatten().copied())
        .collect()
}

/// Finds how the state of rooms changed: from the events in memory where these are all, with one query for the others.
pub(super) async fn load_deltas(context: &Context<'_>, batch: &mut Batch<'_>) -> Result<()> {
    let mut stored = Vec::new();
    for part in &mut batch.parts {
        if part.is_whole(context) {
            continue;
        }
        match &part.recent {
            _ if part.is_strange => part.deltas.extend(own_delta(part, &batch.known)),
            Some(events) => {
                part.deltas = events.iter().filter_map(|event| delta(event)).collect();
            }
            None => stored.push(part.room.nid),
        }
    }
    let window = (context.since, context.upto);
    let mut deltas: HashMap<RoomNid, Vec<Delta>> = HashMap::new();
    for delta in storage::sync::deltas(&context.app.db, &stored, window).await? {
        deltas.entry(delta.room).or_default().push(delta);
    }
    for part in &mut batch.parts {
        if let Some(mut deltas) = deltas.remove(&part.room.nid) {
            deltas.retain(|delta| delta.pos <= part.upto);
            part.deltas = deltas;
        }
    }
    Ok(())
}

/// What the user became to a room that they were never in.
fn own_delta(part: &Part<'_>, known: &HashMap<EventNid, Arc<Event>>) -> Option<Delta> {
    let own = known.get(&part.member.event)?;
    Some(Delta {
        room: part.room.nid,
        pos: part.member.pos,
        key: own.key?,
        event: Some(own.nid),
        before: own.replaces,
    })
    .filter(|delta| delta.pos > part.since)
}

/// What a state event in memory did. (Where the current state changes in another way, the log's reader starts the
/// room's memory anew, and the change is read from the database.)
fn delta(event: &Event) -> Option<Delta> {
    Some(Delta {
        room: event.room,
        pos: event.pos?,
        key: event.key?,
        event: Some(event.nid),
        before: event.replaces,
    })
}

fn changed_events(context: &Context<'_>, part: &Part<'_>) -> Vec<EventNid> {
    let told = part.told();
    let mut latest: HashMap<KeyNid, EventNid> = HashMap::new();
    let mut in_timeline = HashSet::new();
    for delta in &part.deltas {
        let Some(event) = delta.event else {
            continue;
        };
        if context.request.state == StateForm::Before && told.contains(&event) {
            in_timeline.insert(delta.key);
        } else if !in_timeline.contains(&delta.key) {
            latest.insert(delta.key, event);
        }
    }
    latest.into_values().collect()
}

/// Leaves out what the filter does not let through, and with lazily loaded members those that nobody needs.
fn keep_wanted(
    context: &Context<'_>,
    part: &Part<'_>,
    mut events: Vec<Arc<Event>>,
) -> Vec<Arc<Event>> {
    let wanted = &context.filter().room.state;
    if !filter::admits_room(wanted, &part.room.id) {
        return Vec::new();
    }
    let is_lazy = filter::lazy_members(context.filter()).is_some();
    let members = events.iter().filter(|event| is_member(event)).count();
    let met: HashSet<&str> = senders(&part.timeline)
        .into_iter()
        .map(|(_, id)| id)
        .collect();
    let told = part.told();
    events.retain(|event| {
        let is_needed = !is_lazy
            || members <= MEMBER_CHANGES
            || !is_member(event)
            || told.contains(&event.nid)
            || met.contains(event.pdu.state_key.as_deref().unwrap_or_default());
        is_needed && filter::admits_event(wanted, event)
    });
    events.sort_unstable_by_key(|event| (event.depth(), event.ord));
    events.truncate(filter::limit(wanted.limit));
    events
}

pub(super) fn is_member(event: &Event) -> bool {
    event.key.is_some() && &*event.pdu.event_type == "m.room.member"
}

/// Adds the lazily loaded members: of those who speak in the timeline, after whom the room is called, and of the user,
/// those whom the device has not been told of yet.
pub(super) async fn add_members(context: &Context<'_>, batch: &mut Batch<'_>) -> Result<()> {
    let Some(again) = filter::lazy_members(context.filter()) else {
        return Ok(());
    };
    let me = context.requester.user_id.as_str();
    let mut wanted: Vec<(usize, Vec<&str>)> = Vec::new();
    for (index, part) in batch.parts.iter().enumerate() {
        if !filter::admits_room(&context.filter().room.state, &part.room.id) {
            continue;
        }
        let present: HashSet<&str> = members(context, part)
            .filter_map(|event| event.pdu.state_key.as_deref())
            .collect();
        let mut users: Vec<&str> = senders(&part.timeline)
            .into_iter()
            .map(|(_, id)| id)
            .collect();
        if part.is_whole(context) {
            users.push(me);
        }
        if let Some(called) = &part.called {
            users.extend(called.heroes().map(|id| id.as_str()));
        }
        users.retain(|user| !present.contains(user));
        users.sort_unstable();
        users.dedup();
        if !users.is_empty() {
            wanted.push((index, users));
        }
    }
    let found = batch.members(context, &wanted).await?;
    let mut added: Vec<(usize, Arc<Event>)> = Vec::new();
    for (index, users) in &wanted {
        let part = &batch.parts[*index];
        for user in users {
            let key = super::lookup::key("m.room.member", user);
            if let Some(event) = found.get(&(part.room.nid, key))
                && (again || !is_known(context, part, event))
                && filter::admits_event(&context.filter().room.state, event)
            {
                added.push((*index, Arc::clone(event)));
            }
        }
    }
    drop(wanted);
    for (index, event) in added {
        batch.parts[index].state.push(event);
    }
    remember(context, batch);
    Ok(())
}

/// The member events that a client takes as state: what is in the timeline is not, for one that is told of the state
/// after it.
fn members<'p>(
    context: &Context<'_>,
    part: &'p Part<'_>,
) -> impl Iterator<Item = &'p Arc<Event>> + use<'p> {
    let timeline = match context.request.state {
        StateForm::Before => part.timeline.as_slice(),
        StateForm::After | StateForm::AfterUnstable => &[],
    };
    let all = timeline.iter().chain(&part.state);
    all.filter(|event| is_member(event))
}

fn is_known(context: &Context<'_>, part: &Part<'_>, event: &Event) -> bool {
    let device = context.requester.device;
    let has = &context.app.lazy_members;
    part.since > 0
        && event
            .key
            .is_some_and(|key| has.has(device, part.room.nid, part.since, key, event.nid))
}

/// Remembers which member events the device has now.
fn remember(context: &Context<'_>, batch: &Batch<'_>) {
    let device = context.requester.device;
    for part in &batch.parts {
        let members = members(context, part).filter_map(|event| Some((event.key?, event.nid)));
        context
            .app
            .lazy_members
            .add(device, part.room.nid, context.upto, members);
    }
}
