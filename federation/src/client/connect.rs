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

use http::{Uri, uri::Scheme};
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

/// Whether a connection may be without encryption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plain {
    /// None may.
    Never,
    /// Those to `http` addresses are.
    ForHttp,
}

/// Connects to `https://host[:port]`, to `matrix://host` by service records and, where that is wanted, to
/// `http://host[:port]`.
#[derive(Clone)]
pub(super) struct Connector(Arc<Shared>);

struct Shared {
    policy: AddressPolicy,
    names: Names,
    services: Services,
    tls: TlsConnector,
    plain: Plain,
}

impl Connector {
    pub(super) fn new(
        policy: AddressPolicy,
        names: Names,
        tls: Arc<ClientConfig>,
        plain: Plain,
    ) -> Self {
        Self(Arc::new(Shared {
            plain,
            policy,
            names,
            services: Services::default(),
            tls: TlsConnector::from(tls),
        }))
    }
}

impl Shared {
    async fn connect(&self, uri: &Uri) -> Result<Stream, Error> {
        let host = uri.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|_| Error::Unreachable(format!("{bare} is no name of a server")))?;
        let is_plain = self.plain == Plain::ForHttp && uri.scheme() == Some(&Scheme::HTTP);
        // Whatever else the scheme is, nothing goes out that is not encrypted.
        let places = if uri.scheme_str() == Some(SERVICE_SCHEME) {
            self.service(host).await
        } else {
            let usual = if is_plain { 80 } else { 443 };
            vec![(host.to_owned(), uri.port_u16().unwrap_or(usual))]
        };
        let name = (!is_plain).then_some(name);
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
                    Ok(stream) => return Ok(stream),
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

    /// Connects to an address; with encryption if there is a name to be proved.
    async fn attempt(
        &self,
        address: SocketAddr,
        name: Option<ServerName<'static>>,
    ) -> Result<Stream, Error> {
        let failed =
            |error: io::Error| Error::Unreachable(format!("cannot connect to {address}: {error}"));
        let stream = tokio::time::timeout(ATTEMPT_TIME, TcpStream::connect(address))
            .await
            .map_err(|_| Error::TimedOut)?
            .map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let Some(name) = name else {
            return Ok(Stream::Plain(TokioIo::new(stream)));
        };
        let stream = tokio::time::timeout(ATTEMPT_TIME, self.tls.connect(name, stream))
            .await
            .map_err(|_| Error::TimedOut)?
            .map_err(failed)?;
        Ok(Stream::Encrypted(Box::new(TokioIo::new(stream))))
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move { shared.connect(&uri).await })
    }
}

/// A connection as hyper wants it.
pub(super) enum Stream {
    Plain(TokioIo<TcpStream>),
    Encrypted(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Encrypted(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl Write for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, buffer),
            Self::Encrypted(stream) => Pin::new(stream).poll_write(context, buffer),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Encrypted(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Encrypted(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
