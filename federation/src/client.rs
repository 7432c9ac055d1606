//! Requests to other servers: found, signed, sent and answered within limits.
//!
//! | Module      | What it knows                                                                |
//! |-------------|------------------------------------------------------------------------------|
//! | `connect`   | the one way out: addresses are checked after they are resolved               |
//! | `lookup`    | addresses and service records                                                |
//! | `tls`       | whom to believe                                                              |
//! | `guarded`   | HTTP over that, for all addresses that others name; knows nothing of Matrix  |
//! | `body`      | answers that must come to an end                                             |
//! | `discovery` | `/.well-known/matrix/server`                                                 |
//!
//! It is built on hyper with a connector of its own, not on reqwest: the name on the certificate, the `Host` header and
//! the address to connect to are three different things here, and an address has to be checked even if it stands in a
//! URL, which reqwest connects to without asking its resolver. HTTP/1.1 alone is spoken, as all servers do.

mod body;
mod cache;
mod connect;
mod discovery;
mod guarded;
mod lookup;
mod tls;

use std::{fmt, net::IpAddr, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use ruma::{
    OwnedServerName, ServerName,
    api::{
        IncomingResponse, OutgoingBody as _, OutgoingRequest,
        auth_scheme::NoAuthentication,
        error::{ErrorKind, StandardErrorBody},
        federation::authentication::ServerSignatures,
        path_builder::SinglePath,
    },
};
use rustls::pki_types::CertificateDer;

pub use self::{
    body::{Body, Limits},
    guarded::Guarded,
    lookup::Names,
    tls::read_authorities,
};
use self::{connect::SERVICE_SCHEME, discovery::Discovery};
use crate::{
    SigningKey,
    address_policy::AddressPolicy,
    name::{Destination, Place},
    request::Target,
};

/// How much of an answer that is no success is read.
const ERROR_BYTES: u64 = 64 << 10;

/// Why a request to another server has no good answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The server cannot be found, does not accept a connection, or the connection broke off.
    #[error("{0}")]
    Unreachable(String),
    /// The answer has taken too long, or came too slowly.
    #[error("the answer took too long")]
    TimedOut,
    /// The answer has more bytes than this.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(u64),
    /// The only addresses are such as this server does not connect to.
    #[error("{0} is an address that this server does not connect to")]
    Blocked(IpAddr),
    /// The server has answered with an error.
    #[error(transparent)]
    Refused(Arc<Refusal>),
    /// The server has answered what cannot be understood.
    #[error("the answer makes no sense: {0}")]
    Nonsense(String),
    /// The request itself cannot be made, which is this server's mistake.
    #[error("the request cannot be made: {0}")]
    BadRequest(String),
}

impl Error {
    fn unreachable(error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            let cause = error.to_string();
            if !message.contains(&cause) {
                message = format!("{message}: {cause}");
            }
            source = error.source();
        }
        Self::Unreachable(message)
    }

    /// What the server said, if it did answer with an error.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

/// An answer whose status is no success.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Its status.
    pub status: StatusCode,
    /// The Matrix error in it, if it is one.
    pub error: Option<StandardErrorBody>,
    /// Its body as it came, or the first part of it.
    pub body: Bytes,
}

impl Refusal {
    /// The error code, if it is a Matrix error.
    #[must_use]
    pub fn kind(&self) -> Option<&ErrorKind> {
        self.error.as_ref().map(|error| &error.kind)
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error {
            Some(error) => write!(
                f,
                "the server answered {} {}: {}",
                self.status.as_u16(),
                error.kind.errcode(),
                error.message
            ),
            None => write!(f, "the server answered {}", self.status),
        }
    }
}

/// A setting with which no client can be made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub String);

/// What a client has to know.
#[derive(Debug)]
pub struct Settings {
    /// Whether it may send anything.
    pub enabled: bool,
    /// The name of this server.
    pub server_name: OwnedServerName,
    /// The key that signs requests.
    pub key: Arc<SigningKey>,
    /// Which addresses it may connect to.
    pub policy: AddressPolicy,
    /// Where it looks up names.
    pub names: Names,
    /// Certificate authorities to trust besides those of the system.
    pub authorities: Vec<CertificateDer<'static>>,
    /// What it calls itself.
    pub user_agent: HeaderValue,
}

