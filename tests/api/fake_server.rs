//! A server that is none: it has a name, a key and a certificate, and says whatever a test wants.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::Request,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use homing::{config::Listener, listen};
use homing_federation::{SigningKey, request::Target};
use reqwest::{Method, StatusCode};
use ruma::{CanonicalJsonObject, OwnedServerName, ServerName};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    server::{Answer, TestServer},
    tls,
};

/// A request that reached the fake server.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub method: Method,
    /// Path and query.
    pub path: String,
    pub headers: reqwest::header::HeaderMap,
    pub raw: Bytes,
    /// The body as JSON, `Null` if it is none.
    pub body: Value,
}

/// Marks an answer that is not given.
#[derive(Clone)]
struct Never;

type Handler = Arc<dyn Fn(&Recorded) -> Response + Send + Sync>;

struct Shared {
    recorded: Mutex<Vec<Recorded>>,
    handlers: Mutex<Vec<(Method, String, Handler)>>,
    arrived: Notify,
}

/// A fake server. It publishes its key; all else is 404 `M_UNRECOGNIZED` until the test says otherwise.
pub struct FakeServer {
    pub name: OwnedServerName,
    pub key: Arc<SigningKey>,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
    _folder: TempDir,
}

impl FakeServer {
    pub async fn start() -> Self {
        let folder = TempDir::new().expect("a temporary directory can be made");
        let listener = tls::listener(folder.path(), 0);
        Self::start_at(listener, folder).await
    }

    /// The same without encryption.
    pub async fn start_plain() -> Self {
        let folder = TempDir::new().expect("a temporary directory can be made");
        let listener = Listener {
            bind: ([127, 0, 0, 1], 0).into(),
            ..Listener::default()
        };
        Self::start_at(listener, folder).await
    }

    async fn start_at(listener: Listener, folder: TempDir) -> Self {
        let bound = listen::bind(&[listener]).await.expect("a port is free");
        let name = format!("localhost:{}", bound[0].address().port());
        let shared = Arc::new(Shared {
            recorded: Mutex::default(),
            handlers: Mutex::default(),
            arrived: Notify::new(),
        });
        let answering = Arc::clone(&shared);
        let router = Router::new().fallback(move |request| {
            let shared = Arc::clone(&answering);
            async move { shared.answer(request).await }
        });
        let shutdown = CancellationToken::new();
        tokio::spawn(listen::serve(bound, router, shutdown.clone()));
        let fake = Self {
            name: name.try_into().expect("a server name"),
            key: Arc::new(SigningKey::generate(&mut rand::rng())),
            shared,
            shutdown,
            _folder: folder,
        };
        let document = fake.key_document(&fake.key, in_a_day());
        fake.answers(Method::GET, "/_matrix/key/v2/server", document);
        fake
    }

    /// Answers requests whose path starts with `path` by calling `handler`. The latest that fits is called.
    pub fn on(
        &self,
        method: Method,
        path: &str,
        handler: impl Fn(&Recorded) -> Response + Send + Sync + 'static,
    ) {
        let mut handlers = lock(&self.shared.handlers);
        handlers.push((method, path.to_owned(), Arc::new(handler)));
    }

    /// Answers requests whose path starts with `path` with this JSON.
    pub fn answers(&self, method: Method, path: &str, json: Value) {
        self.on(method, path, move |_| Json(json.clone()).into_response());
    }

    /// Answers requests whose path starts with `path` with a Matrix error.
    pub fn refuses(&self, method: Method, path: &str, status: u16, errcode: &'static str) {
        self.on(method, path, move |_| error(status, errcode));
    }

    /// Never answers requests whose path starts with `path`: not even the head of an answer comes.
    pub fn never_answers(&self, method: Method, path: &str) {
        self.on(method, path, |_| {
            let mut response = Response::new(Body::empty());
            response.extensions_mut().insert(Never);
            response
        });
    }

    /// All requests until now.
    pub fn recorded(&self) -> Vec<Recorded> {
        lock(&self.shared.recorded).clone()
    }

    /// How many requests there were with this method and a path that starts so.
    pub fn count(&self, method: &Method, path: &str) -> usize {
        let fits = |it: &&Recorded| it.method == method && it.path.starts_with(path);
        lock(&self.shared.recorded).iter().filter(fits).count()
    }

    /// Waits for a request that `wanted` likes, or finds the first that has come already.
    pub async fn wait_for(&self, wanted: impl Fn(&Recorded) -> bool) -> Recorded {
        let wait = async {
            loop {
                let arrived = self.shared.arrived.notified();
                tokio::pin!(arrived);
                arrived.as_mut().enable();
                let found = self.recorded().into_iter().find(|it| wanted(it));
                if let Some(found) = found {
                    return found;
                }
                arrived.await;
            }
        };
        let wait = tokio::time::timeout(Duration::from_secs(30), wait).await;
        wait.unwrap_or_else(|_| panic!("no such request came, only {:?}", self.recorded()))
    }

