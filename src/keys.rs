//! The keys with which people encrypt to each other's devices and tell whose they are ("End-to-end encryption").

mod check;
mod claim;
pub mod cross_signing;
mod others;
mod query;
pub mod remote;
pub mod signatures;
mod stock;
mod upload;

pub use claim::{Claimed, Claims, claim, claim_here};
pub use query::{Eyes, Keys, Queried, query, query_here};
pub use stock::Stocks;
pub use upload::{Upload, upload};
