//! Media of other servers: fetched when somebody asks for them, kept as long as there is room.

use std::{sync::Arc, time::Duration};

use homing_federation::client::{self, Body, Limits};
use http::{HeaderMap, HeaderName, Response, StatusCode, Uri, header};
use ruma::{
    OwnedServerName, ServerName,
    api::{error::ErrorKind, federation::authenticated_media::get_content::v1::Request},
    http_headers::ContentDisposition,
};
use tokio::sync::OwnedMutexGuard;

use super::{
    multipart::{Head, Parts},
    upload::{self, Description},
};
use crate::{
    app::App,
    error::{Error, Result},
    files::Draft,
    log::{AppendError, Change},
    remote::{self, expect_federation, failed, unreachable},
    storage::{
        MediaNid,
        media::{self, Content, Media},
        remote_media::{self, RemoteMedia},
    },
};

/// How long a file may take to come.
const DOWNLOAD_TIME: Duration = Duration::from_mins(10);
/// How long somebody waits for a file to come, beside the time that they give it to be uploaded.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long it may take until a server begins to answer, beside the same.
const HEAD_TIME: Duration = Duration::from_secs(15);
/// What an answer may have beside the file, in bytes.
const HEAD_BYTES: u64 = 1 << 17;
/// How many media are given up in one commit.
const SWEPT: i64 = 100;

/// Fetches a media from its server, unless somebody else has just done so. Whoever asks for it meanwhile waits for the
/// same file, and it is kept also if they go away.
///
/// # Errors
/// `M_NOT_FOUND`, `M_TOO_LARGE`, `M_NOT_YET_UPLOADED` if it does not come in time, or 502 `M_UNKNOWN`.
pub async fn fetch(
    app: &Arc<App>,
    server: &ServerName,
    media_id: &str,
    wait: Duration,
) -> Result<Media> {
    expect_federation(app)?;
    let (server, media_id) = (server.to_owned(), media_id.to_owned());
    let app = Arc::clone(app);
    let work = tokio::spawn(async move {
        let key = (server.clone(), media_id.clone());
        let turn = app.remote.media.turn(key).await;
        let known = media::get(&app.db, server.as_str(), &media_id).await?;
        match known {
            Some(media) => Ok(media),
            None => download(&app, &server, &media_id, wait, turn).await,
        }
    });
    match tokio::time::timeout(wait + PATIENCE, work).await {
        Ok(done) => done.map_err(Error::internal)?,
        Err(_) => Err(Error::new(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::NotYetUploaded,
            "this media has not come yet",
        )),
    }
}

async fn download(
    app: &Arc<App>,
    server: &OwnedServerName,
    media_id: &str,
    wait: Duration,
    _turn: OwnedMutexGuard<()>,
) -> Result<Media> {
    let of_server = app.remote.downloads_of.of(server);
    let _place_of_server = of_server.acquire_owned().await.map_err(Error::internal)?;
    let downloads = Arc::clone(&app.remote.downloads);
    let _place = downloads.acquire_owned().await.map_err(Error::internal)?;
    let (draft, description) = receive(app, server, media_id, wait).await?;
    let nid = MediaNid(app.log.new_id()?);
    let name = (server.as_str().to_owned(), media_id.to_owned());
    let kept = upload::keep(app, None, draft, description, move |app, content| {
        let name = (name.0.as_str(), name.1.as_str());
        media::add(nid, name, None, content, app.clock.now())
    });
    match kept.await {
        // A server whose name is spelled otherwise is another one, so nobody else can have brought it.
        Ok(()) | Err(Error::Append(AppendError::Duplicate)) => {}
        Err(error) => return Err(error),
    }
    app.remote.came();
    let media = media::get(&app.db, server.as_str(), media_id).await?;
    media.ok_or_else(|| Error::internal("a media just fetched is gone"))
}

