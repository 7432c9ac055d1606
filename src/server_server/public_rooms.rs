//! "Published Room Directory".

use std::sync::Arc;

use axum::extract::Query;
use ruma::{
    UInt,
    api::federation::directory::{get_public_rooms, get_public_rooms_filtered},
};

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    room::{
        directory::{self, Networks, token_after, token_before},
        summary::Summary,
    },
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<get_public_rooms::v1::Request, _, _>(get_public_rooms)
        .add::<get_public_rooms_filtered::v1::Request, _, _>(get_public_rooms_filtered)
        .without_nulls()
}

/// `GET /_matrix/federation/v1/publicRooms`
async fn get_public_rooms(
    app: Arc<App>,
    call: Call<get_public_rooms::v1::Request>,
) -> Result<get_public_rooms::v1::Response> {
    // Ruma takes what is no boolean for `false`.
    Query::<Networks>::try_from_uri(&call.parts.uri)
        .map_err(|error| Error::invalid_param(error.to_string()))?;
    let request = call.body;
    let (since, limit) = (request.since.as_deref(), request.limit);
    let (network, query) = (&request.room_network, directory::Query::default());
    let page = directory::asked(&app, since, limit, network, &query).await?;
    let mut response = get_public_rooms::v1::Response::new();
    response.prev_batch = page.before.map(token_before);
    response.next_batch = page.after.map(token_after);
    response.total_room_count_estimate = UInt::try_from(page.total).ok();
    response.chunk = page.rooms.into_iter().map(Summary::chunk).collect();
    Ok(response)
}

/// `POST /_matrix/federation/v1/publicRooms`
async fn get_public_rooms_filtered(
    app: Arc<App>,
    call: Call<get_public_rooms_filtered::v1::Request>,
) -> Result<get_public_rooms_filtered::v1::Response> {
    directory::check_networks(&call.raw)?;
    let request = call.body;
    let (since, limit) = (request.since.as_deref(), request.limit);
    let query = directory::Query::from(request.filter);
    let network = &request.room_network;
    let page = directory::asked(&app, since, limit, network, &query).await?;
    let mut response = get_public_rooms_filtered::v1::Response::new();
    response.prev_batch = page.before.map(token_before);
    response.next_batch = page.after.map(token_after);
    response.total_room_count_estimate = UInt::try_from(page.total).ok();
    response.chunk = page.rooms.into_iter().map(Summary::chunk).collect();
    Ok(response)
}
