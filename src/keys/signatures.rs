//! Signatures that are added to keys later: of one's own devices, by oneself, and of other users.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use homing_federation::VerifyKey;
use ruma::{
    CanonicalJsonObject, OwnedUserId, UserId, api::client::keys::upload_signatures::v3::SignedKeys,
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    check::{self, SigningKey},
    cross_signing::{MASTER, Stored, stored},
    expect_few,
    query::{self, parse},
};
use crate::{
    app::App,
    auth::Requester,
    device_lists,
    error::Result,
    log::Change,
    storage::{
        UserNid,
        cross_signing::{self, Signature},
        keys,
    },
};

/// How long other servers have to answer whose keys are signed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a signature was not taken.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    errcode: &'static str,
    error: &'static str,
}

/// The signatures that were not taken, by user and by what was signed.
pub type Failures = BTreeMap<OwnedUserId, BTreeMap<String, Failure>>;

const NO_SUCH_KEY: Failure = Failure {
    errcode: "M_NOT_FOUND",
    error: "there is no such key",
};
const OTHER_KEY: Failure = Failure {
    errcode: "M_INVALID_SIGNATURE",
    error: "this is not the key that is known",
};
const NOT_SIGNED: Failure = Failure {
    errcode: "M_INVALID_SIGNATURE",
    error: "there is no good signature of yours",
};

/// What is known of whom a user signs.
struct Known {
    own: Stored,
    /// The user's devices, with their keys.
    devices: HashMap<String, CanonicalJsonObject>,
    /// The master keys of others.
    masters: BTreeMap<OwnedUserId, SigningKey>,
}

/// A good signature: the key that made it, and itself.
type Good = Vec<(String, String)>;

/// Takes the signatures that a user has made. Answers those that were not taken.
///
/// # Errors
/// `M_TOO_LARGE` if those are too many; if the database fails.
pub async fn add(
    app: &App,
    requester: &Requester,
    signed: &BTreeMap<OwnedUserId, SignedKeys>,
) -> Result<Failures> {
    expect_few(signed, |keys| keys.into_iter().count())?;
    let (me, id) = (requester.user, &requester.user_id);
    let known = Known::read(app, requester, signed.keys()).await?;
    let mut failures = Failures::new();
    let mut good = Vec::new();
    for (user, keys) in signed {
        for (key_id, json) in keys {
            let checked = if user == id {
                known.check_own(id, key_id, json)
            } else {
                known.check_other(id, user, key_id, json)
            };
            match checked {
                Ok(made) => good.push((user, key_id, made)),
                Err(failure) => {
                    let of_user = failures.entry(user.clone()).or_default();
                    of_user.insert(key_id.to_owned(), failure);
                }
            }
        }
    }
    let users: BTreeSet<&UserId> = good.iter().map(|(user, ..)| &***user).collect();
    let nids = app.names.users(&app.db, &app.log, users).await?;
    let of_users: Vec<UserNid> = nids.values().copied().collect();
    let before = cross_signing::signatures(&app.db, &of_users, Some(me)).await?;
    let before: HashSet<Signature> = before.into_iter().collect();
    let mut change = Change::new();
    let (mut changed, mut signed) = (BTreeSet::new(), BTreeSet::new());
    for (user, key_id, made) in good {
        let Some(nid) = nids.get(user).copied() else {
            continue;
        };
        for (signer_key, signature) in made {
            let signature = Signature {
                user: nid,
                key_id: key_id.to_owned(),
                signer: me,
                signer_key,
                signature,
            };
            if before.contains(&signature) {
                continue;
            }
            change.write(cross_signing::sign(&signature));
            if user != id {
                signed.insert(nid);
            } else if known.devices.contains_key(key_id) {
                changed.insert(key_id);
            } else {
                changed.insert("");
            }
        }
    }
    if changed.is_empty() && signed.is_empty() {
        return Ok(failures);
    }
    let changed: Vec<&str> = changed.into_iter().collect();
    device_lists::changed(app, &mut change, me, &changed).await?;
    for user in signed {
        device_lists::signed(&mut change, me, user);
    }
    app.log.append(change).await?;
    Ok(failures)
}

impl Known {
    async fn read(
        app: &App,
        requester: &Requester,
        signed: impl Iterator<Item = &OwnedUserId>,
    ) -> Result<Self> {
        let (me, id) = (requester.user, &requester.user_id);
        let mut devices = HashMap::new();
        for device in keys::of_users(&app.db, &[me]).await? {
            devices.insert(device.device_id, parse(&device.json)?);
        }
        let others = signed.filter(|user| *user != id);
        let others: query::Queried = others.map(|user| (user.clone(), Vec::new())).collect();
        let mut masters = BTreeMap::new();
        if !others.is_empty() {
            let found = query::query(app, me, others, PATIENCE).await?;
            for (user, key) in found.master {
                let key = check::object(key.json())
                    .and_then(|object| SigningKey::new(object, &user, MASTER));
                if let Ok(key) = key {
                    masters.insert(user, key);
                }
            }
        }
        Ok(Self {
            own: stored(app, me, id).await?,
            devices,
            masters,
        })
    }

    /// Checks the signatures on one of one's own devices, by the self-signing key, or on one's own master key, by devices.
    fn check_own(&self, id: &UserId, key_id: &str, json: &RawValue) -> Result<Good, Failure> {
        if let Some(device) = self.devices.get(key_id) {
            let key = self.own.self_signing.as_ref().ok_or(NO_SUCH_KEY)?;
            return good(id, device, json, &[(key.id(), key.key.clone())]);
        }
        let master = self.own.master.as_ref();
        let master = master.filter(|key| key.public == key_id);
        let master = master.ok_or(NO_SUCH_KEY)?;
        let devices = self.devices.iter();
        let devices: Vec<_> = devices
            .filter_map(|(id, keys)| {
                let name = format!("ed25519:{id}");
                let key = keys.get("keys")?.as_object()?.get(&*name)?.as_str()?;
                Some((name, VerifyKey::from_base64(key).ok()?))
            })
            .collect();
        good(id, &master.object, json, &devices)
    }

    /// Checks the signature on somebody else's master key, by the user-signing key.
    fn check_other(
        &self,
        id: &UserId,
        user: &UserId,
        key_id: &str,
        json: &RawValue,
    ) -> Result<Good, Failure> {
        let key = self.own.user_signing.as_ref().ok_or(NO_SUCH_KEY)?;
        let master = self.masters.get(user);
        let master = master.filter(|master| master.public == key_id);
        let master = master.ok_or(NO_SUCH_KEY)?;
        good(id, &master.object, json, &[(key.id(), key.key.clone())])
    }
}

/// The good signatures of a user on something that is known, by some keys. They are kept even if what is known has them: a device
/// may upload its keys once more without them.
fn good(
    signer: &UserId,
    known: &CanonicalJsonObject,
    json: &RawValue,
    keys: &[(String, VerifyKey)],
) -> Result<Good, Failure> {
    let object = check::object(json).map_err(|_| OTHER_KEY)?;
    if !check::is_same(known, &object) {
        return Err(OTHER_KEY);
    }
    let mut good = Good::new();
    for (key_id, key) in keys {
        let Some(signature) = check::signature(&object, signer, key_id) else {
            continue;
        };
        if !check::is_signed(&object, signer, key_id, key) {
            return Err(NOT_SIGNED);
        }
        good.push((key_id.clone(), signature.to_owned()));
    }
    if good.is_empty() {
        return Err(NOT_SIGNED);
    }
    Ok(good)
}
