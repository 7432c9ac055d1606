//! The Server-Server API: one file for each of its sections, with the handlers and the routes to them.

pub mod discovery;
pub mod edus;
pub mod keys;

use crate::http::Routes;

/// All endpoints of the Server-Server API.
#[must_use]
pub fn routes() -> Routes {
    discovery::routes().merge(keys::routes())
}
