//! One connection, from its first byte to its last.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, response::Response};
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_io_timeout::TimeoutWriter;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::ClientAddress;

/// How long a client may take for a TLS handshake, for its first request's
/// head, and between the end of a request and the next one's head.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// How long a client may leave the answers that wait for it unread: who never
/// reads a large one would keep its memory for ever.
const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// How often to ask a silent HTTP/2 client whether it is still there, and how
/// long to wait for the answer.
const PING_INTERVAL: Duration = Duration::from_mins(1);
const PING_LIMIT: Duration = Duration::from_secs(20);
/// Requests at one time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// The size of a request's head.
const MAX_HEAD_BYTES: u32 = 64 * 1024;

/// What a connection needs to answer its requests.
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    pub(super) x_forwarded: bool,
    pub(super) router: Router,
    pub(super) shutdown: CancellationToken,
}

impl Connection {
    /// Answers requests until the client closes the connection, neither speaks
    /// nor listens for too long, or the server stops.
    pub(super) async fn run(self, stream: TcpStream, tls: Option<Arc<ServerConfig>>) {
        // A refusal costs latency, nothing else.
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(WRITE_LIMIT));
        let stream = Box::pin(stream);
        let Some(tls) = tls else {
            return self.speak(stream).await;
        };
        let handshake = TlsAcceptor::from(tls).accept(stream);
        tokio::select! {
            result = tokio::time::timeout(HEAD_LIMIT, handshake) => match result {
                Ok(Ok(stream)) => self.speak(stream).await,
                Ok(Err(error)) => tracing::debug!(peer = %self.peer, %error, "no TLS"),
                Err(_) => tracing::debug!(peer = %self.peer, "no TLS handshake in time"),
            },
            () = self.shutdown.cancelled() => {}
        }
    }

    async fn speak(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let spoken_to = AtomicBool::new(false);
        let service = service_fn(|request| {
            spoken_to.store(true, Ordering::Relaxed);
            self.answer(request)
        });
        let http = http();
        let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
        let mut silence = pin!(tokio::time::sleep(HEAD_LIMIT));
        let mut stopping = false;
        let result = loop {
            tokio::select! {
                result = connection.as_mut() => break result,
                () = self.shutdown.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                // While the first bytes leave it open which version of HTTP
                // this is, hyper has no limit of its own.
                () = silence.as_mut(), if !silence.is_elapsed() => {
                    if !spoken_to.load(Ordering::Relaxed) {
                        return;
                    }
                }
            }
        };
        if let Err(error) = result {
            tracing::debug!(peer = %self.peer, %error, "connection ended");
        }
    }

    fn answer(
        &self,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response, Infallible>> + Send + use<> {
        let forwarded = self
            .x_forwarded
            .then(|| ClientAddress::forwarded(request.headers()))
            .flatten();
        let address = forwarded.unwrap_or_else(|| ClientAddress::of(self.peer));
        request.extensions_mut().insert(address);
        self.router.clone().oneshot(request)
    }
}

fn http() -> Builder<TokioExecutor> {
    let mut http = Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(MAX_HEAD_BYTES as usize);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_LIMIT)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES);
    http
}
