//! "Retrieving events".

use std::sync::Arc;

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::header;
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, ServerName, UInt,
    api::federation::event::{
        get_event, get_event_by_timestamp, get_room_state, get_room_state_ids,
    },
};

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    room::server_sight::{self, ServerSight},
    rooms::Room,
    storage::{self, Event, EventNid, auth_chain, events::flags, graph, state::StateAt},
};

/// The most events of an auth chain.
pub(super) const AUTH_CHAIN: usize = 500_000;
/// How many events of a large answer are in memory at once.
const CHUNK: usize = 500;
/// How many events near a time are looked at to find one that the server may see.
const NEAR_EVENTS: i64 = 200;

pub(super) fn routes() -> Routes {
    Routes::new()
        .stream::<get_room_state::v1::Request, _, _>(get_room_state)
        .add::<get_room_state_ids::v1::Request, _, _>(get_room_state_ids)
        .add::<get_event::v1::Request, _, _>(get_event)
        .add::<get_event_by_timestamp::v1::Request, _, _>(get_event_by_timestamp)
}

/// `GET /_matrix/federation/v1/state/{roomId}`
///
/// The events are read while they are sent: a large room's do not fit into memory.
async fn get_room_state(
    app: Arc<App>,
    call: Call<get_room_state::v1::Request>,
) -> Result<Response> {
    let request = call.body;
    let server = &call.requester.server;
    let (state, chain) = state_before(&app, &request.room_id, &request.event_id, server).await?;
    let lists = vec![("auth_chain", chain), ("pdus", state)];
    Ok(json_lists(app, lists))
}

