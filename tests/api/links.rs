//! Servers with links between them that can be cut: a proxy stands before each, as it does at many homeservers.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    http::{
        StatusCode,
        header::{AUTHORIZATION, TRANSFER_ENCODING},
    },
    response::{IntoResponse as _, Response},
};
use homing::listen;
use ruma::{OwnedServerName, api::federation::authentication::XMatrix};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{server::TestServer, tls};

/// Which server is not heard by which other one.
#[derive(Clone, Default)]
pub struct Links(Arc<Mutex<HashSet<(OwnedServerName, OwnedServerName)>>>);

impl Links {
    /// Cuts or mends the link between two servers, both ways.
    pub fn set(&self, one: &TestServer, two: &TestServer, is_cut: bool) {
        let mut cut = self.0.lock().unwrap();
        for (from, to) in [(one, two), (two, one)] {
            let link = (from.name().to_owned(), to.name().to_owned());
            if is_cut {
                cut.insert(link);
            } else {
                cut.remove(&link);
            }
        }
    }

    /// Mends all links.
    pub fn mend(&self) {
        self.0.lock().unwrap().clear();
    }

    fn is_cut(&self, from: OwnedServerName, to: OwnedServerName) -> bool {
        self.0.lock().unwrap().contains(&(from, to))
    }
}

/// A server behind a proxy that looks at the links.
pub struct LinkedServer {
    pub server: TestServer,
    shutdown: CancellationToken,
    _folder: TempDir,
}

impl LinkedServer {
    pub async fn start(links: &Links) -> Self {
        let server = TestServer::federated_with(|config| {
            config.listeners.pop();
        })
        .await;
        let folder = TempDir::new().unwrap();
        let port = server.name().port().unwrap();
        let bound = listen::bind(&[tls::listener(folder.path(), port)]).await;
        let proxy = Proxy {
            links: links.clone(),
            name: server.name().to_owned(),
            to: format!("http://{}", server.address),
            http: reqwest::Client::new(),
        };
        let proxy = Arc::new(proxy);
        let router = Router::new().fallback(move |request| {
            let proxy = Arc::clone(&proxy);
            async move { proxy.pass(request).await }
        });
        let shutdown = CancellationToken::new();
        tokio::spawn(listen::serve(bound.unwrap(), router, shutdown.clone()));
        Self {
            server,
            shutdown,
            _folder: folder,
        }
    }
}

impl Drop for LinkedServer {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

struct Proxy {
    links: Links,
    name: OwnedServerName,
    to: String,
    http: reqwest::Client,
}

impl Proxy {
    /// Passes a request on, unless the link to the server that signed it is cut.
    async fn pass(&self, request: Request) -> Response {
        let authorization = request.headers().get(AUTHORIZATION);
        let signed = authorization.and_then(|value| XMatrix::try_from(value).ok());
        if signed.is_some_and(|signed| self.links.is_cut(signed.origin, self.name.clone())) {
            return StatusCode::BAD_GATEWAY.into_response();
        }
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, 100 << 20).await.unwrap();
        let answer = self
            .http
            .request(parts.method, format!("{}{}", self.to, parts.uri))
            .headers(parts.headers)
            .body(body)
            .send()
            .await;
        let Ok(answer) = answer else {
            return StatusCode::BAD_GATEWAY.into_response();
        };
        let mut response = Response::new(Body::empty());
        *response.status_mut() = answer.status();
        *response.headers_mut() = answer.headers().clone();
        response.headers_mut().remove(TRANSFER_ENCODING);
        *response.body_mut() = Body::from(answer.bytes().await.unwrap_or_default());
        response
    }
}
