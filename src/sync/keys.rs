//! How many keys of the device that syncs are left for others ("End-to-end encryption", extensions to `/sync`).

use std::sync::Arc;

use super::{Answer, Context};
use crate::{bus::Feed, error::Result, storage};

/// The algorithm of the one-time keys that all clients know. They learn of it also when there are none.
const ALGORITHM: &str = "signed_curve25519";

/// Adds the counts to an answer, without a query if nothing has changed since they were asked for last.
pub(super) async fn count(context: &Context<'_>, feed: &Feed, answer: &mut Answer) -> Result<()> {
    let device = context.requester.device;
    let (known, before) = feed.state().key_counts(device);
    let counts = if let Some(counts) = known {
        counts
    } else {
        let counts = storage::keys::counts(&context.app.db, device).await?;
        let counts = Arc::new(counts);
        feed.state().keep_key_counts(device, &counts, before);
        counts
    };
    let left = &mut answer.device_one_time_keys_count;
    left.insert(ALGORITHM.to_owned(), 0);
    left.extend(counts.one_time.iter().cloned());
    answer
        .device_unused_fallback_key_types
        .clone_from(&counts.unused_fallback);
    Ok(())
}
