//! Invitations of people whose user id was not known: a `m.room.third_party_invite` becomes an invite when an identity
//! server has found out whose address it was ("Third-party invites").

use std::{sync::Arc, time::Duration};

use homing_federation::{
    VerifyKey,
    client::{Client, Limits},
};
use http::Uri;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomId, OwnedUserId, UserId,
    events::{StateEventType, room::member::MembershipState},
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    append::{NewEvent, Sender, append},
    head,
    membership::{self, bare_content},
};
use crate::{
    app::App,
    error::{Error, Result},
    rooms::Room,
    storage::Membership,
};

/// How many keys of an invitation are looked at.
const MAX_KEYS: usize = 10;
/// The longest token, being a state key.
const MAX_TOKEN: usize = 255;
/// What an identity server's answer about a key may cost.
const KEY_LIMITS: Limits = Limits {
    time: Duration::from_secs(10),
    bytes: 16 << 10,
};
/// The same for the answer of the server of who has invited.
const EXCHANGE_LIMITS: Limits = Limits {
    time: Duration::from_secs(20),
    bytes: 64 << 10,
};

/// What an identity server has signed: that the person with an address is a user.
#[derive(Clone, Debug)]
pub struct Proof {
    token: String,
    user: OwnedUserId,
    signed: CanonicalJsonObject,
}

impl Proof {
    /// Reads a `signed` object. Whether its signature is good is another question.
    ///
    /// # Errors
    /// `M_INVALID_PARAM` if it lacks something.
    pub fn read(signed: CanonicalJsonObject) -> Result<Self> {
        let text = |field| signed.get(field).and_then(CanonicalJsonValue::as_str);
        let token = text("token").filter(|token| token.len() <= MAX_TOKEN && !token.contains('\0'));
        let token = token.ok_or_else(|| Error::invalid_param("`signed` has no token"))?;
        let user = text("mxid").and_then(|user| UserId::parse(user).ok());
        let user = user.ok_or_else(|| Error::invalid_param("`signed` has no user id"))?;
        if !signed.contains_key("signatures") {
            return Err(Error::invalid_param("`signed` has no signatures"));
        }
        Ok(Self {
            token: token.to_owned(),
            user,
            signed,
        })
    }

    /// The user.
    #[must_use]
    pub fn user(&self) -> &UserId {
        &self.user
    }

    /// The content of the invite that it allows.
    fn content(self, display_name: String) -> CanonicalJsonObject {
        let mut invite = CanonicalJsonObject::new();
        invite.insert("display_name".to_owned(), display_name.into());
        invite.insert("signed".to_owned(), self.signed.into());
        let mut content = bare_content(MembershipState::Invite);
        content.insert("third_party_invite".to_owned(), invite.into());
        content
    }
}

/// The content of an `m.room.third_party_invite` event.
#[derive(Deserialize)]
struct Invitation {
    #[serde(default)]
    display_name: Value,
    #[serde(default)]
    public_keys: Vec<Key>,
    #[serde(flatten)]
    first: Option<Key>,
}

#[derive(Deserialize)]
struct Key {
    public_key: String,
    key_validity_url: Option<String>,
}

/// Makes an invite of an invitation of `inviter` to a room that this server is in, and sends it.
///
/// # Errors
/// `M_FORBIDDEN` if the room has no such invitation or nobody whom it trusts has signed the proof, 502 `M_UNKNOWN` if it
/// cannot be found out whether the key is still valid; those of an invite.
pub async fn exchange(app: &App, room: &Arc<Room>, inviter: &UserId, proof: Proof) -> Result<()> {
    let kind = StateEventType::RoomThirdPartyInvite;
    let event = head::state_event(app, room, &kind, &proof.token).await?;
    let event = event
        .filter(|event| event.pdu.sender == *inviter)
        .ok_or_else(|| Error::forbidden("there is no such invitation"))?;
    let invitation: Invitation = event
        .pdu
        .content_as()
        .map_err(|_| Error::forbidden("the invitation is void"))?;
    expect_signed(&app.federation, &invitation, &proof.signed).await?;
    let user = proof.user.clone();
    let member = membership::of(app, room, &user).await?;
    if member.is_some_and(|member| member.membership == Membership::Join) {
        return Err(Error::forbidden(format!("{user} is in the room already")));
    }
    let name = invitation.display_name.as_str().unwrap_or_default();
    let content = proof.content(name.to_owned());
    let sender = Sender {
        id: inviter.to_owned(),
        user: event.sender,
        txn: None,
    };
    let event = NewEvent::state(StateEventType::RoomMember, user.as_str(), content);
    if app.is_local(&user) {
        append(app, room, &sender, event).await?;
    } else {
        membership::invite_remote(app, room, &sender, &user, event).await?;
    }
    Ok(())
}