    /// The `Authorization` of a request that this server sends, signed with its key.
    pub fn authorization(
        &self,
        to: &ServerName,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> String {
        let target = Target {
            method,
            uri: path,
            origin: &self.name,
            destination: to,
        };
        let body = body.map(Value::to_string).unwrap_or_default();
        let signed = target.sign(body.as_bytes(), &self.key);
        signed.expect("the body has a canonical form")
    }

    /// Sends a signed request to a server.
    pub async fn send(
        &self,
        to: &TestServer,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Answer {
        let authorization = self.authorization(to.app.name(), &method, path, body.as_ref());
        let headers = [("authorization", authorization)];
        to.request_with(method, path, &headers, body).await
    }

    pub async fn get(&self, to: &TestServer, path: &str) -> Answer {
        self.send(to, Method::GET, path, None).await
    }

    pub async fn put(&self, to: &TestServer, path: &str, body: Value) -> Answer {
        self.send(to, Method::PUT, path, Some(body)).await
    }

    pub async fn post(&self, to: &TestServer, path: &str, body: Value) -> Answer {
        self.send(to, Method::POST, path, Some(body)).await
    }

    /// Sends a signed request whose body is this text, which need not be canonical JSON.
    pub async fn put_text(&self, to: &TestServer, path: &str, body: String) -> Answer {
        let target = Target {
            method: &Method::PUT,
            uri: path,
            origin: &self.name,
            destination: to.app.name(),
        };
        let authorization = target.sign_canonical(body.as_bytes(), &self.key);
        let request = to.http.put(format!("http://{}{path}", to.address));
        let request = request.header("authorization", authorization).body(body);
        let response = request.send().await.expect("the server answers");
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await.expect("the answer is whole");
        Answer {
            status,
            headers,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        }
    }

    /// The document that publishes a key of this server until a time (milliseconds since 1970), signed with it.
    pub fn key_document(&self, key: &SigningKey, valid_until: i64) -> Value {
        self.sign(
            key,
            json!({
                "server_name": self.name,
                "verify_keys": { key.id(): { "key": key.public_key() } },
                "old_verify_keys": {},
                "valid_until_ts": valid_until,
            }),
        )
    }

    /// Signs a JSON object in the name of this server.
    pub fn sign(&self, key: &SigningKey, json: Value) -> Value {
        let mut object: CanonicalJsonObject = serde_json::from_value(json).expect("an object");
        let signed = key.sign_json(&self.name, &mut object);
        signed.expect("signatures is an object");
        serde_json::to_value(object).expect("JSON")
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Shared {
    async fn answer(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let raw = to_bytes(body, 100 << 20).await.expect("a body");
        let path = parts.uri.path_and_query();
        let recorded = Recorded {
            method: parts.method,
            path: path.map_or_else(String::new, ToString::to_string),
            headers: parts.headers,
            body: serde_json::from_slice(&raw).unwrap_or(Value::Null),
            raw,
        };
        let handler = lock(&self.handlers)
            .iter()
            .rev()
            .find(|(method, path, _)| *method == recorded.method && recorded.path.starts_with(path))
            .map(|(_, _, handler)| Arc::clone(handler));
        lock(&self.recorded).push(recorded.clone());
        self.arrived.notify_waiters();
        let answer = match handler {
            Some(handler) => handler(&recorded),
            None => error(404, "M_UNRECOGNIZED"),
        };
        if answer.extensions().get::<Never>().is_some() {
            std::future::pending::<()>().await;
        }
        answer
    }
}

/// A Matrix error as an answer.
pub fn error(status: u16, errcode: &str) -> Response {
    let status = StatusCode::from_u16(status).expect("a status");
    let json = json!({ "errcode": errcode, "error": "said by the fake server" });
    (status, Json(json)).into_response()
}

/// An answer that comes in pieces, with a pause before each, and has no end.
pub fn endless(piece: &'static [u8], pause: Duration) -> Response {
    endless_counted(piece, pause, Arc::default())
}

/// The same, counting the bytes that were taken.
pub fn endless_counted(piece: &'static [u8], pause: Duration, taken: Arc<AtomicUsize>) -> Response {
    let pieces = futures_util::stream::unfold(taken, move |taken| async move {
        tokio::time::sleep(pause).await;
        taken.fetch_add(piece.len(), Ordering::Relaxed);
        let piece = Bytes::from_static(piece);
        Some((Ok::<_, std::convert::Infallible>(piece), taken))
    });
    Response::new(Body::from_stream(pieces))
}

/// The time in a day, in milliseconds since 1970.
pub fn in_a_day() -> i64 {
    chrono::Utc::now().timestamp_millis() + 24 * 60 * 60 * 1000
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
