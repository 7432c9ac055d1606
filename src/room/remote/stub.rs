//! Rooms that this server is not in, and what its users are to them all the same: invited, knocking, refused.

use std::sync::Arc;

use homing_federation::Pdu;
use ruma::{RoomId, RoomVersionId, ServerName, UserId, events::room::member::MembershipState};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::join::COURTESY;
use crate::{
    app::App,
    bus::Effect,
    error::{Error, Result},
    log::{AppendError, Change},
    room::receive::outliers,
    rooms::{Room, Rooms},
    storage::{
        self, Event, Member, Membership, RoomNid, UserNid, members, outside,
        rooms::{HeadRow, RoomRow},
    },
};

/// The room with this id, made known if it is not: then with nothing in it.
pub(super) async fn room(
    app: &App,
    id: &RoomId,
    version: &RoomVersionId,
    room_type: Option<String>,
) -> Result<Arc<Room>> {
    if let Some(room) = app.rooms.by_id(&app.db, &app.log, id).await? {
        if room.version == *version {
            return Ok(room);
        }
        return of_another_version(app, room, version).await;
    }
    let nid = app.log.new_id()?;
    let head = HeadRow {
        room: nid,
        version: 1,
        state_line: app.log.new_id()?,
        ..HeadRow::default()
    };
    let row = RoomRow {
        nid: RoomNid(nid),
        room_id: id.to_string(),
        room_version: version.to_string(),
        room_type,
        head: head.clone(),
        last_pos: 0,
        bump_pos: 0,
    };
    let new = Rooms::create(&row, app.head())?;
    let mut change = Change::new();
    change.position();
    change.write(storage::rooms::add(new.nid, &row, app.clock.now(), false));
    change.write(storage::state::add_line(head.state_line, new.nid, None));
    change.effect(Effect::Room(Arc::clone(&new)));
    change.head(Arc::clone(&new), head);
    match app.log.append(change).await {
        Ok(_) => Ok(new),
        // Somebody else was quicker.
        Err(AppendError::Duplicate) => {
            app.log.settled().await?;
            let room = app.rooms.by_id(&app.db, &app.log, id).await?;
            room.ok_or_else(|| Error::internal("a room is known and is not"))
        }
        Err(error) => Err(error.into()),
    }
}

/// The room as one of another version, if this server was never in it: then its version is only what some server has said
/// about a room that it need not be in itself, and nobody may keep others out of a room by saying so. What was kept of the
/// room was judged by the wrong rules, so it goes, but for the events that say what users here are to the room.
async fn of_another_version(
    app: &App,
    known: Arc<Room>,
    version: &RoomVersionId,
) -> Result<Arc<Room>> {
    let busy = || Error::refused("the room is known to have another version");
    // Who joins and is not slow is let finish; who is slow has the wrong room then.
    let _nobody_joins = timeout(COURTESY, known.joining.lock()).await;
    let _nobody_writes = known.ingest.lock().await;
    if known.is_here() || known.seen().max_depth > 0 {
        return Err(busy());
    }
    expect_known(app, &known).await?;
    let row = storage::rooms::by_id(&app.db, known.id.as_str()).await?;
    let mut row = row.ok_or_else(busy)?;
    row.room_version = version.to_string();
    let new = Rooms::create(&row, app.head())?;
    let mut change = Change::new();
    change.position();
    for write in storage::rooms::set_version(known.nid, version.as_str()) {
        change.write(write);
    }
    change.effect(Effect::Room(Arc::clone(&new)));
    app.log.append(change).await?;
    Ok(new)
}

/// Checks that a room is still the one that is known by its id.
///
/// # Errors
/// 400 `M_UNKNOWN` if it has another version by now.
pub(super) async fn expect_known(app: &App, room: &Arc<Room>) -> Result<()> {
    let known = app.rooms.by_id(&app.db, &app.log, &room.id).await?;
    if known.is_some_and(|known| Arc::ptr_eq(&known, room)) {
        Ok(())
    } else {
        Err(Error::refused("the room has another version by now"))
    }
}

/// Keeps what a local user is to a room that this server is not in. `told` is what they are told of it: a list of stripped
/// state events.
pub(super) async fn set(
    app: &App,
    room: &Arc<Room>,
    user: &UserId,
    pdu: Arc<Pdu>,
    told: Option<&[Box<RawValue>]>,
) -> Result<()> {
    let event = outliers::keep_alone(app, room, pdu).await?;
    let content: MemberContent = event.pdu.content_as().map_err(Error::internal)?;
    let user_nid = app.user(user).await?;
    let member = Member {
        room: room.nid,
        user: user_nid,
        membership: Membership::from_state(&content.membership),
        event: event.nid,
        sender: event.sender,
        pos: 0,
        is_local: true,
        display_name: None,
        avatar_url: None,
        forgotten: false,
    };
    let mut change = Change::new();
    let at = change.position();
    change.write(members::set(&member, at));
    change.write(match told {
        Some(told) => {
            let json = serde_json::to_string(told).map_err(Error::internal)?;
            outside::tell(room.nid, user_nid, &json)
        }
        None => outside::forget(room.nid, user_nid),
    });
    change.effect(Effect::Member {
        room: Arc::clone(room),
        member,
        at,
    });
    app.log.append(change).await?;
    Ok(())
}

#[derive(Deserialize)]
struct MemberContent {
    membership: MembershipState,
}

/// What a local user is to a room, with the member event.
pub(super) async fn member(
    app: &App,
    room: &Room,
    user: UserNid,
) -> Result<Option<(Member, Event)>> {
    let Some(member) = members::get(&app.db, room.nid, user).await? else {
        return Ok(None);
    };
    let events = storage::events::many(&app.db, room.rules, &[member.event]).await?;
    Ok(events.into_iter().next().map(|event| (member, event)))
}

/// Takes the word of who has invited somebody here, or of one who may answer a knock, that the invite or the knock is void.
/// This server is not in the room, so it cannot judge; but the event must be about that very invite or knock.
///
/// # Errors
/// If the database fails. `false` if it is nothing of that kind.
pub async fn retract(
    app: &App,
    room: &Arc<Room>,
    origin: &ServerName,
    pdu: &Arc<Pdu>,
) -> Result<bool> {
    let content: Option<MemberContent> = pdu.content_as().ok();
    let (Some(content), Some(Ok(user))) = (content, pdu.state_key.as_deref().map(UserId::parse))
    else {
        return Ok(false);
    };
    let ends = matches!(
        content.membership,
        MembershipState::Leave | MembershipState::Ban
    );
    if !ends || &*pdu.event_type != "m.room.member" || !app.is_local(&user) {
        return Ok(false);
    }
    let Some(nid) = app.names.find_user(&app.db, &user).await? else {
        return Ok(false);
    };
    let Some((member, event)) = member(app, room, nid).await? else {
        return Ok(false);
    };
    let is_theirs = match member.membership {
        // Others may have the power to take it back, but who they are is not known here.
        Membership::Invite => event.pdu.sender == pdu.sender,
        Membership::Knock => true,
        _ => false,
    };
    let is_about_it = pdu.auth_events.contains(&event.pdu.event_id);
    if !is_theirs || !is_about_it || pdu.sender.server_name() != origin {
        return Ok(false);
    }
    set(app, room, &user, Arc::clone(pdu), None).await?;
    Ok(true)
}
