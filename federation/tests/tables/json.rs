use homing_federation::{Error, Pdu, json::MAX_NESTING, redact, room_version, strict_json};
use ruma::{RoomVersionId, server_name};

use crate::{draft, spec_key};

#[test]
fn accepted() {
    // Input, and its canonical form.
    let table = [
        ("{}", "{}"),
        (" {\"b\": 1,\n\"a\": []}\t", r#"{"a":[],"b":1}"#),
        (
            r#"{"b":[true,false,null],"a":{"c":"d"}}"#,
            r#"{"a":{"c":"d"},"b":[true,false,null]}"#,
        ),
        (
            r#"{"max":9007199254740991,"min":-9007199254740991,"zero":0}"#,
            r#"{"max":9007199254740991,"min":-9007199254740991,"zero":0}"#,
        ),
        (
            r#"{"a":"\u00e9\ud83d\ude00\/\u0001"}"#,
            "{\"a\":\"é\u{1F600}/\\u0001\"}",
        ),
        // The same key on two levels is no duplicate; keys are sorted by code point.
        (
            r#"{"a":{"a":1},"\uff5e":1,"\ud83d\ude00":2}"#,
            "{\"a\":{\"a\":1},\"\u{ff5e}\":1,\"\u{1F600}\":2}",
        ),
    ];
    for (input, canonical) in table {
        let object = strict_json(input.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&object).unwrap(), canonical);
    }
}

#[test]
fn refused() {
    let not_json: [&[u8]; 11] = [
        b"",
        b"{",
        b"{\"a\":}",
        b"{\"a\":1,}",
        b"{'a':1}",
        b"{\"a\":1} x",
        b"{\"a\":NaN}",
        b"{\"a\":01}",
        b"{\"a\":\"\xff\"}",
        b"{\"a\":\"\\ud800\"}",
        b"{\"a\":\"\x01\"}",
    ];
    for input in not_json {
        let error = strict_json(input).unwrap_err();
        assert!(matches!(error, Error::NotJson(_)), "{input:?}: {error}");
    }

    let bad_json = [
        ("[]", "object"),
        ("\"a\"", "object"),
        ("1", "object"),
        ("null", "object"),
        (r#"{"a":1.5}"#, "1.5"),
        (r#"{"a":1.0}"#, "1.0"),
        (r#"{"a":1e3}"#, "1000.0"),
        (r#"{"a":-0}"#, "-0"),
        (r#"{"a":[{"b":0.1}]}"#, "0.1"),
        (r#"{"a":9007199254740992}"#, "9007199254740992"),
        (r#"{"a":-9007199254740992}"#, "-9007199254740992"),
        (r#"{"a":18446744073709551615}"#, "18446744073709551615"),
        (r#"{"a":100000000000000000000}"#, "integer"),
        (r#"{"a":1,"a":1}"#, "twice"),
        (r#"{"a":1,"b":{"c":1,"\u0063":2}}"#, "twice"),
    ];
    for (input, reason) in bad_json {
        let error = strict_json(input.as_bytes()).unwrap_err();
        assert!(matches!(error, Error::BadJson(_)), "{input}: {error}");
        assert!(error.to_string().contains(reason), "{input}: {error}");
    }
}

#[test]
fn nesting_is_limited() {
    let arrays = |levels: usize| {
        let inner = levels - 1;
        format!("{{\"a\":{}{}}}", "[".repeat(inner), "]".repeat(inner))
    };
    let objects = |levels: usize| {
        format!(
            "{}{{}}{}",
            "{\"a\":".repeat(levels - 1),
            "}".repeat(levels - 1)
        )
    };
    for nested in [arrays, objects] as [fn(usize) -> String; 2] {
        strict_json(nested(MAX_NESTING).as_bytes()).unwrap();
        for levels in [MAX_NESTING + 1, 1000, 100_000] {
            let error = strict_json(nested(levels).as_bytes()).unwrap_err();
            assert!(matches!(error, Error::BadJson(_)), "{levels}: {error}");
        }
    }
}

/// An event is one level deeper than its content, and all that reads it stops at 128 levels.
#[test]
fn the_deepest_content_makes_a_readable_event() {
    let levels = MAX_NESTING - 1;
    let json = format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
    let rules = room_version::rules(&RoomVersionId::V12).unwrap();
    let mut draft = draft("X", serde_json::json!({}));
    draft.content = strict_json(json.as_bytes()).unwrap();
    let pdu = draft
        .sign(rules, server_name!("domain"), &spec_key())
        .unwrap();
    let read = Pdu::from_canonical(pdu.event_id.clone(), pdu.json.clone(), rules).unwrap();
    read.content_as::<serde_json::Value>().unwrap();
    redact(&read, rules).unwrap();
}