/// Sends requests to other servers. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: Guarded,
    discovery: Arc<Discovery>,
    own: Arc<Own>,
}

struct Own {
    enabled: bool,
    server_name: OwnedServerName,
    key: Arc<SigningKey>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client with these settings. Reads which authorities the system trusts.
    ///
    /// # Errors
    /// If one of the `authorities` cannot be used.
    pub fn new(settings: Settings) -> Result<Self, Unusable> {
        let Settings {
            policy,
            names,
            authorities,
            user_agent,
            ..
        } = settings;
        Ok(Self {
            http: Guarded::new(policy, names, authorities, user_agent)?,
            discovery: Arc::default(),
            own: Arc::new(Own {
                enabled: settings.enabled,
                server_name: settings.server_name,
                key: settings.key,
            }),
        })
    }

    /// HTTP without Matrix, under the same rules: for addresses that others have named.
    #[must_use]
    pub fn http(&self) -> &Guarded {
        &self.http
    }

    /// Sends a signed request to the server `to`, within the usual limits, and reads the answer.
    ///
    /// # Errors
    /// If there is no good answer.
    pub async fn send<R>(&self, to: &ServerName, request: R) -> Result<R::IncomingResponse, Error>
    where
        R: OutgoingRequest<Authentication = ServerSignatures, PathBuilder = SinglePath>,
    {
        self.send_within(Limits::default(), to, request).await
    }

    /// The same within other limits.
    ///
    /// # Errors
    /// If there is no good answer.
    pub async fn send_within<R>(
        &self,
        limits: Limits,
        to: &ServerName,
        request: R,
    ) -> Result<R::IncomingResponse, Error>
    where
        R: OutgoingRequest<Authentication = ServerSignatures, PathBuilder = SinglePath>,
    {
        read::<R>(self.open(limits, to, request).await?).await
    }

    /// Sends a signed request to the server `to`; the body of its answer is to be read piece by piece.
    ///
    /// # Errors
    /// If there is no answer, or its status is no success.
    pub async fn open<R>(
        &self,
        limits: Limits,
        to: &ServerName,
        request: R,
    ) -> Result<Response<Body>, Error>
    where
        R: OutgoingRequest<Authentication = ServerSignatures, PathBuilder = SinglePath>,
    {
        let mut request = to_http(request)?;
        let uri = request.uri().path_and_query();
        let signed = Target {
            method: request.method(),
            uri: uri.map_or("/", |uri| uri.as_str()),
            origin: &self.own.server_name,
            destination: to,
        };
        let bad = |error: &dyn std::error::Error| Error::BadRequest(error.to_string());
        let authorization = signed
            .sign(request.body(), &self.own.key)
            .map_err(|error| bad(&error))?;
        let authorization = HeaderValue::try_from(authorization).map_err(|error| bad(&error))?;
        let headers = request.headers_mut();
        headers.insert(header::AUTHORIZATION, authorization);
        self.exchange(limits, to, request).await
    }

    /// Sends a signed request whose body is made already, in canonical JSON; answers the body of the answer. `path` has
    /// the query too.
    ///
    /// # Errors
    /// If there is no answer, or its status is no success.
    pub async fn send_canonical(
        &self,
        limits: Limits,
        to: &ServerName,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, Error> {
        let signed = Target {
            method: &method,
            uri: path,
            origin: &self.own.server_name,
            destination: to,
        };
        let authorization = signed.sign_canonical(&body, &self.own.key);
        let request = Request::builder()
            .method(&method)
            .uri(path)
            .header(header::AUTHORIZATION, authorization)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| Error::BadRequest(error.to_string()))?;
        let answer = self.exchange(limits, to, request).await?;
        answer.into_body().collect().await
    }

    /// Sends a request that needs no signature: for keys and versions.
    ///
    /// # Errors
    /// If there is no good answer.
    pub async fn send_unsigned<R>(
        &self,
        limits: Limits,
        to: &ServerName,
        request: R,
    ) -> Result<R::IncomingResponse, Error>
    where
        R: OutgoingRequest<Authentication = NoAuthentication, PathBuilder = SinglePath>,
    {
        read::<R>(self.exchange(limits, to, to_http(request)?).await?).await
    }

