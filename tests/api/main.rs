//! The Client-Server API over HTTP, one file for each section of the specification.
//!
//! Each test starts a server of its own with a database of its own: SQLite, or PostgreSQL where `TEST_POSTGRES` names a
//! server (`postgres://user@host:port/database`).

mod server;

mod accounts;
mod discovery;
mod media;
mod receipts;
mod rooms;
mod sync;
mod thumbnails;
