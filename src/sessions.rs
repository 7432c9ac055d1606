//! Signing in, refreshing, signing out: devices and the tokens that speak for them.

use std::{collections::BTreeMap, time::Duration};

use http::StatusCode;
use ruma::{OwnedDeviceId, api::error::ErrorKind};

use crate::{
    app::App,
    auth::{hash_token, new_token},
    device_lists,
    error::{Error, Result},
    log::{AppendError, Change},
    storage::{
        self, DeviceNid, UserNid, account_data,
        accounts::{self, Account},
        cross_signing, dehydrated_devices, devices, filters, key_backup, profiles, pushers,
        sessions, tokens,
    },
};

/// The longest id of a device and the longest name, in bytes.
const LONGEST_DEVICE_ID: usize = 255;
/// The longest name of a device, in bytes.
pub const LONGEST_DEVICE_NAME: usize = 255;
/// Letters in the ids of devices that come without.
const NEW_DEVICE_ID: usize = 10;

/// What somebody signs in with.
#[derive(Debug, Default)]
pub struct SignIn {
    /// The device, if it has an id already.
    pub device_id: Option<OwnedDeviceId>,
    /// What the device is called if it is new.
    pub display_name: Option<String>,
    /// Whether the client can refresh its access token.
    pub refresh: bool,
    /// The hash that the password was checked against, if it was: with another password since then, it is no longer
    /// enough.
    pub password_hash: Option<String>,
}

/// New tokens.
#[derive(Debug)]
pub struct Tokens {
    /// The access token.
    pub access: String,
    /// The refresh token, if the client asked for one.
    pub refresh: Option<String>,
    /// How long the access token is valid.
    pub expires_in: Option<Duration>,
}

/// Checks what a client says of its device, before anything is done.
///
/// # Errors
/// `M_INVALID_PARAM` if the id is empty or it or the name is too long.
pub fn check(sign_in: &SignIn) -> Result<()> {
    if let Some(id) = &sign_in.device_id
        && !(1..=LONGEST_DEVICE_ID).contains(&id.as_str().len())
    {
        return Err(Error::invalid_param(format!(
            "a device id has 1 to {LONGEST_DEVICE_ID} bytes"
        )));
    }
    if sign_in
        .display_name
        .as_ref()
        .is_some_and(|name| name.len() > LONGEST_DEVICE_NAME)
    {
        return Err(Error::invalid_param(format!(
            "the name of a device has at most {LONGEST_DEVICE_NAME} bytes"
        )));
    }
    Ok(())
}

