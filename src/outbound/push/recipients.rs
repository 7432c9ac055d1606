//! Whom an event notifies, of those who have pushers.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ruma::{UserId, events::StateEventType, push::Action};

use super::{
    delivery::{LONGEST, viewer},
    queue::{MOST_WAITING, Notice},
};
use crate::{
    app::App,
    error::{Error, Result},
    room::{
        head,
        push::{self, Judge},
        visibility::{self, Sight, Viewer},
    },
    rooms::Room,
    storage::{self, Event, EventNid, Membership, Pos, RoomNid, UserNid, highlights},
};

/// Whether it would be the same if one tried again: what is stored makes no sense.
pub(super) fn is_lasting(error: &Error) -> bool {
    use storage::Error::{ColumnDecode, Decode, Encode, RowNotFound};
    match error {
        Error::Database(error) => matches!(
            error,
            Decode(_) | ColumnDecode { .. } | Encode(_) | RowNotFound
        ),
        Error::Append(_) => false,
        Error::Matrix { .. } | Error::Uiaa(_) | Error::Internal(_) => true,
    }
}

/// The local user whose membership an event is.
///
/// # Errors
/// If the database fails.
pub(super) async fn target(app: &App, event: &Event) -> Result<Option<UserNid>> {
    if &*event.pdu.event_type != "m.room.member" {
        return Ok(None);
    }
    let user = event.pdu.state_key.as_deref().map(UserId::parse);
    match user.and_then(std::result::Result::ok) {
        Some(user) if app.is_local(&user) => Ok(app.names.find_user(&app.db, &user).await?),
        _ => Ok(None),
    }
}

/// An invite to a room in which this server is not.
///
/// # Errors
/// If the database fails.
pub(super) async fn invite(app: &App, room: &Room, event: EventNid) -> Result<Option<Event>> {
    let events = storage::events::some(&app.db, room.rules, &[event]).await?;
    Ok(events.into_iter().next())
}

/// Those of `people` whom an event at a position notifies. For whom that cannot be found out, because what is stored of them
/// or of the room makes no sense, is left out.
///
/// # Errors
/// If the database fails.
pub(super) async fn of(
    app: &App,
    room: &Room,
    event: &Event,
    pos: Pos,
    people: &[UserNid],
) -> Result<Vec<(UserNid, Arc<Notice>)>> {
    let mut found = Vec::new();
    let unknown = |error: &Error| {
        let event = &event.pdu.event_id;
        tracing::error!(%error, %event, "whom an event notifies cannot be found out");
    };
    let mut judge = match Judge::new(app, room, event).await {
        Err(error) if is_lasting(&error) => {
            unknown(&error);
            return Ok(found);
        }
        judge => judge?,
    };
    for user in people {
        let actions = match actions(app, room, event, &mut judge, *user).await {
            Err(error) if is_lasting(&error) => {
                unknown(&error);
                continue;
            }
            actions => actions?,
        };
        let Some(actions) = actions else {
            continue;
        };
        let notice = Notice {
            pos,
            room: room.nid,
            event: event.nid,
            actions,
            at: app.clock.now(),
        };
        found.push((*user, Arc::new(notice)));
    }
    Ok(found)
}

/// What the rules of somebody say to an event, if it notifies them.
async fn actions(
    app: &App,
    room: &Room,
    event: &Event,
    judge: &mut Judge<'_>,
    user: UserNid,
) -> Result<Option<Vec<Action>>> {
    let viewer = viewer(app, user).await?;
    let actions = judge.actions(user, &viewer.user_id).await?;
    let notifies = actions.iter().any(Action::should_notify);
    let is_told = notifies && concerns(app, room, event, &viewer).await?;
    Ok(is_told.then_some(actions))
}

/// Whether an event is for somebody: who has been in the room since before it came must be allowed to see it, as it counts as
/// unread then; who came later must have been there too when it was sent.
async fn concerns(app: &App, room: &Room, event: &Event, viewer: &Viewer) -> Result<bool> {
    if push::is_about(event, &viewer.user_id) {
        return Ok(true);
    }
    let feed = app.bus.feed(&app.db, &app.log, viewer.user).await?;
    let since = {
        let state = feed.state();
        let member = state.memberships.get(&room.nid);
        member
            .filter(|member| member.membership == Membership::Join)
            .map(|member| member.pos)
    };
    let was_there = since.is_some_and(|since| event.pos.is_some_and(|pos| since < pos));
    if was_there {
        let kind = StateEventType::RoomHistoryVisibility;
        let now = head::state_event(app, room, &kind, "").await?;
        if visibility::sees_all(room, [now.as_deref(), None], 0, &[]) {
            return Ok(true);
        }
    }
    let event = [Arc::new(event.clone())];
    let sight = Sight::load(app, room, viewer, &event).await?;
    let [event] = &event;
    Ok(if was_there {
        sight.sees(event)
    } else {
        push::concerns(&sight, event)
    })
}

/// What notified a user after one position and up to another, oldest first: of many, the newest.
///
/// # Errors
/// If the database fails.
pub(super) async fn since(
    app: &App,
    user: UserNid,
    after: Pos,
    upto: Pos,
) -> Result<Vec<Arc<Notice>>> {
    let feed = app.bus.feed(&app.db, &app.log, user).await?;
    let members: Vec<storage::Member> = {
        let state = feed.state();
        let members = state
            .memberships
            .values()
            .filter(|member| matches!(member.membership, Membership::Join | Membership::Invite));
        members.cloned().collect()
    };
    let rooms: Vec<RoomNid> = members.iter().map(|member| member.room).collect();
    let most = i64::try_from(2 * MOST_WAITING).unwrap_or(i64::MAX);
    let found = highlights::candidates(&app.db, user, &rooms, after + 1, upto + 1, most).await?;
    let mut events: HashMap<RoomNid, BTreeMap<EventNid, Pos>> = HashMap::new();
    for (room, event, pos) in found {
        events.entry(room).or_default().insert(event, pos);
    }
    for member in members {
        let is_new = member.pos > after && member.pos <= upto;
        if member.membership == Membership::Invite && is_new {
            let of_room = events.entry(member.room).or_default();
            of_room.insert(member.event, member.pos);
        }
    }
    let nids: Vec<RoomNid> = events.keys().copied().collect();
    let rooms = app.rooms.many(&app.db, &app.log, &nids).await?;
    let mut notices = BTreeMap::new();
    for (room, positions) in events {
        let Some(room) = rooms.get(&room) else {
            continue;
        };
        let nids: Vec<EventNid> = positions.keys().copied().collect();
        for event in storage::events::some(&app.db, room.rules, &nids).await? {
            let Some(pos) = positions.get(&event.nid) else {
                continue;
            };
            let sent = i64::from(event.pdu.origin_server_ts.get());
            if sent.saturating_add(LONGEST) < app.clock.now() {
                continue;
            }
            for (_, notice) in of(app, room, &event, *pos, &[user]).await? {
                let at = notice.at.min(sent);
                let notice = Arc::into_inner(notice).map(|notice| Notice { at, ..notice });
                notices.extend(notice.map(|notice| (*pos, Arc::new(notice))));
            }
        }
    }
    Ok(notices.into_values().collect())
}
