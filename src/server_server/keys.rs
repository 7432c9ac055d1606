//! "Retrieving server keys": our own, and as a notary those of others.

use std::sync::Arc;

use homing_federation::server_keys::KeyDocument;
use ruma::{
    OwnedServerName, ServerName,
    api::federation::discovery::{
        ServerSigningKeys, get_remote_server_keys::v2 as get_remote_server_keys,
        get_remote_server_keys_batch::v2 as get_remote_server_keys_batch,
        get_server_keys::v2 as get_server_keys,
    },
    serde::Raw,
};
use serde_json::value::RawValue;

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    server_keys,
};

/// How many servers' keys one request may ask for.
const MAX_SERVERS: usize = 100;

pub(super) fn routes() -> Routes {
    Routes::new()
        .add(get_server_keys)
        .add(get_remote_server_keys)
        .add(get_remote_server_keys_batch)
}

/// `GET /_matrix/key/v2/server` ("Publishing Keys").
async fn get_server_keys(
    app: Arc<App>,
    _: Call<get_server_keys::Request>,
) -> Result<get_server_keys::Response> {
    Ok(get_server_keys::Response::new(own(&app)?))
}

/// `GET /_matrix/key/v2/query/{serverName}` ("Querying Keys Through Another Server").
async fn get_remote_server_keys(
    app: Arc<App>,
    call: Call<get_remote_server_keys::Request>,
) -> Result<get_remote_server_keys::Response> {
    let until = i64::from(call.body.minimum_valid_until_ts.get());
    let found = query(&app, vec![(call.body.server_name, until)]).await?;
    Ok(get_remote_server_keys::Response::new(found))
}

/// `POST /_matrix/key/v2/query` ("Querying Keys Through Another Server"): whichever keys of a server are asked for, it
/// is all of them that are answered.
async fn get_remote_server_keys_batch(
    app: Arc<App>,
    call: Call<get_remote_server_keys_batch::Request>,
) -> Result<get_remote_server_keys_batch::Response> {
    if call.body.server_keys.len() > MAX_SERVERS {
        return Err(Error::invalid_param(format!(
            "keys of at most {MAX_SERVERS} servers may be asked for at once"
        )));
    }
    let now = app.clock.now();
    let wanted = call.body.server_keys.into_iter().map(|(server, keys)| {
        let times = keys.values().filter_map(|it| it.minimum_valid_until_ts);
        let until = times.map(|time| i64::from(time.get())).max();
        (server, until.unwrap_or(now))
    });
    let found = query(&app, wanted.collect()).await?;
    Ok(get_remote_server_keys_batch::Response::new(found))
}

async fn query(
    app: &Arc<App>,
    mut wanted: Vec<(OwnedServerName, i64)>,
) -> Result<Vec<Raw<ServerSigningKeys>>> {
    let before = wanted.len();
    wanted.retain(|(server, _)| server != app.name());
    let mut answer = Vec::new();
    if wanted.len() < before {
        answer.push(own(app)?);
    }
    for stored in server_keys::documents(app, &wanted).await? {
        let server = <&ServerName>::try_from(stored.server.as_str()).map_err(Error::internal)?;
        let document = KeyDocument::parse(stored.json.as_bytes(), server)?;
        answer.push(raw(document.countersigned(app.name(), &app.signing_key)?)?);
    }
    Ok(answer)
}

fn own(app: &App) -> Result<Raw<ServerSigningKeys>> {
    raw(app.own_keys.document(app.name(), app.clock.now())?)
}

fn raw(json: String) -> Result<Raw<ServerSigningKeys>> {
    let json = RawValue::from_string(json).map_err(Error::internal)?;
    Ok(Raw::from_json(json))
}
