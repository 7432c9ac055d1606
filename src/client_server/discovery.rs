//! "API Standards", "Server discovery", "Capabilities negotiation".

use std::{collections::BTreeMap, sync::Arc};

use ruma::{
    RoomVersionId,
    api::{
        client::discovery::{
            discover_homeserver::{self, HomeserverInfo},
            discover_support::{self, Contact},
            get_capabilities::{
                self,
                v3::{
                    Capabilities, GetLoginTokenCapability, ProfileFieldsCapability,
                    RoomVersionStability, RoomVersionsCapability, ThirdPartyIdChangesCapability,
                },
            },
            get_supported_versions,
        },
        federation::discovery::discover_homeserver as discover_server,
    },
};
use serde_json::{Value, json};

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
};

/// What is not in a version of the specification, or was not when clients began to ask for it, and works here.
const UNSTABLE_FEATURES: &[&str] = &[
    "org.matrix.msc2285.stable",
    "org.matrix.msc3440.stable",
    "org.matrix.msc3771",
    "org.matrix.msc3773",
    "org.matrix.msc3814",
    "org.matrix.msc3827.stable",
    "org.matrix.msc3916.stable",
    "org.matrix.msc3981",
    "org.matrix.msc4222",
    "uk.tcpip.msc4133",
    "uk.tcpip.msc4133.stable",
];

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<discover_homeserver::Request, _, _>(discover_homeserver)
        .add::<discover_server::Request, _, _>(discover_server)
        .add::<discover_support::Request, _, _>(discover_support)
        .add::<get_supported_versions::Request, _, _>(supported_versions)
        .json::<get_capabilities::v3::Request, _, _, _>(capabilities)
}

/// `GET /.well-known/matrix/client`
async fn discover_homeserver(
    app: Arc<App>,
    _: Call<discover_homeserver::Request>,
) -> Result<discover_homeserver::Response> {
    let base_url = app
        .config
        .well_known
        .client_base_url
        .clone()
        .ok_or_else(not_configured)?;
    Ok(discover_homeserver::Response::new(HomeserverInfo::new(
        base_url,
    )))
}

/// `GET /.well-known/matrix/server`
async fn discover_server(
    app: Arc<App>,
    _: Call<discover_server::Request>,
) -> Result<discover_server::Response> {
    let server = app
        .config
        .well_known
        .server
        .clone()
        .ok_or_else(not_configured)?;
    Ok(discover_server::Response::new(server))
}

/// `GET /.well-known/matrix/support`
async fn discover_support(
    app: Arc<App>,
    _: Call<discover_support::Request>,
) -> Result<discover_support::Response> {
    let settings = &app.config.well_known;
    if settings.support_contacts.is_empty() && settings.support_page.is_none() {
        return Err(not_configured());
    }
    let mut response = discover_support::Response::with_contacts(Vec::new());
    response.support_page.clone_from(&settings.support_page);
    for known in &settings.support_contacts {
        let (role, email, user) = (
            known.role.clone(),
            known.email_address.clone(),
            known.matrix_id.clone(),
        );
        let mut contact = match (email, user) {
            (Some(email), _) => Contact::with_email_address(role, email),
            (None, Some(user)) => Contact::with_matrix_id(role, user),
            (None, None) => continue,
        };
        contact.matrix_id.clone_from(&known.matrix_id);
        response.contacts.push(contact);
    }
    Ok(response)
}

fn not_configured() -> Error {
    Error::not_found("this is not configured")
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
    let features = UNSTABLE_FEATURES
        .iter()
        .map(|name| ((*name).to_owned(), true));
    response.unstable_features = features.collect::<BTreeMap<_, _>>();
    Ok(response)
}

/// `GET /_matrix/client/v3/capabilities`
///
/// Ruma leaves out that a password can be changed, because that holds where nothing is said; some clients look for it.
async fn capabilities(app: Arc<App>, _: Call<get_capabilities::v3::Request>) -> Result<Value> {
    let available = homing_federation::room_version::creatable()
        .into_iter()
        .map(|version: RoomVersionId| (version, RoomVersionStability::Stable))
        .collect();
    let mut capabilities = Capabilities::new();
    capabilities.room_versions =
        RoomVersionsCapability::new(app.config.rooms.default_version.clone(), available);
    capabilities.thirdparty_id_changes = ThirdPartyIdChangesCapability::new(false);
    capabilities.get_login_token = GetLoginTokenCapability::new(true);
    capabilities.profile_fields = Some(ProfileFieldsCapability::new(true));
    let mut capabilities = serde_json::to_value(capabilities).map_err(Error::internal)?;
    capabilities["m.change_password"] = json!({ "enabled": true });
    Ok(json!({ "capabilities": capabilities }))
}
