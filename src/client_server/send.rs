//! "Sending events to a room" and "Redactions".

use std::sync::Arc;

use homing_federation::json::strict_json;
use http::StatusCode;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, RoomAliasId, RoomId,
    api::client::{message::send_message_event, redact::redact_event, state::send_state_event},
    events::StateEventType,
};

use crate::{
    app::App,
    auth::Requester,
    error::{Error, Result},
    http::{Call, Routes},
    log::AppendError,
    presence,
    rate_limit::{self, Class},
    room::{
        self,
        append::{NewEvent, Sender, append},
        head, membership, power,
        upgrade::settings,
    },
    rooms::Room,
    storage::{self, DeviceNid},
};

/// The longest transaction id, in bytes.
const MAX_TXN_ID: usize = 255;

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<send_message_event::v3::Request, _, _>(send_message_event)
        .add::<send_state_event::v3::Request, _, _>(send_state_event)
        .add::<redact_event::v3::Request, _, _>(redact_event)
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}`
async fn send_message_event(
    app: Arc<App>,
    call: Call<send_message_event::v3::Request>,
) -> Result<send_message_event::v3::Response> {
    let request = call.body;
    let content = strict_json(request.body.json().get().as_bytes())?;
    let mut event = NewEvent::message(request.event_type, content);
    if event.event_type == "m.room.redaction" {
        event.redacts = redacts(&event.content)?;
    }
    let event_id = send_once(
        &app,
        &request.room_id,
        &call.requester,
        request.txn_id.as_str(),
        event,
    )
    .await?;
    Ok(send_message_event::v3::Response::new(event_id))
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}`
async fn redact_event(
    app: Arc<App>,
    call: Call<redact_event::v3::Request>,
) -> Result<redact_event::v3::Response> {
    let request = call.body;
    let mut content = CanonicalJsonObject::new();
    if let Some(reason) = request.reason {
        content.insert("reason".to_owned(), CanonicalJsonValue::String(reason));
    }
    let mut event = NewEvent::message("m.room.redaction", content);
    event.redacts = Some(request.event_id);
    let event_id = send_once(
        &app,
        &request.room_id,
        &call.requester,
        request.txn_id.as_str(),
        event,
    )
    .await?;
    Ok(redact_event::v3::Response::new(event_id))
}

/// Makes sure that a transaction id can be kept.
///
/// # Errors
/// `M_INVALID_PARAM` if it is empty or too long.
pub(super) fn check_txn_id(txn_id: &str) -> Result<()> {
    if txn_id.is_empty() || txn_id.len() > MAX_TXN_ID || txn_id.contains('\0') {
        return Err(Error::invalid_param(
            "the transaction id is empty or too long",
        ));
    }
    Ok(())
}

/// Sends an event, unless the same device has sent it under the same transaction id already: then that one counts.
async fn send_once(
    app: &Arc<App>,
    room_id: &RoomId,
    requester: &Requester,
    txn_id: &str,
    event: NewEvent,
) -> Result<OwnedEventId> {
    check_txn_id(txn_id)?;
    let room = app.member_room(room_id).await?;
    let event_type: Arc<str> = event.event_type.as_str().into();
    let txn = (
        requester.device,
        room.nid,
        Arc::clone(&event_type),
        txn_id.into(),
    );
    // Of several requests at one time the others wait for the first.
    let waiting = match app.txns.get_value_or_guard_async(&txn).await {
        Ok(event_id) => return Ok(event_id),
        Err(waiting) => waiting,
    };
    rate_limit::check(app, Class::Messages, requester)?;
    let sent = append(app, &room, &Sender::with_txn(requester, txn_id), event).await;
    let event_id = match sent {
        Ok(appended) => appended.event_id,
        Err(Error::Append(AppendError::Duplicate)) => {
            sent_before(app, &room, requester.device, &event_type, txn_id).await?
        }
        Err(error) => return Err(error),
    };
    // This fails only if the cache has dropped it meanwhile; then the database knows.
    let _ = waiting.insert(event_id.clone());
    presence::active(app, requester.user);
    Ok(event_id)
}

