//! "OpenID".

use std::{sync::Arc, time::Duration};

use ruma::{api::client::account::request_openid_token, authentication::TokenType};

use crate::{
    app::App,
    auth::{hash_token, new_token},
    error::{Error, Result},
    http::{Call, Routes},
    log::Change,
    rate_limit::{self, Class},
    storage::tokens,
};

/// How long a token is valid.
const LIFETIME: Duration = Duration::from_hours(1);

pub(super) fn routes() -> Routes {
    Routes::new().add::<request_openid_token::v3::Request, _, _>(request_openid_token)
}

/// `POST /_matrix/client/v3/user/{userId}/openid/request_token`
async fn request_openid_token(
    app: Arc<App>,
    call: Call<request_openid_token::v3::Request>,
) -> Result<request_openid_token::v3::Response> {
    let requester = call.requester;
    if call.body.user_id != requester.user_id {
        return Err(Error::forbidden("a token is for oneself"));
    }
    rate_limit::check(&app, Class::Messages, &requester)?;
    let token = new_token("openid");
    let now = app.clock.now();
    let lifetime = i64::try_from(LIFETIME.as_millis()).map_err(Error::internal)?;
    let mut change = Change::new();
    for write in tokens::add_openid(&hash_token(&token), requester.user, now + lifetime, now) {
        change.write(write);
    }
    app.log.append(change).await?;
    Ok(request_openid_token::v3::Response::new(
        token,
        TokenType::Bearer,
        app.server_name.clone(),
        LIFETIME,
    ))
}
