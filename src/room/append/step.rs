//! One change to a room, while it is being computed.

use std::{collections::HashMap, sync::Arc};

use homing_federation::{auth, draft::Draft, event::Pdu};
use ruma::{
    OwnedEventId, OwnedServerName, UserId,
    events::{StateEventType, TimelineEventType, room::member::MembershipState},
};
use serde::Deserialize;

use super::{
    Appended, NewEvent, Sender,
    counts::{auth_nids, has_url},
    names::Names,
};
use crate::{
    app::App,
    bus::Effect,
    error::{Error, Result},
    log::Change,
    names::Key,
    room::head::{self, StateMap},
    rooms::{Head, Room, ServerCount},
    storage::{
        self, Event, EventNid, Member, Membership, Position, ReadMarker, UserNid, Write,
        events::flags, highlights, members, receipts, rooms::HeadRow, state::StateAt,
        threads::ThreadCount,
    },
};

/// The most events that an event may follow directly.
const PREV_EVENTS: usize = 10;

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
pub(super) struct Step<'a> {
    pub(super) app: &'a App,
    pub(super) room: &'a Arc<Room>,
    pub(super) head: &'a mut Head,
    pub(super) sender: &'a Sender,
    pub(super) names: &'a Names,
    pub(super) change: Change,
    pub(super) row: HeadRow,
    extremity_ids: Vec<OwnedEventId>,
    pub(super) state: Vec<(Key, Arc<Event>)>,
    pub(super) threads: HashMap<EventNid, ThreadCount>,
    markers: HashMap<(UserNid, i64), ReadMarker>,
    pub(super) highlights: HashMap<UserNid, i64>,
    pub(super) servers: HashMap<OwnedServerName, ServerCount>,
    last: Option<Position>,
    appended: Vec<Appended>,
}

/// The fields of a member event that have columns of their own.
#[derive(Debug, Deserialize)]
struct MemberContent {
    membership: MembershipState,
    #[serde(default)]
    displayname: Option<String>,
    #[serde(default)]
    avatar_url: Option<String>,
}

/// PostgreSQL has no NUL in a text.
fn storable(text: String) -> String {
    if text.contains('\0') {
        text.replace('\0', "")
    } else {
        text
    }
}

impl<'a> Step<'a> {
    pub(super) fn new(
        app: &'a App,
        room: &'a Arc<Room>,
        head: &'a mut Head,
        sender: &'a Sender,
        names: &'a Names,
    ) -> Self {
        let mut row = head.row.clone();
        row.base = row.version;
        row.version += 1;
        row.is_local = true;
        row.is_news = false;
        let extremity_ids = head.extremity_ids.clone();
        Self {
            app,
            room,
            head,
            sender,
            names,
            change: Change::new(),
            row,
            extremity_ids,
            state: Vec::new(),
            threads: HashMap::new(),
            markers: HashMap::new(),
            highlights: HashMap::new(),
            servers: HashMap::new(),
            last: None,
            appended: Vec::new(),
        }
    }

    /// Adds what else belongs to the change.
    pub(super) fn also(&mut self, writes: &[Write], effects: Vec<Effect>) {
        for write in writes {
            self.change.write(write.clone());
        }
        for effect in effects {
            self.change.effect(effect);
        }
    }

