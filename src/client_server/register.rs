//! "Account registration", "Token-authenticated registration".

use std::sync::Arc;

use http::StatusCode;
use ruma::api::{
    client::{
        account::{
            check_registration_token_validity, get_username_availability,
            register::{self, LoginType, RegistrationKind},
        },
        uiaa::AuthType,
    },
    error::ErrorKind,
};

use crate::{
    accounts::{self, NewAccount, Ticket},
    app::App,
    auth::{self, Requester},
    config::RegistrationMode,
    error::{Error, Result},
    http::{Call, Routes},
    rate_limit::{self, Class},
    sessions::{self, SignIn},
    storage::{UserNid, tokens},
    uiaa::{self, Task},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .interactive::<register::v3::Request, _, _>(register)
        .add::<get_username_availability::v3::Request, _, _>(get_username_availability)
        .add::<check_registration_token_validity::v1::Request, _, _>(
            check_registration_token_validity,
        )
        .without_nulls()
}

/// `POST /_matrix/client/v3/register`
///
/// The name is checked at once, the password only when everything else is done, because that takes time.
async fn register(
    app: Arc<App>,
    call: Call<register::v3::Request>,
) -> Result<register::v3::Response> {
    match (&call.body.login_type, &call.body.kind) {
        (Some(LoginType::ApplicationService), _) => {
            return register_for_service(&app, &call).await;
        }
        (Some(_), _) => return Err(Error::refused("this login type is not known here")),
        (None, RegistrationKind::Guest) => return register_guest(&app, &call).await,
        (None, RegistrationKind::User) => {}
        (None, _) => return Err(Error::invalid_param("this kind of account is not known")),
    }
    let flows = flows(&app).await?;
    if flows.is_empty() {
        return Err(Error::forbidden("registration is closed"));
    }
    if call.body.auth.is_some() {
        rate_limit::check(&app, Class::Registration, call.address())?;
    }
    let guest = upgraded(&app, &call.body).await?;
    let user_id = match (&guest, &call.body.username) {
        (Some(guest), _) => guest.user_id.clone(),
        (None, Some(name)) => accounts::new_user_id(&app, name)?,
        (None, None) => accounts::any_user_id(&app, false)?,
    };
    if guest.is_none() {
        accounts::expect_free(&app, &user_id).await?;
    }
    let sign_in = sign_in(&call.body);
    sessions::check(&sign_in)?;
    let task = Task {
        path: call.parts.uri.path(),
        body: &call.raw,
        requester: None,
        auth: call.body.auth.as_ref(),
    };
    let passed = uiaa::authenticate(&app, task, &flows).await?;
    let Some(password) = call.body.password.clone() else {
        return Err(Error::missing_param("a password is needed"));
    };
    let hash = app.passwords.hash(password).await?;
    let ticket = passed.ticket.unwrap_or(Ticket::Free);
    let user = if let Some(guest) = guest {
        accounts::upgrade_guest(&app, guest.user, &hash, &ticket).await?;
        guest.user
    } else {
        let new = NewAccount {
            password_hash: Some(hash),
            ticket,
            ..NewAccount::new(&user_id)
        };
        accounts::create(&app, new).await?
    };
    answer(
        &app,
        &call.body,
        user,
        register::v3::Response::new(user_id),
        sign_in,
    )
    .await
}

/// The guest who wants an account of their own, under their name ("Guest Access").
async fn upgraded(app: &App, body: &register::v3::Request) -> Result<Option<Arc<Requester>>> {
    let Some(token) = &body.guest_access_token else {
        return Ok(None);
    };
    let guest = auth::requester(app, token).await?;
    if !guest.is_guest {
        return Err(Error::forbidden("this token is not a guest's"));
    }
    match &body.username {
        Some(name) if name == guest.user_id.localpart() => Ok(Some(guest)),
        Some(_) => Err(Error::invalid_param("a guest keeps the name")),
        None => Err(Error::missing_param("a guest gives the name again")),
    }
}

