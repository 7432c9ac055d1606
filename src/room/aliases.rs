//! The names of rooms on this server (Client-Server API, "Room aliases").

use std::sync::Arc;

use homing_federation::json::strict_json;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomAliasId, OwnedRoomId, OwnedServerName,
    RoomAliasId, RoomId,
    api::{error::ErrorKind, federation::query::get_room_information},
    events::StateEventType,
};

use super::{
    append::{NewEvent, Sender, append},
    head, power,
};
use crate::{
    app::App,
    auth::Requester,
    error::{Error, Result},
    log::{AppendError, Change},
    remote,
    rooms::Room,
    storage::aliases,
};

/// The largest answer to the question what an alias of another server names, in bytes.
const ANSWER_BYTES: u64 = 256 << 10;
/// The most servers that are told with an alias.
const SERVERS: usize = 50;

/// The alias of this server with this local part.
///
/// # Errors
/// `M_INVALID_PARAM` if there can be none.
pub fn from_name(app: &App, name: &str) -> Result<OwnedRoomAliasId> {
    if name.contains(':') {
        return Err(Error::invalid_param("the name of an alias has no colon"));
    }
    let alias = RoomAliasId::parse(format!("#{name}:{}", app.server_name))
        .map_err(|error| Error::invalid_param(format!("no alias can have this name: {error}")))?;
    check(app, &alias)?;
    Ok(alias)
}

/// Checks that an alias can be given by this server.
///
/// # Errors
/// `M_INVALID_PARAM` if it is another server's, or has no name, or white space in it.
pub fn check(app: &App, alias: &RoomAliasId) -> Result<()> {
    if alias.server_name() != app.name() {
        return Err(Error::invalid_param(format!(
            "this server gives aliases that end in :{}",
            app.server_name
        )));
    }
    let name = alias.alias();
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Error::invalid_param(
            "an alias has a name without white space",
        ));
    }
    Ok(())
}

/// The servers through which a room can be joined, those first that have been in it for long: this one, if it is in
/// the room, and a few others.
///
/// # Errors
/// If the database fails.
pub async fn servers(app: &App, room: &RoomId) -> Result<Vec<OwnedServerName>> {
    let room = app.room(room).await?;
    let seen = room.seen();
    let joined = seen.servers.iter().filter(|(_, there)| there.joined > 0);
    let mut others: Vec<_> = joined.map(|(name, there)| (there.from_pos, name)).collect();
    others.sort_unstable();
    let own = (!seen.local.is_empty() || others.is_empty()).then_some(&app.server_name);
    let others = others.into_iter().map(|(_, name)| name);
    Ok(own
        .into_iter()
        .chain(others)
        .take(SERVERS)
        .cloned()
        .collect())
}

/// The room that an alias names, here or on another server, and servers through which it can be joined.
///
/// # Errors
/// `M_NOT_FOUND` if there is no such alias, 502 `M_UNKNOWN` if its server does not answer.
pub async fn find(app: &App, alias: &RoomAliasId) -> Result<(OwnedRoomId, Vec<OwnedServerName>)> {
    let unknown = || Error::not_found(format!("there is no alias {alias}"));
    if alias.server_name() == app.name() {
        let (room, _) = aliases::get(&app.db, alias).await?.ok_or_else(unknown)?;
        let room = OwnedRoomId::try_from(room).map_err(Error::internal)?;
        let servers = servers(app, &room).await?;
        return Ok((room, servers));
    }
    let request = get_room_information::v1::Request::new(alias.to_owned());
    let found = remote::ask(app, alias.server_name(), request, ANSWER_BYTES).await?;
    let mut servers = found.servers;
    servers.truncate(SERVERS);
    if servers.is_empty() {
        servers.push(alias.server_name().to_owned());
    }
    Ok((found.room_id, servers))
}

