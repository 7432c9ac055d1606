//! An event as push rules see it.

use ruma::{
    UInt, UserId,
    events::AnySyncTimelineEvent,
    push::{Action, FlattenedJson, PushCondition, PushConditionRoomCtx, Ruleset},
    serde::Raw,
    user_id,
};

use crate::{
    app::App,
    error::{Error, Result},
    room::power,
    rooms::Room,
    storage::Event,
};

/// How much of the text of a message is held against the patterns of rules, in bytes. The work grows with it, and whoever
/// sends waits for it.
const TEXT: usize = 4096;
/// The longest pattern that anything is held against, in bytes, and how many wildcards it may have.
pub const PATTERN_BYTES: usize = 255;
pub const WILDCARDS: usize = 8;
/// A user whom no rule means.
const SOMEBODY: &str = "@somebody:server";

/// Whether a pattern is one that costs little to hold a text against.
#[must_use]
pub fn is_cheap(pattern: &str) -> bool {
    let wildcards = pattern.bytes().filter(|byte| matches!(byte, b'*' | b'?'));
    pattern.len() <= PATTERN_BYTES && wildcards.count() <= WILDCARDS
}

/// The event that is judged, as rules see it, and the room around it.
#[derive(Debug)]
pub(super) struct Judged {
    json: FlattenedJson,
    context: PushConditionRoomCtx,
    /// The text in small letters, if the event does not say whom it mentions.
    addressing: Option<String>,
}

impl Judged {
    pub(super) async fn new(
        app: &App,
        room: &Room,
        event: &Event,
        member_count: i64,
    ) -> Result<Self> {
        let json = FlattenedJson::from_raw(&seen_by_rules(event)?);
        let addressing = if json.contains_mentions() {
            None
        } else {
            json.get_str("content.body").map(str::to_lowercase)
        };
        // Rules pass over the events of their own user, so it must be somebody else than the sender.
        let somebody = match event.pdu.sender.as_str() {
            SOMEBODY => user_id!("@somebody.else:server"),
            _ => user_id!("@somebody:server"),
        };
        let mut context = context(room, somebody, member_count);
        let names_room = |text: &String| text.contains("@room");
        if json.get(r"content.m\.mentions.room").is_some()
            || addressing.as_ref().is_some_and(names_room)
        {
            context.power_levels = Some(power::now(app, room).await?.into());
        }
        Ok(Self {
            json,
            context,
            addressing,
        })
    }

    /// A message that nothing is special about, but that it mentions `user` if it `mentions` anybody.
    pub(super) fn sample(
        room: &Room,
        event_type: &str,
        (user, mentions): (&UserId, bool),
        member_count: i64,
    ) -> Result<Self> {
        let mentions = if mentions { vec![user] } else { Vec::new() };
        let event = serde_json::json!({
            "type": event_type, "room_id": room.id, "sender": SOMEBODY,
            "content": {
                "msgtype": "m.text", "body": "\u{2026}", "m.mentions": { "user_ids": mentions },
            },
        });
        let raw = Raw::<AnySyncTimelineEvent>::from_json_string(event.to_string())
            .map_err(Error::internal)?;
        Ok(Self {
            json: FlattenedJson::from_raw(&raw),
            context: context(room, user, member_count),
            addressing: None,
        })
    }

    /// Whether the event may name people in its text only.
    pub(super) fn is_addressing(&self) -> bool {
        self.addressing.is_some()
    }

    /// Whether the text may name somebody; their rules know.
    pub(super) fn may_address(&self, user: &UserId, display_name: Option<&str>) -> bool {
        let Some(text) = &self.addressing else {
            return false;
        };
        let names = |name: &str| !name.is_empty() && text.contains(&name.to_lowercase());
        names(user.localpart()) || display_name.is_some_and(names)
    }

    /// Rules of a user's own may ask for the sender's power without a mention of the whole room.
    pub(super) async fn needs_power_levels(
        &mut self,
        app: &App,
        room: &Room,
        rules: &Ruleset,
    ) -> Result<()> {
        let asks = rules.override_.iter().chain(&rules.underride).any(|rule| {
            let asks = |condition: &PushCondition| {
                matches!(condition, PushCondition::SenderNotificationPermission(_))
            };
            !rule.default && rule.conditions.iter().any(asks)
        });
        if asks && self.context.power_levels.is_none() {
            self.context.power_levels = Some(power::now(app, room).await?.into());
        }
        Ok(())
    }

    /// What `rules` say to the user whom the context names.
    pub(super) async fn actions<'r>(&self, rules: &'r Ruleset) -> &'r [Action] {
        for rule in rules {
            if rule.applies(&self.json, &self.context).await {
                return rule.actions();
            }
        }
        &[]
    }

    /// What the rules of `user` say. Who has no name in the room, or one that costs much, is called by their id.
    pub(super) async fn actions_for(
        &mut self,
        user: &UserId,
        display_name: Option<&str>,
        rules: &Ruleset,
    ) -> Vec<Action> {
        user.clone_into(&mut self.context.user_id);
        display_name
            .filter(|name| !name.is_empty() && is_cheap(name))
            .unwrap_or(user.as_str())
            .clone_into(&mut self.context.user_display_name);
        self.actions(rules).await.to_vec()
    }
}

fn context(room: &Room, user: &UserId, member_count: i64) -> PushConditionRoomCtx {
    PushConditionRoomCtx::new(
        room.id.clone(),
        UInt::try_from(member_count).unwrap_or_default(),
        user.to_owned(),
        user.to_string(),
    )
}

/// An event as rules see it: of a long text, the beginning.
fn seen_by_rules(event: &Event) -> Result<Raw<AnySyncTimelineEvent>> {
    let json = &event.pdu.json;
    if json.len() <= TEXT {
        return Raw::from_json_string(json.to_string()).map_err(Error::internal);
    }
    let mut whole: serde_json::Value = serde_json::from_str(json).map_err(Error::internal)?;
    if let Some(serde_json::Value::String(body)) = whole.pointer_mut("/content/body")
        && body.len() > TEXT
    {
        let end = body.floor_char_boundary(TEXT);
        // Half a word is another one.
        let end = body[..end].rfind(char::is_whitespace).unwrap_or(end);
        body.truncate(end);
    }
    Raw::from_json_string(whole.to_string()).map_err(Error::internal)
}
