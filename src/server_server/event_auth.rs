//! "Retrieving event authorisation information".

use std::sync::Arc;

use axum::response::Response;
use ruma::api::federation::authorization::get_event_authorization::v1::Request;

use super::{
    event_lists::Object,
    events::{chain, expect_sight, find},
};
use crate::{
    app::App,
    error::Result,
    http::{Call, Routes},
    room::server_sight,
};

pub(super) fn routes() -> Routes {
    Routes::new().stream::<Request, _, _>(get_event_authorization)
}

/// `GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}`
async fn get_event_authorization(app: Arc<App>, call: Call<Request>) -> Result<Response> {
    let request = call.body;
    let server = &call.requester.server;
    let (room, sight) = server_sight::readable(&app, &request.room_id, server).await?;
    let event = find(&app, &room, &request.event_id).await?;
    expect_sight(&sight, &event)?;
    let chain = chain(&app, &[event.nid]).await?;
    Ok(Object::default().events("auth_chain", chain).answer(app))
}