/// Checks that a key of the invitation has signed the proof and is still valid.
async fn expect_signed(
    client: &Client,
    invitation: &Invitation,
    signed: &CanonicalJsonObject,
) -> Result<()> {
    let keys = invitation.first.iter().chain(&invitation.public_keys);
    let mut failure = Error::forbidden("no key of the invitation has signed this");
    for key in keys.take(MAX_KEYS) {
        let has_signed = VerifyKey::from_any_base64(&key.public_key)
            .is_ok_and(|public_key| public_key.has_signed(signed));
        if !has_signed {
            continue;
        }
        let Some(address) = &key.key_validity_url else {
            return Ok(());
        };
        match is_valid(client, address, &key.public_key).await {
            Some(true) => return Ok(()),
            Some(false) => failure = Error::forbidden("the key of the invitation is not valid"),
            None => failure = Error::unanswered("the identity server does not answer"),
        }
    }
    Err(failure)
}

/// Asks an identity server whether a key is valid. The address is what somebody has written into the room, so nothing but
/// what the client for such addresses allows is asked. `None` if there is no answer.
async fn is_valid(client: &Client, address: &str, key: &str) -> Option<bool> {
    #[derive(Deserialize)]
    struct Answer {
        valid: bool,
    }
    let mark = if address.contains('?') { '&' } else { '?' };
    let key = utf8_percent_encode(key, NON_ALPHANUMERIC);
    let address: Uri = format!("{address}{mark}public_key={key}").parse().ok()?;
    let answer = match client.http().get(address, KEY_LIMITS).await {
        Ok(answer) if answer.status().is_success() => answer,
        Ok(_) => return None,
        Err(error) => {
            tracing::debug!(%error, "an identity server does not answer");
            return None;
        }
    };
    let body = answer.into_body().collect().await.ok()?;
    let answer: Answer = serde_json::from_slice(&body).ok()?;
    Some(answer.valid)
}

/// An invitation that an identity server has told a user of.
#[derive(Debug)]
pub struct Bound {
    /// The room.
    pub room: OwnedRoomId,
    /// Who has sent the invitation.
    pub inviter: OwnedUserId,
    /// The proof.
    pub proof: Proof,
}

/// Sees to it that somebody here is invited: by this server if it is in the room, else by the server of who has sent the
/// invitation.
///
/// # Errors
/// Those of [`exchange`]; what the other server answers.
pub async fn claim(app: &App, bound: Bound) -> Result<()> {
    let room = app.rooms.by_id(&app.db, &app.log, &bound.room).await?;
    if let Some(room) = room.filter(|room| !room.seen().local.is_empty()) {
        return exchange(app, &room, &bound.inviter, bound.proof).await;
    }
    let server = bound.inviter.server_name();
    let body = CanonicalJsonObject::from([
        ("type".to_owned(), "m.room.member".to_owned().into()),
        ("room_id".to_owned(), bound.room.to_string().into()),
        ("sender".to_owned(), bound.inviter.to_string().into()),
        ("state_key".to_owned(), bound.proof.user.to_string().into()),
        // The room knows by which name the person was invited; here it is not known.
        (
            "content".to_owned(),
            bound.proof.content(String::new()).into(),
        ),
    ]);
    let body = serde_json::to_vec(&body).map_err(Error::internal)?;
    let id = utf8_percent_encode(bound.room.as_str(), NON_ALPHANUMERIC);
    let path = format!("/_matrix/federation/v1/exchange_third_party_invite/{id}");
    let sent = app.federation.send_canonical(
        EXCHANGE_LIMITS,
        server,
        http::Method::PUT,
        &path,
        body.into(),
    );
    sent.await
        .map_err(|error| crate::remote::failed(server, &error))?;
    Ok(())
}
