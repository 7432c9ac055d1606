//! How a room is replaced by one of another version (Client-Server API, "Room Upgrades").
//!
//! The new room is complete before the old one says where it is. If the server dies in between, nobody knows of the new
//! room and the upgrade can be asked for again.

mod levels;
pub mod settings;

use std::sync::Arc;

use homing_federation::{json::strict_json, room_version};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedUserId, RoomVersionId, api::error::ErrorKind,
    events::StateEventType, events::room::member::MembershipState,
    room_version_rules::RoomVersionRules,
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{
    append::{NewEvent, Sender, append, append_all, append_with},
    create::{self, Defaults, NewRoom, Preset, canonical},
    head, membership, power,
};
use crate::{
    app::App,
    error::{Error, Result},
    rooms::Room,
    storage::{self, Event, Membership, aliases, members, summaries},
};

/// The state that goes with the people, apart from the power levels.
const COPIED: [StateEventType; 9] = [
    StateEventType::RoomJoinRules,
    StateEventType::RoomHistoryVisibility,
    StateEventType::RoomGuestAccess,
    StateEventType::RoomName,
    StateEventType::RoomTopic,
    StateEventType::RoomAvatar,
    StateEventType::RoomEncryption,
    StateEventType::RoomServerAcl,
    StateEventType::RoomCanonicalAlias,
];
/// The most children or parents of a space that go with it.
const MAX_RELATIVES: i64 = 5_000;
/// How many events enter the new room at once.
const BATCH: usize = 500;

/// Replaces a room by a new one, whose id it answers.
///
/// # Errors
/// `M_UNSUPPORTED_ROOM_VERSION`; `M_FORBIDDEN` if the user may not send an `m.room.tombstone`.
pub async fn upgrade(
    app: &App,
    old: &Arc<Room>,
    sender: &Sender,
    version: RoomVersionId,
    additional_creators: &[OwnedUserId],
) -> Result<Arc<Room>> {
    let rules = room_version::rules(&version).filter(|_| room_version::can_create(&version));
    let rules = rules.ok_or_else(|| {
        Error::new(
            http::StatusCode::BAD_REQUEST,
            ErrorKind::UnsupportedRoomVersion,
            format!("rooms of version {version} cannot be created here"),
        )
    })?;
    let is_member = old.seen().local.contains_key(&sender.user);
    let now = power::now(app, old).await?;
    if !is_member || !now.user_can_send_state(&sender.id, StateEventType::RoomTombstone) {
        return Err(Error::forbidden("you may not send m.room.tombstone here"));
    }
    let published = summaries::is_published(&app.db, old.nid).await?;
    let creation_content = creation_content(app, old, rules, additional_creators).await?;
    let is_space = matches!(creation_content.get("type"), Some(CanonicalJsonValue::String(kind)) if kind == "m.space");
    let mut events = state(app, old, rules, is_space).await?;
    events.extend(bans(app, old).await?);
    // Until there are power levels the creator may do everything; afterwards perhaps not.
    events.push(power_levels(app, old, sender, rules, additional_creators).await?);
    let join = membership::content(app, &sender.id, MembershipState::Join).await?;
    let join = NewEvent::state(StateEventType::RoomMember, sender.id.as_str(), join);
    let mut batches = events.chunks(BATCH).map(<[NewEvent]>::to_vec);
    let mut first = vec![join];
    first.extend(batches.next().unwrap_or_default());
    let new = NewRoom {
        version,
        creation_content,
        events: first,
        alias: None,
        published: false,
    };
    let new = create::create(app, sender, new).await?;
    for batch in batches {
        append_all(app, &new, sender, batch).await?;
    }
    let content = canonical(json!({
        "body": "This room has been replaced",
        "replacement_room": new.id,
    }))?;
    let tombstone = NewEvent::state(StateEventType::RoomTombstone, "", content);
    let mut writes = vec![aliases::move_all(old.nid, new.nid)];
    if published {
        writes.push(storage::rooms::publish(old.nid, false));
        writes.push(storage::rooms::publish(new.nid, true));
    }
    append_with(app, old, sender, vec![tombstone], &writes, Vec::new).await?;
    close(app, old, sender).await?;
    settings::bring(app, &new, sender).await?;
    Ok(new)
}

/// What the create event says: which room comes before, and what cannot be changed later.
async fn creation_content(
    app: &App,
    old: &Room,
    rules: &RoomVersionRules,
    additional_creators: &[OwnedUserId],
) -> Result<CanonicalJsonObject> {
    let create = head::state_event(app, old, &StateEventType::RoomCreate, "").await?;
    let create =
        create.ok_or_else(|| Error::internal(format!("{} has no create event", old.id)))?;
    let before = strict_json(create.pdu.content.get().as_bytes())?;
    let mut predecessor = json!({ "room_id": old.id });
    if !rules.authorization.room_create_event_id_as_room_id {
        let row = head::load(app, old).await?;
        predecessor["event_id"] = json!(row.extremities.last().map(|extremity| &extremity.id));
    }
    let mut content = canonical(json!({ "predecessor": predecessor }))?;
    for field in ["m.federate", "type"] {
        if let Some(value) = before.get(field) {
            content.insert(field.to_owned(), value.clone());
        }
    }
    if rules.authorization.additional_room_creators && !additional_creators.is_empty() {
        let mut ids: Vec<&str> = additional_creators
            .iter()
            .map(|user| user.as_str())
            .collect();
        ids.sort_unstable();
        ids.dedup();
        let ids = ids
            .into_iter()
            .map(|id| CanonicalJsonValue::String(id.to_owned()))
            .collect();
        content.insert(
            "additional_creators".to_owned(),
            CanonicalJsonValue::Array(ids),
        );
    }
    Ok(content)
}

