//! How a room begins: `POST /createRoom`, and the successor of an upgraded room.

mod content;

use std::sync::Arc;

use homing_federation::{draft::Draft, room_version};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomAliasId, RoomId, RoomVersionId,
    api::error::ErrorKind, events::StateEventType,
};

use super::append::{NewEvent, Sender, append_with};
use crate::{
    app::App,
    bus::Effect,
    clock::timestamp,
    error::{Error, Result},
    log::AppendError,
    rooms::{Head, Room, Rooms},
    storage::{
        self, RoomNid, aliases,
        rooms::{HeadRow, RoomRow},
    },
};
pub use content::{Defaults, Preset, canonical};

/// A room to be.
#[derive(Clone, Debug)]
pub struct NewRoom {
    /// Its version.
    pub version: RoomVersionId,
    /// What its create event says, apart from the creator and the version.
    pub creation_content: CanonicalJsonObject,
    /// The events after the create event, in order; the first is the creator's join.
    pub events: Vec<NewEvent>,
    /// Its alias on this server.
    pub alias: Option<OwnedRoomAliasId>,
    /// Whether it is shown in the room directory.
    pub published: bool,
}

/// Creates a room with all its first events in one commit.
///
/// # Errors
/// `M_UNSUPPORTED_ROOM_VERSION`, `M_ROOM_IN_USE` if the alias is taken, `M_INVALID_ROOM_STATE` if the creator may not
/// send one of the events, and those of `append`.
pub async fn create(app: &App, sender: &Sender, new: NewRoom) -> Result<Arc<Room>> {
    let rules =
        room_version::rules(&new.version).filter(|_| room_version::can_create(&new.version));
    let Some(rules) = rules else {
        let message = format!("rooms of version {} cannot be created here", new.version);
        return Err(Error::new(
            http::StatusCode::BAD_REQUEST,
            ErrorKind::UnsupportedRoomVersion,
            message,
        ));
    };
    let room_type = match new.creation_content.get("type") {
        Some(CanonicalJsonValue::String(room_type)) => Some(room_type.clone()),
        _ => None,
    };
    let mut content = new.creation_content;
    content.insert(
        "room_version".to_owned(),
        CanonicalJsonValue::String(new.version.to_string()),
    );
    if !rules.authorization.use_room_create_sender {
        content.insert(
            "creator".to_owned(),
            CanonicalJsonValue::String(sender.id.to_string()),
        );
    }
    let mut first = NewEvent::state(StateEventType::RoomCreate, "", content);
    let ts = timestamp(app.rooms.creation_ts(app.clock.now()));
    first.ts = Some(ts);
    let room_id = if rules.authorization.room_create_event_id_as_room_id {
        // The id is a hash of the create event, so the event is made once to learn it, and again as the first event.
        let draft = Draft {
            room_id: None,
            sender: sender.id.clone(),
            event_type: first.event_type.clone(),
            state_key: first.state_key.clone(),
            content: first.content.clone(),
            redacts: None,
            origin_server_ts: ts,
            prev_events: Vec::new(),
            auth_events: Vec::new(),
            depth: 1,
        };
        draft.sign(rules, app.name(), &app.signing_key)?.room_id
    } else {
        RoomId::new_v1(app.name())
    };

    let nid = app.log.new_id()?;
    let head = HeadRow {
        room: nid,
        state_line: app.log.new_id()?,
        ..HeadRow::default()
    };
    let row = RoomRow {
        nid: RoomNid(nid),
        room_id: room_id.to_string(),
        room_version: new.version.to_string(),
        room_type,
        head: head.clone(),
        last_pos: 0,
        bump_pos: 0,
    };
    let room = Rooms::create(&row, app.head())?;
    *room.head.lock().await = Some(Head::new(head.clone()));

    let mut writes = vec![
        storage::rooms::add(room.nid, &row, app.clock.now(), new.published),
        storage::state::add_line(head.state_line, room.nid, None),
    ];
    writes.extend(
        new.alias
            .map(|alias| aliases::add(&alias, room.nid, sender.user)),
    );
    let mut events = vec![first];
    events.extend(new.events);
    match append_with(app, &room, sender, events, &writes, || {
        vec![Effect::Room(Arc::clone(&room))]
    })
    .await
    {
        Ok(_) => Ok(room),
        Err(Error::Append(AppendError::Duplicate)) => Err(alias_taken()),
        Err(Error::Matrix {
            status: http::StatusCode::FORBIDDEN,
            message,
            ..
        }) => Err(Error::new(
            http::StatusCode::BAD_REQUEST,
            ErrorKind::InvalidRoomState,
            message,
        )),
        Err(error) => Err(error),
    }
}

/// 400 `M_ROOM_IN_USE`.
#[must_use]
pub fn alias_taken() -> Error {
    Error::new(
        http::StatusCode::BAD_REQUEST,
        ErrorKind::RoomInUse,
        "this alias is taken",
    )
}
