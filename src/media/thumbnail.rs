//! Thumbnails: which sizes there are, and when they are made ("Thumbnails").

use std::{path::Path, sync::Arc};

use http::StatusCode;
use ruma::{api::error::ErrorKind, media::Method};
use tokio::fs::File;

use super::{
    image::{Made, ThumbnailError, shrink},
    upload::whole,
};
use crate::{
    app::App,
    error::{Error, Result},
    files::hex,
    log::Change,
    storage::media::{self, ContentHash, Thumbnail, ThumbnailMethod, ThumbnailSize},
};

const fn size(width: u32, height: u32, method: ThumbnailMethod) -> ThumbnailSize {
    ThumbnailSize {
        width,
        height,
        method,
        animated: false,
    }
}

/// The sizes that are made. The specification asks for the first two crops and the first three scales; screens with
/// many pixels ask for the others.
const CROPS: [ThumbnailSize; 4] = [
    size(32, 32, ThumbnailMethod::Crop),
    size(96, 96, ThumbnailMethod::Crop),
    size(320, 320, ThumbnailMethod::Crop),
    size(640, 640, ThumbnailMethod::Crop),
];
const SCALES: [ThumbnailSize; 4] = [
    size(320, 240, ThumbnailMethod::Scale),
    size(640, 480, ThumbnailMethod::Scale),
    size(800, 600, ThumbnailMethod::Scale),
    size(1600, 1200, ThumbnailMethod::Scale),
];
/// What is asked for beyond these: the image as it is, or its first frame.
const WHOLE: ThumbnailSize = size(u32::MAX, u32::MAX, ThumbnailMethod::Scale);

/// The smallest size that is not smaller than what is asked for. A thumbnail that is `animated` moves if the image does.
///
/// # Errors
/// `M_INVALID_PARAM` for no pixels at all or an unknown method.
pub fn choose(
    width: u64,
    height: u64,
    method: Option<&Method>,
    animated: bool,
) -> Result<ThumbnailSize> {
    if width == 0 || height == 0 {
        return Err(Error::invalid_param("a thumbnail has at least one pixel"));
    }
    let sizes = match method {
        Some(Method::Crop) => &CROPS,
        None | Some(Method::Scale) => &SCALES,
        Some(_) => return Err(Error::invalid_param("the methods are crop and scale")),
    };
    let enough =
        |size: &&ThumbnailSize| u64::from(size.width) >= width && u64::from(size.height) >= height;
    let size = *sizes.iter().find(enough).unwrap_or(&WHOLE);
    Ok(ThumbnailSize { animated, ..size })
}

/// Stands in the place of a media type where a thumbnail that moves cannot be had.
const STILL: &str = "";
/// The same where there can be none at all, as this version of the server found out: a later one may know more images.
const NO_IMAGE: &str = concat!("no image for ", env!("CARGO_PKG_VERSION"));
const TOO_LARGE: &str = concat!("too large for ", env!("CARGO_PKG_VERSION"));

/// A thumbnail, ready to be sent.
#[derive(Debug)]
pub struct Ready {
    /// The image.
    pub file: File,
    /// Its media type.
    pub content_type: String,
    /// The end of a file name that suits it.
    pub extension: &'static str,
    /// What names exactly these bytes.
    pub tag: String,
}

/// The thumbnail of a content, made now if it was not made before.
///
/// # Errors
/// `M_UNKNOWN` if it is no image, `M_TOO_LARGE` if it is too large.
pub async fn get(app: &Arc<App>, hash: &ContentHash, size: ThumbnailSize) -> Result<Ready> {
    let mut size = size;
    if size.animated {
        if let Found::Ready(ready) = find_or_make(app, hash, size).await? {
            return Ok(ready);
        }
        size.animated = false;
    }
    match find_or_make(app, hash, size).await? {
        Found::Ready(ready) => Ok(ready),
        Found::Still | Found::Nothing => Err(Error::internal("a thumbnail just made is gone")),
    }
}

async fn find_or_make(app: &Arc<App>, hash: &ContentHash, size: ThumbnailSize) -> Result<Found> {
    match find(app, hash, size).await? {
        Found::Nothing => {}
        found => return Ok(found),
    }
    let decoder = Arc::clone(&app.files.decoders)
        .acquire_owned()
        .await
        .map_err(Error::internal)?;
    // Somebody else may have made it while this one waited.
    match find(app, hash, size).await? {
        Found::Nothing => {}
        found => return Ok(found),
    }
    let path = app.files.blob(hash);
    // The place is held until the work ends, also if the client goes away, and until others can find what was made.
    let made = tokio::task::spawn_blocking(move || (shrink(&path, size), decoder));
    let (made, _decoder) = match made.await {
        Ok((made, decoder)) => (made, Some(decoder)),
        Err(error) if error.is_panic() => {
            tracing::error!(blob = %hex(hash), "a decoder panicked at an image");
            (Err(ThumbnailError::NotAnImage), None)
        }
        Err(error) => return Err(Error::internal(error)),
    };
    keep(app, hash, size, made).await?;
    find(app, hash, size).await
}

