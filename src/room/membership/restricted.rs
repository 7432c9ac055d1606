//! Restricted rooms: who may join because they are in another room (Client-Server API, "Restricted rooms").

use std::collections::HashSet;

use http::StatusCode;
use ruma::{
    OwnedUserId,
    api::error::ErrorKind,
    events::{
        StateEventType,
        room::join_rules::{AllowRule, JoinRule, RoomJoinRulesEventContent},
    },
};

use crate::{
    app::App,
    error::{Error, Result},
    room::{append::Sender, head, power},
    rooms::Room,
    storage::{Membership, members},
};

/// The user of this server who lets `sender` into a restricted room; `None` if the room is not restricted.
///
/// # Errors
/// `M_FORBIDDEN` if `sender` is in none of the rooms that open this one, `M_UNABLE_TO_GRANT_JOIN` if nobody here can
/// invite.
pub(super) async fn authoriser(
    app: &App,
    room: &Room,
    sender: &Sender,
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
    let mut opened = false;
    for rule in &restricted.allow {
        let AllowRule::RoomMembership(membership) = rule else {
            continue;
        };
        if let Some(other) = app
            .rooms
            .by_id(&app.db, || app.head(), &membership.room_id)
            .await?
        {
            let member = members::get(&app.db, other.nid, sender.user).await?;
            if member.is_some_and(|member| member.membership == Membership::Join) {
                opened = true;
                break;
            }
        }
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
