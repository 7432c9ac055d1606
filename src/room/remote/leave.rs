//! Rejecting an invite to a room of other servers, or taking back a knock.

use std::sync::Arc;

use homing_federation::{Draft, Pdu};
use ruma::{
    CanonicalJsonObject, ServerName,
    api::federation::membership::{create_leave_event, prepare_leave_event},
};
use tracing::info;

use super::{
    FAREWELL, candidates, failure, stub,
    template::{Template, as_raw, rules},
    told_by,
};
use crate::{
    app::App,
    error::{Error, Result},
    room::append::Sender,
    rooms::Room,
    storage::{Event, Membership},
};

/// How many servers are told: people wait for it, and need not.
const FAREWELLS: usize = 3;

/// Leaves a room that this server is not in. If no other server can be told, the user is rid of it all the same.
///
/// # Errors
/// `M_FORBIDDEN` if the user is nothing to the room.
pub async fn leave(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    content: CanonicalJsonObject,
) -> Result<()> {
    let Some((member, event)) = stub::member(app, room, sender.user).await? else {
        return Err(Error::forbidden("you are not in this room"));
    };
    if !matches!(member.membership, Membership::Invite | Membership::Knock) {
        return Err(Error::forbidden("you are not in this room"));
    }
    let inviter = (member.membership == Membership::Invite).then_some(&*event.pdu.sender);
    let told = told_by(app, room, sender.user).await?;
    let servers = candidates(app, Some(room), &room.id, &told, inviter);
    for server in servers.all().take(FAREWELLS) {
        match through(app, &server, room, sender, content.clone()).await {
            Ok(pdu) => return stub::set(app, room, &sender.id, Arc::new(pdu), None).await,
            Err(error) => info!(room = %room.id, %server, %error, "an invite cannot be rejected"),
        }
    }
    let pdu = alone(app, room, sender, content, &event)?;
    stub::set(app, room, &sender.id, Arc::new(pdu), None).await
}

async fn through(
    app: &App,
    server: &ServerName,
    room: &Room,
    sender: &Sender,
    content: CanonicalJsonObject,
) -> Result<Pdu> {
    let user = &sender.id;
    let request = prepare_leave_event::v1::Request::new(room.id.clone(), user.clone());
    let prepared = app.federation.send_within(FAREWELL, server, request).await;
    let prepared = prepared.map_err(|error| failure(&error))?;
    let version = prepared.room_version.as_ref().unwrap_or(&room.version);
    let rules = rules(Some(version))?;
    let template = Template::read(&prepared.event, server, &room.id, user, "leave")?;
    let pdu = template.sign(app, rules, &room.id, user, content)?;
    let request =
        create_leave_event::v2::Request::new(room.id.clone(), pdu.event_id.clone(), as_raw(&pdu)?);
    let sent = app.federation.send_within(FAREWELL, server, request).await;
    sent.map_err(|error| failure(&error))?;
    Ok(pdu)
}

/// A leave that nobody else hears of, on top of the member event that it ends.
fn alone(
    app: &App,
    room: &Room,
    sender: &Sender,
    content: CanonicalJsonObject,
    before: &Event,
) -> Result<Pdu> {
    let mut auth_events = before.pdu.auth_events.to_vec();
    auth_events.truncate(homing_federation::draft::MAX_AUTH_EVENTS - 1);
    auth_events.push(before.pdu.event_id.clone());
    let draft = Draft {
        room_id: Some(room.id.clone()),
        sender: sender.id.clone(),
        event_type: "m.room.member".to_owned(),
        state_key: Some(sender.id.to_string()),
        content,
        redacts: None,
        origin_server_ts: app.clock.timestamp(),
        prev_events: vec![before.pdu.event_id.clone()],
        auth_events,
        depth: before.pdu.depth.saturating_add(1),
    };
    Ok(draft.sign(room.rules, app.name(), &app.signing_key)?)
}
