//! "Typing Notifications".

use std::sync::Arc;

use ruma::api::client::typing::create_typing_event::{
    self,
    v3::{Typing, TypingInfo},
};

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    typing,
};

/// How long somebody types who does not say, in milliseconds.
const DEFAULT_TIMEOUT: &str = "30000";

pub(super) fn routes() -> Routes {
    Routes::new().filled::<create_typing_event::v3::Request, _, _>(
        "timeout",
        DEFAULT_TIMEOUT,
        create_typing_event,
    )
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/typing/{userId}`
async fn create_typing_event(
    app: Arc<App>,
    call: Call<create_typing_event::v3::Request>,
) -> Result<create_typing_event::v3::Response> {
    let user = call.requester.user;
    call.requester.must_be(&call.body.user_id)?;
    let room = app.member_room(&call.body.room_id).await?;
    if !room.seen().local.contains_key(&user) {
        return Err(Error::forbidden("you are not in this room"));
    }
    match call.body.state {
        Typing::Yes(TypingInfo { timeout, .. }) => typing::start(&app, &room, user, timeout),
        Typing::No => typing::stop(&app, &room, user),
    }
    Ok(create_typing_event::v3::Response::new())
}
