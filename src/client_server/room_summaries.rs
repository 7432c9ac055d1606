//! "Room Summaries".

use std::sync::Arc;

use ruma::{
    api::client::room::get_summary::v1::{Request, Response},
    events::room::member::MembershipState,
};

use super::membership;
use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    room::summary,
    storage::Membership,
};

/// The path under which some clients knew the endpoint before it was specified; ruma has only the newer one.
const FIRST_PATH: &str = "/_matrix/client/unstable/im.nheko.summary/summary/{room_id_or_alias}";

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<Request, _, _>(get_summary)
        .at::<Request, _, _>(FIRST_PATH, get_summary)
}

/// `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`
///
/// Without an access token it tells of rooms of which everybody may know.
async fn get_summary(app: Arc<App>, call: Call<Request>) -> Result<Response> {
    let unknown = || Error::not_found("there is no such room, or you may not know of it");
    let room = membership::find(&app, &call.body.room_id_or_alias).await?;
    let rooms = summary::by_ids(&app, std::slice::from_ref(&room.id)).await?;
    let user = call.requester.as_ref().map(|requester| requester.user);
    let access = summary::access(&app, user, &rooms).await?;
    let membership = access.memberships.get(&room.nid).copied();
    if !access.visible.contains(&room.nid) && membership != Some(Membership::Knock) {
        return Err(unknown());
    }
    let summary = rooms.into_iter().next().ok_or_else(unknown)?;
    let mut response = Response::new(summary.into_summary());
    response.membership = user.and(membership).map(|membership| match membership {
        Membership::Invite => MembershipState::Invite,
        Membership::Join => MembershipState::Join,
        Membership::Knock => MembershipState::Knock,
        Membership::Leave => MembershipState::Leave,
        Membership::Ban => MembershipState::Ban,
    });
    Ok(response)
}
