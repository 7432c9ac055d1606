//! Previews of pages to which people link ("URL previews"): looked at once for all who ask, and kept for a while.

pub mod page;
mod text;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::BytesMut;
use homing_federation::client::{Body, Limits};
use http::{Response, StatusCode, header};
use rand::distr::{Alphanumeric, SampleString as _};
use ruma::api::error::ErrorKind;
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};
use url::Url;

use super::{
    image::describe,
    upload::{self, Description},
    uri,
};
use crate::{
    app::App,
    auth::Requester,
    error::{Error, Result},
    rate_limit::{self, Class},
    storage::{MediaNid, UserNid, media},
    web::{Failure, Preview, failed, is_of_web},
};

/// How much of a page is looked at, in bytes.
const PAGE_BYTES: u64 = 1 << 20;
/// How long a page may take, and an image.
const TIME: Duration = Duration::from_secs(10);
/// How long somebody waits for a preview.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a preview is kept, how long it is known that there is none, and how long an image is kept, in milliseconds.
const KEPT: i64 = 60 * 60 * 1000;
const KEPT_FAILURE: i64 = 60 * 1000;
const KEPT_IMAGE: i64 = 7 * 24 * 60 * 60 * 1000;
/// Letters in the name of an image.
const ID_LENGTH: usize = 24;

const ACCEPT_PAGE: &str = "text/html,application/xhtml+xml;q=0.9,image/*;q=0.8,*/*;q=0.1";
const ACCEPT_IMAGE: &str = "image/png,image/jpeg,image/gif,image/webp";

/// Why there is no preview.
enum Trouble {
    /// The page is to blame.
    Failure(Failure),
    /// This server is.
    Error(Error),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// What there is to be shown of an address, in JSON. It is looked at only if nobody has done so in the last hour, and what
/// one has begun is finished for the others.
///
/// # Errors
/// `M_INVALID_PARAM` if it is no address, `M_FORBIDDEN` if the server does not look at it, `M_LIMIT_EXCEEDED`, or 502
/// `M_UNKNOWN` if it has no good answer.
pub async fn get(app: &Arc<App>, requester: &Requester, address: &str) -> Result<Arc<RawValue>> {
    let mut address = Url::parse(address)
        .ok()
        .filter(is_of_web)
        .ok_or_else(|| Error::invalid_param("this is no address of the web"))?;
    // It is the same page, whichever part of it is meant.
    address.set_fragment(None);
    app.web.expect_allowed(&address)?;
    if let Some(preview) = known(app, &address).await? {
        return Ok(preview.answer?);
    }
    rate_limit::check(app, Class::Previews, requester)?;
    let work = tokio::spawn(look_once(Arc::clone(app), requester.user, address));
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => Ok(done.map_err(Error::internal)??.answer?),
        Err(_) => Err(Error::new(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Unknown,
            "there is no preview yet",
        )),
    }
}

/// What is known of an address, if the image in it is still there.
async fn known(app: &App, address: &Url) -> Result<Option<Preview>> {
    let now = app.clock.now();
    let Some(preview) = app.web.known(address, now) else {
        return Ok(None);
    };
    if let Some(image) = &preview.image
        && media::get(&app.db, app.name().as_str(), image)
            .await?
            .is_none()
    {
        return Ok(None);
    }
    Ok(Some(preview))
}

async fn look_once(app: Arc<App>, user: UserNid, address: Url) -> Result<Preview> {
    let _turn = app.web.flights.turn(address.as_str().to_owned()).await;
    if let Some(preview) = known(&app, &address).await? {
        return Ok(preview);
    }
    let of_user = app.web.places_of.of(&user);
    let _place_of_user = of_user.acquire_owned().await.map_err(Error::internal)?;
    let _place = app.web.places.acquire().await.map_err(Error::internal)?;
    let (answer, image) = match look(&app, &address).await {
        Ok((properties, image)) => {
            let answer = to_raw_value(&properties).map_err(Error::internal)?;
            (Ok(Arc::from(answer)), image)
        }
        Err(Trouble::Failure(failure)) => (Err(failure), None),
        Err(Trouble::Error(error)) => return Err(error),
    };
    let kept = if answer.is_ok() { KEPT } else { KEPT_FAILURE };
    let until = app.clock.now() + kept;
    let preview = Preview {
        until,
        answer,
        image,
    };
    app.web.keep(&address, preview.clone());
    Ok(preview)
}

type Properties = BTreeMap<String, Value>;

