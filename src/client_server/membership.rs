//! "Room membership": joining, inviting, leaving, kicking, banning, knocking.

use std::sync::Arc;

use homing_federation::json::strict_json;
use http::StatusCode;
use ruma::{
    CanonicalJsonObject, OwnedRoomId, OwnedServerName, RoomId, RoomOrAliasId,
    api::{
        client::{
            knock::knock_room,
            membership::{
                ban_user, forget_room,
                invite_user::{self, v3::InvitationRecipient},
                join_room_by_id, join_room_by_id_or_alias, joined_rooms, kick_user, leave_room,
                unban_user,
            },
        },
        error::ErrorKind,
    },
    events::{
        StateEventType,
        room::guest_access::{GuestAccess, RoomGuestAccessEventContent},
    },
};

use crate::{
    app::App,
    auth::{self, Requester},
    error::{Error, Result},
    http::{Call, Routes},
    rate_limit::{self, Class},
    room::{aliases, append::Sender, head, membership},
    rooms::Room,
    storage::{self, Membership, members},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<join_room_by_id::v3::Request, _, _>(join_room_by_id)
        .add::<join_room_by_id_or_alias::v3::Request, _, _>(join_room_by_id_or_alias)
        .add::<knock_room::v3::Request, _, _>(knock_room)
        .add::<invite_user::v3::Request, _, _>(invite_user)
        .add::<leave_room::v3::Request, _, _>(leave_room)
        .add::<forget_room::v3::Request, _, _>(forget_room)
        .add::<kick_user::v3::Request, _, _>(kick_user)
        .add::<ban_user::v3::Request, _, _>(ban_user)
        .add::<unban_user::v3::Request, _, _>(unban_user)
        .add::<joined_rooms::v3::Request, _, _>(joined_rooms)
}

/// `POST /_matrix/client/v3/rooms/{roomId}/join`
async fn join_room_by_id(
    app: Arc<App>,
    call: Call<join_room_by_id::v3::Request>,
) -> Result<join_room_by_id::v3::Response> {
    rate_limit::check(&app, Class::Joins, &call.requester)?;
    let (id, reason) = (call.body.room_id, call.body.reason);
    join(&app, &id, &[], &call.requester, reason, &call.raw).await?;
    Ok(join_room_by_id::v3::Response::new(id))
}

/// `POST /_matrix/client/v3/join/{roomIdOrAlias}`
async fn join_room_by_id_or_alias(
    app: Arc<App>,
    call: Call<join_room_by_id_or_alias::v3::Request>,
) -> Result<join_room_by_id_or_alias::v3::Response> {
    rate_limit::check(&app, Class::Joins, &call.requester)?;
    let request = call.body;
    let (id, mut via) = name(&app, &request.room_id_or_alias).await?;
    via.splice(0..0, request.via);
    join(&app, &id, &via, &call.requester, request.reason, &call.raw).await?;
    Ok(join_room_by_id_or_alias::v3::Response::new(id))
}

/// Once the request was understood it is finished, also if the client has gone: to join a large room elsewhere takes long.
async fn join(
    app: &Arc<App>,
    id: &RoomId,
    via: &[OwnedServerName],
    requester: &Requester,
    reason: Option<String>,
    body: &[u8],
) -> Result<()> {
    let extra = extra_content(body)?;
    let here = app.rooms.by_id(&app.db, &app.log, id).await?;
    match here.filter(|room| room.is_here()) {
        Some(room) => expect_guest_access(app, &room, requester).await?,
        None if requester.is_guest => return Err(auth::guests_may_not()),
        None => {}
    }
    let joining = {
        let (app, id, via) = (Arc::clone(app), id.to_owned(), via.to_vec());
        let sender = Sender::of(requester);
        async move { membership::join(&app, &id, &via, &sender, reason, extra).await }
    };
    tokio::spawn(joining).await.map_err(Error::internal)?
}

/// Guests join only rooms that say so ("Guest Access").
async fn expect_guest_access(app: &App, room: &Room, requester: &Requester) -> Result<()> {
    if !requester.is_guest {
        return Ok(());
    }
    let kind = StateEventType::RoomGuestAccess;
    let content: Option<RoomGuestAccessEventContent> =
        head::state_content(app, room, &kind, "").await?;
    if content.is_some_and(|content| content.guest_access == GuestAccess::CanJoin) {
        return Ok(());
    }
    Err(auth::guests_may_not())
}

/// What a client adds to its member event: fields of the body that are not the endpoint's own.
fn extra_content(body: &[u8]) -> Result<CanonicalJsonObject> {
    if body.is_empty() {
        return Ok(CanonicalJsonObject::new());
    }
    let mut content = strict_json(body)?;
    for own in [
        "membership",
        "displayname",
        "avatar_url",
        "reason",
        "third_party_signed",
        "third_party_invite",
        "join_authorised_via_users_server",
    ] {
        content.remove(own);
    }
    Ok(content)
}

