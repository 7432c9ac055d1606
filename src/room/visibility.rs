//! Who may read what of a room ("Room history visibility"). Every read path asks here.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use http::StatusCode;
use ruma::{
    OwnedUserId, RoomId, UserId,
    events::room::{history_visibility::HistoryVisibility, member::MembershipState},
};
use serde::Deserialize;

use crate::{
    app::App,
    auth::Requester,
    error::{Error, Result},
    names::Key,
    preferences,
    rooms::Room,
    storage::{
        self, DeviceNid, Event, KeyNid, Membership, Pos, UserNid, events::flags, state::StateAt,
    },
};

/// Who reads.
#[derive(Clone, Debug)]
pub struct Viewer {
    /// The user.
    pub user: UserNid,
    /// The user's id.
    pub user_id: OwnedUserId,
    /// The device, which is told its own transaction ids.
    pub device: Option<DeviceNid>,
    /// Users of whom the viewer wants to read nothing.
    pub ignored: Arc<HashSet<UserNid>>,
}

impl Viewer {
    /// The requester, with the users whom they ignore.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn of(app: &App, requester: &Requester) -> Result<Self> {
        Ok(Self {
            user: requester.user,
            user_id: requester.user_id.clone(),
            device: Some(requester.device),
            ignored: Arc::clone(&preferences::get(app, requester.user).await?.ignored),
        })
    }
}

/// What a viewer may see of a room, and what the viewer was to the room at each event.
#[derive(Debug)]
pub struct Sight<'a> {
    /// The viewer.
    pub viewer: &'a Viewer,
    /// Whether the viewer has joined now.
    pub joined: bool,
    /// The viewer's member event.
    member: Option<Arc<Event>>,
    /// `None`: the viewer may see everything.
    history: Option<History>,
    restricted: bool,
    /// The viewer is known to have been in the room from here on.
    in_since: Option<Pos>,
}

impl<'a> Sight<'a> {
    /// What a viewer may see. For those who have joined a room whose history was always shared it needs no query once
    /// the room's state is in memory; it then may not know what they were to the room at events before they joined.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn quick(app: &App, room: &Room, viewer: &'a Viewer) -> Result<Self> {
        let keys = keys(&viewer.user_id);
        let state = current(app, room, &keys).await?;
        let [visibility, member] = state;
        let joined = room.seen().local.contains_key(&viewer.user);
        let restricted = !(joined && was_always_shared(visibility.as_deref()));
        let history = if restricted {
            Some(History::load(app, room, &keys).await?)
        } else {
            None
        };
        Ok(Self {
            viewer,
            joined,
            member,
            history,
            restricted,
            in_since: None,
        })
    }

    /// What a viewer may see who has been in the room since a position, of what has happened since then.
    #[must_use]
    pub fn joined_since(viewer: &'a Viewer, pos: Pos) -> Self {
        Self {
            viewer,
            joined: true,
            member: None,
            history: None,
            restricted: false,
            in_since: Some(pos),
        }
    }

    /// The same, knowing what the viewer was to the room at each of `events`.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn load(
        app: &App,
        room: &Room,
        viewer: &'a Viewer,
        events: &[Arc<Event>],
    ) -> Result<Self> {
        let mut sight = Self::quick(app, room, viewer).await?;
        if sight.history.is_none() && events.iter().any(|event| sight.membership(event).is_none()) {
            sight.history = Some(History::load(app, room, &keys(&viewer.user_id)).await?);
        }
        Ok(sight)
    }

    /// Whether there may be events that the viewer must not see.
    #[must_use]
    pub fn is_restricted(&self) -> bool {
        self.restricted
    }

    /// Whether the viewer may see an event, and wants to.
    #[must_use]
    pub fn sees(&self, event: &Event) -> bool {
        !self.ignores(event) && self.may_see(event)
    }

    /// Whether the viewer wants to see nothing of who sent the event. State is not ignored.
    #[must_use]
    pub fn ignores(&self, event: &Event) -> bool {
        event.key.is_none() && self.viewer.ignored.contains(&event.sender)
    }

    /// Whether the viewer may see an event, wanted or not.
    #[must_use]
    pub fn may_see(&self, event: &Event) -> bool {
        event.flags & flags::HIDDEN == 0
            && (!self.restricted
                || self
                    .history
                    .as_ref()
                    .is_none_or(|history| history.allows(event, self.viewer, self.joined)))
    }

    /// Whether the viewer may see what a state event they see took the place of. Of what they are to the room they were told
    /// themselves, also where that is not in the room's history here: the invite of another server.
    #[must_use]
    pub fn sees_replaced(&self, event: &Event) -> bool {
        let is_outlier = event.flags & flags::HIDDEN == flags::OUTLIER;
        let is_own = &*event.pdu.event_type == "m.room.member"
            && event.pdu.state_key.as_deref() == Some(self.viewer.user_id.as_str());
        self.sees(event) || (is_outlier && is_own)
    }

    /// What the viewer was to the room at an event, after its own effect ("unsigned.membership"); `None` if that would
    /// take a query to know.
    #[must_use]
    pub fn membership(&self, event: &Event) -> Option<Membership> {
        if let Some(since) = self.in_since {
            return event
                .pos
                .is_some_and(|pos| pos >= since)
                .then_some(Membership::Join);
        }
        if let Some(history) = &self.history {
            return Some(history.membership_after(event, self.viewer));
        }
        let Some(member) = &self.member else {
            return Some(Membership::Leave);
        };
        if event.nid == member.nid {
            return Some(membership_of(event));
        }
        if event.state_line != member.state_line || member.flags & flags::FORKED != 0 {
            return None;
        }
        if event.state_sv > member.state_sv {
            return Some(membership_of(member));
        }
        member.replaces.is_none().then_some(Membership::Leave)
    }
}

