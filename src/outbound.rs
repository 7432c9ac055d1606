//! Readers of the log that talk to others: [`push`] to push gateways, and the federation sender to other servers.
//!
//! Of the federation sender one task ([`run`]) takes the [news](crate::outgoing) and knows the destinations; sending and
//! reading run beside it. How far a destination has come is a position, and what is beyond it waits in memory. When that is
//! too much, or after a restart, memory is let go and the database is asked: which rooms have events of ours that the
//! destination has not got? Of each of them it is sent the latest ones; those before it can ask for.

mod catch_up;
mod destination;
mod durable;
mod edus;
mod presence;
pub mod push;
mod sender;
mod transaction;

pub use sender::run;
