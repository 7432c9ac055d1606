//! What people outside of a room may know of it: for the directory, `GET /room_summary` and space hierarchies.

use std::collections::{HashMap, HashSet};

use ruma::{
    EventEncryptionAlgorithm, OwnedMxcUri, OwnedRoomAliasId, OwnedRoomId, RoomVersionId,
    ServerName, UInt,
    directory::{PublicRoomsChunk, PublicRoomsChunkInit},
    events::StateEventType,
    room::{
        AllowRule, JoinRule, JoinRuleKind, JoinRuleSummary, RestrictedSummary, RoomSummary,
        RoomType,
    },
    room_version_rules::RoomVersionRules,
};
use serde_json::Value;

use super::head;
use crate::{
    app::App,
    error::{Error, Result},
    names::Key,
    storage::{
        Membership, RoomNid, UserNid, members, servers,
        summaries::{self, SummaryRow},
    },
};

/// What is told of a room.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The room.
    pub nid: RoomNid,
    /// Its id.
    pub id: OwnedRoomId,
    /// Its type, as its create event says.
    pub room_type: Option<String>,
    /// How many have joined.
    pub joined_count: i64,
    /// Its name.
    pub name: Option<String>,
    /// Its topic.
    pub topic: Option<String>,
    /// Its main alias.
    pub canonical_alias: Option<OwnedRoomAliasId>,
    avatar_url: Option<OwnedMxcUri>,
    encryption: Option<EventEncryptionAlgorithm>,
    join_rule: JoinRule,
    world_readable: bool,
    guest_can_join: bool,
    version: RoomVersionId,
    rules: &'static RoomVersionRules,
}

/// The state that a summary is made of.
const STATE: [StateEventType; 9] = [
    StateEventType::RoomCreate,
    StateEventType::RoomName,
    StateEventType::RoomTopic,
    StateEventType::RoomAvatar,
    StateEventType::RoomCanonicalAlias,
    StateEventType::RoomJoinRules,
    StateEventType::RoomHistoryVisibility,
    StateEventType::RoomGuestAccess,
    StateEventType::RoomEncryption,
];

/// The summaries of these rooms, in the same order. One query for all of them.
///
/// # Errors
/// If the database fails.
pub async fn of_rows(app: &App, rows: Vec<SummaryRow>) -> Result<Vec<Summary>> {
    let mut summaries = rows.into_iter().map(empty).collect::<Result<Vec<_>>>()?;
    if summaries.is_empty() {
        return Ok(summaries);
    }
    let keys: Vec<Key> = STATE.iter().map(|kind| head::key(kind, "")).collect();
    let keys = app.names.find_keys(&app.db, &keys).await?;
    let types: HashMap<_, _> = keys.iter().map(|(key, nid)| (*nid, &*key.0)).collect();
    let key_nids: Vec<_> = keys.values().copied().collect();
    let places: HashMap<RoomNid, usize> = summaries
        .iter()
        .enumerate()
        .map(|(place, summary)| (summary.nid, place))
        .collect();
    let rooms: Vec<RoomNid> = summaries.iter().map(|summary| summary.nid).collect();
    for (room, key, json) in summaries::state(&app.db, &rooms, &key_nids).await? {
        let event: Value = match serde_json::from_str(&json) {
            Ok(event) => event,
            // What is taken for granted without it shows nobody more than with it.
            Err(error) => {
                tracing::error!(room = room.0, %error, "a state event cannot be read");
                continue;
            }
        };
        if let (Some(place), Some(kind)) = (places.get(&room), types.get(&key)) {
            summaries[*place].learn(kind, &event["content"]);
        }
    }
    Ok(summaries)
}

/// The summaries of the rooms with these ids that are known here.
///
/// # Errors
/// If the database fails.
pub async fn by_ids(app: &App, ids: &[OwnedRoomId]) -> Result<Vec<Summary>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let ids = ids.iter().map(ToString::to_string).collect();
    of_rows(app, summaries::by_ids(&app.db, ids).await?).await
}

fn empty(row: SummaryRow) -> Result<Summary> {
    let version = RoomVersionId::try_from(row.room_version).map_err(Error::internal)?;
    let rules = homing_federation::room_version::rules(&version)
        .ok_or_else(|| Error::internal(format!("unknown room version {version}")))?;
    Ok(Summary {
        nid: row.nid,
        id: OwnedRoomId::try_from(row.room_id).map_err(Error::internal)?,
        room_type: row.room_type,
        joined_count: row.joined_count,
        name: None,
        topic: None,
        canonical_alias: None,
        avatar_url: None,
        encryption: None,
        // What the rules take for granted where the state says nothing.
        join_rule: JoinRule::Invite,
        world_readable: false,
        guest_can_join: false,
        version,
        rules,
    })
}

