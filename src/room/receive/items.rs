//! What is known of events before they are taken into a room: which are here already, and which allow them.

use std::{collections::HashMap, sync::Arc};

use homing_federation::Pdu;
use ruma::OwnedEventId;

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
    /// Redactions of it that have come before it.
    pub(super) redactions: Vec<Arc<Event>>,
    /// Other events that relate to it and have come before it.
    pub(super) early: Vec<Early>,
}

/// The events of a room that others name, as far as they are here.
#[derive(Debug)]
pub(super) struct Known {
    room: Arc<Room>,
    stubs: HashMap<String, Stub>,
    events: HashMap<OwnedEventId, Arc<Event>>,
    /// Those of the change that is being computed.
    fresh: Vec<Arc<Event>>,
    early: Vec<Early>,
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
        };
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

    /// Looks whether somebody else has brought an event meanwhile.
    pub(super) async fn look_for(&mut self, app: &App, pdu: &Pdu) -> Result<()> {
        let id = vec![pdu.event_id.to_string()];
        self.stubs
            .extend(storage::events::stubs(&app.db, id).await?);
        Ok(())
    }

    /// What is stored of an event.
    pub(super) fn stub(&self, pdu: &Pdu) -> Option<Stub> {
        self.stubs.get(pdu.event_id.as_str()).copied()
    }

    /// Whether an event has its place in the room already.
    pub(super) fn is_here(&self, pdu: &Pdu) -> bool {
        let is_it = |event: &Arc<Event>| event.pdu.event_id == pdu.event_id;
        self.stub(pdu)
            .is_some_and(|stub| stub.flags & flags::OUTLIER == 0)
            || self.fresh.iter().any(is_it)
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
    pub(super) fn arrived(&mut self, step: &Step<'_>) {
        self.fresh.extend(step.newest().cloned());
    }

    /// Notes an event that is kept and not shown.
    pub(super) fn hidden(&mut self, event: Event) {
        self.fresh.push(Arc::new(event));
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

/// Finds out what else belongs to some events.
pub(super) async fn prepare(
    app: &App,
    known: &Known,
    received: Vec<Received>,
) -> Result<Vec<Item>> {
    let senders: Vec<_> = received
        .iter()
        .map(|received| received.pdu.sender.clone())
        .collect();
    let senders = app
        .names
        .find_users(&app.db, senders.iter().map(AsRef::as_ref))
        .await?;
    let redactions: Vec<_> = known
        .early
        .iter()
        .filter(|early| early.rel_type == relations::REDACTION)
        .map(|early| early.child)
        .collect();
    let redactions = head::events(app, &known.room, &redactions).await?;
    received
        .into_iter()
        .map(|received| {
            let id = received.pdu.event_id.as_str();
            let early: Vec<Early> = known
                .early
                .iter()
                .filter(|early| early.parent == id)
                .cloned()
                .collect();
            let redactions = early
                .iter()
                .filter(|early| early.rel_type == relations::REDACTION)
                .filter_map(|early| redactions.get(&early.child).cloned())
                .collect();
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
                redactions,
                early,
            })
        })
        .collect()
}

impl Item {
    /// Brings the event together with those that relate to it and have come before it.
    pub(super) fn meet_early(&self, step: &mut Step<'_>, nid: EventNid) {
        if self.early.is_empty() {
            return;
        }
        let room = step.room.nid;
        for early in &self.early {
            if early.rel_type == relations::REDACTION {
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
        let write = relations::forget_early(room, self.pdu.event_id.as_str());
        step.change.write(write);
    }
}
