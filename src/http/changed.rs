//! Bodies and queries that are changed before ruma reads them.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use axum::{
    body::Body,
    extract::{RawPathParams, Request, State},
    routing::{MethodRouter, on},
};
use bytes::Bytes;
use http::Uri;
use ruma::api::IncomingRequest;
use serde_json::{Map, Value, value::RawValue};

use super::{BODY_LIMIT, Call, answer, bodies, method_filter, respond};
use crate::{app::App, auth::Authenticate, error::Result};

/// A handler of requests whose body is read as `change` leaves it.
pub(super) fn handler<R, F, A>(
    handler: F,
    change: impl Fn(&App, &str, Bytes) -> Bytes + Clone + Send + Sync + 'static,
) -> MethodRouter<Arc<App>>
where
    R: IncomingRequest<Authentication: Authenticate> + Send + 'static,
    R::OutgoingResponse: Send,
    F: Fn(Arc<App>, Call<R>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Result<R::OutgoingResponse>> + Send,
{
    on(
        method_filter(&R::METHOD),
        move |State(app): State<Arc<App>>, params: RawPathParams, request: Request| {
            let (handler, change) = (handler.clone(), change.clone());
            async move {
                let (parts, body) = request.into_parts();
                let (raw, _share) = app.bodies.read(body, bodies::FREE).await?;
                let raw = change(&app, parts.uri.path(), raw);
                let request = Request::from_parts(parts, Body::from(raw));
                // What was added may come on top of what was sent.
                answer(app, params, request, BODY_LIMIT, handler, respond).await
            }
        },
    )
}

/// Adds a parameter to a query that does not have it.
pub(super) fn query(mut request: Request, name: &str, value: &str) -> Request {
    let uri = request.uri();
    let query = uri.query().unwrap_or_default();
    let has_it = query
        .split('&')
        .any(|pair| pair.split('=').next() == Some(name));
    if !has_it {
        let and = if query.is_empty() { "" } else { "&" };
        let whole = format!("{}?{query}{and}{name}={value}", uri.path());
        if let Ok(changed) = Uri::try_from(whole) {
            *request.uri_mut() = changed;
        }
    }
    request
}

/// Adds a field to a JSON object that does not have it. Anything else stays as it is.
pub(super) fn fill(body: Bytes, field: &str, value: &str) -> Bytes {
    let fields = serde_json::from_slice::<Map<String, Value>>(&body);
    let Some(fields) = fields.ok().filter(|fields| !fields.contains_key(field)) else {
        return body;
    };
    let text = String::from_utf8_lossy(&body);
    let rest = text.trim_start().trim_start_matches('{');
    let comma = if fields.is_empty() { "" } else { "," };
    Bytes::from(format!("{{\"{field}\":{value}{comma}{rest}"))
}

/// A JSON object without its fields that are `null`, if there are such.
pub(super) fn without_nulls(body: &[u8]) -> Option<Vec<u8>> {
    let mut fields: BTreeMap<String, &RawValue> = serde_json::from_slice(body).ok()?;
    let all = fields.len();
    fields.retain(|_, value| value.get() != "null");
    if fields.len() == all {
        return None;
    }
    serde_json::to_vec(&fields).ok()
}
