//! "Third-party invites".

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use homing_federation::strict_json;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomId, OwnedUserId, UserId,
    api::federation::thirdparty::{bind_callback, exchange_invite},
    events::StateEventType,
};
use serde::Deserialize;

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    rate_limit::{self, Class},
    room::{
        resident,
        third_party_invite::{self, Bound, Proof},
    },
    storage,
};

/// How many invitations are looked at that an identity server tells of at once.
const MAX_INVITES: usize = 50;
/// How many of them at the same time.
const AT_ONCE: usize = 5;

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<exchange_invite::v1::Request, _, _>(exchange_invite)
        .add::<bind_callback::v1::Request, _, _>(bind_callback)
}

/// `PUT /_matrix/federation/v1/exchange_third_party_invite/{roomId}`
///
/// Of the event nothing is taken but who invites whom, and what the identity server has signed.
async fn exchange_invite(
    app: Arc<App>,
    call: Call<exchange_invite::v1::Request>,
) -> Result<exchange_invite::v1::Response> {
    #[derive(Deserialize)]
    struct Body {
        room_id: Option<OwnedRoomId>,
    }
    let (request, origin) = (call.body, &call.requester.server);
    let body: Body =
        serde_json::from_slice(&call.raw).map_err(|error| Error::bad_json(error.to_string()))?;
    if body.room_id.is_some_and(|room| room != request.room_id) {
        return Err(Error::invalid_param("the event is of another room"));
    }
    let content = strict_json(request.content.json().get().as_bytes())?;
    let membership = content.get("membership");
    let membership = membership.and_then(CanonicalJsonValue::as_str);
    if request.kind != StateEventType::RoomMember || membership != Some("invite") {
        return Err(Error::invalid_param("the event is no invite"));
    }
    let proof = Proof::read(signed(content)?)?;
    if proof.user() != request.state_key {
        return Err(Error::invalid_param("the proof is of another user"));
    }
    if request.state_key.server_name() != origin {
        let message = format!("{} is not of {origin}", request.state_key);
        return Err(Error::invalid_param(message));
    }
    let room = resident::room(&app, &request.room_id, origin).await?;
    if !app.is_local(&request.sender) {
        let message = format!("{} is not of this server", request.sender);
        return Err(Error::forbidden(message));
    }
    third_party_invite::exchange(&app, &room, &request.sender, proof).await?;
    Ok(exchange_invite::v1::Response::new())
}

/// What an identity server has signed, from the content of an invite.
fn signed(mut content: CanonicalJsonObject) -> Result<CanonicalJsonObject> {
    let invite = content.remove("third_party_invite");
    if let Some(CanonicalJsonValue::Object(mut invite)) = invite
        && let Some(CanonicalJsonValue::Object(signed)) = invite.remove("signed")
    {
        return Ok(signed);
    }
    Err(Error::invalid_param("the invite has no proof"))
}

/// `PUT /_matrix/federation/v1/3pid/onbind`
///
/// Anybody can send this, so it says nothing but where to ask: the room's own state, or the server of who has invited,
/// tells whether there is anything to it.
async fn bind_callback(
    app: Arc<App>,
    call: Call<bind_callback::v1::Request>,
) -> Result<bind_callback::v1::Response> {
    let request = call.body;
    let user = local_user(&app, request.mxid).await?;
    let _one_at_a_time = app.remote.bound.turn(user.clone()).await;
    let invites = request.invites.into_iter().take(MAX_INVITES);
    let bound = invites.filter_map(|invite| {
        let signed = strict_json(invite.signed.json().get().as_bytes()).ok()?;
        let proof = Proof::read(signed).ok()?;
        let is_theirs = invite.mxid == user && proof.user() == user;
        is_theirs.then_some(Bound {
            room: invite.room_id,
            inviter: invite.sender,
            proof,
        })
    });
    let app = &app;
    stream::iter(bound)
        .for_each_concurrent(AT_ONCE, async |bound| {
            let room = bound.room.clone();
            if let Err(error) = third_party_invite::claim(app, bound).await {
                tracing::info!(%room, %error, "an invitation by address cannot be taken up");
            }
        })
        .await;
    Ok(bind_callback::v1::Response::new())
}

/// Somebody with an account here who was not invited too often.
async fn local_user(app: &App, user: OwnedUserId) -> Result<OwnedUserId> {
    let unknown = |user: &UserId| Error::not_found(format!("{user} has no account here"));
    if !app.is_local(&user) {
        return Err(unknown(&user));
    }
    let nid = app.names.find_user(&app.db, &user).await?;
    let nid = nid.ok_or_else(|| unknown(&user))?;
    if !storage::accounts::is_active(&app.db, nid).await? {
        return Err(unknown(&user));
    }
    rate_limit::check(app, Class::InvitesFromElsewhere, nid)?;
    Ok(user)
}
