//! How people come to a room and leave it.

pub(super) mod restricted;

use std::{sync::Arc, time::Duration};

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, OwnedUserId, RoomId, UserId,
    events::{StateEventType, room::member::MembershipState},
};
use serde_json::Value;

use super::{
    append::{Appended, NewEvent, Sender, append},
    profile,
    remote::{self, Joined},
    upgrade::settings,
};
use crate::{
    app::App,
    bus::Effect,
    device_lists,
    error::{Error, Result},
    log::{AppendError, Change},
    rooms::Room,
    storage::{Member, Membership, members, profiles},
};

/// How many rooms a deactivated user leaves before more are read.
const LEFT_AT_ONCE: usize = 100;

/// How long is waited for the name of a user of another server who is invited.
const NAME_TIME: Duration = Duration::from_secs(3);

/// The content of a member event: what the user says about themselves, where that is known here. For who is invited from
/// another server that one is asked, and if it does not answer soon, the invite has no name.
///
/// # Errors
/// If the database fails.
pub async fn content(
    app: &App,
    user: &UserId,
    membership: MembershipState,
) -> Result<CanonicalJsonObject> {
    let is_invite = membership == MembershipState::Invite;
    let mut content = bare_content(membership);
    if is_invite && !app.is_local(user) {
        let fields = tokio::time::timeout(NAME_TIME, profile::fields(app, user)).await;
        for (field, value) in fields
            .ok()
            .and_then(Result::ok)
            .iter()
            .flat_map(|all| all.iter())
        {
            if let ("displayname" | "avatar_url", Value::String(value)) = (field.as_str(), value) {
                content.insert(field.clone(), CanonicalJsonValue::String(value.clone()));
            }
        }
    }
    if app.is_local(user)
        && let Some(nid) = app.names.find_user(&app.db, user).await?
    {
        for (_, field, json) in
            profiles::many(&app.db, &[nid], ["displayname", "avatar_url"]).await?
        {
            if let Ok(value) = serde_json::from_str::<String>(&json) {
                content.insert(field, CanonicalJsonValue::String(value));
            }
        }
    }
    Ok(content)
}

/// The content of a member event that says nothing but the membership.
#[must_use]
#[expect(clippy::needless_pass_by_value, reason = "an enum of small names")]
pub fn bare_content(membership: MembershipState) -> CanonicalJsonObject {
    CanonicalJsonObject::from([(
        "membership".to_owned(),
        CanonicalJsonValue::String(membership.as_str().to_owned()),
    )])
}

/// What a user is to a room, if anything.
///
/// # Errors
/// If the database fails.
pub async fn of(app: &App, room: &Room, user: &UserId) -> Result<Option<Member>> {
    match app.names.find_user(&app.db, user).await? {
        Some(nid) => Ok(members::get(&app.db, room.nid, nid).await?),
        None => Ok(None),
    }
}

/// Changes what `user` is to a room.
async fn change(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    user: &UserId,
    mut content: CanonicalJsonObject,
    reason: Option<String>,
) -> Result<Appended> {
    add_reason(&mut content, reason);
    append(
        app,
        room,
        sender,
        NewEvent::state(StateEventType::RoomMember, user.as_str(), content),
    )
    .await
}

