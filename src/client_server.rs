//! The Client-Server API: one file for each of its sections, with the handlers and the routes to them.

mod account;
mod content_repo;
mod create_room;
mod devices;
mod discovery;
mod membership;
mod read_marker;
mod receipts;
mod register;
mod send;
mod session;
mod sync;
mod openid;
mod third_party_identifiers;

use crate::http::Routes;

/// All endpoints of the Client-Server API.
#[must_use]
pub fn routes() -> Routes {
    Routes::new()
        .merge(content_repo::routes())
        .merge(create_room::routes())
        .merge(devices::routes())
        .merge(discovery::routes())
        .merge(membership::routes())
        .merge(openid::routes())
        .merge(send::routes())
        .merge(account::routes())
        .merge(register::routes())
        .merge(session::routes())
        .merge(read_marker::routes())
        .merge(receipts::routes())
        .merge(sync::routes())
        .merge(third_party_identifiers::routes())
}