/// Whether somebody may see all of `events` for sure who has joined and not left since: because the room has always shown
/// its history to members, or because the events follow the join on the room's main line. `now` is what the room says of its
/// visibility and of them, `since` the position from which on they have been what they are.
#[must_use]
pub fn sees_all(
    room: &Room,
    [visibility, member]: [Option<&Event>; 2],
    since: Pos,
    events: &[Arc<Event>],
) -> bool {
    if was_always_shared(visibility) {
        return true;
    }
    let line = room.seen().state_line;
    let is_on_top = |join: &&Event| {
        join.pos == Some(since) && join.state_line == line && join.flags & flags::FORKED == 0
    };
    member.filter(is_on_top).is_some_and(|join| {
        events.iter().all(|event| {
            let is_later = event.state_line == line && event.state_sv > join.state_sv;
            is_later || event.nid == join.nid
        })
    })
}

/// Those of `events` that a viewer may see and wants to.
///
/// # Errors
/// If the database fails.
pub async fn can_see(
    app: &App,
    room: &Room,
    viewer: &Viewer,
    events: Vec<Arc<Event>>,
) -> Result<Vec<Arc<Event>>> {
    let sight = Sight::quick(app, room, viewer).await?;
    Ok(events
        .into_iter()
        .filter(|event| sight.sees(event))
        .collect())
}

/// Which state of a room somebody may read.
#[derive(Clone, Debug)]
pub enum Access {
    /// The current one.
    Now,
    /// The one when they left.
    Left {
        /// The state before they left.
        state: StateAt,
        /// The event with which they left, which is part of what they see.
        leave: Arc<Event>,
    },
}

/// Which state of a room a viewer may read: the current one when joined or if the room is world-readable, and the one
/// when they left, unless they have forgotten the room.
///
/// # Errors
/// `M_FORBIDDEN` for all others.
pub async fn ensure_can_read_state(app: &App, room: &Room, viewer: &Viewer) -> Result<Access> {
    if room.seen().local.contains_key(&viewer.user) {
        return Ok(Access::Now);
    }
    let keys = keys(&viewer.user_id);
    let member = storage::members::get(&app.db, room.nid, viewer.user).await?;
    let was_there = member.is_some_and(|member| {
        matches!(member.membership, Membership::Leave | Membership::Ban) && !member.forgotten
    });
    if was_there && let Some(access) = History::load(app, room, &keys).await?.left() {
        return Ok(access);
    }
    let [visibility, _] = current(app, room, &keys).await?;
    if visibility.is_some_and(|event| visibility_of(&event) == HistoryVisibility::WorldReadable) {
        return Ok(Access::Now);
    }
    Err(Error::forbidden("you are not in this room"))
}

/// Whether the viewer has forgotten the room, and it is not one that anybody may read.
///
/// # Errors
/// If the database fails.
pub async fn has_forgotten(app: &App, room: &Room, viewer: &Viewer) -> Result<bool> {
    if room.seen().local.contains_key(&viewer.user) {
        return Ok(false);
    }
    let member = storage::members::get(&app.db, room.nid, viewer.user).await?;
    Ok(member.is_some_and(|member| member.forgotten) && !is_world_readable(app, room).await?)
}

