//! What keys must look like. Of what they are good for the server knows nothing: it does not decide whom anybody trusts, and
//! whether a device has signed its keys is for those to see who get them; but what is no key confuses them.

use homing_federation::{VerifyKey, strict_json};
use http::StatusCode;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, UserId,
    api::error::ErrorKind,
    serde::{Base64, base64::Standard},
};
use serde_json::value::RawValue;

use crate::error::{Error, Result};

/// The largest keys of a device, and the largest key of a user, in bytes.
const OBJECT: usize = 64 << 10;
/// The largest one-time key, in bytes: there are many of them.
const ONE_TIME_KEY: usize = 4 << 10;
/// The longest name of an algorithm or of a key, in bytes.
const NAME: usize = 255;
/// The size of a public key of the algorithms that are known here, in bytes.
const PUBLIC_KEY: usize = 32;

/// 400 `M_INVALID_SIGNATURE`.
pub(super) fn invalid_signature(message: &str) -> Error {
    // ruma has no name for it.
    let kind = serde_json::from_str(r#"{"errcode":"M_INVALID_SIGNATURE"}"#);
    let kind = kind.unwrap_or(ErrorKind::Unknown);
    Error::new(StatusCode::BAD_REQUEST, kind, message)
}

fn read(json: &RawValue, most: usize) -> Result<CanonicalJsonObject> {
    if json.get().len() > most {
        return Err(Error::too_large(format!("a key has at most {most} bytes")));
    }
    Ok(strict_json(json.get().as_bytes())?)
}

/// Reads an object that somebody has signed.
///
/// # Errors
/// `M_BAD_JSON`, `M_TOO_LARGE`.
pub(super) fn object(json: &RawValue) -> Result<CanonicalJsonObject> {
    read(json, OBJECT)
}

/// The text of a field.
pub(super) fn text<'o>(object: &'o CanonicalJsonObject, field: &str) -> Option<&'o str> {
    object.get(field)?.as_str()
}

fn expect_text(object: &CanonicalJsonObject, field: &str, expected: &str) -> Result<()> {
    if text(object, field) == Some(expected) {
        return Ok(());
    }
    Err(Error::bad_json(format!("`{field}` is not {expected}")))
}

fn has_texts(value: &CanonicalJsonValue) -> bool {
    let values = value.as_object().map(|object| object.values());
    values.is_some_and(|mut values| values.all(|value| value.as_str().is_some()))
}

/// Makes sure that there are signatures, by user and by key.
fn expect_signatures(object: &CanonicalJsonObject) -> Result<()> {
    let signatures = object
        .get("signatures")
        .and_then(CanonicalJsonValue::as_object);
    if signatures.is_some_and(|signatures| signatures.values().all(has_texts)) {
        return Ok(());
    }
    Err(Error::bad_json(
        "`signatures` is no object of objects of texts",
    ))
}

/// Makes sure that a key of an algorithm that is known here is one.
fn expect_public_key(algorithm: &str, key: &str) -> Result<()> {
    let is_known = matches!(algorithm, "curve25519" | "ed25519" | "signed_curve25519");
    let bytes = || Base64::<Standard>::parse(key).map(|key| key.as_bytes().len());
    let is_key = || bytes().is_ok_and(|bytes| bytes == PUBLIC_KEY);
    if is_known && !is_key() {
        return Err(Error::bad_json(format!(
            "a key for {algorithm} is {PUBLIC_KEY} bytes in base64"
        )));
    }
    Ok(())
}

/// Drops what the owner of keys cannot say of them: what others have signed, which nobody looks for there, and what servers
/// add.
fn keep_own(object: &mut CanonicalJsonObject, owner: &UserId) {
    object.remove("unsigned");
    if let Some(CanonicalJsonValue::Object(signatures)) = object.get_mut("signatures") {
        signatures.retain(|signer, _| *signer == *owner.as_str());
    }
}

/// Reads the keys of a device.
///
/// # Errors
/// `M_BAD_JSON` if they are another device's or not as they must be, `M_TOO_LARGE`.
pub(super) fn device_keys(json: &RawValue, user: &UserId, device: &str) -> Result<String> {
    let mut object = object(json)?;
    expect_text(&object, "user_id", user.as_str())?;
    expect_text(&object, "device_id", device)?;
    let algorithms = object
        .get("algorithms")
        .and_then(CanonicalJsonValue::as_array);
    if !algorithms.is_some_and(|all| all.iter().all(|one| one.as_str().is_some())) {
        return Err(Error::bad_json("`algorithms` is no list of texts"));
    }
    let keys = object.get("keys").filter(|keys| has_texts(keys));
    let keys = keys.and_then(CanonicalJsonValue::as_object);
    let keys = keys.ok_or_else(|| Error::bad_json("`keys` is no object of texts"))?;
    for (id, key) in keys {
        match id.split_once(':') {
            Some((algorithm, id)) if id == device => {
                expect_public_key(algorithm, key.as_str().unwrap_or_default())?;
            }
            _ => return Err(Error::bad_json("`keys` has a key of another device")),
        }
    }
    if !keys.contains_key(&format!("ed25519:{device}")) {
        return Err(Error::bad_json(
            "`keys` has none that the device signs with",
        ));
    }
    expect_signatures(&object)?;
    keep_own(&mut object, user);
    Ok(CanonicalJsonValue::Object(object).to_string())
}

