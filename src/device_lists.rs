//! Whose devices and keys have changed, and who hears of it ("Tracking the device list for a user").

use crate::{
    app::App,
    bus::Effect,
    error::Result,
    log::Change,
    storage::{UserNid, device_lists},
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
