//! The paths that need no access token. The specification froze them: what was uploaded since is served there only if
//! the configuration says so (`media.unauthenticated`).

#![expect(
    deprecated,
    reason = "ruma marks these endpoints so, but clients still use them"
)]

use std::sync::Arc;

use axum::{
    extract::{RawPathParams, Request, State},
    response::Response,
    routing::get,
};
use ruma::api::{
    IncomingRequest,
    client::media::{
        get_content, get_content_as_filename, get_content_thumbnail, get_media_config,
    },
};

use super::{Cache, WantedContent, WantedThumbnail, send_content, send_thumbnail, upload_size};
use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes, parse},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<get_media_config::v3::Request, _, _>(media_config)
        .raw::<get_content::v3::Request>(get(content::<get_content::v3::Request>))
        .raw::<get_content_as_filename::v3::Request>(get(content::<
            get_content_as_filename::v3::Request,
        >))
        .raw::<get_content_thumbnail::v3::Request>(get(content_thumbnail))
}

/// `GET /_matrix/media/v3/config`
async fn media_config(
    app: Arc<App>,
    _: Call<get_media_config::v3::Request>,
) -> Result<get_media_config::v3::Response> {
    Ok(get_media_config::v3::Response::new(upload_size(&app)))
}

/// `GET /_matrix/media/v3/download/{serverName}/{mediaId}` and
/// `GET /_matrix/media/v3/download/{serverName}/{mediaId}/{fileName}`
async fn content<R>(
    State(app): State<Arc<App>>,
    params: RawPathParams,
    request: Request,
) -> Result<Response>
where
    R: IncomingRequest + Into<WantedContent>,
{
    let (parts, _) = request.into_parts();
    let wanted = parse::<R>(&parts, &params, &[])?.into();
    refuse_if_frozen(&app)?;
    send_content(&app, &parts.headers, wanted, Cache::Public).await
}

/// `GET /_matrix/media/v3/thumbnail/{serverName}/{mediaId}`
async fn content_thumbnail(
    State(app): State<Arc<App>>,
    params: RawPathParams,
    request: Request,
) -> Result<Response> {
    let (parts, _) = request.into_parts();
    let wanted: get_content_thumbnail::v3::Request = parse(&parts, &params, &[])?;
    refuse_if_frozen(&app)?;
    let wanted = WantedThumbnail {
        server_name: wanted.server_name,
        media_id: wanted.media_id,
        width: wanted.width,
        height: wanted.height,
        method: wanted.method,
        animated: wanted.animated.unwrap_or(false),
        wait: wanted.timeout_ms,
        allow_remote: wanted.allow_remote,
    };
    send_thumbnail(&app, &parts.headers, wanted, Cache::Public).await
}

fn refuse_if_frozen(app: &App) -> Result<()> {
    if app.config.media.unauthenticated {
        return Ok(());
    }
    Err(Error::not_found(
        "media are served to those who are signed in, on /_matrix/client/v1/media",
    ))
}

impl From<get_content::v3::Request> for WantedContent {
    fn from(request: get_content::v3::Request) -> Self {
        Self {
            server_name: request.server_name,
            media_id: request.media_id,
            filename: None,
            wait: request.timeout_ms,
            allow_remote: request.allow_remote,
        }
    }
}

impl From<get_content_as_filename::v3::Request> for WantedContent {
    fn from(request: get_content_as_filename::v3::Request) -> Self {
        Self {
            server_name: request.server_name,
            media_id: request.media_id,
            filename: Some(request.filename),
            wait: request.timeout_ms,
            allow_remote: request.allow_remote,
        }
    }
}
