//! Events without a place in a room's history: state and auth events that other servers told of.
//!
//! They are judged by the events that allow them and by nothing else; what they are to the room's state is said by those
//! who refer to them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use homing_federation::Pdu;
use ruma::{
    OwnedEventId,
    events::{StateEventType, TimelineEventType},
};

use super::judge::{self, Verdict};
use crate::{
    app::App,
    error::{Error, Result},
    log::{AppendError, Change},
    room::{
        append::{
            names::Names,
            step::{Placed, kept},
        },
        head,
    },
    rooms::Room,
    storage::{
        self, Event, EventNid,
        events::{Stub, flags},
        state::StateAt,
    },
};

/// How many events are written in one commit.
const AT_ONCE: usize = 500;
/// How often events are written again because somebody else has brought one of them.
const TRIES: usize = 5;

/// Keeps events that are not here yet. Answers what is known now of each of `pdus` that could be judged; one is left out if
/// it rests on events that are neither here nor among them.
///
/// # Errors
/// If the database fails.
pub async fn keep(
    app: &App,
    room: &Arc<Room>,
    pdus: Vec<Arc<Pdu>>,
) -> Result<HashMap<OwnedEventId, Stub>> {
    let mut kept = HashMap::with_capacity(pdus.len());
    for chunk in in_order(pdus).chunks(AT_ONCE) {
        let mut tries = 0;
        let stubs = loop {
            match keep_some(app, room, chunk).await {
                Err(Error::Append(AppendError::Duplicate)) if tries < TRIES => tries += 1,
                result => break result?,
            }
        };
        kept.extend(stubs);
    }
    Ok(kept)
}

/// Keeps an event of a room that this server is not in, which nobody here can judge.
///
/// # Errors
/// If the database fails.
pub async fn keep_alone(app: &App, room: &Arc<Room>, pdu: Arc<Pdu>) -> Result<Event> {
    let names = Names::give_for(app, std::slice::from_ref(&pdu)).await?;
    let ids = vec![pdu.event_id.to_string()];
    let known = storage::events::by_ids(&app.db, room.rules, room.nid, ids).await?;
    if let Some(event) = known.into_iter().next() {
        return Ok(event);
    }
    let event = outlier(app, room, &names, pdu, flags::OUTLIER)?;
    let mut change = Change::new();
    for write in storage::events::add(&event, &[], None) {
        change.write(write);
    }
    app.log.append(change).await?;
    Ok(event)
}

/// Orders events so that each comes after those that allow it. There are no circles: an id is a hash of what the event names.
fn in_order(mut pdus: Vec<Arc<Pdu>>) -> Vec<Arc<Pdu>> {
    // Who answers the same event to several questions must not make it come twice.
    let mut met = HashSet::new();
    pdus.retain(|pdu| met.insert(pdu.event_id.clone()));
    // From version 12 on no event names the create event, and all rest on it.
    pdus.sort_by_key(|pdu| pdu.kind != TimelineEventType::RoomCreate);
    let mut waiting: HashMap<OwnedEventId, Vec<usize>> = HashMap::new();
    let present: HashSet<&OwnedEventId> = pdus.iter().map(|pdu| &pdu.event_id).collect();
    let mut missing = vec![0_usize; pdus.len()];
    for (index, pdu) in pdus.iter().enumerate() {
        for id in pdu.auth_events.iter().filter(|id| present.contains(id)) {
            missing[index] += 1;
            waiting.entry(id.clone()).or_default().push(index);
        }
    }
    let mut ready: Vec<usize> = (0..pdus.len())
        .filter(|index| missing[*index] == 0)
        .collect();
    let mut ordered = Vec::with_capacity(pdus.len());
    let mut next = 0;
    while let Some(index) = ready.get(next).copied() {
        next += 1;
        ordered.push(Arc::clone(&pdus[index]));
        for waiter in waiting.remove(&pdus[index].event_id).unwrap_or_default() {
            missing[waiter] -= 1;
            if missing[waiter] == 0 {
                ready.push(waiter);
            }
        }
    }
    ordered
}