/// The event that the device has sent with this transaction id, maybe before a restart.
async fn sent_before(
    app: &App,
    room: &Room,
    device: DeviceNid,
    event_type: &str,
    txn_id: &str,
) -> Result<OwnedEventId> {
    let before = match app.names.find_type(&app.db, event_type).await? {
        Some(kind) => storage::events::by_txn(&app.db, device, txn_id, room.nid, kind).await?,
        None => None,
    };
    let before = before.ok_or_else(|| Error::internal("an event id was given twice"))?;
    OwnedEventId::try_from(before).map_err(Error::internal)
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}`
///
/// State that is there already, sent by the same user, is not sent again.
async fn send_state_event(
    app: Arc<App>,
    call: Call<send_state_event::v3::Request>,
) -> Result<send_state_event::v3::Response> {
    let (request, requester) = (call.body, call.requester);
    rate_limit::check(&app, Class::Messages, &requester)?;
    let room = app.member_room(&request.room_id).await?;
    let content = strict_json(request.body.json().get().as_bytes())?;
    let event_type = request.event_type.to_string();
    room::content::check(&event_type, &request.state_key, &content)?;
    let current = head::state_event(&app, &room, &request.event_type, &request.state_key).await?;
    if let Some(current) = current
        && current.sender == requester.user
        && serde_json::to_string(&content).is_ok_and(|content| content == current.pdu.content.get())
    {
        return Ok(send_state_event::v3::Response::new(
            current.pdu.event_id.clone(),
        ));
    }
    if request.event_type == StateEventType::RoomPowerLevels && request.state_key.is_empty() {
        power::check_users(&app, &room, &content).await?;
    }
    let is_tombstone =
        request.event_type == StateEventType::RoomTombstone && request.state_key.is_empty();
    if request.event_type == StateEventType::RoomCanonicalAlias {
        check_aliases(&app, &room, &content).await?;
    }
    let sender = Sender::of(&requester);
    let appended = if request.event_type == StateEventType::RoomMember {
        membership::set(&app, &room, &sender, &request.state_key, content).await?
    } else {
        let event = NewEvent::state(request.event_type, request.state_key, content);
        append(&app, &room, &sender, event).await?
    };
    if is_tombstone {
        // Some replace a room step by step; this goes on even if the client does not wait for the answer.
        let bring = tokio::spawn(async move { settings::bring_all(&app, &room).await });
        bring.await.map_err(Error::internal)??;
    }
    Ok(send_state_event::v3::Response::new(appended.event_id))
}

/// What a redaction sent as an ordinary event redacts.
fn redacts(content: &CanonicalJsonObject) -> Result<Option<OwnedEventId>> {
    match content.get("redacts") {
        Some(CanonicalJsonValue::String(id)) => id
            .as_str()
            .try_into()
            .map(Some)
            .map_err(|_| Error::invalid_param("`redacts` is no event id")),
        Some(_) => Err(Error::bad_json("`redacts` is no event id")),
        None => Err(Error::missing_param("a redaction needs `redacts`")),
    }
}

/// Checks that new aliases in an `m.room.canonical_alias` lead to the room.
async fn check_aliases(app: &App, room: &Room, content: &CanonicalJsonObject) -> Result<()> {
    let current = head::state_event(app, room, &StateEventType::RoomCanonicalAlias, "").await?;
    let current = match &current {
        Some(event) => strict_json(event.pdu.content.get().as_bytes())?,
        None => CanonicalJsonObject::new(),
    };
    let known = room::aliases::named_in(&current).unwrap_or_default();
    let named =
        room::aliases::named_in(content).ok_or_else(|| Error::bad_json("aliases are strings"))?;
    for alias in named.into_iter().filter(|alias| !known.contains(alias)) {
        let alias =
            RoomAliasId::parse(alias).map_err(|_| Error::invalid_param("not a room alias"))?;
        match room::aliases::find(app, &alias).await {
            Ok((found, _)) if found == room.id => {}
            Err(error) if !error.has_status(StatusCode::NOT_FOUND) => return Err(error),
            _ => {
                let message = format!("{alias} does not lead to this room");
                return Err(room::aliases::bad_alias(message));
            }
        }
    }
    Ok(())
}
