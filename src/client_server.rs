//! The Client-Server API: one file for each of its sections, with the handlers and the routes to them.

mod discovery;

use crate::http::Routes;

/// All endpoints of the Client-Server API.
#[must_use]
pub fn routes() -> Routes {
    Routes::new().merge(discovery::routes())
}