/// The room with this id and what the viewer may read of it.
///
/// # Errors
/// `M_FORBIDDEN` as [`ensure_can_read_state`], and for a room that this server does not know: who may not read a room
/// does not learn whether it exists.
pub async fn readable(app: &App, room: &RoomId, viewer: &Viewer) -> Result<(Arc<Room>, Access)> {
    let room = match app.room(room).await {
        Err(error) if error.has_status(StatusCode::NOT_FOUND) => {
            return Err(Error::forbidden("you are not in this room"));
        }
        room => room?,
    };
    let access = ensure_can_read_state(app, &room, viewer).await?;
    Ok((room, access))
}

/// Whether the room shows everything to everyone.
///
/// # Errors
/// If the database fails.
pub async fn is_world_readable(app: &App, room: &Room) -> Result<bool> {
    let key: Key = (VISIBILITY.into(), "".into());
    let state = super::head::current_state(app, room, std::slice::from_ref(&key)).await?;
    Ok(state
        .get(&key)
        .and_then(Option::as_ref)
        .is_some_and(|event| visibility_of(event) == HistoryVisibility::WorldReadable))
}

pub(in crate::room) const VISIBILITY: &str = "m.room.history_visibility";
const MEMBER: &str = "m.room.member";

fn keys(user: &UserId) -> [Key; 2] {
    [
        (VISIBILITY.into(), "".into()),
        (MEMBER.into(), user.as_str().into()),
    ]
}

async fn current(app: &App, room: &Room, keys: &[Key; 2]) -> Result<[Option<Arc<Event>>; 2]> {
    let mut state = super::head::current_state(app, room, keys).await?;
    Ok([
        state.remove(&keys[0]).flatten(),
        state.remove(&keys[1]).flatten(),
    ])
}

/// How the two keys that decide stood in all of a room's history.
#[derive(Debug)]
struct History {
    parents: HashMap<i64, StateAt>,
    visibility: Steps<HistoryVisibility>,
    membership: Steps<Membership>,
}

/// From this version of a line on, a key had this value.
#[derive(Debug)]
pub(super) struct Step<T> {
    pub sv: i64,
    /// `None`: the key was not set.
    pub value: Option<T>,
    pub event: Option<Arc<Event>>,
}

/// How a key stood in each line of a room.
pub(super) type Steps<T> = HashMap<i64, Vec<Step<T>>>;

/// What a key had in the state before an event, by how it stood in all lines and what these go on from.
pub(super) fn value_before<T: Clone>(
    parents: &HashMap<i64, StateAt>,
    steps: &Steps<T>,
    event: &Event,
) -> Option<T> {
    let mut at = StateAt {
        line: event.state_line,
        sv: event.state_sv,
    };
    // Lines nest a few times at most; the bound is against a loop in broken data.
    for _ in 0..=parents.len() {
        let step = steps
            .get(&at.line)
            .and_then(|steps| steps.iter().rev().find(|step| step.sv <= at.sv));
        if let Some(step) = step {
            return step.value.clone();
        }
        at = *parents.get(&at.line)?;
    }
    None
}

impl History {
    async fn load(app: &App, room: &Room, keys: &[Key; 2]) -> Result<Self> {
        let nids = app.names.find_keys(&app.db, keys).await?;
        let (visibility_key, member_key) = (nids.get(&keys[0]), nids.get(&keys[1]));
        let wanted: Vec<KeyNid> = nids.values().copied().collect();
        let mut history = Self {
            parents: storage::state::lines(&app.db, room.nid).await?,
            visibility: HashMap::new(),
            membership: HashMap::new(),
        };
        for change in storage::state::room_history(&app.db, room.rules, room.nid, &wanted).await? {
            let (line, sv) = (change.at.line, change.at.sv);
            let event = change.event.map(Arc::new);
            if Some(&change.key) == visibility_key {
                let value = event.as_deref().map(visibility_of);
                let step = Step { sv, value, event };
                history.visibility.entry(line).or_default().push(step);
            } else if Some(&change.key) == member_key {
                let value = event.as_deref().map(membership_of);
                let step = Step { sv, value, event };
                history.membership.entry(line).or_default().push(step);
            }
        }
        Ok(history)
    }

    fn visibility_before(&self, event: &Event) -> HistoryVisibility {
        value_before(&self.parents, &self.visibility, event).unwrap_or(HistoryVisibility::Shared)
    }

    fn membership_before(&self, event: &Event) -> Membership {
        value_before(&self.parents, &self.membership, event).unwrap_or(Membership::Leave)
    }

    fn membership_after(&self, event: &Event, viewer: &Viewer) -> Membership {
        if is_member_event_of(event, viewer) {
            membership_of(event)
        } else {
            self.membership_before(event)
        }
    }

