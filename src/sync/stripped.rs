//! Rooms that the user is invited to or knocks on ("Stripped state").

use std::{collections::HashMap, sync::Arc};

use serde_json::value::RawValue;

use super::{
    Context,
    answer::{Answer, Events, Invited, Knocked},
    lookup::{self, key},
};
use crate::{
    error::{Error, Result},
    room::{client_event, outline},
    rooms::Room,
    storage::{Member, Membership, RoomNid, UserNid, outside},
};

/// Adds those of the rooms that the user is invited to or knocks on; not invites by users whom the user ignores.
pub(super) async fn add(
    context: &Context<'_>,
    rooms: &HashMap<RoomNid, Arc<Room>>,
    members: &[Member],
    answer: &mut Answer,
) -> Result<()> {
    let outside: Vec<(&Member, &Arc<Room>)> = members
        .iter()
        .filter(|member| match member.membership {
            Membership::Invite => !context.viewer.ignored.contains(&member.sender),
            Membership::Knock => true,
            _ => false,
        })
        // What changes in the room meanwhile is not told.
        .filter(|member| member.pos > context.since || context.request.full_state)
        .filter_map(|member| Some((member, rooms.get(&member.room)?)))
        .collect();
    if outside.is_empty() {
        return Ok(());
    }
    let app = context.app;
    let (inside, elsewhere): (Vec<_>, Vec<_>) =
        outside.into_iter().partition(|(_, room)| room.is_here());
    let mut found = told(context, &elsewhere).await?;
    let outside = inside;
    let senders: Vec<UserNid> = outside.iter().map(|(member, _)| member.sender).collect();
    let senders = app.names.user_ids(&app.db, &senders).await?;
    let me = context.requester.user_id.as_str();
    let mut wanted = Vec::new();
    for (member, room) in &outside {
        for event_type in outline::TYPES {
            wanted.push((Arc::clone(room), key(event_type, "")));
        }
        for user in senders
            .get(&member.sender)
            .map(|sender| sender.as_str())
            .into_iter()
            .chain([me])
        {
            wanted.push((Arc::clone(room), key("m.room.member", user)));
        }
    }
    wanted.dedup_by(|one, other| one.1 == other.1 && one.0.nid == other.0.nid);
    for event in lookup::state(context, wanted).await?.into_values() {
        found
            .entry(event.room)
            .or_default()
            .push(client_event::stripped(&event)?);
    }
    for (member, room) in outside.into_iter().chain(elsewhere) {
        let events = Events {
            events: found.remove(&room.nid).unwrap_or_default(),
        };
        if member.membership == Membership::Invite {
            let invited = Invited {
                invite_state: events,
            };
            answer.rooms.invite.insert(room.id.clone(), invited);
        } else {
            let knocked = Knocked {
                knock_state: events,
            };
            answer.rooms.knock.insert(room.id.clone(), knocked);
        }
    }
    Ok(())
}

/// What the user was told of rooms that this server is not in.
async fn told(
    context: &Context<'_>,
    elsewhere: &[(&Member, &Arc<Room>)],
) -> Result<HashMap<RoomNid, Vec<Box<RawValue>>>> {
    let nids: Vec<RoomNid> = elsewhere.iter().map(|(_, room)| room.nid).collect();
    let told = outside::told(&context.app.db, context.viewer.user, &nids).await?;
    told.into_iter()
        .map(|(room, json)| Ok((room, serde_json::from_str(&json).map_err(Error::internal)?)))
        .collect()
}
