//! What the rules of rooms take although it would break the room.

use ruma::{CanonicalJsonObject, CanonicalJsonValue};

use crate::error::{Error, Result};

/// Checks the content of a state event that somebody here wants to set.
///
/// # Errors
/// `M_BAD_JSON` for join rules without a `join_rule`: nobody could join the room any more, nor set its state.
pub fn check(event_type: &str, state_key: &str, content: &CanonicalJsonObject) -> Result<()> {
    let is_text = |key| matches!(content.get(key), Some(CanonicalJsonValue::String(_)));
    if event_type == "m.room.join_rules" && state_key.is_empty() && !is_text("join_rule") {
        return Err(Error::bad_json("`join_rule` is missing or no text"));
    }
    Ok(())
}
