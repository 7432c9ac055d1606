//! What a request can fail with. `http.rs` knows how that looks on the wire.

use http::StatusCode;
use ruma::api::{
    client::uiaa::UiaaInfo,
    error::{ErrorKind, LimitExceededErrorData, RetryAfter, UnknownTokenErrorData},
};

use crate::{log::AppendError, storage};

/// What handlers and the functions below them return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client's mistake, or what it may not do: a Matrix error.
    #[error("{status} {}: {message}", kind.errcode())]
    Matrix {
        /// The status of the answer.
        status: StatusCode,
        /// The error code and what belongs to it.
        kind: Box<ErrorKind>,
        /// For a person to read.
        message: String,
    },
    /// More authentication is needed (Client-Server API, "User-Interactive Authentication API").
    #[error("more authentication is needed")]
    Uiaa(Box<UiaaInfo>),
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(#[from] storage::Error),
    /// A change could not be made.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The server's own mistake.
    #[error("{0}")]
    Internal(String),
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident: $status:ident $kind:ident;)+) => {
        $(
            $(#[$doc])*
            pub fn $name(message: impl Into<String>) -> Self {
                Self::new(StatusCode::$status, ErrorKind::$kind, message)
            }
        )+
    };
}

impl From<homing_federation::Error> for Error {
    fn from(error: homing_federation::Error) -> Self {
        use homing_federation::Error as Federation;
        let message = error.to_string();
        match error {
            Federation::NotJson(_) => Self::not_json(message),
            Federation::BadJson(_) => Self::bad_json(message),
            Federation::TooLarge { .. } => Self::too_large(message),
            _ => Self::Internal(message),
        }
    }
}

impl Error {
    /// A Matrix error of any kind.
    pub fn new(status: StatusCode, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Matrix {
            status,
            kind: Box::new(kind),
            message: message.into(),
        }
    }

    constructors! {
        /// 403 `M_FORBIDDEN`.
        forbidden: FORBIDDEN Forbidden;
        /// 404 `M_NOT_FOUND`.
        not_found: NOT_FOUND NotFound;
        /// 400 `M_BAD_JSON`.
        bad_json: BAD_REQUEST BadJson;
        /// 400 `M_NOT_JSON`.
        not_json: BAD_REQUEST NotJson;
        /// 400 `M_INVALID_PARAM`.
        invalid_param: BAD_REQUEST InvalidParam;
        /// 400 `M_MISSING_PARAM`.
        missing_param: BAD_REQUEST MissingParam;
        /// 413 `M_TOO_LARGE`.
        too_large: PAYLOAD_TOO_LARGE TooLarge;
        /// 404 `M_UNRECOGNIZED`: no such endpoint.
        unrecognized: NOT_FOUND Unrecognized;
        /// 401 `M_MISSING_TOKEN`.
        missing_token: UNAUTHORIZED MissingToken;
        /// 400 `M_UNKNOWN`: refused for a reason that has no code.
        refused: BAD_REQUEST Unknown;
    }

    /// 502 `M_UNKNOWN`: another server does not answer.
    pub fn unanswered(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, ErrorKind::Unknown, message)
    }

    /// 401 `M_UNKNOWN_TOKEN`. With `soft_logout` the client keeps its data and signs in again.
    #[must_use]
    pub fn unknown_token(soft_logout: bool) -> Self {
        let mut data = UnknownTokenErrorData::new();
        data.soft_logout = soft_logout;
        Self::new(
            StatusCode::UNAUTHORIZED,
            ErrorKind::UnknownToken(data),
            "the access token is not valid (any more)",
        )
    }

    /// 429 `M_LIMIT_EXCEEDED`, to be tried again after `wait`.
    #[must_use]
    pub fn limit_exceeded(wait: std::time::Duration) -> Self {
        let mut data = LimitExceededErrorData::new();
        data.retry_after = Some(RetryAfter::Delay(wait));
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::LimitExceeded(data),
            "too many requests",
        )
    }

    /// 500, logged with its cause.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        Self::Internal(cause.to_string())
    }

    /// Whether this is a Matrix error with this status.
    #[must_use]
    pub fn has_status(&self, wanted: StatusCode) -> bool {
        matches!(self, Self::Matrix { status, .. } if *status == wanted)
    }
}
