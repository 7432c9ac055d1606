//! All the SQL, one file for each group of tables. See `ARCHITECTURE.md`, "Storage".
//! Every function that asks the database fails with the driver's [`Error`] and with nothing else.

#![expect(clippy::missing_errors_doc, reason = "said once, above")]

mod db;
mod nid;
mod postgres_rows;
mod transactor;
mod upkeep;
mod write;

pub mod account_data;
pub mod accounts;
pub mod aliases;
pub mod auth_chain;
pub mod branches;
pub mod commits;
pub mod cross_signing;
pub mod dehydrated_devices;
pub mod destinations;
pub mod device_lists;
pub mod devices;
pub mod directory;
pub mod events;
pub mod filters;
pub mod gaps;
pub mod graph;
pub mod highlights;
pub mod inbound;
pub mod ingests;
pub mod key_backup;
pub mod keys;
pub mod media;
pub mod members;
pub mod names;
pub mod outside;
pub mod presence;
pub mod profiles;
pub mod pushers;
pub mod receipts;
pub mod relations;
pub mod remote_devices;
pub mod remote_media;
pub mod reports;
pub mod rooms;
pub mod search;
pub mod server_keys;
pub mod servers;
pub mod sessions;
pub mod state;
pub mod summaries;
pub mod sync;
pub mod threads;
pub mod timeline;
pub mod to_device;
pub mod tokens;

pub use account_data::AccountData;
pub use db::{
    Arg, Claim, Column, Db, Position, Result, Row, Sql, Statistics, cause, check_url,
    is_null_character, place,
};
pub use events::Event;
pub use members::{Member, Membership};
pub use nid::{
    BackupNid, DeviceNid, EventNid, KeyNid, MediaNid, Pos, PusherNid, RoomNid, ServerNid, TypeNid,
    UserNid, pack, unpack,
};
pub use receipts::{ReadMarker, Receipt, ReceiptKind, ReceiptThread};
pub use servers::ServerInRoom;
pub use sqlx::Error;
pub use transactor::Transactor;
pub use write::{Insert, Rows, Table, Write, WriteError};
