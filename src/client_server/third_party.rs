//! "Third-party Networks" and "Voice over IP": what this server has none of.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Request, State},
    routing::get,
};
use ruma::api::{
    auth_scheme::AccessToken,
    client::{
        thirdparty::{
            get_location_for_protocol, get_location_for_room_alias, get_protocol, get_protocols,
            get_user_for_protocol, get_user_for_user_id,
        },
        voip::get_turn_server_info,
    },
};
use serde_json::{Value, json};

use crate::{
    app::App,
    auth::Authenticate as _,
    error::{Error, Result},
    http::{Call, Routes},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<get_protocols::v3::Request, _, _>(get_protocols)
        .add::<get_protocol::v3::Request, _, _>(get_protocol)
        .add::<get_location_for_protocol::v3::Request, _, _>(get_location_for_protocol)
        .add::<get_location_for_room_alias::v3::Request, _, _>(get_location_for_room_alias)
        .add::<get_user_for_protocol::v3::Request, _, _>(get_user_for_protocol)
        .add::<get_user_for_user_id::v3::Request, _, _>(get_user_for_user_id)
        .raw::<get_turn_server_info::v3::Request>(get(get_turn_server_info))
}

/// `GET /_matrix/client/v3/thirdparty/protocols`
async fn get_protocols(
    _: Arc<App>,
    _: Call<get_protocols::v3::Request>,
) -> Result<get_protocols::v3::Response> {
    Ok(get_protocols::v3::Response::new(BTreeMap::new()))
}

fn no_network<T>() -> Result<T> {
    Err(Error::not_found(
        "this server is bridged to no other network",
    ))
}

/// `GET /_matrix/client/v3/thirdparty/protocol/{protocol}`
async fn get_protocol(
    _: Arc<App>,
    _: Call<get_protocol::v3::Request>,
) -> Result<get_protocol::v3::Response> {
    no_network()
}

/// `GET /_matrix/client/v3/thirdparty/location/{protocol}`
async fn get_location_for_protocol(
    _: Arc<App>,
    _: Call<get_location_for_protocol::v3::Request>,
) -> Result<get_location_for_protocol::v3::Response> {
    no_network()
}

/// `GET /_matrix/client/v3/thirdparty/location`
async fn get_location_for_room_alias(
    _: Arc<App>,
    _: Call<get_location_for_room_alias::v3::Request>,
) -> Result<get_location_for_room_alias::v3::Response> {
    no_network()
}

/// `GET /_matrix/client/v3/thirdparty/user/{protocol}`
async fn get_user_for_protocol(
    _: Arc<App>,
    _: Call<get_user_for_protocol::v3::Request>,
) -> Result<get_user_for_protocol::v3::Response> {
    no_network()
}

/// `GET /_matrix/client/v3/thirdparty/user`
async fn get_user_for_user_id(
    _: Arc<App>,
    _: Call<get_user_for_user_id::v3::Request>,
) -> Result<get_user_for_user_id::v3::Response> {
    no_network()
}

/// `GET /_matrix/client/v3/voip/turnServer`
///
/// Without a TURN server the answer is empty, as clients know it from Synapse; ruma's type cannot say that.
async fn get_turn_server_info(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<Value>> {
    let (parts, _) = request.into_parts();
    AccessToken::authenticate(&app, &parts).await?;
    Ok(Json(json!({})))
}
