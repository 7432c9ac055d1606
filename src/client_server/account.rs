//! "Current account information", "Password management", "Account deactivation".

use std::sync::Arc;

use ruma::{
    api::client::{
        account::{ThirdPartyIdRemovalStatus, change_password, deactivate, whoami},
        uiaa::AuthType,
    },
    presence::PresenceState,
};

use crate::{
    app::App,
    auth::{self, Requester},
    error::{Error, Result},
    http::{Call, Routes},
    log::{AppendError, Change},
    presence,
    room::{append::Sender, membership},
    sessions,
    storage::{accounts, tokens},
    uiaa::{self, Task},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<whoami::v3::Request, _, _>(whoami)
        .interactive::<change_password::v3::Request, _, _>(change_password)
        .interactive::<deactivate::v3::Request, _, _>(deactivate)
}

/// `GET /_matrix/client/v3/account/whoami`
async fn whoami(_: Arc<App>, call: Call<whoami::v3::Request>) -> Result<whoami::v3::Response> {
    let requester = call.requester;
    let mut response = whoami::v3::Response::new(requester.user_id.clone(), requester.is_guest);
    response.device_id = Some(requester.device_id.clone());
    Ok(response)
}

/// Only somebody who is signed in can be asked for a password; e-mail, which would do without, is not supported.
fn signed_in(requester: Option<&Arc<Requester>>) -> Result<&Requester> {
    match requester {
        Some(requester) if requester.is_guest => Err(auth::guests_may_not()),
        Some(requester) => Ok(requester),
        None => Err(Error::missing_token("an access token is needed")),
    }
}

/// `POST /_matrix/client/v3/account/password`
async fn change_password(
    app: Arc<App>,
    call: Call<change_password::v3::Request>,
) -> Result<change_password::v3::Response> {
    let requester = signed_in(call.requester.as_ref())?;
    let task = Task {
        path: call.parts.uri.path(),
        body: &call.raw,
        requester: Some(requester),
        auth: call.body.auth.as_ref(),
    };
    uiaa::authenticate(&app, task, &[vec![AuthType::Password]]).await?;
    let hash = app.passwords.hash(call.body.new_password).await?;
    let mut change = Change::new();
    change.write(accounts::set_password(requester.user, &hash));
    let done = if call.body.logout_devices {
        for write in tokens::end(requester.user) {
            change.write(write);
        }
        sessions::end_all_with(&app, requester.user, Some(requester.device), change).await
    } else {
        app.log.append(change).await.map(drop).map_err(Error::from)
    };
    match done {
        Ok(()) => Ok(change_password::v3::Response::new()),
        Err(Error::Append(AppendError::Unexpected)) => {
            Err(Error::forbidden("the account was deactivated meanwhile"))
        }
        Err(error) => Err(error),
    }
}

/// `POST /_matrix/client/v3/account/deactivate`
///
/// No identity server knows anything of an account here, so there is nothing to unbind. The account is closed before
/// its rooms are left, so that nobody can bring it back meanwhile; if the server ends before they are, its next start
/// goes on.
async fn deactivate(
    app: Arc<App>,
    call: Call<deactivate::v3::Request>,
) -> Result<deactivate::v3::Response> {
    let requester = signed_in(call.requester.as_ref())?;
    let task = Task {
        path: call.parts.uri.path(),
        body: &call.raw,
        requester: Some(requester),
        auth: call.body.auth.as_ref(),
    };
    uiaa::authenticate(&app, task, &[vec![AuthType::Password]]).await?;
    sessions::deactivate(&app, requester.user, call.body.erase).await?;
    if call.body.erase {
        // What the user said of themselves last goes too.
        presence::set(&app, requester, &PresenceState::Offline, None).await?;
    }
    let sender = Sender::of(requester);
    // In a task of its own: a client that hangs up does not stop it half way.
    tokio::spawn(async move { membership::leave_all(&app, &sender).await })
        .await
        .map_err(Error::internal)??;
    Ok(deactivate::v3::Response::new(
        ThirdPartyIdRemovalStatus::Success,
    ))
}
