//! Between axum and ruma: routes from ruma's metadata, requests and answers as ruma's types, errors on the wire.

mod answers;
mod bodies;
mod changed;
mod held;
mod leftover;
pub mod sound;

use std::{any::Any, future::Future, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{RawPathParams, Request, State},
    middleware::{self, Next, map_request},
    response::{IntoResponse, Response},
    routing::{MethodFilter, MethodRouter, on},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, StatusCode, header};
use percent_encoding::percent_decode_str;
use ruma::api::{
    IncomingRequest, IncomingRequestExt as _, Metadata, OutgoingResponse, OutgoingResponseExt as _,
    error::{
        DeserializationError, ErrorKind, FromHttpRequestError, LimitExceededErrorData, RetryAfter,
        StandardErrorBody,
    },
    path_builder::PathBuilder as _,
};
use serde::Serialize;
use serde_json::{error::Category, value::RawValue};

pub use bodies::Bodies;

use crate::{
    app::App,
    auth::Authenticate,
    error::{Error, Result},
    listen::ClientAddress,
    log::AppendError,
    storage,
};

/// The largest body of a request, in bytes, where a route does not say otherwise.
const BODY_LIMIT: usize = 1 << 20;

/// A request that was understood, and who sent it.
#[derive(Debug)]
pub struct Call<R: IncomingRequest<Authentication: Authenticate>> {
    /// The request as ruma reads it.
    pub body: R,
    /// Who asks, as far as the endpoint's kind of authentication tells.
    pub requester: <R::Authentication as Authenticate>::Who,
    /// Method, address, headers and extensions.
    pub parts: http::request::Parts,
    /// The body as it was sent, for what ruma's type does not keep.
    pub raw: Bytes,
}

impl<R: IncomingRequest<Authentication: Authenticate>> Call<R> {
    /// The address of the client, if the listener told it.
    #[must_use]
    pub fn address(&self) -> Option<std::net::IpAddr> {
        self.parts
            .extensions
            .get::<ClientAddress>()
            .map(|address| address.0)
    }
}

/// Endpoints and what answers them.
#[derive(Debug, Default)]
pub struct Routes {
    router: Router<Arc<App>>,
    endpoints: Vec<Endpoint>,
}

/// What is known of an endpoint before anybody asks for it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its method; `None` where the handler itself takes several.
    pub method: Option<Method>,
    /// Its paths with the names of their arguments, as in `/_matrix/client/v3/rooms/{room_id}/join`. The last is the
    /// newest.
    pub paths: Vec<String>,
    /// How many bytes its JSON body may have; `None` if the handler reads the body itself, or does not read it.
    pub body_limit: Option<usize>,
}

