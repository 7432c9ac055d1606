//! From sockets to the router: addresses, TLS, HTTP/1.1 and HTTP/2, limits on
//! what a connection may cost, and an orderly end.

mod address;
mod connection;
mod tls;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::Router;
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::address::ClientAddress;
use self::connection::Connection;
use crate::config::Listener;

/// How long running requests may go on after the server was told to stop.
pub const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// How long to wait after a failure to accept a connection, which most often
/// means that the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {0}: {1}")]
    Bind(SocketAddr, #[source] io::Error),
    #[error("cannot use {0}: {1}")]
    Pem(String, #[source] rustls::pki_types::pem::Error),
    #[error("there is no private key in {0}")]
    NoKey(String),
    #[error("cannot use the certificate and key of {0}: {1}")]
    Certificate(SocketAddr, #[source] rustls::Error),
    #[error("the listener {0} has TLS, but no certificate or key")]
    NoCertificate(SocketAddr),
}

/// A listener that is open, but not yet answering: the system already queues
/// connections for it.
#[derive(Debug)]
pub struct Bound {
    socket: TcpListener,
    address: SocketAddr,
    settings: Listener,
    tls: Option<RwLock<Arc<ServerConfig>>>,
}

impl Bound {
    /// The address in use: the configured one, with the port that the system
    /// chose if that was 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address as the beginning of a URL, as in `http://127.0.0.1:8008`.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Reads the certificate and key again, for connections from now on.
    ///
    /// # Errors
    ///
    /// The files cannot be used; the listener goes on with the old ones.
    pub fn reload(&self) -> Result<(), Error> {
        if let Some(tls) = &self.tls {
            let renewed = tls::server_config(&self.settings)?;
            *tls.write().unwrap_or_else(PoisonError::into_inner) = renewed;
        }
        Ok(())
    }

    fn tls(&self) -> Option<Arc<ServerConfig>> {
        let tls = self.tls.as_ref()?;
        Some(Arc::clone(
            &tls.read().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

/// Opens all listeners, or none.
///
/// # Errors
///
/// An address cannot be used, or a certificate or key.
pub async fn bind(listeners: &[Listener]) -> Result<Vec<Arc<Bound>>, Error> {
    let mut bound = Vec::with_capacity(listeners.len());
    for settings in listeners {
        let tls = if settings.tls {
            Some(RwLock::new(tls::server_config(settings)?))
        } else {
            None
        };
        let failed = |error| Error::Bind(settings.bind, error);
        let socket = TcpListener::bind(settings.bind).await.map_err(failed)?;
        bound.push(Arc::new(Bound {
            address: socket.local_addr().map_err(failed)?,
            socket,
            settings: settings.clone(),
            tls,
        }));
    }
    Ok(bound)
}

/// Checks that the certificates and keys of all listeners can be used, without
/// opening anything.
///
/// # Errors
///
/// The first file that cannot be used.
pub fn check(listeners: &[Listener]) -> Result<(), Error> {
    for settings in listeners.iter().filter(|settings| settings.tls) {
        tls::server_config(settings)?;
    }
    Ok(())
}

/// Answers the requests that reach `listeners` with `router`, until `shutdown`
/// is cancelled; then accepts no more, lets the running requests finish, and
/// returns. What still runs after [`SHUTDOWN_LIMIT`] is cut off.
///
/// Each request carries a [`ClientAddress`] as extension.
pub async fn serve(listeners: Vec<Arc<Bound>>, router: Router, shutdown: CancellationToken) {
    let tasks = TaskTracker::new();
    let cut_off = CancellationToken::new();
    for bound in listeners {
        let (router, shutdown, cut_off) = (router.clone(), shutdown.clone(), cut_off.clone());
        tasks.spawn(accept_all(bound, router, tasks.clone(), shutdown, cut_off));
    }
    shutdown.cancelled().await;
    tasks.close();
    if tokio::time::timeout(SHUTDOWN_LIMIT, tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!(connections = tasks.len(), "cut off what did not finish");
        cut_off.cancel();
        tasks.wait().await;
    }
}

/// Accepts connections, each into a task of its own, until `shutdown`.
async fn accept_all(
    bound: Arc<Bound>,
    router: Router,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    cut_off: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(bound.settings.max_connections));
    let mut is_full = false;
    while let Some(Ok((stream, peer, place))) = shutdown
        .run_until_cancelled(accept(&bound.socket, &places, &mut is_full))
        .await
    {
        let connection = Connection {
            peer,
            x_forwarded: bound.settings.x_forwarded,
            router: router.clone(),
            shutdown: shutdown.clone(),
        };
        let (tls, cut_off) = (bound.tls(), cut_off.clone());
        tasks.spawn(async move {
            cut_off
                .run_until_cancelled(connection.run(stream, tls))
                .await;
            drop(place);
        });
    }
}

/// Waits until there is room for a connection, and then for the connection.
/// `is_full` remembers whether there was none, so that this is told once.
///
/// # Errors
///
/// The semaphore is closed, which nobody does.
async fn accept(
    socket: &TcpListener,
    places: &Arc<Semaphore>,
    is_full: &mut bool,
) -> Result<(TcpStream, SocketAddr, OwnedSemaphorePermit), tokio::sync::AcquireError> {
    let was_full = std::mem::replace(is_full, places.available_permits() == 0);
    if *is_full && !was_full {
        tracing::warn!("`max_connections` are open: further clients have to wait");
    }
    let place = Arc::clone(places).acquire_owned().await?;
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => return Ok((stream, peer, place)),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
