//! Other servers: the signatures of their requests.
//!
//! Specification: <https://spec.matrix.org/v1.19/server-server-api/#request-authentication>.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use homing_federation::{
    VerifyKey,
    request::{Authorization, Target, Unreadable},
};
use http::{StatusCode, header, request::Parts};
use ruma::{
    OwnedServerName, ServerName,
    api::{error::ErrorKind, federation::authentication::ServerSignatures},
};

use super::Authenticate;
use crate::{
    app::App,
    error::{Error, Result},
    http::Bodies,
    server_keys::{self, Wanted},
};

/// How many signatures of one request are looked at.
const MAX_SIGNATURES: usize = 4;
/// How many requests of one server are answered at one time.
const MAX_REQUESTS: usize = 64;
/// What a server with too many is told to wait.
const WAIT: Duration = Duration::from_secs(1);

/// The server that a request comes from.
#[derive(Debug)]
pub struct Origin {
    /// Its name.
    pub server: OwnedServerName,
    /// The signatures that it has made, with their keys.
    signatures: Vec<(VerifyKey, Vec<u8>)>,
}

/// How many requests of each server are being answered.
#[derive(Clone, Debug, Default)]
pub struct Origins(Arc<Mutex<HashMap<OwnedServerName, usize>>>);

/// The place of a request among those that are being answered.
#[derive(Debug)]
pub struct Place {
    origins: Origins,
    server: OwnedServerName,
}

impl Origins {
    fn enter(&self, server: &ServerName) -> Result<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(server.to_owned()).or_default();
        if *count >= MAX_REQUESTS {
            return Err(Error::limit_exceeded(WAIT));
        }
        *count += 1;
        Ok(Place {
            origins: self.clone(),
            server: server.to_owned(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let counts = self.origins.0.lock();
        let mut counts = counts.unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.server) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.server);
            }
        }
    }
}

fn unauthorized(message: impl Into<String>) -> Error {
    Error::new(StatusCode::UNAUTHORIZED, ErrorKind::Unauthorized, message)
}

impl Authenticate for ServerSignatures {
    type Who = Origin;

    const WHOLE: bool = false;

    fn is_known(_: &Origin) -> bool {
        true
    }

    /// Anybody can claim to be a server before the body is there, so these bodies have memory of their own.
    fn bodies(app: &App) -> &Bodies {
        &app.server_bodies
    }

    /// Reads the header and gets the keys. The signature itself can be checked only when the body is there.
    async fn authenticate(app: &App, parts: &Parts) -> Result<Origin> {
        let said = authorizations(parts)?;
        let Some(first) = said.first() else {
            return Err(unauthorized("the request is not signed by a server"));
        };
        let server = first.origin.clone();
        if said.iter().any(|it| it.origin != server) {
            return Err(unauthorized("the request is signed by several servers"));
        }
        let others =
            |it: &Authorization| it.destination.as_ref().is_some_and(|to| to != app.name());
        if said.iter().any(others) {
            return Err(unauthorized("the request is for another server"));
        }
        if server == app.name() {
            return Err(unauthorized("the request claims to come from this server"));
        }
        let now = app.clock.now();
        let ids = said.iter().map(|it| it.key.to_string()).collect();
        let wanted = Wanted::from([(server.clone(), ids)]);
        let keys = server_keys::find_for_request(app, wanted, now).await?;
        let signatures: Vec<_> = said
            .into_iter()
            .filter_map(|it| {
                let key = keys.get(&server, it.key.as_str(), Some(now))?.clone();
                Some((key, it.signature))
            })
            .collect();
        if signatures.is_empty() {
            return Err(unauthorized(format!("cannot find that key of {server}")));
        }
        Ok(Origin { server, signatures })
    }

    fn confirm(app: &App, origin: &Origin, parts: &Parts, body: &[u8]) -> Result<Option<Place>> {
        let uri = parts.uri.path_and_query();
        let target = Target {
            method: &parts.method,
            uri: uri.map_or("/", |uri| uri.as_str()),
            origin: &origin.server,
            destination: app.name(),
        };
        let mut signatures = origin.signatures.iter();
        if !signatures.all(|(key, signature)| target.is_signed_by(body, key, signature)) {
            return Err(unauthorized(format!(
                "the signature of {} is wrong",
                origin.server
            )));
        }
        let place = app.origins.enter(&origin.server)?;
        app.bus.outgoing.heard_from(&origin.server);
        app.remote.heard_from(&origin.server);
        Ok(Some(place))
    }
}

/// The server that a request with this body comes from, for handlers that read requests themselves. The place is to be
/// kept until the request is answered.
///
/// # Errors
/// 401 `M_UNAUTHORIZED` if no server has signed it, and 429 if that server has too many requests under way.
pub async fn server(app: &App, parts: &Parts, body: &[u8]) -> Result<(Origin, Option<Place>)> {
    let origin = ServerSignatures::authenticate(app, parts).await?;
    let place = ServerSignatures::confirm(app, &origin, parts, body)?;
    Ok((origin, place))
}

/// What the `Authorization` headers of the scheme say.
fn authorizations(parts: &Parts) -> Result<Vec<Authorization>> {
    let mut said = Vec::new();
    for header in parts.headers.get_all(header::AUTHORIZATION) {
        let read = match header.to_str() {
            Ok(text) => Authorization::parse(text),
            Err(_) => Err(Unreadable::Malformed("it is not ASCII")),
        };
        match read {
            Ok(authorization) => said.push(authorization),
            Err(Unreadable::OtherScheme) => {}
            Err(error) => {
                return Err(Error::new(
                    StatusCode::BAD_REQUEST,
                    ErrorKind::Unauthorized,
                    error.to_string(),
                ));
            }
        }
        if said.len() > MAX_SIGNATURES {
            return Err(unauthorized("the request has too many signatures"));
        }
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;

    #[test]
    fn only_so_many_requests_of_one_server_at_a_time() {
        let origins = Origins::default();
        let (a, b) = (server_name!("a.example"), server_name!("b.example"));
        let mut places: Vec<_> = (0..MAX_REQUESTS)
            .map(|_| origins.enter(a).unwrap())
            .collect();
        assert!(
            origins
                .enter(a)
                .is_err_and(|error| error.has_status(StatusCode::TOO_MANY_REQUESTS))
        );
        drop(origins.enter(b).unwrap());
        places.pop();
        places.push(origins.enter(a).unwrap());
        drop(places);
        assert!(origins.0.lock().unwrap().is_empty());
    }
}