impl Routes {
    /// No endpoints yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers ruma's endpoint `R`, under each of its paths, with `handler`.
    #[expect(clippy::should_implement_trait, reason = "nobody adds routes with `+`")]
    #[must_use]
    pub fn add<R, F, A>(self, handler: F) -> Self
    where
        R: IncomingRequest<Authentication: Authenticate> + Send + 'static,
        R::OutgoingResponse: Send,
        F: Fn(Arc<App>, Call<R>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Result<R::OutgoingResponse>> + Send,
    {
        self.sized(BODY_LIMIT, handler)
    }

    /// The same for an endpoint whose body may have up to `limit` bytes.
    #[must_use]
    pub fn sized<R, F, A>(self, limit: usize, handler: F) -> Self
    where
        R: IncomingRequest<Authentication: Authenticate> + Send + 'static,
        R::OutgoingResponse: Send,
        F: Fn(Arc<App>, Call<R>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Result<R::OutgoingResponse>> + Send,
    {
        let handler = endpoint(limit, handler, respond);
        self.known::<R>(Some(limit), &handler)
    }

    /// The same for an answer that ruma's type cannot say: any JSON.
    #[must_use]
    pub fn json<R, F, A, O>(self, handler: F) -> Self
    where
        R: IncomingRequest<Authentication: Authenticate> + Send + 'static,
        F: Fn(Arc<App>, Call<R>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Result<O>> + Send,
        O: Serialize + Send + 'static,
    {
        let handler = endpoint(
            BODY_LIMIT,
            handler,
            |json: O| Ok(Json(json).into_response()),
        );
        self.known::<R>(Some(BODY_LIMIT), &handler)
    }

    /// The same for an answer that the handler makes itself, as one that is too large for memory.
    #[must_use]
    pub fn stream<R, F, A>(self, handler: F) -> Self
    where
        R: IncomingRequest<Authentication: Authenticate> + Send + 'static,
        F: Fn(Arc<App>, Call<R>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Result<Response>> + Send,
    {
        let handler = endpoint(BODY_LIMIT, handler, Ok);
        self.known::<R>(Some(BODY_LIMIT), &handler)
    }

    /// Answers ruma's endpoint `R` under one more path, which ruma does not know.
    #[must_use]
    pub fn at<R, F, A>(self, path: &str, handler: F) -> Self
    where
        R: IncomingRequest<Authentication: Authenticate> + Send + 'static,
        R::OutgoingResponse: Send,
        F: Fn(Arc<App>, Call<R>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Result<R::OutgoingResponse>> + Send,
    {
        let handler = endpoint(BODY_LIMIT, handler, respond);
        self.routed::<R>(path, handler)
    }

    /// The same for an answer that ruma's type cannot say: any JSON.
    #[must_use]
    pub fn json_at<R, F, A, O>(self, path: &str, handler: F) -> Self
    where
        R: IncomingRequest<Authentication: Authenticate> + Send + 'static,
        F: Fn(Arc<App>, Call<R>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Result<O>> + Send,
        O: Serialize + Send + 'static,
    {
        let handler = endpoint(
            BODY_LIMIT,
            handler,
            |json: O| Ok(Json(json).into_response()),
        );
        self.routed::<R>(path, handler)
    }

    fn routed<R: IncomingRequest>(mut self, path: &str, handler: MethodRouter<Arc<App>>) -> Self {
        self.router = self.router.route(path, handler);
        self.endpoints.push(Endpoint {
            method: Some(R::METHOD),
            paths: vec![path.to_owned()],
            body_limit: Some(BODY_LIMIT),
        });
        self
    }

    /// Answers an endpoint of the User-Interactive Authentication API: what a client has sent once it need not
    /// repeat when it comes back with its session.
    #[must_use]
    pub fn interactive<R, F, A>(self, handler: F) -> Self
    where
        R: IncomingRequest<Authentication: Authenticate> + Send + 'static,
        R::OutgoingResponse: Send,
        F: Fn(Arc<App>, Call<R>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Result<R::OutgoingResponse>> + Send,
    {
        let method_router = changed::handler::<R, F, A>(handler, |app, path, raw| {
            app.uiaa.complete(path, raw, app.clock.now())
        });
        self.known::<R>(Some(bodies::FREE), &method_router)
    }

    /// Answers an endpoint of whose body ruma demands a field that the specification does not: one that is left out has
    /// this value, in JSON.
    #[must_use]
    pub fn filled<R, F, A>(self, field: &'static str, value: &'static str, handler: F) -> Self
    where
        R: IncomingRequest<Authentication: Authenticate> + Send + 'static,
        R::OutgoingResponse: Send,
        F: Fn(Arc<App>, Call<R>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Result<R::OutgoingResponse>> + Send,
    {
        let method_router =
            changed::handler::<R, F, A>(handler, move |_, _, raw| changed::fill(raw, field, value));
        self.known::<R>(Some(bodies::FREE), &method_router)
    }

    /// Answers an endpoint whose query may leave out a parameter that ruma demands: then it has this value.
    #[must_use]
    pub fn queried<R, F, A>(self, name: &'static str, value: &'static str, handler: F) -> Self
    where
        R: IncomingRequest<Authentication: Authenticate> + Send + 'static,
        R::OutgoingResponse: Send,
        F: Fn(Arc<App>, Call<R>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Result<R::OutgoingResponse>> + Send,
    {
        let method_router =
            endpoint(BODY_LIMIT, handler, respond).layer(map_request(async move |request| {
                changed::query(request, name, value)
            }));
        self.known::<R>(Some(BODY_LIMIT), &method_router)
    }

    /// Answers ruma's endpoint `R`, under each of its paths, with an axum handler: for bodies that are not JSON.
    #[expect(clippy::needless_pass_by_value, reason = "made for the call")]
    #[must_use]
    pub fn raw<R: Metadata>(self, handler: MethodRouter<Arc<App>>) -> Self {
        self.known::<R>(None, &handler)
    }

    fn known<R: Metadata>(
        mut self,
        body_limit: Option<usize>,
        handler: &MethodRouter<Arc<App>>,
    ) -> Self {
        let mut paths = Vec::new();
        for path in R::PATH_BUILDER.all_paths() {
            self.router = self.router.route(path, handler.clone());
            // An empty last part, as in `/state/m.room.name/`, is a state key too; axum does not match it.
            if let Some((start, last)) = path.rsplit_once('/')
                && last == "{state_key}"
            {
                for path in [format!("{start}/"), start.to_owned()] {
                    self.router = self.router.route(&path, handler.clone());
                    paths.push(path);
                }
            }
            paths.push(path.to_owned());
        }
        self.endpoints.push(Endpoint {
            method: Some(R::METHOD),
            paths,
            body_limit,
        });
        self
    }

    /// Adds the endpoints of another section.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.endpoints.extend(other.endpoints);
        self
    }

    /// Answers ruma's endpoint `R` under one more path, which ruma does not know, with what the handler makes itself.
    #[must_use]
    pub fn stream_at<R, F, A>(self, path: &str, handler: F) -> Self
    where
        R: IncomingRequest<Authentication: Authenticate> + Send + 'static,
        F: Fn(Arc<App>, Call<R>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Result<Response>> + Send,
    {
        let handler = endpoint(BODY_LIMIT, handler, Ok);
        self.routed::<R>(path, handler)
    }

    /// Leaves out of the answers of these endpoints what is `null`: ruma writes so some fields that the specification
    /// has as a text or not at all. Not for answers that have what users made in them.
    #[must_use]
    pub fn without_nulls(mut self) -> Self {
        self.router = self
            .router
            .layer(middleware::map_response(answers::drop_nulls));
        self
    }

    /// Writes the join rule of the rooms in the answers of these endpoints where ruma leaves it out: it is the default, but
    /// other servers and clients take nothing for granted.
    #[must_use]
    pub fn with_join_rules(mut self) -> Self {
        self.router = self
            .router
            .layer(middleware::map_response(answers::add_join_rules));
        self
    }

    /// An endpoint that ruma does not know.
    #[must_use]
    pub fn other(mut self, path: &str, handler: MethodRouter<Arc<App>>) -> Self {
        self.router = self.router.route(path, handler);
        self.endpoints.push(Endpoint {
            method: None,
            paths: vec![path.to_owned()],
            body_limit: None,
        });
        self
    }

    /// All endpoints, for tests that try each of them.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// All endpoints as axum's router, with Matrix errors for unknown paths and methods.
    pub fn into_router(self, app: Arc<App>) -> Router {
        self.router
            .fallback(|| async { Error::unrecognized("no such endpoint") })
            .method_not_allowed_fallback(|| async {
                Error::new(
                    StatusCode::METHOD_NOT_ALLOWED,
                    ErrorKind::Unrecognized,
                    "no such method here",
                )
            })
            .layer(middleware::from_fn(check_target))
            .layer(middleware::from_fn(leftover::look_after))
            .with_state(app)
    }
}

fn endpoint<R, F, A, O>(
    limit: usize,
    handler: F,
    respond: fn(O) -> Result<Response>,
) -> MethodRouter<Arc<App>>
where
    R: IncomingRequest<Authentication: Authenticate> + Send + 'static,
    F: Fn(Arc<App>, Call<R>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Result<O>> + Send,
    O: 'static,
{
    on(
        method_filter(&R::METHOD),
        move |State(app): State<Arc<App>>, params: RawPathParams, request: Request| {
            let handler = handler.clone();
            async move { answer(app, params, request, limit, handler, respond).await }
        },
    )
}

fn method_filter(method: &Method) -> MethodFilter {
    MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET)
}

async fn answer<R, F, A, O>(
    app: Arc<App>,
    params: RawPathParams,
    request: Request,
    limit: usize,
    handler: F,
    respond: fn(O) -> Result<Response>,
) -> Result<Response>
where
    R: IncomingRequest<Authentication: Authenticate>,
    F: Fn(Arc<App>, Call<R>) -> A,
    A: Future<Output = Result<O>>,
{
    let (parts, body) = request.into_parts();
    let requester = R::Authentication::authenticate(&app, &parts).await?;
    let limit = if R::Authentication::is_known(&requester) {
        limit
    } else {
        limit.min(bodies::FREE)
    };
    let bodies = R::Authentication::bodies(&app);
    let (raw, _share) = bodies.read(body, limit).await?;
    let place = R::Authentication::confirm(&app, &requester, &parts, &raw)?;
    if R::Authentication::WHOLE && !raw.is_empty() {
        sound::check(&raw).map_err(|error| Error::not_json(error.to_string()))?;
    }
    let body = parse_leniently::<R>(&parts, &params, &raw)?;
    let call = Call {
        body,
        requester,
        parts,
        raw,
    };
    let answer = respond(handler(app, call).await?)?;
    // An answer that is made while it is sent takes up its place until then.
    Ok(match place {
        Some(place) => held::hold(answer, place),
        None => answer,
    })
}

/// Checks that a body is one JSON object and nothing else. Ruma's types alone would read a list as their fields one
/// after the other, and do not look at what they do not know.
fn check_json(body: &[u8]) -> Result<()> {
    if body.is_empty() {
        return Ok(());
    }
    let json: &RawValue =
        serde_json::from_slice(body).map_err(|error| Error::not_json(error.to_string()))?;
    // Some clients say `null` where they have nothing to say; ruma knows where that will do.
    if json.get().starts_with('{') || json.get() == "null" {
        Ok(())
    } else {
        Err(Error::bad_json("the body is no JSON object"))
    }
}

/// Refuses what no path or query means, before anybody reads it: bytes that are not UTF-8 in a path, and null
/// characters, which PostgreSQL cannot even look for.
async fn check_target(request: Request, next: Next) -> Result<Response> {
    let uri = request.uri();
    let path = percent_decode_str(uri.path()).decode_utf8();
    let path = path.map_err(|_| Error::invalid_param("the path is not UTF-8"))?;
    if path.contains('\0') || uri.query().is_some_and(|query| query.contains("%00")) {
        return Err(Error::invalid_param("null characters mean nothing here"));
    }
    Ok(next.run(request).await)
}

/// The same as [`parse`] for a body in which `null` says as much as leaving the field out: clients write so, and ruma reads
/// only some fields so.
fn parse_leniently<R: IncomingRequest>(
    parts: &http::request::Parts,
    params: &RawPathParams,
    raw: &[u8],
) -> Result<R> {
    parse(parts, params, raw).or_else(|error| {
        let said = changed::without_nulls(raw).ok_or(());
        said.and_then(|said| parse(parts, params, &said).map_err(drop))
            .map_err(|()| error)
    })
}

/// Reads a request as ruma's type.
///
/// # Errors
/// A Matrix error that tells what is wrong with it.
pub fn parse<R: IncomingRequest>(
    parts: &http::request::Parts,
    params: &RawPathParams,
    raw: &[u8],
) -> Result<R> {
    // Clients leave out a body in which everything is optional. ruma sees to that itself, but not in the
    // requests that it reads by hand (joining and knocking by alias).
    let raw = if raw.is_empty() && parts.method == Method::POST {
        b"{}"
    } else {
        raw
    };
    let mut request = http::Request::new(raw);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    *request.headers_mut() = parts.headers.clone();
    let mut values: Vec<&str> = params.iter().map(|(_, value)| value).collect();
    let expected = R::PATH_BUILDER
        .all_paths()
        .next()
        .map_or(0, |path| path.matches('{').count());
    if values.len() < expected {
        // The empty state key, see `Routes::known`.
        values.resize(expected, "");
    }
    R::try_from_http_request(request, &values).map_err(parse_error)
}

fn parse_error(error: FromHttpRequestError) -> Error {
    let message = error.to_string();
    match error {
        FromHttpRequestError::Deserialization(DeserializationError::Json(error)) => match error
            .classify()
        {
            Category::Data if message.contains("missing field") => Error::missing_param(message),
            Category::Data => Error::bad_json(message),
            Category::Io | Category::Syntax | Category::Eof => Error::not_json(message),
        },
        FromHttpRequestError::Deserialization(DeserializationError::Utf8(_)) => {
            Error::not_json(message)
        }
        FromHttpRequestError::Deserialization(DeserializationError::Query(_))
            if message.contains("missing field") =>
        {
            Error::missing_param(message)
        }
        _ => Error::invalid_param(message),
    }
}

/// Makes the answer from ruma's type.
///
/// # Errors
/// If it cannot be serialized, which is this server's mistake.
pub fn respond(response: impl OutgoingResponse) -> Result<Response> {
    let response = response
        .try_into_http_response::<BytesMut>()
        .map_err(Error::internal)?;
    Ok(response.map(|body| Body::from(body.freeze())))
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        match self {
            Self::Matrix {
                status,
                kind,
                message,
            } => matrix_response(status, *kind, message),
            Self::Uiaa(info) => (StatusCode::UNAUTHORIZED, Json(*info)).into_response(),
            Self::Append(AppendError::NullCharacter) => null_character(),
            Self::Database(error) if storage::is_null_character(&error) => null_character(),
            Self::Append(AppendError::Closed | AppendError::Busy) => matrix_response(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorKind::Unknown,
                "the server is busy or going down; try again".to_owned(),
            ),
            error => {
                tracing::error!(%error, "a request failed");
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                matrix_response(
                    status,
                    ErrorKind::Unknown,
                    "internal server error".to_owned(),
                )
            }
        }
    }
}

fn null_character() -> Response {
    Error::bad_json("null characters mean nothing here").into_response()
}

/// What a client is told if a handler panics. To be used with tower's `CatchPanicLayer`.
#[must_use]
#[expect(
    clippy::needless_pass_by_value,
    reason = "that is how `CatchPanicLayer` calls it"
)]
pub fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let cause = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    Error::internal(format!("a handler panicked: {cause}")).into_response()
}

fn matrix_response(status: StatusCode, kind: ErrorKind, message: String) -> Response {
    let wait = match &kind {
        ErrorKind::LimitExceeded(LimitExceededErrorData {
            retry_after: Some(RetryAfter::Delay(wait)),
            ..
        }) => Some(wait.as_millis().div_ceil(1000).to_string()),
        _ => None,
    };
    let mut response = (status, Json(StandardErrorBody::new(kind, message))).into_response();
    if let Some(value) = wait.and_then(|wait| HeaderValue::from_str(&wait).ok()) {
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}
