//! Whom an event notifies (Client-Server API, "Push Rules").
//!
//! Nearly everybody has the default rules, and nearly every event means the same to all of them: that is found out once.
//! What is kept for single people is where they differ from it: they are mentioned, or have rules of their own. Nothing is
//! kept of what a muted room does not say: that is seen from the rules when somebody counts.

mod judged;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ruma::{OwnedUserId, UserId, push::Action};
use serde::Deserialize;

use super::visibility::Sight;
use crate::{
    app::App,
    error::Result,
    preferences::{self, Preferences, Volume, default_rules},
    rooms::Room,
    storage::{
        Event, Membership, UserNid,
        highlights::{HIGHLIGHT, LOUD, NOTIFIES, SILENT, SINGLED_OUT},
    },
};

pub use judged::{PATTERN_BYTES, WILDCARDS, is_cheap};

use judged::Judged;

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
    let ids = if judged.is_addressing() {
        app.names.user_ids(&app.db, &users).await?
    } else {
        HashMap::new()
    };
    let is_addressed = |judged: &Judged, user, display_name: Option<&str>| {
        let id: Option<&OwnedUserId> = ids.get(&user);
        id.is_some_and(|id| judged.may_address(id, display_name))
    };
    for (user, display_name) in members {
        let own = preferences.get(&user);
        let rules = own.and_then(|own| own.rules.clone());
        let ignores = own.is_some_and(|own| own.ignored.contains(&event.sender));
        let is_named =
            named.contains(&user) || is_addressed(&judged, user, display_name.as_deref());
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
        let rules = rules.unwrap_or_else(|| Arc::new(default_rules(&id)));
        judged.needs_power_levels(app, room, &rules).await?;
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
    let mut volume = Volume::Nothing;
    for (mentions, heard) in [(true, Volume::Mentions), (false, Volume::All)] {
        for event_type in ["m.room.message", "m.room.encrypted"] {
            let sample = Judged::sample(room, event_type, (user, mentions), member_count)?;
            if Outcome::of(sample.actions(rules).await).notifies {
                volume = heard;
            }
        }
    }
    preferences.keep_volume(room.nid, member_count, volume);
    Ok(volume)
}

/// What the rules of people say to an event that was sent before, in the room as it is now.
#[derive(Debug)]
pub struct Judge<'a> {
    app: &'a App,
    room: &'a Room,
    event: &'a Event,
    judged: Judged,
    /// What those say who have the default rules and are not named.
    usual: Vec<Action>,
    named: Vec<String>,
}

impl<'a> Judge<'a> {
    /// Reads what is needed of the event and the room.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn new(app: &'a App, room: &'a Room, event: &'a Event) -> Result<Self> {
        let member_count = room.seen().joined_count;
        let judged = Judged::new(app, room, event, member_count).await?;
        Ok(Self {
            usual: judged.actions(&app.preferences.common).await.to_vec(),
            named: named(event),
            app,
            room,
            event,
            judged,
        })
    }

    /// What the rules of `user` say. To one's own events and to those of people who are ignored, they say nothing.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn actions(&mut self, user: UserNid, user_id: &UserId) -> Result<Vec<Action>> {
        let (app, room) = (self.app, self.room);
        let preferences = preferences::get(app, user).await?;
        if self.event.sender == user || preferences.ignored.contains(&self.event.sender) {
            return Ok(Vec::new());
        }
        let display_name = room.seen().local.get(&user).cloned().flatten();
        let is_named = self.named.iter().any(|id| id == user_id)
            || self.judged.may_address(user_id, display_name.as_deref());
        if preferences.rules.is_none() && !is_named {
            return Ok(self.usual.clone());
        }
        let rules = preferences::push_rules(app, user, user_id).await?;
        let judged = &mut self.judged;
        judged.needs_power_levels(app, room, &rules).await?;
        Ok(judged
            .actions_for(user_id, display_name.as_deref(), &rules)
            .await)
    }
}

/// Whether an event concerns somebody who may see it: they were in the room, or it is about them.
#[must_use]
pub fn concerns(sight: &Sight<'_>, event: &Event) -> bool {
    is_about(event, &sight.viewer.user_id)
        || (sight.sees(event) && sight.membership(event) == Some(Membership::Join))
}

/// Whether an event says what somebody is to its room.
#[must_use]
pub fn is_about(event: &Event, user: &UserId) -> bool {
    &*event.pdu.event_type == "m.room.member"
        && event.pdu.state_key.as_deref() == Some(user.as_str())
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
