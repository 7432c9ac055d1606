//! Whom an event notifies (Client-Server API, "Push Rules").
//!
//! Nearly everybody has the default rules, and nearly every event means the same to all of them: that is found out once.
//! What is kept for single people is where they differ from it: they are mentioned, or have rules of their own. Nothing is
//! kept of what a muted room does not say: that is seen from the rules when somebody counts.

use std::{collections::HashSet, sync::Arc};

use ruma::{
    UInt, UserId,
    events::AnySyncTimelineEvent,
    push::{Action, FlattenedJson, PushConditionRoomCtx, Ruleset},
    serde::Raw,
    user_id,
};
use serde::Deserialize;

use super::power;
use crate::{
    app::App,
    error::{Error, Result},
    preferences::{self, Preferences, Volume},
    rooms::Room,
    storage::{
        Event, UserNid,
        highlights::{HIGHLIGHT, LOUD, NOTIFIES, SILENT, SINGLED_OUT},
    },
};

/// How an event counts.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it notifies one who has the default rules and is not mentioned.
    pub notifies: bool,
    /// For whom it counts otherwise, with flags from [`storage::highlights`](crate::storage::highlights).
    pub differing: Vec<(UserNid, i64)>,
    /// Who would be notified, did they not ignore the sender.
    pub ignoring: Vec<UserNid>,
}

/// What rules make of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outcome {
    notifies: bool,
    highlights: bool,
}

impl Outcome {
    fn of(actions: &[Action]) -> Self {
        Self {
            notifies: actions.iter().any(Action::should_notify),
            highlights: actions.iter().any(Action::is_highlight),
        }
    }

    /// How it differs from what the event does by default, and from what the room does for the user.
    fn flags(self, notifies_by_default: bool, volume: Volume) -> i64 {
        if !self.notifies {
            let silent = notifies_by_default && volume == Volume::All;
            return if silent { SILENT } else { 0 };
        }
        let mut flags = match volume {
            Volume::All => 0,
            Volume::Mentions => SINGLED_OUT,
            Volume::Nothing => LOUD,
        };
        if self.highlights {
            flags |= HIGHLIGHT;
        }
        if !notifies_by_default {
            flags |= NOTIFIES;
        }
        flags
    }
}

/// A user whom no rule means.
const SOMEBODY: &str = "@somebody:server";

fn context(room: &Room, user: &UserId, member_count: i64) -> PushConditionRoomCtx {
    PushConditionRoomCtx::new(
        room.id.clone(),
        UInt::try_from(member_count).unwrap_or_default(),
        user.to_owned(),
        String::new(),
    )
}

/// The event that is judged, as rules see it, and the room around it.
#[derive(Debug)]
struct Judged {
    json: FlattenedJson,
    context: PushConditionRoomCtx,
}

impl Judged {
    async fn new(app: &App, room: &Room, event: &Event, member_count: i64) -> Result<Self> {
        let raw = Raw::<AnySyncTimelineEvent>::from_json_string(event.pdu.json.to_string())
            .map_err(Error::internal)?;
        let json = FlattenedJson::from_raw(&raw);
        // Rules pass over the events of their own user, so it must be somebody else than the sender.
        let somebody = match event.pdu.sender.as_str() {
            SOMEBODY => user_id!("@somebody.else:server"),
            _ => user_id!("@somebody:server"),
        };
        let mut context = context(room, somebody, member_count);
        if json.get(r"content.m\.mentions.room").is_some() {
            context.power_levels = Some(power::now(app, room).await?.into());
        }
        Ok(Self { json, context })
    }

    /// What `rules` say to the user whom the context names.
    async fn actions<'r>(&self, rules: &'r Ruleset) -> &'r [Action] {
        for rule in rules {
            if rule.applies(&self.json, &self.context).await {
                return rule.actions();
            }
        }
        &[]
    }

    /// What the rules of `user` say.
    async fn actions_for(
        &mut self,
        user: &UserId,
        display_name: Option<&str>,
        rules: &Ruleset,
    ) -> Vec<Action> {
        user.clone_into(&mut self.context.user_id);
        display_name
            .unwrap_or_default()
            .clone_into(&mut self.context.user_display_name);
        self.actions(rules).await.to_vec()
    }
}

