//! Asking several servers at once, within the time that a client has.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt as _, stream};
use ruma::{
    OwnedServerName,
    api::{
        OutgoingRequest, federation::authentication::ServerSignatures, path_builder::SinglePath,
    },
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::{app::App, remote};

/// How many servers are asked at once.
const AT_ONCE: usize = 32;
/// The largest answer, in bytes.
const ANSWER: u64 = 4 << 20;
/// How long servers have at most.
const LONGEST: Duration = Duration::from_secs(20);

/// What servers have answered, and those that have not, as clients are told of them.
pub(super) type Asked<A> = (Vec<(OwnedServerName, A)>, BTreeMap<String, Value>);

/// Asks each server for something.
pub(super) async fn ask<R>(
    app: &App,
    requests: Vec<(OwnedServerName, R)>,
    timeout: Duration,
) -> Asked<R::IncomingResponse>
where
    R: OutgoingRequest<Authentication = ServerSignatures, PathBuilder = SinglePath>,
{
    let deadline = Instant::now() + timeout.min(LONGEST);
    let asked = requests.into_iter().map(|(server, request)| async move {
        let answer = timeout_at(deadline, remote::ask(app, &server, request, ANSWER)).await;
        (server, answer)
    });
    let mut asked = stream::iter(asked).buffer_unordered(AT_ONCE);
    let (mut answers, mut failures) = (Vec::new(), BTreeMap::new());
    while let Some((server, answer)) = asked.next().await {
        let failure = match answer {
            Ok(Ok(answer)) => {
                answers.push((server, answer));
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the server did not answer in time".to_owned(),
        };
        let failure = json!({ "status": 503, "errcode": "M_UNKNOWN", "message": failure });
        failures.insert(server.to_string(), failure);
    }
    (answers, failures)
}