/// An object with lists of events under these names, which are read while they are sent.
pub(super) fn json_lists(app: Arc<App>, lists: Vec<(&'static str, Vec<EventNid>)>) -> Response {
    let last = lists.len() - 1;
    let body = stream::iter(lists.into_iter().enumerate());
    let body = body.flat_map(move |(index, (name, nids))| {
        let open = if index == 0 { "{" } else { "," };
        let start = Bytes::from(format!("{open}\"{name}\":["));
        let end = Bytes::from_static(if index == last { b"]}" } else { b"]" });
        let events = json_list(Arc::clone(&app), nids);
        stream::iter([Ok(start)])
            .chain(events)
            .chain(stream::iter([Ok(end)]))
    });
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (headers, Body::from_stream(body)).into_response()
}

/// The JSON of events with commas between, as it is read. What breaks off does so in the middle of the answer, and the
/// connection with it.
fn json_list(
    app: Arc<App>,
    nids: Vec<EventNid>,
) -> impl Stream<Item = Result<Bytes, storage::Error>> {
    stream::unfold((app, nids, true), |(app, mut rest, is_first)| async move {
        if rest.is_empty() {
            return None;
        }
        let chunk = rest.split_off(rest.len().saturating_sub(CHUNK));
        let events = match graph::json(&app.db, &chunk).await {
            Ok(events) => events,
            Err(error) => {
                tracing::error!(%error, "the state of a room cannot be read to its end");
                return Some((Err(error), (app, Vec::new(), is_first)));
            }
        };
        let mut text = events.join(",");
        if !is_first && !text.is_empty() {
            text.insert(0, ',');
        }
        let is_first = is_first && text.is_empty();
        Some((Ok(Bytes::from(text)), (app, rest, is_first)))
    })
}

/// `GET /_matrix/federation/v1/state_ids/{roomId}`
async fn get_room_state_ids(
    app: Arc<App>,
    call: Call<get_room_state_ids::v1::Request>,
) -> Result<get_room_state_ids::v1::Response> {
    let request = call.body;
    let server = &call.requester.server;
    let (state, chain) = state_before(&app, &request.room_id, &request.event_id, server).await?;
    Ok(get_room_state_ids::v1::Response::new(
        ids(&app, &chain).await?,
        ids(&app, &state).await?,
    ))
}

async fn ids(app: &App, nids: &[EventNid]) -> Result<Vec<OwnedEventId>> {
    let ids = graph::ids(&app.db, nids).await?;
    let ids = ids
        .into_iter()
        .map(|id| OwnedEventId::try_from(id).map_err(Error::internal));
    ids.collect()
}

/// The state before an event, and the events on which that rests.
async fn state_before(
    app: &App,
    room: &RoomId,
    event_id: &EventId,
    server: &ServerName,
) -> Result<(Vec<EventNid>, Vec<EventNid>)> {
    let (room, sight) = server_sight::readable(app, room, server).await?;
    let event = find(app, &room, event_id).await?;
    if event.flags & flags::OUTLIER != 0 {
        return Err(Error::not_found("the state at this event is not known"));
    }
    expect_sight(&sight, &event)?;
    let at = StateAt {
        line: event.state_line,
        sv: event.state_sv,
    };
    let state = storage::state::all_at(&app.db, at).await?;
    let state: Vec<EventNid> = state.into_iter().map(|(_, event)| event).collect();
    let chain = chain(app, &state).await?;
    Ok((state, chain))
}

/// The events on which others rest.
pub(super) async fn chain(app: &App, events: &[EventNid]) -> Result<Vec<EventNid>> {
    let chain = auth_chain::closure(&app.db, events, AUTH_CHAIN).await?;
    chain.ok_or_else(|| Error::too_large("this rests on more events than can be told"))
}

/// An event that is known in a room and was not rejected.
///
/// # Errors
/// `M_NOT_FOUND`.
pub(super) async fn find(app: &App, room: &Room, event_id: &EventId) -> Result<Event> {
    let event = storage::events::by_id(&app.db, room.rules, room.nid, event_id.as_str()).await?;
    event
        .filter(|event| event.flags & flags::REJECTED == 0)
        .ok_or_else(|| Error::not_found(format!("{event_id} is not known here")))
}

/// Those that are not in a room may ask only about events that they see.
///
/// # Errors
/// `M_FORBIDDEN`.
pub(super) fn expect_sight(sight: &ServerSight, event: &Event) -> Result<()> {
    if sight.joined || sight.sees(event) {
        return Ok(());
    }
    Err(Error::forbidden("your server may not see this event"))
}

/// `GET /_matrix/federation/v1/event/{eventId}`
async fn get_event(
    app: Arc<App>,
    call: Call<get_event::v1::Request>,
) -> Result<get_event::v1::Response> {
    let (event_id, server) = (&call.body.event_id, &call.requester.server);
    let room = graph::room_of(&app.db, event_id.as_str()).await?;
    let room = room.ok_or_else(|| Error::not_found(format!("{event_id} is not known here")))?;
    let room = <&RoomId>::try_from(room.as_str()).map_err(Error::internal)?;
    let (room, sight) = server_sight::readable(&app, room, server).await?;
    let event = find(&app, &room, event_id).await?;
    let pdu = server_sight::show(&app, &room, &sight, &event)?
        .ok_or_else(|| Error::forbidden("your server may not see this event"))?;
    Ok(get_event::v1::Response::new(
        app.server_name.clone(),
        now(&app),
        pdu,
    ))
}

/// The time as answers tell it.
pub(super) fn now(app: &App) -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch(UInt::try_from(app.clock.now()).unwrap_or_default())
}

/// `GET /_matrix/federation/v1/timestamp_to_event/{roomId}`
async fn get_event_by_timestamp(
    app: Arc<App>,
    call: Call<get_event_by_timestamp::v1::Request>,
) -> Result<get_event_by_timestamp::v1::Response> {
    let request = call.body;
    let server = &call.requester.server;
    let (room, sight) = server_sight::readable(&app, &request.room_id, server).await?;
    let ts = i64::from(request.ts.0);
    let (nid, rules) = (room.nid, room.rules);
    let near = storage::timeline::around(&app.db, rules, nid, ts, request.dir, NEAR_EVENTS).await?;
    let event = near
        .into_iter()
        .find(|event| sight.sees(event))
        .ok_or_else(|| Error::not_found("there is no event on this side of the time"))?;
    let pdu = &event.pdu;
    Ok(get_event_by_timestamp::v1::Response::new(
        pdu.event_id.clone(),
        pdu.origin_server_ts,
    ))
}
