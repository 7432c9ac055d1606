//! Asking other servers for something that a client wants to know, and what memory holds of their answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use homing_federation::client::{self, Limits};
use http::StatusCode;
use quick_cache::sync::Cache;
use ruma::{
    OwnedRoomId, OwnedServerName, OwnedUserId, ServerName,
    api::{
        OutgoingRequest,
        error::ErrorKind,
        federation::{authentication::ServerSignatures, space::get_hierarchy},
        path_builder::SinglePath,
    },
};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::{
    app::App,
    error::{Error, Result},
    flights::Flights,
    storage::UserNid,
    turns::FewTurns,
};

/// How long an answer may take that a client waits for.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many files are fetched at once, and how many of them from one server, which may be slow.
const DOWNLOADS: usize = 32;
const DOWNLOADS_OF_ONE: usize = 8;
/// How many servers are asked about keys at once, and how many requests of one user may ask others.
const KEYS: usize = 512;
const KEYS_FOR_ONE: usize = 4;
/// How many profiles, and how many spaces, of other servers are kept.
const PROFILES: usize = 256;
const SPACES: usize = 64;
/// How many policy servers, and how many other servers, that do not answer are kept in mind.
const SILENT: usize = 256;
/// How long a server is not asked again after it could not be reached, in milliseconds.
const UNREACHABLE: i64 = 10_000;

/// The fields of a profile, by name.
pub type Profile = Arc<Vec<(String, Value)>>;
/// What a server has told of a space.
pub type Space = Arc<get_hierarchy::v1::Response>;

/// What memory holds of other servers' answers.
#[derive(Debug)]
pub struct Remote {
    /// Profiles, each with the time until which it is kept, in milliseconds since 1970.
    pub profiles: Cache<OwnedUserId, (i64, Profile)>,
    /// What is told of rooms, likewise; `None` if no server told anything.
    pub spaces: Cache<OwnedRoomId, (i64, Option<Space>)>,
    /// The media that are being fetched: their servers and ids.
    pub media: Flights<(OwnedServerName, String)>,
    /// Those whose invitations by address are being looked at.
    pub bound: Flights<OwnedUserId>,
    /// Policy servers that did not answer, each with the time when that was.
    pub silent: Cache<OwnedServerName, Instant>,
    /// Servers that could not be reached when a client wanted to know something, each with the time in milliseconds since
    /// 1970 until which they are not asked again.
    unreachable: Cache<OwnedServerName, i64>,
    /// Room for files being fetched.
    pub downloads: Arc<Semaphore>,
    /// The same for each server.
    pub downloads_of: FewTurns<OwnedServerName>,
    /// Room for requests about keys.
    pub keys: Semaphore,
    /// Turns of each user at such requests.
    pub keys_for: FewTurns<UserNid>,
    /// Whether a file has come since it was last looked whether there are too many.
    has_more: AtomicBool,
}

impl Remote {
    /// Notes that a file has come.
    pub fn came(&self) {
        self.has_more.store(true, Ordering::Relaxed);
    }

    /// A server has made a request: it is there.
    pub fn heard_from(&self, server: &ServerName) {
        self.unreachable.remove(server);
    }

    /// Whether a file has come since this was asked last.
    pub fn has_more(&self) -> bool {
        self.has_more.swap(false, Ordering::Relaxed)
    }
}

impl Default for Remote {
    fn default() -> Self {
        Self {
            profiles: Cache::new(PROFILES),
            spaces: Cache::new(SPACES),
            media: Flights::default(),
            bound: Flights::default(),
            silent: Cache::new(SILENT),
            unreachable: Cache::new(SILENT),
            downloads: Arc::new(Semaphore::new(DOWNLOADS)),
            downloads_of: FewTurns::new(DOWNLOADS_OF_ONE),
            keys: Semaphore::new(KEYS),
            keys_for: FewTurns::new(KEYS_FOR_ONE),
            // What there was at the start is too much if the settings have become stricter.
            has_more: AtomicBool::new(true),
        }
    }
}

/// Asks another server for something that a client waits for, and that has so many bytes at most. A server that could not
/// be reached just now is not asked.
///
/// # Errors
/// What the server says where it forbids it or has no such thing; else 502 `M_UNKNOWN`.
pub async fn ask<R>(
    app: &App,
    to: &ServerName,
    request: R,
    bytes: u64,
) -> Result<R::IncomingResponse>
where
    R: OutgoingRequest<Authentication = ServerSignatures, PathBuilder = SinglePath>,
{
    expect_federation(app)?;
    expect_reachable(app, to)?;
    let limits = Limits::default().time(PATIENCE).bytes(bytes);
    let answer = app.federation.send_within(limits, to, request).await;
    answer.map_err(|error| {
        note(app, to, &error);
        failed(to, &error)
    })
}

/// Makes sure that a server did not prove unreachable just now.
///
/// # Errors
/// 502 `M_UNKNOWN`.
pub fn expect_reachable(app: &App, server: &ServerName) -> Result<()> {
    let until = app.remote.unreachable.get(server);
    if until.is_some_and(|until| until > app.clock.now()) {
        return Err(unreachable(server));
    }
    Ok(())
}

/// Notes that a server could not be reached, if that is what went wrong.
pub fn note(app: &App, server: &ServerName, error: &client::Error) {
    if matches!(
        error,
        client::Error::Unreachable(_) | client::Error::TimedOut | client::Error::Blocked(_)
    ) {
        let until = app.clock.now() + UNREACHABLE;
        app.remote.unreachable.insert(server.to_owned(), until);
    }
}

/// Makes sure that other servers may be asked at all.
///
/// # Errors
/// `M_NOT_FOUND` if not.
pub fn expect_federation(app: &App) -> Result<()> {
    if app.config.federation.enabled {
        return Ok(());
    }
    Err(Error::not_found(
        "this server does not talk to other servers",
    ))
}

/// What a client is told when another server has no good answer.
#[must_use]
pub fn failed(server: &ServerName, error: &client::Error) -> Error {
    tracing::debug!(%server, %error, "another server has no good answer");
    let refusal = error.refusal();
    let said = refusal.and_then(|refusal| Some((refusal.status, refusal.error.as_ref()?)));
    match said {
        Some((status @ (StatusCode::FORBIDDEN | StatusCode::NOT_FOUND), said)) => {
            told(status, &said.kind, &said.message)
        }
        _ => unreachable(server),
    }
}

/// Codes that mean something about who is told them, and nothing if another server says them: clients sign out, lock
/// themselves up or send people somewhere else.
const OURS_TO_SAY: &[&str] = &[
    "M_CONSENT_NOT_GIVEN",
    "M_MISSING_TOKEN",
    "M_RESOURCE_LIMIT_EXCEEDED",
    "M_UNKNOWN_TOKEN",
    "M_UNRECOGNIZED",
    "M_USER_DEACTIVATED",
    "M_USER_LOCKED",
    "M_USER_SUSPENDED",
];

/// What another server has refused with, as a client may hear it.
#[must_use]
pub fn told(status: StatusCode, kind: &ErrorKind, message: &str) -> Error {
    let code = kind.errcode();
    if OURS_TO_SAY.contains(&code.as_str()) {
        return Error::new(StatusCode::BAD_GATEWAY, ErrorKind::Unknown, message);
    }
    Error::new(status, kind.clone(), message)
}

/// 502 `M_UNKNOWN`.
#[must_use]
pub fn unreachable(server: &ServerName) -> Error {
    Error::new(
        StatusCode::BAD_GATEWAY,
        ErrorKind::Unknown,
        format!("{server} could not be reached, or had no good answer"),
    )
}
