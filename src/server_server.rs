//! The Server-Server API: one file for each of its sections, with the handlers and the routes to them.

mod backfill;
mod content_repo;
pub mod discovery;
pub mod edus;
mod event_auth;
mod event_lists;
mod events;
pub mod keys;
mod membership;
mod openid;
mod public_rooms;
mod query;
mod spaces;
mod third_party_invites;
mod transactions;
mod user_keys;

use crate::http::Routes;

/// All endpoints of the Server-Server API.
#[must_use]
pub fn routes() -> Routes {
    Routes::new()
        .merge(backfill::routes())
        .merge(content_repo::routes())
        .merge(discovery::routes())
        .merge(event_auth::routes())
        .merge(events::routes())
        .merge(keys::routes())
        .merge(membership::routes())
        .merge(openid::routes())
        .merge(public_rooms::routes())
        .merge(query::routes())
        .merge(spaces::routes())
        .merge(third_party_invites::routes())
        .merge(transactions::routes())
        .merge(user_keys::routes())
}
