//! The admin API, under the paths and with the words that Synapse has for it, which existing tools know.

mod register;

use crate::http::Routes;

/// All endpoints of the admin API.
#[must_use]
pub fn routes() -> Routes {
    Routes::new().merge(register::routes())
}
