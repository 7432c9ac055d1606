//! One change to a room, while it is being computed.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use homing_federation::{draft::MAX_PREV_EVENTS, event::Pdu};
use ruma::{OwnedServerName, ServerName};

use super::{
    NewEvent, Sender,
    counts::{auth_nids, has_url},
    names::Names,
};
use crate::{
    app::App,
    bus::Effect,
    error::Result,
    log::Change,
    names::Key,
    room::{
        head::{self, StateMap},
        past::Past,
    },
    rooms::{Extremity, Head, Room, ServerCount},
    storage::{
        self, DeviceNid, Event, EventNid, Position, ReadMarker, RoomNid, UserNid, Write,
        events::flags, receipts, rooms::HeadRow, search, state::StateAt, threads::ThreadCount,
    },
};

/// What a person would call news of a room: the bump types of sliding sync.
const NEWS: &[&str] = &[
    "m.room.create",
    "m.room.message",
    "m.room.encrypted",
    "m.sticker",
    "m.call.invite",
    "m.poll.start",
    "m.beacon_info",
];

/// A change to a room, on top of a head that stays as it is until the change is finished.
pub(in crate::room) struct Step<'a> {
    pub(in crate::room) app: &'a App,
    pub(in crate::room) room: &'a Arc<Room>,
    pub(in crate::room) head: &'a mut Head,
    pub(super) names: &'a Names,
    /// The names of what the state is resolved to, beside those of the events that come.
    pub(in crate::room) others: Names,
    pub(in crate::room) change: Change,
    pub(in crate::room) row: HeadRow,
    pub(in crate::room) extremities: Vec<Extremity>,
    /// The state events of this change; `None` for a key that the state has no more.
    pub(super) state: Vec<(Key, Option<Arc<Event>>)>,
    pub(super) threads: HashMap<EventNid, ThreadCount>,
    markers: HashMap<(UserNid, i64), ReadMarker>,
    pub(super) highlights: HashMap<UserNid, i64>,
    pub(super) servers: HashMap<OwnedServerName, ServerCount>,
    /// Local members who may not see the event that comes.
    pub(in crate::room) blind: HashSet<UserNid>,
    last: Option<Position>,
    pub(in crate::room) past: Past,
    /// The events of this change.
    pub(super) arrived: Vec<Arc<Event>>,
}

/// What is known of an event that comes into a room, beside the event.
#[derive(Clone, Debug)]
pub(in crate::room) struct Placed {
    /// The event.
    pub(in crate::room) nid: EventNid,
    /// Whether it is stored already, as an outlier.
    pub(in crate::room) is_stored: bool,
    /// Who sent it.
    pub(in crate::room) sender: UserNid,
    /// Under which transaction id, if it was a local device.
    pub(in crate::room) txn: Option<(DeviceNid, Arc<str>)>,
    /// The state before it.
    pub(in crate::room) before: StateAt,
    /// The events that allow it.
    pub(in crate::room) auth: Vec<EventNid>,
    /// See [`flags`].
    pub(in crate::room) flags: i64,
    /// The redaction that came before it, if one did that may redact it; then it comes in its redacted form.
    pub(in crate::room) redacted_by: Option<EventNid>,
}

/// What a step leads to.
pub(in crate::room) struct Finished {
    /// The change to hand to the log.
    pub(in crate::room) change: Change,
    /// The events that it brings.
    pub(in crate::room) appended: Vec<Arc<Event>>,
    /// The reading of the room that it was computed from.
    pub(in crate::room) reading: Arc<()>,
}

impl<'a> Step<'a> {
    pub(in crate::room) fn new(
        app: &'a App,
        room: &'a Arc<Room>,
        head: &'a mut Head,
        names: &'a Names,
    ) -> Self {
        let mut row = head.row.clone();
        row.base = row.version;
        row.is_local = false;
        row.is_news = false;
        let extremities = head.extremities.clone();
        Self {
            app,
            room,
            head,
            names,
            others: Names::default(),
            change: Change::new(),
            row,
            extremities,
            state: Vec::new(),
            threads: HashMap::new(),
            markers: HashMap::new(),
            highlights: HashMap::new(),
            servers: HashMap::new(),
            blind: HashSet::new(),
            last: None,
            past: Past::default(),
            arrived: Vec::new(),
        }
    }

    /// The version of the line that is the state at the end of this change so far.
    pub(in crate::room) fn current(&self) -> StateAt {
        StateAt {
            line: self.row.state_line,
            sv: self.row.state_sv,
        }
    }

    /// Adds a local event to the change.
    pub(super) async fn add(&mut self, sender: &Sender, new: NewEvent) -> Result<()> {
        let (pdu, state) = self.build(sender, new).await?;
        self.check_relation(sender.user, &pdu).await?;
        self.check_redaction(&pdu, &state).await?;
        let placed = Placed {
            nid: EventNid(self.app.log.new_id()?),
            is_stored: false,
            sender: sender.user,
            txn: sender.txn.clone(),
            before: self.current(),
            auth: auth_nids(&pdu, &state),
            flags: flags::OURS,
            redacted_by: None,
        };
        self.add_on_top(Arc::new(pdu), placed, &state).await
    }

