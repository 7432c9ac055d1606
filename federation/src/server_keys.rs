//! The documents with which servers publish their keys.
//!
//! Specification: <https://spec.matrix.org/v1.19/server-server-api/#retrieving-server-keys>.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{CanonicalJsonObject, CanonicalJsonValue, ServerName};

use crate::{Error, SigningKey, VerifyKey, json::strict_json, keys::decode};

/// The largest document that is read, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 64 << 10;
/// The most keys that one server may have, the old ones among them.
pub const MAX_KEYS: usize = 64;
/// How long after it was got a key is believed at most, in milliseconds: the specification's limit of seven days.
pub const LONGEST_VALIDITY: i64 = 7 * 24 * 60 * 60 * 1000;
/// How long what this server publishes is valid, in milliseconds.
const OWN_VALIDITY: i64 = 24 * 60 * 60 * 1000;

/// The keys that a server has published, checked to be its own word.
#[derive(Clone, Debug)]
pub struct KeyDocument {
    /// The keys with which it signs, by id.
    pub verify_keys: BTreeMap<Box<str>, VerifyKey>,
    /// The keys with which it has signed, by id, and until when, in milliseconds since 1970.
    pub old_verify_keys: BTreeMap<Box<str>, (VerifyKey, i64)>,
    /// Until when the server says that this holds, in milliseconds since 1970.
    pub valid_until: i64,
    /// The whole document in canonical JSON, with its signatures.
    pub json: Box<str>,
}

impl KeyDocument {
    /// Reads a document of the server `of`, and checks that it has signed it: with at least one of its keys, and with
    /// each of them that it claims. Keys of other kinds than ed25519 are left out.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::NotJson`], [`Error::BadJson`] if it does not have the format or is of another
    /// server, and [`Error::BadSignature`].
    pub fn parse(text: &[u8], of: &ServerName) -> Result<Self, Error> {
        if text.len() > MAX_DOCUMENT_BYTES {
            return Err(Error::TooLarge {
                what: "key document",
                bytes: text.len(),
                limit: MAX_DOCUMENT_BYTES,
            });
        }
        let object = strict_json(text)?;
        let bad = |what: &str| Error::BadJson(what.to_owned());
        match object.get("server_name") {
            Some(CanonicalJsonValue::String(name)) if name.as_str() == of.as_str() => {}
            _ => return Err(bad("`server_name` is not the server that was asked")),
        }
        let Some(CanonicalJsonValue::Integer(valid_until)) = object.get("valid_until_ts") else {
            return Err(bad("`valid_until_ts` is no integer"));
        };
        let valid_until = i64::from(*valid_until);
        let mut verify_keys = BTreeMap::new();
        for (id, entry) in members(&object, "verify_keys")? {
            if let Some(key) = key_of(id, entry)? {
                verify_keys.insert(id.as_str().into(), key);
            }
        }
        let mut old_verify_keys = BTreeMap::new();
        if object.contains_key("old_verify_keys") {
            for (id, entry) in members(&object, "old_verify_keys")? {
                let expired = entry.as_object().and_then(|entry| entry.get("expired_ts"));
                let Some(CanonicalJsonValue::Integer(expired)) = expired else {
                    return Err(bad("`expired_ts` is no integer"));
                };
                if let Some(key) = key_of(id, entry)? {
                    old_verify_keys.insert(id.as_str().into(), (key, i64::from(*expired)));
                }
            }
        }
        if verify_keys.len() + old_verify_keys.len() > MAX_KEYS {
            return Err(bad("there are too many keys"));
        }
        let read = Self {
            verify_keys,
            old_verify_keys,
            valid_until,
            json: CanonicalJsonValue::Object(object.clone())
                .to_string()
                .into(),
        };
        let is_signed = signatures(object, of, |id| read.verify_keys.get(id).cloned());
        match is_signed {
            Some(true) => Ok(read),
            Some(false) => Err(bad_signature(of, "a signature is wrong")),
            None => Err(bad_signature(of, "it is not signed with one of its keys")),
        }
    }

    /// Whether a notary has signed this document with the key of this id.
    #[must_use]
    pub fn is_signed_by(&self, notary: &ServerName, id: &str, key: &VerifyKey) -> bool {
        let Ok(object) = strict_json(self.json.as_bytes()) else {
            return false;
        };
        let known = |known: &str| (known == id).then(|| key.clone());
        signatures(object, notary, known) == Some(true)
    }

    /// Which keys of a server have signed this document, by id.
    #[must_use]
    pub fn signers(&self, server: &ServerName) -> Vec<Box<str>> {
        let object = strict_json(self.json.as_bytes()).unwrap_or_default();
        let ids = signatures_of(&object, server);
        ids.into_iter().map(|(id, _)| id.into()).collect()
    }

    /// The document with one more signature, as a notary answers it.
    ///
    /// # Errors
    /// Never, for what was parsed here.
    pub fn countersigned(&self, by: &ServerName, key: &SigningKey) -> Result<String, Error> {
        let mut object = strict_json(self.json.as_bytes())?;
        key.sign_json(by, &mut object)?;
        Ok(CanonicalJsonValue::Object(object).to_string())
    }
}

fn bad_signature(server: &ServerName, reason: &'static str) -> Error {
    Error::BadSignature {
        server: server.to_owned(),
        reason,
    }
}

fn members<'a>(
    object: &'a CanonicalJsonObject,
    field: &str,
) -> Result<&'a CanonicalJsonObject, Error> {
    let members = object.get(field).and_then(CanonicalJsonValue::as_object);
    members.ok_or_else(|| Error::BadJson(format!("`{field}` is no object")))
}