    fn joined_after(&self, event: &Event) -> bool {
        let place = (event.depth(), event.ord);
        self.membership.values().flatten().any(|step| {
            step.value == Some(Membership::Join)
                && step
                    .event
                    .as_ref()
                    .is_some_and(|join| (join.depth(), join.ord) > place)
        })
    }

    fn allows(&self, event: &Event, viewer: &Viewer, joined: bool) -> bool {
        let before = self.visibility_before(event);
        let membership = self.membership_before(event);
        let later = joined || self.joined_after(event);
        if allowed(&before, membership, later) {
            return true;
        }
        if is_member_event_of(event, viewer) {
            return allowed(&before, membership_of(event), later);
        }
        is_state(event, VISIBILITY)
            && event.pdu.state_key.as_deref() == Some("")
            && allowed(&visibility_of(event), membership, later)
    }

    /// What somebody who is not in the room any more may read, if they ever were.
    fn left(&self) -> Option<Access> {
        let mut steps: Vec<_> = self
            .membership
            .values()
            .flatten()
            .filter_map(|step| Some((step.value?, step.event.as_ref()?)))
            .collect();
        steps.sort_by_key(|(_, event)| (event.depth(), event.ord));
        let last_join = steps
            .iter()
            .rposition(|(membership, _)| *membership == Membership::Join)?;
        let (_, leave) = steps.get(last_join + 1)?;
        Some(Access::Left {
            state: StateAt {
                line: leave.state_line,
                sv: leave.state_sv,
            },
            leave: Arc::clone(leave),
        })
    }
}

/// The rules of "Room history visibility", for one visibility and one membership.
pub(in crate::room) fn allowed(
    visibility: &HistoryVisibility,
    membership: Membership,
    joined_later: bool,
) -> bool {
    match (visibility, membership) {
        (HistoryVisibility::WorldReadable, _)
        | (_, Membership::Join)
        | (HistoryVisibility::Invited, Membership::Invite) => true,
        (HistoryVisibility::Invited | HistoryVisibility::Joined, _) => false,
        // What is not understood is `shared`.
        _ => joined_later,
    }
}

pub(super) fn is_state(event: &Event, event_type: &str) -> bool {
    event.key.is_some() && *event.pdu.event_type == *event_type
}

fn is_member_event_of(event: &Event, viewer: &Viewer) -> bool {
    is_state(event, MEMBER) && event.pdu.state_key.as_deref() == Some(viewer.user_id.as_str())
}

/// Whether those who have joined may read everything.
pub(in crate::room) fn is_shared(visibility: &HistoryVisibility) -> bool {
    !matches!(
        visibility,
        HistoryVisibility::Invited | HistoryVisibility::Joined
    )
}

/// Whether those who have joined may read everything because that never was otherwise, as far as the event tells that says
/// so now. A room without one may have had another.
pub(super) fn was_always_shared(now: Option<&Event>) -> bool {
    now.is_some_and(|event| {
        event.replaces.is_none()
            && event.flags & flags::TOOK_OVER == 0
            && is_shared(&visibility_of(event))
    })
}

pub(in crate::room) fn visibility_of(event: &Event) -> HistoryVisibility {
    #[derive(Deserialize)]
    struct Content {
        history_visibility: HistoryVisibility,
    }
    event
        .pdu
        .content_as::<Content>()
        .map_or(HistoryVisibility::Shared, |content| {
            content.history_visibility
        })
}

pub(in crate::room) fn membership_of(event: &Event) -> Membership {
    #[derive(Deserialize)]
    struct Content {
        membership: MembershipState,
    }
    event
        .pdu
        .content_as::<Content>()
        .map_or(Membership::Leave, |content| {
            Membership::from_state(&content.membership)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_of_the_specification() {
        use HistoryVisibility::{Invited, Joined, Shared, WorldReadable};
        use Membership::{Ban, Invite, Join, Knock, Leave};
        let table = [
            (WorldReadable, [true; 5], [true; 5]),
            (Shared, [true, false, false, false, false], [true; 5]),
            (
                Invited,
                [true, true, false, false, false],
                [true, true, false, false, false],
            ),
            (
                Joined,
                [true, false, false, false, false],
                [true, false, false, false, false],
            ),
            (
                "chat.homing.unknown".into(),
                [true, false, false, false, false],
                [true; 5],
            ),
        ];
        for (visibility, never_later, later) in table {
            for (index, membership) in [Join, Invite, Knock, Leave, Ban].into_iter().enumerate() {
                let what = format!("{visibility:?} {membership:?}");
                assert_eq!(
                    allowed(&visibility, membership, false),
                    never_later[index],
                    "{what}"
                );
                assert_eq!(
                    allowed(&visibility, membership, true),
                    later[index],
                    "{what}"
                );
            }
        }
    }
}
