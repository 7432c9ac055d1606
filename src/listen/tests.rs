use std::{fs, net::Ipv4Addr, path::Path, time::Instant};

use axum::{Extension, body::Body, extract::State, routing::get};
use futures_util::stream;
use reqwest::{Certificate, Client, Version};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Notify, oneshot},
    task::JoinHandle,
};

use super::*;

/// A server on a port of its own.
struct Server {
    bound: Arc<Bound>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

async fn start(settings: Listener, router: Router) -> Server {
    let settings = Listener {
        bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        ..settings
    };
    let bound = bind(&[settings]).await.unwrap().remove(0);
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(serve(vec![Arc::clone(&bound)], router, shutdown.clone()));
    Server {
        bound,
        shutdown,
        task,
    }
}

impl Server {
    fn url(&self, path: &str) -> String {
        self.bound.url() + path
    }

    /// Stops the server, and says how long that took.
    async fn stop(self) -> Duration {
        let asked = Instant::now();
        self.shutdown.cancel();
        self.task.await.unwrap();
        asked.elapsed()
    }
}

/// Answers `GET /` with the client's address.
fn who() -> Router {
    Router::new().route(
        "/",
        get(|Extension(client): Extension<ClientAddress>| async move { client.0.to_string() }),
    )
}

/// Answers `GET /wait` when it is let go, and tells when it has begun.
fn wait(go: Arc<Notify>) -> (Router, Arc<Notify>) {
    let begun = Arc::new(Notify::new());
    let state = (Arc::clone(&begun), go);
    let handler = |State((begun, go)): State<(Arc<Notify>, Arc<Notify>)>| async move {
        begun.notify_one();
        go.notified().await;
        "done"
    };
    let router = Router::new().route("/wait", get(handler)).with_state(state);
    (router, begun)
}

/// Writes a new certificate for `localhost` and its key, and returns a client
/// that trusts nothing else.
fn certify(folder: &Path) -> (Listener, Client) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    fs::write(&cert, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let trusted = Certificate::from_pem(made.cert.pem().as_bytes()).unwrap();
    let client = Client::builder().add_root_certificate(trusted);
    let listener = Listener {
        tls: true,
        cert: Some(cert),
        key: Some(key),
        ..Listener::default()
    };
    (listener, client.build().unwrap())
}

#[tokio::test]
async fn client_address_is_the_peer_unless_a_proxy_says_more() {
    for (x_forwarded, expected) in [(false, "127.0.0.1"), (true, "192.0.2.7")] {
        let settings = Listener {
            x_forwarded,
            ..Listener::default()
        };
        let server = start(settings, who()).await;
        let request = Client::new().get(server.url("/"));
        let request = request.header("X-Forwarded-For", "203.0.113.1, 192.0.2.7");
        let body = request.send().await.unwrap().text().await.unwrap();
        assert_eq!(body, expected);
        server.stop().await;
    }
}

#[tokio::test]
async fn tls_speaks_both_versions_of_http() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, _) = certify(folder.path());
    let server = start(settings, who()).await;
    let url = format!("https://localhost:{}/", server.bound.address().port());
    let pem = fs::read(folder.path().join("cert.pem")).unwrap();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let client = Client::builder().add_root_certificate(Certificate::from_pem(&pem).unwrap());
        let client = if version == Version::HTTP_11 {
            client.http1_only()
        } else {
            client
        };
        let response = client.build().unwrap().get(&url).send().await.unwrap();
        assert_eq!(response.version(), version);
        assert_eq!(response.text().await.unwrap(), "127.0.0.1");
    }

    let plain = url.replace("https:", "http:");
    assert!(Client::new().get(plain).send().await.is_err());
    server.stop().await;
}

#[tokio::test]
async fn certificate_can_be_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, _) = certify(folder.path());
    let server = start(settings, who()).await;
    let url = format!("https://localhost:{}/", server.bound.address().port());

    let (_, client) = certify(folder.path());
    assert!(client.get(&url).send().await.is_err(), "not read yet");
    server.bound.reload().unwrap();
    client.get(&url).send().await.unwrap();

    fs::write(folder.path().join("cert.pem"), "nonsense").unwrap();
    assert!(server.bound.reload().is_err());
    client.get(&url).send().await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn unusable_listeners_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, _) = certify(folder.path());
    let missing = Listener {
        key: Some(folder.path().join("missing.pem")),
        ..settings.clone()
    };
    let error = check(&[missing]).unwrap_err().to_string();
    assert!(error.contains("missing.pem"), "{error}");

    certify(folder.path());
    let other = tempfile::tempdir().unwrap();
    let (other, _) = certify(other.path());
    let mixed = Listener {
        key: other.key,
        ..settings
    };
    let error = check(&[mixed]).unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:8008"), "{error}");

    let taken = start(Listener::default(), who()).await;
    let settings = Listener {
        bind: taken.bound.address(),
        ..Listener::default()
    };
    let error = bind(&[settings]).await.unwrap_err().to_string();
    assert!(
        error.contains(&taken.bound.address().to_string()),
        "{error}"
    );
}

