//! What other servers say beside events: typing, receipts, presence, and messages for devices ("EDUs").

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use ruma::{
    RoomId, ServerName, UserId,
    api::federation::transactions::edu::{
        DirectDeviceContent, Edu, PresenceUpdate, ReceiptContent, ReceiptMap, TypingContent,
    },
    presence::PresenceState,
    serde::Raw,
};
use serde::Deserialize;

use crate::{
    app::App,
    early_receipts::RemoteReceipt,
    error::Result,
    keys,
    log::{AppendError, Change},
    presence::{self, View},
    room::{receipts, server_acl},
    rooms::Room,
    storage::{self, Membership, UserNid, members},
    to_device::{self, Messages},
    typing,
};

/// How long somebody types when nothing more is said.
const TYPING: Duration = Duration::from_secs(30);
/// The longest status message that is kept, in bytes; the same as for local users.
const STATUS_BYTES: usize = 1024;
/// The most users whose receipts and presence are read from one transaction: each costs a look into the database.
const USERS: usize = 1000;
/// The longest id of a message for devices, in bytes.
const MESSAGE_ID: usize = 255;

/// Does what the EDUs of a transaction from `origin` say, as far as it is `origin`'s to say. What is not understood is
/// passed over.
///
/// # Errors
/// If what must not be lost could not be kept: it has to be sent again. What else fails fails alone.
pub async fn receive(app: &Arc<App>, origin: &ServerName, edus: &[Raw<Edu>]) -> Result<()> {
    let mut left = USERS;
    for edu in edus {
        let done = match edu.deserialize() {
            Ok(Edu::Typing(content)) => typing(app, origin, &content).await,
            Ok(Edu::Receipt(content)) => receipts(app, origin, content, &mut left).await,
            Ok(Edu::Presence(content)) => presence(app, origin, content.push, &mut left).await,
            Ok(Edu::DirectToDevice(content)) => {
                to_device(app, origin, &content).await?;
                Ok(())
            }
            Ok(Edu::DeviceListUpdate(content)) => {
                keys::remote::updated(app, origin, content).await?;
                Ok(())
            }
            Ok(Edu::SigningKeyUpdate(content)) => {
                keys::remote::signing_keys_updated(app, origin, content).await?;
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::debug!(server = %origin, %error, "an EDU cannot be read");
                presence(app, origin, readable(edu), &mut left).await
            }
        };
        if let Err(error) = done {
            tracing::warn!(server = %origin, %error, "what another server said could not be kept");
        }
    }
    Ok(())
}

/// What can be read of an `m.presence` that cannot be read as a whole: one user's part costs the others nothing.
fn readable(edu: &Raw<Edu>) -> Vec<PresenceUpdate> {
    #[derive(Deserialize)]
    struct Presence {
        edu_type: String,
        content: Content,
    }
    #[derive(Deserialize)]
    struct Content {
        push: Vec<Raw<PresenceUpdate>>,
    }
    let presence = serde_json::from_str::<Presence>(edu.json().get()).ok();
    let presence = presence.filter(|presence| presence.edu_type == "m.presence");
    let updates = presence.into_iter().flat_map(|one| one.content.push);
    updates
        .filter_map(|update| update.deserialize().ok())
        .collect()
}

/// The room, if it is known here and lets the server take part.
async fn open_room(app: &App, origin: &ServerName, id: &RoomId) -> Result<Option<Arc<Room>>> {
    let Some(room) = app.rooms.by_id(&app.db, &app.log, id).await? else {
        return Ok(None);
    };
    let is_allowed = server_acl::is_allowed(app, &room, origin).await?;
    Ok(is_allowed.then_some(room))
}

/// The user, if it is one of the server's and known here.
async fn user(app: &App, origin: &ServerName, id: &UserId) -> Result<Option<UserNid>> {
    if id.server_name() == origin && !app.is_local(id) {
        app.names.find_user(&app.db, id).await
    } else {
        Ok(None)
    }
}

