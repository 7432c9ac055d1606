//! Finding a media, waiting for it if it is still to be uploaded.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use ruma::{ServerName, api::error::ErrorKind};
use tokio::time::timeout;

use super::{is_media_id, remote};
use crate::{
    app::App,
    error::{Error, Result},
    log::Change,
    storage::media::{self, Content, Media},
};

/// The longest that a request waits for an upload, whatever it asks for.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// How exactly it is known when a media was last asked for, in milliseconds.
const ACCESS_STEP: i64 = 24 * 60 * 60 * 1000;
/// The same for media of other servers, of which those go first that nobody has asked for.
const REMOTE_STEP: i64 = 10 * 60 * 1000;

/// What a media holds. If it is still to be uploaded, waits for that so long; if it is another server's, it is fetched.
///
/// # Errors
/// `M_NOT_FOUND`, `M_NOT_YET_UPLOADED`; 502 if another server does not give it.
pub async fn find(
    app: &Arc<App>,
    (server_name, media_id): (&ServerName, &str),
    wait: Duration,
) -> Result<Content> {
    if server_name == app.name() {
        return local(app, media_id, wait).await;
    }
    if !is_media_id(media_id) {
        return Err(Error::not_found("there is no such media"));
    }
    let wait = wait.min(LONGEST_WAIT);
    let (media, content) = remote::find(app, server_name, media_id, wait).await?;
    touch(app, &media, REMOTE_STEP).await?;
    Ok(content)
}

/// What a media of this server holds. If it is still to be uploaded, waits for that so long.
///
/// # Errors
/// `M_NOT_FOUND`, `M_NOT_YET_UPLOADED`.
pub async fn local(app: &App, media_id: &str, wait: Duration) -> Result<Content> {
    let server_name = app.name();
    let mut media = get(app, server_name, media_id).await?;
    if media.content.is_none() {
        let waiting = app.files.wait(media.nid);
        let uploaded = waiting.notify().notified();
        // It may have come just before the waiting began.
        media = get(app, server_name, media_id).await?;
        if media.content.is_none() {
            let wait = timeout(wait.min(LONGEST_WAIT), uploaded);
            // Nothing depends on why the wait ended: what is there now is looked up.
            let _ = app.shutdown.run_until_cancelled(wait).await;
            media = get(app, server_name, media_id).await?;
        }
    }
    let content = media.content.take().ok_or_else(|| {
        Error::new(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::NotYetUploaded,
            "this media is not uploaded yet",
        )
    })?;
    touch(app, &media, ACCESS_STEP).await?;
    Ok(content)
}

async fn get(app: &App, server_name: &ServerName, media_id: &str) -> Result<Media> {
    let unknown = || Error::not_found("there is no such media");
    if !is_media_id(media_id) {
        return Err(unknown());
    }
    let media = media::get(&app.db, server_name.as_str(), media_id)
        .await?
        .ok_or_else(unknown)?;
    let expired = media
        .expires
        .is_some_and(|expires| expires <= app.clock.now());
    if expired { Err(unknown()) } else { Ok(media) }
}

/// Notes that a media was asked for, at most once in `step` and without waiting for the disk.
async fn touch(app: &App, media: &Media, step: i64) -> Result<()> {
    let now = app.clock.now();
    if now - media.last_access >= step {
        let mut change = Change::new();
        change.write(media::touch(media.nid, now));
        drop(app.log.place().await?.append(change));
    }
    Ok(())
}
