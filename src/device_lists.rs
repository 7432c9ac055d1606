//! Whose devices and keys have changed, and who hears of it ("Tracking the device list for a user").

use crate::{
    app::App,
    bus::Effect,
    error::Result,
    log::Change,
    rooms::Room,
    storage::{UserNid, device_lists, devices},
};

/// Adds to a change that something of these devices of a user has changed: their keys, their name, or that they are there.
/// An empty id stands for the keys of the user, and for users of other servers. Those who share a room with the user hear of
/// it.
///
/// # Errors
/// If the database fails.
pub async fn changed(
    app: &App,
    change: &mut Change,
    user: UserNid,
    devices: &[&str],
) -> Result<()> {
    let mut last = None;
    for device in devices {
        let at = change.position();
        change.write(device_lists::change(at, user, device));
        last = Some(at);
    }
    if let Some(at) = last {
        let is_local = app.is_local(&app.names.user_id(&app.db, user).await?);
        let mut watchers = device_lists::watchers(&app.db, user, is_local).await?;
        if is_local {
            watchers.push(user);
        }
        change.effect(Effect::Devices {
            user,
            is_local,
            watchers,
            at,
        });
    }
    Ok(())
}

/// Tells other servers of the devices of a user who has joined a room with servers that have heard of none of these so far.
///
/// # Errors
/// If the database fails.
pub async fn introduce(app: &App, room: &Room, user: UserNid) -> Result<()> {
    let is_alone = room.seen().servers.is_empty();
    if is_alone || !device_lists::has_strangers(&app.db, room.nid, user).await? {
        return Ok(());
    }
    let mut change = Change::new();
    for device in devices::of_user(&app.db, user).await? {
        let at = change.position();
        change.write(device_lists::change(at, user, &device.device_id));
        change.effect(Effect::Devices {
            user,
            is_local: true,
            // For people here nothing has changed.
            watchers: Vec::new(),
            at,
        });
    }
    app.log.append(change).await?;
    Ok(())
}

/// Adds to a change that a user has signed another one. Nobody but the signer hears of it.
pub fn signed(change: &mut Change, signer: UserNid, user: UserNid) {
    let at = change.position();
    change.write(device_lists::signed(at, signer, user));
    change.effect(Effect::Devices {
        user,
        is_local: false,
        watchers: vec![signer],
        at,
    });
}
