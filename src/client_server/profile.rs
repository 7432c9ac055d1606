//! "Profiles": what users say about themselves.

use std::sync::Arc;

use axum::{
    Json,
    extract::{RawPathParams, Request, State},
    routing::put,
};
use http::StatusCode;
use ruma::{
    UserId,
    api::{
        auth_scheme::AccessToken,
        client::profile::{
            ProfileFieldName, ProfileFieldValue, UserProfile, delete_profile_field, get_profile,
            get_profile_field, set_profile_field,
        },
        error::ErrorKind,
    },
};
use serde_json::{Value, json};

use crate::{
    app::App,
    auth::{Authenticate as _, Requester},
    error::{Error, Result},
    http::{Call, Routes},
    log::Change,
    rate_limit::{self, Class},
    remote,
    room::{append::Sender, profile},
    storage::{UserNid, Write, profiles},
};

/// The longest name of a field, in bytes.
const KEY_BYTES: usize = 255;
/// The largest profile, in bytes of JSON.
const PROFILE_BYTES: usize = 64 * 1024;
/// The largest body: a whole profile and something around it.
const BODY_BYTES: usize = 2 * PROFILE_BYTES;
/// The longest display name, in bytes.
const DISPLAY_NAME_BYTES: usize = 1024;
/// The longest URI of an avatar, in bytes.
const AVATAR_BYTES: usize = 1024;

/// Where clients ask for a whole profile that know it from MSC4133 only.
const UNSTABLE_PROFILE: &str = "/_matrix/client/unstable/uk.tcpip.msc4133/profile/{user_id}";

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<get_profile::v3::Request, _, _>(get_profile)
        .at::<get_profile::v3::Request, _, _>(UNSTABLE_PROFILE, get_profile)
        .add::<get_profile_field::v3::Request, _, _>(get_profile_field)
        .raw::<set_profile_field::v3::Request>(put(set_profile_field))
        .add::<delete_profile_field::v3::Request, _, _>(delete_profile_field)
}

/// `GET /_matrix/client/v3/profile/{userId}`
async fn get_profile(
    app: Arc<App>,
    call: Call<get_profile::v3::Request>,
) -> Result<get_profile::v3::Response> {
    let fields = profile::fields(&app, &call.body.user_id).await?;
    let profile: UserProfile = fields.iter().cloned().collect();
    Ok(profile.into())
}

/// `GET /_matrix/client/v3/profile/{userId}/{keyName}`
async fn get_profile_field(
    app: Arc<App>,
    call: Call<get_profile_field::v3::Request>,
) -> Result<get_profile_field::v3::Response> {
    let wanted = call.body.field.as_str();
    let fields = profile::fields(&app, &call.body.user_id).await?;
    let (field, value) = fields
        .iter()
        .find(|(field, _)| field == wanted)
        .ok_or_else(|| Error::not_found("the profile has no such field"))?;
    let server = call.body.user_id.server_name();
    let value = ProfileFieldValue::new(field, value.clone());
    let value = value.map_err(|_| remote::unreachable(server))?;
    Ok(get_profile_field::v3::Response::new(value))
}

