//! The one way out: every connection that this server opens because somebody else has named its target.
//!
//! A name is resolved, what it resolves to is held against the [`AddressPolicy`], and the connection goes to that very
//! address: no second look-up could answer something else.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower_service::Service;

use super::{
    Error,
    lookup::{Names, Services, addresses},
};
use crate::{
    address_policy::AddressPolicy,
    name::{DEFAULT_PORT, in_order},
};

/// How long one address may take to answer, and then to agree on encryption.
const ATTEMPT_TIME: Duration = Duration::from_secs(8);
/// How many addresses are tried for one connection.
const MAX_ATTEMPTS: usize = 8;
/// The scheme of addresses that stand for "whatever the service records of this host say".
pub(super) const SERVICE_SCHEME: &str = "matrix";

/// Connects to `https://host[:port]`, and to `matrix://host` by service records.
#[derive(Clone)]
pub(super) struct Connector(Arc<Shared>);

struct Shared {
    policy: AddressPolicy,
    names: Names,
    services: Services,
    tls: TlsConnector,
}

impl Connector {
    pub(super) fn new(policy: AddressPolicy, names: Names, tls: Arc<ClientConfig>) -> Self {
        Self(Arc::new(Shared {
            policy,
            names,
            services: Services::default(),
            tls: TlsConnector::from(tls),
        }))
    }
}

impl Shared {
    async fn connect(&self, uri: &Uri) -> Result<Encrypted, Error> {
        let host = uri.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|_| Error::Unreachable(format!("{bare} is no name of a server")))?;
        // Whatever else the scheme is, nothing goes out that is not encrypted.
        let places = if uri.scheme_str() == Some(SERVICE_SCHEME) {
            self.service(host).await
        } else {
            vec![(host.to_owned(), uri.port_u16().unwrap_or(443))]
        };
        let mut attempts = 0;
        let mut failure = Error::Unreachable(format!("{bare} has no address"));
        for (host, port) in places {
            let found = match addresses(&self.names, &host, port).await {
                Ok(found) => found,
                Err(error) => {
                    failure = error;
                    continue;
                }
            };
            for address in found {
                if !self.policy.allows(address.ip()) {
                    tracing::debug!(host, %address, "does not connect to this address");
                    if attempts == 0 {
                        failure = Error::Blocked(address.ip());
                    }
                    continue;
                }
                attempts += 1;
                match self.attempt(address, name.clone()).await {
                    Ok(stream) => return Ok(Encrypted(TokioIo::new(stream))),
                    Err(error) => failure = error,
                }
                if attempts == MAX_ATTEMPTS {
                    return Err(failure);
                }
            }
        }
        Err(failure)
    }

    /// What the service records of a host name, else the host itself at the usual port.
    async fn service(&self, host: &str) -> Vec<(String, u16)> {
        let records = self.services.of(&self.names, host).await;
        if records.is_empty() {
            return vec![(host.to_owned(), DEFAULT_PORT)];
        }
        in_order(records, |most| rand::random_range(0..=most))
    }

    async fn attempt(
        &self,
        address: SocketAddr,
        name: ServerName<'static>,
    ) -> Result<TlsStream<TcpStream>, Error> {
        let failed =
            |error: io::Error| Error::Unreachable(format!("cannot connect to {address}: {error}"));
        let stream = tokio::time::timeout(ATTEMPT_TIME, TcpStream::connect(address))
            .await
            .map_err(|_| Error::TimedOut)?
            .map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        tokio::time::timeout(ATTEMPT_TIME, self.tls.connect(name, stream))
            .await
            .map_err(|_| Error::TimedOut)?
            .map_err(failed)
    }
}

impl Service<Uri> for Connector {
    type Response = Encrypted;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Encrypted, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move { shared.connect(&uri).await })
    }
}

/// A connection as hyper wants it.
pub(super) struct Encrypted(TokioIo<TlsStream<TcpStream>>);

impl Connection for Encrypted {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Encrypted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Encrypted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
