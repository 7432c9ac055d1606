//! Uploads: streamed to the disk, at once or to a name that was made before.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::StatusCode;
use rand::distr::{Alphanumeric, SampleString as _};
use ruma::{OwnedMxcUri, ServerName, api::error::ErrorKind};

use super::{is_media_id, uri};
use crate::{
    app::App,
    error::{Error, Result},
    files::Draft,
    log::{AppendError, Change},
    storage::{
        MediaNid, UserNid,
        media::{self, Content, Media},
    },
};

/// How long a client may be silent in the middle of an upload.
const IDLE: Duration = Duration::from_mins(1);
/// Letters in the name of a media; nobody guesses so many.
const ID_LENGTH: usize = 24;
/// The longest media type and file name that are kept, in characters.
const LONGEST_NAME: usize = 255;

/// What a client says about the file that it uploads.
#[derive(Debug, Default)]
pub struct Description {
    /// The size, if the client tells it beforehand.
    pub length: Option<u64>,
    /// The media type.
    pub content_type: Option<String>,
    /// The file name.
    pub filename: Option<String>,
}

/// Uploads a file under a new name.
///
/// # Errors
/// `M_TOO_LARGE`, `M_FORBIDDEN` if the user has too many files, or if the body breaks off.
pub async fn upload<E>(
    app: &Arc<App>,
    user: UserNid,
    description: Description,
    body: impl Stream<Item = Result<Bytes, E>>,
) -> Result<OwnedMxcUri> {
    let draft = receive(app, user, description.length, body).await?;
    let (nid, media_id) = (MediaNid(app.log.new_id()?), new_id());
    let uri = uri(app, &media_id);
    let kept = keep(app, Some(user), draft, description, move |app, content| {
        let name = (app.name().as_str(), media_id.as_str());
        media::add(nid, name, Some(user), content, app.clock.now())
    });
    match kept.await {
        // Another upload has filled what was left.
        Err(Error::Append(AppendError::Unexpected)) => Err(over_quota()),
        Err(error) => Err(error),
        Ok(()) => Ok(uri),
    }
}

/// Makes a name for an upload to come; answers it and until when it can be used, in milliseconds since 1970.
///
/// # Errors
/// `M_LIMIT_EXCEEDED` if the user has too many such names.
pub async fn reserve(app: &App, user: UserNid) -> Result<(OwnedMxcUri, i64)> {
    let limits = &app.config.media;
    let (nid, media_id, now) = (MediaNid(app.log.new_id()?), new_id(), app.clock.now());
    let seconds = i64::try_from(limits.pending_upload_seconds).map_err(Error::internal)?;
    let expires = now.saturating_add(seconds.saturating_mul(1000));
    let mut change = Change::new();
    change.write(media::delete_expired(user, now));
    let name = (app.name().as_str(), media_id.as_str());
    change.write(media::reserve(
        nid,
        name,
        user,
        (now, expires),
        limits.max_pending_uploads,
    ));
    match app.log.append(change).await {
        Ok(_) => Ok((uri(app, &media_id), expires)),
        Err(AppendError::Unexpected) => Err(Error::limit_exceeded(Duration::from_mins(1))),
        Err(error) => Err(error.into()),
    }
}

/// Uploads a file under a name that `reserve` made for the same user.
///
/// # Errors
/// `M_NOT_FOUND`, `M_FORBIDDEN`, `M_CANNOT_OVERWRITE_MEDIA`, `M_TOO_LARGE`, or if the body breaks off.
pub async fn upload_to<E>(
    app: &Arc<App>,
    user: UserNid,
    (server_name, media_id): (&ServerName, &str),
    description: Description,
    body: impl Stream<Item = Result<Bytes, E>>,
) -> Result<()> {
    let nid = reserved(app, user, server_name, media_id).await?.nid;
    let draft = receive(app, user, description.length, body).await?;
    let kept = keep(app, Some(user), draft, description, move |_, content| {
        media::fill(nid, content)
    });
    match kept.await {
        Err(Error::Append(AppendError::Unexpected)) => {
            // Somebody was faster, or the name has expired meanwhile: looking again tells which.
            reserved(app, user, server_name, media_id).await?;
            if app.config.media.max_user_bytes.is_some() {
                return Err(over_quota());
            }
            Err(Error::not_found("there is no such media any more"))
        }
        Err(error) => Err(error),
        Ok(()) => {
            app.files.wake(nid);
            Ok(())
        }
    }
}

/// A media that waits for this user's upload.
async fn reserved(
    app: &App,
    user: UserNid,
    server_name: &ServerName,
    media_id: &str,
) -> Result<Media> {
    let unknown = || Error::not_found("there is no such media");
    if server_name != app.name() || !is_media_id(media_id) {
        return Err(unknown());
    }
    let media = media::get(&app.db, server_name.as_str(), media_id)
        .await?
        .ok_or_else(unknown)?;
    if media.user != Some(user) {
        return Err(Error::forbidden("this name was made for somebody else"));
    }
    if media.content.is_some() {
        return Err(Error::new(
            StatusCode::CONFLICT,
            ErrorKind::CannotOverwriteMedia,
            "this media was uploaded already",
        ));
    }
    if media
        .expires
        .is_some_and(|expires| expires <= app.clock.now())
    {
        return Err(unknown());
    }
    Ok(media)
}

