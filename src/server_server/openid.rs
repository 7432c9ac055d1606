//! "OpenID".

use std::sync::Arc;

use ruma::api::federation::openid::get_openid_userinfo::v1::{Request, Response};

use crate::{
    app::App,
    auth::hash_token,
    error::{Error, Result},
    http::{Call, Routes},
    storage::tokens,
};

pub(super) fn routes() -> Routes {
    Routes::new().add::<Request, _, _>(get_openid_userinfo)
}

/// `GET /_matrix/federation/v1/openid/userinfo`
async fn get_openid_userinfo(app: Arc<App>, call: Call<Request>) -> Result<Response> {
    let token = tokens::openid(&app.db, &hash_token(&call.body.access_token)).await?;
    let (user, _) = token
        .filter(|(_, expires)| *expires > app.clock.now())
        .ok_or_else(|| Error::unknown_token(false))?;
    let user_id = app.names.user_id(&app.db, user).await?;
    Ok(Response::new(user_id))
}
