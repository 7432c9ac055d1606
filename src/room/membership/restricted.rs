//! Restricted rooms: who may join because they are in another room (Client-Server API, "Restricted rooms").

use std::collections::HashSet;

use http::StatusCode;
use ruma::{
    OwnedUserId, UserId,
    api::error::ErrorKind,
    events::{
        StateEventType,
        room::join_rules::{AllowRule, JoinRule, RoomJoinRulesEventContent},
    },
};

use crate::{
    app::App,
    error::{Error, Result},
    room::{head, power},
    rooms::Room,
    storage::{Membership, members},
};

/// Whether somebody could not be let in only because nobody here may do that.
pub(in crate::room) fn is_unable(error: &Error) -> bool {
    matches!(error, Error::Matrix { kind, .. } if **kind == ErrorKind::UnableToGrantJoin)
}

/// The user of this server who lets `user` into a restricted room; `None` if the room is not restricted.
///
/// # Errors
/// `M_FORBIDDEN` if `user` is in none of the rooms that open this one, `M_UNABLE_TO_AUTHORISE_JOIN` if this server is in
/// none of those and cannot know, `M_UNABLE_TO_GRANT_JOIN` if nobody here can invite.
pub(in crate::room) async fn authoriser(
    app: &App,
    room: &Room,
    user: &UserId,
) -> Result<Option<OwnedUserId>> {
    if !room.rules.authorization.restricted_join_rule {
        return Ok(None);
    }
    let rule = head::state_content(app, room, &StateEventType::RoomJoinRules, "").await?;
    let rule = rule.map(|content: RoomJoinRulesEventContent| content.join_rule);
    let Some(JoinRule::Restricted(restricted) | JoinRule::KnockRestricted(restricted)) = rule
    else {
        return Ok(None);
    };
    let nid = app.names.find_user(&app.db, user).await?;
    let (mut opened, mut is_known) = (false, false);
    for rule in &restricted.allow {
        let AllowRule::RoomMembership(membership) = rule else {
            continue;
        };
        let other = app.rooms.by_id(&app.db, &app.log, &membership.room_id);
        let Some(other) = other.await?.filter(|other| other.is_here()) else {
            continue;
        };
        is_known = true;
        let Some(nid) = nid else {
            continue;
        };
        let member = members::get(&app.db, other.nid, nid).await?;
        if member.is_some_and(|member| member.membership == Membership::Join) {
            opened = true;
            break;
        }
    }
    if !opened && !is_known && !restricted.allow.is_empty() && !app.is_local(user) {
        return Err(Error::new(
            StatusCode::BAD_REQUEST,
            ErrorKind::UnableToAuthorizeJoin,
            "this server is in none of the rooms whose members may join this one",
        ));
    }
    if !opened {
        return Err(Error::forbidden(
            "you are in none of the rooms whose members may join this one",
        ));
    }
    let levels = power::now(app, room).await?;
    let local: Vec<_> = room.seen().local.keys().copied().collect();
    let ids: HashSet<OwnedUserId> = app
        .names
        .user_ids(&app.db, &local)
        .await?
        .into_values()
        .collect();
    let able = ids
        .into_iter()
        .filter(|user| levels.user_can_invite(user))
        .min();
    able.map(Some).ok_or_else(|| {
        let message = "nobody on this server can let you into the room";
        Error::new(
            StatusCode::BAD_REQUEST,
            ErrorKind::UnableToGrantJoin,
            message,
        )
    })
}
