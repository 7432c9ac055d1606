//! Whom this server believes that they are who they say.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use super::Unusable;

/// Reads the certificates of a PEM file.
///
/// # Errors
/// If it has none, or one that is none of an authority.
pub fn read_authorities(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let refused = |error: &dyn std::fmt::Display| Unusable(error.to_string());
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| refused(&error))?;
    if found.is_empty() {
        return Err(Unusable("there is no certificate in it".to_owned()));
    }
    let mut store = RootCertStore::empty();
    for certificate in &found {
        let added = store.add(certificate.clone());
        added.map_err(|error| refused(&error))?;
    }
    Ok(found)
}

/// Trusts the authorities that the operating system trusts, as the specification advises, and `more`.
pub(super) fn config(more: Vec<CertificateDer<'static>>) -> Result<Arc<ClientConfig>, Unusable> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    if roots.is_empty() {
        let errors = system.errors;
        tracing::warn!(?errors, "the system trusts no certificate authorities");
    }
    for certificate in more {
        let added = roots.add(certificate);
        added.map_err(|error| Unusable(error.to_string()))?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Unusable(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