async fn keep_some(
    app: &App,
    room: &Arc<Room>,
    pdus: &[Arc<Pdu>],
) -> Result<HashMap<OwnedEventId, Stub>> {
    let ids = pdus.iter().map(|pdu| pdu.event_id.to_string()).collect();
    let stubs = storage::events::stubs(&app.db, ids).await?;
    let mut kept = HashMap::new();
    let mut new = Vec::new();
    for pdu in pdus {
        match stubs.get(pdu.event_id.as_str()) {
            Some(stub) => {
                kept.insert(pdu.event_id.clone(), *stub);
            }
            None => new.push(Arc::clone(pdu)),
        }
    }
    if new.is_empty() {
        return Ok(kept);
    }
    let names = Names::give_for(app, &new).await?;
    let mut known = allowing(app, room, &new).await?;
    let mut change = Change::new();
    for pdu in new {
        let Some(event) = judged(app, room, &names, &known, pdu)? else {
            continue;
        };
        let auth: Vec<EventNid> = event
            .pdu
            .auth_events
            .iter()
            .filter_map(|id| Some(known.get(id)?.nid))
            .collect();
        for write in storage::events::add(&event, &auth, None) {
            change.write(write);
        }
        let stub = Stub {
            nid: event.nid,
            room: event.room,
            flags: event.flags,
        };
        let id = event.pdu.event_id.clone();
        kept.insert(id.clone(), stub);
        known.insert(id, Arc::new(event));
    }
    app.log.append(change).await?;
    Ok(kept)
}

/// The events that allow some events, as far as they are here, and the create event of the room.
async fn allowing(
    app: &App,
    room: &Room,
    pdus: &[Arc<Pdu>],
) -> Result<HashMap<OwnedEventId, Arc<Event>>> {
    let mut ids: HashSet<String> = pdus
        .iter()
        .flat_map(|pdu| &pdu.auth_events)
        .map(ToString::to_string)
        .collect();
    if room.rules.authorization.room_create_event_id_as_room_id {
        let create = homing_federation::room_version::create_event_of_room_id(&room.id)?;
        ids.insert(create.to_string());
    }
    let ids = ids.into_iter().collect();
    let found = storage::events::by_ids(&app.db, room.rules, room.nid, ids).await?;
    Ok(found
        .into_iter()
        .map(|event| (event.pdu.event_id.clone(), Arc::new(event)))
        .collect())
}

/// The event as it is kept, rejected if those that it names do not allow it; `None` if one of them is not known.
fn judged(
    app: &App,
    room: &Room,
    names: &Names,
    known: &HashMap<OwnedEventId, Arc<Event>>,
    mut pdu: Arc<Pdu>,
) -> Result<Option<Event>> {
    let auth: Option<Vec<Arc<Event>>> = pdu
        .auth_events
        .iter()
        .map(|id| known.get(id).cloned())
        .collect();
    let Some(auth) = auth else {
        return Ok(None);
    };
    let create = known
        .values()
        .find(|event| &*event.pdu.event_type == "m.room.create");
    let rests_on_create = room.rules.authorization.room_create_event_id_as_room_id
        && pdu.kind != TimelineEventType::RoomCreate;
    if rests_on_create && create.is_none() {
        return Ok(None);
    }
    let key = head::key(&StateEventType::RoomCreate, "");
    let state = HashMap::from([(key, create.cloned())]);
    let mut flag = flags::OUTLIER;
    if let Verdict::Rejected(_) = judge::by_auth_events(room, &pdu, &auth, &state) {
        flag |= flags::REJECTED;
        Arc::make_mut(&mut pdu).rejected = true;
    }
    outlier(app, room, names, pdu, flag).map(Some)
}

fn outlier(app: &App, room: &Room, names: &Names, pdu: Arc<Pdu>, flag: i64) -> Result<Event> {
    let placed = Placed {
        nid: EventNid(app.log.new_id()?),
        is_stored: false,
        sender: names.member(&pdu.sender)?,
        txn: None,
        before: StateAt { line: 0, sv: 0 },
        auth: Vec::new(),
        flags: flag,
        redacted_by: None,
    };
    kept(names, room.nid, pdu, &placed)
}
