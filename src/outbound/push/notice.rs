//! What a push gateway is told ("Push Gateway API").

use ruma::push::Action;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json, value::RawValue};

use crate::storage::pushers::Pusher;

/// What is told of an event.
#[derive(Debug, Default, Serialize)]
pub(super) struct About {
    pub(super) event_id: String,
    pub(super) room_id: String,
    /// All else, which some gateways do not want to know.
    #[serde(flatten)]
    pub(super) more: Option<More>,
    #[serde(skip)]
    pub(super) is_high: bool,
    #[serde(skip)]
    pub(super) tweaks: Map<String, Value>,
}

/// What is told of an event to a gateway that wants to know more than its id.
#[derive(Debug, Default, Serialize)]
pub(super) struct More {
    #[serde(rename = "type")]
    pub(super) event_type: String,
    pub(super) sender: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sender_display_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) room_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) room_alias: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user_is_target: Option<bool>,
    pub(super) content: Option<Box<RawValue>>,
}

/// A pusher as its client has set it, as far as it matters here.
#[derive(Debug, Deserialize)]
pub(super) struct Wish {
    data: Map<String, Value>,
}

impl Wish {
    /// Reads the pusher.
    ///
    /// # Errors
    /// If it is none.
    pub(super) fn of(pusher: &Pusher) -> serde_json::Result<Self> {
        serde_json::from_str(&pusher.json)
    }

    /// Where its gateway is.
    pub(super) fn url(&self) -> &str {
        self.data.get("url").and_then(Value::as_str).unwrap_or("")
    }

    /// Whether it wants to know no more of an event than which it is.
    pub(super) fn is_brief(&self) -> bool {
        self.data.get("format").and_then(Value::as_str) == Some("event_id_only")
    }
}

/// The tweaks among the actions of a push rule. To highlight means `true` if nothing else is said.
pub(super) fn tweaks(actions: &[Action]) -> Map<String, Value> {
    let mut tweaks = Map::new();
    for action in actions {
        let Ok(Value::Object(mut action)) = serde_json::to_value(action) else {
            continue;
        };
        if let Some(Value::String(name)) = action.remove("set_tweak") {
            let value = action.remove("value").unwrap_or(Value::Bool(true));
            tweaks.insert(name, value);
        }
    }
    tweaks
}

/// Whether an event is worth waking somebody: it makes itself heard, or nobody here can know.
pub(super) fn is_high(event_type: &str, tweaks: &Map<String, Value>) -> bool {
    let is_set = |name| {
        tweaks
            .get(name)
            .is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)))
    };
    event_type == "m.room.encrypted" || is_set("highlight") || is_set("sound")
}

/// The body of a request to a gateway: of an event, or only of how much is `unread`. That nothing is unread any more is said
/// only alone: who did not say it then could not take a number away.
pub(super) fn body(pusher: &Pusher, wish: &Wish, about: Option<&About>, unread: i64) -> Value {
    let mut data = wish.data.clone();
    data.remove("url");
    let mut device = json!({
        "app_id": pusher.app_id,
        "pushkey": pusher.pushkey,
        "pushkey_ts": pusher.set_ts / 1000,
        "data": data,
    });
    let mut notification = match about {
        Some(about) => {
            if about.more.is_some() {
                device["tweaks"] = Value::Object(about.tweaks.clone());
            }
            serde_json::to_value(about).unwrap_or_default()
        }
        None => json!({}),
    };
    let is_high = about.is_some_and(|about| about.is_high);
    notification["prio"] = if is_high { "high" } else { "low" }.into();
    let mut counts = Map::new();
    if unread > 0 || about.is_none() {
        counts.insert("unread".to_owned(), unread.into());
    }
    notification["counts"] = Value::Object(counts);
    notification["devices"] = json!([device]);
    json!({ "notification": notification })
}

#[cfg(test)]
mod tests {
    use ruma::push::{HighlightTweakValue, SoundTweakValue, Tweak};

    use super::*;
    use crate::storage::{DeviceNid, PusherNid, UserNid};

    fn pusher(data: &Value) -> (Pusher, Wish) {
        let pusher = Pusher {
            nid: PusherNid(1),
            user: UserNid(1),
            device: DeviceNid(1),
            app_id: "app".to_owned(),
            pushkey: "key".to_owned(),
            set_ts: 12_345_678,
            json: json!({ "kind": "http", "lang": "en", "data": data }).to_string(),
        };
        let wish = Wish::of(&pusher).unwrap();
        (pusher, wish)
    }

    fn about(more: Option<More>) -> About {
        About {
            event_id: "$event".to_owned(),
            room_id: "!room".to_owned(),
            more,
            is_high: true,
            tweaks: tweaks(&[
                Action::Notify,
                Action::SetTweak(Tweak::Sound(SoundTweakValue::Default)),
                Action::SetTweak(Tweak::Highlight(HighlightTweakValue::Yes)),
            ]),
        }
    }

    #[test]
    fn all_of_an_event() {
        let data = json!({ "url": "https://p/", "default_payload": { "a": [1] } });
        let (pusher, wish) = pusher(&data);
        assert_eq!((wish.url(), wish.is_brief()), ("https://p/", false));
        let more = More {
            event_type: "m.room.message".to_owned(),
            sender: "@a:b".to_owned(),
            sender_display_name: Some("A".to_owned()),
            room_name: Some("Room".to_owned()),
            content: serde_json::from_str(r#"{"body":"hi"}"#).ok(),
            ..More::default()
        };
        assert_eq!(
            body(&pusher, &wish, Some(&about(Some(more))), 2),
            json!({ "notification": {
                "event_id": "$event",
                "room_id": "!room",
                "type": "m.room.message",
                "sender": "@a:b",
                "sender_display_name": "A",
                "room_name": "Room",
                "content": { "body": "hi" },
                "prio": "high",
                "counts": { "unread": 2 },
                "devices": [{
                    "app_id": "app",
                    "pushkey": "key",
                    "pushkey_ts": 12345,
                    "data": { "default_payload": { "a": [1] } },
                    "tweaks": { "sound": "default", "highlight": true },
                }],
            } })
        );
    }

    #[test]
    fn no_more_than_which_event() {
        let (pusher, wish) = pusher(&json!({ "url": "https://p/", "format": "event_id_only" }));
        assert!(wish.is_brief());
        assert_eq!(
            body(&pusher, &wish, Some(&about(None)), 0),
            json!({ "notification": {
                "event_id": "$event",
                "room_id": "!room",
                "prio": "high",
                "counts": {},
                "devices": [{
                    "app_id": "app",
                    "pushkey": "key",
                    "pushkey_ts": 12345,
                    "data": { "format": "event_id_only" },
                }],
            } })
        );
    }

    #[test]
    fn only_how_much_is_unread() {
        let (pusher, wish) = pusher(&json!({ "url": "https://p/" }));
        let body = body(&pusher, &wish, None, 0);
        assert_eq!(
            body["notification"]["counts"],
            json!({ "unread": 0 }),
            "{body}"
        );
        assert!(body["notification"].get("event_id").is_none(), "{body}");
    }

    #[test]
    fn what_wakes_people() {
        let tweaks = |json: Value| json.as_object().cloned().unwrap();
        for (event_type, set, expected) in [
            ("m.room.message", json!({}), false),
            ("m.room.encrypted", json!({}), true),
            ("m.room.message", json!({ "highlight": false }), false),
            ("m.room.message", json!({ "highlight": true }), true),
            ("m.room.message", json!({ "sound": "default" }), true),
        ] {
            assert_eq!(is_high(event_type, &tweaks(set)), expected);
        }
    }
}