/// The users whom an event mentions, and whom a member event is about.
fn named(event: &Event) -> Vec<String> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "m.mentions", default)]
        mentions: Mentions,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Mentions {
        user_ids: Vec<String>,
    }
    let pdu = &event.pdu;
    let mut named = if pdu.content.get().contains("m.mentions") {
        pdu.content_as::<Content>()
            .map(|content| content.mentions.user_ids)
            .unwrap_or_default()
    } else {
        Vec::new()
    };
    if &*pdu.event_type == "m.room.member" {
        named.extend(pdu.state_key.as_deref().map(Into::into));
    }
    named
}

/// Finds out how an event counts for the local members of its room, and for whom it invites.
/// `member_count` is the number of joined members; `blind` are those who may not see the event.
///
/// # Errors
/// If the database fails.
pub(super) async fn evaluate(
    app: &App,
    room: &Room,
    event: &Event,
    member_count: i64,
    blind: &HashSet<UserNid>,
) -> Result<Verdict> {
    let mut judged = Judged::new(app, room, event, member_count).await?;
    let usual = Outcome::of(judged.actions(&app.preferences.common).await);
    let mut verdict = Verdict {
        notifies: usual.notifies,
        ..Verdict::default()
    };
    let mut members: Vec<(UserNid, Option<Arc<str>>)> = room
        .seen()
        .local
        .iter()
        .map(|(user, name)| (*user, name.clone()))
        .collect();
    let named: Vec<_> = named(event)
        .into_iter()
        .filter_map(|id| UserId::parse(id).ok())
        .filter(|id| app.is_local(id))
        .collect();
    let named = app
        .names
        .find_users(&app.db, named.iter().map(AsRef::as_ref))
        .await?;
    if &*event.pdu.event_type == "m.room.member" {
        for user in named.values() {
            if members.iter().all(|(member, _)| member != user) {
                members.push((*user, None));
            }
        }
    }
    let named: HashSet<UserNid> = named.into_values().collect();
    members.retain(|(user, _)| *user != event.sender);
    let users: Vec<UserNid> = members.iter().map(|(user, _)| *user).collect();
    let preferences = preferences::many(app, &users).await?;
    for (user, display_name) in members {
        let own = preferences.get(&user);
        let rules = own.and_then(|own| own.rules.clone());
        let ignores = own.is_some_and(|own| own.ignored.contains(&event.sender));
        let is_named = named.contains(&user);
        if blind.contains(&user) && !ignores {
            if usual.notifies {
                verdict.differing.push((user, SILENT));
            }
            continue;
        }
        if rules.is_none() && !ignores && !is_named {
            let flags = usual.flags(usual.notifies, Volume::All);
            if flags != 0 {
                verdict.differing.push((user, flags));
            }
            continue;
        }
        let id = app.names.user_id(&app.db, user).await?;
        let volume = match own {
            Some(own) => volume(room, own, &id, member_count).await?,
            None => Volume::All,
        };
        if ignores {
            if usual.notifies {
                verdict.ignoring.push(user);
            }
            continue;
        }
        let rules = rules.unwrap_or_else(|| Arc::new(Ruleset::server_default(&id)));
        needs_power_levels(app, room, &mut judged, &rules).await?;
        let name = display_name.as_deref();
        let outcome = Outcome::of(&judged.actions_for(&id, name, &rules).await);
        let flags = outcome.flags(verdict.notifies, volume);
        if flags != 0 {
            verdict.differing.push((user, flags));
        }
    }
    Ok(verdict)
}

