//! Who may do what: `m.room.power_levels` together with the creators.

use homing_federation::event::Pdu;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedUserId,
    events::{
        StateEventType,
        room::power_levels::{RoomPowerLevels, RoomPowerLevelsEventContent, RoomPowerLevelsSource},
    },
    state_res::events::RoomCreateEvent,
};

use super::head;
use crate::{
    app::App,
    error::{Error, Result},
    rooms::Room,
};

/// The power levels that a create event and a power levels event amount to.
#[must_use]
pub fn from_events(
    room: &Room,
    create: Option<&Pdu>,
    power_levels: Option<&Pdu>,
) -> RoomPowerLevels {
    let rules = &room.rules.authorization;
    let creators: Vec<OwnedUserId> = create
        .and_then(|pdu| RoomCreateEvent::new(pdu).creators(rules).ok())
        .map(|creators| creators.into_iter().collect())
        .unwrap_or_default();
    let content = power_levels.and_then(|pdu| pdu.content_as::<RoomPowerLevelsEventContent>().ok());
    RoomPowerLevels::new(RoomPowerLevelsSource::from(content), rules, creators)
}

/// The power levels of a room now.
///
/// # Errors
/// If the database fails.
pub async fn now(app: &App, room: &Room) -> Result<RoomPowerLevels> {
    let create = head::state_event(app, room, &StateEventType::RoomCreate, "").await?;
    let power_levels = head::state_event(app, room, &StateEventType::RoomPowerLevels, "").await?;
    Ok(from_events(
        room,
        create.as_deref().map(|event| &*event.pdu),
        power_levels.as_deref().map(|event| &*event.pdu),
    ))
}

/// Checks that new power levels give no level to those who may do everything anyway, because they made the room.
///
/// # Errors
/// `M_INVALID_PARAM` if they do.
pub async fn check_users(app: &App, room: &Room, content: &CanonicalJsonObject) -> Result<()> {
    let Some(CanonicalJsonValue::Object(users)) = content.get("users") else {
        return Ok(());
    };
    let creators = now(app, room).await?.rules.privileged_creators;
    let named = creators.into_iter().flatten();
    match named
        .into_iter()
        .find(|user| users.contains_key(user.as_str()))
    {
        Some(user) => Err(Error::invalid_param(format!(
            "{user} made the room and has no power level"
        ))),
        None => Ok(()),
    }
}