    /// Adds an event whose state before it is the current one.
    pub(in crate::room) async fn add_on_top(
        &mut self,
        pdu: Arc<Pdu>,
        placed: Placed,
        state: &StateMap,
    ) -> Result<()> {
        let key = key_of(&pdu);
        let replaces = key
            .as_ref()
            .and_then(|key| state.get(key)?.as_ref())
            .map(Arc::clone);
        let (event, at) = self
            .enter(pdu, placed, replaces.as_ref().map(|event| event.nid))
            .await?;
        if let Some(key) = key.clone() {
            self.row.state_sv += 1;
            self.set_state(key, event.key, Some(&event), replaces.as_deref(), at)?;
        }
        self.apply_redaction(&event, state).await?;
        self.follow(&event, self.current());
        self.come(event, key, at);
        Ok(())
    }

    /// Writes an event and counts it; what it does to the state is the caller's part.
    pub(in crate::room) async fn enter(
        &mut self,
        pdu: Arc<Pdu>,
        placed: Placed,
        replaces: Option<EventNid>,
    ) -> Result<(Event, Position)> {
        let at = self.change.position();
        let relation = self.relation(placed.nid, &pdu).await?;
        let mut event = self.event(pdu, &placed)?;
        event.replaces = replaces;
        event.thread = relation.as_ref().and_then(|relation| relation.thread);
        if event.depth() < self.row.max_depth {
            event.flags |= flags::LATE;
        }
        self.count(&mut event, relation.as_ref(), at).await?;
        self.store(&event, &placed, Some(at));
        Ok((event, at))
    }

    /// Writes an event that is older than what is known of the room.
    pub(in crate::room) async fn remember(
        &mut self,
        pdu: Arc<Pdu>,
        placed: &Placed,
    ) -> Result<Event> {
        let relation = self.relation(placed.nid, &pdu).await?;
        let mut event = self.event(pdu, placed)?;
        if let Some(relation) = &relation {
            self.relate(&event, relation);
        }
        if let Some(write) = search::add(&event) {
            self.change.write(write);
        }
        event.thread = relation.and_then(|relation| relation.thread);
        self.store(&event, placed, None);
        Ok(event)
    }

    /// The event as it is kept, before anything is known of what others it has to do with.
    pub(in crate::room) fn event(&self, pdu: Arc<Pdu>, placed: &Placed) -> Result<Event> {
        let event = kept(self.names, self.room.nid, pdu, placed)?;
        Ok(Event {
            unread_idx: self.row.unread_idx,
            ..event
        })
    }

    /// Writes an event.
    pub(in crate::room) fn store(&mut self, event: &Event, placed: &Placed, at: Option<Position>) {
        if placed.is_stored {
            let write = storage::events::promote(event, &placed.auth, at);
            self.change.write(write);
        } else {
            for write in storage::events::add(event, &placed.auth, at) {
                self.change.write(write);
            }
        }
    }

    /// Makes an event the one that the next event follows, in place of those that it follows itself. There are never more
    /// than one event can follow.
    pub(in crate::room) fn follow(&mut self, event: &Event, after: StateAt) {
        self.extremities
            .retain(|extremity| !event.pdu.prev_events.contains(&extremity.id));
        self.extremities.push(Extremity {
            nid: event.nid,
            id: event.pdu.event_id.clone(),
            server: event.pdu.sender.server_name().to_owned(),
            after,
        });
        keep_few(&mut self.extremities, self.app.name());
        self.row.max_depth = self.row.max_depth.max(event.pdu.depth);
    }

    /// Tells memory that an event has come, with its key if it is current state now.
    pub(in crate::room) fn come(&mut self, event: Event, key: Option<Key>, at: Position) {
        self.row.is_local |= event.flags & flags::OURS != 0;
        self.row.is_news |= NEWS.contains(&&*event.pdu.event_type);
        self.last = Some(at);
        self.arrived.push(Arc::new(event.clone()));
        let room = Arc::clone(self.room);
        self.change.effect(Effect::Event {
            room,
            event,
            key,
            at,
        });
    }

    /// Adds what else belongs to the change.
    pub(in crate::room) fn also(&mut self, writes: &[Write], effects: Vec<Effect>) {
        for write in writes {
            self.change.write(write.clone());
        }
        for effect in effects {
            self.change.effect(effect);
        }
    }

    /// The state at the end of this change so far.
    pub(in crate::room) async fn state_at(&self, keys: &[Key]) -> Result<StateMap> {
        let mut found = StateMap::new();
        let mut committed = Vec::new();
        for key in keys {
            let ours = self
                .state
                .iter()
                .rev()
                .find(|(known, _)| known == key)
                .map(|(_, event)| event);
            match ours.or_else(|| self.head.pending.get(key).map(|(event, _)| event)) {
                Some(event) => {
                    found.insert(key.clone(), event.clone());
                }
                None => committed.push(key.clone()),
            }
        }
        if self.row.base > 0 && !committed.is_empty() {
            found.extend(head::current_state(self.app, self.room, &committed).await?);
        }
        Ok(found)
    }