/// A one-time key or a fallback key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SmallKey {
    /// Its algorithm.
    pub(super) algorithm: String,
    /// Its name behind that.
    pub(super) key_id: String,
    /// The key, as canonical JSON.
    pub(super) json: String,
}

/// Reads a one-time key or a fallback key, which is called `id`.
///
/// # Errors
/// `M_BAD_JSON` if it is not as it must be, `M_TOO_LARGE`.
pub(super) fn small_key(id: &str, json: &RawValue) -> Result<SmallKey> {
    let (algorithm, key_id) = id
        .split_once(':')
        .filter(|(algorithm, key_id)| !algorithm.is_empty() && !key_id.is_empty())
        .ok_or_else(|| Error::bad_json("the id of a key is its algorithm, `:` and its name"))?;
    if algorithm.len() > NAME || key_id.len() > NAME {
        return Err(Error::bad_json("the id of a key is too long"));
    }
    let json = if json.get().starts_with('"') && !algorithm.starts_with("signed_") {
        if json.get().len() > ONE_TIME_KEY {
            return Err(Error::too_large("a key is too large"));
        }
        let key: String = serde_json::from_str(json.get())
            .map_err(|error| Error::bad_json(format!("a key is no text: {error}")))?;
        expect_public_key(algorithm, &key)?;
        CanonicalJsonValue::String(key)
    } else {
        let object = read(json, ONE_TIME_KEY)?;
        let key = text(&object, "key").ok_or_else(|| Error::bad_json("`key` is no text"))?;
        expect_public_key(algorithm, key)?;
        expect_signatures(&object)?;
        CanonicalJsonValue::Object(object)
    };
    Ok(SmallKey {
        algorithm: algorithm.to_owned(),
        key_id: key_id.to_owned(),
        json: json.to_string(),
    })
}

/// A key with which a user signs.
#[derive(Debug)]
pub(super) struct SigningKey {
    /// Its public half, as its user writes it.
    pub(super) public: String,
    /// The same, to check signatures.
    pub(super) key: VerifyKey,
    /// All that is said of it.
    pub(super) object: CanonicalJsonObject,
}

impl SigningKey {
    /// As signatures name it.
    pub(super) fn id(&self) -> String {
        format!("ed25519:{}", self.public)
    }

    /// Reads a key of a user for a usage: `master`, `self_signing` or `user_signing`.
    ///
    /// # Errors
    /// `M_BAD_JSON` if it is somebody else's, for something else or not as it must be.
    pub(super) fn new(mut object: CanonicalJsonObject, user: &UserId, usage: &str) -> Result<Self> {
        expect_text(&object, "user_id", user.as_str())?;
        let usages = object.get("usage").and_then(CanonicalJsonValue::as_array);
        let is_for =
            |usages: &[CanonicalJsonValue]| usages.iter().any(|one| one.as_str() == Some(usage));
        if !usages.is_some_and(is_for) {
            return Err(Error::bad_json(format!("`usage` has no {usage}")));
        }
        if object.contains_key("signatures") {
            expect_signatures(&object)?;
        }
        keep_own(&mut object, user);
        let keys = object.get("keys").and_then(CanonicalJsonValue::as_object);
        let mut keys = keys.into_iter().flatten();
        let (Some((id, value)), None) = (keys.next(), keys.next()) else {
            return Err(Error::bad_json("`keys` has not one key"));
        };
        let public = value
            .as_str()
            .filter(|public| id.strip_prefix("ed25519:") == Some(public));
        let Some(public) = public.map(ToOwned::to_owned) else {
            return Err(Error::bad_json(
                "a key is called `ed25519:` and its public half",
            ));
        };
        let key = VerifyKey::from_base64(&public)
            .map_err(|error| Error::bad_json(format!("this is no key: {error}")))?;
        Ok(Self {
            public,
            key,
            object,
        })
    }
}

/// A signature on an object, if there is one of this user with this key.
pub(super) fn signature<'o>(
    object: &'o CanonicalJsonObject,
    signer: &UserId,
    key_id: &str,
) -> Option<&'o str> {
    let signatures = object.get("signatures")?.as_object()?;
    signatures
        .get(signer.as_str())?
        .as_object()?
        .get(key_id)?
        .as_str()
}

/// Whether the signature of a user on an object that is called `key_id` was made with a key.
pub(super) fn is_signed(
    object: &CanonicalJsonObject,
    signer: &UserId,
    key_id: &str,
    key: &VerifyKey,
) -> bool {
    let Some(signature) = signature(object, signer, key_id) else {
        return false;
    };
    let mut alone = object.clone();
    alone.remove("signatures");
    add_signature(&mut alone, signer, key_id, signature);
    key.has_signed(&alone)
}