/// Makes sure that a user may have so many bytes more.
///
/// # Errors
/// `M_FORBIDDEN`.
async fn expect_quota(app: &App, user: UserNid, more: u64) -> Result<()> {
    let Some(most) = app.config.media.max_user_bytes else {
        return Ok(());
    };
    let used = media::bytes_of(&app.db, user).await?.unsigned_abs();
    if used.saturating_add(more) > most {
        return Err(over_quota());
    }
    Ok(())
}

fn over_quota() -> Error {
    Error::forbidden("your files take as much as they may together")
}

/// Writes a body to the disk as it comes.
async fn receive<E>(
    app: &App,
    user: UserNid,
    length: Option<u64>,
    body: impl Stream<Item = Result<Bytes, E>>,
) -> Result<Draft> {
    let limit = app.config.media.max_upload_bytes;
    let too_large = || Error::too_large(format!("a file may have at most {limit} bytes"));
    if length.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    expect_quota(app, user, length.unwrap_or(0)).await?;
    let mut draft = app.files.draft().await.map_err(Error::internal)?;
    let mut body = pin!(body);
    loop {
        let bytes = match tokio::time::timeout(IDLE, body.next()).await {
            Ok(Some(Ok(bytes))) => bytes,
            Ok(Some(Err(_))) => return Err(Error::refused("the upload broke off")),
            Ok(None) => {
                expect_quota(app, user, draft.bytes()).await?;
                return Ok(draft);
            }
            Err(_) => {
                return Err(Error::new(
                    StatusCode::REQUEST_TIMEOUT,
                    ErrorKind::Unknown,
                    "the upload made no progress",
                ));
            }
        };
        if draft.bytes() + bytes.len() as u64 > limit {
            return Err(too_large());
        }
        draft.write(&bytes).await.map_err(Error::internal)?;
    }
}

/// Moves a received file to its place, and writes that down with what `name` returns. If it is the file of a `user` who has
/// too many then, the change is refused.
pub(super) async fn keep<F>(
    app: &Arc<App>,
    user: Option<UserNid>,
    draft: Draft,
    description: Description,
    name: F,
) -> Result<()>
where
    F: FnOnce(&App, Content) -> crate::storage::Write + Send + 'static,
{
    let app = Arc::clone(app);
    let work = async move {
        let (hash, bytes) = (draft.hash(), draft.bytes());
        let bytes = i64::try_from(bytes).map_err(Error::internal)?;
        let _coming = app.files.coming.read().await;
        draft
            .keep(app.files.blob(&hash))
            .await
            .map_err(Error::internal)?;
        let content = Content {
            hash,
            content_type: description.content_type.and_then(clean_content_type),
            filename: description.filename.and_then(|name| clean_filename(&name)),
        };
        let mut change = Change::new();
        change.write(media::use_blob(&hash, bytes, app.clock.now()));
        change.write(name(&app, content));
        if let (Some(user), Some(most)) = (user, app.config.media.max_user_bytes) {
            let most = i64::try_from(most).unwrap_or(i64::MAX);
            change.write(media::expect_at_most(user, most));
        }
        app.log.append(change).await?;
        Ok(())
    };
    whole(work).await
}

/// Does all of this even if the client goes away meanwhile, so that no file is left that nobody knows.
pub(super) async fn whole(work: impl Future<Output = Result<()>> + Send + 'static) -> Result<()> {
    tokio::spawn(work).await.map_err(Error::internal)?
}

fn new_id() -> String {
    Alphanumeric.sample_string(&mut rand::rng(), ID_LENGTH)
}

/// A media type as it may be sent back; nothing if it is none.
fn clean_content_type(text: String) -> Option<String> {
    let is_token = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    };
    let (main, sub) = text.split(';').next()?.trim().split_once('/')?;
    let fits = text.len() <= LONGEST_NAME && text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    (fits && is_token(main) && is_token(sub)).then_some(text)
}

/// A file name without control characters, and not longer than file names are.
fn clean_filename(name: &str) -> Option<String> {
    let name: String = name
        .chars()
        .filter(|letter| !letter.is_control())
        .take(LONGEST_NAME)
        .collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_media_types_are_kept() {
        for good in [
            "image/png",
            "text/plain; charset=utf-8",
            "application/vnd.x+json",
        ] {
            assert_eq!(clean_content_type(good.to_owned()).as_deref(), Some(good));
        }
        for bad in [
            "",
            "image",
            "image/",
            "/png",
            "a b/c",
            "text/html\r\nx: y",
            "töxt/plain",
        ] {
            assert_eq!(clean_content_type(bad.to_owned()), None, "{bad}");
        }
        assert_eq!(clean_content_type(format!("a/{}", "b".repeat(300))), None);
    }

    #[test]
    fn file_names_are_cleaned() {
        assert_eq!(clean_filename("a\r\nb\0.txt").as_deref(), Some("ab.txt"));
        assert_eq!(clean_filename("\n"), None);
        let long = clean_filename(&"ö".repeat(1000)).unwrap();
        assert_eq!(long.chars().count(), 255);
    }
}
