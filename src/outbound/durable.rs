//! What another server must be told that is no event: messages for its devices, and whose devices have changed. It waits in
//! the database until the server has taken it.

use std::collections::HashSet;

use ruma::{OwnedUserId, encryption::DeviceKeys, serde::Raw};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    app::App,
    error::{Error, Result},
    keys::{self, Eyes, Keys, Queried},
    log::Change,
    storage::{
        Pos, ServerNid, UserNid,
        device_lists::{self, Untold},
        to_device,
    },
    to_device::fitting,
};

/// How many messages, and how many changes of devices, are in a transaction of a hundred EDUs.
const MESSAGES: i64 = 30;
const CHANGES: i64 = 20;
/// How many bytes of them there are when there are more than one: they go with events, and some servers take no requests of
/// more than a mebibyte.
const BYTES: usize = 256 << 10;

/// The first of what waits for a server.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Durable {
    /// The EDUs, as canonical JSON.
    pub(super) edus: Vec<String>,
    /// Up to where the messages are among them.
    upto: Pos,
    /// Up to where changes of devices are told with them, if that is further than before.
    devices: Option<Pos>,
    /// Whether more waits.
    pub(super) has_more: bool,
}

impl Durable {
    pub(super) fn is_empty(&self) -> bool {
        self.edus.is_empty()
    }

    #[cfg(test)]
    pub(super) fn new(edus: &[&str], upto: Pos, has_more: bool) -> Self {
        Self {
            edus: edus.iter().map(|edu| (*edu).to_owned()).collect(),
            upto,
            devices: None,
            has_more,
        }
    }
}

/// Reads the first of what waits for a server. If that is nothing, it is written down up to where there was nothing.
///
/// # Errors
/// If the database fails.
pub(super) async fn read(app: &App, server: ServerNid) -> Result<Durable> {
    let head = app.head();
    let waiting = to_device::out(&app.db, server, MESSAGES + 1).await?;
    let count = fitting(&waiting, MESSAGES, BYTES);
    let mut durable = Durable {
        has_more: count < waiting.len(),
        upto: waiting[..count].last().map_or(0, |last| last.pos),
        devices: None,
        edus: Vec::new(),
    };
    let messages = waiting.into_iter().take(count);
    durable.edus.extend(messages.map(|message| message.json));
    let mut bytes: usize = durable.edus.iter().map(String::len).sum();
    let after = device_lists::told(&app.db, server).await?;
    let changes = device_lists::untold(&app.db, server, after, CHANGES + 1).await?;
    let most = usize::try_from(CHANGES).unwrap_or(1);
    let mut told = after;
    let mut is_all = changes.len() <= most;
    for (pos, edu) in updates(app, &changes[..changes.len().min(most)]).await? {
        bytes += edu.len();
        if bytes > BYTES && !durable.is_empty() {
            is_all = false;
            break;
        }
        durable.edus.push(edu);
        told = pos;
    }
    if is_all {
        // The next reading need not look again at what is nothing to the server.
        told = told.max(head);
    }
    durable.has_more |= !is_all;
    durable.devices = (told > after).then_some(told);
    if durable.is_empty() && durable.devices.is_some() {
        taken(app, server, &durable).await?;
    }
    Ok(durable)
}

/// An EDU; its fields are in the order of canonical JSON.
#[derive(Serialize)]
struct Edu<C> {
    content: C,
    edu_type: &'static str,
}

#[derive(Serialize)]
struct DeviceListUpdate<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_display_name: Option<String>,
    device_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<&'a RawValue>,
    prev_id: &'a [Pos],
    stream_id: Pos,
    user_id: &'a OwnedUserId,
}

#[derive(Serialize)]
struct SigningKeyUpdate<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    master_key: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    self_signing_key: Option<&'a RawValue>,
    user_id: &'a OwnedUserId,
}

/// The EDUs that tell other servers of some changes, with the positions of these: how it is now.
///
/// # Errors
/// If the database fails.
pub async fn updates(app: &App, changes: &[Untold]) -> Result<Vec<(Pos, String)>> {
    let users: HashSet<UserNid> = changes.iter().map(|change| change.user).collect();
    let users: Vec<UserNid> = users.into_iter().collect();
    let ids = app.names.user_ids(&app.db, &users).await?;
    let queried: Queried = ids.values().map(|id| (id.clone(), Vec::new())).collect();
    let keys = keys::query_here(app, &queried, Eyes::Server).await?;
    changes
        .iter()
        .filter_map(|change| {
            let edu = edu(change, ids.get(&change.user)?, &keys);
            Some(edu.map(|edu| (change.pos, edu)))
        })
        .collect()
}

fn edu(change: &Untold, user: &OwnedUserId, keys: &Keys) -> Result<String> {
    let edu = if change.device_id.is_empty() {
        let content = SigningKeyUpdate {
            master_key: keys.master.get(user).map(Raw::json),
            self_signing_key: keys.self_signing.get(user).map(Raw::json),
            user_id: user,
        };
        let edu_type = "m.signing_key_update";
        serde_json::to_string(&Edu { content, edu_type })
    } else {
        let devices = keys.devices.get(user);
        let device = devices.and_then(|devices| devices.get(change.device_id.as_str()));
        let content = DeviceListUpdate {
            deleted: device.is_none().then_some(true),
            device_display_name: device.and_then(keys::display_name),
            device_id: &change.device_id,
            keys: device.map(Raw::<DeviceKeys>::json),
            prev_id: change.before.as_slice(),
            stream_id: change.pos,
            user_id: user,
        };
        let edu_type = "m.device_list_update";
        serde_json::to_string(&Edu { content, edu_type })
    };
    edu.map_err(Error::internal)
}

/// The server has taken it.
///
/// # Errors
/// If the database fails: then the server gets it once more.
pub(super) async fn taken(app: &App, server: ServerNid, durable: &Durable) -> Result<()> {
    let mut change = Change::new();
    change.write(to_device::remove_out(server, durable.upto));
    if let Some(pos) = durable.devices {
        change.write(device_lists::set_told(server, pos));
    }
    app.log.append(change).await?;
    Ok(())
}
