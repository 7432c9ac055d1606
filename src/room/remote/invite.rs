//! Invites between servers ("Inviting to a room").

use std::{collections::HashMap, sync::Arc};

use homing_federation::{Pdu, received::sign_received};
use http::StatusCode;
use ruma::{
    OwnedServerName, RoomVersionId, ServerName, UserId,
    api::{
        error::ErrorKind,
        federation::membership::{RawStrippedState, create_invite},
    },
    events::room::member::MembershipState,
    room_version_rules::RoomVersionRules,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    HANDSHAKE, nonsense, refusal, stub,
    template::{as_raw, rules},
};
use crate::{
    app::App,
    error::{Error, Result},
    rate_limit::{self, Class},
    room::{
        append::{self, Appended, NewEvent, Sender},
        client_event, head, outline, policy_server,
        receive::{Received, verify::verify},
        server_acl,
    },
    rooms::Room,
    storage,
};

/// How many events of a room's stripped state are looked at, and how many bytes of what they say are kept: clients are told
/// all of it with each first sync.
const MAX_TOLD: usize = 50;
const MAX_TOLD_BYTES: usize = 128 << 10;

/// Invites a user of another server to a room that this server is in: that server countersigns the invite first.
///
/// # Errors
/// `M_FORBIDDEN` if the room's rules do not allow it; what the other server answers if it refuses.
pub async fn send(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    event: NewEvent,
) -> Result<Appended> {
    let pdu = append::draft(app, room, sender, event).await?;
    let pdu = policy_server::signed(app, room, Arc::new(pdu)).await?;
    let user = pdu.state_key.as_deref().unwrap_or_default();
    let user = UserId::parse(user).map_err(Error::internal)?;
    let server = user.server_name();
    let mut request = create_invite::v2::Request::new(
        room.id.clone(),
        pdu.event_id.clone(),
        room.version.clone(),
        as_raw(&pdu)?,
        Vec::new(),
    );
    request.invite_room_state = outline::of(app, room, &sender.id)
        .await?
        .iter()
        .map(|event| as_raw(&event.pdu).map(RawStrippedState::Pdu))
        .collect::<Result<_>>()?;
    let answer = app.federation.send_within(HANDSHAKE, server, request).await;
    let answer = answer.map_err(|error| refusal(&error))?;
    let mut signed = verify(app, room.rules, vec![answer.event]).await?;
    let signed = match signed.pop() {
        // An event whose hash is wrong comes out of the check redacted, with the same id.
        Some(Ok(signed))
            if signed.event_id == pdu.event_id && signed.content.get() == pdu.content.get() =>
        {
            signed
        }
        _ => return Err(nonsense("an invite that is not the one it was sent")),
    };
    let received = Received {
        is_ours: true,
        // The other server may have kept no signature but its own.
        ..Received::new(policy_server::signed(app, room, signed).await?)
    };
    let appended = append::bring(app, room, received).await?;
    appended.ok_or_else(|| Error::forbidden("the room has changed meanwhile"))
}

/// An invite of another server to somebody here.
#[derive(Debug)]
pub struct Invite {
    /// The server that sends it.
    pub origin: OwnedServerName,
    /// The version of the room.
    pub version: RoomVersionId,
    /// The event.
    pub event: Box<RawValue>,
    /// What the invited user is told of the room.
    pub told: Vec<RawStrippedState>,
}

#[derive(Deserialize)]
struct MemberContent {
    membership: MembershipState,
}

/// Takes an invite, and answers it with this server's signature.
///
/// # Errors
/// `M_INCOMPATIBLE_ROOM_VERSION`, and others if the invite is none or nobody of that name is here.
pub async fn receive(
    app: &App,
    invite: Invite,
    expect: impl FnOnce(&Pdu) -> Result<()>,
) -> Result<Box<RawValue>> {
    let rules = rules(Some(&invite.version)).map_err(|_| incompatible(&invite.version))?;
    let mut checked = verify(app, rules, vec![invite.event]).await?;
    let pdu = match checked.pop() {
        Some(Ok(pdu)) => pdu,
        Some(Err(error)) => return Err(Error::invalid_param(error.to_string())),
        None => return Err(Error::internal("a check has no result")),
    };
    expect(&pdu)?;
    let user = invited(app, &pdu, &invite.origin).await?;
    if rules.authorization.room_create_event_id_as_room_id {
        expect_create(app, rules, &pdu, &invite.told).await?;
    }
    let signed = sign_received(&pdu, rules, app.name(), &app.signing_key)?;
    let answer = as_raw(&signed)?;
    let known = app.rooms.by_id(&app.db, &app.log, &pdu.room_id).await?;
    if let Some(room) = &known {
        if !server_acl::is_allowed(app, room, &invite.origin).await? {
            return Err(Error::forbidden("the room bars this server"));
        }
        if room.is_here() && !room.seen().servers.is_empty() {
            // It comes again, with the events of the room.
            return Ok(answer);
        }
    }
    let told = told(&invite.told, rules);
    let room_type = room_type(&told);
    let room = stub::room(app, &pdu.room_id, &invite.version, room_type).await?;
    let mut told = told;
    told.push(client_event::stripped_pdu(&signed)?);
    stub::set(app, &room, &user, Arc::new(signed), Some(&told)).await?;
    Ok(answer)
}

