//! The devices of users of other servers: their lists are asked for once and then kept up to date by what the servers say
//! ("Device Management", Server-Server API).

use ruma::{
    CanonicalJsonValue, ServerName, UInt, UserId,
    api::federation::transactions::edu::{DeviceListUpdateContent, SigningKeyUpdateContent},
    encryption::CrossSigningKey,
    serde::Raw,
};
use serde_json::value::RawValue;
use tokio::sync::OwnedMutexGuard;

use super::{
    check::{self, SigningKey},
    cross_signing::{MASTER, SELF_SIGNING, stored},
    device_list::GetDevices,
    others,
};
use crate::{
    app::App,
    device_lists,
    error::Result,
    log::Change,
    storage::{
        UserNid, cross_signing,
        remote_devices::{self, RemoteDevice},
    },
};

/// How many devices of a user are known at most.
const DEVICES: usize = 1000;
/// The longest id of a device, and the longest name, in bytes.
const DEVICE_ID: usize = 255;
const DISPLAY_NAME: usize = 255;

/// Asks for the list of the devices of a user with whom somebody here shares a room, and keeps it.
///
/// # Errors
/// If their server has no good answer, or the database fails.
pub(super) async fn fetch(app: &App, id: &UserId, user: UserNid) -> Result<()> {
    let turn = app.remote_lists.turn(&user);
    let _turn = turn.lock().await;
    // Somebody else may have asked meanwhile.
    if !remote_devices::known(&app.db, &[user]).await?.is_empty() {
        return Ok(());
    }
    let pos = app.head();
    let request = GetDevices::of(id.to_owned());
    let list = others::ask_one(app, id.server_name(), request).await?;
    let mut change = Change::new();
    change.write(remote_devices::delete_all(user));
    for device in list.devices().take(DEVICES) {
        let keys = device.keys.as_deref();
        if let Some(device) = read(id, device.id, keys, device.display_name) {
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
    let stream_id = i64::try_from(list.stream_id).unwrap_or(0);
    change.write(remote_devices::set_list(user, stream_id, pos));
    app.log.append(change).await?;
    Ok(())
}

/// A device as another server tells of it; `None` if that is not as it must be. A name that is too long is none.
fn read(
    user: &UserId,
    device_id: String,
    keys: Option<&RawValue>,
    display_name: Option<String>,
) -> Option<RemoteDevice> {
    if !is_device_id(&device_id) {
        return None;
    }
    let keys = keys.map(|keys| check::device_keys(keys, user, &device_id));
    Some(RemoteDevice {
        keys: keys.transpose().ok()?,
        device_id,
        display_name: display_name
            .filter(|name| name.len() <= DISPLAY_NAME && !name.contains('\0')),
    })
}

/// Whether a device can be called so.
fn is_device_id(id: &str) -> bool {
    (1..=DEVICE_ID).contains(&id.len()) && !id.contains('\0')
}

/// Adds the keys of a user to a change, if they are such.
fn set_keys(
    change: &mut Change,
    (id, user): (&UserId, UserNid),
    master: Option<Raw<CrossSigningKey>>,
    self_signing: Option<Raw<CrossSigningKey>>,
) {
    for (usage, key) in [(MASTER, master), (SELF_SIGNING, self_signing)] {
        let key = key.and_then(|key| cross_signing_key(&key, id, usage).ok());
        if let Some(key) = key {
            change.write(cross_signing::set(user, usage, &key));
        }
    }
}

/// Whether a user is known by another master key than this one.
async fn is_other_master(
    app: &App,
    (id, user): (&UserId, UserNid),
    master: &Raw<CrossSigningKey>,
) -> Result<bool> {
    let known = stored(app, user, id).await?.master;
    let new = check::object(master.json()).and_then(|key| SigningKey::new(key, id, MASTER));
    Ok(match (known, new) {
        (Some(known), Ok(new)) => known.public != new.public,
        _ => false,
    })
}

fn cross_signing_key(key: &Raw<CrossSigningKey>, id: &UserId, usage: &str) -> Result<String> {
    let key = SigningKey::new(check::object(key.json())?, id, usage)?;
    Ok(CanonicalJsonValue::Object(key.object).to_string())
}

/// A user of another server of whom something has changed, while nobody else changes what is known of their devices.
struct Changed {
    user: UserNid,
    /// Whether the list of their devices is known.
    is_known: bool,
    _turn: OwnedMutexGuard<()>,
}

impl Changed {
    /// The user that an EDU is about, if it is for its origin to say something of them and somebody here shares a room with
    /// them.
    async fn find(app: &App, origin: &ServerName, id: &UserId) -> Result<Option<Self>> {
        if id.server_name() != origin || app.is_local(id) {
            return Ok(None);
        }
        let Some(user) = app.names.find_user(&app.db, id).await? else {
            return Ok(None);
        };
        if remote_devices::near(&app.db, &[user]).await?.is_empty() {
            return Ok(None);
        }
        let turn = app.remote_lists.turn(&user).lock_owned().await;
        let known = remote_devices::known(&app.db, &[user]).await?;
        Ok(Some(Self {
            user,
            is_known: !known.is_empty(),
            _turn: turn,
        }))
    }

    /// Makes a change, and tells those who share a room with the user.
    async fn tell(self, app: &App, mut change: Change) -> Result<()> {
        device_lists::changed(app, &mut change, self.user, &[""]).await?;
        app.log.append(change).await?;
        Ok(())
    }
}

/// `m.device_list_update`. If it does not follow what is known, the list is asked for when somebody needs it.
///
/// # Errors
/// If the database fails: then it must be sent again.
pub async fn updated(
    app: &App,
    origin: &ServerName,
    content: DeviceListUpdateContent,
) -> Result<()> {
    let id = &content.user_id;
    let Some(changed) = Changed::find(app, origin, id).await? else {
        return Ok(());
    };
    let (user, mut change) = (changed.user, Change::new());
    let known = remote_devices::stream_id(&app.db, user).await?;
    if !is_device_id(content.device_id.as_str()) {
        change.write(remote_devices::set_stale(user));
    } else if changed.is_known {
        let stream_id = i64::try_from(u64::from(content.stream_id)).unwrap_or(i64::MAX);
        let chain = &content.prev_id;
        let before = |id: &UInt| i64::try_from(u64::from(*id)).ok() == known;
        let is_later = known.is_none_or(|known| known < stream_id);
        let is_next = is_later && !chain.is_empty() && chain.iter().all(before);
        let device_id = content.device_id.as_str();
        let stored = remote_devices::get(&app.db, user, device_id).await?;
        match said(app, user, &content, stored.is_some()).await? {
            Some(device) if is_next => {
                change.write(match &device {
                    Some(device) => remote_devices::set(user, device),
                    None => remote_devices::delete(user, device_id),
                });
                change.write(remote_devices::advance(user, stream_id));
            }
            // It came with the list; but not everybody may have heard that there was something new.
            Some(device) if !is_later && !chain.is_empty() && device == stored => {}
            // Some servers only say that something is new, always with the same number and with nothing before it.
            _ => drop(change.write(remote_devices::set_stale(user))),
        }
    } else if content.deleted == Some(true) && known.is_none() {
        // Nobody has asked for the list, and there is nothing more to encrypt for: that is no news.
        return Ok(());
    }
    changed.tell(app, change).await
}

/// The device of an update as it now is, or that it is gone; `None` if what the update says is not as it must be, or the
/// device, which `is_known` or not, is one too many.
async fn said(
    app: &App,
    user: UserNid,
    content: &DeviceListUpdateContent,
    is_known: bool,
) -> Result<Option<Option<RemoteDevice>>> {
    if content.deleted == Some(true) {
        return Ok(Some(None));
    }
    let count = remote_devices::count(&app.db, user).await?;
    if !is_known && usize::try_from(count).map_or(true, |count| count >= DEVICES) {
        return Ok(None);
    }
    let device_id = content.device_id.to_string();
    let keys = content.keys.as_ref().map(Raw::json);
    let name = content.device_display_name.clone();
    Ok(read(&content.user_id, device_id, keys, name).map(Some))
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
    let Some(changed) = Changed::find(app, origin, id).await? else {
        return Ok(());
    };
    let (user, mut change) = (changed.user, Change::new());
    if content.master_key.is_none() && content.self_signing_key.is_none() {
        change.write(remote_devices::set_stale(user));
    } else if changed.is_known {
        if let Some(master) = &content.master_key
            && is_other_master(app, (id, user), master).await?
        {
            // What the old one has signed holds no more.
            change.write(cross_signing::delete_keys(user));
        }
        set_keys(
            &mut change,
            (id, user),
            content.master_key,
            content.self_signing_key,
        );
    }
    changed.tell(app, change).await
}
