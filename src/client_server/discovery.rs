//! "API Standards", "Server discovery", "Capabilities negotiation".

use std::{collections::BTreeMap, sync::Arc};

use ruma::{
    RoomVersionId,
    api::client::discovery::{
        get_capabilities::{
            self,
            v3::{Capabilities, RoomVersionStability, RoomVersionsCapability},
        },
        get_supported_versions,
    },
};

use crate::{
    app::App,
    error::Result,
    http::{Call, Routes},
};

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<get_supported_versions::Request, _, _>(supported_versions)
        .add::<get_capabilities::v3::Request, _, _>(capabilities)
}

/// `GET /_matrix/client/versions`
///
/// Some clients accept only versions that they know, so each one is named.
async fn supported_versions(
    _: Arc<App>,
    _: Call<get_supported_versions::Request>,
) -> Result<get_supported_versions::Response> {
    let versions = (1..=19).map(|minor| format!("v1.{minor}")).collect();
    let mut response = get_supported_versions::Response::new(versions);
    response.unstable_features = BTreeMap::new();
    Ok(response)
}

/// `GET /_matrix/client/v3/capabilities`
async fn capabilities(
    app: Arc<App>,
    _: Call<get_capabilities::v3::Request>,
) -> Result<get_capabilities::v3::Response> {
    let available = homing_federation::room_version::creatable()
        .into_iter()
        .map(|version: RoomVersionId| (version, RoomVersionStability::Stable))
        .collect();
    let mut capabilities = Capabilities::new();
    capabilities.room_versions =
        RoomVersionsCapability::new(app.config.rooms.default_version.clone(), available);
    Ok(capabilities.into())
}
