//! What other servers may read of a room: what any of their users might ("Room history visibility").

use std::{collections::HashMap, sync::Arc};

use homing_federation::redact;
use http::StatusCode;
use ruma::{RoomId, ServerName, UserId, events::room::history_visibility::HistoryVisibility};
use serde_json::value::RawValue;

use super::{
    erasure, head, server_acl,
    visibility::{
        Step, Steps, VISIBILITY, allowed, is_shared, is_state, membership_of, value_before,
        visibility_of, was_always_shared,
    },
};
use crate::{
    app::App,
    error::{Error, Result},
    names::Key,
    rooms::Room,
    storage::{
        self, Event, KeyNid, Membership,
        events::flags,
        members,
        state::{RoomChange, StateAt},
        timeline::Place,
    },
};

/// What another server may see of a room.
#[derive(Debug)]
pub struct ServerSight {
    /// Whether one of its users has joined now.
    pub joined: bool,
    /// `None`: it may see everything.
    history: Option<History>,
}

/// How visibility, and what the server's users were to the room, stood in all of its history.
#[derive(Debug, Default)]
struct History {
    parents: HashMap<i64, StateAt>,
    visibility: Steps<HistoryVisibility>,
    members: HashMap<KeyNid, Steps<Membership>>,
    /// The last event with which one of its users joined.
    last_join: Option<Place>,
}

/// A room that another server wants to read, and what it may see of it.
///
/// # Errors
/// `M_FORBIDDEN` if that is nothing, because of its access control list or of its history visibility, as for a room that is not known here: who may not read a room does not learn
/// whether it exists.
pub async fn readable(
    app: &App,
    room: &RoomId,
    server: &ServerName,
) -> Result<(Arc<Room>, ServerSight)> {
    let forbidden = || Error::forbidden(format!("{server} may not read this room"));
    let room = match app.room(room).await {
        Err(error) if error.has_status(StatusCode::NOT_FOUND) => return Err(forbidden()),
        room => room?,
    };
    if !server_acl::is_allowed(app, &room, server).await? {
        return Err(forbidden());
    }
    let sight = ServerSight::of(app, &room, server).await?;
    if sight.is_blind() {
        return Err(forbidden());
    }
    Ok((room, sight))
}

/// Whether a server has users who have joined a room now.
#[must_use]
pub fn is_joined(room: &Room, server: &ServerName) -> bool {
    let seen = room.seen();
    let there = seen.servers.get(server);
    there.is_some_and(|there| there.joined > 0)
}

impl ServerSight {
    /// What a server may see of a room. For one that is in a room whose history was always shared it needs no query
    /// once the room's state is in memory.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn of(app: &App, room: &Room, server: &ServerName) -> Result<Self> {
        let joined = is_joined(room, server);
        let key: Key = (VISIBILITY.into(), "".into());
        let state = head::current_state(app, room, std::slice::from_ref(&key)).await?;
        let now = state.get(&key).and_then(Option::as_ref);
        if joined && was_always_shared(now.map(|event| &**event)) {
            let history = None;
            return Ok(Self { joined, history });
        }
        let mut history = History {
            parents: storage::state::lines(&app.db, room.nid).await?,
            ..History::default()
        };
        let nids = app.names.find_keys(&app.db, &[key]).await?;
        let nids: Vec<KeyNid> = nids.into_values().collect();
        let changes = storage::state::room_history(&app.db, room.rules, room.nid, &nids).await?;
        for change in changes {
            let (line, step) = step(change, visibility_of);
            history.visibility.entry(line).or_default().push(step);
        }
        let mut values = history.visibility.values().flatten();
        let was_shared = values.all(|step| step.value.as_ref().is_none_or(is_shared));
        if joined && was_shared {
            let history = None;
            return Ok(Self { joined, history });
        }
        history.learn_members(app, room, server).await?;
        let history = Some(history);
        Ok(Self { joined, history })
    }

    /// Whether the server may see nothing at all.
    fn is_blind(&self) -> bool {
        let Some(history) = &self.history else {
            return !self.joined;
        };
        let mut shown = history.visibility.values().flatten();
        !self.joined
            && history.members.is_empty()
            && !shown.any(|step| step.value == Some(HistoryVisibility::WorldReadable))
    }

    /// Whether the server may see an event as it is. What is not part of the history that this server knows is seen by
    /// those that are in the room, because events that they see may rest on it.
    #[must_use]
    pub fn sees(&self, event: &Event) -> bool {
        if event.flags & flags::REJECTED != 0 {
            return false;
        }
        match &self.history {
            _ if event.flags & flags::OUTLIER != 0 => self.joined,
            Some(history) => history.allows(event, self.joined),
            None => self.joined,
        }
    }
}

