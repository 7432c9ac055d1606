//! The clients for other servers and for push gateways, as the settings want them.

use std::sync::Arc;

use homing_federation::{
    SigningKey,
    address_policy::AddressPolicy,
    client::{Client, Guarded, Names, Settings, Unusable, read_authorities},
};
use http::HeaderValue;
use rustls::pki_types::CertificateDer;

use crate::config::Config;

/// What other servers are told who asks.
pub(crate) const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("Homing/", env!("CARGO_PKG_VERSION")));

/// `federation.ca_file` cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`federation.ca_file` cannot be used: {path}: {cause}")]
pub struct Error {
    path: String,
    cause: String,
}

/// The certificate authorities that the settings add to those of the system.
///
/// # Errors
/// If their file cannot be read or holds something else.
pub fn authorities(config: &Config) -> Result<Vec<CertificateDer<'static>>, Error> {
    let Some(path) = &config.federation.ca_file else {
        return Ok(Vec::new());
    };
    let refused = |cause: &dyn std::fmt::Display| Error {
        path: path.display().to_string(),
        cause: cause.to_string(),
    };
    let pem = std::fs::read(path).map_err(|error| refused(&error))?;
    read_authorities(&pem).map_err(|error| refused(&error))
}

/// The client that signs with `key`.
///
/// # Errors
/// If the certificate authorities of the settings cannot be used.
pub fn client(config: &Config, key: Arc<SigningKey>) -> Result<Client, Error> {
    let settings = Settings {
        enabled: config.federation.enabled,
        server_name: config.server_name.clone(),
        key,
        policy: AddressPolicy::new(config.federation.allow_addresses.clone()),
        names: Names::System,
        authorities: authorities(config)?,
        user_agent: USER_AGENT,
    };
    Client::new(settings).map_err(unusable)
}

/// The client for push gateways, which trusts the same authorities.
///
/// # Errors
/// If the certificate authorities of the settings cannot be used.
pub fn push_gateways(config: &Config) -> Result<Guarded, Error> {
    let policy = AddressPolicy::new(config.push.allow_addresses.clone());
    let authorities = authorities(config)?;
    Guarded::new(policy, Names::System, authorities, USER_AGENT).map_err(unusable)
}

fn unusable(Unusable(cause): Unusable) -> Error {
    Error {
        path: "the certificates".to_owned(),
        cause,
    }
}
