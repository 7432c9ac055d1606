//! The room versions and their rules.
//!
//! What differs between versions is described by ruma's [`RoomVersionRules`]; callers ask its
//! fields instead of comparing version numbers. The ones a server meets most often:
//!
//! | Fact                                                   | Field                                             | Since |
//! |--------------------------------------------------------|---------------------------------------------------|-------|
//! | knocking exists                                        | `authorization.knocking`                          | 7     |
//! | restricted joins exist                                 | `authorization.restricted_join_rule`              | 8     |
//! | power levels must be integers                          | `authorization.integer_power_levels`              | 10    |
//! | the creator is the sender of the create event          | `authorization.use_room_create_sender`            | 11    |
//! | `redacts` stands in the content                        | `redaction.content_field_redacts`                 | 11    |
//! | the room id is made of the create event's hash         | `authorization.room_create_event_id_as_room_id`   | 12    |
//! | creators stand above all power levels                  | `authorization.explicitly_privilege_room_creators`| 12    |
//!
//! Specification: <https://spec.matrix.org/v1.19/rooms/>.

use ruma::{
    EventId, OwnedEventId, OwnedRoomId, RoomId, RoomVersionId, room_version_rules::RoomVersionRules,
};

use crate::Error;

/// The versions in which a room can be created here, oldest first.
///
/// Older ones are left out because their events are not bound to strict canonical JSON, so that
/// servers disagree about what a valid event is.
#[must_use]
pub fn creatable() -> [RoomVersionId; 7] {
    [
        RoomVersionId::V6,
        RoomVersionId::V7,
        RoomVersionId::V8,
        RoomVersionId::V9,
        RoomVersionId::V10,
        RoomVersionId::V11,
        RoomVersionId::V12,
    ]
}

/// Whether a room of this version can be created here.
#[must_use]
pub fn can_create(version: &RoomVersionId) -> bool {
    creatable().contains(version)
}

/// The rules of a room version, or `None` if this server knows nothing of it.
///
/// Versions 3 to 12 are known. Versions 1 and 2 have event ids that do not depend on the event,
/// and a state resolution of their own; they are not supported.
#[must_use]
pub fn rules(version: &RoomVersionId) -> Option<&'static RoomVersionRules> {
    Some(match version {
        RoomVersionId::V3 => &RoomVersionRules::V3,
        RoomVersionId::V4 => &RoomVersionRules::V4,
        RoomVersionId::V5 => &RoomVersionRules::V5,
        RoomVersionId::V6 => &RoomVersionRules::V6,
        RoomVersionId::V7 => &RoomVersionRules::V7,
        RoomVersionId::V8 => &RoomVersionRules::V8,
        RoomVersionId::V9 => &RoomVersionRules::V9,
        RoomVersionId::V10 => &RoomVersionRules::V10,
        RoomVersionId::V11 => &RoomVersionRules::V11,
        RoomVersionId::V12 => &RoomVersionRules::V12,
        _ => return None,
    })
}

/// The room id that belongs to a create event, in versions where the one is made of the other
/// (`authorization.room_create_event_id_as_room_id`): the same hash behind another sigil.
///
/// # Errors
///
/// [`Error::BadEvent`] if the event id does not start with `$` or is too long for a room id.
pub fn room_id_of_create_event(create: &EventId) -> Result<OwnedRoomId, Error> {
    create
        .as_str()
        .strip_prefix('$')
        .and_then(|hash| RoomId::new_v2(hash).ok())
        .ok_or_else(|| Error::BadEvent(format!("{create} makes no room id")))
}

/// The id of a room's create event, in versions where the room id is made of it: the inverse of
/// [`room_id_of_create_event`].
///
/// # Errors
///
/// [`Error::BadEvent`] if the room id cannot be an event id.
pub fn create_event_of_room_id(room_id: &RoomId) -> Result<OwnedEventId, Error> {
    EventId::parse(format!("${}", room_id.strip_sigil()))
        .map_err(|error| Error::BadEvent(format!("{room_id} names no create event: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_and_creatable_versions() {
        let table = [
            ("1", false, false),
            ("2", false, false),
            ("3", true, false),
            ("5", true, false),
            ("6", true, true),
            ("11", true, true),
            ("12", true, true),
            ("13", false, false),
            ("org.example.custom", false, false),
        ];
        for (version, known, creatable) in table {
            let id = RoomVersionId::try_from(version).unwrap();
            assert_eq!(rules(&id).is_some(), known, "{version}");
            assert_eq!(can_create(&id), creatable, "{version}");
        }
        for version in creatable() {
            let rules = rules(&version).unwrap();
            assert!(rules.authorization.strict_canonical_json, "{version}");
        }
    }

    #[test]
    fn room_ids_of_version_12() {
        let event_id = EventId::parse("$31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM").unwrap();
        let room_id = room_id_of_create_event(&event_id).unwrap();
        assert_eq!(room_id, "!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM");
        assert_eq!(create_event_of_room_id(&room_id).unwrap(), event_id);
    }
}
