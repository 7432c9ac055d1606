//! Dehydrated devices (MSC3814).

use std::{collections::BTreeMap, sync::Arc};

use axum::extract::Query;
use ruma::{
    OwnedDeviceId, OwnedOneTimeKeyId,
    api::{
        IncomingRequest, Metadata,
        client::dehydrated_device::{
            delete_dehydrated_device, get_dehydrated_device, get_events, put_dehydrated_device,
        },
        error::DeserializationError,
    },
    encryption::OneTimeKey,
    serde::Raw,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    keys::dehydrated::{self, Messages, Uploaded},
    storage::Pos,
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<put_dehydrated_device::unstable::Request, _, _>(put_dehydrated_device)
        .add::<get_dehydrated_device::unstable::Request, _, _>(get_dehydrated_device)
        .add::<delete_dehydrated_device::unstable::Request, _, _>(delete_dehydrated_device)
        .json::<GetEvents, _, _, _>(get_events)
        .json::<get_events::unstable::Request, _, _, _>(post_events)
}

/// Keys with their ids.
fn keys(keys: &BTreeMap<OwnedOneTimeKeyId, Raw<OneTimeKey>>) -> Vec<(String, &RawValue)> {
    let keys = keys.iter();
    keys.map(|(id, key)| (id.to_string(), key.json())).collect()
}

/// `PUT /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device`
async fn put_dehydrated_device(
    app: Arc<App>,
    call: Call<put_dehydrated_device::unstable::Request>,
) -> Result<put_dehydrated_device::unstable::Response> {
    let request = call.body;
    let (one_time, fallback) = (keys(&request.one_time_keys), keys(&request.fallback_keys));
    let uploaded = Uploaded {
        device_id: request.device_id.as_str(),
        display_name: request.initial_device_display_name.as_deref(),
        data: request.device_data.json(),
        device_keys: request.device_keys.json(),
        one_time: one_time.iter().map(|(id, key)| (&**id, *key)).collect(),
        fallback: fallback.iter().map(|(id, key)| (&**id, *key)).collect(),
    };
    dehydrated::put(&app, &call.requester, &uploaded).await?;
    Ok(put_dehydrated_device::unstable::Response::new(
        request.device_id,
    ))
}

/// `GET /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device`
async fn get_dehydrated_device(
    app: Arc<App>,
    call: Call<get_dehydrated_device::unstable::Request>,
) -> Result<get_dehydrated_device::unstable::Response> {
    let found = dehydrated::get(&app, call.requester.user).await?;
    let data = Raw::from_json_string(found.json).map_err(Error::internal)?;
    let id = found.device_id.into();
    Ok(get_dehydrated_device::unstable::Response::new(id, data))
}

/// `DELETE /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device`
async fn delete_dehydrated_device(
    app: Arc<App>,
    call: Call<delete_dehydrated_device::unstable::Request>,
) -> Result<delete_dehydrated_device::unstable::Response> {
    let id = dehydrated::delete(&app, call.requester.user).await?;
    Ok(delete_dehydrated_device::unstable::Response::new(id.into()))
}

/// The request for messages as the proposal has it by now; ruma knows the one before, with `POST`.
#[derive(Debug)]
struct GetEvents {
    device_id: OwnedDeviceId,
}

#[derive(Debug, Deserialize)]
struct Part {
    from: Option<String>,
    limit: Option<u64>,
}

type PostEvents = get_events::unstable::Request;

impl Metadata for GetEvents {
    const METHOD: http::Method = http::Method::GET;
    const RATE_LIMITED: bool = PostEvents::RATE_LIMITED;
    type Authentication = <PostEvents as Metadata>::Authentication;
    type PathBuilder = <PostEvents as Metadata>::PathBuilder;
    const PATH_BUILDER: Self::PathBuilder = PostEvents::PATH_BUILDER;
}

impl IncomingRequest for GetEvents {
    type EndpointError = <PostEvents as IncomingRequest>::EndpointError;
    type OutgoingResponse = <PostEvents as IncomingRequest>::OutgoingResponse;

    fn try_from_http_request_inner(
        _: http::Request<&[u8]>,
        path_args: &[&str],
    ) -> Result<Self, DeserializationError> {
        Ok(Self {
            device_id: path_args.first().copied().unwrap_or_default().into(),
        })
    }
}

/// Some messages.
#[derive(Debug, Serialize)]
struct Events {
    events: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
}

/// Reads a token: `d` and the position of the last message that the client has got.
fn position(token: Option<&str>) -> Result<Pos> {
    let Some(token) = token else {
        return Ok(0);
    };
    let pos = token.strip_prefix('d').and_then(|pos| pos.parse().ok());
    pos.filter(|pos| *pos >= 0)
        .ok_or_else(|| Error::invalid_param("the token is not one of this server"))
}

fn token(messages: &Messages) -> String {
    format!("d{}", messages.next)
}

/// `GET /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device/{device_id}/events`
///
/// There is a token only if there are more.
async fn get_events(app: Arc<App>, call: Call<GetEvents>) -> Result<Events> {
    let Query(part) = Query::<Part>::try_from_uri(&call.parts.uri)
        .map_err(|error| Error::invalid_param(error.to_string()))?;
    let after = position(part.from.as_deref())?;
    let (user, id) = (call.requester.user, call.body.device_id.as_str());
    let messages = dehydrated::messages(&app, user, id, after, part.limit).await?;
    Ok(Events {
        next_batch: messages.has_more.then(|| token(&messages)),
        events: messages.events,
    })
}

/// `POST /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device/{device_id}/events`
///
/// There is always a token: clients go on until there are no events.
async fn post_events(app: Arc<App>, call: Call<PostEvents>) -> Result<Events> {
    let (user, request) = (call.requester.user, call.body);
    let after = position(request.next_batch.as_deref())?;
    let id = request.device_id.as_str();
    let messages = dehydrated::messages(&app, user, id, after, None).await?;
    Ok(Events {
        next_batch: Some(token(&messages)),
        events: messages.events,
    })
}