    /// A key of the current state has another event now, or none any more, from the version on that the line has got.
    pub(in crate::room) fn set_state(
        &mut self,
        key: Key,
        nid: Option<storage::KeyNid>,
        event: Option<&Event>,
        before: Option<&Event>,
        at: Position,
    ) -> Result<()> {
        let Some(nid) = nid else {
            return Ok(());
        };
        for write in storage::state::set_current(
            self.room.nid,
            nid,
            event.map(|event| event.nid),
            before.map(|event| event.nid),
            self.current(),
            at,
        ) {
            self.change.write(write);
        }
        if &*key.0 == "m.room.member" {
            self.set_member(&key.1, event, before, at)?;
        }
        self.state
            .push((key, event.map(|event| Arc::new(event.clone()))));
        Ok(())
    }

    pub(super) fn set_marker(&mut self, user: UserNid, thread: i64, marker: ReadMarker) {
        self.markers.insert((user, thread), marker);
        self.change
            .write(receipts::set_marker(user, self.room.nid, thread, marker));
        self.change.effect(Effect::Marker {
            user,
            room: self.room.nid,
            thread,
            marker,
        });
    }

    pub(super) async fn marker(&self, user: UserNid, thread: i64) -> Result<ReadMarker> {
        let key = (user, thread);
        if let Some(marker) = self
            .markers
            .get(&key)
            .or_else(|| self.head.markers.get(&key))
        {
            return Ok(*marker);
        }
        let marker = receipts::marker(&self.app.db, user, self.room.nid, thread).await?;
        Ok(marker.unwrap_or_default())
    }

    /// The event that has come last with this change.
    pub(in crate::room) fn newest(&self) -> Option<&Arc<Event>> {
        self.arrived.last()
    }

    /// The change as the log takes it; the head moves on to where it leads.
    ///
    /// No two changes lead to the same version, also if only one of them can be committed: so nothing is taken to follow
    /// the one that does follow the other.
    pub(in crate::room) fn finish(mut self) -> Result<Finished> {
        self.close_gaps();
        let version = self.app.log.new_id()?;
        self.row.version = version;
        self.row.extremities = self.extremities.iter().map(|one| one.nid).collect();
        if let Some(at) = self.last {
            let (room, row) = (Arc::clone(self.room), self.row.clone());
            let threads = self
                .threads
                .iter()
                .map(|(root, count)| (*root, count.unread_idx))
                .collect();
            self.change.effect(Effect::Head {
                room,
                row,
                at,
                threads,
            });
            self.change.head(Arc::clone(self.room), self.row.clone());
            self.head.row = self.row;
            self.head.extremities = self.extremities;
        }
        let state = self
            .state
            .into_iter()
            .map(|(key, event)| (key, (event, version)));
        self.head.pending.extend(state);
        self.head.threads.extend(self.threads);
        self.head.markers.extend(self.markers);
        self.head.highlights.extend(self.highlights);
        self.head.servers.extend(self.servers);
        Ok(Finished {
            change: self.change,
            appended: self.arrived,
            reading: Arc::clone(&self.head.reading),
        })
    }
}

/// Lets go of extremities that are too many: the oldest one of the server that has most of them, again and again. What a
/// server has sent last mostly rests on all that it sent before; so who makes many branches crowds out their own.
fn keep_few(extremities: &mut Vec<Extremity>, own: &ServerName) {
    while extremities.len() > MAX_PREV_EVENTS {
        let of = |server: &ServerName| {
            extremities
                .iter()
                .filter(|one| one.server == server)
                .count()
        };
        let count = |(index, one): &(usize, &Extremity)| {
            let is_foreign = one.server != own;
            (of(&one.server), is_foreign, Reverse(*index))
        };
        let Some((index, _)) = extremities.iter().enumerate().max_by_key(count) else {
            return;
        };
        extremities.remove(index);
    }
}

/// The key of a state event.
pub(in crate::room) fn key_of(pdu: &Pdu) -> Option<Key> {
    let state_key = pdu.state_key.as_deref()?;
    Some(((&*pdu.event_type).into(), state_key.into()))
}

/// An event as it is kept.
pub(in crate::room) fn kept(
    names: &Names,
    room: RoomNid,
    pdu: Arc<Pdu>,
    placed: &Placed,
) -> Result<Event> {
    let has_url = if has_url(&pdu) { flags::HAS_URL } else { 0 };
    let key = key_of(&pdu);
    Ok(Event {
        nid: placed.nid,
        room,
        pos: None,
        ord: -placed.nid.0,
        type_nid: names.event_type(&pdu.event_type)?,
        key: key.map(|key| names.key(&key)).transpose()?,
        sender: placed.sender,
        flags: placed.flags | has_url,
        state_line: placed.before.line,
        state_sv: placed.before.sv,
        replaces: None,
        redacted_by: placed.redacted_by,
        unread_idx: 0,
        thread: None,
        txn: placed.txn.clone(),
        pdu,
    })
}
