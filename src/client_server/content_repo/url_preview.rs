//! What clients show of pages to which people link.

#![expect(
    deprecated,
    reason = "ruma marks the old paths so, but clients still use them"
)]

use std::sync::Arc;

use axum::{
    Json,
    extract::{RawPathParams, Request, State},
    response::{IntoResponse as _, Response},
    routing::get,
};
use ruma::api::{
    IncomingRequest,
    auth_scheme::AccessToken,
    client::{authenticated_media::get_media_preview::v1, media::get_media_preview::v3},
};

use crate::{
    app::App,
    auth::{self, Authenticate as _},
    error::{Error, Result},
    http::{Routes, parse},
    media::preview,
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .raw::<v1::Request>(get(media_preview::<v1::Request>))
        .raw::<v3::Request>(get(media_preview::<v3::Request>))
}

/// The address that a request asks about.
struct Address(String);

impl From<v1::Request> for Address {
    fn from(request: v1::Request) -> Self {
        Self(request.url)
    }
}

impl From<v3::Request> for Address {
    fn from(request: v3::Request) -> Self {
        Self(request.url)
    }
}

/// `GET /_matrix/client/v1/media/preview_url` and `GET /_matrix/media/v3/preview_url`
///
/// An endpoint that is not there, unless the configuration wants it (`url_previews.enabled`). The page is shown as it is
/// now, whatever `ts` asks for.
async fn media_preview<R>(
    State(app): State<Arc<App>>,
    params: RawPathParams,
    request: Request,
) -> Result<Response>
where
    R: IncomingRequest<Authentication = AccessToken> + Into<Address>,
{
    if !app.config.url_previews.enabled {
        return Err(Error::unrecognized("this server makes no previews"));
    }
    let (parts, _) = request.into_parts();
    let requester = AccessToken::authenticate(&app, &parts).await?;
    let Address(address) = parse::<R>(&parts, &params, &[])?.into();
    let preview = preview::get(&app, &requester, &address);
    let preview = auth::while_signed_in(&app, &requester, preview).await?;
    Ok(Json(preview).into_response())
}
