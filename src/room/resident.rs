//! What a server that is in a room does for those that are not: it prepares their member events, and lets them in
//! ("Joining Rooms", "Knocking upon a room", "Leaving Rooms (Rejecting Invites)", "Restricted rooms").

use std::sync::Arc;

use homing_federation::{Pdu, json::strict_json, received::sign_received};
use http::StatusCode;
use ruma::{
    CanonicalJsonValue, EventId, OwnedUserId, RoomId, RoomVersionId, ServerName, UserId,
    api::error::{ErrorKind, IncompatibleRoomVersionErrorData},
    events::room::member::MembershipState,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    append::{self, NewEvent, Sender},
    membership::{self, bare_content, restricted},
    policy_server,
    receive::{Fate, Received, take, verify::verify},
    server_acl,
};
use crate::{
    app::App,
    error::{Error, Result},
    rooms::Room,
    storage::{Membership, UserNid},
};

/// A field of a join: the user who lets the new member in.
const AUTHORISER: &str = "join_authorised_via_users_server";

/// A room that this server is in, for a server that the room does not bar.
///
/// # Errors
/// `M_NOT_FOUND` if this server is not in the room, `M_FORBIDDEN` if the room bars the other one.
pub async fn room(app: &App, id: &RoomId, origin: &ServerName) -> Result<Arc<Room>> {
    let room = app.rooms.by_id(&app.db, &app.log, id).await?;
    let room = room.filter(|room| !room.seen().local.is_empty());
    let room = room.ok_or_else(|| Error::not_found(format!("this server is not in {id}")))?;
    if server_acl::is_allowed(app, &room, origin).await? {
        Ok(room)
    } else {
        Err(Error::forbidden("the room bars this server"))
    }
}

/// Checks that a server asks for one of its own users.
fn expect_own(user: &UserId, origin: &ServerName) -> Result<()> {
    if user.server_name() == origin {
        Ok(())
    } else {
        Err(Error::forbidden(format!("{user} is not of {origin}")))
    }
}

/// Prepares a member event of a user of another server about themselves, to be signed there. `versions` are the room
/// versions that the other server knows, where it has said so.
///
/// # Errors
/// `M_INCOMPATIBLE_ROOM_VERSION`; `M_FORBIDDEN`, `M_UNABLE_TO_AUTHORISE_JOIN` or `M_UNABLE_TO_GRANT_JOIN` if the event
/// would not be let in.
pub async fn prepare(
    app: &App,
    room: &Arc<Room>,
    origin: &ServerName,
    user: &UserId,
    membership: MembershipState,
    versions: Option<&[RoomVersionId]>,
) -> Result<Box<RawValue>> {
    expect_own(user, origin)?;
    if versions.is_some_and(|versions| !versions.contains(&room.version)) {
        return Err(Error::new(
            StatusCode::BAD_REQUEST,
            ErrorKind::IncompatibleRoomVersion(IncompatibleRoomVersionErrorData::new(
                room.version.clone(),
            )),
            format!("the room has version {}", room.version),
        ));
    }
    let mut content = bare_content(membership.clone());
    if membership == MembershipState::Join
        && let Some(authoriser) = authoriser(app, room, user).await?
    {
        let value = CanonicalJsonValue::String(authoriser.to_string());
        content.insert(AUTHORISER.to_owned(), value);
    }
    let sender = Sender {
        id: user.to_owned(),
        user: UserNid(0),
        txn: None,
    };
    let event = NewEvent::state("m.room.member", user.as_str(), content);
    let draft = append::draft(app, room, &sender, event).await?;
    let mut template = strict_json(draft.json.as_bytes())?;
    template.remove("hashes");
    template.remove("signatures");
    let json = serde_json::to_string(&template).map_err(Error::internal)?;
    RawValue::from_string(json).map_err(Error::internal)
}

/// The user of this server who lets somebody into a restricted room.
async fn authoriser(app: &App, room: &Room, user: &UserId) -> Result<Option<OwnedUserId>> {
    let member = membership::of(app, room, user).await?;
    let membership = member.map(|member| member.membership);
    if matches!(
        membership,
        Some(Membership::Invite | Membership::Join | Membership::Ban)
    ) {
        return Ok(None);
    }
    restricted::authoriser(app, room, user).await
}

#[derive(Deserialize)]
struct MemberContent {
    membership: MembershipState,
    #[serde(rename = "join_authorised_via_users_server")]
    authoriser: Option<OwnedUserId>,
}

