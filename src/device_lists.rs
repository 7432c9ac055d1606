//! Whose devices and keys have changed, and who hears of it ("Tracking the device list for a user").

use ruma::OwnedServerName;

use crate::{
    app::App,
    bus::Effect,
    error::Result,
    keys::updates,
    log::Change,
    rooms::Room,
    storage::{
        UserNid,
        device_lists::{self, Untold},
        devices, keys, to_device,
    },
};

/// How many servers are told of devices that they have not heard of in one change.
const STRANGERS: usize = 200;

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

/// Tells the servers of the devices of a user who has joined a room with them, and was in none with them before.
///
/// # Errors
/// If the database fails.
pub async fn introduce(app: &App, room: &Room, user: UserNid) -> Result<()> {
    if room.seen().servers.is_empty() {
        return Ok(());
    }
    let strangers = device_lists::strangers(&app.db, room.nid, user).await?;
    if strangers.is_empty() {
        return Ok(());
    }
    // What follows refers to the last change; before this one they know of none.
    let pos = keys::changed(&app.db, user).await?;
    let devices = devices::of_user(&app.db, user).await?;
    let devices: Vec<Untold> = devices
        .into_iter()
        .map(|device| Untold {
            pos,
            user,
            device_id: device.device_id,
            before: None,
        })
        .collect();
    let edus = updates(app, &devices).await?;
    for strangers in strangers.chunks(STRANGERS) {
        let mut change = Change::new();
        for (server, name) in strangers {
            let Ok(name) = OwnedServerName::try_from(name.as_str()) else {
                continue;
            };
            for (_, edu) in &edus {
                let at = change.position();
                change.write(to_device::add_out(*server, at, edu));
            }
            let server = *server;
            change.effect(Effect::ToServer { name, server });
        }
        app.log.append(change).await?;
    }
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
