//! Which servers may take part in a room ("Server Access Control Lists (ACLs) for rooms").

use std::sync::Arc;

use ruma::{
    ServerName,
    events::{StateEventType, room::server_acl::RoomServerAclEventContent},
};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::head;
use crate::{app::App, error::Result, rooms::Room};

/// Whether the current state of a room lets a server take part: send events to it, and join it.
///
/// # Errors
/// If the database fails.
pub async fn is_allowed(app: &App, room: &Room, server: &ServerName) -> Result<bool> {
    let event = head::state_event(app, room, &StateEventType::RoomServerAcl, "").await?;
    let Some(event) = event else {
        return Ok(true);
    };
    let known = room.seen().server_acl.clone();
    let acl = match known {
        Some((nid, acl)) if nid == event.nid => acl,
        _ => {
            let acl = Arc::new(read(&event.pdu.content));
            room.seen_mut().server_acl = Some((event.nid, Arc::clone(&acl)));
            acl
        }
    };
    Ok(acl.is_allowed(server))
}

/// Reads the content of an `m.room.server_acl` event. What is not of the right type counts as not there: one bad entry
/// must not let in those whom the others keep out.
fn read(content: &RawValue) -> RoomServerAclEventContent {
    #[derive(Deserialize)]
    struct Content {
        #[serde(default)]
        allow_ip_literals: Value,
        #[serde(default)]
        allow: Value,
        #[serde(default)]
        deny: Value,
    }
    let texts = |value: &Value| {
        let entries = value.as_array().into_iter().flatten();
        let texts = entries.filter_map(Value::as_str).map(ToOwned::to_owned);
        texts.collect()
    };
    match serde_json::from_str::<Content>(content.get()) {
        Ok(content) => RoomServerAclEventContent::new(
            content.allow_ip_literals.as_bool().unwrap_or(true),
            texts(&content.allow),
            texts(&content.deny),
        ),
        Err(_) => RoomServerAclEventContent::new(true, Vec::new(), Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{json, value::to_raw_value};

    use super::*;

    #[test]
    fn servers_are_allowed_as_the_list_says() {
        let all = json!(["*"]);
        let table = [
            (json!({}), "good.org", false),
            (json!({"allow": all}), "good.org", true),
            (json!({"allow": ["good.org"]}), "good.org:8448", true),
            (json!({"allow": ["good.org"]}), "other.org", false),
            (json!({"allow": all, "deny": ["bad.org"]}), "bad.org", false),
            (
                json!({"allow": all, "deny": ["bad.org"]}),
                "bad.org:1",
                false,
            ),
            (json!({"allow": all, "deny": ["bad.org"]}), "BAD.org", false),
            (
                json!({"allow": all, "deny": ["bad.org"]}),
                "not.bad.org",
                true,
            ),
            (
                json!({"allow": all, "deny": ["*.bad.org"]}),
                "a.b.bad.org",
                false,
            ),
            (json!({"allow": all, "deny": ["ba?.org"]}), "bad.org", false),
            (json!({"allow": all, "deny": ["ba?.org"]}), "ba.org", true),
            (json!({"allow": all, "deny": ["b.d.org"]}), "bad.org", true),
            (
                json!({"allow": all, "allow_ip_literals": false}),
                "1.2.3.4:80",
                false,
            ),
            (
                json!({"allow": all, "allow_ip_literals": false}),
                "[::1]:80",
                false,
            ),
            (json!({"allow": all}), "[::1]:80", true),
            (
                json!({"allow": all, "deny": ["1.2.3.*"]}),
                "1.2.3.4:80",
                false,
            ),
            (
                json!({"allow": all, "allow_ip_literals": "no"}),
                "1.2.3.4",
                true,
            ),
            (
                json!({"allow": [1, "*"], "deny": [{}, "bad.org"]}),
                "bad.org",
                false,
            ),
            (
                json!({"allow": [1, "*"], "deny": [{}, "bad.org"]}),
                "good.org",
                true,
            ),
            (json!({"allow": "*"}), "good.org", false),
        ];
        for (content, server, expected) in table {
            let acl = read(&to_raw_value(&content).unwrap());
            let server = <&ServerName>::try_from(server).unwrap();
            assert_eq!(acl.is_allowed(server), expected, "{content} {server}");
        }
    }
}
