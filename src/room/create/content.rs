//! What the first events of a room say.

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedUserId, UserId,
    events::{StateEventType, room::power_levels::RoomPowerLevelsEventContent},
    room_version_rules::AuthorizationRules,
};
use serde_json::json;

use crate::{
    error::{Error, Result},
    room::append::NewEvent,
};

/// The presets of `POST /createRoom`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Joined by invite; guests may come; history is shared.
    PrivateChat,
    /// The same, and the invited have the creator's power.
    TrustedPrivateChat,
    /// Anyone may join, but no guests.
    PublicChat,
}

/// The events that a preset stands for.
#[derive(Debug)]
pub struct Defaults<'a> {
    /// The rules of the room's version.
    pub rules: &'a AuthorizationRules,
    /// The preset.
    pub preset: Preset,
    /// Who creates the room.
    pub creator: &'a UserId,
    /// Who is invited.
    pub invited: &'a [OwnedUserId],
}

impl Defaults<'_> {
    /// Whether the invited get the creator's power by being creators too, as from room version 12 on.
    #[must_use]
    pub fn invited_are_creators(&self) -> bool {
        self.preset == Preset::TrustedPrivateChat && self.rules.explicitly_privilege_room_creators
    }

    /// The power levels, with the keys of `overrides` in the place of the defaults.
    ///
    /// # Errors
    /// `M_BAD_JSON` if the overrides are no power levels.
    pub fn power_levels(&self, overrides: Option<CanonicalJsonObject>) -> Result<NewEvent> {
        let mut users = serde_json::Map::new();
        if !self.rules.explicitly_privilege_room_creators {
            users.insert(self.creator.to_string(), json!(100));
            if self.preset == Preset::TrustedPrivateChat {
                users.extend(
                    self.invited
                        .iter()
                        .map(|user| (user.to_string(), json!(100))),
                );
            }
        }
        let tombstone = if self.rules.explicitly_privilege_room_creators {
            150
        } else {
            100
        };
        let mut content = canonical(json!({
            "users": users,
            "users_default": 0,
            "events": {
                "m.room.name": 50,
                "m.room.avatar": 50,
                "m.room.canonical_alias": 50,
                "m.room.power_levels": 100,
                "m.room.history_visibility": 100,
                "m.room.encryption": 100,
                "m.room.server_acl": 100,
                "m.room.tombstone": tombstone,
            },
            "events_default": 0,
            "state_default": 50,
            "ban": 50,
            "kick": 50,
            "redact": 50,
            "invite": if self.preset == Preset::PublicChat { 50 } else { 0 },
        }))?;
        content.extend(overrides.unwrap_or_default());
        let text = serde_json::to_string(&content).map_err(Error::internal)?;
        serde_json::from_str::<RoomPowerLevelsEventContent>(&text)
            .map_err(|error| Error::bad_json(format!("power_level_content_override: {error}")))?;
        Ok(NewEvent::state(
            StateEventType::RoomPowerLevels,
            "",
            content,
        ))
    }

    /// Join rules, history visibility, and guest access where guests may join: no such event says that they may not.
    ///
    /// # Errors
    /// None, in practice.
    pub fn access(&self) -> Result<Vec<NewEvent>> {
        let (join_rule, guests) = match self.preset {
            Preset::PrivateChat | Preset::TrustedPrivateChat => ("invite", true),
            Preset::PublicChat => ("public", false),
        };
        let state = |kind: StateEventType, content| {
            Ok::<_, Error>(NewEvent::state(kind, "", canonical(content)?))
        };
        let mut events = vec![
            state(
                StateEventType::RoomJoinRules,
                json!({ "join_rule": join_rule }),
            )?,
            state(
                StateEventType::RoomHistoryVisibility,
                json!({ "history_visibility": "shared" }),
            )?,
        ];
        if guests {
            let content = json!({ "guest_access": "can_join" });
            events.push(state(StateEventType::RoomGuestAccess, content)?);
        }
        Ok(events)
    }
}

/// JSON that this server wrote itself, as canonical JSON.
///
/// # Errors
/// If it is no object, or has numbers that are no integers.
pub fn canonical(value: serde_json::Value) -> Result<CanonicalJsonObject> {
    match CanonicalJsonValue::try_from(value).map_err(Error::internal)? {
        CanonicalJsonValue::Object(object) => Ok(object),
        _ => Err(Error::internal("an event's content is an object")),
    }
}