fn refused(error: ThumbnailError) -> Error {
    match error {
        ThumbnailError::NotAnImage => Error::refused(error.to_string()),
        ThumbnailError::TooLarge => Error::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::TooLarge,
            error.to_string(),
        ),
        ThumbnailError::File(error) if error.kind() == std::io::ErrorKind::NotFound => lost(),
        ThumbnailError::File(error) => Error::internal(error),
    }
}

fn lost() -> Error {
    Error::not_found("the file of this media is lost")
}

/// What is there of a thumbnail.
enum Found {
    Ready(Ready),
    /// The image does not move, or could not be made smaller so that it does.
    Still,
    /// It was not made, or its file was deleted.
    Nothing,
}

async fn find(app: &App, hash: &ContentHash, size: ThumbnailSize) -> Result<Found> {
    let Some(thumbnail) = media::thumbnail(&app.db, hash, size).await? else {
        return Ok(Found::Nothing);
    };
    match &*thumbnail.content_type {
        STILL => return Ok(Found::Still),
        NO_IMAGE => return Err(refused(ThumbnailError::NotAnImage)),
        TOO_LARGE => return Err(refused(ThumbnailError::TooLarge)),
        _ => {}
    }
    let path = if thumbnail.is_original {
        app.files.blob(hash)
    } else {
        app.files.thumbnail(hash, size)
    };
    let Some(file) = open(&path).await? else {
        return Ok(Found::Nothing);
    };
    let tag = if thumbnail.is_original {
        hex(hash)
    } else {
        let method = size.number();
        format!("{}-{}-{}-{method}", hex(hash), size.width, size.height)
    };
    Ok(Found::Ready(Ready {
        file,
        extension: extension(&thumbnail.content_type),
        content_type: thumbnail.content_type,
        tag,
    }))
}

/// Opens a file, if there is one.
///
/// # Errors
/// If the disk fails.
pub async fn open(path: &Path) -> Result<Option<File>> {
    match File::open(path).await {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::internal(error)),
    }
}

fn extension(content_type: &str) -> &'static str {
    match content_type {
        "image/png" => "png",
        "image/gif" => "gif",
        "image/webp" => "webp",
        _ => "jpg",
    }
}

/// Keeps what became of an image. That it cannot be made smaller is kept too: each client that shows it would have it
/// tried again.
async fn keep(
    app: &Arc<App>,
    hash: &ContentHash,
    size: ThumbnailSize,
    made: std::result::Result<Made, ThumbnailError>,
) -> Result<()> {
    let (content_type, is_original, bytes) = match made {
        Ok(Made::Still) => (STILL, true, None),
        Ok(Made::Original(format)) => (format.to_mime_type(), true, None),
        Ok(Made::New(format, bytes)) => (format.to_mime_type(), false, Some(bytes)),
        // There is no file of these, so other versions of the server try again.
        Err(ThumbnailError::NotAnImage) => (NO_IMAGE, false, None),
        Err(ThumbnailError::TooLarge) => (TOO_LARGE, false, None),
        Err(error @ ThumbnailError::File(_)) => return Err(refused(error)),
    };
    let thumbnail = Thumbnail {
        content_type: content_type.to_owned(),
        is_original,
        bytes: i64::try_from(bytes.as_ref().map_or(0, Vec::len)).map_err(Error::internal)?,
    };
    let (app, hash) = (Arc::clone(app), *hash);
    whole(async move {
        let mut draft = None;
        if let Some(bytes) = bytes {
            let mut new = app.files.draft().await.map_err(Error::internal)?;
            new.write(&bytes).await.map_err(Error::internal)?;
            draft = Some(new);
        }
        let _coming = app.files.coming.read().await;
        if media::uses(&app.db, &hash).await? == 0 {
            // The content was given up meanwhile: nobody would ever delete what comes after it.
            return Err(lost());
        }
        if let Some(draft) = draft {
            let place = app.files.thumbnail(&hash, size);
            draft.keep(place).await.map_err(Error::internal)?;
        }
        let mut change = Change::new();
        change.write(media::add_thumbnail(
            &hash,
            size,
            thumbnail,
            app.clock.now(),
        ));
        app.log.append(change).await?;
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_larger_size_is_chosen() {
        for (width, height, method, wanted) in [
            (1, 1, Method::Crop, CROPS[0]),
            (32, 32, Method::Crop, CROPS[0]),
            (33, 1, Method::Crop, CROPS[1]),
            (96, 97, Method::Crop, CROPS[2]),
            (641, 1, Method::Crop, WHOLE),
            (1, 1, Method::Scale, SCALES[0]),
            (320, 240, Method::Scale, SCALES[0]),
            (320, 241, Method::Scale, SCALES[1]),
            (801, 600, Method::Scale, SCALES[3]),
            (9000, 1, Method::Scale, WHOLE),
        ] {
            let chosen = choose(width, height, Some(&method), false).unwrap();
            assert_eq!(chosen, wanted, "{width}x{height} {method}");
        }
        assert!(choose(0, 5, None, false).is_err());
        assert!(choose(5, 5, Some(&"stretch".into()), false).is_err());
    }
}