impl Summary {
    fn learn(&mut self, kind: &str, content: &Value) {
        let text = |field: &str| {
            let text = content[field].as_str().filter(|text| !text.is_empty());
            text.map(ToOwned::to_owned)
        };
        match kind {
            // A room that was joined elsewhere is known before its type is.
            "m.room.create" => self.room_type = text("type"),
            "m.room.name" => self.name = text("name"),
            "m.room.topic" => self.topic = text("topic"),
            "m.room.avatar" => self.avatar_url = text("url").map(OwnedMxcUri::from),
            "m.room.canonical_alias" => {
                self.canonical_alias = text("alias").and_then(|alias| alias.try_into().ok());
            }
            "m.room.join_rules" => {
                if let Ok(rule) = serde_json::from_value(content.clone()) {
                    self.join_rule = rule;
                }
            }
            "m.room.history_visibility" => {
                self.world_readable = content["history_visibility"] == "world_readable";
            }
            "m.room.guest_access" => self.guest_can_join = content["guest_access"] == "can_join",
            "m.room.encryption" => self.encryption = text("algorithm").map(Into::into),
            _ => {}
        }
    }

    /// Whether everybody may know of the room.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let rules = &self.rules.authorization;
        self.world_readable
            || match &self.join_rule {
                JoinRule::Public => true,
                JoinRule::Knock => rules.knocking,
                JoinRule::KnockRestricted(_) => rules.knock_restricted_join_rule,
                _ => false,
            }
    }

    /// The rooms whose members may join.
    #[must_use]
    pub fn allowed_rooms(&self) -> Vec<OwnedRoomId> {
        let rules = &self.rules.authorization;
        let restricted = match &self.join_rule {
            JoinRule::Restricted(restricted) if rules.restricted_join_rule => restricted,
            JoinRule::KnockRestricted(restricted) if rules.knock_restricted_join_rule => restricted,
            _ => return Vec::new(),
        };
        restricted
            .allow
            .iter()
            .filter_map(|rule| match rule {
                AllowRule::RoomMembership(membership) => Some(membership.room_id.clone()),
                _ => None,
            })
            .collect()
    }

    fn num_joined_members(&self) -> UInt {
        UInt::try_from(self.joined_count).unwrap_or_default()
    }

    /// As the room directory shows it.
    #[must_use]
    pub fn chunk(self) -> PublicRoomsChunk {
        let mut chunk: PublicRoomsChunk = PublicRoomsChunkInit {
            num_joined_members: self.num_joined_members(),
            room_id: self.id,
            world_readable: self.world_readable,
            guest_can_join: self.guest_can_join,
        }
        .into();
        chunk.canonical_alias = self.canonical_alias;
        chunk.name = self.name;
        chunk.topic = self.topic;
        chunk.avatar_url = self.avatar_url;
        chunk.join_rule = self.join_rule.kind();
        chunk.room_type = self.room_type.map(RoomType::from);
        chunk
    }

    /// As `RoomSummary` of the specification.
    #[must_use]
    pub fn into_summary(self) -> RoomSummary {
        let allowed = RestrictedSummary::new(self.allowed_rooms());
        let join_rule = match &self.join_rule {
            JoinRule::Restricted(_) => JoinRuleSummary::Restricted(allowed),
            JoinRule::KnockRestricted(_) => JoinRuleSummary::KnockRestricted(allowed),
            other => match JoinRuleSummary::from(other.kind()) {
                // What clients may do with a rule that nobody knows: no more than with an invite.
                JoinRuleSummary::_Custom(_) => JoinRuleSummary::Invite,
                known => known,
            },
        };
        let joined = self.num_joined_members();
        let mut summary = RoomSummary::new(
            self.id,
            join_rule,
            self.guest_can_join,
            joined,
            self.world_readable,
        );
        summary.canonical_alias = self.canonical_alias;
        summary.name = self.name;
        summary.topic = self.topic;
        summary.avatar_url = self.avatar_url;
        summary.room_type = self.room_type.map(RoomType::from);
        summary.encryption = self.encryption;
        summary.room_version = Some(self.version);
        summary
    }
}

/// What a user is to rooms, and which of them the user may know of.
#[derive(Debug, Default)]
pub struct Access {
    /// What the user is to those rooms that they have to do with.
    pub memberships: HashMap<RoomNid, Membership>,
    /// The rooms that the user may know of.
    pub visible: HashSet<RoomNid>,
}

