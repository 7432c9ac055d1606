//! Handing one-time keys out: each once, the oldest first, and on disk before anybody gets it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use ruma::{
    DeviceId, OneTimeKeyAlgorithm, OwnedDeviceId, OwnedOneTimeKeyId, OwnedUserId, UserId,
    api::federation::keys::claim_keys, encryption::OneTimeKey, serde::Raw,
};
use serde::Serialize;
use serde_json::{Value, value::RawValue};

use super::{expect_few, others, stock::Taken, upload::hash_of};
use crate::{
    app::App,
    bus::Effect,
    error::{Error, Result},
    http::sound,
    log::{AppendError, Change},
    storage::{
        DeviceNid, UserNid, devices,
        keys::{self, FallbackKey, HandedOut},
    },
};

/// How often it is tried again when the keys in memory were not those in the database.
const TRIES: usize = 10;

/// Of which devices keys are wanted, and of what algorithm.
pub type Claims = BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, OneTimeKeyAlgorithm>>;
/// The keys of a user's devices.
type OfUser = BTreeMap<OwnedDeviceId, BTreeMap<OwnedOneTimeKeyId, Raw<OneTimeKey>>>;

/// What was handed out, as clients are told it.
#[derive(Debug, Default, Serialize)]
pub struct Claimed {
    /// The keys.
    #[serde(rename = "one_time_keys")]
    pub keys: BTreeMap<OwnedUserId, OfUser>,
    /// The servers that could not be asked, and why.
    pub failures: BTreeMap<String, Value>,
}

/// One device of which a key is wanted.
#[derive(Debug)]
struct Wanted<'a> {
    user_id: &'a UserId,
    device_id: &'a DeviceId,
    algorithm: &'a str,
    user: UserNid,
    device: DeviceNid,
}

/// Hands out keys of devices here and on other servers, which have so much time to answer, to a local user.
///
/// # Errors
/// `M_TOO_LARGE` if those are too many; if the database fails.
pub async fn claim(
    app: &App,
    claimer: UserNid,
    claims: Claims,
    timeout: Duration,
) -> Result<Claimed> {
    expect_few(&claims, BTreeMap::len)?;
    let mut requests: BTreeMap<_, claim_keys::v1::OneTimeKeyClaims> = BTreeMap::new();
    let mut here = Claims::new();
    for (user, devices) in claims {
        if app.is_local(&user) {
            here.insert(user, devices);
        } else {
            let server = user.server_name().to_owned();
            requests.entry(server).or_default().insert(user, devices);
        }
    }
    let asked = requests.clone();
    let requests = requests
        .into_iter()
        .map(|(server, claims)| (server, claim_keys::v1::Request::new(claims)));
    let (claimed, (answers, failures)) = tokio::join!(claim_here(app, &here), async {
        let (requests, until) = (requests.collect::<Vec<_>>(), others::deadline(timeout));
        if requests.is_empty() {
            return (Vec::new(), BTreeMap::new());
        }
        let _turn = others::turn(app, claimer, until).await;
        others::ask(app, requests, until).await
    });
    let mut claimed = claimed?;
    claimed.failures = failures;
    for (server, answer) in answers {
        for (user, devices) in answer.one_time_keys {
            let Some(asked) = asked.get(&server).and_then(|claims| claims.get(&user)) else {
                continue;
            };
            let is_sound =
                |key: &Raw<OneTimeKey>| sound::check(key.json().get().as_bytes()).is_ok();
            let mut devices: OfUser = devices;
            devices
                .retain(|device, keys| asked.contains_key(device) && keys.values().all(is_sound));
            claimed.keys.insert(user, devices);
        }
    }
    Ok(claimed)
}