/// Adds a signature to an object.
pub(super) fn add_signature(
    object: &mut CanonicalJsonObject,
    signer: &UserId,
    key_id: &str,
    signature: &str,
) {
    let empty = || CanonicalJsonValue::Object(CanonicalJsonObject::new());
    let signatures = object.entry("signatures".into()).or_insert_with(empty);
    let CanonicalJsonValue::Object(signatures) = signatures else {
        return;
    };
    let of_signer = signatures.entry(signer.as_str().into());
    if let CanonicalJsonValue::Object(of_signer) = of_signer.or_insert_with(empty) {
        of_signer.insert(key_id.into(), CanonicalJsonValue::String(signature.into()));
    }
}

/// Whether two objects are the same but for their signatures and what servers have added.
pub(super) fn is_same(one: &CanonicalJsonObject, other: &CanonicalJsonObject) -> bool {
    let signed = |object: &CanonicalJsonObject| {
        let mut object = object.clone();
        object.remove("signatures");
        object.remove("unsigned");
        object
    };
    signed(one) == signed(other)
}

#[cfg(test)]
mod tests {
    use ruma::user_id;
    use serde_json::{Value, json};

    use super::*;

    const KEY: &str = "lEuiRJBit0IG6nUf5pUzWTUEsRVVe/HJkoKuEww9ULI";

    fn raw(json: &Value) -> Box<RawValue> {
        serde_json::value::to_raw_value(json).unwrap()
    }

    fn good() -> Value {
        json!({
            "user_id": "@a:b", "device_id": "D", "algorithms": ["m.megolm.v1.aes-sha2"],
            "keys": { "ed25519:D": KEY, "curve25519:D": KEY, "new:D": "k" },
            "signatures": { "@a:b": { "ed25519:D": "s" } },
        })
    }

    #[test]
    fn keys_of_a_device_are_as_they_must_be() {
        let user = user_id!("@a:b");
        let read = |json: &Value| device_keys(&raw(json), user, "D");
        let mut with_more = good();
        with_more["unsigned"] = json!({ "device_display_name": "x" });
        with_more["signatures"]["@c:b"] = json!({ "ed25519:K": "s" });
        assert_eq!(read(&with_more).unwrap(), read(&good()).unwrap());
        for (field, bad) in [
            ("user_id", json!("@b:b")),
            ("user_id", json!(null)),
            ("device_id", json!("E")),
            ("algorithms", json!("a")),
            ("algorithms", json!([1])),
            ("algorithms", json!(null)),
            ("keys", json!([])),
            ("keys", json!({})),
            ("keys", json!({ "ed25519:E": KEY })),
            ("keys", json!({ "curve25519:D": KEY })),
            (
                "keys",
                json!({ "ed25519:D": KEY, "curve25519:D": &KEY[1..] }),
            ),
            ("keys", json!({ "D": KEY })),
            ("keys", json!({ "ed25519:D": 1 })),
            ("signatures", json!(null)),
            ("signatures", json!({ "@a:b": "s" })),
            ("signatures", json!({ "@a:b": { "ed25519:D": 1 } })),
            ("more", json!(1.5)),
            ("more", json!("x".repeat(OBJECT))),
        ] {
            let mut keys = good();
            keys[field] = bad;
            assert!(read(&keys).is_err(), "{field}: {}", keys[field]);
            let mut keys = good();
            keys.as_object_mut().unwrap().remove(field);
            assert_eq!(read(&keys).is_err(), field != "more", "no {field}");
        }
    }

    #[test]
    fn one_time_keys_are_as_they_must_be() {
        let signed = json!({ "key": KEY, "signatures": { "@a:b": { "ed25519:D": "s" } } });
        for (id, json) in [
            ("curve25519:A", json!(KEY)),
            ("signed_curve25519:A", signed),
            ("new:A", json!("k")),
        ] {
            let key = small_key(id, &raw(&json)).unwrap();
            assert_eq!(key.key_id, "A");
        }
        let long = "x".repeat(NAME + 1);
        for (id, json) in [
            ("curve25519", json!(KEY)),
            (":A", json!("k")),
            ("curve25519:", json!(KEY)),
            (&format!("curve25519:{long}"), json!(KEY)),
            (&format!("{long}:A"), json!("k")),
            ("curve25519:A", json!("k")),
            ("curve25519:A", json!("x".repeat(ONE_TIME_KEY))),
            ("curve25519:A", json!(1)),
            ("curve25519:A", json!(["k"])),
            ("signed_curve25519:A", json!(KEY)),
            ("signed_curve25519:A", json!({ "key": KEY })),
            ("signed_curve25519:A", json!({ "signatures": {} })),
            ("signed_curve25519:A", json!({ "key": 1, "signatures": {} })),
            (
                "signed_curve25519:A",
                json!({ "key": "k", "signatures": {} }),
            ),
        ] {
            assert!(small_key(id, &raw(&json)).is_err(), "{id} {json}");
        }
    }
}
