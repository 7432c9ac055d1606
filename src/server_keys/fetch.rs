//! Asking for keys.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use homing_federation::{
    client::{Error as ClientError, Limits},
    server_keys::{KeyDocument, MAX_DOCUMENT_BYTES},
};
use ruma::{
    OwnedServerName, OwnedServerSigningKeyId, ServerName,
    api::federation::discovery::{
        get_remote_server_keys_batch::v2 as batch, get_server_keys::v2 as get_server_keys,
    },
};

use super::{
    Wanted,
    known::{Known, Places, believed_until},
};
use crate::{app::App, clock, error::Result, log::Change, storage::server_keys};

/// How long a server may take to tell its keys, and a notary those of others.
const TIME: Duration = Duration::from_secs(5);
const NOTARY_TIME: Duration = Duration::from_secs(10);
/// How many documents a notary may answer, and how many of its signatures are looked at.
const MAX_DOCUMENTS: usize = 200;
const MAX_SIGNERS: usize = 4;

/// Asks a server for its keys, if it has not told them just now, and has not lately failed to. Answers what is known of
/// it then, if anything.
pub(super) async fn from_origin(
    places: &Places,
    app: &App,
    server: &ServerName,
    ids: &HashSet<String>,
    at: i64,
) -> Result<Option<Arc<Known>>> {
    if server == app.name() {
        return Ok(None);
    }
    let suffices = |known: &Known| ids.iter().all(|id| known.suffices(id, at));
    let is_new = |known: &Known| {
        known.is_new(app.clock.now())
            && !(known.lacks(ids) && app.server_keys.may_ask_soon(server, app.clock.now()))
    };
    ask(app, server, places, |known| {
        suffices(known) || is_new(known)
    })
    .await
}

/// The same for others, who want to know what is published now.
pub(super) async fn for_others(app: &App, server: &ServerName) -> Result<()> {
    if server == app.name() {
        return Ok(());
    }
    let places = &app.server_keys.places_for_others;
    let is_new = |known: &Known| known.is_new(app.clock.now());
    ask(app, server, places, is_new).await?;
    Ok(())
}

/// Asks a server again, unless somebody has meanwhile.
pub(super) async fn renew(app: &App, server: &ServerName) -> Result<()> {
    if server == app.name() {
        return Ok(());
    }
    let is_fresh = |known: &Known| {
        let now = app.clock.now();
        !known.is_stale(now) || known.is_new(now)
    };
    ask(app, server, &app.server_keys.places, is_fresh).await?;
    Ok(())
}

async fn ask(
    app: &App,
    server: &ServerName,
    places: &Places,
    suffices: impl Fn(&Known) -> bool,
) -> Result<Option<Arc<Known>>> {
    let keys = &app.server_keys;
    let turn = keys.turn(server);
    let _turn = turn.lock().await;
    let now = app.clock.now();
    // Somebody else may have asked while this one waited.
    if let Some(known) = keys.get(server)
        && suffices(&known)
    {
        return Ok(Some(known));
    }
    if keys.has_failed(server, now) {
        return Ok(None);
    }
    let document = {
        let Some(_place) = places.enter().await else {
            tracing::warn!(%server, "too many servers are being asked for their keys");
            return Ok(None);
        };
        published(app, server).await
    };
    match document {
        Ok(document) => {
            keys.forgive(server);
            learn(app, server, &document, true).await.map(Some)
        }
        Err(error) => {
            tracing::debug!(%server, %error, "another server does not tell its keys");
            keys.fail(server, app.clock.now());
            Ok(None)
        }
    }
}

async fn published(app: &App, server: &ServerName) -> Result<KeyDocument, ClientError> {
    let limits = Limits {
        time: TIME,
        bytes: MAX_DOCUMENT_BYTES as u64,
    };
    let request = get_server_keys::Request::new();
    let answer = app
        .federation
        .send_unsigned(limits, server, request)
        .await?;
    let text = answer.server_key.json().get();
    KeyDocument::parse(text.as_bytes(), server)
        .map_err(|error| ClientError::Nonsense(error.to_string()))
}

