//! Asking several servers at once, within the time that a client has.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt as _, stream};
use ruma::{
    OwnedServerName, ServerName,
    api::{
        OutgoingRequest, federation::authentication::ServerSignatures, path_builder::SinglePath,
    },
};
use serde_json::{Value, json};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};

use crate::{
    app::App,
    error::{Error, Result},
    remote,
    storage::UserNid,
};

/// How many servers are asked at once.
const AT_ONCE: usize = 32;
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
    R: OutgoingRequest<Authentication = ServerSignatures, PathBuilder = SinglePath>,
{
    let asked = requests.into_iter().map(|(server, request)| async move {
        let answer = if Instant::now() < until {
            let answer = timeout_at(until, ask_one(app, &server, request));
            answer.await.ok()
        } else {
            None
        };
        (server, answer)
    });
    let mut asked = stream::iter(asked).buffer_unordered(AT_ONCE);
    let (mut answers, mut failures) = (Vec::new(), BTreeMap::new());
    while let Some((server, answer)) = asked.next().await {
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
