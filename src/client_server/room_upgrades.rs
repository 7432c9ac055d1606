//! "Room Upgrades".

use std::sync::Arc;

use ruma::api::client::room::upgrade_room::v3::{Request, Response};

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    room::{append::Sender, upgrade},
};

/// The most additional creators.
const MAX_CREATORS: usize = 200;

pub(super) fn routes() -> Routes {
    Routes::new().add::<Request, _, _>(upgrade_room)
}

/// `POST /_matrix/client/v3/rooms/{roomId}/upgrade`
async fn upgrade_room(app: Arc<App>, call: Call<Request>) -> Result<Response> {
    let request = call.body;
    if request.additional_creators.len() > MAX_CREATORS {
        return Err(Error::invalid_param("too many creators"));
    }
    let old = app.member_room(&request.room_id).await?;
    let new = upgrade::upgrade(
        &app,
        &old,
        &Sender::of(&call.requester),
        request.new_version,
        &request.additional_creators,
    )
    .await?;
    Ok(Response::new(new.id.clone()))
}
