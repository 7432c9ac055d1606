//! What a device publishes of itself.

use std::collections::{BTreeSet, HashSet};

use ruma::UserId;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::{
    check::{self, SmallKey},
    query::{parse, public_key},
};
use crate::{
    app::App,
    bus::Effect,
    device_lists,
    error::{Error, Result},
    log::{AppendError, Change},
    storage::{
        DeviceNid, UserNid, cross_signing, devices,
        keys::{self, Counts},
    },
};

/// How many one-time keys of an algorithm a device has at most.
pub(super) const MOST: usize = 500;
/// Of how many algorithms a device has one-time keys at most, and of how many it has fallback keys: each sync says which they
/// are.
pub(super) const ALGORITHMS: usize = 16;

/// What is uploaded, and whose it is.
#[derive(Debug)]
pub struct Upload<'a> {
    /// The user.
    pub user: UserNid,
    /// The same.
    pub user_id: &'a UserId,
    /// The device.
    pub device: DeviceNid,
    /// The same.
    pub device_id: &'a str,
    /// Its keys, if they are uploaded.
    pub device_keys: Option<&'a RawValue>,
    /// One-time keys with their ids, such as `signed_curve25519:AAAAHQ`.
    pub one_time: Vec<(&'a str, &'a RawValue)>,
    /// Fallback keys with their ids.
    pub fallback: Vec<(&'a str, &'a RawValue)>,
}

