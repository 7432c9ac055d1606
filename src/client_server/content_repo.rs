//! "Content repository".

mod deprecated;
mod serving;
mod url_preview;

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{RawPathParams, Request, State},
    response::{IntoResponse as _, Response},
    routing::{get, post, put},
};
use http::{HeaderMap, StatusCode, header};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName, UInt,
    api::{
        IncomingRequest,
        auth_scheme::AccessToken,
        client::{
            authenticated_media::{
                get_content, get_content_as_filename, get_content_thumbnail, get_media_config,
            },
            media::{create_content, create_content_async, create_mxc_uri},
        },
        error::ErrorKind,
    },
    media::Method,
    serde::JsonObject,
};

use crate::{
    app::App,
    auth::{self, Authenticate as _, Requester},
    error::{Error, Result},
    files::hex,
    http::{Call, Routes, parse, respond},
    media::{
        disposition::{UNKNOWN_TYPE, disposition},
        download, thumbnail,
        upload::{self, Description},
    },
    rate_limit::{self, Class},
};
use serving::{Cache, Served, serve};

pub(super) fn routes() -> Routes {
    Routes::new()
        .raw::<create_content::v3::Request>(post(upload_content))
        .raw::<create_content_async::v3::Request>(put(upload_content_async))
        .add::<create_mxc_uri::v1::Request, _, _>(mxc_uri)
        .add::<get_media_config::v1::Request, _, _>(media_config)
        .raw::<get_content::v1::Request>(get(content::<get_content::v1::Request>))
        .raw::<get_content_as_filename::v1::Request>(get(content::<
            get_content_as_filename::v1::Request,
        >))
        .raw::<get_content_thumbnail::v1::Request>(get(content_thumbnail))
        .merge(deprecated::routes())
        .merge(url_preview::routes())
}

/// `POST /_matrix/media/v3/upload`
async fn upload_content(
    State(app): State<Arc<App>>,
    params: RawPathParams,
    request: Request,
) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let requester = AccessToken::authenticate(&app, &parts).await?;
    may_upload(&app, &requester)?;
    let wanted: create_content::v3::Request = parse(&parts, &params, &[])?;
    let description = Description {
        length: content_length(&parts.headers),
        content_type: wanted.content_type,
        filename: wanted.filename,
    };
    let uri = upload::upload(&app, requester.user, description, body.into_data_stream()).await?;
    respond(create_content::v3::Response::new(uri))
}

/// `PUT /_matrix/media/v3/upload/{serverName}/{mediaId}`
async fn upload_content_async(
    State(app): State<Arc<App>>,
    params: RawPathParams,
    request: Request,
) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let requester = AccessToken::authenticate(&app, &parts).await?;
    may_upload(&app, &requester)?;
    let wanted: create_content_async::v3::Request = parse(&parts, &params, &[])?;
    let description = Description {
        length: content_length(&parts.headers),
        content_type: wanted.content_type,
        filename: wanted.filename,
    };
    let name = (&*wanted.server_name, wanted.media_id.as_str());
    let body = body.into_data_stream();
    upload::upload_to(&app, requester.user, name, description, body).await?;
    // Ruma's response has no constructor.
    Ok(Json(JsonObject::new()).into_response())
}

/// `POST /_matrix/media/v1/create`
async fn mxc_uri(
    app: Arc<App>,
    call: Call<create_mxc_uri::v1::Request>,
) -> Result<create_mxc_uri::v1::Response> {
    may_upload(&app, &call.requester)?;
    let (uri, expires) = upload::reserve(&app, call.requester.user).await?;
    let mut response = create_mxc_uri::v1::Response::new(uri);
    response.unused_expires_at = UInt::try_from(expires).ok().map(MilliSecondsSinceUnixEpoch);
    Ok(response)
}

/// `GET /_matrix/client/v1/media/config`
async fn media_config(
    app: Arc<App>,
    _: Call<get_media_config::v1::Request>,
) -> Result<get_media_config::v1::Response> {
    Ok(get_media_config::v1::Response::new(upload_size(&app)))
}

fn upload_size(app: &App) -> UInt {
    UInt::try_from(app.config.media.max_upload_bytes).unwrap_or(UInt::MAX)
}

/// `GET /_matrix/client/v1/media/download/{serverName}/{mediaId}` and, with a file name of the client's own,
/// `GET /_matrix/client/v1/media/download/{serverName}/{mediaId}/{fileName}`
async fn content<R>(
    State(app): State<Arc<App>>,
    params: RawPathParams,
    request: Request,
) -> Result<Response>
where
    R: IncomingRequest<Authentication = AccessToken> + Into<WantedContent>,
{
    let (parts, _) = request.into_parts();
    let requester = AccessToken::authenticate(&app, &parts).await?;
    let wanted = parse::<R>(&parts, &params, &[])?.into();
    let answer = send_content(&app, &parts.headers, wanted, Cache::Private);
    auth::while_signed_in(&app, &requester, answer).await
}

