//! Who is asking: access tokens and the sessions they stand for.

mod guests;
mod known;
mod seen;
mod servers;

use std::{future::Future, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{StatusCode, request::Parts};
use ruma::{
    OwnedDeviceId, OwnedUserId, UserId,
    api::{
        auth_scheme::{
            AccessToken, AccessTokenOptional, AppserviceToken, AppserviceTokenOptional, AuthScheme,
            NoAccessToken, NoAuthentication,
        },
        error::ErrorKind,
    },
};
use sha2::{Digest as _, Sha256};

use crate::{
    app::App,
    error::{Error, Result},
    http::Bodies,
    listen::ClientAddress,
    log::Change,
    storage::{self, DeviceNid, UserNid},
};
pub use known::Sessions;
pub use seen::Seen;
pub use servers::{Origin, Origins, Place, server};

/// The local user, on one of their devices, that a request comes from.
#[derive(Clone, Debug)]
pub struct Requester {
    /// The user's id.
    pub user_id: OwnedUserId,
    /// The user.
    pub user: UserNid,
    /// The device's id.
    pub device_id: OwnedDeviceId,
    /// The device.
    pub device: DeviceNid,
    /// Whether the user may use the admin API.
    pub is_admin: bool,
    /// Whether the user is a guest.
    pub is_guest: bool,
    /// The hash of the access token that was used.
    pub token: TokenHash,
    /// When that token ends, in milliseconds since 1970.
    expires: Option<i64>,
}

impl Requester {
    /// Makes sure that a path which names a user names the requester.
    ///
    /// # Errors
    /// `M_FORBIDDEN` if it names somebody else.
    pub fn must_be(&self, user: &UserId) -> Result<()> {
        if self.user_id == user {
            Ok(())
        } else {
            Err(Error::forbidden("this belongs to somebody else"))
        }
    }
}

/// The SHA-256 of an access token: all that is kept of it.
pub type TokenHash = [u8; 32];

/// The hash under which a token is kept.
#[must_use]
pub fn hash_token(token: &str) -> TokenHash {
    Sha256::digest(token.as_bytes()).into()
}

/// A new secret: 192 random bits, behind a word that says what it is for.
#[must_use]
pub fn new_token(purpose: &str) -> String {
    let secret = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 24]>());
    format!("homing_{purpose}_{secret}")
}

/// The requester that an access token stands for.
///
/// # Errors
/// `M_UNKNOWN_TOKEN`, with `soft_logout` if the token has only expired.
pub async fn requester(app: &App, token: &str) -> Result<Arc<Requester>> {
    by_hash(app, hash_token(token)).await
}

async fn by_hash(app: &App, hash: TokenHash) -> Result<Arc<Requester>> {
    let requester = match app.sessions.get(&hash) {
        Some(requester) => requester,
        None => load(app, hash).await?,
    };
    if requester
        .expires
        .is_some_and(|expires| expires <= app.clock.now())
    {
        return Err(Error::unknown_token(true));
    }
    Ok(requester)
}

/// Takes a session into memory.
async fn load(app: &App, hash: TokenHash) -> Result<Arc<Requester>> {
    loop {
        let before = app.sessions.changes();
        let Some(session) = storage::sessions::by_token(&app.db, &hash).await? else {
            return Err(Error::unknown_token(false));
        };
        // An expired token proves nothing any more.
        let expired = session.expires.is_some_and(|ends| ends <= app.clock.now());
        if let Some(refresh) = &session.unconfirmed
            && !expired
        {
            confirm(app, refresh, session.device_nid).await?;
            continue;
        }
        let requester = Arc::new(Requester {
            user_id: OwnedUserId::try_from(session.user_id).map_err(Error::internal)?,
            user: session.user_nid,
            device_id: session.device_id.into(),
            device: session.device_nid,
            is_admin: session.is_admin,
            is_guest: session.is_guest,
            token: hash,
            expires: session.expires,
        });
        app.sessions.keep(&requester, before);
        return Ok(requester);
    }
}

/// The client uses the tokens that it got for a refresh token: so those before them end.
async fn confirm(app: &App, refresh: &[u8], device: DeviceNid) -> Result<()> {
    let mut change = Change::new();
    for write in storage::sessions::confirm(refresh) {
        change.write(write);
    }
    app.log.append(change).await?;
    app.sessions.forget(|requester| requester.device == device);
    Ok(())
}

/// Does something that may take long for a requester, and gives it up as soon as their session ends.
///
/// # Errors
/// `M_UNKNOWN_TOKEN` if the session ends or has ended; else those of `work`.
pub async fn while_signed_in<T>(
    app: &App,
    requester: &Requester,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let watch = app.sessions.watch(requester);
    // It may have ended between its authentication and the watch.
    by_hash(app, requester.token).await?;
    let done = watch.ended().run_until_cancelled(work).await;
    match done {
        // What the work found may be newer than the end.
        Some(done) if !watch.ended().is_cancelled() => done,
        _ => Err(Error::unknown_token(false)),
    }
}

