//! What is known of events before they are taken into a room: which are here already, and which allow them.

use std::{collections::HashMap, sync::Arc};

use homing_federation::Pdu;
use ruma::{EventId, OwnedEventId};

use super::{Opinion, Received};
use crate::{
    app::App,
    error::{Error, Result},
    room::{append::step::Step, branches::Derived, head},
    rooms::Room,
    storage::{
        self, DeviceNid, Event, EventNid, UserNid, Write,
        events::{Stub, flags},
        relations::{self, Early},
        threads,
    },
};

/// An event that is about to be taken into a room.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) pdu: Arc<Pdu>,
    pub(super) is_ours: bool,
    pub(super) before: Option<Derived>,
    pub(super) is_history: bool,
    pub(super) is_return: bool,
    pub(super) opinion: Opinion,
    pub(super) txn: Option<(DeviceNid, Arc<str>)>,
    pub(super) writes: Vec<Write>,
    pub(super) sender: UserNid,
}

/// The events of a room that others name, as far as they are here.
#[derive(Debug)]
pub(super) struct Known {
    room: Arc<Room>,
    stubs: HashMap<String, Stub>,
    events: HashMap<OwnedEventId, Arc<Event>>,
    /// Those of the change that is being computed.
    fresh: Vec<Arc<Event>>,
    /// Events that have come before those which they relate to.
    early: Vec<Early>,
    /// The redactions among them.
    redactions: HashMap<EventNid, Arc<Event>>,
}

impl Known {
    /// Finds out what is known of some events and of those that allow them.
    pub(super) async fn load(app: &App, room: &Arc<Room>, pdus: &[Arc<Pdu>]) -> Result<Self> {
        let ids = |pdus: &[Arc<Pdu>]| -> Vec<String> {
            pdus.iter().map(|pdu| pdu.event_id.to_string()).collect()
        };
        let mut known = Self {
            room: Arc::clone(room),
            stubs: storage::events::stubs(&app.db, ids(pdus)).await?,
            events: HashMap::new(),
            fresh: Vec::new(),
            early: relations::early(&app.db, room.nid, ids(pdus)).await?,
            redactions: HashMap::new(),
        };
        let redactions = known.early.iter().filter(|early| early.is_redaction());
        let redactions: Vec<EventNid> = redactions.map(|early| early.child).collect();
        known.redactions = head::events(app, room, &redactions).await?;
        let mut wanted: Vec<&OwnedEventId> = pdus.iter().flat_map(|pdu| &pdu.auth_events).collect();
        wanted.sort_unstable();
        wanted.dedup();
        {
            let seen = room.seen();
            let by_id: HashMap<_, _> = seen
                .state
                .values()
                .flatten()
                .map(|event| (&event.pdu.event_id, event))
                .collect();
            wanted.retain(|id| {
                let event = by_id.get(id);
                if let Some(event) = event {
                    known.events.insert((*id).clone(), Arc::clone(event));
                }
                event.is_none()
            });
        }
        let wanted = wanted.into_iter().map(ToString::to_string).collect();
        let found = storage::events::by_ids(&app.db, room.rules, room.nid, wanted).await?;
        for event in found {
            let id = event.pdu.event_id.clone();
            known.events.insert(id, Arc::new(event));
        }
        Ok(known)
    }

    /// Looks again which of the events are here.
    pub(super) async fn look_again(&mut self, app: &App, pdus: &[Arc<Pdu>]) -> Result<()> {
        *self = Self::load(app, &self.room, pdus).await?;
        Ok(())
    }

    /// Looks whether somebody else has brought some events meanwhile.
    pub(super) async fn look_for(&mut self, app: &App, items: &[Item]) -> Result<()> {
        let ids = items.iter().map(|item| item.pdu.event_id.to_string());
        self.stubs
            .extend(storage::events::stubs(&app.db, ids.collect()).await?);
        Ok(())
    }

    /// What is stored of an event.
    pub(super) fn stub(&self, pdu: &Pdu) -> Option<Stub> {
        self.stubs.get(pdu.event_id.as_str()).copied()
    }

    /// Whether an event has its place in the room already.
    pub(super) fn is_here(&self, pdu: &Pdu) -> bool {
        self.stub(pdu)
            .is_some_and(|stub| stub.flags & flags::OUTLIER == 0)
            || self.fresh(pdu).is_some()
    }

