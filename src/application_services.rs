//! Application services: programs that speak for many users, as far as registration and login go (Application Service
//! API, "Server admin style permissions").

use http::StatusCode;
use regex::Regex;
use ruma::{UserId, api::error::ErrorKind};

use crate::{
    auth::hash_token,
    config::Config,
    error::{Error, Result},
};

/// The application services of a server.
#[derive(Debug, Default)]
pub struct ApplicationServices(Vec<Service>);

/// One of them.
#[derive(Debug)]
pub struct Service {
    token: [u8; 32],
    sender_localpart: String,
    users: Vec<Regex>,
    exclusive: bool,
}

impl ApplicationServices {
    /// Those of the settings.
    ///
    /// # Errors
    /// If a pattern cannot be read, which checked settings do not have.
    pub fn new(config: &Config) -> Result<Self> {
        let services = config.application_services.iter().map(|service| {
            Ok(Service {
                token: hash_token(service.token.reveal()),
                sender_localpart: service.sender_localpart.clone(),
                users: service.patterns().map_err(Error::internal)?,
                exclusive: service.exclusive,
            })
        });
        services.collect::<Result<_>>().map(Self)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one that this token speaks for.
    ///
    /// # Errors
    /// `M_MISSING_TOKEN` if there is no token, `M_UNKNOWN_TOKEN` if it is no service's.
    pub fn authenticate(&self, token: Option<&str>) -> Result<&Service> {
        let missing = "the token of the application service is missing";
        let token = hash_token(token.ok_or_else(|| Error::missing_token(missing))?);
        let service = self.0.iter().find(|service| service.token == token);
        service.ok_or_else(|| Error::unknown_token(false))
    }

    /// Makes sure that a user may be somebody who is no application service's.
    ///
    /// # Errors
    /// `M_EXCLUSIVE` if a service has the name for itself.
    pub fn expect_free(&self, user: &UserId) -> Result<()> {
        let is_taken = |service: &Service| service.exclusive && service.may_be(user);
        if self.0.iter().any(is_taken) {
            return Err(exclusive("this name belongs to an application service"));
        }
        Ok(())
    }
}

impl Service {
    fn may_be(&self, user: &UserId) -> bool {
        user.localpart() == self.sender_localpart
            || self.users.iter().any(|users| users.is_match(user.as_str()))
    }

    /// Makes sure that a local user is one of this service's.
    ///
    /// # Errors
    /// `M_EXCLUSIVE` if not.
    pub fn expect_own(&self, user: &UserId) -> Result<()> {
        if self.may_be(user) {
            Ok(())
        } else {
            Err(exclusive("this user is none of the application service"))
        }
    }
}

fn exclusive(message: &str) -> Error {
    Error::new(StatusCode::BAD_REQUEST, ErrorKind::Exclusive, message)
}
