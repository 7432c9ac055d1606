//! "Retrieving events".

use std::sync::Arc;

use axum::response::Response;
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, RoomId, ServerName, UInt,
    api::federation::event::{
        get_event, get_event_by_timestamp, get_room_state, get_room_state_ids,
    },
};

use super::event_lists::Object;
use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    room::server_sight::{self, ServerSight},
    rooms::Room,
    storage::{self, Event, EventNid, auth_chain, events::flags, graph, state::StateAt},
};

/// The most events of an auth chain.
const AUTH_CHAIN: usize = 500_000;
/// How many events near a time are looked at to find one that the server may see.
const NEAR_EVENTS: i64 = 200;

pub(super) fn routes() -> Routes {
    Routes::new()
        .stream::<get_room_state::v1::Request, _, _>(get_room_state)
        .stream::<get_room_state_ids::v1::Request, _, _>(get_room_state_ids)
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
    let answer = Object::default().events("auth_chain", chain);
    Ok(answer.events("pdus", state).answer(app))
}

/// `GET /_matrix/federation/v1/state_ids/{roomId}`
async fn get_room_state_ids(
    app: Arc<App>,
    call: Call<get_room_state_ids::v1::Request>,
) -> Result<Response> {
    let request = call.body;
    let server = &call.requester.server;
    let (state, chain) = state_before(&app, &request.room_id, &request.event_id, server).await?;
    let answer = Object::default().ids("auth_chain_ids", chain);
    Ok(answer.ids("pdu_ids", state).answer(app))
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
    let state = whole_state(app, &event).await?;
    let chain = chain(app, &state).await?;
    Ok((state, chain))
}

/// The state before an event that has a place in the room.
pub(super) async fn whole_state(app: &App, event: &Event) -> Result<Vec<EventNid>> {
    let at = StateAt {
        line: event.state_line,
        sv: event.state_sv,
    };
    let state = storage::state::all_at(&app.db, at).await?;
    Ok(state.into_iter().map(|(_, event)| event).collect())
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
    let event =
        storage::events::readable_by_id(&app.db, room.rules, room.nid, event_id.as_str()).await?;
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
    let pdu = server_sight::show(&app, &room, &sight, &event)
        .await?
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
