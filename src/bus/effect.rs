//! What memory learns from a change.

use std::sync::Arc;

use ruma::OwnedServerName;

use crate::{
    names::Key,
    rooms::Room,
    storage::{
        self, DeviceNid, Event, Member, Position, PusherNid, ReadMarker, Receipt, RoomNid,
        ServerNid, UserNid, highlights::Highlight, rooms::HeadRow,
    },
};

/// What some keys of a room's state have now; `None` where the state has no event any more.
pub type StateChanges = Vec<(Key, Option<Arc<Event>>)>;

/// What memory learns from a change once it is committed.
#[derive(Debug)]
pub enum Effect {
    /// A room was created.
    Room(Arc<Room>),
    /// An event has come into a room; with its key if it is current state now.
    Event {
        /// The room.
        room: Arc<Room>,
        /// The event; `at` is its position.
        event: Event,
        /// Its type and state key.
        key: Option<Key>,
        /// Its position.
        at: Position,
    },
    /// The current state has changed in another way than by the event that has just come: it was resolved.
    State {
        /// The room.
        room: Arc<Room>,
        /// What holds now; `None` where nothing does any more. Without it, nothing is as it was.
        changes: Option<StateChanges>,
        /// The position of the change.
        at: Position,
    },
    /// A room stands here now.
    Head {
        /// The room.
        room: Arc<Room>,
        /// Where it stands.
        row: HeadRow,
        /// The position of its newest event.
        at: Position,
        /// The counts of threads that changed.
        threads: Vec<(storage::EventNid, i64)>,
    },
    /// Somebody is something else to a room now.
    Member {
        /// The room.
        room: Arc<Room>,
        /// The member; `at` is the position.
        member: Member,
        /// The position of the member event.
        at: Position,
    },
    /// So many users of another server have joined a room now.
    Server {
        /// The room.
        room: Arc<Room>,
        /// The server.
        name: OwnedServerName,
        /// The same.
        server: ServerNid,
        /// How many.
        joined: i64,
        /// The position of the event that changed it.
        at: Position,
    },
    /// A user has forgotten a room.
    Forgotten {
        /// The room.
        room: RoomNid,
        /// The user.
        user: UserNid,
    },
    /// An event was redacted; this is what remains of it.
    Redacted {
        /// The room.
        room: Arc<Room>,
        /// The redacted event.
        event: Arc<Event>,
        /// The member who has no names any more in the room, because they were in the redacted event.
        nameless: Option<UserNid>,
    },
    /// Somebody has read something.
    Receipt {
        /// The room.
        room: Arc<Room>,
        /// The receipt; `at` is its position.
        receipt: Receipt,
        /// Its position.
        at: Position,
    },
    /// A user's counts start here now.
    Marker {
        /// The user.
        user: UserNid,
        /// The room.
        room: RoomNid,
        /// The thread; 0 for what is in none.
        thread: i64,
        /// Where.
        marker: ReadMarker,
    },
    /// An event counts otherwise for a user than for most.
    Highlight(Highlight, Position),
    /// Something that is the user's own has changed: account data, push rules, tags.
    Own {
        /// The user.
        user: UserNid,
        /// The position of the change.
        at: Position,
    },
    /// Devices or keys of a user have changed.
    Devices {
        /// The user.
        user: UserNid,
        /// Whether other servers are to be told: it is a user of this one.
        is_local: bool,
        /// The local users who are to hear of it.
        watchers: Vec<UserNid>,
        /// The position of the newest change.
        at: Position,
    },
    /// A message has come for a device.
    ToDevice {
        /// Whose device it is.
        user: UserNid,
        /// The device.
        device: DeviceNid,
        /// The position of the message.
        at: Position,
    },
    /// There are more or fewer keys of a device to be handed out.
    KeyCounts {
        /// Whose device it is.
        user: UserNid,
        /// The device.
        device: DeviceNid,
    },
    /// A pusher was set.
    Pusher {
        /// Whose it is.
        user: UserNid,
        /// The pusher.
        pusher: PusherNid,
        /// The position from which on it is told of events.
        at: Position,
    },
    /// Messages wait for devices on another server.
    ToServer {
        /// The server.
        name: OwnedServerName,
        /// The same.
        server: ServerNid,
    },
}