/// 400 `M_INCOMPATIBLE_ROOM_VERSION`.
#[must_use]
pub fn incompatible(version: &RoomVersionId) -> Error {
    Error::new(
        StatusCode::BAD_REQUEST,
        ErrorKind::IncompatibleRoomVersion(
            ruma::api::error::IncompatibleRoomVersionErrorData::new(version.clone()),
        ),
        format!("rooms of version {version} are not known here"),
    )
}

/// Whom an invite is for.
async fn invited(app: &App, pdu: &Pdu, origin: &ServerName) -> Result<ruma::OwnedUserId> {
    let content: MemberContent = pdu
        .content_as()
        .map_err(|error| Error::bad_json(error.to_string()))?;
    if &*pdu.event_type != "m.room.member" || content.membership != MembershipState::Invite {
        return Err(Error::invalid_param("the event is no invite"));
    }
    if pdu.sender.server_name() != origin {
        return Err(Error::invalid_param(
            "the invite is by a user of another server",
        ));
    }
    let user = pdu.state_key.as_deref().map(UserId::parse);
    let Some(Ok(user)) = user else {
        return Err(Error::invalid_param(
            "the state key of a member event is a user id",
        ));
    };
    if !app.is_local(&user) {
        return Err(Error::invalid_param(format!(
            "{user} is not of this server"
        )));
    }
    let nid = app.names.find_user(&app.db, &user).await?;
    let is_here = match nid {
        Some(nid) => storage::accounts::is_active(&app.db, nid).await?,
        None => false,
    };
    let Some(nid) = nid.filter(|_| is_here) else {
        return Err(Error::not_found(format!("{user} has no account here")));
    };
    rate_limit::check(app, Class::InvitesFromElsewhere, nid)?;
    Ok(user)
}

/// From version 12 on the room's create event must be among what the user is told, and it must be the one that the room's
/// id is made of.
async fn expect_create(
    app: &App,
    rules: &'static RoomVersionRules,
    pdu: &Pdu,
    told: &[RawStrippedState],
) -> Result<()> {
    let texts: Vec<Box<RawValue>> = told
        .iter()
        .take(MAX_TOLD)
        .filter_map(|told| match told {
            RawStrippedState::Pdu(text) => Some(text.clone()),
            _ => None,
        })
        .collect();
    let checked = verify(app, rules, texts).await?;
    let is_create = |checked: &Arc<Pdu>| {
        &*checked.event_type == "m.room.create" && checked.room_id == pdu.room_id
    };
    if checked.iter().flatten().any(is_create) {
        return Ok(());
    }
    Err(Error::missing_param(
        "the create event of the room is not in invite_room_state",
    ))
}

/// What a user is told of a room, in the form that clients get: the sender, type, state key and content of each event.
pub(super) fn told(events: &[RawStrippedState], _rules: &RoomVersionRules) -> Vec<Box<RawValue>> {
    #[derive(Deserialize, serde::Serialize)]
    struct Stripped {
        #[serde(rename = "type")]
        kind: String,
        sender: ruma::OwnedUserId,
        state_key: String,
        content: serde_json::Map<String, serde_json::Value>,
        #[serde(skip_serializing_if = "Option::is_none")]
        origin_server_ts: Option<ruma::MilliSecondsSinceUnixEpoch>,
    }
    let mut left = MAX_TOLD_BYTES;
    events
        .iter()
        .take(MAX_TOLD)
        .filter_map(|event| {
            #[expect(deprecated, reason = "older servers send it so")]
            let text = match event {
                RawStrippedState::Stripped(raw) => raw.json().get(),
                RawStrippedState::Pdu(text) => text.get(),
                _ => return None,
            };
            let mut stripped: Stripped = serde_json::from_str(text).ok()?;
            stripped.origin_server_ts = stripped
                .origin_server_ts
                .filter(|_| stripped.kind == "m.room.create");
            serde_json::value::to_raw_value(&stripped).ok()
        })
        .filter(|event| {
            let fits = event.get().len() <= left;
            left -= if fits { event.get().len() } else { 0 };
            fits
        })
        .collect()
}

fn room_type(told: &[Box<RawValue>]) -> Option<String> {
    #[derive(Deserialize)]
    struct Event {
        #[serde(rename = "type")]
        kind: String,
        content: HashMap<String, serde_json::Value>,
    }
    let events = told
        .iter()
        .filter_map(|text| serde_json::from_str::<Event>(text.get()).ok());
    let create = events
        .into_iter()
        .find(|event| event.kind == "m.room.create")?;
    Some(create.content.get("type")?.as_str()?.to_owned())
}

/// Whether an invite can be sent: the server of who is invited may be in the room.
///
/// # Errors
/// `M_FORBIDDEN` if it may not.
pub async fn expect_allowed(app: &App, room: &Room, user: &UserId) -> Result<()> {
    if !app.config.federation.enabled {
        let message = "this server does not talk to other servers";
        return Err(Error::forbidden(message));
    }
    let create: Option<CreateContent> =
        head::state_content(app, room, &ruma::events::StateEventType::RoomCreate, "").await?;
    if create.is_some_and(|create| !create.federate) {
        return Err(Error::forbidden(
            "users of other servers cannot be in this room",
        ));
    }
    if !server_acl::is_allowed(app, room, user.server_name()).await? {
        return Err(Error::forbidden("the room bars that server"));
    }
    Ok(())
}

#[derive(Deserialize)]
struct CreateContent {
    #[serde(rename = "m.federate", default = "yes")]
    federate: bool,
}

fn yes() -> bool {
    true
}
