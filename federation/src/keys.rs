//! The server's signing key, and the public keys of all servers.
//!
//! Specification: <https://spec.matrix.org/v1.19/appendices/#signing-json>.

use std::fmt;

use base64::{
    Engine,
    engine::{
        DecodePaddingMode,
        general_purpose::{self, GeneralPurpose},
    },
};
use ed25519_dalek::{Signature, Signer, VerifyingKey};
use rand::{CryptoRng, RngExt, distr::Alphanumeric};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, ServerName, SigningKeyAlgorithm, SigningKeyId,
    signatures::{self, KeyPair, sign_json},
};

use crate::Error;

/// Standard base64 written without padding, as Matrix writes hashes and signatures. It is read
/// with or without padding and whatever the unused bits at the end are: the seed of the
/// specification's own test vectors has some of them set.
pub(crate) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    general_purpose::NO_PAD
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The most signatures of an object that are looked at.
const MAX_SIGNATURES: usize = 32;

/// Reads base64 as described at [`BASE64`].
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text).ok()
}

/// An ed25519 key with which this server signs events and requests.
pub struct SigningKey {
    key: ed25519_dalek::SigningKey,
    /// The full id, `ed25519:` and the version.
    id: Box<str>,
}

impl SigningKey {
    /// Makes a new key with a random version of six characters, such as `a_Xy3Z`.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut seed = [0; ed25519_dalek::SECRET_KEY_LENGTH];
        rng.fill_bytes(&mut seed);
        let suffix: String = rng
            .sample_iter(Alphanumeric)
            .take(4)
            .map(char::from)
            .collect();
        Self {
            key: ed25519_dalek::SigningKey::from_bytes(&seed),
            id: format!("ed25519:a_{suffix}").into(),
        }
    }

    /// Reads a file of keys in Synapse's format: lines of `ed25519 VERSION SEED`, the seed being
    /// 32 bytes in base64. Empty lines are skipped. The first key is the one to sign with; the
    /// others are still published so that what they signed can be verified.
    ///
    /// # Errors
    ///
    /// [`Error::BadKey`], naming the line, if the text has no key or a line is malformed.
    pub fn parse_file(text: &str) -> Result<Vec<Self>, Error> {
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            let key = Self::parse_line(line)
                .map_err(|what| Error::BadKey(format!("line {}: {what}", index + 1)))?;
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(Error::BadKey("the file has no key".to_owned()));
        }
        Ok(keys)
    }

    pub(crate) fn parse_line(line: &str) -> Result<Self, &'static str> {
        let mut parts = line.split_whitespace();
        let (Some(algorithm), Some(version), Some(seed), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("expected `ed25519 VERSION SEED`");
        };
        if algorithm != "ed25519" {
            return Err("the algorithm must be ed25519");
        }
        if !version
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            return Err("the version may only have letters, digits and underscores");
        }
        let seed = BASE64
            .decode(seed)
            .map_err(|_| "the seed is not base64")?
            .try_into()
            .map_err(|_| "the seed must be 32 bytes long")?;
        Ok(Self {
            key: ed25519_dalek::SigningKey::from_bytes(&seed),
            id: format!("ed25519:{version}").into(),
        })
    }

    /// The line of a key file for this key, ending in a newline. **It holds the secret.**
    #[must_use]
    pub fn to_file_line(&self) -> String {
        let seed = BASE64.encode(self.key.as_bytes());
        format!("ed25519 {} {seed}\n", self.version())
    }

    /// The id of the key, such as `ed25519:a_Xy3Z`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The part of the id behind the colon.
    #[must_use]
    pub fn version(&self) -> &str {
        self.id.split_once(':').map_or("", |(_, version)| version)
    }

    /// The public key in unpadded base64, as `GET /_matrix/key/v2/server` publishes it.
    #[must_use]
    pub fn public_key(&self) -> String {
        self.verify_key().to_base64()
    }

    /// The public half of the key.
    #[must_use]
    pub fn verify_key(&self) -> VerifyKey {
        VerifyKey(self.key.verifying_key())
    }

    /// Signs bytes and returns the signature in unpadded base64.
    #[must_use]
    pub fn sign_bytes(&self, message: &[u8]) -> String {
        BASE64.encode(self.key.sign(message).to_bytes())
    }

    /// Signs a JSON object that is not an event, and adds the signature to its `signatures`.
    /// `signatures` and `unsigned` are not covered by it.
    ///
    /// # Errors
    ///
    /// [`Error::BadJson`] if the object already has `signatures` that are not objects.
    pub fn sign_json(
        &self,
        server_name: &ServerName,
        object: &mut CanonicalJsonObject,
    ) -> Result<(), Error> {
        sign_json(server_name.as_str(), self, object)
            .map_err(|error| Error::BadJson(error.to_string()))
    }
}

impl KeyPair for SigningKey {
    fn sign(&self, message: &[u8]) -> signatures::Signature {
        let id = SigningKeyId::from_parts(SigningKeyAlgorithm::Ed25519, self.version().into());
        signatures::Signature::new(id, self.key.sign(message).to_bytes().to_vec())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The public half of a server's ed25519 key, with which its signatures are checked.
///
/// It is decoded once; checking a signature takes about 50 µs.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyKey(VerifyingKey);

impl VerifyKey {
    /// Reads a key in base64, as servers publish it.
    ///
    /// # Errors
    ///
    /// [`Error::BadKey`] if it is no base64, or no ed25519 key.
    pub fn from_base64(text: &str) -> Result<Self, Error> {
        let bytes = decode(text).ok_or_else(|| Error::BadKey("it is not base64".to_owned()))?;
        let bytes = <[u8; 32]>::try_from(bytes)
            .map_err(|_| Error::BadKey("it is not 32 bytes long".to_owned()))?;
        VerifyingKey::from_bytes(&bytes)
            .map(Self)
            .map_err(|_| Error::BadKey("it is not an ed25519 key".to_owned()))
    }

    /// Reads a key that may be in the alphabet for addresses too, as keys that people write into rooms are.
    ///
    /// # Errors
    ///
    /// [`Error::BadKey`] if it is no key.
    pub fn from_any_base64(text: &str) -> Result<Self, Error> {
        Self::from_base64(&text.replace('-', "+").replace('_', "/"))
    }

    /// Whether a JSON object that is no event has a signature of this key, whatever it is called there.
    #[must_use]
    pub fn has_signed(&self, object: &CanonicalJsonObject) -> bool {
        let mut object = object.clone();
        let signatures = object.remove("signatures");
        object.remove("unsigned");
        let signed = CanonicalJsonValue::Object(object).to_string();
        let Some(CanonicalJsonValue::Object(signatures)) = signatures else {
            return false;
        };
        signatures
            .values()
            .filter_map(CanonicalJsonValue::as_object)
            .flatten()
            .filter(|(id, _)| id.starts_with("ed25519:"))
            .take(MAX_SIGNATURES)
            .filter_map(|(_, signature)| decode(signature.as_str()?))
            .any(|signature| self.verify(signed.as_bytes(), &signature))
    }

    /// The key in unpadded base64.
    #[must_use]
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.0.as_bytes())
    }

    /// Whether these bytes are this key's signature of `message`.
    ///
    /// Weak keys, whose signatures hold for more than one message, are refused, as libsodium
    /// refuses them, with which most servers check.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        Signature::from_slice(signature)
            .is_ok_and(|signature| self.0.verify_strict(message, &signature).is_ok())
    }
}

impl fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VerifyKey").field(&self.to_base64()).finish()
    }
}
