//! How a server proves that a request is its own: the `X-Matrix` authorization.
//!
//! Specification: <https://spec.matrix.org/v1.19/server-server-api/#request-authentication>.

use http::Method;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, OwnedServerSigningKeyId, ServerName,
};

use crate::{Error, SigningKey, VerifyKey, keys::decode};

/// The name of the scheme in the `Authorization` header.
pub const SCHEME: &str = "X-Matrix";

/// What a request is, as far as its signature covers it.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its path and query, as they are sent.
    pub uri: &'a str,
    /// The server that sends it.
    pub origin: &'a ServerName,
    /// The server that it is for.
    pub destination: &'a ServerName,
}

impl Target<'_> {
    /// What is signed, if `content` is canonical JSON. Names and paths are ASCII and need no canonical form of their own.
    fn signed(&self, content: &[u8]) -> Vec<u8> {
        let text = |text: &str| CanonicalJsonValue::String(text.to_owned()).to_string();
        let mut signed = Vec::with_capacity(content.len() + 256);
        signed.push(b'{');
        if !content.is_empty() {
            signed.extend_from_slice(b"\"content\":");
            signed.extend_from_slice(content);
            signed.push(b',');
        }
        let rest = format!(
            "\"destination\":{},\"method\":{},\"origin\":{},\"uri\":{}}}",
            text(self.destination.as_str()),
            text(self.method.as_str()),
            text(self.origin.as_str()),
            text(self.uri),
        );
        signed.extend_from_slice(rest.as_bytes());
        signed
    }

    /// Signs the request. Takes its body, which may be empty; answers the value of its `Authorization` header.
    ///
    /// # Errors
    /// [`Error::NotJson`] or [`Error::BadJson`] if the body has no canonical form.
    pub fn sign(&self, body: &[u8], key: &SigningKey) -> Result<String, Error> {
        Ok(self.sign_canonical(&canonical(body)?, key))
    }

    /// The same for a body that is canonical JSON already, or empty.
    #[must_use]
    pub fn sign_canonical(&self, body: &[u8], key: &SigningKey) -> String {
        let signature = key.sign_bytes(&self.signed(body));
        format!(
            "{SCHEME} origin=\"{}\",destination=\"{}\",key=\"{}\",sig=\"{signature}\"",
            self.origin,
            self.destination,
            key.id(),
        )
    }

    /// Whether `signature` is that of this request with this body, made with `key`.
    ///
    /// Most servers send a body in its canonical form, so it is first taken as it is; only if that fails, it is read
    /// and written anew. `body` must be one JSON value (or nothing), else it could pretend to be other fields.
    #[must_use]
    pub fn is_signed_by(&self, body: &[u8], key: &VerifyKey, signature: &[u8]) -> bool {
        let holds = |content: &[u8]| key.verify(&self.signed(content), signature);
        holds(body)
            || canonical(body).is_ok_and(|content| content.as_slice() != body && holds(&content))
    }
}

fn canonical(body: &[u8]) -> Result<Vec<u8>, Error> {
    if body.is_empty() {
        return Ok(Vec::new());
    }
    let json: CanonicalJsonObject = serde_json::from_slice(body).map_err(|error| {
        if error.is_data() {
            Error::BadJson(error.to_string())
        } else {
            Error::NotJson(error.to_string())
        }
    })?;
    serde_json::to_vec(&json).map_err(|error| Error::BadJson(error.to_string()))
}

/// What an `Authorization` header of the scheme says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Authorization {
    /// The server that claims to have sent the request.
    pub origin: OwnedServerName,
    /// The server that the request is for. Old servers do not say it.
    pub destination: Option<OwnedServerName>,
    /// The key that it is signed with.
    pub key: OwnedServerSigningKeyId,
    /// The bytes of the signature.
    pub signature: Vec<u8>,
}

/// Why an `Authorization` header cannot be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unreadable {
    /// It is of another scheme.
    #[error("the scheme is not X-Matrix")]
    OtherScheme,
    /// It does not have the format of the specification.
    #[error("the X-Matrix authorization is malformed: {0}")]
    Malformed(&'static str),
}

