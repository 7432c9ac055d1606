//! "Login", "Refreshing access tokens", "Soft logout".

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{RawPathParams, Request, State},
    response::Response,
    routing::post,
};
use ruma::{
    OwnedUserId,
    api::client::{
        session::{
            get_login_token, get_login_types,
            login::{
                self,
                v3::{DiscoveryInfo, HomeserverInfo, LoginInfo},
            },
            logout, logout_all, refresh_token,
        },
        uiaa::AuthType,
    },
};
use serde_json::Value;

use crate::{
    accounts,
    app::App,
    auth::{self, hash_token, new_token},
    error::{Error, Result},
    http::{self as edge, Call, Routes},
    listen::ClientAddress,
    log::{AppendError, Change},
    rate_limit::{self, Class},
    sessions::{self, SignIn},
    storage::{UserNid, accounts::Account, tokens},
    uiaa::{self, Task},
};

/// How long a token for one login is valid.
const LOGIN_TOKEN_LIFETIME: Duration = Duration::from_mins(2);
/// The largest body of a login, in bytes.
const LOGIN_BODY: usize = 32 << 10;

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<get_login_types::v3::Request, _, _>(get_login_types)
        .raw::<login::v3::Request>(post(login))
        .interactive::<get_login_token::v1::Request, _, _>(get_login_token)
        .add::<refresh_token::v3::Request, _, _>(refresh_token)
        .add::<logout::v3::Request, _, _>(logout)
        .add::<logout_all::v3::Request, _, _>(logout_all)
}

/// `GET /_matrix/client/v3/login`
async fn get_login_types(
    app: Arc<App>,
    _: Call<get_login_types::v3::Request>,
) -> Result<get_login_types::v3::Response> {
    use get_login_types::v3::{
        ApplicationServiceLoginType, LoginType, PasswordLoginType, TokenLoginType,
    };
    let mut token = TokenLoginType::new();
    token.get_login_token = true;
    let mut types = vec![
        LoginType::Password(PasswordLoginType::new()),
        LoginType::Token(token),
    ];
    if !app.services.is_empty() {
        let service = ApplicationServiceLoginType::new();
        types.push(LoginType::ApplicationService(service));
    }
    Ok(get_login_types::v3::Response::new(types))
}

/// `POST /_matrix/client/v3/login`
async fn login(
    State(app): State<Arc<App>>,
    params: RawPathParams,
    request: Request,
) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let (raw, _share) = app.bodies.read(body, LOGIN_BODY).await?;
    // Ruma panics where there is no type.
    let json: Value = serde_json::from_slice(&raw).map_err(|e| Error::not_json(e.to_string()))?;
    match json.get("type") {
        Some(Value::String(_)) => {}
        Some(_) => return Err(Error::bad_json("`type` is not a text")),
        None => return Err(Error::missing_param("`type` is missing")),
    }
    let body = edge::parse::<login::v3::Request>(&parts, &params, &raw)?;
    let address = parts.extensions.get::<ClientAddress>().map(|a| a.0);
    rate_limit::check(&app, Class::LoginPerAddress, address)?;
    let mut sign_in = SignIn {
        device_id: body.device_id,
        display_name: body.initial_device_display_name,
        refresh: body.refresh_token,
        password_hash: None,
    };
    sessions::check(&sign_in)?;
    let user = match body.login_info {
        LoginInfo::Password(password) => {
            let account = by_password(&app, password)
                .await
                .inspect_err(|error| tracing::info!(?address, %error, "a login failed"))?;
            sign_in.password_hash = account.password_hash;
            account.user
        }
        LoginInfo::Token(token) => by_token(&app, &token.token).await?,
        LoginInfo::ApplicationService(login) => by_service(&app, &parts, &login).await?,
        _ => return Err(Error::refused("this login type is not known here")),
    };
    let (device_id, tokens) = sessions::sign_in(&app, user, sign_in).await?;
    let user_id: OwnedUserId = app.names.user_id(&app.db, user).await?;
    let mut response = login::v3::Response::new(user_id, tokens.access, device_id);
    response.refresh_token = tokens.refresh;
    response.expires_in = tokens.expires_in;
    response.well_known = app
        .config
        .well_known
        .client_base_url
        .clone()
        .map(|url| DiscoveryInfo::new(HomeserverInfo::new(url)));
    edge::respond(response)
}

