//! What a room is and how it changes.

pub mod aggregations;
pub mod aliases;
pub mod append;
pub mod client_event;
pub mod content;
pub mod create;
pub mod directory;
pub mod erasure;
pub mod head;
pub mod hierarchy;
pub mod membership;
pub mod power;
pub mod profile;
pub mod push;
pub mod read;
pub mod receipts;
pub mod server_acl;
pub mod server_sight;
pub mod summary;
pub mod timeline;
pub mod upgrade;
pub mod visibility;
pub mod walk;