/// Takes the keys of a device in. What is there already may come again. Answers what the device has then.
///
/// # Errors
/// `M_BAD_JSON` or `M_TOO_LARGE` if a key is not as it must be, `M_INVALID_PARAM` if there are too many, or of too many
/// algorithms, or if an id was used for another key, `M_UNKNOWN_TOKEN` if the device is gone; if the database fails.
pub async fn upload(app: &App, upload: &Upload<'_>) -> Result<Counts> {
    let device_keys = upload.device_keys;
    let device_keys = device_keys
        .map(|json| check::device_keys(json, upload.user_id, upload.device_id))
        .transpose()?;
    let one_time = read(&upload.one_time, MOST)?;
    let fallback = read_fallback(&upload.fallback)?;
    // One at a time, or together they would bring more than a device may have.
    let _turn = app.key_stocks.adding(upload.device).await;
    expect_few_fallbacks(app, upload.device, &fallback).await?;
    loop {
        let mut change = Change::new();
        let identity = match &device_keys {
            Some(json) => set_device_keys(app, &mut change, upload, json).await?,
            None => Identity::Same,
        };
        let begins_anew = identity == Identity::Other;
        if begins_anew {
            for write in keys::delete_small(upload.device) {
                change.write(write);
            }
        }
        let is_more = add_one_time(app, &mut change, upload.device, &one_time, begins_anew).await?
            | begins_anew
            | !fallback.is_empty();
        for SmallKey {
            algorithm,
            key_id,
            json,
        } in &fallback
        {
            change.write(keys::set_fallback(upload.device, algorithm, key_id, json));
        }
        if identity == Identity::Same && !is_more {
            break;
        }
        change.write(devices::expect(upload.device));
        if is_more {
            let (user, device) = (upload.user, upload.device);
            change.effect(Effect::KeyCounts { user, device });
        }
        match app.log.append(change).await {
            Ok(_) => break,
            // Another request has brought one of them.
            Err(AppendError::Duplicate) => {}
            Err(AppendError::Unexpected) => return Err(Error::unknown_token(false)),
            Err(AppendError::NullCharacter) => {
                return Err(Error::bad_json("a key has a null character"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(keys::counts(&app.db, upload.device).await?)
}

/// Reads one-time keys or fallback keys.
///
/// # Errors
/// `M_BAD_JSON` or `M_TOO_LARGE` if one is not as it must be, `M_INVALID_PARAM` if there are too many, or of too many
/// algorithms.
pub(super) fn read(keys: &[(&str, &RawValue)], most: usize) -> Result<Vec<SmallKey>> {
    if keys.len() > most {
        return Err(Error::invalid_param(format!(
            "at most {most} such keys can be uploaded at once"
        )));
    }
    let keys: Vec<SmallKey> = keys
        .iter()
        .map(|(id, json)| check::small_key(id, json))
        .collect::<Result<_>>()?;
    let algorithms: HashSet<&str> = keys.iter().map(|key| &*key.algorithm).collect();
    if algorithms.len() > ALGORITHMS {
        return Err(too_many_algorithms());
    }
    Ok(keys)
}

/// Reads fallback keys.
///
/// # Errors
/// As [`read`] does; `M_INVALID_PARAM` also if there are several of one algorithm.
pub(super) fn read_fallback(keys: &[(&str, &RawValue)]) -> Result<Vec<SmallKey>> {
    let keys = read(keys, ALGORITHMS)?;
    let algorithms: HashSet<&str> = keys.iter().map(|key| &*key.algorithm).collect();
    if algorithms.len() < keys.len() {
        return Err(Error::invalid_param(
            "a device has one fallback key of an algorithm",
        ));
    }
    Ok(keys)
}

fn too_many() -> Error {
    Error::invalid_param(format!("a device has at most {MOST} keys of an algorithm"))
}

fn too_many_algorithms() -> Error {
    Error::invalid_param(format!(
        "a device has keys of at most {ALGORITHMS} algorithms"
    ))
}

/// Makes sure that a device would not have fallback keys of too many algorithms.
///
/// # Errors
/// `M_INVALID_PARAM` if it would; if the database fails.
async fn expect_few_fallbacks(app: &App, device: DeviceNid, uploaded: &[SmallKey]) -> Result<()> {
    if uploaded.is_empty() {
        return Ok(());
    }
    let mut algorithms: HashSet<String> = keys::fallback_algorithms(&app.db, device)
        .await?
        .into_iter()
        .collect();
    let before = algorithms.len();
    algorithms.extend(uploaded.iter().map(|key| key.algorithm.clone()));
    if algorithms.len() > before.max(ALGORITHMS) {
        return Err(too_many_algorithms());
    }
    Ok(())
}

/// What the keys of a device are to those that it had before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    /// The same.
    Same,
    /// It had none, or something else is said of the same.
    New,
    /// The device has begun anew: whatever else it had uploaded belongs to keys that it has no more.
    Other,
}

/// Adds the keys of the device to a change, if they are new.
async fn set_device_keys(
    app: &App,
    change: &mut Change,
    upload: &Upload<'_>,
    json: &str,
) -> Result<Identity> {
    let known = keys::of_device(&app.db, upload.device).await?;
    if known.as_ref().is_some_and(|known| known == json) {
        return Ok(Identity::Same);
    }
    let (mut is_same, mut identity) = (false, Identity::New);
    if let Some(known) = &known {
        let (known, new) = (parse(known)?, parse(json)?);
        is_same = check::is_same(&known, &new);
        if known.get("keys") != new.get("keys") {
            identity = Identity::Other;
        }
    }
    expect_no_signing_key(app, upload.user, upload.device_id).await?;
    // If several requests bring the first keys at the same moment, the later ones must not take away what was signed in between.
    change.write(match &known {
        None => keys::set_first(upload.device, json),
        Some(_) => keys::set(upload.device, json),
    });
    if !is_same {
        let (user, id) = (upload.user, upload.device_id);
        change.write(cross_signing::unsign(user, id));
        change.write(cross_signing::unsign_with(user, &format!("ed25519:{id}")));
    }
    device_lists::changed(app, change, upload.user, &[upload.device_id]).await?;
    Ok(identity)
}

/// Makes sure that no key with which a user signs is called as a device.
///
/// # Errors
/// `M_FORBIDDEN` if one is; if the database fails.
pub(super) async fn expect_no_signing_key(app: &App, user: UserNid, device_id: &str) -> Result<()> {
    for key in cross_signing::of_users(&app.db, &[user]).await? {
        if public_key(&parse(&key.json)?).as_deref() == Some(device_id) {
            return Err(Error::forbidden(
                "the device is called as one of your keys for cross-signing",
            ));
        }
    }
    Ok(())
}

/// Adds to a change those one-time keys that are new; answers whether any is. All are if the device `begins_anew`.
async fn add_one_time(
    app: &App,
    change: &mut Change,
    device: DeviceNid,
    uploaded: &[SmallKey],
    begins_anew: bool,
) -> Result<bool> {
    if uploaded.is_empty() {
        return Ok(false);
    }
    let ids = || uploaded.iter().map(|key| key.key_id.clone()).collect();
    let algorithms: BTreeSet<&str> = uploaded.iter().map(|key| &*key.algorithm).collect();
    let algorithms = || algorithms.iter().map(|&name| name.to_owned()).collect();
    // Those that are handed out come last: a key that is handed out meanwhile is met twice, not never.
    let (mut stock, mut used, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    if !begins_anew {
        stock = keys::named(&app.db, device, algorithms(), ids()).await?;
        used = keys::used(&app.db, device, algorithms(), ids()).await?;
        let known = keys::counts(&app.db, device).await?.one_time.into_iter();
        counts = known
            .map(|(algorithm, count)| (algorithm, usize::try_from(count).unwrap_or(usize::MAX)))
            .collect();
    }
    let before = counts.len();
    let mut is_more = false;
    for key in uploaded {
        let is_named = |algorithm: &String, key_id: &String| {
            *algorithm == key.algorithm && *key_id == key.key_id
        };
        let in_stock = stock
            .iter()
            .find(|(algorithm, id, _)| is_named(algorithm, id));
        let was_used = used
            .iter()
            .find(|(algorithm, id, _)| is_named(algorithm, id));
        let is_same = match (in_stock, was_used) {
            (Some((_, _, json)), _) => *json == key.json,
            (None, Some((_, _, hash))) => *hash == hash_of(&key.json),
            (None, None) => {
                let SmallKey {
                    algorithm,
                    key_id,
                    json,
                } = key;
                match counts.iter_mut().find(|(known, _)| known == algorithm) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((algorithm.clone(), 1)),
                }
                let nid = app.log.new_id()?;
                change.write(keys::add(nid, device, algorithm, key_id, json));
                is_more = true;
                true
            }
        };
        if !is_same {
            return Err(Error::invalid_param(format!(
                "{}:{} was used for another key",
                key.algorithm, key.key_id
            )));
        }
    }
    if is_more && counts.iter().any(|(_, count)| *count > MOST) {
        return Err(too_many());
    }
    if counts.len() > before.max(ALGORITHMS) {
        return Err(too_many_algorithms());
    }
    Ok(is_more)
}

/// What is kept of a key that was handed out.
pub(super) fn hash_of(json: &str) -> Vec<u8> {
    Sha256::digest(json.as_bytes()).to_vec()
}