/// Receives the file of a media.
async fn receive(
    app: &App,
    server: &ServerName,
    media_id: &str,
    wait: Duration,
) -> Result<(Draft, Description)> {
    let limits = Limits::default()
        .time(DOWNLOAD_TIME)
        .bytes(app.config.media.max_upload_bytes.saturating_add(HEAD_BYTES));
    remote::expect_reachable(app, server)?;
    let mut request = Request::new(media_id.to_owned());
    request.timeout_ms = wait;
    let asked = app.federation.open(limits, server, request);
    let asked = tokio::time::timeout(wait + HEAD_TIME, asked).await;
    let answer = match asked.unwrap_or(Err(client::Error::TimedOut)) {
        Ok(answer) if has_parts(&answer) => receive_parts(app, server, answer).await?,
        Err(error) if !is_unknown_endpoint(&error) => {
            remote::note(app, server, &error);
            return Err(refused(server, &error));
        }
        // Before version 1.11 of the specification media were there for everybody. Whoever answers with something else than
        // parts knows no better.
        answer => {
            let path = format!(
                "/_matrix/media/v3/download/{server}/{media_id}?allow_remote=false&timeout_ms={}",
                wait.as_millis()
            );
            let old = app.federation.open_unsigned(limits, server, &path).await;
            Received::Whole(old.map_err(|error| match answer {
                Ok(_) => unreachable(server),
                Err(_) => refused(server, &error),
            })?)
        }
    };
    match answer {
        Received::File(draft, description) => Ok((draft, description)),
        Received::Whole(answer) => receive_whole(app, server, answer).await,
        Received::Elsewhere(address) => {
            let address: Uri = address.parse().map_err(|_| unreachable(server))?;
            let answer = app.federation.http().get(address, limits).await;
            let answer = answer.map_err(|error| refused(server, &error))?;
            if !answer.status().is_success() {
                return Err(unreachable(server));
            }
            receive_whole(app, server, answer).await
        }
    }
}

enum Received {
    /// The file itself.
    File(Draft, Description),
    /// An answer whose body is the file.
    Whole(Response<Body>),
    /// The address where it is.
    Elsewhere(String),
}

fn has_parts(answer: &Response<Body>) -> bool {
    let content_type = text(answer.headers(), header::CONTENT_TYPE);
    content_type.is_some_and(|content_type| Parts::new(&content_type).is_ok())
}

fn is_unknown_endpoint(error: &client::Error) -> bool {
    error.refusal().is_some_and(|refusal| {
        // Servers of that time said 400.
        let is_missing = matches!(
            refusal.status,
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST
        );
        is_missing
            && refusal
                .kind()
                .is_none_or(|kind| *kind == ErrorKind::Unrecognized)
    })
}

/// What a client is told when another server does not give a media.
fn refused(server: &ServerName, error: &client::Error) -> Error {
    match error {
        client::Error::TooLarge(_) => too_large(),
        error => match error.refusal() {
            Some(refusal) if refusal.kind() == Some(&ErrorKind::NotYetUploaded) => Error::new(
                StatusCode::GATEWAY_TIMEOUT,
                ErrorKind::NotYetUploaded,
                "this media is not uploaded yet",
            ),
            Some(refusal) if refusal.status == StatusCode::NOT_FOUND => {
                Error::not_found(format!("{server} has no such media"))
            }
            Some(refusal) if refusal.kind() == Some(&ErrorKind::TooLarge) => too_large(),
            _ => failed(server, error),
        },
    }
}

fn too_large() -> Error {
    Error::new(
        StatusCode::BAD_GATEWAY,
        ErrorKind::TooLarge,
        "this media is larger than this server takes",
    )
}

/// Writes the file in the second part of an answer to the disk as it comes.
async fn receive_parts(app: &App, server: &ServerName, answer: Response<Body>) -> Result<Received> {
    let broken = |error: &dyn std::fmt::Display| {
        tracing::debug!(%server, %error, "another server has no good answer");
        unreachable(server)
    };
    let content_type = text(answer.headers(), header::CONTENT_TYPE);
    let mut parts =
        Parts::new(&content_type.unwrap_or_default()).map_err(|error| broken(&error))?;
    let mut body = answer.into_body();
    let mut draft = app.files.draft().await.map_err(Error::internal)?;
    while !parts.is_whole() {
        let bytes = body
            .chunk()
            .await
            .map_err(|error| refused(server, &error))?;
        let bytes = bytes.ok_or_else(|| broken(&"the answer breaks off"))?;
        let file = parts.push(&bytes).map_err(|error| broken(&error))?;
        if let Some(Head {
            location: Some(address),
            ..
        }) = parts.head()
        {
            return Ok(Received::Elsewhere(address.clone()));
        }
        write(app, &mut draft, &file).await?;
    }
    let head = parts.head().cloned().unwrap_or_default();
    Ok(Received::File(draft, described(head)))
}

