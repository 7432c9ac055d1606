//! "Querying for information".

use std::sync::Arc;

use ruma::api::federation::query::{
    get_custom_information, get_profile_information, get_room_information,
};

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    room::{aliases, profile},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<get_profile_information::v1::Request, _, _>(get_profile_information)
        .add::<get_room_information::v1::Request, _, _>(get_room_information)
        .add::<get_custom_information::v1::Request, _, _>(get_custom_information)
}

/// `GET /_matrix/federation/v1/query/profile`
async fn get_profile_information(
    app: Arc<App>,
    call: Call<get_profile_information::v1::Request>,
) -> Result<get_profile_information::v1::Response> {
    let request = call.body;
    let mut fields = profile::local(&app, &request.user_id).await?;
    if let Some(wanted) = &request.field {
        fields.retain(|(name, _)| name == wanted.as_str());
    }
    Ok(fields.into_iter().collect())
}

/// `GET /_matrix/federation/v1/query/directory`
async fn get_room_information(
    app: Arc<App>,
    call: Call<get_room_information::v1::Request>,
) -> Result<get_room_information::v1::Response> {
    let alias = call.body.room_alias;
    if alias.server_name() != app.name() {
        return Err(Error::not_found(format!("{alias} is no alias here")));
    }
    let (room_id, servers) = aliases::find(&app, &alias).await?;
    Ok(get_room_information::v1::Response::new(room_id, servers))
}

/// `GET /_matrix/federation/v1/query/{queryType}`
///
/// There are no other queries than those above.
async fn get_custom_information(
    _: Arc<App>,
    call: Call<get_custom_information::v1::Request>,
) -> Result<get_custom_information::v1::Response> {
    let kind = call.body.query_type;
    Err(Error::unrecognized(format!("there is no query `{kind}`")))
}
