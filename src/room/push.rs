//! Whom an event notifies (Client-Server API, "Push Rules").
//!
//! Nearly everybody has the default rules, and nearly every event means the same to all of them: that is found out once.
//! What is kept for single people is where they differ from it: they are mentioned, they have rules of their own, or
//! they ignore the sender. `STORAGE.md`, "Unread counts", tells how a count comes of it.

use std::sync::Arc;

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
    preferences,
    rooms::Room,
    storage::{
        Event, UserNid,
        highlights::{HIGHLIGHT, NOTIFIES, SILENT},
    },
};

/// How an event counts.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it notifies one who has the default rules and is not mentioned.
    pub notifies: bool,
    /// For whom it counts otherwise, with flags from [`storage::highlights`](crate::storage::highlights).
    pub differing: Vec<(UserNid, i64)>,
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

    /// How it differs from what the event does by default.
    fn flags(self, notifies_by_default: bool) -> i64 {
        let mut flags = 0;
        if self.notifies && self.highlights {
            flags |= HIGHLIGHT;
        }
        match (self.notifies, notifies_by_default) {
            (true, false) => flags |= NOTIFIES,
            (false, true) => flags |= SILENT,
            _ => {}
        }
        flags
    }
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
            "@somebody:server" => user_id!("@somebody.else:server"),
            _ => user_id!("@somebody:server"),
        };
        let mut context = PushConditionRoomCtx::new(
            room.id.clone(),
            UInt::try_from(member_count).unwrap_or_default(),
            somebody.to_owned(),
            String::new(),
        );
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
/// `member_count` is the number of joined members.
///
/// # Errors
/// If the database fails.
pub async fn evaluate(app: &App, room: &Room, event: &Event, member_count: i64) -> Result<Verdict> {
    let mut judged = Judged::new(app, room, event, member_count).await?;
    let usual = Outcome::of(judged.actions(&app.preferences.common).await);
    let mut verdict = Verdict {
        notifies: usual.notifies,
        differing: Vec::new(),
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
    members.retain(|(user, _)| *user != event.sender);
    let users: Vec<UserNid> = members.iter().map(|(user, _)| *user).collect();
    let preferences = preferences::many(app, &users).await?;
    for (user, display_name) in members {
        let own = preferences.get(&user);
        let rules = own.and_then(|own| own.rules.clone());
        let outcome = if own.is_some_and(|own| own.ignored.contains(&event.sender)) {
            Outcome::default()
        } else if rules.is_none() && !named.values().any(|named| *named == user) {
            usual
        } else {
            let id = app.names.user_id(&app.db, user).await?;
            let rules = rules.unwrap_or_else(|| Arc::new(Ruleset::server_default(&id)));
            needs_power_levels(app, room, &mut judged, &rules).await?;
            let name = display_name.as_deref();
            Outcome::of(&judged.actions_for(&id, name, &rules).await)
        };
        let flags = outcome.flags(verdict.notifies);
        if flags != 0 {
            verdict.differing.push((user, flags));
        }
    }
    Ok(verdict)
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
    use super::*;

    #[test]
    fn flags_tell_the_difference_from_the_default() {
        let outcome = |notifies, highlights| Outcome {
            notifies,
            highlights,
        };
        for (outcome, by_default, flags) in [
            (outcome(true, false), true, 0),
            (outcome(false, false), false, 0),
            (outcome(true, true), true, HIGHLIGHT),
            (outcome(true, true), false, HIGHLIGHT | NOTIFIES),
            (outcome(true, false), false, NOTIFIES),
            (outcome(false, false), true, SILENT),
            (outcome(false, true), true, SILENT),
        ] {
            assert_eq!(outcome.flags(by_default), flags, "{outcome:?} {by_default}");
        }
    }
}
