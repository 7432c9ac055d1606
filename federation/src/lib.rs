//! What two Matrix homeservers must agree on.
//!
//! This crate holds the parts of the [server-server protocol][spec] that are pure computation:
//! how an event is built, hashed, signed, redacted and authorized, and how servers are found and
//! believed. It has no database, no web server and no clock; everything it needs is an argument,
//! and its tests are tables. Only [`client`] does anything: it sends requests to other servers.
//!
//! | Module           | What it knows                                                 |
//! |------------------|---------------------------------------------------------------|
//! | [`room_version`] | which room versions exist here and which rules each one has   |
//! | [`json`]         | reading JSON from a client as strictly as canonical JSON asks |
//! | [`event`]        | [`Pdu`], a parsed event, and its redacted form                |
//! | [`draft`]        | [`Draft`], an event to be, and how it is hashed and signed    |
//! | [`received`]     | events of other servers, and who must have signed them        |
//! | [`mod@auth`]     | which auth events an event names, and whether it is allowed   |
//! | [`state_res`]    | which state holds where branches of a room meet               |
//! | [`auth_graph`]   | what state resolution has to know of the auth chains          |
//! | [`keys`]         | the server's signing key and its file format                  |
//! | [`server_keys`]  | the documents with which servers publish their keys           |
//! | [`request`]      | the `X-Matrix` authorization of requests                      |
//! | [`name`]         | the steps from a server's name to where it is                 |
//! | [`address_policy`] | which addresses are not connected to                        |
//! | [`backoff`]      | how long to leave alone a server that does not answer         |
//! | [`client`]       | sending requests to other servers, within limits              |
//! | [`mod@error`]    | what can go wrong                                             |
//!
//! [spec]: https://spec.matrix.org/v1.19/server-server-api/

#![warn(missing_docs)]

pub mod address_policy;
pub mod auth;
pub mod auth_graph;
pub mod backoff;
pub mod client;
pub mod draft;
pub mod error;
pub mod event;
pub mod json;
pub mod keys;
pub mod name;
pub mod received;
pub mod request;
pub mod room_version;
pub mod server_keys;
pub mod state_res;

pub use auth::{
    Rejection, auth_types_for_event, authorize, authorize_by_auth_events, authorize_by_state,
};
pub use client::Client;
pub use draft::Draft;
pub use error::Error;
pub use event::{Pdu, redact};
pub use json::strict_json;
pub use keys::{SigningKey, VerifyKey};
pub use received::Unverified;
