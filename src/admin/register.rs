//! Registration with a secret that the server and a tool share ("Register using a shared secret" in Synapse's manual).

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    routing::get,
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::StatusCode;
use ruma::api::error::ErrorKind;
use serde::Deserialize;
use serde_json::{Value, json};
use sha1::Sha1;

use crate::{
    accounts::{self, NewAccount},
    app::App,
    error::{Error, Result},
    http::Routes,
    listen::ClientAddress,
    rate_limit::{self, Class},
    sessions::{self, SignIn},
};

/// The largest body, in bytes.
const BODY: usize = 32 << 10;
/// Digits of an HMAC-SHA1.
const MAC_DIGITS: usize = 40;

pub(super) fn routes() -> Routes {
    Routes::new().other(
        "/_synapse/admin/v1/register",
        get(give_nonce).post(register),
    )
}

fn secret(app: &App) -> Result<&str> {
    match &app.config.registration.shared_secret {
        Some(secret) => Ok(secret.reveal()),
        None => Err(Error::refused(
            "registration with a shared secret is not enabled",
        )),
    }
}

/// `GET /_synapse/admin/v1/register`
///
/// A nonce, good for one registration within a minute.
async fn give_nonce(State(app): State<Arc<App>>, request: Request) -> Result<Json<Value>> {
    secret(&app)?;
    // Only so many are kept, and nobody is to push those of others out.
    let address = request.extensions().get::<ClientAddress>().map(|a| a.0);
    rate_limit::check(&app, Class::Messages, address)?;
    Ok(Json(json!({ "nonce": app.nonces.give(app.clock.now()) })))
}

#[derive(Deserialize)]
struct Body {
    nonce: String,
    username: String,
    password: String,
    #[serde(default)]
    admin: bool,
    user_type: Option<String>,
    displayname: Option<String>,
    #[serde(default)]
    inhibit_login: bool,
    mac: String,
}

/// `POST /_synapse/admin/v1/register`
async fn register(State(app): State<Arc<App>>, request: Request) -> Result<Json<Value>> {
    let secret = secret(&app)?;
    let (parts, body) = request.into_parts();
    let address = parts.extensions.get::<ClientAddress>().map(|a| a.0);
    let body = read(&app.bodies.read(body, BODY).await?.0)?;
    if !app.nonces.take(&body.nonce, app.clock.now()) {
        // Limited here, because a tool that knows the secret may make many accounts.
        rate_limit::check(&app, Class::Registration, address)?;
        return Err(Error::refused("unrecognised nonce"));
    }
    if !is_signed(secret, &body)? {
        rate_limit::check(&app, Class::Registration, address)?;
        return Err(Error::new(
            StatusCode::FORBIDDEN,
            ErrorKind::Unknown,
            "HMAC incorrect",
        ));
    }
    if let Some(kind) = &body.user_type
        && !["bot", "support"].contains(&kind.as_str())
    {
        return Err(Error::invalid_param("`user_type` is `bot` or `support`"));
    }
    let user_id = accounts::new_user_id(&app, &body.username)?;
    accounts::expect_free(&app, &user_id).await?;
    let new = NewAccount {
        password_hash: Some(app.passwords.hash(body.password).await?),
        is_admin: body.admin,
        display_name: body.displayname.filter(|name| !name.is_empty()),
        user_type: body.user_type,
        ..NewAccount::new(&user_id)
    };
    let user = accounts::create(&app, new).await?;
    let mut answer = json!({ "user_id": user_id, "home_server": app.name() });
    if !body.inhibit_login {
        let (device_id, tokens) = sessions::sign_in(&app, user, SignIn::default()).await?;
        answer["device_id"] = json!(device_id);
        answer["access_token"] = json!(tokens.access);
    }
    Ok(Json(answer))
}

fn read(raw: &[u8]) -> Result<Body> {
    let json: Value = serde_json::from_slice(raw).map_err(|e| Error::not_json(e.to_string()))?;
    for key in ["nonce", "username", "password", "mac"] {
        if json.get(key).is_none() {
            return Err(Error::missing_param(format!("`{key}` is missing")));
        }
    }
    serde_json::from_value(json).map_err(|error| Error::bad_json(error.to_string()))
}

/// Whether the one who asks knows the secret: `mac` is the HMAC-SHA1, in hexadecimal, over the other values with a
/// zero byte between them.
fn is_signed(secret: &str, body: &Body) -> Result<bool> {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).map_err(Error::internal)?;
    let admin = if body.admin { "admin" } else { "notadmin" };
    let kind = body.user_type.as_deref();
    let parts = [&*body.nonce, &body.username, &body.password, admin];
    for (index, part) in parts.into_iter().chain(kind).enumerate() {
        if index > 0 {
            mac.update(b"\0");
        }
        mac.update(part.as_bytes());
    }
    if body.mac.len() != MAC_DIGITS || !body.mac.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(false);
    }
    let given: Option<Vec<u8>> = (0..MAC_DIGITS / 2)
        .map(|index| u8::from_str_radix(&body.mac[2 * index..][..2], 16).ok())
        .collect();
    Ok(given.is_some_and(|given| mac.verify_slice(&given).is_ok()))
}
