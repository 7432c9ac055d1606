//! Asking several servers at once, within the time that a client has.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use ruma::{
    OwnedServerName, ServerName,
    api::{
        OutgoingRequest, federation::authentication::ServerSignatures, path_builder::SinglePath,
    },
};
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::{
    app::App,
    error::{Error, Result},
    remote,
    storage::UserNid,
    turns::FewTurns,
};

/// How much is asked at once, and of one server.
const AT_ONCE: usize = 128;
const OF_ONE: usize = 8;
/// The largest answer, in bytes.
const ANSWER: u64 = 4 << 20;
/// How long servers have at most.
const LONGEST: Duration = Duration::from_secs(20);

/// What servers have answered, and those that have not, as clients are told of them.
pub(super) type Asked<A> = (Vec<(OwnedServerName, A)>, BTreeMap<String, Value>);

/// When servers must have answered that have so much time.
pub(super) fn deadline(timeout: Duration) -> Instant {
    Instant::now() + timeout.min(LONGEST)
}

/// Waits until a user has not too many requests under way that ask other servers, or the time is over.
pub(super) async fn turn(app: &App, user: UserNid, until: Instant) -> Option<OwnedSemaphorePermit> {
    let turn = app.remote.keys_for.of(&user).acquire_owned();
    timeout_at(until, turn).await.ok()?.ok()
}

/// Asks another server for something that has to do with keys. All such requests together are only so many.
///
/// # Errors
/// As [`remote::ask`] says.
pub(super) async fn ask_one<R>(
    app: &App,
    server: &ServerName,
    request: R,
) -> Result<R::IncomingResponse>
where
    R: OutgoingRequest<Authentication = ServerSignatures, PathBuilder = SinglePath>,
{
    let _place = app.remote.keys.acquire().await.map_err(Error::internal)?;
    remote::ask(app, server, request, ANSWER).await
}

/// Asks each server for something.
pub(super) async fn ask<R>(
    app: &App,
    requests: Vec<(OwnedServerName, R)>,
    until: Instant,
) -> Asked<R::IncomingResponse>
where
    R: OutgoingRequest<Authentication = ServerSignatures, PathBuilder = SinglePath> + Send,
    R::IncomingResponse: Send,
{
    let asked = requests.into_iter().map(|(server, request)| {
        let to = server.clone();
        let answer = async move { ask_one(app, &to, request).await };
        (server, answer.boxed())
    });
    all(asked.collect(), until).await
}

/// Lets servers be asked, each of which may be there several times.
pub(super) async fn all<A>(
    asked: Vec<(OwnedServerName, BoxFuture<'_, Result<A>>)>,
    until: Instant,
) -> Asked<A> {
    let turns = (Semaphore::new(AT_ONCE), FewTurns::new(OF_ONE));
    let mut answers_to_come = FuturesUnordered::new();
    for (server, answer) in asked {
        answers_to_come.push(in_turn(&turns, server, answer, until));
    }
    let (mut answers, mut failures) = (Vec::new(), BTreeMap::new());
    while let Some((server, answer)) = answers_to_come.next().await {
        let failure = match answer {
            Some(Ok(answer)) => {
                answers.push((server, answer));
                continue;
            }
            Some(Err(error)) => error.to_string(),
            None => "the server did not answer in time".to_owned(),
        };
        let failure = json!({ "status": 503, "errcode": "M_UNKNOWN", "message": failure });
        failures.insert(server.to_string(), failure);
    }
    (answers, failures)
}

/// Waits for an answer; one that comes too late is none. A server that says nothing keeps only those waiting who want
/// something of it.
async fn in_turn<A>(
    (turns, turns_of): &(Semaphore, FewTurns<OwnedServerName>),
    server: OwnedServerName,
    answer: BoxFuture<'_, Result<A>>,
    until: Instant,
) -> (OwnedServerName, Option<Result<A>>) {
    let of_server = turns_of.of(&server);
    let answer = async {
        let _turn_of_server = of_server.acquire().await.map_err(Error::internal)?;
        let _turn = turns.acquire().await.map_err(Error::internal)?;
        answer.await
    };
    // With no time left, nobody is asked.
    let answer = if Instant::now() < until {
        timeout_at(until, answer).await.ok()
    } else {
        None
    };
    (server, answer)
}
