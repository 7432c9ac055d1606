//! Homing, a Matrix homeserver.
//!
//! The map of the house is in `ARCHITECTURE.md`. A request comes in through [`listen`] and [`http`], is answered by a
//! handler in [`client_server`], which asks the rules in [`room`] and [`sync`]; what changes goes through the [`log`]
//! into [`storage`], and from there over the [`bus`] to whoever waits for it.

pub mod accounts;
pub mod admin;
pub mod announcement;
pub mod app;
pub mod application_services;
pub mod auth;
pub mod bus;
pub mod client_server;
pub mod clock;
pub mod config;
pub mod device_lists;
pub mod early_receipts;
pub mod error;
pub mod federation;
pub mod files;
pub mod filter;
pub mod flights;
pub mod http;
pub mod key_backup;
pub mod keys;
pub mod lazy_members;
pub mod listen;
pub mod log;
pub mod media;
pub mod names;
pub mod operations;
pub mod outbound;
pub mod outgoing;
pub mod password;
pub mod preferences;
pub mod presence;
pub mod pushes;
pub mod rate_limit;
pub mod remote;
pub mod room;
pub mod rooms;
pub mod server;
pub mod server_keys;
pub mod server_server;
pub mod sessions;
pub mod staging;
pub mod storage;
pub mod sync;
pub mod telemetry;
pub mod to_device;
pub mod token;
pub mod turns;
pub mod typing;
pub mod uiaa;
pub mod upkeep;
pub mod web;

pub use server::{Server, create_user};