#[expect(deprecated, reason = "old clients send `user`")]
async fn by_password(app: &App, login: login::v3::Password) -> Result<Account> {
    let account = match (&login.identifier, &login.user) {
        (Some(identifier), _) => accounts::identified(app, identifier).await?,
        (None, Some(user)) => accounts::named(app, user).await?,
        (None, None) if login.address.is_some() => None,
        (None, None) => return Err(Error::missing_param("`identifier` is missing")),
    };
    if let Some(account) = &account {
        rate_limit::check(app, Class::LoginPerAccount, account.user)?;
    }
    sessions::check_password(app, account, login.password).await
}

#[expect(deprecated, reason = "old clients send `user`")]
async fn by_service(
    app: &App,
    parts: &http::request::Parts,
    login: &login::v3::ApplicationService,
) -> Result<UserNid> {
    let token = auth::sent_token(parts);
    let service = app.services.authenticate(token.as_deref())?;
    let account = match (&login.identifier, &login.user) {
        (Some(identifier), _) => accounts::identified(app, identifier).await?,
        (None, Some(user)) => accounts::named(app, user).await?,
        (None, None) => return Err(Error::missing_param("`identifier` is missing")),
    };
    let account = account.ok_or_else(|| Error::forbidden("there is no such user"))?;
    let user_id = app.names.user_id(&app.db, account.user).await?;
    service.expect_own(&user_id)?;
    Ok(account.user)
}

async fn by_token(app: &App, token: &str) -> Result<UserNid> {
    let refused = || Error::forbidden("this login token is not valid (any more)");
    let hash = hash_token(token);
    let (user, expires) = tokens::login(&app.db, &hash).await?.ok_or_else(refused)?;
    if expires <= app.clock.now() {
        return Err(refused());
    }
    let mut change = Change::new();
    change.write(tokens::use_login(&hash));
    match app.log.append(change).await {
        Ok(_) => Ok(user),
        Err(AppendError::Unexpected) => Err(refused()),
        Err(error) => Err(error.into()),
    }
}

/// `POST /_matrix/client/v1/login/get_token`
async fn get_login_token(
    app: Arc<App>,
    call: Call<get_login_token::v1::Request>,
) -> Result<get_login_token::v1::Response> {
    let requester = &call.requester;
    let task = Task {
        path: call.parts.uri.path(),
        body: &call.raw,
        requester: Some(requester),
        auth: call.body.auth.as_ref(),
    };
    uiaa::authenticate(&app, task, &[vec![AuthType::Password]]).await?;
    let token = new_token("login");
    let now = app.clock.now();
    let lifetime = i64::try_from(LOGIN_TOKEN_LIFETIME.as_millis()).map_err(Error::internal)?;
    let mut change = Change::new();
    for write in tokens::add_login(&hash_token(&token), requester.user, now + lifetime, now) {
        change.write(write);
    }
    app.log.append(change).await?;
    Ok(get_login_token::v1::Response::new(
        LOGIN_TOKEN_LIFETIME,
        token,
    ))
}

/// `POST /_matrix/client/v3/refresh`
async fn refresh_token(
    app: Arc<App>,
    call: Call<refresh_token::v3::Request>,
) -> Result<refresh_token::v3::Response> {
    rate_limit::check(&app, Class::Refreshes, call.address())?;
    let tokens = sessions::refresh(&app, &call.body.refresh_token).await?;
    let mut response = refresh_token::v3::Response::new(tokens.access);
    response.refresh_token = tokens.refresh;
    response.expires_in_ms = tokens.expires_in;
    Ok(response)
}

/// `POST /_matrix/client/v3/logout`
async fn logout(app: Arc<App>, call: Call<logout::v3::Request>) -> Result<logout::v3::Response> {
    sessions::end_devices(&app, &[call.requester.device]).await?;
    Ok(logout::v3::Response::new())
}

/// `POST /_matrix/client/v3/logout/all`
async fn logout_all(
    app: Arc<App>,
    call: Call<logout_all::v3::Request>,
) -> Result<logout_all::v3::Response> {
    sessions::end_all(&app, call.requester.user, None).await?;
    Ok(logout_all::v3::Response::new())
}
