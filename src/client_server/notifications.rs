//! "Listing Notifications".

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ruma::{
    api::client::push::get_notifications::{self, v3::Notification},
    push::Action,
    serde::Raw,
};

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    room::{
        client_event::{Form, client_event},
        push,
        visibility::{Sight, Viewer},
    },
    rooms::Room,
    storage::{self, Event, EventNid, Membership, Pos, RoomNid, highlights, receipts::EVERYTHING},
};

/// How many notifications are listed if the client does not say, and at most.
const LIMITS: (usize, usize) = (20, 100);
/// How many positions of the log are searched at first; each further search goes four times as far.
const FIRST_SPAN: Pos = 4096;
/// How many searches one request may need.
const SEARCHES: usize = 8;
/// How many events one search may find, at least and at most: else four for each that is wanted.
const FOUND: (usize, usize) = (20, 200);

pub(super) fn routes() -> Routes {
    Routes::new().add::<get_notifications::v3::Request, _, _>(get_notifications)
}

/// `GET /_matrix/client/v3/notifications`
///
/// The list is not kept: the events that may have notified are judged again, by the rules and the room as they are now.
/// An answer may have fewer than the events asked for and a token all the same.
async fn get_notifications(
    app: Arc<App>,
    call: Call<get_notifications::v3::Request>,
) -> Result<get_notifications::v3::Response> {
    let body = &call.body;
    let limit = body
        .limit
        .and_then(|limit| usize::try_from(limit).ok())
        .unwrap_or(LIMITS.0)
        .clamp(1, LIMITS.1);
    let only_highlights = body.only.as_deref() == Some("highlight");
    let mut to: Pos = match body.from.as_deref() {
        None => app.head() + 1,
        Some(token) => token
            .parse()
            .map_err(|_| Error::invalid_param("`from` is no token of this endpoint"))?,
    };
    let viewer = Viewer::of(&app, &call.requester).await?;
    let rooms = rooms(&app, &viewer).await?;
    let nids: Vec<RoomNid> = rooms.keys().copied().collect();
    let mut notifications = Vec::new();
    let mut span = FIRST_SPAN;
    let most = (4 * limit).clamp(FOUND.0, FOUND.1);
    let most_found = i64::try_from(most).unwrap_or(i64::MAX);
    for _ in 0..SEARCHES {
        if to <= 1 || notifications.len() >= limit || nids.is_empty() {
            break;
        }
        let from = to.saturating_sub(span).max(1);
        let found =
            highlights::candidates(&app.db, viewer.user, &nids, from, to, most_found).await?;
        let is_all = found.len() < most;
        let last = found.last().map_or(from, |(_, _, pos)| *pos);
        to = if is_all { from } else { last };
        for (pos, notification) in judge(&app, &viewer, &rooms, found).await? {
            let highlights = notification.actions.iter().any(Action::is_highlight);
            if only_highlights && !highlights {
                continue;
            }
            if notifications.len() == limit {
                break;
            }
            notifications.push(notification);
            if notifications.len() == limit {
                to = pos;
            }
        }
        span *= 4;
    }
    let mut response = get_notifications::v3::Response::new(notifications);
    response.next_token = (to > 1 && !nids.is_empty()).then(|| to.to_string());
    Ok(response)
}

/// The rooms that the viewer has joined or is invited to.
async fn rooms(app: &App, viewer: &Viewer) -> Result<HashMap<RoomNid, Arc<Room>>> {
    let feed = app.bus.feed(&app.db, &app.log, viewer.user).await?;
    let nids: Vec<RoomNid> = feed
        .state()
        .memberships
        .values()
        .filter(|member| matches!(member.membership, Membership::Join | Membership::Invite))
        .map(|member| member.room)
        .collect();
    app.rooms.many(&app.db, &app.log, &nids).await
}

/// Those events that notify the viewer, newest first, by position.
async fn judge(
    app: &App,
    viewer: &Viewer,
    rooms: &HashMap<RoomNid, Arc<Room>>,
    found: Vec<(RoomNid, EventNid, Pos)>,
) -> Result<impl Iterator<Item = (Pos, Notification)> + use<>> {
    let mut by_room: HashMap<RoomNid, Vec<EventNid>> = HashMap::new();
    for (room, event, _) in found {
        by_room.entry(room).or_default().push(event);
    }
    let feed = app.bus.feed(&app.db, &app.log, viewer.user).await?;
    let mut judged = BTreeMap::new();
    for (room, nids) in by_room {
        let Some(room) = rooms.get(&room) else {
            continue;
        };
        let events = storage::events::some(&app.db, room.rules, &nids).await?;
        let events: Vec<Arc<Event>> = events.into_iter().map(Arc::new).collect();
        let sight = Sight::load(app, room, viewer, &events).await?;
        for event in &events {
            if !push::concerns(&sight, event) {
                continue;
            }
            let mut judge = push::Judge::new(app, room, event).await?;
            let actions = judge.actions(viewer.user, &viewer.user_id).await?;
            let Some(pos) = event
                .pos
                .filter(|_| actions.iter().any(Action::should_notify))
            else {
                continue;
            };
            let thread = event.thread.map_or(0, |root| root.0);
            let is_read = {
                let state = feed.state();
                let read = |thread| state.markers.get(&(room.nid, thread));
                let markers = [read(thread), read(EVERYTHING)];
                markers
                    .into_iter()
                    .flatten()
                    .any(|marker| marker.pos >= pos)
            };
            let json = client_event(app, room, event, &sight, Form::WithoutRoomId).await?;
            let notification = Notification::new(
                actions,
                Raw::from_json(json),
                is_read,
                room.id.clone(),
                event.pdu.origin_server_ts,
            );
            judged.insert(pos, notification);
        }
    }
    Ok(judged.into_iter().rev())
}
