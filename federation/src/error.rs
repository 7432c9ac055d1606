//! What can go wrong in this crate.

use ruma::OwnedServerName;

/// An error of this crate; each variant says who is to blame.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not JSON at all (`M_NOT_JSON`).
    #[error("not JSON: {0}")]
    NotJson(String),
    /// The text is JSON, but not such as an event may contain (`M_BAD_JSON`).
    #[error("bad JSON: {0}")]
    BadJson(String),
    /// The event, or one of its fields, is over the limit of the specification (`M_TOO_LARGE`).
    #[error("{what} is {bytes} bytes long, the limit is {limit}")]
    TooLarge {
        /// What is too large: `event` or the name of one of its fields.
        what: &'static str,
        /// Its size in bytes.
        bytes: usize,
        /// The largest size allowed, in bytes.
        limit: usize,
    },
    /// The event does not have the format of its room version. For a stored event or a draft this
    /// is a fault of this server, for a received event a fault of its sender.
    #[error("malformed event: {0}")]
    BadEvent(String),
    /// A signature that a received event or document must have is missing or wrong.
    #[error("not signed by {server}: {reason}")]
    BadSignature {
        /// The server that should have signed it.
        server: OwnedServerName,
        /// What is the matter.
        reason: &'static str,
    },
    /// A received event is signed, but no key is known with which to check it. It may be another
    /// time.
    #[error("no key of {server} is known that has signed it")]
    NoKey {
        /// The server whose key is needed.
        server: OwnedServerName,
    },
    /// A walk through the events of a room met more of them than it may.
    #[error("more than {limit} events are involved")]
    TooManyEvents {
        /// How many events the walk may meet.
        limit: usize,
    },
    /// The text of a key cannot be read. The message never contains key material.
    #[error("bad signing key: {0}")]
    BadKey(String),
}
