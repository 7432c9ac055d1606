//! "Current account information", "Password management", "Account deactivation".

use std::sync::Arc;

use ruma::api::client::{
    account::{ThirdPartyIdRemovalStatus, change_password, deactivate, whoami},
    uiaa::AuthType,
};

use crate::{
    app::App,
    auth::{self, Requester},
    error::{Error, Result},
    http::{Call, Routes},
    log::{AppendError, Change},
    room::{append::Sender, membership},
    sessions,
    storage::{Member, Membership, accounts, members},
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
    match app.log.append(change).await {
        Ok(_) => {}
        Err(AppendError::Unexpected) => {
            return Err(Error::forbidden("the account was deactivated meanwhile"));
        }
        Err(error) => return Err(error.into()),
    }
    if call.body.logout_devices {
        sessions::end_all(&app, requester.user, Some(requester.device)).await?;
    }
    Ok(change_password::v3::Response::new())
}

/// `POST /_matrix/client/v3/account/deactivate`
///
/// No identity server knows anything of an account here, so there is nothing to unbind. The account is closed before
/// its rooms are left, so that nobody can bring it back meanwhile.
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
    let sender = Sender::of(requester);
    // In a task of its own: a client that hangs up does not stop it half way.
    tokio::spawn(async move { leave_all(&app, &sender).await })
        .await
        .map_err(Error::internal)??;
    Ok(deactivate::v3::Response::new(
        ThirdPartyIdRemovalStatus::Success,
    ))
}

/// Leaves all rooms, rejects all invites and takes back all knocks.
async fn leave_all(app: &App, sender: &Sender) -> Result<()> {
    let stays = |member: &Member| matches!(member.membership, Membership::Leave | Membership::Ban);
    let mut members = members::of_user(&app.db, sender.user).await?;
    members.retain(|member| !stays(member));
    let nids: Vec<_> = members.iter().map(|member| member.room).collect();
    let rooms = app.rooms.many(&app.db, || app.log.head(), &nids).await?;
    for room in rooms.values() {
        if let Err(error) = membership::leave(app, room, sender, None).await {
            tracing::warn!(%error, room = %room.id, "a deactivated user stays in a room");
        }
    }
    Ok(())
}
