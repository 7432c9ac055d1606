//! "Joining Rooms", "Knocking upon a room", "Inviting to a room", "Leaving Rooms (Rejecting Invites)".

use std::{collections::BTreeMap, sync::Arc};

use axum::response::Response;
use http::StatusCode;
use ruma::{
    CanonicalJsonObject, OwnedEventId, RoomVersionId,
    api::federation::membership::{
        RawStrippedState, create_join_event, create_knock_event, create_leave_event,
        prepare_join_event, prepare_knock_event, prepare_leave_event,
    },
    events::room::member::MembershipState,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    event_lists::Object,
    events::{chain, find, whole_state},
};
use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    room::{
        outline,
        remote::invite::{self, Invite},
        resident,
    },
};

/// Endpoints that ruma does not know any more, or of which it wants more than all servers send.
const FIRST_JOIN: &str = "/_matrix/federation/v1/send_join/{room_id}/{event_id}";
const FIRST_INVITE: &str = "/_matrix/federation/v1/invite/{room_id}/{event_id}";
const INVITE: &str = "/_matrix/federation/v2/invite/{room_id}/{event_id}";
const FIRST_LEAVE: &str = "/_matrix/federation/v1/send_leave/{room_id}/{event_id}";

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<prepare_join_event::v1::Request, _, _>(prepare_join_event)
        .stream::<create_join_event::v2::Request, _, _>(create_join_event)
        .stream_at::<create_join_event::v2::Request, _, _>(FIRST_JOIN, create_join_event_v1)
        .add::<prepare_leave_event::v1::Request, _, _>(prepare_leave_event)
        .add::<create_leave_event::v2::Request, _, _>(create_leave_event)
        .json_at::<create_leave_event::v2::Request, _, _, _>(FIRST_LEAVE, create_leave_event_v1)
        .add::<prepare_knock_event::v1::Request, _, _>(prepare_knock_event)
        .add::<create_knock_event::v1::Request, _, _>(create_knock_event)
        .json_at::<create_leave_event::v2::Request, _, _, _>(FIRST_INVITE, create_invite_v1)
        .json_at::<create_leave_event::v2::Request, _, _, _>(INVITE, create_invite)
}

/// `GET /_matrix/federation/v1/make_join/{roomId}/{userId}`
async fn prepare_join_event(
    app: Arc<App>,
    call: Call<prepare_join_event::v1::Request>,
) -> Result<prepare_join_event::v1::Response> {
    let (request, origin) = (call.body, &call.requester.server);
    let room = resident::room(&app, &request.room_id, origin).await?;
    let join = MembershipState::Join;
    let (user, versions) = (&request.user_id, Some(request.ver.as_slice()));
    let event = resident::prepare(&app, &room, origin, user, join, versions).await?;
    let mut response = prepare_join_event::v1::Response::new(event);
    response.room_version = Some(room.version.clone());
    Ok(response)
}

/// `PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}`
///
/// The whole state is answered, also to servers that would be content with less. It is read while it is sent.
async fn create_join_event(
    app: Arc<App>,
    call: Call<create_join_event::v2::Request>,
) -> Result<Response> {
    let state = let_join(&app, call).await?;
    Ok(state.answer(app))
}

/// `PUT /_matrix/federation/v1/send_join/{roomId}/{eventId}`
///
/// The status is part of the answer, as old servers want it.
async fn create_join_event_v1(
    app: Arc<App>,
    call: Call<create_join_event::v2::Request>,
) -> Result<Response> {
    let state = let_join(&app, call).await?;
    Ok(state.within("[200,", "]", app))
}

/// Lets somebody in, and answers the room as it was before.
async fn let_join(app: &App, call: Call<create_join_event::v2::Request>) -> Result<Object> {
    let (request, origin) = (call.body, &call.requester.server);
    let room = resident::room(app, &request.room_id, origin).await?;
    let (id, join) = (&request.event_id, MembershipState::Join);
    let pdu = resident::accept(app, &room, origin, id, request.pdu, join).await?;
    let event = find(app, &room, &pdu.event_id).await?;
    let state = whole_state(app, &event).await?;
    let mut roots = state.clone();
    roots.push(event.nid);
    let chain = chain(app, &roots).await?;
    let origin = serde_json::to_string(app.name()).map_err(Error::internal)?;
    let answer = Object::default()
        .field("origin", &origin)
        .field("members_omitted", "false")
        .field("event", &event.pdu.json);
    Ok(answer.events("auth_chain", chain).events("state", state))
}

fn raw(json: &str) -> Result<Box<RawValue>> {
    RawValue::from_string(json.to_owned()).map_err(Error::internal)
}