/// Sets a member event that a client wrote itself; it can do no more than the functions below.
///
/// # Errors
/// Theirs, and `M_BAD_JSON` if the content is none of a member event.
pub async fn set(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    user: &str,
    mut wanted: CanonicalJsonObject,
) -> Result<Appended> {
    let user = UserId::parse(user)
        .map_err(|_| Error::invalid_param("the state key of a member event is a user id"))?;
    let membership = match wanted.get("membership") {
        Some(CanonicalJsonValue::String(membership)) => MembershipState::from(membership.as_str()),
        _ => return Err(Error::bad_json("a member event has a membership")),
    };
    // The server that signs the event vouches for these two.
    wanted.remove("join_authorised_via_users_server");
    wanted.remove("third_party_invite");
    match membership {
        MembershipState::Invite if !app.is_local(&user) => {
            let event = NewEvent::state(StateEventType::RoomMember, user.as_str(), wanted);
            return invite_remote(app, room, sender, &user, event).await;
        }
        MembershipState::Join if user == sender.id => {
            let current = members::get(&app.db, room.nid, sender.user).await?;
            let current = current.map(|member| member.membership);
            if current != Some(Membership::Join) {
                let mut full = content(app, &sender.id, membership).await?;
                full.append(&mut wanted);
                wanted = full;
                authorise(app, room, sender, current, &mut wanted).await?;
                let joined = change(app, room, sender, &user, wanted, None).await?;
                arrive(app, room, sender).await?;
                return Ok(joined);
            }
        }
        _ => {}
    }
    change(app, room, sender, &user, wanted, None).await
}

/// Adds to a join who lets the user in, where that is needed.
async fn authorise(
    app: &App,
    room: &Room,
    sender: &Sender,
    membership: Option<Membership>,
    content: &mut CanonicalJsonObject,
) -> Result<()> {
    if !matches!(membership, Some(Membership::Invite | Membership::Ban))
        && let Some(authoriser) = restricted::authoriser(app, room, &sender.id).await?
    {
        content.insert(
            "join_authorised_via_users_server".to_owned(),
            CanonicalJsonValue::String(authoriser.to_string()),
        );
    }
    Ok(())
}

/// Joins a room, through other servers if this one is not in it. Somebody who has joined already stays as they are.
///
/// # Errors
/// `M_FORBIDDEN` if the room's rules do not allow it, `M_NOT_FOUND` if no server is known that is in the room, 502
/// `M_UNKNOWN` if none of those can be reached.
pub async fn join(
    app: &App,
    id: &RoomId,
    via: &[OwnedServerName],
    sender: &Sender,
    reason: Option<String>,
    extra: CanonicalJsonObject,
) -> Result<()> {
    let room = app.rooms.by_id(&app.db, &app.log, id).await?;
    let mut failure = None;
    if let Some(room) = room.as_ref().filter(|room| room.is_here()) {
        match join_here(app, room, sender, reason.clone(), extra.clone()).await {
            // Somebody on another server may be able to let the user in.
            Err(error) if restricted::is_unable(&error) => failure = Some(error),
            result => return result,
        }
    }
    let inviter = match &room {
        Some(room) => inviter(app, room, sender).await?,
        None => None,
    };
    let servers = remote::candidates(app, room.as_deref(), id, via, inviter.as_deref());
    if servers.is_empty() {
        let unknown = || Error::not_found(format!("no server is known that is in {id}"));
        return Err(failure.unwrap_or_else(unknown));
    }
    let mut content = content(app, &sender.id, MembershipState::Join).await?;
    content.extend(extra.clone());
    add_reason(&mut content, reason.clone());
    match remote::join(app, id, sender, content, servers).await? {
        Joined::Through(room) => arrive(app, &room, sender).await,
        // Somebody else here has joined it meanwhile.
        Joined::Here(room) => join_here(app, &room, sender, reason, extra).await,
    }
}

/// Who has invited the user.
async fn inviter(app: &App, room: &Room, sender: &Sender) -> Result<Option<OwnedUserId>> {
    let member = members::get(&app.db, room.nid, sender.user).await?;
    match member.filter(|member| member.membership == Membership::Invite) {
        Some(member) => app.names.user_id(&app.db, member.sender).await.map(Some),
        None => Ok(None),
    }
}

fn add_reason(content: &mut CanonicalJsonObject, reason: Option<String>) {
    if let Some(reason) = reason {
        content.insert("reason".to_owned(), CanonicalJsonValue::String(reason));
    }
}

