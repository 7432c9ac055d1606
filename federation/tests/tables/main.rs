//! Tables of inputs and outputs for the pure core.

mod auth;
mod events;
mod json;
mod keys;
mod random_room;
mod received;
mod redaction;
mod server_keys;
mod state_res;

use homing_federation::{Draft, SigningKey};
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, UInt, owned_event_id, owned_room_id,
    owned_user_id,
};
use serde_json::Value;

/// The key of the specification's test vectors, with the server name `domain`.
fn spec_key() -> SigningKey {
    let file = "ed25519 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n";
    SigningKey::parse_file(file).unwrap().remove(0)
}

fn object(value: Value) -> CanonicalJsonObject {
    serde_json::from_value(value).unwrap()
}

/// A message event with a little of everything.
fn draft(event_type: &str, content: Value) -> Draft {
    Draft {
        room_id: Some(owned_room_id!("!x:domain")),
        sender: owned_user_id!("@a:domain"),
        event_type: event_type.to_owned(),
        state_key: None,
        content: object(content),
        redacts: None,
        origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::from(1_000_000_u32)),
        prev_events: vec![owned_event_id!("$p1"), owned_event_id!("$p2")],
        auth_events: vec![owned_event_id!("$a1")],
        depth: 3,
    }
}