/// Hands out keys of devices of local users; a fallback key where there is no other, and nothing where there is none.
///
/// # Errors
/// `M_TOO_LARGE` if those are too many; if the database fails.
pub async fn claim_here(app: &App, claims: &Claims) -> Result<Claimed> {
    expect_few(claims, BTreeMap::len)?;
    let ids = claims.keys().filter(|id| app.is_local(id));
    let nids = app.names.find_users(&app.db, ids.map(|id| &**id)).await?;
    let users: Vec<UserNid> = nids.values().copied().collect();
    if users.is_empty() {
        return Ok(Claimed::default());
    }
    let known = devices::of_users(&app.db, &users).await?;
    let of_nid: HashMap<UserNid, _> = claims
        .iter()
        .filter_map(|(id, devices)| Some((*nids.get(id)?, (id, devices))))
        .collect();
    let wanted: Vec<Wanted<'_>> = known
        .iter()
        .filter_map(|(user, id, device)| {
            let (user_id, devices) = of_nid.get(user)?;
            let named = <&DeviceId>::from(id.as_str());
            let (device_id, algorithm) = devices.get_key_value(named)?;
            Some(Wanted {
                user_id,
                device_id,
                algorithm: algorithm.as_str(),
                user: *user,
                device: *device,
            })
        })
        .collect();
    for _ in 0..TRIES {
        match take(app, &wanted).await {
            Err(Error::Append(AppendError::Unexpected)) => {
                let devices: HashSet<_> = wanted.iter().map(|wanted| wanted.device).collect();
                app.key_stocks.forget(&devices);
            }
            result => return result,
        }
    }
    Err(Error::internal("the keys that are left change too often"))
}

/// Tries to hand out a key of each device.
async fn take(app: &App, wanted: &[Wanted<'_>]) -> Result<Claimed> {
    let places = wanted.iter().map(|one| (one.device, one.algorithm.into()));
    let taken = app.key_stocks.take(app, places.collect()).await?;
    let taken: HashMap<DeviceNid, Taken<'_>> =
        taken.into_iter().map(|one| (one.device(), one)).collect();
    let mut change = Change::new();
    let fallbacks = take_fallbacks(app, &mut change, wanted, &taken).await?;
    let (mut claimed, mut handed_out) = (Claimed::default(), Vec::new());
    for wanted in wanted {
        let (user, device, algorithm) = (wanted.user, wanted.device, wanted.algorithm);
        let is_new = if let Some(Taken { key, .. }) = taken.get(&device) {
            let hash = hash_of(&key.json);
            handed_out.push(HandedOut {
                device,
                algorithm,
                key,
                hash,
            });
            add(&mut claimed, wanted, &key.key_id, key.json.clone())?;
            true
        } else if let Some(key) = fallbacks.get(&device) {
            add(&mut claimed, wanted, &key.key_id, key.json.clone())?;
            !key.used
        } else {
            false
        };
        if is_new {
            change.effect(Effect::KeyCounts { user, device });
        }
    }
    for write in keys::hand_out(handed_out) {
        change.write(write);
    }
    if !change.is_empty() {
        app.log.append(change).await?;
    }
    Ok(claimed)
}

/// The fallback keys of those devices that have no other left; adds to a change that they are handed out.
async fn take_fallbacks(
    app: &App,
    change: &mut Change,
    wanted: &[Wanted<'_>],
    taken: &HashMap<DeviceNid, Taken<'_>>,
) -> Result<HashMap<DeviceNid, FallbackKey>> {
    let mut of_algorithms: BTreeMap<&str, Vec<DeviceNid>> = BTreeMap::new();
    for wanted in wanted {
        if !taken.contains_key(&wanted.device) {
            let devices = of_algorithms.entry(wanted.algorithm).or_default();
            devices.push(wanted.device);
        }
    }
    let mut fallbacks = HashMap::new();
    for (algorithm, devices) in of_algorithms {
        let keys = keys::fallbacks(&app.db, &devices, algorithm).await?;
        let fresh = keys.iter().filter(|(_, key)| !key.used);
        let fresh: Vec<_> = fresh.map(|(device, key)| (*device, &*key.key_id)).collect();
        if !fresh.is_empty() {
            change.write(keys::use_fallbacks(algorithm, &fresh));
        }
        fallbacks.extend(keys);
    }
    Ok(fallbacks)
}

fn add(claimed: &mut Claimed, wanted: &Wanted<'_>, key_id: &str, json: String) -> Result<()> {
    let id = format!("{}:{key_id}", wanted.algorithm);
    let id = OwnedOneTimeKeyId::try_from(id).map_err(Error::internal)?;
    let json = RawValue::from_string(json).map_err(Error::internal)?;
    let of_user = claimed.keys.entry(wanted.user_id.to_owned()).or_default();
    let of_device = of_user.entry(wanted.device_id.to_owned()).or_default();
    of_device.insert(id, Raw::from_json(json));
    Ok(())
}
