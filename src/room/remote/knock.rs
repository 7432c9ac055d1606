//! Asking to be let into a room of other servers.

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, RoomId, RoomVersionId, ServerName,
    api::federation::membership::{create_knock_event, prepare_knock_event},
};

use super::{
    Candidates, HANDSHAKE, failure, stub, telling,
    template::{Template, as_raw, rules, versions},
};
use crate::{app::App, error::Result, room::append::Sender};

/// Knocks through one of some servers.
///
/// # Errors
/// What the servers answer, if none of them takes the knock.
pub async fn knock(
    app: &App,
    id: &RoomId,
    sender: &Sender,
    content: CanonicalJsonObject,
    mut servers: Candidates,
) -> Result<()> {
    let mut failures = Vec::new();
    while let Some(server) = servers.next(&failures) {
        match through(app, &server, id, sender, content.clone()).await {
            Ok(()) => return Ok(()),
            Err(error) => failures.push(error),
        }
    }
    Err(telling(failures))
}

async fn through(
    app: &App,
    server: &ServerName,
    id: &RoomId,
    sender: &Sender,
    content: CanonicalJsonObject,
) -> Result<()> {
    let user = &sender.id;
    let mut request = prepare_knock_event::v1::Request::new(id.to_owned(), user.clone());
    request.ver = versions();
    let prepared = app.federation.send_within(HANDSHAKE, server, request).await;
    let prepared = prepared.map_err(|error| failure(&error))?;
    let rules = rules(Some(&prepared.room_version))?;
    let template = Template::read(&prepared.event, server, id, user, "knock")?;
    let pdu = template.sign(app, rules, id, user, content)?;
    let request =
        create_knock_event::v1::Request::new(id.to_owned(), pdu.event_id.clone(), as_raw(&pdu)?);
    let answer = app.federation.send_within(HANDSHAKE, server, request);
    let answer = answer.await.map_err(|error| failure(&error))?;
    let told = super::invite::told(&answer.knock_room_state, rules);
    let version: RoomVersionId = prepared.room_version;
    let room = stub::room(app, id, &version, None).await?;
    stub::set(app, &room, user, Arc::new(pdu), Some(&told)).await
}
