//! "Room Summaries".

use std::sync::Arc;

use http::StatusCode;
use ruma::{
    api::client::room::get_summary::v1::{Request, Response},
    events::room::member::MembershipState,
};

use super::membership;
use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    room::{hierarchy::elsewhere, summary},
    rooms::Room,
    storage::{Membership, UserNid, members},
};

/// The path under which some clients knew the endpoint before it was specified; ruma has only the newer one.
const FIRST_PATH: &str = "/_matrix/client/unstable/im.nheko.summary/summary/{room_id_or_alias}";

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<Request, _, _>(get_summary)
        .at::<Request, _, _>(FIRST_PATH, get_summary)
        .with_join_rules()
}

/// `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`
///
/// Other servers are asked about rooms that this server is not in. Without an access token it tells of rooms of which everybody may know.
async fn get_summary(app: Arc<App>, call: Call<Request>) -> Result<Response> {
    let unknown = || Error::not_found("there is no such room, or you may not know of it");
    let user = call.requester.as_ref().map(|requester| requester.user);
    let (room_id, mut via) = membership::name(&app, &call.body.room_id_or_alias).await?;
    let room = match app.room(&room_id).await {
        Err(error) if error.has_status(StatusCode::NOT_FOUND) => None,
        room => Some(room?),
    };
    let is_here = |room: &Arc<Room>| !room.seen().local.is_empty();
    let room = match room {
        Some(room) if is_here(&room) => room,
        old => {
            via.splice(0..0, call.body.via);
            via.extend(elsewhere::servers(&app, user, &room_id).await?);
            let told = elsewhere::summary(&app, user, &room_id, &via).await;
            match (told, old) {
                // Better what was known here once than nothing.
                (Err(_), Some(old)) => old,
                (Err(error), None) => return Err(error),
                (Ok(told), room) => {
                    let mut response = Response::new(told);
                    response.membership = match (room, user) {
                        (Some(room), Some(user)) => of_user(&app, &room, user).await?,
                        _ => None,
                    };
                    return Ok(response);
                }
            }
        }
    };
    let rooms = summary::by_ids(&app, std::slice::from_ref(&room.id)).await?;
    let access = summary::access(&app, user, &rooms).await?;
    let membership = access.memberships.get(&room.nid).copied();
    if !access.visible.contains(&room.nid) && membership != Some(Membership::Knock) {
        return Err(unknown());
    }
    let summary = rooms.into_iter().next().ok_or_else(unknown)?;
    let mut response = Response::new(summary.into_summary());
    response.membership = user.and(membership).map(state);
    Ok(response)
}

/// What a user is to a room.
async fn of_user(app: &App, room: &Room, user: UserNid) -> Result<Option<MembershipState>> {
    let member = members::get(&app.db, room.nid, user).await?;
    Ok(member.map(|member| state(member.membership)))
}

fn state(membership: Membership) -> MembershipState {
    match membership {
        Membership::Invite => MembershipState::Invite,
        Membership::Join => MembershipState::Join,
        Membership::Knock => MembershipState::Knock,
        Membership::Leave => MembershipState::Leave,
        Membership::Ban => MembershipState::Ban,
    }
}
