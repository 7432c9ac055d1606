//! The devices of users of other servers: their lists are asked for once and then kept up to date by what the servers say
//! ("Device Management", Server-Server API).

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use ruma::{
    CanonicalJsonValue, OwnedUserId, ServerName, UserId,
    api::federation::{
        device::get_devices,
        transactions::edu::{DeviceListUpdateContent, SigningKeyUpdateContent},
    },
    encryption::CrossSigningKey,
    serde::Raw,
};
use tokio::time::{Instant, timeout_at};

use super::check;
use crate::{
    app::App,
    device_lists,
    error::Result,
    log::Change,
    remote,
    storage::{
        UserNid, cross_signing,
        remote_devices::{self, RemoteDevice},
    },
};

/// How many lists are asked for at once, and for one request of a client.
const AT_ONCE: usize = 16;
const MOST: usize = 64;
/// The largest list, in bytes and in devices.
const BYTES: u64 = 4 << 20;
const DEVICES: usize = 1000;
/// The longest id of a device, in bytes.
const DEVICE_ID: usize = 255;
/// The longest that a server has to answer.
const LONGEST: Duration = Duration::from_secs(20);

/// Asks for the lists of those of some users with whom somebody here shares a room; what comes is kept.
pub(super) async fn fetch(
    app: &App,
    users: Vec<(OwnedUserId, UserNid)>,
    timeout: Duration,
) -> Result<()> {
    let nids: Vec<UserNid> = users.iter().map(|(_, nid)| *nid).collect();
    let near = remote_devices::near(&app.db, &nids).await?;
    let deadline = Instant::now() + timeout.min(LONGEST);
    let near = users.into_iter().filter(|(_, nid)| near.contains(nid));
    stream::iter(near.take(MOST))
        .for_each_concurrent(AT_ONCE, async |(id, nid)| {
            match timeout_at(deadline, fetch_one(app, &id, nid)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(user = %id, %error, "a list of devices is not known");
                }
                Err(_) => tracing::debug!(user = %id, "a list of devices has not come in time"),
            }
        })
        .await;
    Ok(())
}

async fn fetch_one(app: &App, id: &UserId, user: UserNid) -> Result<()> {
    let turn = app.remote_lists.turn(&user);
    let _turn = turn.lock().await;
    // Somebody else may have asked meanwhile.
    if !remote_devices::known(&app.db, &[user]).await?.is_empty() {
        return Ok(());
    }
    let pos = app.head();
    let request = get_devices::v1::Request::new(id.to_owned());
    let list = remote::ask(app, id.server_name(), request, BYTES).await?;
    let mut change = Change::new();
    change.write(remote_devices::delete_all(user));
    for device in list.devices.into_iter().take(DEVICES) {
        let device_id = device.device_id.to_string();
        if device_id.len() <= DEVICE_ID
            && let Ok(keys) = check::device_keys(device.keys.json(), id, &device_id)
        {
            let device = RemoteDevice {
                device_id,
                display_name: device.device_display_name,
                keys: Some(keys),
            };
            change.write(remote_devices::set(user, &device));
        }
    }
    change.write(cross_signing::delete_keys(user));
    set_keys(
        &mut change,
        (id, user),
        list.master_key,
        list.self_signing_key,
    );
    let stream_id = i64::try_from(u64::from(list.stream_id)).unwrap_or(0);
    change.write(remote_devices::set_list(user, stream_id, pos));
    app.log.append(change).await?;
    Ok(())
}

/// Adds the keys of a user to a change, if they are such.
fn set_keys(
    change: &mut Change,
    (id, user): (&UserId, UserNid),
    master: Option<Raw<CrossSigningKey>>,
    self_signing: Option<Raw<CrossSigningKey>>,
) {
    for (usage, key) in [("master", master), ("self_signing", self_signing)] {
        let key = key.and_then(|key| cross_signing_key(&key, id, usage).ok());
        if let Some(key) = key {
            change.write(cross_signing::set(user, usage, &key));
        }
    }
}