/// `GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}`
async fn content_thumbnail(
    State(app): State<Arc<App>>,
    params: RawPathParams,
    request: Request,
) -> Result<Response> {
    let (parts, _) = request.into_parts();
    let requester = AccessToken::authenticate(&app, &parts).await?;
    let wanted: get_content_thumbnail::v1::Request = parse(&parts, &params, &[])?;
    let wanted = WantedThumbnail {
        server_name: wanted.server_name,
        media_id: wanted.media_id,
        width: wanted.width,
        height: wanted.height,
        method: wanted.method,
        animated: wanted.animated.unwrap_or(false),
        wait: wanted.timeout_ms,
        allow_remote: true,
    };
    let answer = send_thumbnail(&app, &parts.headers, wanted, Cache::Private);
    auth::while_signed_in(&app, &requester, answer).await
}

/// What a download asks for.
struct WantedContent {
    server_name: OwnedServerName,
    media_id: String,
    filename: Option<String>,
    wait: Duration,
    /// Whether it may be fetched from another server.
    allow_remote: bool,
}

impl From<get_content::v1::Request> for WantedContent {
    fn from(request: get_content::v1::Request) -> Self {
        Self {
            server_name: request.server_name,
            media_id: request.media_id,
            filename: None,
            wait: request.timeout_ms,
            allow_remote: true,
        }
    }
}

impl From<get_content_as_filename::v1::Request> for WantedContent {
    fn from(request: get_content_as_filename::v1::Request) -> Self {
        Self {
            server_name: request.server_name,
            media_id: request.media_id,
            filename: Some(request.filename),
            wait: request.timeout_ms,
            allow_remote: true,
        }
    }
}

async fn send_content(
    app: &Arc<App>,
    headers: &HeaderMap,
    wanted: WantedContent,
    cache: Cache,
) -> Result<Response> {
    let name = (&*wanted.server_name, wanted.media_id.as_str());
    expect_allowed(app, &wanted.server_name, wanted.allow_remote)?;
    let content = download::find(app, name, wanted.wait).await?;
    let path = app.files.blob(&content.hash);
    let Some(file) = thumbnail::open(&path).await? else {
        tracing::error!(path = %path.display(), "the file of a media is lost");
        return Err(Error::not_found("the file of this media is lost"));
    };
    let content_type = content
        .content_type
        .unwrap_or_else(|| UNKNOWN_TYPE.to_owned());
    let filename = wanted.filename.or(content.filename);
    let served = Served {
        file,
        disposition: disposition(&content_type, filename),
        content_type,
        tag: hex(&content.hash),
        cache,
    };
    serve(headers, served).await
}

/// What a request for a thumbnail asks for.
struct WantedThumbnail {
    server_name: OwnedServerName,
    media_id: String,
    width: UInt,
    height: UInt,
    method: Option<Method>,
    animated: bool,
    wait: Duration,
    /// Whether it may be fetched from another server.
    allow_remote: bool,
}

async fn send_thumbnail(
    app: &Arc<App>,
    headers: &HeaderMap,
    wanted: WantedThumbnail,
    cache: Cache,
) -> Result<Response> {
    let (width, height) = (wanted.width.into(), wanted.height.into());
    let size = thumbnail::choose(width, height, wanted.method.as_ref(), wanted.animated)?;
    let name = (&*wanted.server_name, wanted.media_id.as_str());
    expect_allowed(app, &wanted.server_name, wanted.allow_remote)?;
    let content = download::find(app, name, wanted.wait).await?;
    let ready = thumbnail::get(app, &content.hash, size).await;
    let ready = ready.map_err(|error| of_server(error, app, &wanted.server_name))?;
    let filename = format!("thumbnail.{}", ready.extension);
    let served = Served {
        file: ready.file,
        disposition: disposition(&ready.content_type, Some(filename)),
        content_type: ready.content_type,
        tag: ready.tag,
        cache,
    };
    serve(headers, served).await
}

/// "Remote homeservers may host very large files or images": then that server's answer is the bad one.
fn of_server(error: Error, app: &App, server: &ServerName) -> Error {
    match error {
        Error::Matrix {
            status,
            kind,
            message,
        } if status == StatusCode::PAYLOAD_TOO_LARGE && server != app.name() => {
            Error::new(StatusCode::BAD_GATEWAY, *kind, message)
        }
        error => error,
    }
}

/// Another server that asks for everybody's media wants none that this one would have to fetch itself.
fn expect_allowed(app: &App, server: &ServerName, allow_remote: bool) -> Result<()> {
    if allow_remote || server == app.name() {
        return Ok(());
    }
    Err(Error::not_found("this media is another server's"))
}

/// "Guest access" does not name uploads among what guests may do.
fn may_upload(app: &App, requester: &Requester) -> Result<()> {
    if requester.is_guest {
        return Err(Error::new(
            StatusCode::FORBIDDEN,
            ErrorKind::GuestAccessForbidden,
            "guests may not upload files",
        ));
    }
    rate_limit::check(app, Class::Uploads, requester)
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}