/// Writes the body of an answer to the disk as it comes.
async fn receive_whole(
    app: &App,
    server: &ServerName,
    answer: Response<Body>,
) -> Result<(Draft, Description)> {
    let head = Head {
        content_type: text(answer.headers(), header::CONTENT_TYPE),
        content_disposition: text(answer.headers(), header::CONTENT_DISPOSITION),
        location: None,
    };
    let mut body = answer.into_body();
    let mut draft = app.files.draft().await.map_err(Error::internal)?;
    while let Some(bytes) = body
        .chunk()
        .await
        .map_err(|error| refused(server, &error))?
    {
        write(app, &mut draft, &bytes).await?;
    }
    Ok((draft, described(head)))
}

async fn write(app: &App, draft: &mut Draft, bytes: &[u8]) -> Result<()> {
    if draft.bytes() + bytes.len() as u64 > app.config.media.max_upload_bytes {
        return Err(too_large());
    }
    draft.write(bytes).await.map_err(Error::internal)
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let value = headers.get(name)?;
    String::from_utf8(value.as_bytes().to_vec()).ok()
}

fn described(head: Head) -> Description {
    let disposition = head.content_disposition;
    let disposition = disposition.and_then(|text| text.parse::<ContentDisposition>().ok());
    Description {
        length: None,
        content_type: head.content_type,
        filename: disposition.and_then(|disposition| disposition.filename),
    }
}

/// Gives up media from elsewhere until what is left of them fits into its budget: those first for which nobody has
/// asked for the longest time. Answers how many.
///
/// # Errors
/// If the database or the disk fails.
pub async fn sweep(app: &App) -> Result<usize> {
    let budget = i64::try_from(app.config.media.remote_cache_bytes).unwrap_or(i64::MAX);
    let mut excess = remote_media::bytes(&app.db).await? - budget;
    let mut swept = 0;
    while excess > 0 {
        // Nobody brings a content just while the last media that has it goes.
        let _nothing_comes = app.files.coming.write().await;
        let mut media = remote_media::oldest(&app.db, SWEPT).await?;
        let enough = media.iter().position(|media| {
            excess -= media.bytes;
            excess <= 0
        });
        media.truncate(enough.map_or(media.len(), |last| last + 1));
        if media.is_empty() {
            break;
        }
        give_up(app, &media).await?;
        swept += media.len();
    }
    Ok(swept)
}

/// Gives up media that were to be kept for some time, and that is over. Answers how many.
///
/// # Errors
/// If the database or the disk fails.
pub async fn sweep_expired(app: &App) -> Result<usize> {
    let mut swept = 0;
    loop {
        let now = app.clock.now();
        if remote_media::expired(&app.db, now, 1).await?.is_empty() {
            return Ok(swept);
        }
        let _nothing_comes = app.files.coming.write().await;
        let media = remote_media::expired(&app.db, now, SWEPT).await?;
        give_up(app, &media).await?;
        swept += media.len();
    }
}

/// Deletes media, and the files of those whose content no other media has. Nothing may come meanwhile.
async fn give_up(app: &App, media: &[RemoteMedia]) -> Result<()> {
    let mut files = Vec::new();
    let mut change = Change::new();
    for media in media {
        for size in media::thumbnail_sizes(&app.db, &media.hash).await? {
            files.push((media.hash, app.files.thumbnail(&media.hash, size)));
        }
        files.push((media.hash, app.files.blob(&media.hash)));
        for write in remote_media::delete(media) {
            change.write(write);
        }
    }
    app.log.append(change).await?;
    for (hash, file) in files {
        if media::uses(&app.db, &hash).await? == 0 {
            remove(&file).await?;
        }
    }
    Ok(())
}

async fn remove(file: &std::path::Path) -> Result<()> {
    match tokio::fs::remove_file(file).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::internal(error)),
        _ => Ok(()),
    }
}

/// What a media holds, fetched if it must be.
pub(super) async fn find(
    app: &Arc<App>,
    server: &ServerName,
    media_id: &str,
    wait: Duration,
) -> Result<(Media, Content)> {
    let mut media = match media::get(&app.db, server.as_str(), media_id).await? {
        Some(media) => media,
        None => fetch(app, server, media_id, wait).await?,
    };
    let content = media.content.take();
    let content = content.ok_or_else(|| Error::internal("a media of another server is empty"))?;
    Ok((media, content))
}