/// How much of a room a user's rules let through: what they say to a message, encrypted or not, that nothing is special
/// about. `member_count` is the number of joined members.
///
/// # Errors
/// If such a message cannot be made.
pub async fn volume(
    room: &Room,
    preferences: &Preferences,
    user: &UserId,
    member_count: i64,
) -> Result<Volume> {
    let Some(rules) = &preferences.rules else {
        return Ok(Volume::All);
    };
    if let Some(volume) = preferences.volume(room.nid, member_count) {
        return Ok(volume);
    }
    let context = context(room, user, member_count);
    let mut volume = Volume::Nothing;
    for (mentions, heard) in [(true, Volume::Mentions), (false, Volume::All)] {
        for event_type in ["m.room.message", "m.room.encrypted"] {
            let sample = Judged {
                json: sample(room, event_type, mentions.then_some(user))?,
                context: context.clone(),
            };
            if Outcome::of(sample.actions(rules).await).notifies {
                volume = heard;
            }
        }
    }
    preferences.keep_volume(room.nid, member_count, volume);
    Ok(volume)
}

fn sample(room: &Room, event_type: &str, mentioned: Option<&UserId>) -> Result<FlattenedJson> {
    let mut content = serde_json::json!({ "msgtype": "m.text", "body": "\u{2026}" });
    if let Some(user) = mentioned {
        content["m.mentions"] = serde_json::json!({ "user_ids": [user] });
    }
    let event = serde_json::json!({
        "type": event_type, "room_id": room.id, "sender": SOMEBODY, "content": content,
    });
    let raw = Raw::<AnySyncTimelineEvent>::from_json_string(event.to_string())
        .map_err(Error::internal)?;
    Ok(FlattenedJson::from_raw(&raw))
}

/// Rules of a user's own may ask for the sender's power without a mention of the whole room.
async fn needs_power_levels(
    app: &App,
    room: &Room,
    judged: &mut Judged,
    rules: &Ruleset,
) -> Result<()> {
    use ruma::push::PushCondition::SenderNotificationPermission;
    let asks = rules.override_.iter().chain(&rules.underride).any(|rule| {
        !rule.default
            && rule
                .conditions
                .iter()
                .any(|condition| matches!(condition, SenderNotificationPermission(_)))
    });
    if asks && judged.context.power_levels.is_none() {
        judged.context.power_levels = Some(power::now(app, room).await?.into());
    }
    Ok(())
}

/// What a user's rules say to an event that was sent before, in the room as it is now.
///
/// # Errors
/// If the database fails.
pub async fn actions(
    app: &App,
    room: &Room,
    event: &Event,
    user: UserNid,
    user_id: &UserId,
) -> Result<Vec<Action>> {
    let preferences = preferences::get(app, user).await?;
    if event.sender == user || preferences.ignored.contains(&event.sender) {
        return Ok(Vec::new());
    }
    let (member_count, display_name) = {
        let seen = room.seen();
        (seen.joined_count, seen.local.get(&user).cloned().flatten())
    };
    let rules = preferences::push_rules(app, user, user_id).await?;
    let mut judged = Judged::new(app, room, event, member_count).await?;
    needs_power_levels(app, room, &mut judged, &rules).await?;
    Ok(judged
        .actions_for(user_id, display_name.as_deref(), &rules)
        .await)
}

#[cfg(test)]
mod tests {
    use Volume::{All, Mentions, Nothing};

    use super::*;

    #[test]
    fn flags_tell_the_difference_from_the_default() {
        let outcome = |notifies, highlights| Outcome {
            notifies,
            highlights,
        };
        for (outcome, by_default, volume, flags) in [
            (outcome(true, false), true, All, 0),
            (outcome(false, false), false, All, 0),
            (outcome(true, true), true, All, HIGHLIGHT),
            (outcome(true, true), false, All, HIGHLIGHT | NOTIFIES),
            (outcome(true, false), false, All, NOTIFIES),
            (outcome(false, false), true, All, SILENT),
            (outcome(false, true), true, All, SILENT),
            (outcome(false, false), true, Mentions, 0),
            (outcome(false, false), true, Nothing, 0),
            (outcome(true, true), true, Mentions, HIGHLIGHT | SINGLED_OUT),
            (
                outcome(true, false),
                false,
                Mentions,
                NOTIFIES | SINGLED_OUT,
            ),
            (outcome(true, false), true, Nothing, LOUD),
        ] {
            assert_eq!(
                outcome.flags(by_default, volume),
                flags,
                "{outcome:?} {by_default} {volume:?}"
            );
        }
    }
}
