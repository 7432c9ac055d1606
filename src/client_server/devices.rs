//! "Device Management".

use std::sync::Arc;

use ruma::{
    MilliSecondsSinceUnixEpoch, UInt,
    api::client::{
        device::{self, delete_device, delete_devices, get_device, get_devices, update_device},
        uiaa::AuthType,
    },
};

use crate::{
    app::App,
    device_lists,
    error::{Error, Result},
    http::{Call, Routes},
    log::Change,
    sessions,
    storage::{
        DeviceNid, UserNid,
        devices::{self, Device},
    },
    uiaa::{self, Task},
};

/// How many devices one request may delete.
const DELETED: usize = 1000;

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<get_devices::v3::Request, _, _>(get_devices)
        .add::<get_device::v3::Request, _, _>(get_device)
        .add::<update_device::v3::Request, _, _>(update_device)
        .interactive::<delete_device::v3::Request, _, _>(delete_device)
        .interactive::<delete_devices::v3::Request, _, _>(delete_devices)
}

/// A device as clients see it, with what is not written yet of when it was seen.
fn shown(app: &App, device: Device) -> device::Device {
    let fresh = app.seen.get(device.nid);
    let (ts, ip) = match fresh {
        Some((ts, address)) => (Some(ts), address.map(|address| address.to_string())),
        None => (device.last_seen_ts, device.last_seen_ip),
    };
    let mut shown = device::Device::new(device.device_id.into());
    shown.display_name = device.display_name;
    shown.last_seen_ip = ip;
    shown.last_seen_ts = ts
        .and_then(|ts| UInt::try_from(ts).ok())
        .map(MilliSecondsSinceUnixEpoch);
    shown
}

/// `GET /_matrix/client/v3/devices`
async fn get_devices(
    app: Arc<App>,
    call: Call<get_devices::v3::Request>,
) -> Result<get_devices::v3::Response> {
    let devices = devices::of_user(&app.db, call.requester.user).await?;
    let devices = devices.into_iter().map(|device| shown(&app, device));
    Ok(get_devices::v3::Response::new(devices.collect()))
}

fn no_such_device() -> Error {
    Error::not_found("you have no such device")
}

/// `GET /_matrix/client/v3/devices/{deviceId}`
async fn get_device(
    app: Arc<App>,
    call: Call<get_device::v3::Request>,
) -> Result<get_device::v3::Response> {
    let devices = devices::of_user(&app.db, call.requester.user).await?;
    let device = devices
        .into_iter()
        .find(|device| device.device_id == call.body.device_id.as_str())
        .ok_or_else(no_such_device)?;
    Ok(get_device::v3::Response::new(shown(&app, device)))
}

/// `PUT /_matrix/client/v3/devices/{deviceId}`
///
/// Only an application service could make a device in this way, and there is none.
async fn update_device(
    app: Arc<App>,
    call: Call<update_device::v3::Request>,
) -> Result<update_device::v3::Response> {
    let user = call.requester.user;
    let device = devices::find(&app.db, user, call.body.device_id.as_str()).await?;
    let device = device.ok_or_else(no_such_device)?;
    if let Some(name) = &call.body.display_name {
        if name.len() > sessions::LONGEST_DEVICE_NAME {
            return Err(Error::too_large("the name is too long"));
        }
        let mut change = Change::new();
        change.write(devices::rename(device, name));
        if !devices::with_keys(&app.db, &[device]).await?.is_empty() {
            let id = call.body.device_id.as_str();
            device_lists::changed(&app, &mut change, user, &[id]).await?;
        }
        app.log.append(change).await?;
    }
    Ok(update_device::v3::Response::new())
}

/// `DELETE /_matrix/client/v3/devices/{deviceId}`
///
/// A device that is gone already is deleted once more, which changes nothing.
async fn delete_device(
    app: Arc<App>,
    call: Call<delete_device::v3::Request>,
) -> Result<delete_device::v3::Response> {
    let task = Task {
        path: call.parts.uri.path(),
        body: &call.raw,
        requester: Some(&call.requester),
        auth: call.body.auth.as_ref(),
    };
    uiaa::authenticate(&app, task, &[vec![AuthType::Password]]).await?;
    end(&app, call.requester.user, &[call.body.device_id.as_str()]).await?;
    Ok(delete_device::v3::Response::new())
}

/// `POST /_matrix/client/v3/delete_devices`
async fn delete_devices(
    app: Arc<App>,
    call: Call<delete_devices::v3::Request>,
) -> Result<delete_devices::v3::Response> {
    if call.body.devices.len() > DELETED {
        return Err(Error::invalid_param(format!(
            "at most {DELETED} devices can be deleted at once"
        )));
    }
    let task = Task {
        path: call.parts.uri.path(),
        body: &call.raw,
        requester: Some(&call.requester),
        auth: call.body.auth.as_ref(),
    };
    uiaa::authenticate(&app, task, &[vec![AuthType::Password]]).await?;
    let ids: Vec<&str> = call.body.devices.iter().map(|id| id.as_str()).collect();
    end(&app, call.requester.user, &ids).await?;
    Ok(delete_devices::v3::Response::new())
}

async fn end(app: &App, user: UserNid, ids: &[&str]) -> Result<()> {
    let nids: Vec<DeviceNid> = devices::of_user(&app.db, user)
        .await?
        .into_iter()
        .filter(|device| ids.contains(&device.device_id.as_str()))
        .map(|device| device.nid)
        .collect();
    sessions::end_devices(app, &nids).await
}
