//! The keys of other servers: in memory, in the database, from the servers themselves and from notaries.
//!
//! A key that was once published stays known with the time until which it was valid, so that old events can be checked
//! when their server has new keys, or is gone.

mod fetch;
mod known;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures_util::{StreamExt as _, future::join_all, stream};
use homing_federation::VerifyKey;
use ruma::{OwnedServerName, ServerName};

pub use self::known::ServerKeys;
use self::known::{Known, Places};
use crate::{
    app::App,
    error::Result,
    log::Change,
    storage::{self, server_keys::Document},
};

/// Of how many servers that are in no room here the keys are kept: anybody can have as many servers as they like.
const STRANGERS: i64 = 10_000;
/// How many servers are asked at one time whose keys are still valid, but not for long.
const RENEWED_AT_ONCE: usize = 4;

/// Ids of keys that are needed, by the server that claims to have used them.
pub type Wanted = HashMap<OwnedServerName, HashSet<String>>;

/// Keys of some servers.
#[derive(Debug, Default)]
pub struct Keys(HashMap<OwnedServerName, Arc<Known>>);

impl Keys {
    /// The key of a server with this id, if what it signed at a time (milliseconds since 1970) holds. Without a time, as in
    /// rooms whose version does not enforce the validity of keys, any key will do.
    #[must_use]
    pub fn get(&self, server: &ServerName, key: &str, at: Option<i64>) -> Option<&VerifyKey> {
        self.0.get(server)?.valid_at(key, at.unwrap_or(i64::MIN))
    }

    /// The keys that are not here as they have to be.
    fn missing(&self, wanted: &Wanted, at: i64) -> Wanted {
        let mut missing = Wanted::new();
        for (server, ids) in wanted {
            let known = self.0.get(server);
            let is_missing = |id: &&String| !known.is_some_and(|known| known.suffices(id, at));
            let ids: HashSet<_> = ids.iter().filter(is_missing).cloned().collect();
            if !ids.is_empty() {
                missing.insert(server.clone(), ids);
            }
        }
        missing
    }
}

/// Finds keys, as far as they can be found: what is not known here is asked of the servers themselves, of all at once, and
/// then of the notaries. `newest` is the latest time, in milliseconds since 1970, at which one of them must be valid.
///
/// # Errors
/// If the database fails.
pub async fn find(app: &App, wanted: Wanted, newest: i64) -> Result<Keys> {
    find_in(&app.server_keys.places, app, wanted, newest).await
}

/// The same for a request that claims to be signed by another server: anybody can make it wait for a server that does not
/// answer, so those who wait so do not keep others waiting.
///
/// # Errors
/// If the database fails.
pub async fn find_for_request(app: &App, wanted: Wanted, now: i64) -> Result<Keys> {
    find_in(&app.server_keys.places_for_requests, app, wanted, now).await
}

async fn find_in(places: &Places, app: &App, wanted: Wanted, newest: i64) -> Result<Keys> {
    let mut keys = known(app, wanted.keys()).await?;
    let missing = keys.missing(&wanted, newest);
    if !missing.is_empty() {
        let asked = missing
            .iter()
            .map(|(server, ids)| fetch::from_origin(places, app, server, ids, newest));
        for (found, server) in join_all(asked).await.into_iter().zip(missing.keys()) {
            if let Some(found) = found? {
                keys.0.insert(server.clone(), found);
            }
        }
        let missing = keys.missing(&missing, newest);
        ask_notaries(app, &mut keys, missing, newest).await?;
    }
    let now = app.clock.now();
    let stale = keys.0.iter().filter(|(_, known)| known.is_stale(now));
    app.server_keys.renew_soon(stale.map(|(server, _)| server));
    Ok(keys)
}

