//! "Room aliases".

use std::sync::Arc;

use http::StatusCode;
use ruma::{
    OwnedRoomAliasId,
    api::{
        client::{
            alias::{create_alias, delete_alias, get_alias},
            room::aliases as get_aliases,
        },
        error::ErrorKind,
    },
    events::{
        StateEventType,
        room::history_visibility::{HistoryVisibility, RoomHistoryVisibilityEventContent},
    },
};

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    log::{AppendError, Change},
    room::{aliases, head},
    storage,
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<create_alias::v3::Request, _, _>(create_alias)
        .add::<get_alias::v3::Request, _, _>(get_alias)
        .add::<delete_alias::v3::Request, _, _>(delete_alias)
        .add::<get_aliases::v3::Request, _, _>(get_aliases)
}

/// `PUT /_matrix/client/v3/directory/room/{roomAlias}`
///
/// For members of the room, and for administrators.
async fn create_alias(
    app: Arc<App>,
    call: Call<create_alias::v3::Request>,
) -> Result<create_alias::v3::Response> {
    let (request, requester) = (call.body, call.requester);
    aliases::check(&app, &request.room_alias)?;
    let room = app.member_room(&request.room_id).await?;
    if !requester.is_admin && !room.seen().local.contains_key(&requester.user) {
        return Err(Error::forbidden("only members of a room give it aliases"));
    }
    let mut change = Change::new();
    change.write(storage::aliases::add(
        &request.room_alias,
        room.nid,
        requester.user,
    ));
    match app.log.append(change).await {
        Ok(_) => Ok(create_alias::v3::Response::new()),
        Err(AppendError::Duplicate) => Err(Error::new(
            StatusCode::CONFLICT,
            ErrorKind::Unknown,
            format!("{} exists already", request.room_alias),
        )),
        Err(error) => Err(error.into()),
    }
}

/// `GET /_matrix/client/v3/directory/room/{roomAlias}`
async fn get_alias(
    app: Arc<App>,
    call: Call<get_alias::v3::Request>,
) -> Result<get_alias::v3::Response> {
    let (room_id, servers) = aliases::find(&app, &call.body.room_alias).await?;
    Ok(get_alias::v3::Response::new(room_id, servers))
}

/// `DELETE /_matrix/client/v3/directory/room/{roomAlias}`
///
/// For who made the alias, who may change the room's `m.room.canonical_alias`, and administrators.
async fn delete_alias(
    app: Arc<App>,
    call: Call<delete_alias::v3::Request>,
) -> Result<delete_alias::v3::Response> {
    aliases::delete(&app, &call.requester, &call.body.room_alias).await?;
    Ok(delete_alias::v3::Response::new())
}

/// `GET /_matrix/client/v3/rooms/{roomId}/aliases`
async fn get_aliases(
    app: Arc<App>,
    call: Call<get_aliases::v3::Request>,
) -> Result<get_aliases::v3::Response> {
    let room = app.member_room(&call.body.room_id).await?;
    let is_member = room.seen().local.contains_key(&call.requester.user);
    if !is_member && !call.requester.is_admin {
        let kind = StateEventType::RoomHistoryVisibility;
        let visibility: Option<RoomHistoryVisibilityEventContent> =
            head::state_content(&app, &room, &kind, "").await?;
        if visibility
            .is_none_or(|content| content.history_visibility != HistoryVisibility::WorldReadable)
        {
            return Err(Error::forbidden("you are not in this room"));
        }
    }
    let aliases = storage::aliases::of_room(&app.db, room.nid).await?;
    let aliases = aliases
        .into_iter()
        .map(|alias| OwnedRoomAliasId::try_from(alias).map_err(Error::internal));
    Ok(get_aliases::v3::Response::new(
        aliases.collect::<Result<_>>()?,
    ))
}