fn cross_signing_key(key: &Raw<CrossSigningKey>, id: &UserId, usage: &str) -> Result<String> {
    let key = check::SigningKey::new(check::object(key.json())?, id, usage)?;
    Ok(CanonicalJsonValue::Object(key.object).to_string())
}

/// A user that an EDU is about, if it is for its origin to say something of them and somebody here shares a room with them.
async fn near(app: &App, origin: &ServerName, id: &UserId) -> Result<Option<UserNid>> {
    if id.server_name() != origin || app.is_local(id) {
        return Ok(None);
    }
    let Some(user) = app.names.find_user(&app.db, id).await? else {
        return Ok(None);
    };
    let near = remote_devices::near(&app.db, &[user]).await?;
    Ok(near.into_iter().next())
}

/// `m.device_list_update`. If something before it has not come, the list is asked for when somebody needs it.
///
/// # Errors
/// If the database fails: then it must be sent again.
pub async fn updated(
    app: &App,
    origin: &ServerName,
    content: DeviceListUpdateContent,
) -> Result<()> {
    let id = &content.user_id;
    let Some(user) = near(app, origin, id).await? else {
        return Ok(());
    };
    let turn = app.remote_lists.turn(&user);
    let _turn = turn.lock().await;
    let mut change = Change::new();
    if !remote_devices::known(&app.db, &[user]).await?.is_empty() {
        let stream_id = i64::try_from(u64::from(content.stream_id)).unwrap_or(i64::MAX);
        let known = remote_devices::stream_id(&app.db, user).await?;
        if known.is_some_and(|known| known >= stream_id) {
            return Ok(());
        }
        let before = |id: &ruma::UInt| i64::try_from(u64::from(*id)).ok() == known;
        let is_next = !content.prev_id.is_empty() && content.prev_id.iter().all(before);
        let device = device(app, user, &content).await?;
        match device {
            Some(write) if is_next => {
                change.write(write);
                change.write(remote_devices::advance(user, stream_id));
            }
            _ => drop(change.write(remote_devices::set_stale(user))),
        }
    }
    device_lists::changed(app, &mut change, user, &[""]).await?;
    app.log.append(change).await?;
    Ok(())
}

/// What an update says of its device; `None` if that is not as it must be.
async fn device(
    app: &App,
    user: UserNid,
    content: &DeviceListUpdateContent,
) -> Result<Option<crate::storage::Write>> {
    let device_id = content.device_id.to_string();
    if content.deleted == Some(true) {
        return Ok(Some(remote_devices::delete(user, &device_id)));
    }
    let count = remote_devices::count(&app.db, user).await?;
    if usize::try_from(count).map_or(true, |count| count >= DEVICES) || device_id.len() > DEVICE_ID
    {
        return Ok(None);
    }
    let keys = content.keys.as_ref();
    let keys = keys.map(|keys| check::device_keys(keys.json(), &content.user_id, &device_id));
    let Ok(keys) = keys.transpose() else {
        return Ok(None);
    };
    let device = RemoteDevice {
        device_id,
        display_name: content.device_display_name.clone(),
        keys,
    };
    Ok(Some(remote_devices::set(user, &device)))
}

/// `m.signing_key_update`.
///
/// # Errors
/// If the database fails: then it must be sent again.
pub async fn signing_keys_updated(
    app: &App,
    origin: &ServerName,
    content: SigningKeyUpdateContent,
) -> Result<()> {
    let id = &content.user_id;
    let Some(user) = near(app, origin, id).await? else {
        return Ok(());
    };
    let turn = app.remote_lists.turn(&user);
    let _turn = turn.lock().await;
    let mut change = Change::new();
    if !remote_devices::known(&app.db, &[user]).await?.is_empty() {
        set_keys(
            &mut change,
            (id, user),
            content.master_key,
            content.self_signing_key,
        );
    }
    device_lists::changed(app, &mut change, user, &[""]).await?;
    app.log.append(change).await?;
    Ok(())
}
