//! "Getting events for a room": single events, pages of history, and what surrounds an event.

use std::sync::Arc;

use axum::extract::Query;
use http::Uri;
use ruma::{
    OwnedUserId, UInt,
    api::{
        Direction,
        client::{
            context::get_context,
            message::get_message_events,
            room::{get_event_by_timestamp, get_room_event},
        },
    },
    serde::Raw,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    app::App,
    error::{Error, Result},
    filter,
    http::{Call, Routes},
    room::{
        client_event::{Form, client_event, client_events, raw},
        pages::{self, Reading},
        receive::history,
        timeline::{self, EventFilter},
        visibility::{Access, Sight, Viewer, has_forgotten, readable},
    },
    rooms::Room,
    storage::{
        self, Event, Pos,
        timeline::{Place, Range},
    },
};

/// The most events in one answer.
const MAX_EVENTS: usize = 500;
/// How many events near a time are looked at to find one that the requester may see.
const NEAR_EVENTS: i64 = 200;

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<get_room_event::v3::Request, _, _>(get_room_event)
        .queried::<get_message_events::v3::Request, _, _>("dir", "f", get_message_events)
        .json::<get_context::v3::Request, _, _, _>(get_context)
        .add::<get_event_by_timestamp::v1::Request, _, _>(get_event_by_timestamp)
}