/// The user, if it is one of the server's and has joined the room.
async fn member(
    app: &App,
    origin: &ServerName,
    room: &Room,
    id: &UserId,
) -> Result<Option<UserNid>> {
    let Some(user) = user(app, origin, id).await? else {
        return Ok(None);
    };
    let member = members::get(&app.db, room.nid, user).await?;
    let has_joined = member.is_some_and(|member| member.membership == Membership::Join);
    Ok(has_joined.then_some(user))
}

/// `m.typing`.
async fn typing(app: &Arc<App>, origin: &ServerName, content: &TypingContent) -> Result<()> {
    let Some(room) = open_room(app, origin, &content.room_id).await? else {
        return Ok(());
    };
    if let Some(user) = member(app, origin, &room, &content.user_id).await? {
        if content.typing {
            typing::start(app, &room, user, TYPING);
        } else {
            typing::stop(app, &room, user);
        }
    }
    Ok(())
}

/// `m.receipt`.
async fn receipts(
    app: &App,
    origin: &ServerName,
    content: ReceiptContent,
    left: &mut usize,
) -> Result<()> {
    for (room_id, ReceiptMap { read, .. }) in content.receipts {
        if *left == 0 {
            break;
        }
        *left -= 1;
        let Some(room) = open_room(app, origin, &room_id).await? else {
            continue;
        };
        let mut receipts = Vec::new();
        for (user_id, said) in read.into_iter().take(*left) {
            *left -= 1;
            // The last one is the furthest, if there are several.
            let Some(event) = said.event_ids.into_iter().next_back() else {
                continue;
            };
            if let Some(user) = member(app, origin, &room, &user_id).await? {
                let now = app.clock.now();
                let ts = said.data.ts.map_or(now, |ts| i64::from(ts.0).min(now));
                let thread = said.data.thread;
                receipts.push(RemoteReceipt {
                    user,
                    event,
                    thread,
                    ts,
                });
            }
        }
        receipts::receive(app, &room, &receipts).await?;
    }
    Ok(())
}

/// `m.direct_to_device`. What has come before is not taken again.
async fn to_device(app: &App, origin: &ServerName, content: &DirectDeviceContent) -> Result<()> {
    let event_type = content.ev_type.to_string();
    let messages = Messages {
        sender: &content.sender,
        event_type: &event_type,
        contents: &content.messages,
    };
    let message_id = content.message_id.as_str();
    if content.sender.server_name() != origin
        || message_id.len() > MESSAGE_ID
        || messages.check().is_err()
    {
        return Ok(());
    }
    let mut change = Change::new();
    match to_device::to_local(app, &mut change, messages).await {
        Err(error) if error.has_status(StatusCode::PAYLOAD_TOO_LARGE) => return Ok(()),
        result => result?,
    }
    // If nobody is meant, nothing is done twice if it comes again.
    if change.is_empty() {
        return Ok(());
    }
    let server = app.names.server(&app.db, &app.log, origin).await?;
    let now = app.clock.now();
    change.write(storage::to_device::came(server, message_id, now));
    match app.log.append(change).await {
        Ok(_) | Err(AppendError::Duplicate | AppendError::NullCharacter) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// `m.presence`.
async fn presence(
    app: &Arc<App>,
    origin: &ServerName,
    updates: Vec<PresenceUpdate>,
    left: &mut usize,
) -> Result<()> {
    if !app.config.federation.presence {
        return Ok(());
    }
    for update in updates.into_iter().take(*left) {
        *left -= 1;
        let Some(user) = user(app, origin, &update.user_id).await? else {
            continue;
        };
        if let Some(view) = view(update, app.clock.now()) {
            presence::heard(app, user, view).await?;
        }
    }
    Ok(())
}

/// How a user is, as another server says; `None` if that is no state, or too long.
fn view(update: PresenceUpdate, now: i64) -> Option<View> {
    use PresenceState::{Offline, Online, Unavailable};
    if !matches!(update.presence, Online | Unavailable | Offline)
        || update
            .status_msg
            .as_ref()
            .is_some_and(|status| status.len() > STATUS_BYTES)
    {
        return None;
    }
    let ago = i64::from(update.last_active_ago);
    Some(View {
        currently_active: update.currently_active && update.presence == Online,
        state: update.presence,
        status_msg: update.status_msg,
        last_active: Some((now - ago).max(0)),
    })
}