impl Authorization {
    /// Reads the value of an `Authorization` header, as tolerantly as the specification asks.
    ///
    /// # Errors
    /// If it is of another scheme or malformed.
    pub fn parse(header: &str) -> Result<Self, Unreadable> {
        let header = header.trim();
        let (scheme, parameters) = header.split_once([' ', '\t']).unwrap_or((header, ""));
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(Unreadable::OtherScheme);
        }
        let (mut origin, mut destination, mut key, mut signature) = (None, None, None, None);
        let mut rest = parameters;
        while let Some((name, value, after)) = parameter(rest)? {
            rest = after;
            let place = match name.to_ascii_lowercase().as_str() {
                "origin" => &mut origin,
                "destination" => &mut destination,
                "key" => &mut key,
                "sig" => &mut signature,
                _ => continue,
            };
            if place.replace(value).is_some() {
                return Err(Unreadable::Malformed("a parameter is given twice"));
            }
        }
        let name = |name: String| {
            OwnedServerName::try_from(name)
                .map_err(|_| Unreadable::Malformed("`origin` or `destination` is no server name"))
        };
        let origin = origin.ok_or(Unreadable::Malformed("`origin` is missing"))?;
        let key = key.ok_or(Unreadable::Malformed("`key` is missing"))?;
        let signature = signature.ok_or(Unreadable::Malformed("`sig` is missing"))?;
        Ok(Self {
            origin: name(origin)?,
            destination: destination.map(name).transpose()?,
            key: OwnedServerSigningKeyId::try_from(key)
                .map_err(|_| Unreadable::Malformed("`key` is no key id"))?,
            signature: decode(&signature).ok_or(Unreadable::Malformed("`sig` is no base64"))?,
        })
    }
}

/// Reads one `name=value`, after any commas before it. Answers the name, the value and what is left; `None` at the end.
fn parameter(text: &str) -> Result<Option<(&str, String, &str)>, Unreadable> {
    const SPACE: [char; 2] = [' ', '\t'];
    let text = text.trim_start_matches([' ', '\t', ',']);
    if text.is_empty() {
        return Ok(None);
    }
    let (name, value) = text
        .split_once('=')
        .ok_or(Unreadable::Malformed("a parameter has no value"))?;
    let name = name.trim_end_matches(SPACE);
    if name.is_empty() || name.contains([' ', '\t', ',', '"']) {
        return Err(Unreadable::Malformed("a parameter has no name"));
    }
    let value = value.trim_start_matches(SPACE);
    let (value, rest) = match value.strip_prefix('"') {
        Some(quoted) => unquote(quoted)?,
        // Colons and slashes are no characters of a token, but older servers do not quote them.
        None => {
            let end = value.find([',', ' ', '\t']).unwrap_or(value.len());
            (value[..end].to_owned(), &value[end..])
        }
    };
    let rest = rest.trim_start_matches(SPACE);
    if rest.is_empty() || rest.starts_with(',') {
        Ok(Some((name, value, rest)))
    } else {
        Err(Unreadable::Malformed(
            "there is no comma between parameters",
        ))
    }
}

