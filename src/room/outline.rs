//! What somebody outside is told of a room ("Stripped state").

use std::sync::Arc;

use ruma::{UserId, events::StateEventType};

use super::head;
use crate::{app::App, error::Result, names::Key, rooms::Room, storage::Event};

/// The types of the state events that tell somebody outside what a room is. They have no state key.
pub const TYPES: [&str; 7] = [
    "m.room.create",
    "m.room.join_rules",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.canonical_alias",
    "m.room.encryption",
];

/// The events of a room's current state that tell somebody outside what it is, and who `member` is, who tells them.
///
/// # Errors
/// If the database fails.
pub async fn of(app: &App, room: &Room, member: &UserId) -> Result<Vec<Arc<Event>>> {
    let mut keys: Vec<Key> = TYPES
        .iter()
        .map(|kind| head::key(&StateEventType::from(*kind), ""))
        .collect();
    keys.push(head::key(&StateEventType::RoomMember, member.as_str()));
    let state = head::current_state(app, room, &keys).await?;
    Ok(keys
        .iter()
        .filter_map(|key| state.get(key).cloned().flatten())
        .collect())
}
