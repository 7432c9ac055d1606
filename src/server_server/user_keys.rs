//! "Device Management" and "End-to-End Encryption" of the users here.

use std::sync::Arc;

use ruma::{
    OwnedUserId, UInt,
    api::federation::{
        device::get_devices,
        keys::{claim_keys, get_keys},
    },
};

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    keys::{self, Eyes, Queried},
    storage,
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<get_devices::v1::Request, _, _>(get_devices)
        .add::<get_keys::v1::Request, _, _>(get_keys)
        .add::<claim_keys::v1::Request, _, _>(claim_keys)
}

/// `GET /_matrix/federation/v1/user/devices/{userId}`
///
/// Devices without keys are nobody else's business.
async fn get_devices(
    app: Arc<App>,
    call: Call<get_devices::v1::Request>,
) -> Result<get_devices::v1::Response> {
    let id: OwnedUserId = call.body.user_id;
    let user = if app.is_local(&id) {
        app.names.find_user(&app.db, &id).await?
    } else {
        None
    };
    let user = user.ok_or_else(|| Error::not_found(format!("there is no {id} here")))?;
    // What changes while this is read is told once more.
    let changed = storage::keys::changed(&app.db, user).await?;
    let stream_id = UInt::try_from(changed).map_err(Error::internal)?;
    let queried = Queried::from([(id.clone(), Vec::new())]);
    let mut keys = keys::query_here(&app, &queried, Eyes::Server).await?;
    let devices = keys.devices.remove(&id).unwrap_or_default();
    let mut response = get_devices::v1::Response::new(id.clone(), stream_id);
    response.devices = devices
        .into_iter()
        .map(|(device, keys)| {
            let name = keys::display_name(&keys);
            let mut device = get_devices::v1::UserDevice::new(device, keys);
            device.device_display_name = name;
            device
        })
        .collect();
    response.master_key = keys.master.remove(&id);
    response.self_signing_key = keys.self_signing.remove(&id);
    Ok(response)
}

/// `POST /_matrix/federation/v1/user/keys/query`
async fn get_keys(
    app: Arc<App>,
    call: Call<get_keys::v1::Request>,
) -> Result<get_keys::v1::Response> {
    let keys = keys::query_here(&app, &call.body.device_keys, Eyes::Server).await?;
    let mut response = get_keys::v1::Response::new(keys.devices);
    response.master_keys = keys.master;
    response.self_signing_keys = keys.self_signing;
    Ok(response)
}

/// `POST /_matrix/federation/v1/user/keys/claim`
async fn claim_keys(
    app: Arc<App>,
    call: Call<claim_keys::v1::Request>,
) -> Result<claim_keys::v1::Response> {
    let claimed = keys::claim_here(&app, &call.body.one_time_keys).await?;
    Ok(claim_keys::v1::Response::new(claimed.keys))
}
