//! Homing, a Matrix homeserver.

pub mod announcement;
pub mod config;
pub mod listen;
pub mod operations;
pub mod telemetry;