    fn fresh(&self, pdu: &Pdu) -> Option<&Arc<Event>> {
        let mut fresh = self.fresh.iter();
        fresh.find(|event| event.pdu.event_id == pdu.event_id)
    }

    /// The flags of an event that is here.
    pub(super) fn flags(&self, pdu: &Pdu) -> i64 {
        let of_fresh = self.fresh(pdu).map(|event| event.flags);
        let of_stored = || self.stub(pdu).map(|stub| stub.flags);
        of_fresh.or_else(of_stored).unwrap_or(0)
    }

    /// The redactions of an event that have come before it.
    pub(super) fn redactions(&self, pdu: &Pdu) -> impl Iterator<Item = &Arc<Event>> {
        let of_it = self.early.iter().filter(|early| early.is_of(&pdu.event_id));
        let redactions = of_it.filter(|early| early.is_redaction());
        redactions.filter_map(|early| self.redactions.get(&early.child))
    }

    /// Brings an event together with those that relate to it and have come before it.
    pub(super) fn meet_early(&self, step: &mut Step<'_>, event_id: &EventId, nid: EventNid) {
        let room = step.room.nid;
        let mut is_met = false;
        for early in self.early.iter().filter(|early| early.is_of(event_id)) {
            is_met = true;
            if early.is_redaction() {
                continue;
            }
            let write = relations::add(nid, &early.rel_type, early.child);
            step.change.write(write);
            if early.rel_type == "m.thread" {
                for write in threads::begin(room, nid, early.child) {
                    step.change.write(write);
                }
            }
        }
        if is_met {
            let write = relations::forget_early(room, event_id.as_str());
            step.change.write(write);
        }
    }

    /// The events that allow an event, all of them.
    ///
    /// # Errors
    /// The ids of those that are not here.
    pub(super) fn auth_events(&self, pdu: &Pdu) -> Result<Vec<Arc<Event>>, Vec<OwnedEventId>> {
        let mut found = Vec::with_capacity(pdu.auth_events.len());
        let mut missing = Vec::new();
        for id in &pdu.auth_events {
            let fresh = || self.fresh.iter().find(|event| event.pdu.event_id == *id);
            match self.events.get(id).or_else(fresh) {
                Some(event) => found.push(Arc::clone(event)),
                None => missing.push(id.clone()),
            }
        }
        if missing.is_empty() {
            Ok(found)
        } else {
            Err(missing)
        }
    }

    /// Notes what has come with a step.
    pub(super) fn arrived(&mut self, step: &mut Step<'_>) {
        if let Some(event) = step.newest().cloned() {
            self.add(step, event);
        }
    }

    /// Notes an event of which nobody is told.
    pub(super) fn hidden(&mut self, step: &mut Step<'_>, event: Event) {
        let event = Arc::new(event);
        step.past.keep(Arc::clone(&event));
        self.add(step, event);
    }

    fn add(&mut self, step: &mut Step<'_>, event: Arc<Event>) {
        for early in step.past.take_early() {
            if early.is_redaction() {
                self.redactions.insert(early.child, Arc::clone(&event));
            }
            self.early.push(early);
        }
        self.fresh.push(event);
    }

    /// What has come with a change is committed.
    pub(super) fn committed(&mut self) {
        for event in self.fresh.drain(..) {
            let stub = Stub {
                nid: event.nid,
                room: event.room,
                flags: event.flags,
            };
            self.stubs.insert(event.pdu.event_id.to_string(), stub);
            self.events.insert(event.pdu.event_id.clone(), event);
        }
    }
}

/// Finds out who sent some events.
pub(super) async fn prepare(app: &App, received: Vec<Received>) -> Result<Vec<Item>> {
    let senders: Vec<_> = received
        .iter()
        .map(|received| received.pdu.sender.clone())
        .collect();
    let senders = app
        .names
        .find_users(&app.db, senders.iter().map(AsRef::as_ref))
        .await?;
    received
        .into_iter()
        .map(|received| {
            Ok(Item {
                sender: *senders
                    .get(&received.pdu.sender)
                    .ok_or_else(|| Error::internal("a sender has no integer"))?,
                pdu: received.pdu,
                is_ours: received.is_ours,
                before: received.before,
                is_history: received.is_history,
                is_return: received.is_return,
                opinion: received.opinion,
                txn: received.txn,
                writes: received.writes,
            })
        })
        .collect()
}