#[tokio::test]
async fn running_request_is_answered_after_shutdown() {
    let go = Arc::new(Notify::new());
    let (router, begun) = wait(Arc::clone(&go));
    let server = start(Listener::default(), router).await;
    let address = server.bound.address();
    let request = tokio::spawn(Client::new().get(server.url("/wait")).send());
    begun.notified().await;

    // A connection without a request does not keep the server.
    let mut idle = TcpStream::connect(address).await.unwrap();
    let (stopped, has_stopped) = oneshot::channel();
    tokio::spawn(async move {
        let _ = stopped.send(server.stop().await);
    });
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    go.notify_one();
    let response = request.await.unwrap().unwrap();
    assert_eq!(response.text().await.unwrap(), "done");
    assert!(has_stopped.await.unwrap() < Duration::from_secs(5));
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn long_poll_that_hears_of_the_shutdown_is_answered() {
    let shutdown = CancellationToken::new();
    let begun = Arc::new(Notify::new());
    let state = (shutdown.clone(), Arc::clone(&begun));
    let handler = |State((shutdown, begun)): State<(CancellationToken, Arc<Notify>)>| async move {
        begun.notify_one();
        shutdown.cancelled().await;
        "nothing new"
    };
    let router = Router::new().route("/sync", get(handler)).with_state(state);
    let listener = Listener {
        bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        ..Listener::default()
    };
    let bound = bind(&[listener]).await.unwrap();
    let url = bound[0].url() + "/sync";
    let server = tokio::spawn(serve(bound, router, shutdown.clone()));
    let request = tokio::spawn(Client::new().get(url).send());
    begun.notified().await;
    shutdown.cancel();
    let response = request.await.unwrap().unwrap();
    assert_eq!(response.text().await.unwrap(), "nothing new");
    server.await.unwrap();
}

#[tokio::test]
async fn request_that_never_ends_is_cut_off() {
    let (router, begun) = wait(Arc::new(Notify::new()));
    let server = start(Listener::default(), router).await;
    let request = tokio::spawn(Client::new().get(server.url("/wait")).send());
    begun.notified().await;
    // From here on only timers are left to wait for, and those pass at once.
    tokio::time::pause();
    server.stop().await;
    assert!(request.await.unwrap().is_err());
}

#[tokio::test]
async fn silent_and_slow_clients_are_dropped() {
    for sent in [
        &b""[..],
        b"P",
        b"GET / HTTP/1.1\r\nHost:",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let server = start(Listener::default(), who()).await;
        let mut slow = TcpStream::connect(server.bound.address()).await.unwrap();
        slow.write_all(sent).await.unwrap();
        tokio::time::pause();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_mins(2), slow.read_to_end(&mut answer));
        assert!(ended.await.is_ok(), "{sent:?} was not dropped");
        tokio::time::resume();
        server.stop().await;
    }
}

#[tokio::test]
async fn who_does_not_read_the_answer_is_dropped() {
    // It ends when nobody waits for the rest of the answer any more.
    struct Large(Arc<Notify>);
    impl Drop for Large {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let dropped = Arc::new(Notify::new());
    let handler = |State(dropped): State<Arc<Notify>>| async move {
        let large = Large(dropped);
        Body::from_stream(stream::repeat_with(move || {
            let _ = &large;
            Ok::<_, io::Error>(vec![b'x'; 64 * 1024])
        }))
    };
    let router = Router::new()
        .route("/large", get(handler))
        .with_state(Arc::clone(&dropped));
    let server = start(Listener::default(), router).await;
    let mut deaf = TcpStream::connect(server.bound.address()).await.unwrap();
    let request = b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n";
    deaf.write_all(request).await.unwrap();
    deaf.read_exact(&mut [0; 1000]).await.unwrap();
    tokio::time::pause();
    let ended = tokio::time::timeout(Duration::from_mins(2), dropped.notified());
    assert!(ended.await.is_ok(), "the answer still waits");
    tokio::time::resume();
    server.stop().await;
}

#[tokio::test]
async fn connections_are_limited() {
    let settings = Listener {
        max_connections: 1,
        ..Listener::default()
    };
    let go = Arc::new(Notify::new());
    let (router, begun) = wait(Arc::clone(&go));
    let server = start(settings, router).await;
    let url = server.url("/wait");
    let first = tokio::spawn(Client::new().get(&url).send());
    begun.notified().await;
    let second = tokio::spawn(Client::new().get(&url).send());
    let early = tokio::time::timeout(Duration::from_millis(200), begun.notified());
    assert!(early.await.is_err(), "the second had to wait");

    go.notify_one();
    drop(first.await.unwrap().unwrap().text().await.unwrap());
    begun.notified().await;
    go.notify_one();
    second.await.unwrap().unwrap();
}