/// `PUT /_matrix/client/v3/profile/{userId}/{keyName}`
///
/// An empty display name or avatar is none. An avatar may be any text, as on other servers: what is not the URI of a medium
/// shows nothing. The body is read here, because ruma's reading cannot tell a body without
/// the field from one that is not JSON.
async fn set_profile_field(
    State(app): State<Arc<App>>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>> {
    let (parts, body) = request.into_parts();
    let requester = AccessToken::authenticate(&app, &parts).await?;
    let (raw, _share) = app.bodies.read(body, BODY_BYTES).await?;
    let param = |name| params.iter().find(|(key, _)| *key == name);
    let (Some((_, user_id)), Some((_, field))) = (param("user_id"), param("field")) else {
        return Err(Error::internal("the path has no user or no field"));
    };
    let user_id =
        UserId::parse(user_id).map_err(|error| Error::invalid_param(error.to_string()))?;
    requester.must_be(&user_id)?;
    rate_limit::check(&app, Class::Profiles, &requester)?;
    let name = ProfileFieldName::from(field);
    check_name(&name)?;
    let mut body = match serde_json::from_slice(&raw) {
        Ok(Value::Object(body)) => body,
        Ok(_) => return Err(Error::bad_json("the body is not an object")),
        Err(error) => return Err(Error::not_json(error.to_string())),
    };
    let value = body
        .remove(field)
        .ok_or_else(|| Error::missing_param(format!("missing field `{field}`")))?;
    let typed = ProfileFieldValue::new(field, value.clone())
        .map_err(|error| Error::bad_json(error.to_string()))?;
    check_value(&typed)?;
    set(&app, &requester, &name, &value).await?;
    Ok(Json(json!({})))
}

async fn set(
    app: &Arc<App>,
    requester: &Requester,
    name: &ProfileFieldName,
    value: &Value,
) -> Result<()> {
    let user = requester.user;
    let is_name = is_in_rooms(name);
    let editing = app.preferences.edit(user).await;
    let write = if is_name && value.as_str() == Some("") {
        profiles::delete(user, name.as_str())
    } else {
        let json = value.to_string();
        let folded = value
            .as_str()
            .filter(|_| *name == ProfileFieldName::DisplayName)
            .map(str::to_lowercase);
        check_size(app, user, name.as_str(), &json).await?;
        profiles::set(user, name.as_str(), &json, folded.as_deref())
    };
    write_down(app, write).await?;
    drop(editing);
    if is_name {
        tell_rooms(app, requester).await?;
    }
    Ok(())
}

/// `DELETE /_matrix/client/v3/profile/{userId}/{keyName}`
async fn delete_profile_field(
    app: Arc<App>,
    call: Call<delete_profile_field::v3::Request>,
) -> Result<delete_profile_field::v3::Response> {
    let body = &call.body;
    call.requester.must_be(&body.user_id)?;
    rate_limit::check(&app, Class::Profiles, &call.requester)?;
    check_name(&body.field)?;
    let write = profiles::delete(call.requester.user, body.field.as_str());
    write_down(&app, write).await?;
    if is_in_rooms(&body.field) {
        tell_rooms(&app, &call.requester).await?;
    }
    Ok(delete_profile_field::v3::Response::new())
}

/// Whether the field is in member events too.
fn is_in_rooms(name: &ProfileFieldName) -> bool {
    matches!(
        name,
        ProfileFieldName::DisplayName | ProfileFieldName::AvatarUrl
    )
}

async fn write_down(app: &App, write: Write) -> Result<()> {
    let mut change = Change::new();
    change.write(write);
    app.log.append(change).await?;
    Ok(())
}

/// The rooms hear of it even if the client does not wait for the answer.
async fn tell_rooms(app: &Arc<App>, requester: &Requester) -> Result<()> {
    let (app, sender) = (Arc::clone(app), Sender::of(requester));
    let spread = tokio::spawn(async move { profile::spread(&app, &sender).await });
    spread.await.map_err(Error::internal)?
}

/// "Common Namespaced Identifier Grammar", but for the three names that the specification has.
fn check_name(name: &ProfileFieldName) -> Result<()> {
    let name = name.as_str();
    if name.len() > KEY_BYTES {
        return Err(Error::new(
            StatusCode::BAD_REQUEST,
            ErrorKind::KeyTooLarge,
            format!("the name of a profile field has at most {KEY_BYTES} bytes"),
        ));
    }
    let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
    let is_good = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(is_plain)
        && name
            .split_once('.')
            .is_none_or(|(_, rest)| !rest.is_empty());
    if is_good && (name.contains('.') || matches!(name, "displayname" | "avatar_url")) {
        Ok(())
    } else {
        Err(Error::invalid_param("this is no name of a profile field"))
    }
}

fn check_value(value: &ProfileFieldValue) -> Result<()> {
    match value {
        ProfileFieldValue::DisplayName(name) if name.len() > DISPLAY_NAME_BYTES => {
            Err(Error::invalid_param(format!(
                "a display name has at most {DISPLAY_NAME_BYTES} bytes"
            )))
        }
        ProfileFieldValue::AvatarUrl(url)
            if url.as_str().len() > AVATAR_BYTES || url.as_str().contains('\0') =>
        {
            Err(Error::invalid_param(format!(
                "the URI of an avatar has at most {AVATAR_BYTES} bytes, and no null characters"
            )))
        }
        _ => Ok(()),
    }
}

/// Checks what the profile would be with this field in it.
async fn check_size(app: &App, user: UserNid, name: &str, json: &str) -> Result<()> {
    // Quotes, colon and comma of each field, and the braces.
    let field_bytes = |name: &str, json: &str| name.len() + json.len() + 4;
    let others: usize = profiles::get(&app.db, user)
        .await?
        .iter()
        .filter(|(field, _)| field != name)
        .map(|(field, json)| field_bytes(field, json))
        .sum();
    if others + field_bytes(name, json) + 1 > PROFILE_BYTES {
        return Err(Error::new(
            StatusCode::BAD_REQUEST,
            ErrorKind::ProfileTooLarge,
            format!("a profile has at most {PROFILE_BYTES} bytes"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_fields() {
        for good in ["displayname", "avatar_url", "m.tz", "org.example.a-b_c1"] {
            assert!(check_name(&good.into()).is_ok(), "{good}");
        }
        for bad in ["", "name", "Org.example", "1.a", "m.", "m.ä", "m. ", "m.\0"] {
            assert!(check_name(&bad.into()).is_err(), "{bad:?}");
        }
    }
}
