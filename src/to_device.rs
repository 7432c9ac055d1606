//! Messages from device to device ("Send-to-Device messaging"): they wait in the database until the device, or its server, has
//! got them.

use std::collections::{BTreeMap, HashMap};

use ruma::{
    CanonicalJsonValue, OwnedUserId, UserId, events::AnyToDeviceEventContent, serde::Raw,
    to_device::DeviceIdOrAllDevices,
};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    app::App,
    bus::Effect,
    error::{Error, Result},
    http::sound,
    log::Change,
    storage::{self, DeviceNid, UserNid, to_device::Waiting},
};

/// The most devices that one request names, and that one message goes to.
const DEVICES: usize = 10_000;
/// The largest content of a message, in bytes: as large as that of an event.
const CONTENT_BYTES: usize = 64 << 10;
/// The longest type, in bytes: as long as that of an event. No id of a device is longer.
const TYPE_BYTES: usize = 255;
const DEVICE_ID_BYTES: usize = 255;
/// How many bytes one request makes for devices here: what is for all devices of a user is multiplied.
const LOCAL_BYTES: usize = 32 << 20;
/// Of what size an EDU with more than one message is at most, in bytes.
const EDU_BYTES: usize = 48 << 10;

/// How many of the messages that wait are given at once: at most so many, and so many bytes if they are more than one.
#[must_use]
pub fn fitting(waiting: &[Waiting], most: i64, bytes: usize) -> usize {
    let mut sum = 0;
    let fitting = waiting.iter().take_while(|message| {
        sum += message.json.len();
        sum <= bytes || sum == message.json.len()
    });
    fitting.count().min(usize::try_from(most).unwrap_or(1))
}

/// What each device gets.
pub type Contents =
    BTreeMap<OwnedUserId, BTreeMap<DeviceIdOrAllDevices, Raw<AnyToDeviceEventContent>>>;

/// Messages of one type from one sender.
#[derive(Clone, Copy, Debug)]
pub struct Messages<'a> {
    /// Who sends them.
    pub sender: &'a UserId,
    /// Their type.
    pub event_type: &'a str,
    /// What each device gets.
    pub contents: &'a Contents,
}

impl Messages<'_> {
    /// Makes sure that they are not too many or too large, and that every client can read them.
    ///
    /// # Errors
    /// `M_TOO_LARGE`, `M_INVALID_PARAM`, `M_BAD_JSON`.
    pub fn check(&self) -> Result<()> {
        if self.event_type.len() > TYPE_BYTES {
            return Err(Error::too_large("the type is too long"));
        }
        let contents = || self.contents.values().flatten();
        if contents().count() > DEVICES {
            return Err(Error::too_large(format!(
                "messages can be sent to {DEVICES} devices at once"
            )));
        }
        if contents().any(|(device, _)| id_length(device) > DEVICE_ID_BYTES) {
            return Err(Error::invalid_param("no device has such a long id"));
        }
        if contents().any(|(_, content)| content.json().get().len() > CONTENT_BYTES) {
            return Err(Error::too_large(format!(
                "a message has at most {CONTENT_BYTES} bytes"
            )));
        }
        let is_sound =
            |content: &str| content.starts_with('{') && sound::check(content.as_bytes()).is_ok();
        if !contents().all(|(_, content)| is_sound(content.json().get())) {
            return Err(Error::bad_json(
                "a message is no JSON object that can be read",
            ));
        }
        Ok(())
    }
}

fn id_length(device: &DeviceIdOrAllDevices) -> usize {
    match device {
        DeviceIdOrAllDevices::DeviceId(id) => id.as_str().len(),
        DeviceIdOrAllDevices::AllDevices => 1,
    }
}

/// Adds to a change that the local devices get their messages. Who is not known here gets none.
///
/// # Errors
/// `M_TOO_LARGE` if those are too many devices, or too many bytes for all of them; if the database fails.
pub async fn to_local(app: &App, change: &mut Change, messages: Messages<'_>) -> Result<()> {
    let ids = messages.contents.keys().filter(|id| app.is_local(id));
    let nids = app.names.find_users(&app.db, ids.map(|id| &**id)).await?;
    let users: Vec<UserNid> = nids.values().copied().collect();
    if users.is_empty() {
        return Ok(());
    }
    let mut devices: HashMap<UserNid, Vec<(String, DeviceNid)>> = HashMap::new();
    for (user, id, device) in storage::devices::of_users(&app.db, &users).await? {
        devices.entry(user).or_default().push((id, device));
    }
    let at = change.position();
    let (mut count, mut bytes) = (0, 0);
    for (id, contents) in messages.contents {
        let Some(user) = nids.get(id) else {
            continue;
        };
        let all = contents.get(&DeviceIdOrAllDevices::AllDevices);
        for (device_id, device) in devices.remove(user).unwrap_or_default() {
            let named = DeviceIdOrAllDevices::DeviceId(device_id.into());
            let Some(content) = contents.get(&named).or(all) else {
                continue;
            };
            count += 1;
            let event = event(messages, content.json())?;
            bytes += event.len();
            if count > DEVICES || bytes > LOCAL_BYTES {
                return Err(Error::too_large("those are too many messages at once"));
            }
            change.write(storage::to_device::add(device, at, &event));
            let user = *user;
            change.effect(Effect::ToDevice { user, device, at });
        }
    }
    Ok(())
}

