//! The TLS side of a listener.

use std::{path::Path, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};

use super::Error;
use crate::config::Listener;

/// Reads the certificate and key of a listener.
pub(super) fn server_config(listener: &Listener) -> Result<Arc<ServerConfig>, Error> {
    let (Some(cert), Some(key)) = (&listener.cert, &listener.key) else {
        return Err(Error::NoCertificate(listener.bind));
    };
    let chain = read_chain(cert).map_err(unusable(cert))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| match error {
        pem::Error::NoItemsFound => Error::NoKey(key.display().to_string()),
        error => unusable(key)(error),
    })?;

    let refused = |error| Error::Certificate(listener.bind, error);
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(refused)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(refused)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn read_chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(file)?.collect::<Result<_, _>>()?;
    if chain.is_empty() {
        return Err(pem::Error::NoItemsFound);
    }
    Ok(chain)
}

fn unusable(file: &Path) -> impl FnOnce(pem::Error) -> Error {
    let file = file.display().to_string();
    move |error| Error::Pem(file, error)
}