/// Signs a user in on a device, which is made if there is none with this id. Earlier tokens of the device end.
///
/// # Errors
/// As [`check`] says; `M_INVALID_PARAM` if the device is dehydrated; `M_USER_DEACTIVATED`.
pub async fn sign_in(app: &App, user: UserNid, sign_in: SignIn) -> Result<(OwnedDeviceId, Tokens)> {
    check(&sign_in)?;
    loop {
        let id = sign_in.device_id.clone().unwrap_or_else(new_device_id);
        let known = devices::find(&app.db, user, id.as_str()).await?;
        let mut change = Change::new();
        change.write(match &sign_in.password_hash {
            Some(hash) => accounts::expect_password(user, hash),
            None => accounts::expect_active(user),
        });
        let device = if let Some(device) = known {
            let dehydrated = dehydrated_devices::get(&app.db, user).await?;
            if dehydrated.is_some_and(|dehydrated| dehydrated.device == device) {
                return Err(Error::invalid_param(
                    "nobody signs in on a dehydrated device",
                ));
            }
            change.write(dehydrated_devices::expect_not(device));
            for write in sessions::end(device) {
                change.write(write);
            }
            change.write(pushers::end(device));
            device
        } else {
            let device = DeviceNid(app.log.new_id()?);
            let name = sign_in.display_name.as_deref();
            let now = app.clock.now();
            change.write(devices::add(device, user, id.as_str(), name, now));
            device
        };
        let tokens = add_tokens(app, &mut change, device, sign_in.refresh, None);
        match app.log.append(change).await {
            Ok(_) => {
                if known.is_some() {
                    app.sessions.end(|_, ended| ended == device);
                }
                return Ok((id, tokens));
            }
            Err(AppendError::Unexpected)
                if let Some(hash) = &sign_in.password_hash
                    && !accounts::has_password(&app.db, user, hash).await? =>
            {
                return Err(wrong_password());
            }
            // The device came, went or was dehydrated meanwhile.
            Err(AppendError::Duplicate) => {}
            Err(AppendError::Unexpected) if accounts::is_active(&app.db, user).await? => {}
            Err(AppendError::Unexpected) => return Err(deactivated()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn new_device_id() -> OwnedDeviceId {
    let letters = std::iter::repeat_with(|| char::from(rand::random_range(b'A'..=b'Z')));
    letters.take(NEW_DEVICE_ID).collect::<String>().into()
}

fn add_tokens(
    app: &App,
    change: &mut Change,
    device: DeviceNid,
    refresh: bool,
    parent: Option<&[u8]>,
) -> Tokens {
    let settings = &app.config.sessions;
    let until = |seconds: u64| {
        let millis = i64::try_from(seconds).unwrap_or(i64::MAX);
        app.clock.now().saturating_add(millis.saturating_mul(1000))
    };
    let access = new_token("access");
    if !refresh {
        change.write(sessions::add(&hash_token(&access), device, None, None));
        return Tokens {
            access,
            refresh: None,
            expires_in: None,
        };
    }
    let refresh = new_token("refresh");
    let hash = hash_token(&refresh);
    let ends = settings.refresh_token_seconds.map(until);
    change.write(sessions::add_refresh(&hash, device, ends, parent));
    let ends = Some(until(settings.access_token_seconds));
    change.write(sessions::add(
        &hash_token(&access),
        device,
        ends,
        Some(&hash),
    ));
    Tokens {
        access,
        refresh: Some(refresh),
        expires_in: Some(Duration::from_secs(settings.access_token_seconds)),
    }
}

/// New tokens for a refresh token. The old ones stay valid until one of the new ones is used, because the answer may
/// get lost.
///
/// # Errors
/// `M_UNKNOWN_TOKEN`, as a soft logout if the token has only expired.
pub async fn refresh(app: &App, token: &str) -> Result<Tokens> {
    let hash = hash_token(token);
    let Some(known) = sessions::refresh_token(&app.db, &hash).await? else {
        return Err(Error::unknown_token(false));
    };
    if known
        .expires
        .is_some_and(|expires| expires <= app.clock.now())
    {
        return Err(Error::unknown_token(true));
    }
    let mut change = Change::new();
    change.write(sessions::expect_refresh(&hash));
    for write in sessions::confirm(&hash) {
        change.write(write);
    }
    for write in sessions::drop_children(&hash) {
        change.write(write);
    }
    let tokens = add_tokens(app, &mut change, known.device, true, Some(&hash));
    match app.log.append(change).await {
        Ok(_) => {}
        Err(AppendError::Unexpected) => return Err(Error::unknown_token(false)),
        Err(error) => return Err(error.into()),
    }
    app.sessions
        .forget(|requester| requester.device == known.device);
    Ok(tokens)
}

/// Ends devices of a user, with their tokens.
///
/// # Errors
/// If the database fails.
pub async fn end_devices(app: &App, devices: &[DeviceNid]) -> Result<()> {
    let mut change = Change::new();
    tell(app, &mut change, devices).await?;
    for write in devices::delete(devices) {
        change.write(write);
    }
    app.log.append(change).await?;
    app.sessions.end(|_, device| devices.contains(&device));
    app.seen.forget(devices);
    Ok(())
}

/// Adds to a change that those of these devices are gone of which others may know: those that have keys.
async fn tell(app: &App, change: &mut Change, ended: &[DeviceNid]) -> Result<()> {
    let mut of_users: BTreeMap<UserNid, Vec<String>> = BTreeMap::new();
    for (user, device) in devices::with_keys(&app.db, ended).await? {
        of_users.entry(user).or_default().push(device);
    }
    for (user, devices) in of_users {
        let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
        device_lists::changed(app, change, user, &devices).await?;
    }
    Ok(())
}

/// Ends all devices of a user but `kept`.
///
/// # Errors
/// If the database fails.
pub async fn end_all(app: &App, user: UserNid, kept: Option<DeviceNid>) -> Result<()> {
    end_all_with(app, user, kept, Change::new()).await
}

/// Does what `change` says and with it, as one, ends all devices of a user but `kept`.
///
/// # Errors
/// If the change is refused or the database fails; then nothing has ended.
pub async fn end_all_with(
    app: &App,
    user: UserNid,
    kept: Option<DeviceNid>,
    mut change: Change,
) -> Result<()> {
    let devices = devices::of_user(&app.db, user).await?;
    let devices = devices.iter().map(|device| device.nid);
    let ended: Vec<DeviceNid> = devices.filter(|device| Some(*device) != kept).collect();
    tell(app, &mut change, &ended).await?;
    for write in devices::delete_all(user, kept) {
        change.write(write);
    }
    app.log.append(change).await?;
    let ended = |whose, device| whose == user && Some(device) != kept;
    app.sessions.end(ended);
    app.seen.forget_all(user, kept);
    Ok(())
}

/// Closes an account for good: no password, no devices, no tokens, no account data, no keys, no key backups. To `erase`
/// means that there is no profile either, and that those who come later do not see what the user has sent.
///
/// # Errors
/// If the database fails.
pub async fn deactivate(app: &App, user: UserNid, erase: bool) -> Result<()> {
    let mut change = Change::new();
    change.write(accounts::deactivate(user, erase));
    for write in tokens::end(user) {
        change.write(write);
    }
    change.write(account_data::delete_all(user));
    if !cross_signing::of_users(&app.db, &[user]).await?.is_empty() {
        device_lists::changed(app, &mut change, user, &[""]).await?;
    }
    for write in cross_signing::delete_all(user) {
        change.write(write);
    }
    change.write(storage::device_lists::forget_signed(user));
    change.write(filters::keep_newest(user, 0));
    for write in key_backup::delete_all(user) {
        change.write(write);
    }
    if erase {
        change.write(profiles::delete_all(user));
    }
    end_all_with(app, user, None, change).await?;
    if erase {
        app.erased.add(user);
    }
    app.preferences.forget(user);
    Ok(())
}

/// Checks a password; answers the account as it was then.
///
/// # Errors
/// `M_FORBIDDEN` if it is wrong or there is no such account, `M_USER_DEACTIVATED`, `M_LIMIT_EXCEEDED`.
pub async fn check_password(
    app: &App,
    account: Option<Account>,
    password: String,
) -> Result<Account> {
    if account.as_ref().is_some_and(|account| account.deactivated) {
        return Err(deactivated());
    }
    let hash = account
        .as_ref()
        .and_then(|account| account.password_hash.clone());
    let right = app.passwords.verify(password, hash).await?;
    match account {
        Some(account) if right => Ok(account),
        _ => Err(wrong_password()),
    }
}

fn wrong_password() -> Error {
    Error::forbidden("the name or the password is wrong")
}

fn deactivated() -> Error {
    Error::new(
        StatusCode::FORBIDDEN,
        ErrorKind::UserDeactivated,
        "this account has been deactivated",
    )
}