/// Keeps what a server has published: in the database, and then in memory.
async fn learn(
    app: &App,
    server: &ServerName,
    document: &KeyDocument,
    is_from_origin: bool,
) -> Result<Arc<Known>> {
    let now = app.clock.now();
    let before = super::known(app, std::iter::once(&server.to_owned())).await?;
    let before = before.0.into_values().next().unwrap_or_default();
    let known = if is_from_origin {
        before.with(document, now)
    } else {
        before.with_older(document, now)
    };
    let nid = app.names.server(&app.db, &app.log, server).await?;
    let mut change = Change::new();
    let mut count = 0;
    for (id, (key, until)) in &known.keys {
        if before.keys.get(id) != Some(&(key.clone(), *until)) {
            change.write(server_keys::set(nid, id, key.to_base64(), *until));
            count += 1;
        }
    }
    for id in before.keys.keys() {
        if !known.keys.contains_key(id) {
            change.write(server_keys::forget(nid, id));
            count += 1;
        }
    }
    if is_from_origin {
        let until = believed_until(document, now);
        change.write(server_keys::set_document(nid, &document.json, now, until));
        count += 1;
    }
    if count > 0 {
        app.log.append(change).await?;
    }
    let known = Arc::new(known);
    app.server_keys.learn(server, &known);
    Ok(known)
}

/// Asks a notary for keys. What it says is believed if it is signed by the notary and by the servers themselves. Answers
/// what is known then of the servers that it knew.
pub(super) async fn from_notary(
    app: &App,
    notary: &OwnedServerName,
    wanted: &Wanted,
    at: i64,
) -> Result<Vec<(OwnedServerName, Arc<Known>)>> {
    let documents = match told(app, notary, wanted, at).await {
        Ok(documents) => documents,
        Err(error) => {
            tracing::warn!(%notary, %error, "a notary does not tell the keys of others");
            return Ok(Vec::new());
        }
    };
    let now = app.clock.now();
    let signers = documents.iter().flat_map(|(_, it)| it.signers(notary));
    let signers: HashSet<String> = signers.map(String::from).take(MAX_SIGNERS).collect();
    let mut keys = super::known(app, std::iter::once(notary)).await?;
    let needed = Wanted::from([(notary.clone(), signers.clone())]);
    if !keys.missing(&needed, now).is_empty()
        && let Some(found) =
            from_origin(&app.server_keys.places, app, notary, &signers, now).await?
    {
        keys.0.insert(notary.clone(), found);
    }
    let mut found = Vec::new();
    for (server, document) in documents {
        let is_signed = signers.iter().any(|id| {
            let key = keys.get(notary, id, Some(now));
            key.is_some_and(|key| document.is_signed_by(notary, id, key))
        });
        if is_signed {
            let known = learn(app, &server, &document, false).await?;
            found.push((server, known));
        } else {
            tracing::warn!(%notary, %server, "a notary has not signed what it told");
        }
    }
    Ok(found)
}

/// What a notary says that the wanted servers have published, as far as these have signed it.
async fn told(
    app: &App,
    notary: &ServerName,
    wanted: &Wanted,
    at: i64,
) -> Result<Vec<(OwnedServerName, KeyDocument)>, ClientError> {
    let mut request = batch::Request::new(BTreeMap::new());
    for (server, ids) in wanted {
        let criteria = request.server_keys.entry(server.clone()).or_default();
        for id in ids {
            if let Ok(id) = OwnedServerSigningKeyId::try_from(id.as_str()) {
                let mut valid = batch::QueryCriteria::new();
                valid.minimum_valid_until_ts = Some(clock::timestamp(at.max(0)));
                criteria.insert(id, valid);
            }
        }
    }
    let limits = Limits::default().time(NOTARY_TIME);
    let answer = app
        .federation
        .send_unsigned(limits, notary, request)
        .await?;
    let mut documents = Vec::new();
    for document in answer.server_keys.iter().take(MAX_DOCUMENTS) {
        let Ok(Some(server)) = document.get_field::<OwnedServerName>("server_name") else {
            continue;
        };
        if !wanted.contains_key(&server) {
            continue;
        }
        match KeyDocument::parse(document.json().get().as_bytes(), &server) {
            Ok(document) => documents.push((server, document)),
            Err(error) => tracing::warn!(%notary, %server, %error, "a notary tells nonsense"),
        }
    }
    Ok(documents)
}
