//! What a room is and how it changes.

pub mod append;
pub mod create;
pub mod head;
pub mod membership;
pub mod power;
pub mod read;
