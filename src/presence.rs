//! Who is there (Client-Server API, "Presence"): kept in memory while a user is about, and written down when they go.
//!
//! A device says "online" or "unavailable" with each sync, and counts for as long as it syncs and half a minute longer.
//! A user is online if a device says so and they did something in the last five minutes; what they do is to send, or
//! to say that they are online after they were not.

mod people;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use ruma::presence::PresenceState;

use crate::{
    app::App,
    auth::Requester,
    error::{Error, Result},
    log::Change,
    outgoing::News,
    storage::{self, DeviceNid, Membership, RoomNid, UserNid, presence::LastSeen},
};
use people::{Changes, says};
pub use people::{Presence, View};

/// How often it is looked whose time has come.
const TICK: Duration = Duration::from_secs(1);
/// How many rows are written at once.
const WRITES: usize = 500;

/// A running sync of a device that counts as being there.
#[derive(Debug)]
pub struct Guard {
    app: Arc<App>,
    user: UserNid,
    device: DeviceNid,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let now = self.app.clock.now();
        let changes = self.app.presence.change(self.user, now, None, |person| {
            if let Some(device) = person.devices.get_mut(&self.device) {
                device.syncs = device.syncs.saturating_sub(1);
                device.last_seen = now;
            }
        });
        tell_later(&self.app, changes);
    }
}

/// A device syncs and says how its user is. It counts as being there until the guard is dropped and a while longer.
/// `None` if it does not want to count, or presence is off.
///
/// # Errors
/// `M_INVALID_PARAM` for a state that does not exist; if the database fails.
pub async fn syncing(
    app: &Arc<App>,
    requester: &Requester,
    state: &PresenceState,
) -> Result<Option<Guard>> {
    check(state)?;
    if !app.config.presence.enabled || *state == PresenceState::Offline {
        return Ok(None);
    }
    let (user, device) = (requester.user, requester.device);
    let seen = remembered(app, user).await?;
    let now = app.clock.now();
    let changes = app.presence.change(user, now, seen, |person| {
        says(person, device, state, now);
        if let Some(device) = person.devices.get_mut(&device) {
            device.syncs += 1;
        }
    });
    let guard = Guard {
        app: Arc::clone(app),
        user,
        device,
    };
    // Told before the sync looks at what is new, so that it is not woken by what it has changed itself.
    tell(app, changes).await?;
    Ok(Some(guard))
}

fn check(state: &PresenceState) -> Result<()> {
    match state {
        PresenceState::Online | PresenceState::Unavailable | PresenceState::Offline => Ok(()),
        other => Err(Error::invalid_param(format!(
            "there is no presence state {}",
            other.as_str()
        ))),
    }
}

/// What the database remembers of a user who is not in memory.
async fn remembered(app: &App, user: UserNid) -> Result<Option<LastSeen>> {
    if app.presence.is_known(user) {
        return Ok(None);
    }
    let mut rows = storage::presence::many(&app.db, &[user]).await?;
    Ok(rows.pop().map(|(_, seen)| seen))
}

/// A user says how they are, and why.
///
/// # Errors
/// `M_INVALID_PARAM` for a state that does not exist; if the database fails.
pub async fn set(
    app: &Arc<App>,
    requester: &Requester,
    state: &PresenceState,
    status_msg: Option<String>,
) -> Result<()> {
    check(state)?;
    if !app.config.presence.enabled {
        return Ok(());
    }
    let seen = remembered(app, requester.user).await?;
    let now = app.clock.now();
    let mut unsaved = None;
    let changes = app.presence.change(requester.user, now, seen, |person| {
        says(person, requester.device, state, now);
        if *state == PresenceState::Online {
            person.last_active = person.last_active.max(now);
        }
        if person.status_msg != status_msg {
            person.status_msg = status_msg;
            unsaved = Some((requester.user, person.seen()));
        }
    });
    // What somebody has written themselves is not lost with the process.
    write(app, unsaved.as_slice()).await?;
    tell(app, changes).await
}

/// A user did something: whoever is idle on a device is not any more.
pub fn active(app: &Arc<App>, user: UserNid) {
    // One who is not in memory is offline, and doing something does not change that.
    if !app.config.presence.enabled || !app.presence.is_known(user) {
        return;
    }
    let now = app.clock.now();
    let changes = app.presence.change(user, now, None, |person| {
        person.last_active = person.last_active.max(now);
        person.unsaved = true;
        for device in person.devices.values_mut() {
            if device.says == PresenceState::Unavailable {
                device.says = PresenceState::Online;
            }
        }
    });
    tell_later(app, changes);
}

