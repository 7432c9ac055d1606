//! Answers whose JSON is not quite as ruma writes it.

use axum::response::Response;
use http::header;
use http_body_util::BodyExt as _;
use serde_json::Value;

use crate::error::{Error, Result};

/// Leaves out what is `null`.
pub(super) async fn drop_nulls(response: Response) -> Result<Response> {
    changed(response, keep_values).await
}

/// Says `public` of each room that has no join rule.
pub(super) async fn add_join_rules(response: Response) -> Result<Response> {
    changed(response, say_public).await
}

async fn changed(response: Response, change: fn(&mut Value)) -> Result<Response> {
    let (mut parts, body) = response.into_parts();
    let body = body.collect().await.map_err(Error::internal)?.to_bytes();
    let Ok(mut json) = serde_json::from_slice(&body) else {
        return Ok(Response::from_parts(parts, body.into()));
    };
    change(&mut json);
    let body = serde_json::to_vec(&json).map_err(Error::internal)?;
    parts.headers.remove(header::CONTENT_LENGTH);
    Ok(Response::from_parts(parts, body.into()))
}

fn keep_values(json: &mut Value) {
    match json {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(keep_values);
        }
        Value::Array(items) => items.iter_mut().for_each(keep_values),
        _ => {}
    }
}

/// The rooms are in the answer itself, in `room`, or in lists. State events in them are left alone.
fn say_public(json: &mut Value) {
    let Value::Object(fields) = json else {
        return;
    };
    if fields.contains_key("num_joined_members") {
        fields
            .entry("join_rule")
            .or_insert_with(|| Value::String("public".to_owned()));
    }
    for (name, value) in fields {
        match value {
            Value::Object(_) if name == "room" => say_public(value),
            Value::Array(rooms) if name == "rooms" || name == "children" => {
                rooms.iter_mut().for_each(say_public);
            }
            _ => {}
        }
    }
}
