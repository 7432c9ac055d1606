//! The Client-Server API: one file for each of its sections, with the handlers and the routes to them.

mod account;
mod account_data;
mod aliases;
mod content_repo;
mod create_room;
mod dehydrated_devices;
mod devices;
mod discovery;
mod fallback;
mod filters;
mod key_backup;
mod keys;
mod membership;
mod messages;
mod notifications;
mod openid;
mod presence;
mod profile;
mod public_rooms;
mod push_rules;
mod pushers;
mod read_marker;
mod receipts;
mod register;
mod relations;
mod reporting;
mod room_summaries;
mod room_upgrades;
mod search;
mod send;
mod session;
mod spaces;
mod state;
mod sync;
mod tags;
mod third_party;
mod third_party_identifiers;
mod to_device;
mod typing;
mod user_directory;

use crate::http::Routes;

/// All endpoints of the Client-Server API.
#[must_use]
pub fn routes() -> Routes {
    Routes::new()
        .merge(account::routes())
        .merge(account_data::routes())
        .merge(aliases::routes())
        .merge(content_repo::routes())
        .merge(create_room::routes())
        .merge(dehydrated_devices::routes())
        .merge(devices::routes())
        .merge(discovery::routes())
        .merge(fallback::routes())
        .merge(filters::routes())
        .merge(key_backup::routes())
        .merge(keys::routes())
        .merge(membership::routes())
        .merge(messages::routes())
        .merge(notifications::routes())
        .merge(openid::routes())
        .merge(presence::routes())
        .merge(profile::routes())
        .merge(public_rooms::routes())
        .merge(push_rules::routes())
        .merge(pushers::routes())
        .merge(read_marker::routes())
        .merge(receipts::routes())
        .merge(register::routes())
        .merge(relations::routes())
        .merge(reporting::routes())
        .merge(room_summaries::routes())
        .merge(room_upgrades::routes())
        .merge(search::routes())
        .merge(send::routes())
        .merge(session::routes())
        .merge(spaces::routes())
        .merge(state::routes())
        .merge(sync::routes())
        .merge(tags::routes())
        .merge(third_party::routes())
        .merge(third_party_identifiers::routes())
        .merge(to_device::routes())
        .merge(typing::routes())
        .merge(user_directory::routes())
}
