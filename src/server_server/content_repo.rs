//! "Content Repository".

use std::sync::Arc;

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::header;
use rand::distr::{Alphanumeric, SampleString as _};
use ruma::api::federation::authenticated_media::{get_content, get_content_thumbnail};
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    media::{
        disposition::{UNKNOWN_TYPE, disposition},
        download, thumbnail,
    },
};

/// How much is read from the disk at once, in bytes.
const CHUNK: usize = 64 << 10;
/// How long the line between the parts is, in letters; no file has so many of them by chance.
const BOUNDARY: usize = 32;

pub(super) fn routes() -> Routes {
    Routes::new()
        .stream::<get_content::v1::Request, _, _>(get_content)
        .stream::<get_content_thumbnail::v1::Request, _, _>(get_content_thumbnail)
}

/// `GET /_matrix/federation/v1/media/download/{mediaId}`
async fn get_content(app: Arc<App>, call: Call<get_content::v1::Request>) -> Result<Response> {
    let request = call.body;
    let content = download::local(&app, &request.media_id, request.timeout_ms).await?;
    let file = thumbnail::open(&app.files.blob(&content.hash)).await?;
    let file = file.ok_or_else(|| Error::not_found("the file of this media is lost"))?;
    let content_type = content.content_type;
    let content_type = content_type.unwrap_or_else(|| UNKNOWN_TYPE.to_owned());
    parts(file, &content_type, content.filename).await
}

/// `GET /_matrix/federation/v1/media/thumbnail/{mediaId}`
async fn get_content_thumbnail(
    app: Arc<App>,
    call: Call<get_content_thumbnail::v1::Request>,
) -> Result<Response> {
    let request = call.body;
    let (width, height) = (request.width.into(), request.height.into());
    let animated = request.animated.unwrap_or(false);
    let size = thumbnail::choose(width, height, request.method.as_ref(), animated)?;
    let content = download::local(&app, &request.media_id, request.timeout_ms).await?;
    let ready = thumbnail::get(&app, &content.hash, size).await?;
    let filename = format!("thumbnail.{}", ready.extension);
    parts(ready.file, &ready.content_type, Some(filename)).await
}

/// A file as the second part of an answer whose first part says nothing yet. It is read while it is sent.
async fn parts(file: File, content_type: &str, filename: Option<String>) -> Result<Response> {
    let length = file.metadata().await.map_err(Error::internal)?.len();
    let boundary = Alphanumeric.sample_string(&mut rand::rng(), BOUNDARY);
    let disposition = disposition(content_type, filename);
    let start = format!(
        "--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n\
         --{boundary}\r\nContent-Type: {content_type}\r\nContent-Disposition: {disposition}\r\n\r\n"
    );
    let end = format!("\r\n--{boundary}--\r\n");
    let whole = start.len() as u64 + length + end.len() as u64;
    let file = ReaderStream::with_capacity(file, CHUNK);
    let body = stream::iter([Ok(Bytes::from(start))])
        .chain(file)
        .chain(stream::iter([Ok(Bytes::from(end))]));
    let headers = [
        (
            header::CONTENT_TYPE,
            format!("multipart/mixed; boundary={boundary}"),
        ),
        (header::CONTENT_LENGTH, whole.to_string()),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}