/// Looks at an address; answers the properties, and the name of the image in them.
async fn look(app: &Arc<App>, address: &Url) -> Result<(Properties, Option<String>), Trouble> {
    // What is too long is not refused but cut off.
    let limits = Limits::default().time(TIME).bytes(u64::MAX);
    let (address, answer) = app.web.get(address, ACCEPT_PAGE, limits).await?;
    let content_type = answer.headers().get(header::CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or_default().to_owned();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let essence = essence.to_ascii_lowercase();
    let mut properties = Properties::new();
    let mut image = None;
    if essence.starts_with("image/") {
        image = keep_image(app, &address, answer, &mut properties).await?;
        let name = address
            .path_segments()
            .and_then(|mut names| names.next_back());
        if let Some(name) = name.filter(|name| !name.is_empty() && image.is_some()) {
            let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
            properties.insert("og:title".to_owned(), page::clean(&name).into());
        }
    } else if matches!(&*essence, "text/html" | "application/xhtml+xml") {
        let bytes = first_part(&address, answer.into_body(), PAGE_BYTES).await?;
        let at = address.clone();
        let read = tokio::task::spawn_blocking(move || {
            page::read(&at, &bytes, page::charset(&content_type))
        });
        let page = match read.await {
            Ok(page) => page,
            Err(error) if error.is_panic() => {
                tracing::error!(%address, "a parser panicked at a page");
                return Err(Failure::Unreachable("the page makes no sense".to_owned()).into());
            }
            Err(error) => return Err(Error::internal(error).into()),
        };
        let values = page.properties.into_iter();
        properties.extend(values.map(|(name, value)| (name, value.into())));
        if let Some(address) = page.image {
            image = image_at(app, &address, &mut properties).await?;
        }
        if image.is_none() {
            properties.remove("og:image:alt");
        }
    }
    Ok((properties, image))
}

/// Adds the image of a page to its properties. A page whose image cannot be had is shown without.
async fn image_at(
    app: &Arc<App>,
    address: &Url,
    properties: &mut Properties,
) -> Result<Option<String>, Trouble> {
    let limits = Limits::default()
        .time(TIME)
        .bytes(app.config.url_previews.max_image_bytes);
    let kept = match app.web.get(address, ACCEPT_IMAGE, limits).await {
        Ok((address, answer)) => keep_image(app, &address, answer, properties).await,
        Err(failure) => Err(failure.into()),
    };
    match kept {
        Err(Trouble::Failure(error)) => {
            tracing::debug!(%address, %error, "a page is shown without its image");
            Ok(None)
        }
        kept => kept,
    }
}

/// Keeps an image as a media and adds it to the properties; answers its name. What is no image that browsers show is left
/// out, whatever the answer says that it is.
async fn keep_image(
    app: &Arc<App>,
    address: &Url,
    answer: Response<Body>,
    properties: &mut Properties,
) -> Result<Option<String>, Trouble> {
    let most = app.config.url_previews.max_image_bytes;
    let bytes = first_part(address, answer.into_body(), most + 1).await?;
    if bytes.len() as u64 > most {
        return Ok(None);
    }
    let described = tokio::task::spawn_blocking(move || {
        let described = describe(&bytes);
        (bytes, described)
    });
    let (bytes, described) = match described.await {
        Ok(described) => described,
        Err(error) if error.is_panic() => {
            tracing::error!(%address, "a decoder panicked at an image");
            return Ok(None);
        }
        Err(error) => return Err(Error::internal(error).into()),
    };
    let Ok((format, width, height)) = described else {
        return Ok(None);
    };
    let content_type = format.to_mime_type();
    let id = store(app, &bytes, content_type).await?;
    for (name, value) in [
        ("og:image", uri(app, &id).as_str().into()),
        ("og:image:type", content_type.into()),
        ("og:image:width", width.into()),
        ("og:image:height", height.into()),
        ("matrix:image:size", bytes.len().into()),
    ] {
        properties.insert(name.to_owned(), value);
    }
    Ok(Some(id))
}

/// Keeps an image for some time; answers its name. It counts as what is kept of other servers.
async fn store(app: &Arc<App>, bytes: &[u8], content_type: &str) -> Result<String> {
    let id = Alphanumeric.sample_string(&mut rand::rng(), ID_LENGTH);
    let mut draft = app.files.draft().await.map_err(Error::internal)?;
    draft.write(bytes).await.map_err(Error::internal)?;
    let description = Description {
        length: None,
        content_type: Some(content_type.to_owned()),
        filename: None,
    };
    let (nid, media_id) = (MediaNid(app.log.new_id()?), id.clone());
    upload::keep(app, None, draft, description, move |app, content| {
        let now = app.clock.now();
        let name = (app.name().as_str(), media_id.as_str());
        media::add_until(nid, name, content, (now, now + KEPT_IMAGE))
    })
    .await?;
    app.remote.came();
    Ok(id)
}

/// The first part of a body: so many bytes, or a little more.
async fn first_part(address: &Url, mut body: Body, most: u64) -> Result<BytesMut, Failure> {
    let mut read = BytesMut::new();
    while (read.len() as u64) < most
        && let Some(chunk) = body
            .chunk()
            .await
            .map_err(|error| failed(address, &error))?
    {
        read.extend_from_slice(&chunk);
    }
    Ok(read)
}