/// Which of these rooms somebody may know of (`GET /rooms/{roomId}/hierarchy` has the conditions); without a user: of
/// which everybody may know. Two queries for all of them.
///
/// # Errors
/// If the database fails.
pub async fn access(app: &App, user: Option<UserNid>, rooms: &[Summary]) -> Result<Access> {
    let mut access = Access {
        visible: rooms
            .iter()
            .filter(|room| room.is_open())
            .map(|room| room.nid)
            .collect(),
        ..Access::default()
    };
    let Some(user) = user else {
        return Ok(access);
    };
    let nids: Vec<RoomNid> = rooms.iter().map(|room| room.nid).collect();
    for (room, membership) in summaries::memberships(&app.db, user, &nids).await? {
        access.memberships.insert(room, membership);
        if matches!(membership, Membership::Join | Membership::Invite) {
            access.visible.insert(room);
        }
    }
    let restricted: Vec<(RoomNid, Vec<OwnedRoomId>)> = rooms
        .iter()
        .filter(|room| !access.visible.contains(&room.nid))
        .map(|room| (room.nid, room.allowed_rooms()))
        .filter(|(_, allowed)| !allowed.is_empty())
        .collect();
    if restricted.is_empty() {
        return Ok(access);
    }
    let asked: HashSet<String> = restricted
        .iter()
        .flat_map(|(_, allowed)| allowed.iter().map(ToString::to_string))
        .collect();
    let joined: HashSet<String> =
        summaries::joined_among(&app.db, user, asked.into_iter().collect())
            .await?
            .into_iter()
            .collect();
    access.visible.extend(
        restricted
            .into_iter()
            .filter(|(_, allowed)| allowed.iter().any(|room| joined.contains(room.as_str())))
            .map(|(nid, _)| nid),
    );
    Ok(access)
}

/// Of which of these rooms, of which other servers have told, a user may know; without a user: of which everybody may.
///
/// # Errors
/// If the database fails.
pub async fn known_from_others(
    app: &App,
    user: Option<UserNid>,
    rooms: &[&RoomSummary],
) -> Result<HashSet<OwnedRoomId>> {
    let is_open = |room: &RoomSummary| {
        let rule = room.join_rule.kind();
        room.world_readable
            || matches!(
                rule,
                JoinRuleKind::Public | JoinRuleKind::Knock | JoinRuleKind::KnockRestricted
            )
    };
    let (open, closed): (Vec<&RoomSummary>, Vec<_>) = rooms.iter().partition(|room| is_open(room));
    let mut visible: HashSet<_> = open.iter().map(|room| room.room_id.clone()).collect();
    let Some(user) = user.filter(|_| !closed.is_empty()) else {
        return Ok(visible);
    };
    let ids = closed.iter().map(|room| room.room_id.to_string()).collect();
    let invited: HashSet<_> = summaries::invited_among(&app.db, user, ids)
        .await?
        .into_iter()
        .collect();
    let ways_in = |room: &RoomSummary| match &room.join_rule {
        JoinRuleSummary::Restricted(restricted) => restricted.allowed_room_ids.clone(),
        _ => Vec::new(),
    };
    let asked: HashSet<String> = closed
        .iter()
        .flat_map(|room| ways_in(room))
        .map(|id| id.to_string())
        .collect();
    let joined = summaries::joined_among(&app.db, user, asked.into_iter().collect());
    let joined: HashSet<_> = joined.await?.into_iter().collect();
    let found = closed.into_iter().filter(|room| {
        invited.contains(room.room_id.as_str())
            || ways_in(room).iter().any(|id| joined.contains(id.as_str()))
    });
    visible.extend(found.map(|room| room.room_id.clone()));
    Ok(visible)
}

/// Of which of these rooms another server may know: of those that are open, in which it has users or to which they are
/// invited, or whose conditions for joining one of its users may meet.
///
/// # Errors
/// If the database fails.
pub async fn known_to_server(
    app: &App,
    server: &ServerName,
    rooms: &[Summary],
) -> Result<HashSet<RoomNid>> {
    let open = rooms.iter().filter(|room| room.is_open());
    let mut visible: HashSet<RoomNid> = open.map(|room| room.nid).collect();
    let closed: Vec<&Summary> = rooms
        .iter()
        .filter(|room| !visible.contains(&room.nid))
        .collect();
    if closed.is_empty() {
        return Ok(visible);
    }
    let nids: Vec<RoomNid> = closed.iter().map(|room| room.nid).collect();
    visible.extend(members::inviting_server(&app.db, &nids, server.as_str()).await?);
    let ways_in = |room: &Summary| {
        let mut rooms = room.allowed_rooms();
        rooms.push(room.id.clone());
        rooms
    };
    let asked: HashSet<String> = closed
        .iter()
        .flat_map(|room| ways_in(room))
        .map(|id| id.to_string())
        .collect();
    let joined = servers::joined_among(&app.db, server.as_str(), asked.into_iter().collect());
    let joined: HashSet<String> = joined.await?.into_iter().collect();
    let found = closed
        .iter()
        .filter(|room| ways_in(room).iter().any(|id| joined.contains(id.as_str())));
    visible.extend(found.map(|room| room.nid));
    Ok(visible)
}