/// A message as its device gets it.
fn event(messages: Messages<'_>, content: &RawValue) -> Result<String> {
    #[derive(Serialize)]
    struct Event<'a> {
        content: &'a RawValue,
        sender: &'a UserId,
        r#type: &'a str,
    }
    let event = Event {
        content,
        sender: messages.sender,
        r#type: messages.event_type,
    };
    serde_json::to_string(&event).map_err(Error::internal)
}

/// Adds to a change that other servers get the messages for their devices.
///
/// # Errors
/// `M_BAD_JSON` if something in a message cannot be sent to other servers, such as a float; if the database fails.
pub async fn to_others(app: &App, change: &mut Change, messages: Messages<'_>) -> Result<()> {
    let mut of_servers: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (user, contents) in messages.contents {
        if !app.is_local(user) {
            let of_server = of_servers.entry(user.server_name().to_owned()).or_default();
            of_server.push((user, contents));
        }
    }
    if of_servers.is_empty() || !app.config.federation.enabled {
        return Ok(());
    }
    let nids = app
        .names
        .servers(&app.db, &app.log, of_servers.keys().map(|name| &**name))
        .await?;
    for (name, users) in of_servers {
        let Some(server) = nids.get(&name).copied() else {
            continue;
        };
        for edu in edus(messages, &users)? {
            let at = change.position();
            change.write(storage::to_device::add_out(server, at, &edu));
        }
        change.effect(Effect::ToServer { name, server });
    }
    Ok(())
}

/// Drops the oldest EDUs of those that wait for a server, where they are more than `kept`: the server has been away for long.
///
/// # Errors
/// If the database fails.
pub async fn drop_oldest(app: &App, kept: i64) -> Result<()> {
    for (server, name) in storage::to_device::crowded(&app.db, kept).await? {
        tracing::warn!(
            server = %name,
            "more than {kept} messages wait for devices of a server: the oldest are dropped"
        );
        let mut change = Change::new();
        change.write(storage::to_device::drop_oldest(server, kept));
        app.log.append(change).await?;
    }
    Ok(())
}

/// What one user's devices get.
type OfUser<'a> = (
    &'a OwnedUserId,
    &'a BTreeMap<DeviceIdOrAllDevices, Raw<AnyToDeviceEventContent>>,
);

/// `m.direct_to_device` with the messages for some users, as canonical JSON; several if they are large.
fn edus(messages: Messages<'_>, users: &[OfUser<'_>]) -> Result<Vec<String>> {
    type Contents = BTreeMap<String, BTreeMap<String, CanonicalJsonValue>>;
    #[derive(Serialize)]
    struct Content<'a> {
        message_id: String,
        messages: &'a Contents,
        sender: &'a UserId,
        r#type: &'a str,
    }
    #[derive(Serialize)]
    struct Edu<'a> {
        content: Content<'a>,
        edu_type: &'static str,
    }
    let edu = |contents: &Contents| {
        let edu = Edu {
            content: Content {
                message_id: format!("{:032x}", rand::random::<u128>()),
                messages: contents,
                sender: messages.sender,
                r#type: messages.event_type,
            },
            edu_type: "m.direct_to_device",
        };
        serde_json::to_string(&edu).map_err(Error::internal)
    };
    let mut edus = Vec::new();
    let mut contents = Contents::new();
    let mut bytes = 0;
    for (user, devices) in users {
        for (device, content) in *devices {
            let json = content.json().get();
            let size = user.as_str().len() + id_length(device) + json.len();
            if bytes + size > EDU_BYTES && !contents.is_empty() {
                edus.push(edu(&contents)?);
                contents.clear();
                bytes = 0;
            }
            bytes += size;
            let content: CanonicalJsonValue = serde_json::from_str(json)
                .map_err(|error| Error::bad_json(format!("a message cannot be sent: {error}")))?;
            let of_user = contents.entry(user.to_string()).or_default();
            of_user.insert(device.to_string(), content);
        }
    }
    if !contents.is_empty() {
        edus.push(edu(&contents)?);
    }
    Ok(edus)
}
