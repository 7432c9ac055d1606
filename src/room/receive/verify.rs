//! Reading events of other servers and checking who signed them: steps 1 to 3 of the checks.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
    thread::available_parallelism,
};

use homing_federation::{Error as Reason, Pdu, Unverified, received::event_id_of};
use ruma::{OwnedEventId, room_version_rules::RoomVersionRules};
use serde_json::value::RawValue;

use crate::{
    app::App,
    error::{Error, Result},
    server_keys::{self, Keys},
};

/// From how many events on the work is spread over the cores.
const SPREAD: usize = 16;

/// Something that was to be an event and is none.
#[derive(Debug)]
pub struct Refused {
    /// The id that it would have, if it is so near to an event that it has one.
    pub event_id: Option<OwnedEventId>,
    /// What is the matter.
    pub reason: Reason,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

/// Reads events of rooms of one version and checks their signatures and hashes. Answers for each text what it is, in the
/// same order. An event whose hash is wrong comes out redacted.
///
/// # Errors
/// If the database fails.
pub async fn verify(
    app: &App,
    rules: &'static RoomVersionRules,
    texts: Vec<Box<RawValue>>,
) -> Result<Vec<Result<Arc<Pdu>, Refused>>> {
    let read = spread(texts, move |text| {
        Unverified::parse(text.get(), rules).map_err(|reason| Refused {
            event_id: event_id_of(text.get(), rules),
            reason,
        })
    });
    let read = read.await?;
    let mut wanted: HashMap<_, HashSet<String>> = HashMap::new();
    let mut newest = 0;
    for unverified in read.iter().flatten() {
        newest = newest.max(i64::from(unverified.pdu.origin_server_ts.0));
        for signer in unverified.signers() {
            let ids = signer.key_ids().map(ToOwned::to_owned);
            wanted.entry(signer.server.clone()).or_default().extend(ids);
        }
    }
    let keys = Arc::new(server_keys::find(app, wanted, newest).await?);
    spread(read, move |read| check(read?, &keys, rules)).await
}

fn check(
    unverified: Unverified,
    keys: &Keys,
    rules: &RoomVersionRules,
) -> Result<Arc<Pdu>, Refused> {
    let event_id = unverified.pdu.event_id.clone();
    let ts = i64::from(unverified.pdu.origin_server_ts.0);
    let at = rules.enforce_key_validity.then_some(ts);
    let verified = unverified.verify(|server, id| keys.get(server, id, at).cloned());
    verified.map(Arc::new).map_err(|reason| Refused {
        event_id: Some(event_id),
        reason,
    })
}

/// Does something with each of many things, on all cores if there are many.
async fn spread<A, B>(
    things: Vec<A>,
    work: impl Fn(A) -> B + Clone + Send + Sync + 'static,
) -> Result<Vec<B>>
where
    A: Send + 'static,
    B: Send + 'static,
{
    if things.len() < SPREAD {
        return Ok(things.into_iter().map(work).collect());
    }
    let cores = available_parallelism().map_or(1, usize::from);
    let size = things.len().div_ceil(cores);
    let mut things = things.into_iter();
    let mut tasks = Vec::with_capacity(cores);
    loop {
        let part: Vec<A> = things.by_ref().take(size).collect();
        if part.is_empty() {
            break;
        }
        let work = work.clone();
        tasks.push(tokio::task::spawn_blocking(move || {
            part.into_iter().map(work).collect::<Vec<B>>()
        }));
    }
    let mut done = Vec::new();
    for task in tasks {
        done.extend(task.await.map_err(Error::internal)?);
    }
    Ok(done)
}
