//! Member events that are made with the help of another server.

use homing_federation::{Draft, Pdu, Unverified};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId,
    RoomVersionId, ServerName, UserId, room_version_rules::RoomVersionRules,
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
    /// Reads a template of a server, which must be for what was asked. Only a user of that server may let another in: this
    /// server would sign for one of its own, and only the server of a third one could.
    pub(super) fn read(
        text: &RawValue,
        server: &ServerName,
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
        let authoriser = fields.content.authoriser.filter(|_| membership == "join");
        if authoriser
            .as_ref()
            .is_some_and(|authoriser| authoriser.server_name() != server)
        {
            return Err(nonsense("somebody of another server is to let the user in"));
        }
        Ok(Self {
            prev_events: fields.prev_events,
            auth_events: fields.auth_events,
            depth: fields.depth,
            authoriser,
        })
    }

    /// Whether it names who lets the user into a restricted room.
    pub(super) fn is_authorised(&self) -> bool {
        self.authoriser.is_some()
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
        // What is wrong with it now was wrong with the template, and other servers would not take it.
        let bad = |error: homing_federation::Error| nonsense(&error.to_string());
        let pdu = draft.sign(rules, app.name(), &app.signing_key);
        let pdu = pdu.map_err(bad)?;
        match Unverified::parse(&pdu.json, rules) {
            // Who lets the user in has not signed it yet.
            Ok(_) | Err(homing_federation::Error::BadSignature { .. }) => Ok(pdu),
            Err(error) => Err(bad(error)),
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