/// How some users are, as far as anything is known of them.
///
/// # Errors
/// If the database fails.
pub async fn views(app: &App, users: &[UserNid]) -> Result<HashMap<UserNid, View>> {
    let mut views = app.presence.views(users, app.clock.now());
    let missing: Vec<UserNid> = users
        .iter()
        .filter(|user| !views.contains_key(user))
        .copied()
        .collect();
    if !missing.is_empty() {
        for (user, seen) in storage::presence::many(&app.db, &missing).await? {
            views.insert(user, View::of(seen));
        }
    }
    Ok(views)
}

/// How a user is.
///
/// # Errors
/// If the database fails.
pub async fn view(app: &App, user: UserNid) -> Result<View> {
    let mut views = views(app, &[user]).await?;
    Ok(views.remove(&user).unwrap_or_else(View::unknown))
}

fn tell_later(app: &Arc<App>, changes: Changes) {
    if changes.seen.is_empty() && changes.gone.is_empty() {
        return;
    }
    let app = Arc::clone(app);
    tokio::spawn(async move {
        if let Err(error) = tell(&app, changes).await {
            tracing::warn!(%error, "a change of presence could not be told");
        }
    });
}

/// Writes down who went, and tells the others of those who changed.
async fn tell(app: &App, changes: Changes) -> Result<()> {
    for user in changes.seen {
        app.bus.presence(user, watchers(app, user).await?);
        if app.is_local(&app.names.user_id(&app.db, user).await?) {
            app.bus.outgoing.tell(News::Presence(user));
        }
    }
    write(app, &changes.gone).await
}

async fn write(app: &App, gone: &[(UserNid, LastSeen)]) -> Result<()> {
    for rows in gone.chunks(WRITES) {
        let mut change = Change::new();
        for (user, seen) in rows {
            change.write(storage::presence::set(*user, seen));
        }
        app.log.append(change).await?;
    }
    Ok(())
}

/// The local users who may see how a user is: those in the same rooms, and the user.
async fn watchers(app: &App, user: UserNid) -> Result<HashSet<UserNid>> {
    let rooms = rooms(app, user).await?;
    let mut watchers = HashSet::from([user]);
    for room in app.rooms.many(&app.db, &app.log, &rooms).await?.values() {
        watchers.extend(room.seen().local.keys());
    }
    Ok(watchers)
}

/// The rooms that a user has joined.
///
/// # Errors
/// If the database fails.
pub async fn rooms(app: &App, user: UserNid) -> Result<Vec<RoomNid>> {
    if !app.is_local(&app.names.user_id(&app.db, user).await?) {
        return Ok(storage::members::of_remote_user(&app.db, user).await?);
    }
    let feed = app.bus.feed(&app.db, &app.log, user).await?;
    let state = feed.state();
    let memberships = state.memberships.iter();
    let joined = memberships.filter(|(_, member)| member.membership == Membership::Join);
    Ok(joined.map(|(room, _)| *room).collect())
}

/// Another server says how one of its users is. Who shares no room with anybody here is of no interest.
///
/// # Errors
/// If the database fails.
pub async fn heard(app: &Arc<App>, user: UserNid, view: View) -> Result<()> {
    if !app.config.presence.enabled || watchers(app, user).await?.len() <= 1 {
        return Ok(());
    }
    let changes = app.presence.heard(user, view, app.clock.now());
    tell(app, changes).await
}

/// Looks at all whose time has come.
///
/// # Errors
/// If the database fails.
pub async fn tick(app: &App) -> Result<()> {
    let now = app.clock.now();
    let mut changes = Changes::default();
    {
        let mut people = app.presence.people();
        while let Some((at, user)) = people.due.first().copied()
            && at <= now
        {
            people.due.pop_first();
            people.look(user, now, &mut changes);
        }
    }
    tell(app, changes).await
}

/// Lets time pass until the server ends, then writes down all who are still there.
pub async fn run(app: Arc<App>) {
    while app
        .shutdown
        .run_until_cancelled(tokio::time::sleep(TICK))
        .await
        .is_some()
    {
        if let Err(error) = tick(&app).await {
            tracing::warn!(%error, "a change of presence could not be told");
        }
    }
    let unsaved: Vec<(UserNid, LastSeen)> = app
        .presence
        .people()
        .people
        .iter()
        .filter(|(_, person)| person.unsaved)
        .map(|(user, person)| (*user, person.seen()))
        .collect();
    if let Err(error) = write(&app, &unsaved).await {
        tracing::error!(%error, "who was seen last when could not be written down");
    }
}
