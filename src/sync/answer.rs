//! What is sent: ruma's response type as it goes over the wire, with events as JSON already, and with the unstable
//! name of `state_after`, which ruma's cannot have.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::Serialize;
use serde_json::value::RawValue;

/// The answer to a sync.
#[derive(Debug, Default, Serialize)]
pub struct Answer {
    /// Where the next sync goes on.
    pub next_batch: String,
    /// What is new of rooms.
    #[serde(skip_serializing_if = "Rooms::is_empty")]
    pub rooms: Rooms,
    /// Who has come, gone or said something about it.
    #[serde(skip_serializing_if = "Events::is_empty")]
    pub presence: Events,
    /// What changed of the user's account data that is for no room.
    #[serde(skip_serializing_if = "Events::is_empty")]
    pub account_data: Events,
    /// Messages to the device.
    #[serde(skip_serializing_if = "Events::is_empty")]
    pub to_device: Events,
    /// Whose devices have changed.
    #[serde(skip_serializing_if = "DeviceLists::is_empty")]
    pub device_lists: DeviceLists,
    /// How many one-time keys of the device are left.
    pub device_one_time_keys_count: BTreeMap<String, u64>,
    /// Of which algorithms an unused fallback key is left.
    pub device_unused_fallback_key_types: Vec<String>,
}

impl Answer {
    /// Whether there is nothing that a client waits for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
            && self.presence.is_empty()
            && self.account_data.is_empty()
            && self.to_device.is_empty()
            && self.device_lists.is_empty()
    }
}

/// Events in the order in which they are to be taken.
#[derive(Debug, Default, Serialize)]
pub struct Events {
    /// The events.
    pub events: Vec<Box<RawValue>>,
}

impl Events {
    fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

/// Users whose devices have changed, and users who share no encrypted room any more.
#[derive(Debug, Default, Serialize)]
pub struct DeviceLists {
    /// Changed.
    pub changed: Vec<OwnedUserId>,
    /// Gone.
    pub left: Vec<OwnedUserId>,
}

impl DeviceLists {
    fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.left.is_empty()
    }
}

/// Rooms, by what the user is to them.
#[derive(Debug, Default, Serialize)]
pub struct Rooms {
    /// Joined.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub join: BTreeMap<OwnedRoomId, Joined>,
    /// Invited.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub invite: BTreeMap<OwnedRoomId, Invited>,
    /// Knocking.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub knock: BTreeMap<OwnedRoomId, Knocked>,
    /// Left or banned.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub leave: BTreeMap<OwnedRoomId, Left>,
}

impl Rooms {
    fn is_empty(&self) -> bool {
        self.join.is_empty()
            && self.invite.is_empty()
            && self.knock.is_empty()
            && self.leave.is_empty()
    }
}

/// A room that the user has joined.
#[derive(Debug, Default, Serialize)]
pub struct Joined {
    /// What the room is called after, and how many are in it.
    pub summary: Summary,
    /// State: before the timeline or after it.
    #[serde(flatten)]
    pub state: State,
    /// What happened.
    pub timeline: Timeline,
    /// Receipts and typing.
    pub ephemeral: Events,
    /// The user's account data for the room.
    pub account_data: Events,
    /// What is unread.
    pub unread_notifications: Unread,
    /// What is unread in each thread, if the client asks for threads.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unread_thread_notifications: BTreeMap<OwnedEventId, Unread>,
}

/// A room that the user has left.
#[derive(Debug, Default, Serialize)]
pub struct Left {
    /// State: before the timeline or after it.
    #[serde(flatten)]
    pub state: State,
    /// What happened until then.
    pub timeline: Timeline,
    /// The user's account data for the room.
    pub account_data: Events,
}

/// A room that the user is invited to.
#[derive(Debug, Default, Serialize)]
pub struct Invited {
    /// Stripped state.
    pub invite_state: Events,
}

/// A room that the user knocks on.
#[derive(Debug, Default, Serialize)]
pub struct Knocked {
    /// Stripped state.
    pub knock_state: Events,
}

/// State events.
#[derive(Debug, Serialize)]
pub enum State {
    /// Up to the start of the timeline.
    #[serde(rename = "state")]
    Before(Events),
    /// Up to its end.
    #[serde(rename = "state_after")]
    After(Events),
    /// The same for clients that know it by its first name.
    #[serde(rename = "org.matrix.msc4222.state_after")]
    AfterUnstable(Events),
}

impl Default for State {
    fn default() -> Self {
        Self::Before(Events::default())
    }
}

/// What happened in a room.
#[derive(Debug, Default, Serialize)]
pub struct Timeline {
    /// The events.
    pub events: Vec<Box<RawValue>>,
    /// Whether there are more since the last sync.
    pub limited: bool,
    /// Where `/messages` finds what was before.
    pub prev_batch: Arc<str>,
}

/// What a room is called after, and how many are in it.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Members after whom a room without a name is called.
    #[serde(rename = "m.heroes", skip_serializing_if = "Option::is_none")]
    pub heroes: Option<Vec<OwnedUserId>>,
    /// How many have joined.
    #[serde(
        rename = "m.joined_member_count",
        skip_serializing_if = "Option::is_none"
    )]
    pub joined: Option<i64>,
    /// How many are invited.
    #[serde(
        rename = "m.invited_member_count",
        skip_serializing_if = "Option::is_none"
    )]
    pub invited: Option<i64>,
}

/// How much is unread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Unread {
    /// Events that the user is told of loudly.
    pub highlight_count: i64,
    /// Events that the user is told of.
    pub notification_count: i64,
}
