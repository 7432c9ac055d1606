//! Dehydrated devices (MSC3814): a user has one on which nobody is signed in. It gets keys of rooms while all others are away,
//! until a client takes it over.

use http::StatusCode;
use ruma::api::error::ErrorKind;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    check,
    upload::{self, MOST},
};
use crate::{
    app::App,
    auth::Requester,
    device_lists,
    error::{Error, Result},
    log::{AppendError, Change},
    sessions,
    storage::{
        DeviceNid, Pos, UserNid, accounts, dehydrated_devices, dehydrated_devices::Dehydrated,
        devices, keys, to_device,
    },
    to_device::fitting,
};

/// The largest `device_data`, in bytes.
const DATA: usize = 128 << 10;
/// How many messages one answer has at most, and how many bytes of them when there are more than one.
const MESSAGES: i64 = 100;
const BYTES: usize = 1 << 20;

/// A device that is uploaded.
#[derive(Debug)]
pub struct Uploaded<'a> {
    /// Its id.
    pub device_id: &'a str,
    /// What it is called.
    pub display_name: Option<&'a str>,
    /// What clients need to take it over.
    pub data: &'a RawValue,
    /// Its keys.
    pub device_keys: &'a RawValue,
    /// One-time keys with their ids.
    pub one_time: Vec<(&'a str, &'a RawValue)>,
    /// Fallback keys with their ids.
    pub fallback: Vec<(&'a str, &'a RawValue)>,
}

/// Some of the messages for a dehydrated device.
#[derive(Debug)]
pub struct Messages {
    /// The messages.
    pub events: Vec<Box<RawValue>>,
    /// Where the next ones begin.
    pub next: Pos,
    /// Whether there are some.
    pub has_more: bool,
}

fn check_data(data: &RawValue) -> Result<()> {
    #[derive(Deserialize)]
    struct Data {
        #[expect(dead_code, reason = "it must be there")]
        algorithm: String,
    }
    if data.get().len() > DATA {
        return Err(Error::too_large(format!(
            "`device_data` has at most {DATA} bytes"
        )));
    }
    let read: Result<Data, _> = serde_json::from_str(data.get());
    read.map_err(|error| Error::bad_json(format!("`device_data`: {error}")))?;
    Ok(())
}

/// Makes a device the dehydrated one of a user. The one before is deleted, with all that is its own.
///
/// # Errors
/// `M_INVALID_PARAM` if a device that somebody is signed in on has this id, or if there are too many keys; `M_BAD_JSON` and
/// `M_TOO_LARGE` if something is not as it must be; `M_UNKNOWN_TOKEN` if the requester's device is gone; if the database
/// fails.
pub async fn put(app: &App, requester: &Requester, uploaded: &Uploaded<'_>) -> Result<()> {
    let (user, id) = (requester.user, uploaded.device_id);
    sessions::check(&sessions::SignIn {
        device_id: Some(id.into()),
        display_name: uploaded.display_name.map(ToOwned::to_owned),
        ..sessions::SignIn::default()
    })?;
    check_data(uploaded.data)?;
    let device_keys = check::device_keys(uploaded.device_keys, &requester.user_id, id)?;
    let one_time = upload::read(&uploaded.one_time, MOST)?;
    let fallback = upload::read_fallback(&uploaded.fallback)?;
    let turn = app.dehydrated_devices.turn(&user);
    let _turn = turn.lock().await;
    loop {
        let before = dehydrated_devices::get(&app.db, user).await?;
        let known = devices::find(&app.db, user, id).await?;
        if known.is_some() && known != before.as_ref().map(|before| before.device) {
            return Err(Error::invalid_param("one of your devices has this id"));
        }
        upload::expect_no_signing_key(app, user, id).await?;
        let device = DeviceNid(app.log.new_id()?);
        let mut change = Change::new();
        change.write(accounts::expect_active(user));
        change.write(devices::expect(requester.device));
        let mut changed = vec![id];
        if let Some(before) = &before {
            change.write(dehydrated_devices::remove(user, before.device));
            for write in devices::delete(&[before.device]) {
                change.write(write);
            }
            if before.device_id != id {
                changed.push(&before.device_id);
            }
        }
        let (name, now) = (uploaded.display_name, app.clock.now());
        change.write(devices::add(device, user, id, name, now));
        change.write(dehydrated_devices::add(user, device, uploaded.data.get()));
        change.write(keys::set(device, &device_keys));
        for key in &one_time {
            let nid = app.log.new_id()?;
            change.write(keys::add(
                nid,
                device,
                &key.algorithm,
                &key.key_id,
                &key.json,
            ));
        }
        for key in &fallback {
            change.write(keys::set_fallback(
                device,
                &key.algorithm,
                &key.key_id,
                &key.json,
            ));
        }
        device_lists::changed(app, &mut change, user, &changed).await?;
        match app.log.append(change).await {
            Ok(_) => return Ok(()),
            // Another request has brought one, or taken it away.
            Err(AppendError::Duplicate) => {}
            Err(AppendError::Unexpected) => {
                let mine = devices::find(&app.db, user, requester.device_id.as_str()).await?;
                let is_active = accounts::is_active(&app.db, user).await?;
                if mine != Some(requester.device) || !is_active {
                    return Err(Error::unknown_token(false));
                }
            }
            Err(AppendError::NullCharacter) => {
                return Err(Error::bad_json("something has a null character"));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The dehydrated device of a user.
///
/// # Errors
/// `M_NOT_FOUND` if there is none.
pub async fn get(app: &App, user: UserNid) -> Result<Dehydrated> {
    let found = dehydrated_devices::get(&app.db, user).await?;
    found.ok_or_else(|| Error::not_found("there is no dehydrated device"))
}

/// Deletes the dehydrated device of a user; answers its id.
///
/// # Errors
/// `M_NOT_FOUND` if there is none.
pub async fn delete(app: &App, user: UserNid) -> Result<String> {
    let found = get(app, user).await?;
    sessions::end_devices(app, &[found.device]).await?;
    Ok(found.device_id)
}

/// The first messages for a dehydrated device after a position. They stay until the device is deleted: a client that takes it
/// over may be gone before it has got them all.
///
/// # Errors
/// `M_FORBIDDEN` if it is not the dehydrated device of the user.
pub async fn messages(
    app: &App,
    user: UserNid,
    device_id: &str,
    after: Pos,
    limit: Option<u64>,
) -> Result<Messages> {
    let found = dehydrated_devices::get(&app.db, user).await?;
    let found = found.filter(|found| found.device_id == device_id);
    let found = found.ok_or_else(|| {
        Error::new(
            StatusCode::FORBIDDEN,
            ErrorKind::Forbidden,
            "this is not your dehydrated device",
        )
    })?;
    let limit = limit.and_then(|limit| i64::try_from(limit).ok());
    let limit = limit.map_or(MESSAGES, |limit| limit.clamp(1, MESSAGES));
    let upto = app.head();
    let waiting = to_device::between(&app.db, found.device, after, upto, limit + 1).await?;
    let count = fitting(&waiting, limit, BYTES);
    let given = &waiting[..count];
    let events = given
        .iter()
        .map(|message| RawValue::from_string(message.json.clone()).map_err(Error::internal))
        .collect::<Result<_>>()?;
    Ok(Messages {
        events,
        next: given.last().map_or(after, |last| last.pos),
        has_more: count < waiting.len(),
    })
}