    /// Adds an event to the change.
    pub(super) async fn add(&mut self, new: NewEvent) -> Result<()> {
        let (pdu, state) = self.build(new).await?;
        let at = self.change.position();
        let nid = EventNid(self.app.log.new_id()?);
        let key: Option<Key> = pdu
            .state_key
            .as_deref()
            .map(|key| ((&*pdu.event_type).into(), key.into()));
        let relation = self.relation(&pdu).await?;
        let mut event = Event {
            nid,
            room: self.room.nid,
            pos: None,
            ord: 0,
            type_nid: self.names.event_type(&pdu.event_type)?,
            key: key.as_ref().map(|key| self.names.key(key)).transpose()?,
            sender: self.sender.user,
            flags: flags::OURS | if has_url(&pdu) { flags::HAS_URL } else { 0 },
            state_line: self.row.state_line,
            state_sv: self.row.state_sv,
            replaces: key
                .as_ref()
                .and_then(|key| state.get(key)?.as_ref())
                .map(|event| event.nid),
            redacted_by: None,
            unread_idx: self.row.unread_idx,
            thread: relation.as_ref().and_then(|relation| relation.thread),
            txn: self.sender.txn.clone(),
            pdu: Arc::new(pdu),
        };
        self.count(&mut event, relation.as_ref(), at).await?;
        let auth = auth_nids(&event.pdu, &state);
        for write in storage::events::add(&event, &auth, at) {
            self.change.write(write);
        }
        if let Some(key) = key.clone() {
            self.set_state(key, &event, &state, at)?;
        }
        if event.pdu.redacts.is_some() {
            self.redact(&event, &state).await?;
        }
        self.row.max_depth = event.pdu.depth;
        self.row.extremities = vec![nid];
        self.row.is_news |= NEWS.contains(&&*event.pdu.event_type);
        self.extremity_ids = vec![event.pdu.event_id.clone()];
        self.last = Some(at);
        self.appended.push(Appended {
            nid,
            event_id: event.pdu.event_id.clone(),
        });
        let room = Arc::clone(self.room);
        self.change.effect(Effect::Event {
            room,
            event,
            key,
            at,
        });
        Ok(())
    }

    /// Makes the event on top of the head, if the rules allow it. Answers it with the state that it was judged by.
    pub(super) async fn build(&self, new: NewEvent) -> Result<(Pdu, StateMap)> {
        let rules = self.room.rules;
        let is_create = new.event_type == "m.room.create" && new.state_key.is_some();
        if new.event_type == "m.room.create" && !(is_create && self.extremity_ids.is_empty()) {
            return Err(Error::forbidden("a room has one create event, its first"));
        }
        if new.event_type == "m.room.member" && new.state_key.is_none() {
            return Err(Error::forbidden("a membership is a state"));
        }
        let makes_id = is_create && rules.authorization.room_create_event_id_as_room_id;
        let first = self.extremity_ids.len().saturating_sub(PREV_EVENTS);
        let mut draft = Draft {
            room_id: (!makes_id).then(|| self.room.id.clone()),
            sender: self.sender.id.clone(),
            event_type: new.event_type,
            state_key: new.state_key,
            content: new.content,
            redacts: new.redacts,
            origin_server_ts: new.ts.unwrap_or_else(|| self.app.clock.timestamp()),
            prev_events: self.extremity_ids[first..].to_vec(),
            auth_events: Vec::new(),
            depth: self.row.max_depth + 1,
        };
        let types = draft.auth_types(rules)?;
        let mut keys: Vec<Key> = types
            .iter()
            .map(|(kind, state_key)| head::key(kind, state_key))
            .collect();
        let needed = keys.len();
        keys.push(head::key(&StateEventType::RoomCreate, ""));
        if let Some(state_key) = &draft.state_key {
            keys.push((draft.event_type.as_str().into(), state_key.as_str().into()));
        }
        let state = self.state_at(&keys).await?;
        draft.auth_events = keys[..needed]
            .iter()
            .filter_map(|key| state.get(key)?.as_ref())
            .map(|event| event.pdu.event_id.clone())
            .collect();
        let pdu = draft.sign(rules, self.app.name(), &self.app.signing_key)?;
        let fetch = |kind: &StateEventType, state_key: &str| {
            state
                .get(&head::key(kind, state_key))?
                .as_ref()
                .map(|event| Arc::clone(&event.pdu))
        };
        auth::authorize(rules, &pdu, fetch)
            .map_err(|rejection| Error::forbidden(rejection.to_string()))?;
        Ok((pdu, state))
    }

