//! The keys with which users sign their devices and each other ("Cross-signing").

use http::StatusCode;
use ruma::{CanonicalJsonValue, UserId, api::error::ErrorKind};
use serde_json::value::RawValue;

use super::{
    check::{self, SigningKey},
    query::parse,
};
use crate::{
    app::App,
    auth::Requester,
    device_lists,
    error::{Error, Result},
    log::Change,
    storage::{UserNid, cross_signing, devices},
};

/// The names that the keys have.
pub(super) const MASTER: &str = "master";
pub(super) const SELF_SIGNING: &str = "self_signing";
pub(super) const USER_SIGNING: &str = "user_signing";

/// What somebody uploads.
#[derive(Clone, Copy, Debug)]
pub struct Uploaded<'a> {
    /// The key that they are known by.
    pub master: Option<&'a RawValue>,
    /// The key that signs their devices.
    pub self_signing: Option<&'a RawValue>,
    /// The key that signs other users.
    pub user_signing: Option<&'a RawValue>,
}

/// Keys that were checked and can be set.
#[derive(Debug)]
pub struct CrossSigning {
    /// What is new, by name, each with the one that it replaces.
    new: Vec<(&'static str, SigningKey, Option<SigningKey>)>,
    /// What goes with the master key that signed it, because nothing comes instead.
    void: Vec<(&'static str, SigningKey)>,
    has_master: bool,
}

impl CrossSigning {
    /// Whether the user must prove themselves before: who has keys already and sets others.
    #[must_use]
    pub fn needs_proof(&self) -> bool {
        self.has_master && !self.new.is_empty()
    }
}

/// The keys that a user has signed in with lately.
#[derive(Debug, Default)]
pub(super) struct Stored {
    pub(super) master: Option<SigningKey>,
    pub(super) self_signing: Option<SigningKey>,
    pub(super) user_signing: Option<SigningKey>,
}

/// Reads the keys of a user.
///
/// # Errors
/// If the database fails.
pub(super) async fn stored(app: &App, user: UserNid, user_id: &UserId) -> Result<Stored> {
    let mut stored = Stored::default();
    for key in cross_signing::of_users(&app.db, &[user]).await? {
        let place = match key.usage.as_str() {
            MASTER => &mut stored.master,
            SELF_SIGNING => &mut stored.self_signing,
            USER_SIGNING => &mut stored.user_signing,
            _ => continue,
        };
        // Those of other servers may be anything.
        *place = SigningKey::new(parse(&key.json)?, user_id, &key.usage).ok();
    }
    Ok(stored)
}

/// Checks keys that somebody uploads.
///
/// # Errors
/// `M_BAD_JSON` if one is not as it must be, `M_MISSING_PARAM` if there is no master key, `M_INVALID_SIGNATURE` if that has
/// not signed the others, `M_FORBIDDEN` if a device of the user is called as one of them; if the database fails.
pub async fn check(
    app: &App,
    requester: &Requester,
    uploaded: Uploaded<'_>,
) -> Result<CrossSigning> {
    let (user, id) = (requester.user, &requester.user_id);
    let stored = stored(app, user, id).await?;
    let read = |json: Option<&RawValue>, usage: &str| {
        json.map(|json| SigningKey::new(check::object(json)?, id, usage))
            .transpose()
    };
    let master = read(uploaded.master, MASTER)?;
    let others = [
        (SELF_SIGNING, read(uploaded.self_signing, SELF_SIGNING)?),
        (USER_SIGNING, read(uploaded.user_signing, USER_SIGNING)?),
    ];
    for key in others.iter().filter_map(|(_, key)| key.as_ref()) {
        let master = master.as_ref().or(stored.master.as_ref());
        let master = master.ok_or_else(|| Error::missing_param("there is no master key"))?;
        if !check::is_signed(&key.object, id, &master.id(), &master.key) {
            return Err(check::invalid_signature(
                "the master key has not signed the others",
            ));
        }
    }
    let has_master = stored.master.is_some();
    let is_other_master = match (&stored.master, &master) {
        (Some(before), Some(master)) => before.public != master.public,
        _ => false,
    };
    let before = [stored.master, stored.self_signing, stored.user_signing];
    let uploaded = std::iter::once((MASTER, master)).chain(others);
    let (mut new, mut void) = (Vec::new(), Vec::new());
    for ((usage, key), before) in uploaded.zip(before) {
        let Some(key) = key else {
            void.extend(before.filter(|_| is_other_master).map(|key| (usage, key)));
            continue;
        };
        let is_known = before
            .as_ref()
            .is_some_and(|before| check::is_same(&before.object, &key.object));
        if is_known && !is_other_master {
            continue;
        }
        if devices::find(&app.db, user, &key.public).await?.is_some() {
            return Err(Error::new(
                StatusCode::FORBIDDEN,
                ErrorKind::Forbidden,
                "one of your devices is called as this key",
            ));
        }
        new.push((usage, key, before));
    }
    Ok(CrossSigning {
        new,
        void,
        has_master,
    })
}

/// Sets keys that were checked. With another master key, the others that it does not come with are gone.
///
/// # Errors
/// [`AppendError::Unexpected`](crate::log::AppendError::Unexpected) if the user has got a first master key meanwhile; if the
/// database fails.
pub async fn upload(app: &App, requester: &Requester, keys: CrossSigning) -> Result<()> {
    if keys.new.is_empty() {
        return Ok(());
    }
    let user = requester.user;
    let mut change = Change::new();
    change.write(devices::expect(requester.device));
    for (usage, key, before) in keys.new {
        let public = key.public;
        let json = CanonicalJsonValue::Object(key.object).to_string();
        change.write(if usage == MASTER && !keys.has_master {
            cross_signing::add_master(user, &json)
        } else {
            cross_signing::set(user, usage, &json)
        });
        if let Some(before) = before.filter(|before| before.public != public) {
            unsign(&mut change, user, &before);
        }
    }
    for (usage, key) in keys.void {
        change.write(cross_signing::delete(user, usage));
        unsign(&mut change, user, &key);
    }
    device_lists::changed(app, &mut change, user, &[""]).await?;
    app.log.append(change).await?;
    Ok(())
}

/// Drops the signatures of a key that is gone, and those that were made with it.
fn unsign(change: &mut Change, user: UserNid, key: &SigningKey) {
    change.write(cross_signing::unsign(user, &key.public));
    change.write(cross_signing::unsign_with(user, &key.id()));
}