/// Lets a member event of a user of another server into the room, and sends it to the others. Answers it as it is now: a
/// join has this server's signature too.
///
/// # Errors
/// `M_INVALID_PARAM` and others if it is not the event that was to come, `M_FORBIDDEN` if the room's rules do not allow it.
pub async fn accept(
    app: &App,
    room: &Arc<Room>,
    origin: &ServerName,
    event_id: &EventId,
    text: Box<RawValue>,
    expected: MembershipState,
) -> Result<Arc<Pdu>> {
    let text = authorised(app, room, event_id, text, &expected).await?;
    let mut checked = verify(app, room.rules, vec![text]).await?;
    let pdu = match checked.pop() {
        Some(Ok(pdu)) => pdu,
        Some(Err(error)) => return Err(refused(&error.reason)),
        None => return Err(Error::internal("a check has no result")),
    };
    if pdu.event_id != event_id {
        return Err(Error::invalid_param("the event has another id"));
    }
    if pdu.room_id != room.id {
        return Err(Error::invalid_param("the event is of another room"));
    }
    if pdu.sender.server_name() != origin {
        let message = format!("{} is not of {origin}", pdu.sender);
        return Err(Error::invalid_param(message));
    }
    let content: MemberContent = pdu
        .content_as()
        .map_err(|error| Error::invalid_param(error.to_string()))?;
    if &*pdu.event_type != "m.room.member"
        || pdu.state_key.as_deref() != Some(pdu.sender.as_str())
        || content.membership != expected
    {
        return Err(Error::invalid_param(format!(
            "the event is no {expected} of its sender"
        )));
    }
    let pdu = match expected {
        // It can do without where it has no room for that.
        MembershipState::Join => signed(app, room, &pdu).unwrap_or(pdu),
        _ => pdu,
    };
    // The other server does not know the room, so it is this one that asks the room's policy server.
    let pdu = policy_server::signed(app, room, pdu).await?;
    let received = Received {
        is_ours: true,
        ..Received::new(Arc::clone(&pdu))
    };
    match take(app, room, vec![received]).await?.pop() {
        Some(Fate::Accepted | Fate::Known) => Ok(pdu),
        Some(Fate::Rejected(reason)) => Err(Error::forbidden(reason)),
        Some(Fate::SoftFailed | Fate::Unsigned) => {
            Err(Error::forbidden("the room does not allow this any more"))
        }
        Some(Fate::Missing(_)) => Err(Error::refused(
            "the event rests on events that this server does not know",
        )),
        None => Err(Error::internal("an event has no fate")),
    }
}

/// The text of a join with this server's signature, where somebody here lets the user in: without it the event is not whole.
/// Whether the event is any good is checked afterwards.
async fn authorised(
    app: &App,
    room: &Arc<Room>,
    event_id: &EventId,
    text: Box<RawValue>,
    expected: &MembershipState,
) -> Result<Box<RawValue>> {
    if *expected != MembershipState::Join || !room.rules.authorization.restricted_join_rule {
        return Ok(text);
    }
    let mut object = strict_json(text.get().as_bytes())?;
    object.remove("unsigned");
    let json = serde_json::to_string(&object).map_err(Error::internal)?;
    let pdu = Pdu::from_canonical(event_id.to_owned(), json, room.rules)
        .map_err(|error| Error::bad_json(error.to_string()))?;
    let content: Option<MemberContent> = pdu.content_as().ok();
    let authoriser = content.and_then(|content| content.authoriser);
    if !authoriser.is_some_and(|user| app.is_local(&user)) {
        return Ok(text);
    }
    // Who was allowed to join when the event was prepared need not be so any more.
    self::authoriser(app, room, &pdu.sender).await?;
    let signed = signed(app, room, &pdu)?;
    RawValue::from_string(signed.json.to_string()).map_err(Error::internal)
}

/// The event with this server's signature.
fn signed(app: &App, room: &Room, pdu: &Pdu) -> Result<Arc<Pdu>> {
    let signed = sign_received(pdu, room.rules, app.name(), &app.signing_key);
    signed.map(Arc::new).map_err(|error| refused(&error))
}

/// What another server is told about an event that is none.
fn refused(error: &homing_federation::Error) -> Error {
    use homing_federation::Error as Federation;
    let message = error.to_string();
    match error {
        Federation::NotJson(_) => Error::not_json(message),
        Federation::BadJson(_) => Error::bad_json(message),
        Federation::TooLarge { .. } => Error::too_large(message),
        _ => Error::invalid_param(message),
    }
}