    /// The state at the end of this change so far.
    async fn state_at(&self, keys: &[Key]) -> Result<StateMap> {
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
                    found.insert(key.clone(), Some(Arc::clone(event)));
                }
                None => committed.push(key.clone()),
            }
        }
        if self.row.base > 0 && !committed.is_empty() {
            found.extend(head::current_state(self.app, self.room, &committed).await?);
        }
        Ok(found)
    }

    fn set_state(&mut self, key: Key, event: &Event, state: &StateMap, at: Position) -> Result<()> {
        let Some(key_nid) = event.key else {
            return Ok(());
        };
        self.row.state_sv += 1;
        let version = StateAt {
            line: self.row.state_line,
            sv: self.row.state_sv,
        };
        for write in storage::state::set_current(
            self.room.nid,
            key_nid,
            event.nid,
            event.replaces,
            version,
            at,
        ) {
            self.change.write(write);
        }
        if event.pdu.kind == TimelineEventType::RoomMember {
            let before = state.get(&key).and_then(Option::as_ref);
            self.set_member(event, before.map(|event| &*event.pdu), at)?;
        }
        self.state.push((key, Arc::new(event.clone())));
        Ok(())
    }

    fn set_member(&mut self, event: &Event, before: Option<&Pdu>, at: Position) -> Result<()> {
        let content: MemberContent = event
            .pdu
            .content_as()
            .map_err(|error| Error::bad_json(error.to_string()))?;
        let user_id = UserId::parse(event.pdu.state_key.as_deref().unwrap_or_default())
            .map_err(|_| Error::invalid_param("the state key of a member event is a user id"))?;
        let before = before.and_then(|pdu| pdu.content_as::<MemberContent>().ok());
        let before = before.map(|content| Membership::from_state(&content.membership));
        let member = Member {
            room: self.room.nid,
            user: self.names.member(&user_id)?,
            membership: Membership::from_state(&content.membership),
            event: event.nid,
            sender: event.sender,
            pos: 0,
            is_local: self.app.is_local(&user_id),
            display_name: content.displayname.map(storable),
            avatar_url: content.avatar_url.map(storable),
            forgotten: false,
        };
        let delta =
            |which| i64::from(member.membership == which) - i64::from(before == Some(which));
        self.row.joined_count += delta(Membership::Join);
        self.row.invited_count += delta(Membership::Invite);
        if member.is_local && delta(Membership::Join) > 0 {
            // Nothing that was said before somebody came is unread to them.
            let marker = ReadMarker {
                pos: self.app.head(),
                idx: self.row.unread_idx,
                own: 0,
            };
            self.set_marker(member.user, 0, marker);
            self.set_marker(member.user, receipts::EVERYTHING, marker);
        }
        if member.is_local && (delta(Membership::Invite) < 0 || delta(Membership::Join) != 0) {
            // The invite that is answered now was a notification; and to who has left, nothing is unread.
            let write = highlights::clear(member.user, member.room);
            self.change.write(write);
            self.highlights.insert(member.user, 0);
        }
        if !member.is_local {
            self.count_server(user_id.server_name(), before, member.membership, at)?;
        }
        self.change.write(members::set(&member, at));
        let room = Arc::clone(self.room);
        self.change.effect(Effect::Member { room, member, at });
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

    /// The change, the events that it brings, and the version of the room that it leads to.
    pub(super) fn finish(mut self) -> (Change, Vec<Appended>, i64) {
        let version = self.row.version;
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
        }
        self.change.head(Arc::clone(self.room), self.row.clone());
        self.head.row = self.row;
        self.head.extremity_ids = self.extremity_ids;
        let state = self
            .state
            .into_iter()
            .map(|(key, event)| (key, (event, version)));
        self.head.pending.extend(state);
        self.head.threads.extend(self.threads);
        self.head.markers.extend(self.markers);
        self.head.highlights.extend(self.highlights);
        self.head.servers.extend(self.servers);
        (self.change, self.appended, version)
    }
}