/// The requester that the header (or the query) of a request names, who is seen with that.
async fn seen(app: &App, parts: &Parts, token: &str) -> Result<Arc<Requester>> {
    let requester = requester(app, token).await?;
    let address = parts.extensions.get::<ClientAddress>();
    let address = address.map(|address| address.0);
    let now = app.clock.now();
    app.seen
        .note(requester.user, requester.device, now, address);
    Ok(requester)
}

/// 403 `M_GUEST_ACCESS_FORBIDDEN`.
#[must_use]
pub fn guests_may_not() -> Error {
    Error::new(
        StatusCode::FORBIDDEN,
        ErrorKind::GuestAccessForbidden,
        "guests may not do this",
    )
}

/// A way of authentication that ruma's metadata names, and what it tells of the requester.
pub trait Authenticate: AuthScheme {
    /// What is known of the requester.
    type Who: Send + std::fmt::Debug;

    /// Whether all of the body must be JSON that every client can read. What servers send is judged piece by piece.
    const WHOLE: bool = true;

    /// Whether it is known who that is.
    fn is_known(who: &Self::Who) -> bool;

    /// Finds out who sent the request, before its body is read.
    fn authenticate(app: &App, parts: &Parts) -> impl Future<Output = Result<Self::Who>> + Send;

    /// The memory for the bodies of such requests.
    fn bodies(app: &App) -> &Bodies {
        &app.bodies
    }

    /// Checks what cannot be known without the body, which is one JSON object or nothing. Answers the place that the
    /// request takes among those of its origin, until its answer is sent.
    ///
    /// # Errors
    /// If the request does not come from who it seemed.
    fn confirm(_: &App, _: &Self::Who, _: &Parts, _: &[u8]) -> Result<Option<Place>> {
        Ok(None)
    }
}

impl Authenticate for NoAuthentication {
    type Who = ();

    fn is_known((): &()) -> bool {
        false
    }

    async fn authenticate(_: &App, _: &Parts) -> Result<()> {
        Ok(())
    }
}

impl Authenticate for NoAccessToken {
    type Who = ();

    fn is_known((): &()) -> bool {
        false
    }

    async fn authenticate(_: &App, _: &Parts) -> Result<()> {
        Ok(())
    }
}

impl Authenticate for AccessToken {
    type Who = Arc<Requester>;

    fn is_known(_: &Arc<Requester>) -> bool {
        true
    }

    async fn authenticate(app: &App, parts: &Parts) -> Result<Arc<Requester>> {
        match token::<AccessTokenOptional>(parts)? {
            Some(token) => {
                let requester = seen(app, parts, &token).await?;
                if requester.is_guest && !guests::may(&parts.method, parts.uri.path()) {
                    return Err(guests_may_not());
                }
                Ok(requester)
            }
            None => Err(Error::missing_token("an access token is needed")),
        }
    }
}

impl Authenticate for AccessTokenOptional {
    type Who = Option<Arc<Requester>>;

    fn is_known(who: &Option<Arc<Requester>>) -> bool {
        who.is_some()
    }

    async fn authenticate(app: &App, parts: &Parts) -> Result<Option<Arc<Requester>>> {
        match token::<AccessTokenOptional>(parts)? {
            Some(token) => seen(app, parts, &token).await.map(Some),
            None => Ok(None),
        }
    }
}

impl Authenticate for AppserviceToken {
    type Who = ();

    fn is_known((): &()) -> bool {
        false
    }

    /// What only application services may ask is not built yet, so no token opens it.
    async fn authenticate(_: &App, parts: &Parts) -> Result<()> {
        match token::<AccessTokenOptional>(parts)? {
            Some(_) => Err(Error::unknown_token(false)),
            None => Err(Error::missing_token("an access token is needed")),
        }
    }
}

impl Authenticate for AppserviceTokenOptional {
    type Who = ();

    fn is_known((): &()) -> bool {
        false
    }

    async fn authenticate(_: &App, _: &Parts) -> Result<()> {
        Ok(())
    }
}

/// What a request comes with that looks like an access token.
#[must_use]
pub fn sent_token(parts: &Parts) -> Option<String> {
    token::<AccessTokenOptional>(parts).ok().flatten()
}

fn token<S>(parts: &Parts) -> Result<Option<String>>
where
    S: AuthScheme<Output = Option<String>>,
{
    let mut request = http::Request::new(());
    *request.uri_mut() = parts.uri.clone();
    if let Some(value) = parts.headers.get(http::header::AUTHORIZATION) {
        request
            .headers_mut()
            .insert(http::header::AUTHORIZATION, value.clone());
    }
    S::extract_authentication(&request)
        .map_err(|_| Error::missing_token("the access token cannot be read"))
}