/// Reads a quoted value up to its closing quote, and answers it with what follows the quote.
fn unquote(text: &str) -> Result<(String, &str), Unreadable> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match letters.next() {
                Some((_, escaped)) => value.push(escaped),
                None => break,
            },
            letter => value.push(letter),
        }
    }
    Err(Unreadable::Malformed("a quoted value has no end"))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use ruma::server_name;

    use super::*;
    use crate::keys::BASE64;

    fn key() -> SigningKey {
        let seed = BASE64.encode([7; 32]);
        SigningKey::parse_file(&format!("ed25519 a_1 {seed}"))
            .unwrap()
            .remove(0)
    }

    fn target<'a>(uri: &'a str, destination: &'a ServerName) -> Target<'a> {
        Target {
            method: &Method::PUT,
            uri,
            origin: server_name!("a.example"),
            destination,
        }
    }

    #[test]
    fn headers_are_read_as_tolerantly_as_the_specification_asks() {
        let plain =
            r#"X-Matrix origin="a.example:80",destination="b.example",key="ed25519:1",sig="YWI""#;
        let expected = Authorization::parse(plain).unwrap();
        assert_eq!(expected.origin, "a.example:80");
        assert_eq!(
            expected.destination.as_deref(),
            Some(server_name!("b.example"))
        );
        assert_eq!(expected.key.as_str(), "ed25519:1");
        assert_eq!(expected.signature, b"ab");
        let same = [
            "X-Matrix origin=a.example:80,destination=b.example,key=ed25519:1,sig=YWI",
            "x-matrix   origin=a.example:80 , destination=b.example\t,\tkey=ed25519:1,sig=\"YWI=\"",
            r#"X-Matrix SIG="YWI",Key="ed25519:1",DESTINATION="b.example",Origin="a.example:80""#,
            r#"X-Matrix origin="a.example\:80",destination="b.\example",key="ed25519:1",sig="YWI",future="a,\"b""#,
            r#"X-Matrix ,origin = "a.example:80",,destination="b.example",key="ed25519:1",sig="YWI","#,
        ];
        for header in same {
            assert_eq!(
                Authorization::parse(header).as_ref(),
                Ok(&expected),
                "{header}"
            );
        }
        let old = "X-Matrix origin=a.example,key=\"ed25519:1\",sig=\"YWI\"";
        assert_eq!(Authorization::parse(old).unwrap().destination, None);
    }

    #[test]
    fn malformed_headers_are_refused() {
        for header in ["", "Bearer abc", "X-Matrixorigin=a"] {
            assert_eq!(
                Authorization::parse(header),
                Err(Unreadable::OtherScheme),
                "{header}"
            );
        }
        for header in [
            "X-Matrix",
            "X-Matrix nothing",
            "X-Matrix =a",
            "X-Matrix origin=a.example,key=ed25519:1",
            "X-Matrix origin=a.example,sig=YWI",
            "X-Matrix key=ed25519:1,sig=YWI",
            "X-Matrix origin=a.example,origin=a.example,key=ed25519:1,sig=YWI",
            "X-Matrix origin=\"a.example,key=ed25519:1,sig=YWI",
            "X-Matrix origin=\"a.example\"key=ed25519:1,sig=YWI",
            "X-Matrix origin=a.example key=ed25519:1,sig=YWI",
            "X-Matrix origin=\"a.example\\",
            "X-Matrix origin=@,key=ed25519:1,sig=YWI",
            "X-Matrix origin=a.example,destination=@,key=ed25519:1,sig=YWI",
            "X-Matrix origin=a.example,key=ed25519,sig=YWI",
            "X-Matrix origin=a.example,key=ed25519:1,sig=*",
        ] {
            let read = Authorization::parse(header);
            assert!(
                matches!(read, Err(Unreadable::Malformed(_))),
                "{header}: {read:?}"
            );
        }
    }

    #[test]
    fn a_signature_covers_all_of_a_request() {
        let key = key();
        let public = key.verify_key();
        let target = target("/_matrix/x?a=%20\"", server_name!("b.example"));
        for body in ["", "{}", r#"{ "b": 1, "a": "é" }"#] {
            let body = body.as_bytes();
            let header = target.sign(body, &key).unwrap();
            let read = Authorization::parse(&header).unwrap();
            assert_eq!(read.origin, target.origin);
            assert_eq!(read.destination.as_deref(), Some(target.destination));
            let holds = |target: &Target<'_>, body: &[u8]| {
                target.is_signed_by(body, &public, &read.signature)
            };
            assert!(holds(&target, body));
            assert!(!holds(&target, b"{\"a\":1}"));
            assert!(!holds(
                &Target {
                    method: &Method::POST,
                    ..target
                },
                body
            ));
            assert!(!holds(
                &Target {
                    uri: "/_matrix/x",
                    ..target
                },
                body
            ));
            assert!(!holds(
                &Target {
                    origin: server_name!("c.example"),
                    ..target
                },
                body
            ));
            assert!(!holds(
                &Target {
                    destination: server_name!("c.example"),
                    ..target
                },
                body
            ));
            let other = SigningKey::generate(&mut rand::rng()).verify_key();
            assert!(!target.is_signed_by(body, &other, &read.signature));
            assert!(!target.is_signed_by(body, &public, &read.signature[1..]));
            assert!(!target.is_signed_by(body, &public, b""));
        }
    }

    #[test]
    fn order_and_spaces_of_the_body_do_not_matter() {
        let key = key();
        let public = key.verify_key();
        let target = target("/x", server_name!("b.example"));
        let header = target.sign(br#"{"b":[1,2],"a":{}}"#, &key).unwrap();
        let signature = Authorization::parse(&header).unwrap().signature;
        for body in [r#"{"a":{},"b":[1,2]}"#, "{ \"b\": [1, 2],\n\"a\": {} }"] {
            assert!(
                target.is_signed_by(body.as_bytes(), &public, &signature),
                "{body}"
            );
        }
    }

    /// One event with a float must not keep its neighbours in a transaction from being read.
    #[test]
    fn what_has_no_canonical_form_is_taken_as_it_came() {
        let key = key();
        let public = key.verify_key();
        let target = target("/x", server_name!("b.example"));
        let body = br#"{"pdus":[{"a":1.5},{"b":1}]}"#;
        let signature = decode(&key.sign_bytes(&target.signed(body))).unwrap();
        assert!(target.is_signed_by(body, &public, &signature));
        assert!(target.sign(body, &key).is_err());
    }

    #[test]
    fn what_is_signed_is_the_object_of_the_specification() {
        let signed = target("/target", server_name!("b.example")).signed(br#"{"a":1}"#);
        let expected = r#"{"content":{"a":1},"destination":"b.example","method":"PUT","origin":"a.example","uri":"/target"}"#;
        assert_eq!(String::from_utf8(signed).unwrap(), expected);
    }
}