/// The state that is copied, apart from the power levels.
async fn state(
    app: &App,
    old: &Room,
    rules: &RoomVersionRules,
    is_space: bool,
) -> Result<Vec<NewEvent>> {
    let keys: Vec<_> = COPIED.iter().map(|kind| head::key(kind, "")).collect();
    let found = head::current_state(app, old, &keys).await?;
    let mut events = Vec::new();
    for (kind, key) in COPIED.iter().zip(&keys) {
        let Some(event) = found.get(key).and_then(Option::as_deref) else {
            continue;
        };
        let mut content = content(event)?;
        if *kind == StateEventType::RoomJoinRules {
            fit_join_rule(&mut content, rules);
        }
        events.push(NewEvent::state(kind, "", content));
    }
    if is_space {
        for kind in [StateEventType::SpaceChild, StateEventType::SpaceParent] {
            let (rooms, name) = ([old.nid], kind.to_string());
            let relatives = summaries::state_of_type(&app.db, &rooms, &name, MAX_RELATIVES).await?;
            for (_, json) in relatives {
                events.extend(relative(&kind, &json)?);
            }
        }
    }
    Ok(events)
}

fn content(event: &Event) -> Result<CanonicalJsonObject> {
    Ok(strict_json(event.pdu.content.get().as_bytes())?)
}

/// A child or parent of a space, if the event still names one.
fn relative(kind: &StateEventType, json: &str) -> Result<Option<NewEvent>> {
    #[derive(Deserialize)]
    struct Stored<'a> {
        state_key: String,
        #[serde(borrow)]
        content: &'a RawValue,
    }
    let stored: Stored<'_> = serde_json::from_str(json).map_err(Error::internal)?;
    let content = strict_json(stored.content.get().as_bytes())?;
    Ok(content
        .contains_key("via")
        .then(|| NewEvent::state(kind, stored.state_key, content)))
}

/// A join rule that the new version does not know would let nobody in who is not invited; it says so.
fn fit_join_rule(content: &mut CanonicalJsonObject, rules: &RoomVersionRules) {
    let rules = &rules.authorization;
    let known = match content.get("join_rule").and_then(|rule| rule.as_str()) {
        Some("knock") => rules.knocking,
        Some("restricted") => rules.restricted_join_rule,
        Some("knock_restricted") => rules.knock_restricted_join_rule,
        _ => true,
    };
    if !known {
        content.clear();
        content.insert(
            "join_rule".to_owned(),
            CanonicalJsonValue::String("invite".to_owned()),
        );
    }
}

/// Who is banned stays banned.
async fn bans(app: &App, old: &Room) -> Result<Vec<NewEvent>> {
    let banned = members::of_room(&app.db, old.nid, &[Membership::Ban]).await?;
    let mut events = Vec::new();
    for chunk in banned.chunks(BATCH) {
        let nids: Vec<_> = chunk.iter().map(|member| member.event).collect();
        for event in storage::events::many(&app.db, old.rules, &nids).await? {
            let user = event.pdu.state_key.as_deref().unwrap_or_default();
            let mut ban = membership::bare_content(MembershipState::Ban);
            if let Some(reason) = content(&event)?.remove("reason") {
                ban.insert("reason".to_owned(), reason);
            }
            events.push(NewEvent::state(StateEventType::RoomMember, user, ban));
        }
    }
    Ok(events)
}

async fn power_levels(
    app: &App,
    old: &Room,
    sender: &Sender,
    rules: &RoomVersionRules,
    additional_creators: &[OwnedUserId],
) -> Result<NewEvent> {
    let kind = StateEventType::RoomPowerLevels;
    let Some(event) = head::state_event(app, old, &kind, "").await? else {
        let defaults = Defaults {
            rules: &rules.authorization,
            preset: Preset::PrivateChat,
            creator: &sender.id,
            invited: &[],
        };
        return defaults.power_levels(None);
    };
    let mut content = content(&event)?;
    levels::repair(&mut content);
    let new_has_creators = rules.authorization.explicitly_privilege_room_creators;
    if old.rules.authorization.explicitly_privilege_room_creators && !new_has_creators {
        let before = power::now(app, old).await?;
        let creators = before.rules.privileged_creators.into_iter().flatten();
        levels::add(&mut content, creators.chain([sender.id.clone()]));
    }
    if new_has_creators {
        levels::remove(&mut content, [&sender.id]);
        levels::remove(&mut content, additional_creators);
    }
    Ok(NewEvent::state(kind, "", content))
}

/// Makes the old room quiet, as far as the user may: it loses its aliases, and ordinary members can neither speak nor
/// invite any more.
async fn close(app: &App, old: &Arc<Room>, sender: &Sender) -> Result<()> {
    let kind = StateEventType::RoomCanonicalAlias;
    if head::state_event(app, old, &kind, "").await?.is_some() {
        let event = NewEvent::state(kind, "", CanonicalJsonObject::new());
        if_allowed(append(app, old, sender, event).await)?;
    }
    let kind = StateEventType::RoomPowerLevels;
    let mut content = match head::state_event(app, old, &kind, "").await? {
        Some(event) => content(&event)?,
        None => CanonicalJsonObject::new(),
    };
    if levels::restrict(&mut content, &power::now(app, old).await?) {
        let event = NewEvent::state(kind, "", content);
        if_allowed(append(app, old, sender, event).await)?;
    }
    Ok(())
}

fn if_allowed<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(error) if !error.has_status(http::StatusCode::FORBIDDEN) => Err(error),
        _ => Ok(()),
    }
}
