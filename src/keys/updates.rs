//! What other servers are told when keys or devices of users here have changed ("Device Management", Server-Server API).

use std::collections::HashSet;

use ruma::{OwnedUserId, encryption::DeviceKeys, serde::Raw};
use serde::Serialize;
use serde_json::value::RawValue;

use super::query::{Eyes, Keys, Queried, display_name, query_here};
use crate::{
    app::App,
    error::{Error, Result},
    storage::{Pos, UserNid, device_lists::Untold},
};

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
    let keys = query_here(app, &queried, Eyes::Server).await?;
    changes
        .iter()
        .filter_map(|change| {
            let edu = edu(change, ids.get(&change.user)?, &keys);
            Some(edu.map(|edu| (change.pos, edu)))
        })
        .collect()
}

/// What is told of a change. A device without keys is told as gone: nobody can encrypt for it, and to those who have never
/// asked it is no news.
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
            device_display_name: device.and_then(display_name),
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
