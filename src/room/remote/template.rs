//! Member events that are made with the help of another server.

use homing_federation::{Draft, Pdu};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId,
    RoomVersionId, UserId, room_version_rules::RoomVersionRules,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::nonsense;
use crate::{
    app::App,
    error::{Error, Result},
};

/// A field of a join: the user who lets the new member in.
pub(super) const AUTHORISER: &str = "join_authorised_via_users_server";

/// What is taken from a template.
#[derive(Debug)]
pub(super) struct Template {
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    depth: i64,
    /// Who lets the user into a restricted room.
    authoriser: Option<OwnedUserId>,
}

#[derive(Deserialize)]
struct Fields {
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    depth: i64,
    #[serde(rename = "type")]
    kind: String,
    room_id: OwnedRoomId,
    sender: OwnedUserId,
    state_key: String,
    content: Content,
}

#[derive(Deserialize)]
struct Content {
    membership: String,
    #[serde(rename = "join_authorised_via_users_server")]
    authoriser: Option<OwnedUserId>,
}

impl Template {
    /// Reads a template, which must be for what was asked.
    pub(super) fn read(
        text: &RawValue,
        room: &RoomId,
        user: &UserId,
        membership: &str,
    ) -> Result<Self> {
        let fields: Fields =
            serde_json::from_str(text.get()).map_err(|error| nonsense(&error.to_string()))?;
        let is_right = fields.kind == "m.room.member"
            && fields.room_id == room
            && fields.sender == user
            && fields.state_key == user.as_str()
            && fields.content.membership == membership;
        if !is_right {
            return Err(nonsense("a template for something else"));
        }
        Ok(Self {
            prev_events: fields.prev_events,
            auth_events: fields.auth_events,
            depth: fields.depth,
            authoriser: fields.content.authoriser,
        })
    }

    /// Makes the event.
    pub(super) fn sign(
        self,
        app: &App,
        rules: &RoomVersionRules,
        room: &RoomId,
        user: &UserId,
        mut content: CanonicalJsonObject,
    ) -> Result<Pdu> {
        if rules.authorization.restricted_join_rule
            && let Some(authoriser) = &self.authoriser
        {
            let value = CanonicalJsonValue::String(authoriser.to_string());
            content.insert(AUTHORISER.to_owned(), value);
        }
        let draft = Draft {
            room_id: Some(room.to_owned()),
            sender: user.to_owned(),
            event_type: "m.room.member".to_owned(),
            state_key: Some(user.to_string()),
            content,
            redacts: None,
            origin_server_ts: app.clock.timestamp(),
            prev_events: self.prev_events,
            auth_events: self.auth_events,
            depth: self.depth,
        };
        match draft.sign(rules, app.name(), &app.signing_key) {
            Err(homing_federation::Error::BadEvent(reason)) => Err(nonsense(&reason)),
            result => Ok(result?),
        }
    }
}

/// The rules of a room's version, if rooms of it can be joined here.
pub(super) fn rules(version: Option<&RoomVersionId>) -> Result<&'static RoomVersionRules> {
    let version = version.unwrap_or(&RoomVersionId::V1);
    homing_federation::room_version::rules(version).ok_or_else(|| {
        Error::new(
            http::StatusCode::BAD_REQUEST,
            ruma::api::error::ErrorKind::UnsupportedRoomVersion,
            format!("rooms of version {version} are not known here"),
        )
    })
}

/// The room versions of which somebody here can be a member.
pub(super) fn versions() -> Vec<RoomVersionId> {
    (3..=12)
        .filter_map(|version| RoomVersionId::try_from(version.to_string()).ok())
        .filter(|version| homing_federation::room_version::rules(version).is_some())
        .collect()
}

/// An event as it is sent.
pub(super) fn as_raw(pdu: &Pdu) -> Result<Box<RawValue>> {
    RawValue::from_string(pdu.json.to_string()).map_err(Error::internal)
}
