//! The push rules that everybody has (Client-Server API, "Predefined Rules").
//!
//! Version 1.17 of the specification has taken away the three that look for names in the text. They stay here, as they do in
//! Synapse: many bots and bridges do not say whom they mention. They are not for events that say so (`m.mentions`).

use ruma::{
    UserId,
    power_levels::NotificationPowerLevelsKey,
    push::{
        Action, ConditionalPushRule, ConditionalPushRuleInit, EventMatchConditionData,
        HighlightTweakValue, PatternedPushRule, PatternedPushRuleInit, PredefinedOverrideRuleId,
        PushCondition, Ruleset, SenderNotificationPermissionConditionData, SoundTweakValue, Tweak,
    },
    user_id,
};

const CONTAINS_DISPLAY_NAME: &str = ".m.rule.contains_display_name";
const CONTAINS_USER_NAME: &str = ".m.rule.contains_user_name";
const ROOMNOTIF: &str = ".m.rule.roomnotif";

/// The default rules of a user.
#[must_use]
pub fn default_rules(user_id: &UserId) -> Ruleset {
    let mut rules = Ruleset::server_default(user_id);
    let overrides = &mut rules.override_;
    for (rule, place) in [
        (
            contains_display_name(),
            PredefinedOverrideRuleId::IsUserMention,
        ),
        (roomnotif(), PredefinedOverrideRuleId::IsRoomMention),
    ] {
        let place = overrides.get_index_of(place.as_str());
        let after = place.map_or(overrides.len(), |place| place + 1);
        overrides.shift_insert(after, rule);
    }
    rules.content.insert(contains_user_name(user_id));
    rules
}

/// The default rules without those that name their user: they mean the same for everybody.
#[must_use]
pub(super) fn common_rules() -> Ruleset {
    let mut rules = default_rules(user_id!("@user:server"));
    let named = [
        PredefinedOverrideRuleId::InviteForMe.as_str(),
        PredefinedOverrideRuleId::IsUserMention.as_str(),
        CONTAINS_DISPLAY_NAME,
    ];
    rules
        .override_
        .retain(|rule| !named.contains(&rule.rule_id.as_str()));
    rules.content.clear();
    rules
}

fn loud() -> Vec<Action> {
    vec![
        Action::Notify,
        Action::SetTweak(Tweak::Sound(SoundTweakValue::Default)),
        Action::SetTweak(Tweak::Highlight(HighlightTweakValue::Yes)),
    ]
}

fn contains_display_name() -> ConditionalPushRule {
    #[expect(deprecated, reason = "the rules of this file are")]
    let condition = PushCondition::ContainsDisplayName;
    let rule = ConditionalPushRuleInit {
        actions: loud(),
        default: true,
        enabled: true,
        rule_id: CONTAINS_DISPLAY_NAME.to_owned(),
        conditions: vec![condition],
    };
    rule.into()
}

fn roomnotif() -> ConditionalPushRule {
    let text = EventMatchConditionData::new("content.body".to_owned(), "@room".to_owned());
    let power = SenderNotificationPermissionConditionData::new(NotificationPowerLevelsKey::Room);
    let rule = ConditionalPushRuleInit {
        actions: vec![
            Action::Notify,
            Action::SetTweak(Tweak::Highlight(HighlightTweakValue::Yes)),
        ],
        default: true,
        enabled: true,
        rule_id: ROOMNOTIF.to_owned(),
        conditions: vec![
            PushCondition::EventMatch(text),
            PushCondition::SenderNotificationPermission(power),
        ],
    };
    rule.into()
}

fn contains_user_name(user_id: &UserId) -> PatternedPushRule {
    let rule = PatternedPushRuleInit {
        actions: loud(),
        default: true,
        enabled: true,
        rule_id: CONTAINS_USER_NAME.to_owned(),
        pattern: user_id.localpart().to_owned(),
    };
    rule.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_rules_stand_where_they_stood() {
        let rules = default_rules(user_id!("@alice:server"));
        let ids: Vec<_> = rules.override_.iter().map(|rule| &*rule.rule_id).collect();
        let mentions = [
            ".m.rule.is_user_mention",
            CONTAINS_DISPLAY_NAME,
            ".m.rule.is_room_mention",
            ROOMNOTIF,
            ".m.rule.tombstone",
        ];
        assert!(
            ids.windows(mentions.len()).any(|some| some == mentions),
            "{ids:?}"
        );
        assert_eq!(rules.content[0].pattern, "alice");
    }
}
