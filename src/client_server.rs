//! The Client-Server API: one file for each of its sections, with the handlers and the routes to them.

mod account;
mod aliases;
mod content_repo;
mod create_room;
mod devices;
mod discovery;
mod membership;
mod messages;
mod openid;
mod public_rooms;
mod read_marker;
mod receipts;
mod register;
mod relations;
mod room_summaries;
mod room_upgrades;
mod search;
mod send;
mod session;
mod spaces;
mod state;
mod sync;
mod third_party_identifiers;

use crate::http::Routes;

/// All endpoints of the Client-Server API.
#[must_use]
pub fn routes() -> Routes {
    Routes::new()
        .merge(account::routes())
        .merge(aliases::routes())
        .merge(content_repo::routes())
        .merge(create_room::routes())
        .merge(devices::routes())
        .merge(discovery::routes())
        .merge(membership::routes())
        .merge(messages::routes())
        .merge(openid::routes())
        .merge(public_rooms::routes())
        .merge(read_marker::routes())
        .merge(receipts::routes())
        .merge(register::routes())
        .merge(relations::routes())
        .merge(room_summaries::routes())
        .merge(room_upgrades::routes())
        .merge(search::routes())
        .merge(send::routes())
        .merge(session::routes())
        .merge(spaces::routes())
        .merge(state::routes())
        .merge(sync::routes())
        .merge(third_party_identifiers::routes())
}