async fn join_here(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    reason: Option<String>,
    extra: CanonicalJsonObject,
) -> Result<()> {
    let member = members::get(&app.db, room.nid, sender.user).await?;
    let membership = member.map(|member| member.membership);
    if membership == Some(Membership::Join) {
        return Ok(());
    }
    let mut content = content(app, &sender.id, MembershipState::Join).await?;
    content.extend(extra);
    authorise(app, room, sender, membership, &mut content).await?;
    change(app, room, sender, &sender.id, content, reason).await?;
    arrive(app, room, sender).await
}

/// What follows a join.
async fn arrive(app: &App, room: &Arc<Room>, sender: &Sender) -> Result<()> {
    device_lists::introduce(app, room, sender.user).await?;
    settings::bring(app, room, sender).await
}

/// Leaves a room, or rejects an invite, or takes back a knock. Somebody who has left already stays as they are.
///
/// # Errors
/// `M_FORBIDDEN` if the user was never in the room or is banned.
pub async fn leave(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    reason: Option<String>,
) -> Result<()> {
    let member = members::get(&app.db, room.nid, sender.user).await?;
    match member.map(|member| member.membership) {
        Some(Membership::Leave) => return Ok(()),
        Some(Membership::Join | Membership::Invite | Membership::Knock) => {}
        Some(Membership::Ban) | None => return Err(Error::forbidden("you are not in this room")),
    }
    if !room.is_here() {
        let mut content = bare_content(MembershipState::Leave);
        add_reason(&mut content, reason);
        return remote::leave(app, room, sender, content).await;
    }
    change(
        app,
        room,
        sender,
        &sender.id,
        bare_content(MembershipState::Leave),
        reason,
    )
    .await?;
    Ok(())
}

/// Leaves all rooms, rejects all invites and takes back all knocks of a user whose account is closed. A room that
/// cannot be left stops nothing; it is tried again when the server starts.
///
/// # Errors
/// If the database fails.
pub async fn leave_all(app: &App, sender: &Sender) -> Result<()> {
    let mut members = members::of_user(&app.db, sender.user).await?;
    members.retain(|member| !matches!(member.membership, Membership::Leave | Membership::Ban));
    let nids: Vec<_> = members.iter().map(|member| member.room).collect();
    for chunk in nids.chunks(LEFT_AT_ONCE) {
        let rooms = app.rooms.many(&app.db, &app.log, chunk).await?;
        for room in rooms.values() {
            let Err(error) = leave(app, room, sender, None).await else {
                continue;
            };
            // Somebody else may have made them leave meanwhile.
            let now = of(app, room, &sender.id).await?;
            let has_left =
                |member: &Member| matches!(member.membership, Membership::Leave | Membership::Ban);
            if !now.as_ref().is_none_or(has_left) {
                tracing::warn!(%error, room = %room.id, "a deactivated user stays in a room");
            }
        }
    }
    Ok(())
}

/// Goes on with the deactivations that the end of the server has cut off: their rooms are still to be left.
///
/// # Errors
/// If the database fails.
pub async fn finish_deactivations(app: &App) -> Result<()> {
    for user in members::of_deactivated(&app.db).await? {
        let id = app.names.user_id(&app.db, user).await?;
        leave_all(
            app,
            &Sender {
                id,
                user,
                txn: None,
            },
        )
        .await?;
    }
    Ok(())
}

