//! "Getting events for a room": what holds in it, and who is in it.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{
    OwnedUserId,
    api::client::{
        membership::{get_member_events, joined_members},
        state::{
            get_state_event_for_key::{self, v3::StateEventFormat},
            get_state_events,
        },
    },
    events::room::member::MembershipState,
};
use serde::{Deserialize, Serialize};

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    names::Key,
    room::{
        client_event::{Form, client_event, client_events, raw},
        erasure, timeline,
        visibility::{Access, Sight, Viewer, readable},
    },
    rooms::Room,
    storage::{self, Event, Membership, members},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<get_state_events::v3::Request, _, _>(get_state_events)
        .add::<get_state_event_for_key::v3::Request, _, _>(get_state_event_for_key)
        .add::<get_member_events::v3::Request, _, _>(get_member_events)
        .json::<joined_members::v3::Request, _, _, _>(joined_members)
}

/// `GET /_matrix/client/v3/rooms/{roomId}/state`
async fn get_state_events(
    app: Arc<App>,
    call: Call<get_state_events::v3::Request>,
) -> Result<get_state_events::v3::Response> {
    let viewer = Viewer::of(&app, &call.requester).await?;
    let (room, access) = readable(&app, &call.body.room_id, &viewer).await?;
    let state = match &access {
        Access::Now => current(&app, &room).await?,
        Access::Left { leave, .. } => timeline::state_after(&app, &room, leave, None).await?,
    };
    let sight = Sight::quick(&app, &room, &viewer).await?;
    let events = client_events(&app, &room, &state, &sight, Form::WithRoomId).await?;
    Ok(get_state_events::v3::Response::new(raw(events)))
}

async fn current(app: &App, room: &Room) -> Result<Vec<Arc<Event>>> {
    let events = storage::state::whole(&app.db, room.rules, room.nid).await?;
    Ok(events.into_iter().map(Arc::new).collect())
}

/// `GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}`
async fn get_state_event_for_key(
    app: Arc<App>,
    call: Call<get_state_event_for_key::v3::Request>,
) -> Result<get_state_event_for_key::v3::Response> {
    let request = call.body;
    let viewer = Viewer::of(&app, &call.requester).await?;
    let (room, access) = readable(&app, &request.room_id, &viewer).await?;
    let key: Key = (
        request.event_type.to_string().into(),
        request.state_key.into(),
    );
    let event = match &access {
        Access::Now => timeline::current(&app, &room, &key).await?,
        Access::Left { leave, .. } => {
            let keys = std::slice::from_ref(&key);
            timeline::state_after(&app, &room, leave, Some(keys))
                .await?
                .pop()
        }
    };
    let event =
        event.ok_or_else(|| Error::not_found("the room has no state with this type and key"))?;
    let sight = Sight::quick(&app, &room, &viewer).await?;
    let json = match request.format {
        StateEventFormat::Content => {
            let pruned = erasure::prune(&app, &room, &sight, [&event].into_iter()).await?;
            pruned.pdu(&event).content.clone()
        }
        StateEventFormat::Event => {
            client_event(&app, &room, &event, &sight, Form::WithRoomId).await?
        }
        _ => return Err(Error::invalid_param("there is no such format")),
    };
    Ok(get_state_event_for_key::v3::Response::new(json))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/members`
async fn get_member_events(
    app: Arc<App>,
    call: Call<get_member_events::v3::Request>,
) -> Result<get_member_events::v3::Response> {
    let request = call.body;
    let viewer = Viewer::of(&app, &call.requester).await?;
    let (room, access) = readable(&app, &request.room_id, &viewer).await?;
    let sight = Sight::quick(&app, &room, &viewer).await?;
    let state = match (&request.at, &access) {
        (Some(token), _) => {
            let place = timeline::place(&app, &room, token).await?;
            // Before the first event there is nobody. Who has the whole history in a timeline asks with such a token,
            // and wants to know whom the room begins with.
            let event = match timeline::last_before(&app, &room, place).await? {
                None => timeline::beginning(&app, &room).await?,
                event => event,
            };
            match event {
                Some(event) if !sight.may_see(&event) => {
                    return Err(Error::forbidden("you may not see the room at that time"));
                }
                Some(event) => timeline::state_after(&app, &room, &event, None).await?,
                None => Vec::new(),
            }
        }
        (None, Access::Left { leave, .. }) => {
            timeline::state_after(&app, &room, leave, None).await?
        }
        (None, Access::Now) => {
            let all = [
                Membership::Invite,
                Membership::Join,
                Membership::Knock,
                Membership::Leave,
                Membership::Ban,
            ];
            let members = members::of_room(&app.db, room.nid, &all).await?;
            let nids: Vec<_> = members.iter().map(|member| member.event).collect();
            let events = storage::events::some(&app.db, room.rules, &nids).await?;
            events.into_iter().map(Arc::new).collect()
        }
    };
    let wanted = |event: &Event| {
        let membership = membership_of(event);
        match (&request.membership, &request.not_membership) {
            (None, None) => true,
            (Some(is), None) => membership.as_ref() == Some(is),
            (None, Some(not)) => membership.as_ref() != Some(not),
            (Some(is), Some(not)) => {
                membership.as_ref() == Some(is) || membership.as_ref() != Some(not)
            }
        }
    };
    let members: Vec<_> = state
        .into_iter()
        .filter(|event| &*event.pdu.event_type == "m.room.member" && wanted(event))
        .collect();
    let events = client_events(&app, &room, &members, &sight, Form::WithRoomId).await?;
    Ok(get_member_events::v3::Response::new(raw(events)))
}

fn membership_of(event: &Event) -> Option<MembershipState> {
    #[derive(Deserialize)]
    struct Content {
        membership: MembershipState,
    }
    let content = event.pdu.content_as::<Content>().ok()?;
    Some(content.membership)
}

/// `GET /_matrix/client/v3/rooms/{roomId}/joined_members`
async fn joined_members(app: Arc<App>, call: Call<joined_members::v3::Request>) -> Result<Joined> {
    let viewer = Viewer::of(&app, &call.requester).await?;
    let (room, access) = readable(&app, &call.body.room_id, &viewer).await?;
    if !matches!(access, Access::Now) {
        return Err(Error::forbidden("you are not in this room any more"));
    }
    let members = members::of_room(&app.db, room.nid, &[Membership::Join]).await?;
    let nids: Vec<_> = members.iter().map(|member| member.user).collect();
    let mut ids = app.names.user_ids(&app.db, &nids).await?;
    let joined = members
        .into_iter()
        .filter_map(|member| {
            let profile = Profile {
                display_name: member.display_name,
                avatar_url: member.avatar_url,
            };
            Some((ids.remove(&member.user)?, profile))
        })
        .collect();
    Ok(Joined { joined })
}

/// Who has joined. Ruma's type leaves out what is not set; other servers say `null`, and clients have come to expect it.
#[derive(Debug, Serialize)]
struct Joined {
    joined: BTreeMap<OwnedUserId, Profile>,
}

#[derive(Debug, Serialize)]
struct Profile {
    display_name: Option<String>,
    avatar_url: Option<String>,
}