/// `POST /_matrix/client/v3/knock/{roomIdOrAlias}`
async fn knock_room(
    app: Arc<App>,
    call: Call<knock_room::v3::Request>,
) -> Result<knock_room::v3::Response> {
    rate_limit::check(&app, Class::Joins, &call.requester)?;
    let request = call.body;
    let (id, mut via) = name(&app, &request.room_id_or_alias).await?;
    via.splice(0..0, request.via);
    let sender = Sender::of(&call.requester);
    membership::knock(&app, &id, &via, &sender, request.reason).await?;
    Ok(knock_room::v3::Response::new(id))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/invite`
async fn invite_user(
    app: Arc<App>,
    call: Call<invite_user::v3::Request>,
) -> Result<invite_user::v3::Response> {
    let request = call.body;
    let InvitationRecipient::UserId(invited) = request.recipient else {
        let message = "this server has no identity server to find people by e-mail or phone";
        return Err(Error::new(
            StatusCode::BAD_REQUEST,
            ErrorKind::ThreepidDenied,
            message,
        ));
    };
    rate_limit::check(&app, Class::Invites, &call.requester)?;
    let room = app.member_room(&request.room_id).await?;
    let sender = Sender::of(&call.requester);
    membership::invite(&app, &room, &sender, &invited.user_id, invited.reason).await?;
    Ok(invite_user::v3::Response::new())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/leave`
async fn leave_room(
    app: Arc<App>,
    call: Call<leave_room::v3::Request>,
) -> Result<leave_room::v3::Response> {
    let room = app.room(&call.body.room_id).await?;
    membership::leave(&app, &room, &Sender::of(&call.requester), call.body.reason).await?;
    Ok(leave_room::v3::Response::new())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/forget`
async fn forget_room(
    app: Arc<App>,
    call: Call<forget_room::v3::Request>,
) -> Result<forget_room::v3::Response> {
    let room = app.room(&call.body.room_id).await?;
    membership::forget(&app, &room, &Sender::of(&call.requester)).await?;
    Ok(forget_room::v3::Response::new())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/kick`
async fn kick_user(
    app: Arc<App>,
    call: Call<kick_user::v3::Request>,
) -> Result<kick_user::v3::Response> {
    let room = app.member_room(&call.body.room_id).await?;
    let sender = Sender::of(&call.requester);
    membership::kick(&app, &room, &sender, &call.body.user_id, call.body.reason).await?;
    Ok(kick_user::v3::Response::new())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/ban`
async fn ban_user(
    app: Arc<App>,
    call: Call<ban_user::v3::Request>,
) -> Result<ban_user::v3::Response> {
    let room = app.member_room(&call.body.room_id).await?;
    let sender = Sender::of(&call.requester);
    membership::ban(&app, &room, &sender, &call.body.user_id, call.body.reason).await?;
    Ok(ban_user::v3::Response::new())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/unban`
async fn unban_user(
    app: Arc<App>,
    call: Call<unban_user::v3::Request>,
) -> Result<unban_user::v3::Response> {
    let room = app.member_room(&call.body.room_id).await?;
    let sender = Sender::of(&call.requester);
    membership::unban(&app, &room, &sender, &call.body.user_id, call.body.reason).await?;
    Ok(unban_user::v3::Response::new())
}

/// `GET /_matrix/client/v3/joined_rooms`
async fn joined_rooms(
    app: Arc<App>,
    call: Call<joined_rooms::v3::Request>,
) -> Result<joined_rooms::v3::Response> {
    let members = members::of_user(&app.db, call.requester.user).await?;
    let joined: Vec<_> = members
        .iter()
        .filter(|member| member.membership == Membership::Join)
        .map(|member| member.room)
        .collect();
    let ids = storage::rooms::ids(&app.db, &joined).await?;
    let ids = ids
        .into_iter()
        .map(|(_, id)| OwnedRoomId::try_from(id).map_err(Error::internal));
    Ok(joined_rooms::v3::Response::new(ids.collect::<Result<_>>()?))
}

/// The id of the room that an id or an alias names, and the servers that its alias leads to.
pub(super) async fn name(
    app: &App,
    room: &RoomOrAliasId,
) -> Result<(OwnedRoomId, Vec<OwnedServerName>)> {
    match <&ruma::RoomAliasId>::try_from(room) {
        Ok(alias) => aliases::find(app, alias).await,
        Err(_) => {
            let room = OwnedRoomId::try_from(room.as_str());
            let room = room.map_err(|_| Error::invalid_param("neither a room id nor an alias"))?;
            Ok((room, Vec::new()))
        }
    }
}