impl History {
    async fn learn_members(&mut self, app: &App, room: &Room, server: &ServerName) -> Result<()> {
        let users = members::of_server(&app.db, room.nid, server.as_str()).await?;
        let is_theirs = |id: &str| {
            let id = <&UserId>::try_from(id);
            id.is_ok_and(|id| id.server_name() == server)
        };
        let nids: Vec<KeyNid> = users
            .into_iter()
            .filter(|(id, _)| is_theirs(id))
            .map(|(_, key)| key)
            .collect();
        let changes = storage::state::room_history(&app.db, room.rules, room.nid, &nids).await?;
        for change in changes {
            let key = change.key;
            let (line, step) = step(change, membership_of);
            if step.value == Some(Membership::Join) {
                let place = step.event.as_deref().map(Place::after);
                self.last_join = self.last_join.max(place);
            }
            let lines = self.members.entry(key).or_default();
            lines.entry(line).or_default().push(step);
        }
        Ok(())
    }

    fn allows(&self, event: &Event, joined: bool) -> bool {
        let before = value_before(&self.parents, &self.visibility, event)
            .unwrap_or(HistoryVisibility::Shared);
        let membership = self.membership_before(event);
        let later = joined || self.last_join > Some(Place::after(event));
        if allowed(&before, membership, later) {
            return true;
        }
        if event.key.is_some_and(|key| self.members.contains_key(&key)) {
            return allowed(&before, membership_of(event), later);
        }
        is_state(event, VISIBILITY)
            && event.pdu.state_key.as_deref() == Some("")
            && allowed(&visibility_of(event), membership, later)
    }

    /// The most that one of the server's users was to the room.
    fn membership_before(&self, event: &Event) -> Membership {
        let mut most = Membership::Leave;
        for steps in self.members.values() {
            match value_before(&self.parents, steps, event) {
                Some(Membership::Join) => return Membership::Join,
                Some(Membership::Invite) => most = Membership::Invite,
                _ => {}
            }
        }
        most
    }
}

fn step<T>(change: RoomChange, value: impl Fn(&Event) -> T) -> (i64, Step<T>) {
    let event = change.event.map(Arc::new);
    let step = Step {
        sv: change.at.sv,
        value: event.as_deref().map(value),
        event,
    };
    (change.at.line, step)
}

/// An event as another server gets it: as it is, or redacted if the server is in the room and may not see it, or it was
/// sent by somebody who had themselves erased, and what it says does not hold. `None` if the server gets nothing of it.
///
/// # Errors
/// If the database fails, or the event cannot be redacted.
pub async fn show(
    app: &App,
    room: &Room,
    sight: &ServerSight,
    event: &Event,
) -> Result<Option<Box<RawValue>>> {
    let is_erased = app.erased.contains(event.sender) && !erasure::holds(app, room, event).await?;
    let json = if sight.sees(event) && !is_erased {
        event.pdu.json.to_string()
    } else if sight.joined && event.flags & flags::REJECTED == 0 {
        let redacted = redact(&event.pdu, room.rules).map_err(Error::internal)?;
        redacted.json.to_string()
    } else {
        return Ok(None);
    };
    RawValue::from_string(json)
        .map(Some)
        .map_err(Error::internal)
}
