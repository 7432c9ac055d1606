//! What a room is and how it changes.

pub mod aggregations;
pub mod append;
pub mod client_event;
pub mod create;
pub mod head;
pub mod membership;
pub mod power;
pub mod read;
pub mod receipts;
pub mod timeline;
pub mod visibility;