/// An application service proves itself by its token, and its users need no password.
async fn register_for_service(
    app: &App,
    call: &Call<register::v3::Request>,
) -> Result<register::v3::Response> {
    let token = auth::sent_token(&call.parts);
    let service = app.services.authenticate(token.as_deref())?;
    let Some(name) = &call.body.username else {
        return Err(Error::missing_param("`username` is missing"));
    };
    let user_id = accounts::service_user_id(app, name)?;
    service.expect_own(&user_id)?;
    accounts::expect_free(app, &user_id).await?;
    let sign_in = sign_in(&call.body);
    sessions::check(&sign_in)?;
    let user = accounts::create(app, NewAccount::new(&user_id)).await?;
    let response = register::v3::Response::new(user_id);
    answer(app, &call.body, user, response, sign_in).await
}

/// A guest needs no password and proves nothing, and may ask for neither a name nor a device.
async fn register_guest(
    app: &App,
    call: &Call<register::v3::Request>,
) -> Result<register::v3::Response> {
    if !app.config.registration.guests {
        return Err(Error::new(
            StatusCode::FORBIDDEN,
            ErrorKind::GuestAccessForbidden,
            "there are no guests here",
        ));
    }
    rate_limit::check(app, Class::Registration, call.address())?;
    let user_id = accounts::any_user_id(app, true)?;
    let new = NewAccount {
        is_guest: true,
        ..NewAccount::new(&user_id)
    };
    let user = accounts::create(app, new).await?;
    let sign_in = SignIn {
        device_id: None,
        ..sign_in(&call.body)
    };
    answer(
        app,
        &call.body,
        user,
        register::v3::Response::new(user_id),
        sign_in,
    )
    .await
}

fn sign_in(body: &register::v3::Request) -> SignIn {
    SignIn {
        device_id: body.device_id.clone(),
        display_name: body.initial_device_display_name.clone(),
        refresh: body.refresh_token,
        password_hash: None,
    }
}

async fn answer(
    app: &App,
    body: &register::v3::Request,
    user: UserNid,
    mut response: register::v3::Response,
    sign_in: SignIn,
) -> Result<register::v3::Response> {
    if !body.inhibit_login {
        let (device_id, tokens) = sessions::sign_in(app, user, sign_in).await?;
        response.device_id = Some(device_id);
        response.access_token = Some(tokens.access);
        response.refresh_token = tokens.refresh;
        response.expires_in = tokens.expires_in;
    }
    Ok(response)
}

/// How an account can be made now. An administrator can be made even where registration is closed, as long as there is none.
async fn flows(app: &App) -> Result<Vec<Vec<AuthType>>> {
    let mut flows = Vec::new();
    let mode = app.config.registration.mode;
    if mode == RegistrationMode::Open {
        flows.push(vec![AuthType::Dummy]);
    }
    if mode == RegistrationMode::Token || tokens::first(&app.db).await?.is_some() {
        flows.push(vec![AuthType::RegistrationToken]);
    }
    Ok(flows)
}

/// `GET /_matrix/client/v3/register/available`
async fn get_username_availability(
    app: Arc<App>,
    call: Call<get_username_availability::v3::Request>,
) -> Result<get_username_availability::v3::Response> {
    // Clients ask with every letter, so this is limited as messages are.
    rate_limit::check(&app, Class::Messages, call.address())?;
    let user_id = accounts::new_user_id(&app, &call.body.username)?;
    accounts::expect_free(&app, &user_id).await?;
    Ok(get_username_availability::v3::Response::new(true))
}

/// `GET /_matrix/client/v1/register/m.login.registration_token/validity`
async fn check_registration_token_validity(
    app: Arc<App>,
    call: Call<check_registration_token_validity::v1::Request>,
) -> Result<check_registration_token_validity::v1::Response> {
    rate_limit::check(&app, Class::Registration, call.address())?;
    if flows(&app).await?.is_empty() {
        return Err(Error::forbidden("registration is closed"));
    }
    let ticket = accounts::ticket(&app, &call.body.token).await?;
    Ok(check_registration_token_validity::v1::Response::new(
        ticket.is_some(),
    ))
}
