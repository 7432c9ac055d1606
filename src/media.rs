//! Media: their upload, their download, and their thumbnails ("Content repository").

mod animation;
pub mod disposition;
pub mod download;
pub mod image;
pub mod multipart;
pub mod preview;
pub mod remote;
pub mod sweep;
pub mod thumbnail;
pub mod upload;

use ruma::OwnedMxcUri;

use crate::app::App;

/// The URI of a media of this server.
fn uri(app: &App, media_id: &str) -> OwnedMxcUri {
    format!("mxc://{}/{media_id}", app.name()).into()
}

/// Whether this can be the last part of a URI: "the `media-id` segment MUST consist of only alphanumeric, `_` and `-`
/// characters".
fn is_media_id(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}
