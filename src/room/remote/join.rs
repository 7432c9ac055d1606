//! Joining a room through servers that are in it.

use std::{sync::Arc, time::Duration};

use homing_federation::client::Limits;
use ruma::{
    CanonicalJsonObject, RoomId, RoomVersionId, ServerName,
    api::federation::membership::{create_join_event, prepare_join_event},
};
use tokio::time::timeout;

use super::{
    Candidates, HANDSHAKE, failure, ingest, refusal, stub, telling,
    template::{Template, as_raw, rules, versions},
};
use crate::{
    app::App,
    error::Result,
    room::{append::Sender, receive::parts},
    rooms::Room,
};

/// What the answer with a room's state may cost: rooms are large, and their servers slow.
const LIMITS: Limits = Limits {
    time: Duration::from_mins(5),
    bytes: 512 << 20,
};
/// How long others who want to join the same room wait for the one who does: nobody waits for their slow server.
pub(super) const COURTESY: Duration = Duration::from_secs(5);

/// How a join ended.
#[derive(Debug)]
pub enum Joined {
    /// The user is in the room.
    Through(Arc<Room>),
    /// The user is not, but this server is meanwhile: they can join here.
    Here(Arc<Room>),
}

/// Joins a room through one of some servers.
///
/// # Errors
/// What the servers answer, if none of them lets the user in.
pub async fn join(
    app: &App,
    id: &RoomId,
    sender: &Sender,
    content: CanonicalJsonObject,
    mut servers: Candidates,
) -> Result<Joined> {
    let mut failures = Vec::new();
    while let Some(server) = servers.next(&failures) {
        match through(app, &server, id, sender, content.clone()).await {
            Ok(joined) => return Ok(joined),
            Err(error) => {
                tracing::info!(room = %id, %server, %error, "cannot join through a server");
                failures.push(error);
            }
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
) -> Result<Joined> {
    let user = &sender.id;
    let mut request = prepare_join_event::v1::Request::new(id.to_owned(), user.clone());
    request.ver = versions();
    let prepared = app.federation.send_within(HANDSHAKE, server, request).await;
    let prepared = prepared.map_err(|error| failure(&error))?;
    let rules = rules(prepared.room_version.as_ref())?;
    let version = prepared.room_version.unwrap_or(RoomVersionId::V1);
    let template = Template::read(&prepared.event, server, id, user, "join")?;
    let is_able = template.is_authorised();
    let pdu = template.sign(app, rules, id, user, content)?;
    let room = stub::room(app, id, &version, None).await?;
    let _first = timeout(COURTESY, room.joining.lock()).await;
    stub::expect_known(app, &room).await?;
    if room.is_here() && !is_able {
        return Ok(Joined::Here(Arc::clone(&room)));
    }
    let request =
        create_join_event::v2::Request::new(id.to_owned(), pdu.event_id.clone(), as_raw(&pdu)?);
    let answer = app.federation.open(LIMITS, server, request).await;
    let answer = answer.map_err(|error| refusal(&error))?;
    let parts = parts::read(answer.into_body());
    ingest::ingest(app, &room, sender, (Arc::new(pdu), is_able), server, parts).await
}
