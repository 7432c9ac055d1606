//! The kinds of value that settings have.

use std::fmt;

use ipnet::IpNet;
use ruma::{OwnedUserId, api::client::discovery::discover_support::ContactRole};
use serde::{Deserialize, Serialize, de::Error as _};

/// Who may register an account.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RegistrationMode {
    /// Nobody, besides the first account and what administrators make.
    #[default]
    Closed,
    /// Who has a registration token.
    Token,
    /// Everybody.
    Open,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Human,
    Json,
}

/// A token bucket: `burst` at once, then `per_second` on the long run.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    pub per_second: f64,
    pub burst: u32,
}

impl Rate {
    pub(super) const fn new(per_second: f64, burst: u32) -> Self {
        Self { per_second, burst }
    }
}

/// Somebody to ask about the server, by Matrix, by e-mail or both.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SupportContact {
    /// `m.role.admin`, `m.role.security`, or a name of one's own.
    pub role: ContactRole,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matrix_id: Option<OwnedUserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email_address: Option<String>,
}

/// A text that must not reach a log line: its `Debug` form is blank.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Reads a list of networks.
pub(super) fn networks<'de, D>(deserializer: D) -> Result<Vec<IpNet>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let texts = Vec::<String>::deserialize(deserializer)?;
    let network = |text: String| {
        text.parse().map_err(|_| {
            D::Error::custom(format!(
                "{text:?} is no network, which is written as in \"10.0.0.0/8\""
            ))
        })
    };
    texts.into_iter().map(network).collect()
}
