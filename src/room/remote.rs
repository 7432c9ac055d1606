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

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, Instant},
};

use homing_federation::client;
use http::StatusCode;
use ruma::{OwnedServerName, OwnedUserId, RoomId, UserId, api::error::ErrorKind};
use serde::Deserialize;

pub use ingest::clear as clear_unfinished;
pub use join::{Joined, join};
pub use knock::knock;
pub use leave::leave;
pub use stub::retract;

use crate::{
    app::App,
    error::{Error, Result},
    remote::told,
    rooms::Room,
    storage::{UserNid, outside},
};

/// How many servers are asked for one thing.
const SERVERS: usize = 10;
/// For how long one server after the other is asked.
const PATIENCE: Duration = Duration::from_secs(25);
/// What another server's part of a membership may cost, but for the state of a room. People wait for it.
const HANDSHAKE: client::Limits = client::Limits {
    time: Duration::from_secs(20),
    bytes: 10 << 20,
};
/// The same where the server is only told of what is so in any case.
const FAREWELL: client::Limits = client::Limits {
    time: Duration::from_secs(5),
    bytes: 1 << 20,
};

/// Which servers to ask about a room.
#[derive(Debug)]
pub struct Candidates {
    /// Whom to ask.
    first: VecDeque<OwnedServerName>,
    /// Whom to ask if none of the former is in the room.
    rest: VecDeque<OwnedServerName>,
    /// Until when a next one is asked: somebody waits.
    until: Instant,
}

impl Candidates {
    fn new(first: VecDeque<OwnedServerName>, rest: VecDeque<OwnedServerName>) -> Self {
        let until = Instant::now() + PATIENCE;
        Self { first, rest, until }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first.is_empty() && self.rest.is_empty()
    }

    /// All of them.
    fn all(self) -> impl Iterator<Item = OwnedServerName> {
        self.first.into_iter().chain(self.rest)
    }

    /// The next one to ask after these failures.
    fn next(&mut self, failures: &[Error]) -> Option<OwnedServerName> {
        if !failures.is_empty() && Instant::now() > self.until {
            return None;
        }
        if let Some(server) = self.first.pop_front() {
            return Some(server);
        }
        let is_in_room =
            |error: &Error| is_answer(error) && !error.has_status(StatusCode::NOT_FOUND);
        if failures.iter().any(is_in_room) {
            return None;
        }
        self.first = std::mem::take(&mut self.rest);
        self.first.pop_front()
    }
}

/// Which servers to ask about a room: those that somebody named, else those that are known to be in it; and if none of these
/// is, also those that nobody named, and the one that the room's id names, which says nothing about who is in the room.
#[must_use]
pub fn candidates(
    app: &App,
    room: Option<&Room>,
    id: &RoomId,
    named: &[OwnedServerName],
    inviter: Option<&UserId>,
) -> Candidates {
    let mut met = HashSet::new();
    let mut new = |servers: Vec<OwnedServerName>| -> VecDeque<OwnedServerName> {
        let is_new = |server: &OwnedServerName| server != app.name() && met.insert(server.clone());
        servers.into_iter().filter(is_new).take(SERVERS).collect()
    };
    if !app.config.federation.enabled {
        return Candidates::new(VecDeque::new(), VecDeque::new());
    }
    let inviter = inviter.map(|user| user.server_name().to_owned());
    let first = new(named.iter().cloned().chain(inviter).collect());
    let mut rest = new(room.map(Room::other_servers).unwrap_or_default());
    let id = new(id
        .server_name()
        .map(ToOwned::to_owned)
        .into_iter()
        .collect());
    if first.is_empty() {
        return Candidates::new(rest, id);
    }
    rest.extend(id);
    Candidates::new(first, rest)
}

/// The servers of those who have sent what a user was told of a room: who was knocked at is one of them.
///
/// # Errors
/// If the database fails.
pub async fn told_by(app: &App, room: &Room, user: UserNid) -> Result<Vec<OwnedServerName>> {
    #[derive(Deserialize)]
    struct Told {
        sender: OwnedUserId,
    }
    let told = outside::told(&app.db, user, &[room.nid]).await?;
    let told = told.first().map_or("[]", |(_, json)| json.as_str());
    let told: Vec<Told> = serde_json::from_str(told).unwrap_or_default();
    let senders = told.iter().map(|event| event.sender.server_name());
    Ok(senders.map(ToOwned::to_owned).collect())
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
    // What is in the way between the servers is not for clients to know.
    tracing::debug!(%error, "another server has not done what was asked");
    let message = match error {
        client::Error::TimedOut => "the other server did not answer in time",
        client::Error::Unreachable(_) | client::Error::Blocked(_) => {
            "the other server cannot be reached"
        }
        _ => "the other server gave no good answer",
    };
    Error::new(StatusCode::BAD_GATEWAY, ErrorKind::Unknown, message)
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
pub(in crate::room) fn nonsense(what: &str) -> Error {
    Error::new(
        StatusCode::BAD_GATEWAY,
        ErrorKind::Unknown,
        format!("the other server has answered nonsense: {what}"),
    )
}

fn is_answer(error: &Error) -> bool {
    !error.has_status(StatusCode::BAD_GATEWAY)
}

/// Of several failures the one to tell: the first that is an answer, else the last.
fn telling(mut failures: Vec<Error>) -> Error {
    match failures.iter().position(is_answer) {
        Some(first) => failures.swap_remove(first),
        None => failures.pop().unwrap_or_else(nobody),
    }
}
