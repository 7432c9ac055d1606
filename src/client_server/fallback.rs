//! "Fallback" of the "User-Interactive Authentication API": pages on which a stage is passed in a browser, for clients
//! that do not know it.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Form,
    body::{Body, to_bytes},
    extract::{FromRequest as _, RawPathParams, Request, State},
    response::{Html, IntoResponse as _, Response},
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue, StatusCode, header};
use ruma::api::client::uiaa::{AuthType, get_uiaa_fallback_page::v3};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use crate::{
    app::App,
    error::{Error, Result},
    http::{Routes, parse},
    listen::ClientAddress,
    rate_limit::{self, Class},
    uiaa,
};

/// The most that a form may have, in bytes.
const FORM_BYTES: usize = 16 << 10;
/// How long it may take to arrive.
const FORM_TIME: Duration = Duration::from_secs(30);

/// What tells the client that the stage is passed; the specification has these very words.
const SCRIPT: &str = r#"
if (window.onAuthDone) {
    window.onAuthDone();
} else if (window.opener && window.opener.postMessage) {
    window.opener.postMessage("authDone", "*");
}
"#;

pub(super) fn routes() -> Routes {
    Routes::new().raw::<v3::Request>(get(page).post(enter))
}

/// `GET /_matrix/client/v3/auth/{authType}/fallback/web`
async fn page(
    State(app): State<Arc<App>>,
    params: RawPathParams,
    request: Request,
) -> Result<Response> {
    let (parts, _) = request.into_parts();
    let wanted: v3::Request = parse(&parts, &params, &[])?;
    let form = form(&wanted.auth_type)?;
    expect_session(&app, &wanted)?;
    answer(StatusCode::OK, form)
}

/// What somebody has entered on a page.
#[derive(Deserialize)]
struct Entered {
    #[serde(default)]
    token: String,
    #[serde(default)]
    password: String,
}

/// `POST` to the same path: what the page's form sends.
async fn enter(
    State(app): State<Arc<App>>,
    params: RawPathParams,
    request: Request,
) -> Result<Response> {
    let (mut parts, body) = request.into_parts();
    let read = timeout(FORM_TIME, to_bytes(body, FORM_BYTES)).await;
    let read = read.map_err(|_| Error::refused("the form took too long to arrive"))?;
    let read = read.map_err(|_| Error::too_large("the form is too large"))?;
    // The page is asked for with GET; the rest of the request is the same.
    let method = std::mem::replace(&mut parts.method, http::Method::GET);
    let wanted: v3::Request = parse(&parts, &params, &[])?;
    parts.method = method;
    let address = parts.extensions.get::<ClientAddress>().map(|a| a.0);
    let request = Request::from_parts(parts, Body::from(read));
    let Form(entered) = Form::<Entered>::from_request(request, &())
        .await
        .map_err(|_| Error::refused("this is not what the page sends"))?;
    let form = form(&wanted.auth_type)?;
    expect_session(&app, &wanted)?;
    match pass(&app, wanted, entered, address).await {
        Ok(()) => answer(StatusCode::OK, &format!("{DONE}<script>{SCRIPT}</script>")),
        Err(error) if error.has_status(StatusCode::FORBIDDEN) => {
            let again = format!("<p role=\"alert\">This is not right.</p>{form}");
            answer(StatusCode::FORBIDDEN, &again)
        }
        Err(error) => Err(error),
    }
}

fn expect_session(app: &App, wanted: &v3::Request) -> Result<()> {
    let (session, stage) = (&wanted.session, &wanted.auth_type);
    if app.uiaa.waits_for(session, stage, app.clock.now()) {
        return Ok(());
    }
    Err(Error::not_found(
        "this page has expired; go back to where you came from and try again",
    ))
}

async fn pass(
    app: &App,
    wanted: v3::Request,
    entered: Entered,
    address: Option<IpAddr>,
) -> Result<()> {
    let secret = if wanted.auth_type == AuthType::RegistrationToken {
        rate_limit::check(app, Class::Registration, address)?;
        entered.token
    } else {
        entered.password
    };
    uiaa::pass_in_browser(app, &wanted.session, &wanted.auth_type, secret).await
}

const DONE: &str =
    "<p>Thank you. You can close this window and go back to where you came from.</p>";

/// What is asked on the page of a stage.
fn form(stage: &AuthType) -> Result<&'static str> {
    match stage {
        AuthType::Dummy => Ok("<form method=\"post\"><button>Continue</button></form>"),
        AuthType::RegistrationToken => Ok("<form method=\"post\"><label>Registration token \
             <input name=\"token\" autocomplete=\"off\" required autofocus></label> \
             <button>Continue</button></form>"),
        AuthType::Password => Ok("<form method=\"post\"><label>Your password \
             <input name=\"password\" type=\"password\" autocomplete=\"current-password\" required autofocus>\
             </label> <button>Continue</button></form>"),
        _ => Err(Error::not_found("there is no page for this stage")),
    }
}

/// A page with this in it. No script but the one above runs on it, it loads nothing, and no other page may frame it.
fn answer(status: StatusCode, content: &str) -> Result<Response> {
    let html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Authentication</title></head>\
         <body><main><h1>Authentication</h1>{content}</main></body></html>\n"
    );
    let script = STANDARD.encode(Sha256::digest(SCRIPT.as_bytes()));
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{script}'; form-action 'self'; base-uri 'none'; \
         frame-ancestors 'none'"
    );
    let mut response = (status, Html(html)).into_response();
    let mut set = |name: HeaderName, value: HeaderValue| response.headers_mut().insert(name, value);
    let policy = HeaderValue::try_from(policy).map_err(Error::internal)?;
    set(header::CONTENT_SECURITY_POLICY, policy);
    set(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // The address has the session in it.
    set(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    let nosniff = HeaderValue::from_static("nosniff");
    set(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    Ok(response)
}
