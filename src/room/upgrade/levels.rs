//! Power levels on their way from one room version to another.

use std::borrow::Borrow;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, Int, OwnedUserId, UserId,
    events::room::power_levels::RoomPowerLevels, int,
};

/// Makes levels valid in every room version: old versions let them be strings, and users be anything.
pub(super) fn repair(content: &mut CanonicalJsonObject) {
    repair_numbers(content);
    for map in ["users", "events", "notifications"] {
        match content.get_mut(map) {
            Some(CanonicalJsonValue::Object(levels)) => {
                repair_numbers(levels);
                levels.retain(|_, level| matches!(level, CanonicalJsonValue::Integer(_)));
                if map == "users" {
                    levels.retain(|user, _| UserId::parse(user.as_str()).is_ok());
                }
            }
            Some(_) => drop(content.remove(map)),
            None => {}
        }
    }
    for level in [
        "ban",
        "events_default",
        "invite",
        "kick",
        "redact",
        "state_default",
        "users_default",
    ] {
        if !matches!(content.get(level), Some(CanonicalJsonValue::Integer(_))) {
            content.remove(level);
        }
    }
}

fn repair_numbers(levels: &mut CanonicalJsonObject) {
    for level in levels.values_mut() {
        if let CanonicalJsonValue::String(text) = level
            && let Ok(number) = text.trim().parse::<i64>()
            && let Ok(number) = Int::try_from(number)
        {
            *level = CanonicalJsonValue::Integer(number);
        }
    }
}

/// Gives users who were powerful by being creators a level that suffices for everything: that of an administrator, or
/// what the room asks for beyond that.
pub(super) fn add(content: &mut CanonicalJsonObject, users: impl IntoIterator<Item = OwnedUserId>) {
    let asked = |levels: &CanonicalJsonObject| {
        let numbers = levels.values().filter_map(|level| match level {
            CanonicalJsonValue::Integer(number) => Some(*number),
            _ => None,
        });
        numbers.max()
    };
    let events = match content.get("events") {
        Some(CanonicalJsonValue::Object(events)) => asked(events),
        _ => None,
    };
    let level = [asked(content), events].into_iter().flatten();
    let level = level.fold(int!(100), Int::max);
    let levels = content
        .entry("users".to_owned())
        .or_insert_with(|| CanonicalJsonValue::Object(CanonicalJsonObject::new()));
    if let CanonicalJsonValue::Object(levels) = levels {
        for user in users {
            levels.insert(user.to_string(), CanonicalJsonValue::Integer(level));
        }
    }
}

/// Takes users out who are powerful by being creators.
pub(super) fn remove<U: Borrow<OwnedUserId>>(
    content: &mut CanonicalJsonObject,
    users: impl IntoIterator<Item = U>,
) {
    if let Some(CanonicalJsonValue::Object(levels)) = content.get_mut("users") {
        for user in users {
            levels.remove(user.borrow().as_str());
        }
    }
}

/// Keeps ordinary members from speaking and inviting; answers whether that changed anything.
pub(super) fn restrict(content: &mut CanonicalJsonObject, now: &RoomPowerLevels) -> bool {
    let level = now.users_default.saturating_add(int!(1)).max(int!(50));
    let mut changed = false;
    for (name, current) in [
        ("events_default", now.events_default),
        ("invite", now.invite),
    ] {
        if current < level {
            content.insert(name.to_owned(), CanonicalJsonValue::Integer(level));
            changed = true;
        }
    }
    changed
}