/// Whether somebody may decide under which aliases a room is shown.
///
/// # Errors
/// If the database fails.
pub async fn may_manage(app: &App, room: &Room, requester: &Requester) -> Result<bool> {
    if requester.is_admin {
        return Ok(true);
    }
    if !room.seen().local.contains_key(&requester.user) {
        return Ok(false);
    }
    let levels = power::now(app, room).await?;
    Ok(levels.user_can_send_state(&requester.user_id, StateEventType::RoomCanonicalAlias))
}

/// Takes an alias away from a room, and out of the room's `m.room.canonical_alias` if the requester may change that.
///
/// # Errors
/// `M_NOT_FOUND` if there is no such alias, `M_FORBIDDEN` if it is not the requester's to take.
pub async fn delete(app: &App, requester: &Requester, alias: &RoomAliasId) -> Result<()> {
    let unknown = || Error::not_found(format!("{alias} is no alias here"));
    let (room_id, creator) = aliases::get(&app.db, alias).await?.ok_or_else(unknown)?;
    let room = app
        .room(<&RoomId>::try_from(room_id.as_str()).map_err(Error::internal)?)
        .await?;
    if creator != requester.user && !may_manage(app, &room, requester).await? {
        return Err(Error::forbidden("this alias is not yours to delete"));
    }
    let mut change = Change::new();
    change.write(aliases::delete(alias));
    match app.log.append(change).await {
        Ok(_) => {}
        Err(AppendError::Unexpected) => return Err(unknown()),
        Err(error) => return Err(error.into()),
    }
    match drop_from_state(app, &room, requester, alias).await {
        Err(error) if error.has_status(http::StatusCode::FORBIDDEN) => {
            tracing::debug!(%alias, "a deleted alias stays in the state of its room");
            Ok(())
        }
        result => result,
    }
}

async fn drop_from_state(
    app: &App,
    room: &Arc<Room>,
    requester: &Requester,
    alias: &RoomAliasId,
) -> Result<()> {
    let kind = StateEventType::RoomCanonicalAlias;
    let Some(current) = head::state_event(app, room, &kind, "").await? else {
        return Ok(());
    };
    let mut content = strict_json(current.pdu.content.get().as_bytes())?;
    if !remove(&mut content, alias.as_str()) {
        return Ok(());
    }
    let event = NewEvent::state(kind, "", content);
    append(app, room, &Sender::of(requester), event).await?;
    Ok(())
}

/// All aliases in the content of an `m.room.canonical_alias`; `None` if one is no string.
#[must_use]
pub fn named_in(content: &CanonicalJsonObject) -> Option<Vec<&str>> {
    let mut aliases = Vec::new();
    match content.get("alias") {
        Some(CanonicalJsonValue::String(alias)) => aliases.push(alias.as_str()),
        Some(CanonicalJsonValue::Null) | None => {}
        Some(_) => return None,
    }
    match content.get("alt_aliases") {
        Some(CanonicalJsonValue::Array(list)) => {
            for alias in list {
                aliases.push(alias.as_str()?);
            }
        }
        Some(CanonicalJsonValue::Null) | None => {}
        Some(_) => return None,
    }
    Some(aliases)
}

/// 400 `M_BAD_ALIAS`.
pub fn bad_alias(message: impl Into<String>) -> Error {
    Error::new(http::StatusCode::BAD_REQUEST, ErrorKind::BadAlias, message)
}

/// Takes an alias out of the content of an `m.room.canonical_alias`; answers whether it was there.
fn remove(content: &mut CanonicalJsonObject, alias: &str) -> bool {
    let is_it = |value: &CanonicalJsonValue| value.as_str() == Some(alias);
    let mut found = content.get("alias").is_some_and(is_it);
    if found {
        content.remove("alias");
    }
    if let Some(CanonicalJsonValue::Array(others)) = content.get_mut("alt_aliases") {
        let before = others.len();
        others.retain(|other| !is_it(other));
        found |= others.len() < before;
        if others.is_empty() {
            content.remove("alt_aliases");
        }
    }
    found
}