/// Leaves a room for good: it disappears from the user's view of the world.
///
/// # Errors
/// `M_UNKNOWN` while the user is in the room or invited.
pub async fn forget(app: &App, room: &Room, sender: &Sender) -> Result<()> {
    let member = members::get(&app.db, room.nid, sender.user).await?;
    match member.map(|member| member.membership) {
        Some(Membership::Leave | Membership::Ban) => {}
        Some(_) => return Err(Error::refused("leave the room before you forget it")),
        None => return Err(Error::refused("you were never in this room")),
    }
    let mut change = Change::new();
    change.write(members::forget(room.nid, sender.user));
    change.effect(Effect::Forgotten {
        room: room.nid,
        user: sender.user,
    });
    match app.log.append(change).await {
        // Somebody was quicker and invited the user again.
        Err(AppendError::Unexpected) => Err(Error::refused("leave the room before you forget it")),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}

/// Invites a user.
///
/// # Errors
/// `M_FORBIDDEN` if the room's rules do not allow it; what their server answers if it refuses.
pub async fn invite(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    user: &UserId,
    reason: Option<String>,
) -> Result<()> {
    let mut content = content(app, user, MembershipState::Invite).await?;
    if app.is_local(user) {
        change(app, room, sender, user, content, reason).await?;
    } else {
        add_reason(&mut content, reason);
        let event = NewEvent::state(StateEventType::RoomMember, user.as_str(), content);
        invite_remote(app, room, sender, user, event).await?;
    }
    Ok(())
}

/// Invites a user of another server with an event that says so.
///
/// # Errors
/// Those of [`invite`].
pub async fn invite_remote(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    user: &UserId,
    event: NewEvent,
) -> Result<Appended> {
    remote::invite::expect_allowed(app, room, user).await?;
    remote::invite::send(app, room, sender, event).await
}

/// Asks to be let in, through other servers if this one is not in the room.
///
/// # Errors
/// `M_FORBIDDEN` if the room's rules do not allow it.
pub async fn knock(
    app: &App,
    id: &RoomId,
    via: &[OwnedServerName],
    sender: &Sender,
    reason: Option<String>,
) -> Result<()> {
    let mut content = content(app, &sender.id, MembershipState::Knock).await?;
    let room = app.rooms.by_id(&app.db, &app.log, id).await?;
    if let Some(room) = room.as_ref().filter(|room| room.is_here()) {
        change(app, room, sender, &sender.id, content, reason).await?;
        return Ok(());
    }
    let told = match &room {
        Some(room) if via.is_empty() => remote::told_by(app, room, sender.user).await?,
        _ => Vec::new(),
    };
    let named = if via.is_empty() { &told } else { via };
    let servers = remote::candidates(app, room.as_deref(), id, named, None);
    if servers.is_empty() {
        return Err(Error::not_found(format!(
            "no server is known that is in {id}"
        )));
    }
    add_reason(&mut content, reason);
    remote::knock(app, id, sender, content, servers).await
}

/// Makes somebody else leave a room.
///
/// # Errors
/// `M_FORBIDDEN` if they are not in it, or the requester's power does not suffice.
pub async fn kick(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    user: &UserId,
    reason: Option<String>,
) -> Result<()> {
    match of(app, room, user).await?.map(|member| member.membership) {
        Some(Membership::Join | Membership::Invite | Membership::Knock) => {}
        _ => return Err(Error::forbidden("the user is not in this room")),
    }
    change(
        app,
        room,
        sender,
        user,
        bare_content(MembershipState::Leave),
        reason,
    )
    .await?;
    Ok(())
}

/// Bans somebody, who need not be in the room.
///
/// # Errors
/// `M_FORBIDDEN` if the requester's power does not suffice.
pub async fn ban(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    user: &UserId,
    reason: Option<String>,
) -> Result<()> {
    change(
        app,
        room,
        sender,
        user,
        bare_content(MembershipState::Ban),
        reason,
    )
    .await?;
    Ok(())
}

/// Lifts a ban.
///
/// # Errors
/// `M_FORBIDDEN` if there is none, or the requester's power does not suffice.
pub async fn unban(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    user: &UserId,
    reason: Option<String>,
) -> Result<()> {
    if of(app, room, user).await?.map(|member| member.membership) != Some(Membership::Ban) {
        return Err(Error::forbidden("the user is not banned"));
    }
    change(
        app,
        room,
        sender,
        user,
        bare_content(MembershipState::Leave),
        reason,
    )
    .await?;
    Ok(())
}
