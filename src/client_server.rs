//! The Client-Server API: one file for each of its sections, with the handlers and the routes to them.

mod account;
mod content_repo;
mod create_room;
mod devices;
mod discovery;
mod membership;
mod messages;
mod openid;
mod read_marker;
mod receipts;
mod register;
mod relations;
mod search;
mod send;
mod session;
mod state;
mod sync;
mod third_party_identifiers;

use crate::http::Routes;

/// All endpoints of the Client-Server API.
#[must_use]
pub fn routes() -> Routes {
    Routes::new()
        .merge(account::routes())
        .merge(content_repo::routes())
        .merge(create_room::routes())
        .merge(devices::routes())
        .merge(discovery::routes())
        .merge(membership::routes())
        .merge(messages::routes())
        .merge(openid::routes())
        .merge(read_marker::routes())
        .merge(receipts::routes())
        .merge(register::routes())
        .merge(relations::routes())
        .merge(search::routes())
        .merge(send::routes())
        .merge(session::routes())
        .merge(state::routes())
        .merge(sync::routes())
        .merge(third_party_identifiers::routes())
}