/// `GET /_matrix/client/v3/rooms/{roomId}/event/{eventId}`
///
/// Who may not see the event is told that there is none, as the specification wants.
async fn get_room_event(
    app: Arc<App>,
    call: Call<get_room_event::v3::Request>,
) -> Result<get_room_event::v3::Response> {
    let request = call.body;
    let viewer = Viewer::of(&app, &call.requester).await?;
    let room = app.room(&request.room_id).await?;
    if has_forgotten(&app, &room, &viewer).await? {
        return Err(Error::not_found("there is no such event that you may see"));
    }
    let sight = Sight::quick(&app, &room, &viewer).await?;
    let event = timeline::visible_event(&app, &room, &sight, &request.event_id).await?;
    let sight = Sight::load(&app, &room, &viewer, std::slice::from_ref(&event)).await?;
    let json = client_event(&app, &room, &event, &sight, Form::WithRoomId).await?;
    Ok(get_room_event::v3::Response::new(Raw::from_json(json)))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/messages`
///
/// Without `dir` it goes forward, as on other servers. A client that walks back has reached the start when it gets the
/// event that made the room, or nothing: a filter may hide the former.
///
/// What is missing here is fetched: see [`pages`].
async fn get_message_events(
    app: Arc<App>,
    call: Call<get_message_events::v3::Request>,
) -> Result<get_message_events::v3::Response> {
    let request = call.body;
    let filter = event_filter(request.filter, &call.parts.uri)?;
    let viewer = Viewer::of(&app, &call.requester).await?;
    let (room, access) = readable(&app, &request.room_id, &viewer).await?;
    let backward = request.dir == Direction::Backward;
    let (from, upto) = match &request.from {
        Some(token) if backward => timeline::place_backward(&app, &room, token).await?,
        Some(token) => (timeline::place(&app, &room, token).await?, Pos::MAX),
        None if backward => (end_of_view(&app, &room, &access).await?, Pos::MAX),
        None => (Place::START, Pos::MAX),
    };
    let to = match &request.to {
        Some(token) => timeline::place(&app, &room, token).await?,
        None if backward => Place::START,
        None => Place::END,
    };
    let range = Range {
        room: room.nid,
        from,
        to,
        direction: request.dir,
        upto,
    };
    let limit = limit(request.limit).min(filter.event.limit.map_or(MAX_EVENTS, limit));
    let reading = Reading {
        room: &room,
        viewer: &viewer,
        filter: &filter,
        limit,
    };
    let (page, has_gap) = if backward {
        pages::backward(&app, reading, range).await?
    } else {
        (pages::forward(&app, reading, range).await?, false)
    };
    let is_at_gap = has_gap && page.events.is_empty();

    let sight = Sight::load(&app, &room, &viewer, &page.events).await?;
    let mut response = get_message_events::v3::Response::new();
    response.start = request
        .from
        .unwrap_or_else(|| timeline::token_upto(from, upto).to_string());
    let oldest = page.events.last().filter(|_| backward);
    let rest = oldest.filter(|event| !timeline::is_create(event));
    let mut next = page.next.or(rest.map(|event| Place::before(event)));
    // What could not be fetched now may be there when the client asks again.
    if next.is_none() && is_at_gap && history::is_hopeful(&app, &room).await {
        next = Some(from);
    }
    response.end = next.map(|next| timeline::token_upto(next, upto).to_string());
    response.chunk = raw(client_events(&app, &room, &page.events, &sight, Form::WithRoomId).await?);
    if filter.is_lazy() {
        let members = timeline::members_of_senders(&app, &room, &page.events).await?;
        response.state = raw(client_events(&app, &room, &members, &sight, Form::WithRoomId).await?);
    }
    Ok(response)
}

/// Where history ends for somebody now, or ended when they left.
async fn end_of_view(app: &App, room: &Room, access: &Access) -> Result<Place> {
    match access {
        Access::Now => Ok(storage::timeline::end_at(&app.db, room.nid, app.head()).await?),
        Access::Left { leave, .. } => Ok(Place::after(leave)),
    }
}

/// `GET /_matrix/client/v3/rooms/{roomId}/context/{eventId}`
async fn get_context(app: Arc<App>, call: Call<get_context::v3::Request>) -> Result<Context> {
    let request = call.body;
    let filter = event_filter(request.filter, &call.parts.uri)?;
    let viewer = Viewer::of(&app, &call.requester).await?;
    let (room, _) = readable(&app, &request.room_id, &viewer).await?;
    let sight = Sight::quick(&app, &room, &viewer).await?;
    let event = timeline::visible_event(&app, &room, &sight, &request.event_id).await?;
    let limit = limit(request.limit).min(filter.event.limit.map_or(MAX_EVENTS, self::limit));
    let reading = |limit| Reading {
        room: &room,
        viewer: &viewer,
        filter: &filter,
        limit,
    };
    let older = Range::before(room.nid, Place::before(&event));
    let (before, _) = pages::backward(&app, reading(limit / 2), older).await?;
    let newer = Range::after(room.nid, Place::after(&event));
    let after = pages::forward(&app, reading(limit - limit / 2), newer).await?;

    let mut all = before.events.clone();
    all.push(Arc::clone(&event));
    all.extend(after.events.iter().cloned());
    let sight = Sight::load(&app, &room, &viewer, &all).await?;
    let mut state = if filter.is_lazy() {
        timeline::members_of_senders(&app, &room, &all).await?
    } else {
        let newest = after.events.last().unwrap_or(&event);
        timeline::state_after(&app, &room, newest, None).await?
    };
    state.retain(|event| timeline::matches(&filter.event, event));

    let oldest = before.events.last().unwrap_or(&event);
    let newest = after.events.last().unwrap_or(&event);
    let form = Form::WithRoomId;
    Ok(Context {
        start: timeline::token(before.next.unwrap_or(Place::before(oldest))).to_string(),
        end: timeline::token(after.next.unwrap_or(Place::after(newest))).to_string(),
        event: client_event(&app, &room, &event, &sight, form).await?,
        events_before: client_events(&app, &room, &before.events, &sight, form).await?,
        events_after: client_events(&app, &room, &after.events, &sight, form).await?,
        state: client_events(&app, &room, &state, &sight, form).await?,
    })
}

/// What surrounds an event. Ruma's type leaves out empty lists, without which some clients stumble.
#[derive(Debug, Serialize)]
struct Context {
    start: String,
    end: String,
    event: Box<RawValue>,
    events_before: Vec<Box<RawValue>>,
    events_after: Vec<Box<RawValue>>,
    state: Vec<Box<RawValue>>,
}

/// `GET /_matrix/client/v1/rooms/{roomId}/timestamp_to_event`
async fn get_event_by_timestamp(
    app: Arc<App>,
    call: Call<get_event_by_timestamp::v1::Request>,
) -> Result<get_event_by_timestamp::v1::Response> {
    let request = call.body;
    let viewer = Viewer::of(&app, &call.requester).await?;
    let (room, _) = readable(&app, &request.room_id, &viewer).await?;
    let (ts, dir) = (request.ts, request.dir);
    let nearest = async || -> Result<Option<Event>> {
        let sight = Sight::quick(&app, &room, &viewer).await?;
        let (db, ts) = (&app.db, i64::from(ts.0));
        let near = storage::timeline::around(db, room.rules, room.nid, ts, dir, NEAR_EVENTS);
        let mut near = near.await?.into_iter();
        Ok(near.find(|event| sight.sees(event)))
    };
    let mut event = nearest().await?;
    let known = event.as_ref().map(|event| event.pdu.origin_server_ts);
    if history::reach(&app, &room, (ts, dir), known).await? {
        event = nearest().await?;
    }
    let event =
        event.ok_or_else(|| Error::not_found("there is no event on this side of the time"))?;
    let pdu = &event.pdu;
    Ok(get_event_by_timestamp::v1::Response::new(
        pdu.event_id.clone(),
        pdu.origin_server_ts,
    ))
}

/// A limit as a client gives it, at most as large as answers may be.
pub(super) fn limit(limit: UInt) -> usize {
    usize::try_from(limit).map_or(MAX_EVENTS, |limit| limit.min(MAX_EVENTS))
}

/// The parts of `RoomEventFilter` that ruma does not read.
#[derive(Debug, Default, Deserialize)]
pub(super) struct RelatedBy {
    pub(super) related_by_rel_types: Option<Vec<String>>,
    pub(super) related_by_senders: Option<Vec<OwnedUserId>>,
}

/// The filter in a query, checked.
fn event_filter(
    event: ruma::api::client::filter::RoomEventFilter,
    uri: &Uri,
) -> Result<EventFilter> {
    #[derive(Deserialize)]
    struct Parameters {
        filter: Option<String>,
    }
    filter::check_events(&event)?;
    let Query(parameters) = Query::<Parameters>::try_from_uri(uri)
        .map_err(|error| Error::invalid_param(error.to_string()))?;
    let related: RelatedBy = match parameters.filter.filter(|filter| !filter.is_empty()) {
        Some(json) => {
            serde_json::from_str(&json).map_err(|error| Error::bad_json(error.to_string()))?
        }
        None => RelatedBy::default(),
    };
    Ok(EventFilter {
        event,
        related_by_rel_types: related.related_by_rel_types,
        related_by_senders: related.related_by_senders,
    })
}