    /// Asks the server `to` for what is at a path and for everybody; the body of its answer is to be read piece by
    /// piece.
    ///
    /// # Errors
    /// If there is no answer, or its status is no success.
    pub async fn open_unsigned(
        &self,
        limits: Limits,
        to: &ServerName,
        path: &str,
    ) -> Result<Response<Body>, Error> {
        let request = Request::get(path).body(Bytes::new());
        let request = request.map_err(|error| Error::BadRequest(error.to_string()))?;
        self.exchange(limits, to, request).await
    }

    /// Finds the server and sends it a request whose address is a path alone.
    async fn exchange(
        &self,
        limits: Limits,
        to: &ServerName,
        request: Request<Bytes>,
    ) -> Result<Response<Body>, Error> {
        if !self.own.enabled {
            return Err(Error::Unreachable("federation is turned off".to_owned()));
        }
        if *to == *self.own.server_name {
            return Err(Error::Unreachable(format!("{to} is this server")));
        }
        let deadline = tokio::time::Instant::now() + limits.time;
        let find = self.discovery.find(&self.http, to);
        let find = tokio::time::timeout_at(deadline, find).await;
        let destination = find.map_err(|_| Error::TimedOut)??;
        let request = addressed(request, &destination)?;
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let answer = self.http.request(request, limits.time(left)).await?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let body = first_part(answer.into_body()).await?;
        Err(Error::Refused(Arc::new(Refusal {
            status,
            error: serde_json::from_slice(&body).ok(),
            body,
        })))
    }
}

/// The first part of a body that is only read to know what is wrong.
async fn first_part(mut body: Body) -> Result<Bytes, Error> {
    let mut read = BytesMut::new();
    while let Some(chunk) = body.chunk().await? {
        read.extend_from_slice(&chunk);
        if read.len() as u64 >= ERROR_BYTES {
            break;
        }
    }
    Ok(read.freeze())
}

/// The request that ruma makes, without a server to send it to.
fn to_http<R>(request: R) -> Result<Request<Bytes>, Error>
where
    R: OutgoingRequest<PathBuilder = SinglePath>,
{
    let bad = |error: &dyn std::error::Error| Error::BadRequest(error.to_string());
    let request = request.try_into_http_request_inner("", ());
    let (mut parts, body) = request.map_err(|error| bad(&error))?.into_parts();
    if let Some(content_type) = body.content_type() {
        let headers = &mut parts.headers;
        headers.entry(header::CONTENT_TYPE).or_insert(content_type);
    }
    let body: BytesMut = body.try_into_buf().map_err(|error| bad(&error.into()))?;
    Ok(Request::from_parts(parts, body.freeze()))
}

/// Says in a request where it is to go.
fn addressed(mut request: Request<Bytes>, to: &Destination) -> Result<Request<Bytes>, Error> {
    let bad = |error: &dyn std::error::Error| Error::BadRequest(error.to_string());
    let (scheme, authority) = match &to.at {
        Place::Address(IpAddr::V6(address), port) => ("https", format!("[{address}]:{port}")),
        Place::Address(address, port) => ("https", format!("{address}:{port}")),
        Place::Host(host, port) => ("https", format!("{host}:{port}")),
        Place::Service(host) => (SERVICE_SCHEME, host.clone()),
    };
    let path = request.uri().path_and_query().cloned();
    let uri = Uri::builder().scheme(scheme).authority(authority);
    let uri = match path {
        Some(path) => uri.path_and_query(path),
        None => uri.path_and_query("/"),
    };
    *request.uri_mut() = uri.build().map_err(|error| bad(&error))?;
    let host = HeaderValue::try_from(&to.host_header).map_err(|error| bad(&error))?;
    request.headers_mut().insert(header::HOST, host);
    Ok(request)
}

async fn read<R>(answer: Response<Body>) -> Result<R::IncomingResponse, Error>
where
    R: OutgoingRequest,
{
    let (parts, body) = answer.into_parts();
    let body = body.collect().await?;
    let answer = Response::from_parts(parts, &body[..]);
    R::IncomingResponse::try_from_http_response_inner(answer)
        .map_err(|error| Error::Nonsense(error.to_string()))
}
