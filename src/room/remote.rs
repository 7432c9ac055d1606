//! Rooms of other servers: how people here are invited to them, join, knock and leave ("Joining Rooms", "Knocking upon a
//! room", "Inviting to a room", "Leaving Rooms (Rejecting Invites)").
//!
//! What another server hands out to be signed is never signed: of a template only the events before the new one, those
//! that allow it and the depth are taken, and the rest is made here.

mod ingest;
pub mod invite;
mod join;
mod knock;
mod leave;
mod stub;
mod template;

use std::collections::HashSet;

use homing_federation::client;
use http::StatusCode;
use ruma::{OwnedServerName, RoomId, UserId, api::error::ErrorKind};

pub use ingest::clear as clear_unfinished;
pub use join::{Joined, join};
pub use knock::knock;
pub use leave::leave;
pub use stub::retract;

use crate::{app::App, error::Error, remote::told, rooms::Room};

/// How many servers are asked for one thing.
const SERVERS: usize = 10;

/// Which servers to ask about a room: those that somebody named, those that are known to be in it, and the one that its id
/// names.
#[must_use]
pub fn candidates(
    app: &App,
    room: Option<&Room>,
    id: &RoomId,
    named: &[OwnedServerName],
    inviter: Option<&UserId>,
) -> Vec<OwnedServerName> {
    if !app.config.federation.enabled {
        return Vec::new();
    }
    let mut all: Vec<OwnedServerName> = named.to_vec();
    all.extend(inviter.map(|user| user.server_name().to_owned()));
    if let Some(room) = room {
        let seen = room.seen();
        let mut known: Vec<_> = seen
            .servers
            .iter()
            .filter(|(_, server)| server.joined > 0)
            .collect();
        known.sort_by_key(|(_, server)| std::cmp::Reverse(server.joined));
        all.extend(known.into_iter().map(|(name, _)| name.clone()));
    }
    all.extend(id.server_name().map(ToOwned::to_owned));
    let mut met = HashSet::new();
    all.retain(|server| server != app.name() && met.insert(server.clone()));
    all.truncate(SERVERS);
    all
}

/// What a client is told when another server does not do what was asked.
#[must_use]
pub fn failure(error: &client::Error) -> Error {
    if let Some(refusal) = error.refusal()
        && let Some(body) = &refusal.error
        && refusal.status.is_client_error()
        && refusal.status != StatusCode::UNAUTHORIZED
    {
        return told(refusal.status, &body.kind, &body.message);
    }
    Error::new(
        StatusCode::BAD_GATEWAY,
        ErrorKind::Unknown,
        format!("the other server cannot be reached: {error}"),
    )
}

/// The same where the other server was sent an event: if that was no good, it is not the client's mistake.
#[must_use]
pub(super) fn refusal(error: &client::Error) -> Error {
    let kind = error.refusal().and_then(client::Refusal::kind);
    if matches!(
        kind,
        Some(ErrorKind::InvalidParam | ErrorKind::MissingParam)
    ) {
        return nonsense(&error.to_string());
    }
    failure(error)
}

/// Nobody can be asked.
fn nobody() -> Error {
    Error::not_found("no server is known that is in this room")
}

/// 502: the other server does not do as the specification says.
fn nonsense(what: &str) -> Error {
    Error::new(
        StatusCode::BAD_GATEWAY,
        ErrorKind::Unknown,
        format!("the other server has answered nonsense: {what}"),
    )
}

/// Of several failures the one to tell: the first that is an answer, else the last.
fn telling(mut failures: Vec<Error>) -> Error {
    let is_answer = |error: &Error| !error.has_status(StatusCode::BAD_GATEWAY);
    match failures.iter().position(is_answer) {
        Some(first) => failures.swap_remove(first),
        None => failures.pop().unwrap_or_else(nobody),
    }
}
