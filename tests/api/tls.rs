//! Certificates for servers on this machine, from an authority that only these tests know.

use std::{path::Path, sync::OnceLock};

use homing::config::Listener;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

/// The names that the certificate is for.
const NAMES: [&str; 6] = [
    "localhost",
    "127.0.0.1",
    "::1",
    "a.example",
    "b.example",
    "c.example",
];

struct Authority {
    certificate: String,
    leaf: String,
    key: String,
}

/// One authority for all tests of this process, and one certificate for all servers.
fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("an authority");
        let issuer = Issuer::new(params, key);
        let leaf_key = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::new(NAMES.map(str::to_owned))
            .expect("parameters")
            .signed_by(&leaf_key, &issuer)
            .expect("a certificate");
        Authority {
            certificate: certificate.pem(),
            leaf: leaf.pem(),
            key: leaf_key.serialize_pem(),
        }
    })
}

/// The authority, to be trusted.
pub fn authorities() -> Vec<CertificateDer<'static>> {
    let pem = authority().certificate.as_bytes();
    vec![CertificateDer::from_pem_slice(pem).expect("a certificate")]
}

/// Writes the authority into a folder, as `ca.pem`.
pub fn write_authority(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("ca.pem");
    std::fs::write(&path, &authority().certificate).expect("the folder can be written to");
    path
}

/// A listener with TLS at a port of 127.0.0.1 (0 is any); its files are written into a folder.
pub fn listener(folder: &Path, port: u16) -> Listener {
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    std::fs::write(&cert, &authority().leaf).expect("the folder can be written to");
    std::fs::write(&key, &authority().key).expect("the folder can be written to");
    Listener {
        bind: ([127, 0, 0, 1], port).into(),
        tls: true,
        cert: Some(cert),
        key: Some(key),
        ..Listener::default()
    }
}

/// A port of 127.0.0.1 that is free now, below those that the system gives to outgoing connections.
pub fn free_port() -> u16 {
    loop {
        let port = rand::random_range(12_000..32_000);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