/// The key in an entry, or `None` if it is of a kind that is not known here.
fn key_of(id: &str, entry: &CanonicalJsonValue) -> Result<Option<VerifyKey>, Error> {
    if !id.starts_with("ed25519:") {
        return Ok(None);
    }
    let key = entry.as_object().and_then(|entry| entry.get("key"));
    match key {
        Some(CanonicalJsonValue::String(key)) => VerifyKey::from_base64(key).map(Some),
        _ => Err(Error::BadJson(format!("`key` of {id} is no text"))),
    }
}

fn signatures_of<'a>(
    object: &'a CanonicalJsonObject,
    server: &ServerName,
) -> Vec<(&'a str, &'a str)> {
    let signatures = object
        .get("signatures")
        .and_then(CanonicalJsonValue::as_object);
    let own = signatures
        .and_then(|signatures| signatures.get(server.as_str()))
        .and_then(CanonicalJsonValue::as_object);
    let Some(own) = own else {
        return Vec::new();
    };
    own.iter()
        .filter_map(|(id, signature)| Some((id.as_str(), signature.as_str()?)))
        .collect()
}

/// Whether all signatures of a server by known keys are right; `None` if there is none.
fn signatures(
    mut object: CanonicalJsonObject,
    server: &ServerName,
    key: impl Fn(&str) -> Option<VerifyKey>,
) -> Option<bool> {
    let claimed: Vec<_> = signatures_of(&object, server)
        .into_iter()
        .filter_map(|(id, signature)| Some((key(id)?, decode(signature))))
        .collect();
    object.remove("signatures");
    object.remove("unsigned");
    let signed = CanonicalJsonValue::Object(object).to_string();
    let mut right = claimed.iter().map(|(key, signature)| {
        let signature = signature.as_ref();
        signature.is_some_and(|signature| key.verify(signed.as_bytes(), signature))
    });
    let first = right.next()?;
    Some(first && right.all(|right| right))
}

/// The keys of this server.
#[derive(Debug)]
pub struct OwnKeys {
    /// Those that are valid. The first signs.
    pub signing: Vec<Arc<SigningKey>>,
    /// Those that have signed once, and until when, in milliseconds since 1970.
    pub old: Vec<(Box<str>, VerifyKey, i64)>,
}

impl OwnKeys {
    /// Reads a file of keys: lines of `ed25519 VERSION SEED`, the first of which signs, and lines of `ed25519 VERSION SEED
    /// EXPIRED` for keys that are not used any more since a time in milliseconds since 1970. Empty lines and those that
    /// start with `#` are skipped.
    ///
    /// # Errors
    /// [`Error::BadKey`], naming the line, if a line is malformed, two keys have one name, or no key can sign.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut keys = Self {
            signing: Vec::new(),
            old: Vec::new(),
        };
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |what: &str| Error::BadKey(format!("line {}: {what}", index + 1));
            let mut words: Vec<&str> = line.split_whitespace().collect();
            let expired = if words.len() == 4 { words.pop() } else { None };
            let key = SigningKey::parse_line(&words.join(" ")).map_err(bad)?;
            if keys.verify_key(key.id()).is_some() {
                return Err(bad("there is another key with this version"));
            }
            match expired {
                None => keys.signing.push(Arc::new(key)),
                Some(expired) => {
                    let expired = expired
                        .parse()
                        .ok()
                        .filter(|expired| *expired >= 0)
                        .ok_or_else(|| bad("the fourth word must be a time in milliseconds"))?;
                    keys.old.push((key.id().into(), key.verify_key(), expired));
                }
            }
        }
        if keys.signing.is_empty() {
            return Err(Error::BadKey("the file has no key to sign with".to_owned()));
        }
        Ok(keys)
    }

    /// The key of this id, and until when it is valid if it is an old one.
    #[must_use]
    pub fn verify_key(&self, id: &str) -> Option<(VerifyKey, Option<i64>)> {
        let signing = self.signing.iter().find(|key| key.id() == id);
        signing.map(|key| (key.verify_key(), None)).or_else(|| {
            let old = self.old.iter().find(|(old, ..)| &**old == id)?;
            Some((old.1.clone(), Some(old.2)))
        })
    }

    /// The document that publishes the keys of the server `name`, signed with all that are valid. `now` is in
    /// milliseconds since 1970.
    ///
    /// # Errors
    /// Only if a time cannot be written, because it is past the year 287,000.
    pub fn document(&self, name: &ServerName, now: i64) -> Result<String, Error> {
        let number = |number: i64| {
            let number = ruma::Int::try_from(number);
            let number = number.map_err(|error| Error::BadJson(error.to_string()))?;
            Ok(CanonicalJsonValue::Integer(number))
        };
        let text = |text: &str| CanonicalJsonValue::String(text.to_owned());
        let object = |members: Vec<(&str, CanonicalJsonValue)>| {
            let members = members
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value));
            CanonicalJsonValue::Object(members.collect())
        };
        let signing = self.signing.iter();
        let signing = signing.map(|key| (key.id(), object(vec![("key", text(&key.public_key()))])));
        let mut old = Vec::new();
        for (id, key, expired) in &self.old {
            let members = vec![
                ("key", text(&key.to_base64())),
                ("expired_ts", number(*expired)?),
            ];
            old.push((&**id, object(members)));
        }
        let mut document = CanonicalJsonObject::from([
            ("server_name".to_owned(), text(name.as_str())),
            ("verify_keys".to_owned(), object(signing.collect())),
            ("old_verify_keys".to_owned(), object(old)),
            ("valid_until_ts".to_owned(), number(now + OWN_VALIDITY)?),
        ]);
        for key in &self.signing {
            key.sign_json(name, &mut document)?;
        }
        Ok(CanonicalJsonValue::Object(document).to_string())
    }
}
