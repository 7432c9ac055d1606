//! Reading JSON from clients.
//!
//! What a client sends becomes part of events, and from room version 6 on an event must be
//! [canonical JSON]: every server has to read the same value from it. serde's usual reading is
//! laxer (floats, duplicate keys of which the last wins), so this module has its own.
//!
//! [canonical JSON]: https://spec.matrix.org/v1.19/appendices/#canonical-json

use std::{cell::RefCell, fmt};

use ruma::{CanonicalJsonObject, CanonicalJsonValue, Int};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::Error;

/// How deep objects and arrays may be nested, the outermost object being 1.
///
/// The specification has no limit. Real events need less than ten, and JSON readers that recurse
/// stop at 128 (`serde_json`) or more, so what is accepted here can be read everywhere.
pub const MAX_NESTING: usize = 100;

/// Reads a JSON object as strictly as events need it.
///
/// Refused are: numbers that are not integers (also `1.0`, `1e3` and `-0`) or are outside of
/// ±(2^53 - 1), keys that occur twice in an object, and nesting deeper than [`MAX_NESTING`].
///
/// # Errors
///
/// [`Error::NotJson`] if `bytes` is not JSON in UTF-8, [`Error::BadJson`] if it is JSON but not
/// an object or breaks one of the rules above.
pub fn strict_json(bytes: &[u8]) -> Result<CanonicalJsonObject, Error> {
    // serde's errors carry text only, so the reason for our own refusals takes another way.
    let refusal = RefCell::new(None);
    let strict = Strict {
        depth: 0,
        refusal: &refusal,
    };
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = strict
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    match value {
        Ok(CanonicalJsonValue::Object(object)) => Ok(object),
        Ok(_) => Err(Error::BadJson("expected an object".to_owned())),
        Err(error) => Err(match refusal.take() {
            Some(reason) => Error::BadJson(reason),
            None => Error::NotJson(error.to_string()),
        }),
    }
}

/// Reads one value that has `depth` objects and arrays around it.
#[derive(Clone, Copy)]
struct Strict<'a> {
    depth: usize,
    refusal: &'a RefCell<Option<String>>,
}

impl Strict<'_> {
    fn refuse<E: serde::de::Error>(self, reason: String) -> E {
        *self.refusal.borrow_mut() = Some(reason);
        E::custom("refused")
    }

    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == MAX_NESTING {
            return Err(self.refuse(format!("nested deeper than {MAX_NESTING}")));
        }
        Ok(Self {
            depth: self.depth + 1,
            ..self
        })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = CanonicalJsonValue;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = CanonicalJsonValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(CanonicalJsonValue::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(CanonicalJsonValue::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Self::Value, E> {
        Int::try_from(value)
            .map(CanonicalJsonValue::Integer)
            .map_err(|_| self.refuse(format!("{value} is not within ±(2^53 - 1)")))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Self::Value, E> {
        Int::try_from(value)
            .map(CanonicalJsonValue::Integer)
            .map_err(|_| self.refuse(format!("{value} is not within ±(2^53 - 1)")))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Self::Value, E> {
        Err(self.refuse(format!("{value:?} is not an integer within ±(2^53 - 1)")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(CanonicalJsonValue::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Self::Value, E> {
        Ok(CanonicalJsonValue::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let inner = self.deeper()?;
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(CanonicalJsonValue::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let inner = self.deeper()?;
        let mut object = CanonicalJsonObject::new();
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(self.refuse(format!("the key {key:?} occurs twice")));
            }
            let value = map.next_value_seed(inner)?;
            object.insert(key, value);
        }
        Ok(CanonicalJsonValue::Object(object))
    }
}