/// What is known of some servers without asking anybody.
async fn known<'a>(app: &App, servers: impl Iterator<Item = &'a OwnedServerName>) -> Result<Keys> {
    let mut keys = Keys::default();
    let mut unknown = HashSet::new();
    for server in servers {
        if server == app.name() {
            let own = Known::own(&app.own_keys);
            keys.0.insert(server.clone(), Arc::new(own));
        } else if let Some(known) = app.server_keys.get(server) {
            keys.0.insert(server.clone(), known);
        } else {
            unknown.insert(server.clone());
        }
    }
    if unknown.is_empty() {
        return Ok(keys);
    }
    let names = || unknown.iter().map(ToString::to_string).collect();
    let before = app.server_keys.changes();
    let mut stored: HashMap<_, Vec<_>> = HashMap::new();
    for key in storage::server_keys::of(&app.db, names()).await? {
        stored.entry(key.server.clone()).or_default().push(key);
    }
    let documents = storage::server_keys::documents(&app.db, names()).await?;
    let documents: HashMap<_, _> = documents
        .into_iter()
        .map(|document| (document.server.clone(), document))
        .collect();
    for server in unknown {
        let of_server = stored.remove(server.as_str()).unwrap_or_default();
        let known = Known::stored(&of_server, documents.get(server.as_str()));
        let known = Arc::new(known);
        app.server_keys.keep(&server, &known, before);
        keys.0.insert(server, known);
    }
    Ok(keys)
}

/// Asks all notaries at once for what the servers themselves did not answer.
async fn ask_notaries(app: &App, keys: &mut Keys, mut missing: Wanted, at: i64) -> Result<()> {
    let notaries = &app.config.federation.key_servers;
    let now = app.clock.now();
    missing.retain(|server, ids| {
        ids.retain(|id| !app.server_keys.is_missed(server, id, now));
        server != app.name() && !ids.is_empty()
    });
    if missing.is_empty() {
        return Ok(());
    }
    let asked = notaries
        .iter()
        .filter(|notary| *notary != app.name())
        .map(|notary| fetch::from_notary(app, notary, &missing, at));
    for answer in join_all(asked).await {
        for (server, found) in answer? {
            keys.0.insert(server, found);
        }
    }
    for (server, ids) in keys.missing(&missing, at) {
        for id in ids {
            app.server_keys.miss(&server, &id, now);
        }
    }
    Ok(())
}

/// What servers have published, for those who ask this server as a notary: each with the time until which it must be
/// valid, in milliseconds since 1970. A server that does not answer is represented by what it published before.
///
/// # Errors
/// If the database fails.
pub async fn documents(app: &App, wanted: &[(OwnedServerName, i64)]) -> Result<Vec<Document>> {
    let names = || {
        let names = wanted.iter().map(|(server, _)| server.to_string());
        names.collect()
    };
    let stored = storage::server_keys::documents(&app.db, names()).await?;
    let now = app.clock.now();
    let is_missing = |(server, until): &&(OwnedServerName, i64)| {
        !stored.iter().any(|it| {
            it.server == server.as_str()
                && it.valid_until >= *until
                && known::half_way(it.fetched, it.valid_until) > now
        })
    };
    let missing: Vec<_> = wanted.iter().filter(is_missing).collect();
    if missing.is_empty() {
        return Ok(stored);
    }
    let asked = missing
        .iter()
        .map(|(server, _)| fetch::for_others(app, server));
    for done in join_all(asked).await {
        done?;
    }
    Ok(storage::server_keys::documents(&app.db, names()).await?)
}

/// Forgets the keys of strangers, if there are too many: servers that have asked for something, or of which others wanted to
/// know, and that were never in a room that is known here.
///
/// # Errors
/// If the database fails.
pub async fn forget_strangers(app: &App) -> Result<()> {
    forget_strangers_but(app, STRANGERS).await
}

/// The same for another number.
///
/// # Errors
/// If the database fails.
pub async fn forget_strangers_but(app: &App, most: i64) -> Result<()> {
    let mut change = Change::new();
    for write in storage::server_keys::forget_strangers(most) {
        change.write(write);
    }
    app.log.append(change).await?;
    Ok(())
}

/// Renews keys that are still valid, but not for long, until the server ends; nobody waits for that.
pub async fn run(app: Arc<App>) {
    let work = async {
        loop {
            let stale = app.server_keys.stale().await;
            stream::iter(stale)
                .for_each_concurrent(RENEWED_AT_ONCE, async |server| {
                    if let Err(error) = fetch::renew(&app, &server).await {
                        tracing::error!(%server, %error, "cannot keep the keys of another server");
                    }
                })
                .await;
        }
    };
    app.shutdown.run_until_cancelled(work).await;
}
