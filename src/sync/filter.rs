//! What a client wants to hear of ("Filtering").

use ruma::{
    RoomId, UserId,
    api::client::filter::{
        EventFormat, Filter, FilterDefinition, LazyLoadOptions, RoomEventFilter, UrlFilter,
    },
};

use crate::storage::{Event, events::flags};

/// How many events of a timeline are sent where the filter does not say.
const TIMELINE_LIMIT: u64 = 10;
/// The most events of a timeline that are sent.
const TIMELINE_MOST: u64 = 200;

/// Whether a pattern, in which `*` stands for anything, matches a text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(start) else {
        return false;
    };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(end)
}

fn any_matches(patterns: &[String], text: &str) -> bool {
    patterns.iter().any(|pattern| matches(pattern, text))
}

/// Whether a filter for what is in no room lets something through.
pub(super) fn admits(filter: &Filter, event_type: &str, sender: Option<&UserId>) -> bool {
    !any_matches(&filter.not_types, event_type)
        && filter
            .types
            .as_ref()
            .is_none_or(|types| any_matches(types, event_type))
        && sender.is_none_or(|sender| {
            filter.not_senders.iter().all(|other| other != sender)
                && filter
                    .senders
                    .as_ref()
                    .is_none_or(|senders| senders.iter().any(|other| other == sender))
        })
}

/// Whether a part of a room's filter lets this room through.
pub(super) fn admits_room(filter: &RoomEventFilter, room: &RoomId) -> bool {
    filter.not_rooms.iter().all(|other| other != room)
        && filter
            .rooms
            .as_ref()
            .is_none_or(|rooms| rooms.iter().any(|other| other == room))
}

/// Whether a part of a room's filter lets a type through; the room is not looked at.
pub(super) fn admits_type(filter: &RoomEventFilter, event_type: &str) -> bool {
    !any_matches(&filter.not_types, event_type)
        && filter
            .types
            .as_ref()
            .is_none_or(|types| any_matches(types, event_type))
}

/// Whether a part of a room's filter lets what this user sent through; nothing else is looked at.
pub(super) fn admits_sender(filter: &RoomEventFilter, sender: &UserId) -> bool {
    filter.not_senders.iter().all(|other| other != sender)
        && filter
            .senders
            .as_ref()
            .is_none_or(|senders| senders.iter().any(|other| other == sender))
}

/// Whether a part of a room's filter lets an event through; the room is not looked at.
pub(super) fn admits_event(filter: &RoomEventFilter, event: &Event) -> bool {
    let has_url = event.flags & flags::HAS_URL != 0;
    admits_type(filter, &event.pdu.event_type)
        && admits_sender(filter, &event.pdu.sender)
        && match filter.url_filter {
            None => true,
            Some(UrlFilter::EventsWithUrl) => has_url,
            Some(UrlFilter::EventsWithoutUrl) => !has_url,
        }
}

/// Whether the room filter as a whole lets this room through.
pub(super) fn admits_whole_room(filter: &FilterDefinition, room: &RoomId) -> bool {
    filter.room.not_rooms.iter().all(|other| other != room)
        && filter
            .room
            .rooms
            .as_ref()
            .is_none_or(|rooms| rooms.iter().any(|other| other == room))
}

/// How many events of a timeline to send.
pub(super) fn timeline_limit(filter: &FilterDefinition) -> usize {
    let limit = filter.room.timeline.limit.map_or(TIMELINE_LIMIT, u64::from);
    usize::try_from(limit.min(TIMELINE_MOST)).unwrap_or(0)
}

/// How many of something to send, if the filter says.
pub(super) fn limit(limit: Option<ruma::UInt>) -> usize {
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(u64::from(limit)).unwrap_or(usize::MAX)
    })
}

/// Whether member events are sent only as they are needed; `Some(true)`: again each time.
pub(super) fn lazy_members(filter: &FilterDefinition) -> Option<bool> {
    match filter.room.state.lazy_load_options {
        LazyLoadOptions::Disabled => None,
        LazyLoadOptions::Enabled {
            include_redundant_members,
        } => Some(include_redundant_members),
    }
}

/// Whether events are to be sent as other servers get them.
pub(super) fn is_federation_format(filter: &FilterDefinition) -> bool {
    filter.event_format == EventFormat::Federation
}

/// Leaves only the wanted fields of an event (`event_fields`): `content.body` is a field of a field, `\.` a dot.
pub(super) fn keep_fields(event: &serde_json::Value, fields: &[String]) -> serde_json::Value {
    let mut kept = serde_json::Map::new();
    for field in fields {
        keep_field(event, &path(field), &mut kept);
    }
    kept.into()
}

fn keep_field(
    from: &serde_json::Value,
    path: &[String],
    into: &mut serde_json::Map<String, serde_json::Value>,
) {
    let Some((name, rest)) = path.split_first() else {
        return;
    };
    let Some(value) = from.get(name) else {
        return;
    };
    if rest.is_empty() {
        into.insert(name.clone(), value.clone());
    } else if value.is_object() {
        let inner = into
            .entry(name.clone())
            .or_insert_with(|| serde_json::Map::new().into());
        if let Some(inner) = inner.as_object_mut() {
            keep_field(value, rest, inner);
        }
    }
}

fn path(field: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = field.chars();
    while let Some(character) = characters.next() {
        match (character, parts.last_mut()) {
            ('.', _) => parts.push(String::new()),
            ('\\', Some(part)) => part.extend(characters.next()),
            (_, Some(part)) => part.push(character),
            (_, None) => {}
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text, expected) in [
            ("m.room.message", "m.room.message", true),
            ("m.room.*", "m.room.message", true),
            ("m.room.*", "m.roommate", false),
            ("*", "", true),
            ("*.message", "m.room.message", true),
            ("m.*.mes*e", "m.room.message", true),
            ("m.*.mes*x", "m.room.message", false),
            ("a*a", "a", false),
            ("*b*b*", "abab", true),
            ("*b*b*", "aba", false),
            ("ß*ü", "ßü", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn only_wanted_fields_remain() {
        let event = json!({ "type": "t", "content": { "body": "b", "a.b": 1, "x": { "y": 2, "z": 3 } }, "sender": "s" });
        let fields = [
            "type",
            "content.body",
            r"content.a\.b",
            "content.x.y",
            "sender.x",
            "none",
        ];
        let kept = keep_fields(&event, &fields.map(str::to_owned));
        assert_eq!(
            kept,
            json!({ "type": "t", "content": { "body": "b", "a.b": 1, "x": { "y": 2 } } })
        );
    }
}