/// `GET /_matrix/federation/v1/make_leave/{roomId}/{userId}`
async fn prepare_leave_event(
    app: Arc<App>,
    call: Call<prepare_leave_event::v1::Request>,
) -> Result<prepare_leave_event::v1::Response> {
    let (request, origin) = (call.body, &call.requester.server);
    let room = resident::room(&app, &request.room_id, origin).await?;
    let leave = MembershipState::Leave;
    let event = resident::prepare(&app, &room, origin, &request.user_id, leave, None).await?;
    let version = Some(room.version.clone());
    Ok(prepare_leave_event::v1::Response::new(version, event))
}

/// `PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}`
async fn create_leave_event(
    app: Arc<App>,
    call: Call<create_leave_event::v2::Request>,
) -> Result<create_leave_event::v2::Response> {
    let (request, origin) = (call.body, &call.requester.server);
    let room = resident::room(&app, &request.room_id, origin).await?;
    let (id, leave) = (&request.event_id, MembershipState::Leave);
    resident::accept(&app, &room, origin, id, request.pdu, leave).await?;
    Ok(create_leave_event::v2::Response::new())
}

/// `PUT /_matrix/federation/v1/send_leave/{roomId}/{eventId}`
async fn create_leave_event_v1(
    app: Arc<App>,
    call: Call<create_leave_event::v2::Request>,
) -> Result<(u16, CanonicalJsonObject)> {
    create_leave_event(app, call).await?;
    Ok((StatusCode::OK.as_u16(), CanonicalJsonObject::new()))
}

/// `GET /_matrix/federation/v1/make_knock/{roomId}/{userId}`
async fn prepare_knock_event(
    app: Arc<App>,
    call: Call<prepare_knock_event::v1::Request>,
) -> Result<prepare_knock_event::v1::Response> {
    let (request, origin) = (call.body, &call.requester.server);
    let room = resident::room(&app, &request.room_id, origin).await?;
    let knock = MembershipState::Knock;
    let (user, versions) = (&request.user_id, Some(request.ver.as_slice()));
    let event = resident::prepare(&app, &room, origin, user, knock, versions).await?;
    let version = room.version.clone();
    Ok(prepare_knock_event::v1::Response::new(version, event))
}

/// `PUT /_matrix/federation/v1/send_knock/{roomId}/{eventId}`
async fn create_knock_event(
    app: Arc<App>,
    call: Call<create_knock_event::v1::Request>,
) -> Result<create_knock_event::v1::Response> {
    let (request, origin) = (call.body, &call.requester.server);
    let room = resident::room(&app, &request.room_id, origin).await?;
    let (id, knock) = (&request.event_id, MembershipState::Knock);
    let pdu = resident::accept(&app, &room, origin, id, request.pdu, knock).await?;
    let told = outline::of(&app, &room, &pdu.sender).await?;
    let told = told
        .iter()
        .map(|event| raw(&event.pdu.json).map(RawStrippedState::Pdu));
    let told = told.collect::<Result<_>>()?;
    Ok(create_knock_event::v1::Response::new(told))
}

/// `PUT /_matrix/federation/v1/invite/{roomId}/{eventId}`
///
/// Such an invite is to a room of version 1 or 2, and those are not known here.
async fn create_invite_v1(
    _: Arc<App>,
    _: Call<create_leave_event::v2::Request>,
) -> Result<(u16, CanonicalJsonObject)> {
    Err(invite::incompatible(&RoomVersionId::V1))
}

/// An invite.
#[derive(Deserialize)]
struct InviteBody {
    room_version: RoomVersionId,
    event: Box<RawValue>,
    /// What there is to tell of the room; nothing, from many servers.
    #[serde(default)]
    invite_room_state: Vec<RawStrippedState>,
}

/// `PUT /_matrix/federation/v2/invite/{roomId}/{eventId}`
async fn create_invite(
    app: Arc<App>,
    call: Call<create_leave_event::v2::Request>,
) -> Result<BTreeMap<&'static str, Box<RawValue>>> {
    let (request, origin) = (call.body, call.requester.server.clone());
    let (room_id, event_id): (_, OwnedEventId) = (request.room_id, request.event_id);
    let body: InviteBody = serde_json::from_str(request.pdu.get())
        .map_err(|error| Error::bad_json(error.to_string()))?;
    let invite = Invite {
        origin,
        version: body.room_version,
        event: body.event,
        told: body.invite_room_state,
    };
    let event = invite::receive(&app, invite, |pdu| {
        if pdu.event_id != event_id {
            return Err(Error::invalid_param("the event has another id"));
        }
        if pdu.room_id != room_id {
            return Err(Error::invalid_param("the event is of another room"));
        }
        Ok(())
    });
    Ok(BTreeMap::from([("event", event.await?)]))
}
