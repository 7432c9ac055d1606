//! "Server discovery": what this server is. Where it is stands in `client_server/discovery.rs`, beside what clients are told.

use std::sync::Arc;

use ruma::api::federation::discovery::get_server_version::v1 as get_server_version;

use crate::{
    app::App,
    error::Result,
    http::{Call, Routes},
};

pub(super) fn routes() -> Routes {
    Routes::new().add(version)
}

/// `GET /_matrix/federation/v1/version` ("Server implementation").
async fn version(
    _: Arc<App>,
    _: Call<get_server_version::Request>,
) -> Result<get_server_version::Response> {
    let mut server = get_server_version::Server::new();
    server.name = Some("Homing".to_owned());
    server.version = Some(env!("CARGO_PKG_VERSION").to_owned());
    let mut response = get_server_version::Response::new();
    response.server = Some(server);
    Ok(response)
}
