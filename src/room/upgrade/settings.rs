//! What goes with each person into the room that replaces another: their tags, their push rules for the room, and that
//! it is a direct chat.

use std::sync::Arc;

use ruma::{
    OwnedRoomId, RoomId,
    events::StateEventType,
    push::{NewConditionalPushRule, NewPushRule, NewSimplePushRule, RuleKind, Ruleset},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    app::App,
    bus::Effect,
    error::{Error, Result},
    log::Change,
    preferences::{self, PUSH_RULES, PushRules},
    room::{append::Sender, head},
    rooms::Room,
    storage::{RoomNid, UserNid, account_data, members},
};

const TAGS: &str = "m.tag";
const DIRECT_CHATS: &str = "m.direct";

/// Brings what a user has set for the room that `new` replaces. Nothing, if that room does not say that it was replaced
/// by this one, or the user was never there.
///
/// # Errors
/// If the database fails.
pub async fn bring(app: &App, new: &Room, sender: &Sender) -> Result<()> {
    let Some(old) = replaced(app, new).await? else {
        return Ok(());
    };
    bring_one(app, &old, new, sender.user).await
}

/// Brings what everybody here has set for a room that says now where it is continued, if they are there already.
///
/// # Errors
/// If the database fails.
pub async fn bring_all(app: &App, old: &Room) -> Result<()> {
    let Some(id) = replacement(app, old).await? else {
        return Ok(());
    };
    let Some(new) = app.rooms.by_id(&app.db, &app.log, &id).await? else {
        return Ok(());
    };
    if replaced(app, &new)
        .await?
        .is_none_or(|replaced| replaced.nid != old.nid)
    {
        return Ok(());
    }
    let users: Vec<_> = new.seen().local.keys().copied().collect();
    for user in users {
        bring_one(app, old, &new, user).await?;
    }
    Ok(())
}

async fn bring_one(app: &App, old: &Room, new: &Room, user: UserNid) -> Result<()> {
    if members::get(&app.db, old.nid, user).await?.is_none() {
        return Ok(());
    }
    let _one_at_a_time = app.preferences.edit(user).await;
    let mut items: Vec<(Option<RoomNid>, &str, String)> = Vec::new();
    if account_data::get(&app.db, user, Some(new.nid), TAGS)
        .await?
        .is_none()
        && let Some(tags) = account_data::get(&app.db, user, Some(old.nid), TAGS).await?
    {
        items.push((Some(new.nid), TAGS, tags));
    }
    if let Some(chats) = account_data::get(&app.db, user, None, DIRECT_CHATS).await?
        && let Some(chats) = direct_chats(&chats, &old.id, &new.id)
    {
        items.push((None, DIRECT_CHATS, chats));
    }
    if let Some(rules) = &preferences::get(app, user).await?.rules
        && let Some(global) = push_rules(rules, &old.id, &new.id)?
    {
        let json = serde_json::to_string(&PushRules { global }).map_err(Error::internal)?;
        items.push((None, PUSH_RULES, json));
    }
    set(app, user, &items).await
}

async fn set(app: &App, user: UserNid, items: &[(Option<RoomNid>, &str, String)]) -> Result<()> {
    if items.is_empty() {
        return Ok(());
    }
    let mut change = Change::new();
    for (room, event_type, json) in items {
        let at = change.position();
        change.write(account_data::set(user, *room, event_type, json, at));
        change.effect(Effect::Own { user, at });
    }
    app.log.append(change).await?;
    app.preferences.forget(user);
    Ok(())
}

/// The room that this one replaces, if both say so.
async fn replaced(app: &App, new: &Room) -> Result<Option<Arc<Room>>> {
    #[derive(Deserialize)]
    struct Create {
        predecessor: Predecessor,
    }
    #[derive(Deserialize)]
    struct Predecessor {
        room_id: OwnedRoomId,
    }
    let create = StateEventType::RoomCreate;
    let Some(create) = head::state_content::<Create>(app, new, &create, "").await? else {
        return Ok(None);
    };
    let id = create.predecessor.room_id;
    let Some(old) = app.rooms.by_id(&app.db, &app.log, &id).await? else {
        return Ok(None);
    };
    let is_replaced = replacement(app, &old)
        .await?
        .is_some_and(|room| room == new.id);
    Ok(is_replaced.then_some(old))
}

/// The room that a room says is its continuation.
async fn replacement(app: &App, old: &Room) -> Result<Option<OwnedRoomId>> {
    #[derive(Deserialize)]
    struct Tombstone {
        replacement_room: OwnedRoomId,
    }
    let kind = StateEventType::RoomTombstone;
    let tombstone = head::state_content::<Tombstone>(app, old, &kind, "").await?;
    Ok(tombstone.map(|tombstone| tombstone.replacement_room))
}

/// The content of `m.direct`, with the new room beside the old one; `None` if that changes nothing.
fn direct_chats(content: &str, old: &RoomId, new: &RoomId) -> Option<String> {
    let mut chats: Map<String, Value> = serde_json::from_str(content).ok()?;
    let mut is_changed = false;
    for rooms in chats.values_mut().filter_map(Value::as_array_mut) {
        if rooms.contains(&json!(old)) && !rooms.contains(&json!(new)) {
            rooms.push(json!(new));
            is_changed = true;
        }
    }
    is_changed.then(|| Value::Object(chats).to_string())
}

/// The rules, with those that are for the old room once more for the new one; `None` if that changes nothing.
fn push_rules(rules: &Ruleset, old: &RoomId, new: &RoomId) -> Result<Option<Ruleset>> {
    let mut changed = rules.clone();
    let mut add = |rule: NewPushRule, enabled: bool| {
        let (kind, id) = (rule.kind(), rule.rule_id().to_owned());
        changed.insert(rule, None, None).is_ok() && changed.set_enabled(kind, &id, enabled).is_ok()
    };
    let mut is_changed = false;
    if let Some(rule) = rules.room.get(old.as_str())
        && rules.get(RuleKind::Room, new).is_none()
    {
        let new = NewSimplePushRule::new(new.to_owned(), rule.actions.clone());
        is_changed |= add(NewPushRule::Room(new), rule.enabled);
    }
    // Clients mute a room by a rule that has its id and names it in a condition.
    if let Some(rule) = rules.override_.get(old.as_str())
        && rules.get(RuleKind::Override, new).is_none()
    {
        let conditions = serde_json::to_string(&rule.conditions).map_err(Error::internal)?;
        let conditions = conditions.replace(old.as_str(), new.as_str());
        let conditions = serde_json::from_str(&conditions).map_err(Error::internal)?;
        let actions = rule.actions.clone();
        let new = NewConditionalPushRule::new(new.to_string(), conditions, actions);
        is_changed |= add(NewPushRule::Override(new), rule.enabled);
    }
    Ok(is_changed.then_some(changed))
}
