//! The Server-Server API: one file for each of its sections, with the handlers and the routes to them.

pub mod edus;
