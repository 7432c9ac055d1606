use homing_federation::{redact, room_version};
use ruma::{RoomVersionId, server_name};
use serde_json::{Value, json};

use crate::{draft, spec_key};

/// Type, full content, and the content after redaction from each version on.
type Row = (&'static str, Value, Vec<(u8, Value)>);

fn table() -> Vec<Row> {
    vec![
        ("m.room.message", json!({"body": "x"}), vec![(6, json!({}))]),
        ("m.room.topic", json!({"topic": "x"}), vec![(6, json!({}))]),
        (
            "m.room.aliases",
            json!({"aliases": []}),
            vec![(6, json!({}))],
        ),
        (
            "m.room.member",
            json!({
                "membership": "join",
                "displayname": "A",
                "join_authorised_via_users_server": "@b:domain",
                "third_party_invite": {"display_name": "a", "signed": {"token": "t"}},
            }),
            vec![
                (6, json!({"membership": "join"})),
                (
                    9,
                    json!({"membership": "join", "join_authorised_via_users_server": "@b:domain"}),
                ),
                (
                    11,
                    json!({
                        "membership": "join",
                        "join_authorised_via_users_server": "@b:domain",
                        "third_party_invite": {"signed": {"token": "t"}},
                    }),
                ),
            ],
        ),
        (
            "m.room.join_rules",
            json!({"join_rule": "restricted", "allow": [], "x": 1}),
            vec![
                (6, json!({"join_rule": "restricted"})),
                (8, json!({"join_rule": "restricted", "allow": []})),
            ],
        ),
        (
            "m.room.power_levels",
            json!({"ban": 1, "invite": 2, "users": {"@a:domain": 100}, "notifications": {"room": 1}}),
            vec![
                (6, json!({"ban": 1, "users": {"@a:domain": 100}})),
                (
                    11,
                    json!({"ban": 1, "invite": 2, "users": {"@a:domain": 100}}),
                ),
            ],
        ),
        (
            "m.room.history_visibility",
            json!({"history_visibility": "shared", "x": 1}),
            vec![(6, json!({"history_visibility": "shared"}))],
        ),
        (
            "m.room.redaction",
            json!({"redacts": "$x", "reason": "spam"}),
            vec![(6, json!({})), (11, json!({"redacts": "$x"}))],
        ),
    ]
}

#[test]
fn redaction_by_version() {
    for (event_type, content, expected) in table() {
        for version in room_version::creatable() {
            let number: u8 = version.as_str().parse().unwrap();
            let rules = room_version::rules(&version).unwrap();
            let mut draft = draft(event_type, content.clone());
            draft.state_key = Some("@a:domain".to_owned());
            let mut pdu = draft
                .sign(rules, server_name!("domain"), &spec_key())
                .unwrap();
            pdu.rejected = true;

            let redacted = redact(&pdu, rules).unwrap();
            let what = format!("{event_type} in version {version}");
            let kept = expected.iter().rev().find(|(since, _)| *since <= number);
            assert_eq!(
                redacted.content_as::<Value>().unwrap(),
                kept.unwrap().1,
                "{what}"
            );
            assert_eq!(redacted.event_id, pdu.event_id, "{what}");
            assert_eq!(redacted.state_key, pdu.state_key, "{what}");
            assert!(redacted.rejected, "{what}");
            let before: Value = serde_json::from_str(&pdu.json).unwrap();
            let after: Value = serde_json::from_str(&redacted.json).unwrap();
            for field in [
                "hashes",
                "signatures",
                "prev_events",
                "auth_events",
                "depth",
            ] {
                assert_eq!(before[field], after[field], "{field}: {what}");
            }
        }
    }
}

#[test]
fn create_events_keep_all_from_version_11_on() {
    let content = json!({"creator": "@a:domain", "room_version": "x", "type": "m.space"});
    for version in room_version::creatable() {
        let rules = room_version::rules(&version).unwrap();
        let mut draft = draft("m.room.create", content.clone());
        draft.state_key = Some(String::new());
        draft.prev_events.clear();
        draft.auth_events.clear();
        if version == RoomVersionId::V12 {
            draft.room_id = None;
        }
        let pdu = draft
            .sign(rules, server_name!("domain"), &spec_key())
            .unwrap();
        let redacted = redact(&pdu, rules).unwrap();
        let kept = if matches!(version, RoomVersionId::V11 | RoomVersionId::V12) {
            content.clone()
        } else {
            json!({"creator": "@a:domain"})
        };
        assert_eq!(redacted.content_as::<Value>().unwrap(), kept, "{version}");
        assert_eq!(redacted.room_id, pdu.room_id, "{version}");
    }
}

#[test]
fn fields_beside_the_content_go() {
    let rules = room_version::rules(&RoomVersionId::V10).unwrap();
    let mut draft = draft("m.room.redaction", json!({}));
    draft.redacts = Some(ruma::owned_event_id!("$x"));
    let pdu = draft
        .sign(rules, server_name!("domain"), &spec_key())
        .unwrap();
    assert!(pdu.redacts.is_some());
    let redacted = redact(&pdu, rules).unwrap();
    assert_eq!(redacted.redacts, None);
    assert!(!redacted.json.contains("redacts"));
}
