//! The Client-Server API over HTTP, one file for each section of the specification.
//!
//! Each test starts a server of its own with a database of its own: SQLite, or PostgreSQL where `TEST_POSTGRES` names a
//! server (`postgres://user@host:port/database`).

#![expect(
    clippy::format_collect,
    clippy::format_push_string,
    reason = "short texts, made seldom"
)]

mod fake_room;
mod fake_server;
mod push_gateway;
mod server;
mod site;
mod slow_joins;
mod tls;

mod account;
mod account_data;
mod aliases;
mod animations;
mod application_services;
mod bad_input;
mod claim;
mod create_room;
mod cross_signing;
mod deactivation;
mod dehydrated_devices;
mod device_lists;
mod devices;
mod directory;
mod discovery;
mod edus;
mod fallback;
mod federation_client;
mod file_names;
mod hidden_branches;
mod hidden_events;
mod hostile_addresses;
mod hostile_answers;
mod hostile_branches;
mod hostile_chains;
mod hostile_drips;
mod hostile_edus;
mod hostile_gaps;
mod hostile_history;
mod hostile_invites;
mod hostile_joins;
mod hostile_previews;
mod hostile_state;
mod hostile_transactions;
mod joins_at_once;
mod key_backup;
mod keys;
mod kills;
mod kills_while_fetching;
mod late_branches;
mod links;
mod log;
mod login;
mod long_history;
mod media;
mod membership;
mod messages;
mod outbound;
mod partitions;
mod people;
mod policy_servers;
mod presence;
mod profile;
mod push;
mod push_elsewhere;
mod push_failures;
mod push_rules;
mod pushers;
mod queries;
mod quotas;
mod random_graphs;
#[path = "../../federation/tests/tables/random_room.rs"]
mod random_room;
mod rate_limits;
mod receipts;
mod register;
mod relations;
mod remote_device_lists;
mod remote_keys;
mod remote_media;
mod remote_spaces;
mod resident;
mod rooms;
mod search;
mod second_chances;
mod send;
mod send_cost;
mod server_authentication;
mod server_keys;
mod session_ends;
mod shared_reading;
mod shared_rooms;
mod shared_secret;
mod spaces;
mod state;
mod sync;
mod sync_cost;
mod sync_people;
mod sync_state;
mod third_party_invites;
mod thumbnails;
mod to_device;
mod two_servers;
mod unread;
mod upgrade;
mod url_previews;
mod visibility;
mod walks;
mod wire;
mod world_readable;
