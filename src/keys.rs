//! The keys with which people encrypt to each other's devices and tell whose they are ("End-to-end encryption").

mod check;
mod claim;
pub mod cross_signing;
pub mod dehydrated;
mod device_list;
mod others;
mod query;
pub mod remote;
pub mod signatures;
mod stock;
mod updates;
mod upload;

use std::collections::BTreeMap;

use ruma::OwnedUserId;

use crate::error::{Error, Result};

pub use claim::{Claimed, Claims, claim, claim_here};
pub use query::{Eyes, Keys, Queried, display_name, query, query_here};
pub use stock::Stocks;
pub use updates::updates;
pub use upload::{Upload, upload};

/// How many users and devices one request may ask about.
const ASKED: usize = 10_000;

/// Makes sure that a request asks about no more users and devices than one may; `count` says of how many of a user's.
///
/// # Errors
/// `M_TOO_LARGE`.
fn expect_few<T>(asked: &BTreeMap<OwnedUserId, T>, count: impl Fn(&T) -> usize) -> Result<()> {
    let asked: usize = asked.values().map(|of_user| count(of_user).max(1)).sum();
    if asked > ASKED {
        return Err(Error::too_large(format!(
            "one can ask for {ASKED} users and devices at once"
        )));
    }
    Ok(())
}
