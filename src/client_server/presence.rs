//! "Presence": how users are.

use std::{sync::Arc, time::Duration};

use ruma::{
    api::client::presence::{get_presence, set_presence},
    presence::PresenceState,
};

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    presence,
    storage::directory,
};

/// The longest status message, in bytes.
const STATUS_BYTES: usize = 1024;

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<set_presence::v3::Request, _, _>(set_presence)
        .add::<get_presence::v3::Request, _, _>(get_presence)
}

/// `PUT /_matrix/client/v3/presence/{userId}/status`
async fn set_presence(
    app: Arc<App>,
    call: Call<set_presence::v3::Request>,
) -> Result<set_presence::v3::Response> {
    let body = call.body;
    call.requester.must_be(&body.user_id)?;
    if let Some(status) = &body.status_msg
        && (status.len() > STATUS_BYTES || status.contains('\0'))
    {
        return Err(Error::invalid_param(format!(
            "a status message has at most {STATUS_BYTES} bytes"
        )));
    }
    presence::set(&app, &call.requester, &body.presence, body.status_msg).await?;
    Ok(set_presence::v3::Response::new())
}

/// `GET /_matrix/client/v3/presence/{userId}/status`
async fn get_presence(
    app: Arc<App>,
    call: Call<get_presence::v3::Request>,
) -> Result<get_presence::v3::Response> {
    let requester = &call.requester;
    let forbidden = || Error::forbidden("you share no room with this user");
    let user = app
        .names
        .find_user(&app.db, &call.body.user_id)
        .await?
        .ok_or_else(forbidden)?;
    if user != requester.user
        && directory::sharing_of(&app.db, requester.user, &[user])
            .await?
            .is_empty()
    {
        return Err(forbidden());
    }
    if !app.config.presence.enabled {
        return Ok(get_presence::v3::Response::new(PresenceState::Offline));
    }
    let view = presence::view(&app, user).await?;
    let mut response = get_presence::v3::Response::new(view.state.clone());
    response.last_active_ago = view
        .last_active_ago(app.clock.now())
        .map(Duration::from_millis);
    if view.state == PresenceState::Online {
        response.currently_active = Some(view.currently_active);
    }
    response.status_msg = view.status_msg;
    Ok(response)
}
