//! "Adding Account Administrative Contact Information": this server sends neither e-mail nor text messages, so nobody
//! has an address here, and whoever wants to add one is told so.

use std::sync::Arc;

use http::StatusCode;
use ruma::api::{
    IncomingRequest,
    client::account::{
        ThirdPartyIdRemovalStatus, add_3pid, bind_3pid, delete_3pid, get_3pids,
        request_3pid_management_token_via_email, request_3pid_management_token_via_msisdn,
        request_password_change_token_via_email, request_password_change_token_via_msisdn,
        request_registration_token_via_email, request_registration_token_via_msisdn, unbind_3pid,
    },
    error::ErrorKind,
};

use crate::{
    app::App,
    auth::Authenticate,
    error::{Error, Result},
    http::{Call, Routes},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<get_3pids::v3::Request, _, _>(get_3pids)
        .add::<add_3pid::v3::Request, _, _>(add_3pid)
        .add::<bind_3pid::v3::Request, _, _>(bind_3pid)
        .add::<delete_3pid::v3::Request, _, _>(delete_3pid)
        .add::<unbind_3pid::v3::Request, _, _>(unbind_3pid)
        .add::<request_3pid_management_token_via_email::v3::Request, _, _>(no_such_medium)
        .add::<request_3pid_management_token_via_msisdn::v3::Request, _, _>(no_such_medium)
        .add::<request_password_change_token_via_email::v3::Request, _, _>(no_such_medium)
        .add::<request_password_change_token_via_msisdn::v3::Request, _, _>(no_such_medium)
        .add::<request_registration_token_via_email::v3::Request, _, _>(no_such_medium)
        .add::<request_registration_token_via_msisdn::v3::Request, _, _>(no_such_medium)
}

/// `GET /_matrix/client/v3/account/3pid`
async fn get_3pids(
    _: Arc<App>,
    _: Call<get_3pids::v3::Request>,
) -> Result<get_3pids::v3::Response> {
    Ok(get_3pids::v3::Response::new(Vec::new()))
}

/// `POST /_matrix/client/v3/account/3pid/add`
///
/// No validation session was ever begun here, so none can have succeeded.
async fn add_3pid(_: Arc<App>, _: Call<add_3pid::v3::Request>) -> Result<add_3pid::v3::Response> {
    Err(Error::new(
        StatusCode::BAD_REQUEST,
        ErrorKind::ThreepidAuthFailed,
        "this address was not validated here",
    ))
}

/// `POST /_matrix/client/v3/account/3pid/bind`
async fn bind_3pid(
    _: Arc<App>,
    _: Call<bind_3pid::v3::Request>,
) -> Result<bind_3pid::v3::Response> {
    Err(Error::new(
        StatusCode::FORBIDDEN,
        ErrorKind::ThreepidDenied,
        "this server speaks to no identity server",
    ))
}

/// `POST /_matrix/client/v3/account/3pid/delete`
///
/// What is not there is deleted already.
async fn delete_3pid(
    _: Arc<App>,
    _: Call<delete_3pid::v3::Request>,
) -> Result<delete_3pid::v3::Response> {
    let status = ThirdPartyIdRemovalStatus::NoSupport;
    Ok(delete_3pid::v3::Response::new(status))
}

/// `POST /_matrix/client/v3/account/3pid/unbind`
async fn unbind_3pid(
    _: Arc<App>,
    _: Call<unbind_3pid::v3::Request>,
) -> Result<unbind_3pid::v3::Response> {
    let status = ThirdPartyIdRemovalStatus::NoSupport;
    Ok(unbind_3pid::v3::Response::new(status))
}

/// `POST /_matrix/client/v3/{account/3pid,account/password,register}/{email,msisdn}/requestToken`
async fn no_such_medium<R>(_: Arc<App>, _: Call<R>) -> Result<R::OutgoingResponse>
where
    R: IncomingRequest<Authentication: Authenticate>,
{
    Err(Error::new(
        StatusCode::BAD_REQUEST,
        ErrorKind::ThreepidMediumNotSupported,
        "this server sends neither e-mail nor text messages",
    ))
}
