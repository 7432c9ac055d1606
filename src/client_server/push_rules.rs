//! "Push Rules".

use std::sync::Arc;

use ruma::{
    api::client::push::{
        RuleKind, delete_pushrule, get_pushrule, get_pushrule_actions, get_pushrule_enabled,
        get_pushrules_all, get_pushrules_global_scope, set_pushrule, set_pushrule_actions,
        set_pushrule_enabled,
    },
    push::{
        Action, AnyPushRuleRef, InsertPushRuleError, NewPushRule, PushCondition,
        RemovePushRuleError, Ruleset,
    },
};
use serde_json::Value;

use super::account_data;
use crate::{
    app::App,
    auth::Requester,
    error::{Error, Result},
    http::{Call, Routes},
    preferences::{self, PUSH_RULES, PushRules},
    room::push,
};

/// The most rules that one user can have.
const RULES: usize = 2000;
/// The longest id of a rule, in bytes.
const RULE_ID_BYTES: usize = 255;
/// The most conditions of a rule, and the most actions.
const PARTS: usize = 32;
/// The largest rule, in bytes of JSON.
const RULE_BYTES: usize = 8192;
/// How many patterns all rules of a user have, and how many of these have wildcards: every message is held against them.
const PATTERNS: usize = 1000;
const GLOBS: usize = 50;

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<get_pushrules_all::v3::Request, _, _>(get_pushrules_all)
        .add::<get_pushrules_global_scope::v3::Request, _, _>(get_pushrules_global_scope)
        .add::<get_pushrule::v3::Request, _, _>(get_pushrule)
        .filled::<set_pushrule::v3::Request, _, _>("conditions", "[]", set_pushrule)
        .add::<delete_pushrule::v3::Request, _, _>(delete_pushrule)
        .add::<get_pushrule_enabled::v3::Request, _, _>(get_pushrule_enabled)
        .add::<set_pushrule_enabled::v3::Request, _, _>(set_pushrule_enabled)
        .add::<get_pushrule_actions::v3::Request, _, _>(get_pushrule_actions)
        .add::<set_pushrule_actions::v3::Request, _, _>(set_pushrule_actions)
}

async fn rules(app: &App, requester: &Requester) -> Result<Arc<Ruleset>> {
    preferences::push_rules(app, requester.user, &requester.user_id).await
}

/// `GET /_matrix/client/v3/pushrules/`
async fn get_pushrules_all(
    app: Arc<App>,
    call: Call<get_pushrules_all::v3::Request>,
) -> Result<get_pushrules_all::v3::Response> {
    let rules = rules(&app, &call.requester).await?;
    Ok(get_pushrules_all::v3::Response::new(Arc::unwrap_or_clone(
        rules,
    )))
}

/// `GET /_matrix/client/v3/pushrules/global/`
async fn get_pushrules_global_scope(
    app: Arc<App>,
    call: Call<get_pushrules_global_scope::v3::Request>,
) -> Result<get_pushrules_global_scope::v3::Response> {
    let rules = Arc::unwrap_or_clone(rules(&app, &call.requester).await?);
    Ok(get_pushrules_global_scope::v3::Response::new(rules))
}

fn unknown_rule() -> Error {
    Error::not_found("there is no such push rule")
}

fn find<'r>(rules: &'r Ruleset, kind: &RuleKind, id: &str) -> Result<AnyPushRuleRef<'r>> {
    rules.get(kind.clone(), id).ok_or_else(unknown_rule)
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`
async fn get_pushrule(
    app: Arc<App>,
    call: Call<get_pushrule::v3::Request>,
) -> Result<get_pushrule::v3::Response> {
    let rules = rules(&app, &call.requester).await?;
    let rule = find(&rules, &call.body.kind, &call.body.rule_id)?;
    Ok(get_pushrule::v3::Response::new(rule.into()))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled`
async fn get_pushrule_enabled(
    app: Arc<App>,
    call: Call<get_pushrule_enabled::v3::Request>,
) -> Result<get_pushrule_enabled::v3::Response> {
    let rules = rules(&app, &call.requester).await?;
    let enabled = find(&rules, &call.body.kind, &call.body.rule_id)?.enabled();
    Ok(get_pushrule_enabled::v3::Response::new(enabled))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions`
async fn get_pushrule_actions(
    app: Arc<App>,
    call: Call<get_pushrule_actions::v3::Request>,
) -> Result<get_pushrule_actions::v3::Response> {
    let rules = rules(&app, &call.requester).await?;
    let actions = find(&rules, &call.body.kind, &call.body.rule_id)?.actions();
    Ok(get_pushrule_actions::v3::Response::new(actions.to_vec()))
}

/// Changes the requester's rules and stores them.
async fn edit(
    app: &App,
    requester: &Requester,
    change: impl FnOnce(&mut Ruleset) -> Result<()>,
) -> Result<()> {
    let _one_at_a_time = app.preferences.edit(requester.user).await;
    let mut global = Arc::unwrap_or_clone(rules(app, requester).await?);
    change(&mut global)?;
    let json = serde_json::to_string(&PushRules { global }).map_err(Error::internal)?;
    account_data::set(app, requester.user, None, PUSH_RULES, &json).await
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`
async fn set_pushrule(
    app: Arc<App>,
    call: Call<set_pushrule::v3::Request>,
) -> Result<set_pushrule::v3::Response> {
    let body = call.body;
    check(&body.rule, call.raw.len())?;
    edit(&app, &call.requester, |rules| {
        let is_new = rules.get(body.rule.kind(), body.rule.rule_id()).is_none();
        if is_new && rules.iter().count() >= RULES {
            return Err(Error::too_large(format!("at most {RULES} push rules")));
        }
        insert(
            rules,
            body.rule,
            body.after.as_deref(),
            body.before.as_deref(),
        )?;
        expect_cheap(rules)
    })
    .await?;
    Ok(set_pushrule::v3::Response::new())
}

/// Makes sure that a user's own rules cost those little who send messages.
fn expect_cheap(rules: &Ruleset) -> Result<()> {
    let conditional = rules.override_.iter().chain(&rules.underride);
    let conditions = conditional
        .filter(|rule| !rule.default)
        .flat_map(|rule| &rule.conditions);
    let matched = conditions.filter_map(|condition| match condition {
        PushCondition::EventMatch(condition) => Some(&condition.pattern),
        _ => None,
    });
    let contents = rules.content.iter().filter(|rule| !rule.default);
    let (mut patterns, mut globs) = (0, 0);
    for pattern in matched.chain(contents.map(|rule| &rule.pattern)) {
        if !push::is_cheap(pattern) {
            return Err(Error::invalid_param(format!(
                "a pattern has at most {} bytes and {} wildcards",
                push::PATTERN_BYTES,
                push::WILDCARDS
            )));
        }
        patterns += 1;
        globs += usize::from(pattern.contains(['*', '?']));
    }
    if patterns > PATTERNS || globs > GLOBS {
        return Err(Error::too_large(format!(
            "the rules of a user have at most {PATTERNS} patterns, {GLOBS} of them with wildcards"
        )));
    }
    Ok(())
}

fn check(rule: &NewPushRule, bytes: usize) -> Result<()> {
    let (conditions, actions) = match rule {
        NewPushRule::Override(rule) | NewPushRule::Underride(rule) => {
            (rule.conditions.len(), &rule.actions)
        }
        NewPushRule::Content(rule) => (1, &rule.actions),
        NewPushRule::Room(rule) => (0, &rule.actions),
        NewPushRule::Sender(rule) => (0, &rule.actions),
        _ => return Err(Error::invalid_param("there is no such kind of push rule")),
    };
    if rule.rule_id().is_empty() || rule.rule_id().len() > RULE_ID_BYTES {
        return Err(Error::invalid_param(format!(
            "the id of a push rule has 1 to {RULE_ID_BYTES} bytes"
        )));
    }
    if conditions > PARTS || bytes > RULE_BYTES {
        return Err(Error::too_large("the push rule is too large"));
    }
    check_actions(actions)
}

fn check_actions(actions: &[Action]) -> Result<()> {
    if actions.len() > PARTS {
        return Err(Error::too_large("a push rule has too many actions"));
    }
    for action in actions {
        let is_known = match serde_json::to_value(action).map_err(Error::internal)? {
            // The last two do nothing; older clients say so.
            Value::String(name) => matches!(&*name, "notify" | "dont_notify" | "coalesce"),
            Value::Object(tweak) => tweak.contains_key("set_tweak"),
            _ => false,
        };
        if !is_known {
            return Err(Error::invalid_param("there is no such action"));
        }
    }
    Ok(())
}

/// Puts a rule into its place: after `after`, before `before`, where it is, or on top.
fn insert(
    rules: &mut Ruleset,
    rule: NewPushRule,
    after: Option<&str>,
    before: Option<&str>,
) -> Result<()> {
    let (kind, id) = (rule.kind(), rule.rule_id().to_owned());
    if after == Some(&id) || before == Some(&id) {
        return Err(Error::invalid_param("a rule cannot be placed by itself"));
    }
    // ruma moves a rule to the place that it would have if it were new; so one that is to move must be new.
    let known = rules.get(kind.clone(), &id).map(AnyPushRuleRef::enabled);
    if known.is_some() && (after.is_some() || before.is_some()) {
        rules
            .remove(kind.clone(), &id)
            .map_err(|_| Error::invalid_param("a predefined rule cannot be moved"))?;
    }
    rules
        .insert(rule, after, before)
        .map_err(|error| match error {
            InsertPushRuleError::UnknownRuleId => {
                Error::refused("the rule to place it by does not exist")
            }
            error => Error::invalid_param(error.to_string()),
        })?;
    if let Some(enabled) = known {
        rules
            .set_enabled(kind, &id, enabled)
            .map_err(|_| unknown_rule())?;
    }
    Ok(())
}

/// `DELETE /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`
async fn delete_pushrule(
    app: Arc<App>,
    call: Call<delete_pushrule::v3::Request>,
) -> Result<delete_pushrule::v3::Response> {
    let body = call.body;
    edit(&app, &call.requester, |rules| {
        rules
            .remove(body.kind, &body.rule_id)
            .map_err(|error| match error {
                RemovePushRuleError::ServerDefault => {
                    Error::invalid_param("a predefined rule can be disabled but not deleted")
                }
                _ => unknown_rule(),
            })
    })
    .await?;
    Ok(delete_pushrule::v3::Response::new())
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled`
async fn set_pushrule_enabled(
    app: Arc<App>,
    call: Call<set_pushrule_enabled::v3::Request>,
) -> Result<set_pushrule_enabled::v3::Response> {
    let body = call.body;
    edit(&app, &call.requester, |rules| {
        rules
            .set_enabled(body.kind, &body.rule_id, body.enabled)
            .map_err(|_| unknown_rule())
    })
    .await?;
    Ok(set_pushrule_enabled::v3::Response::new())
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions`
async fn set_pushrule_actions(
    app: Arc<App>,
    call: Call<set_pushrule_actions::v3::Request>,
) -> Result<set_pushrule_actions::v3::Response> {
    let body = call.body;
    check_actions(&body.actions)?;
    if call.raw.len() > RULE_BYTES {
        return Err(Error::too_large("the actions are too large"));
    }
    let actions: Vec<Action> = body.actions;
    edit(&app, &call.requester, |rules| {
        rules
            .set_actions(body.kind, &body.rule_id, actions)
            .map_err(|_| unknown_rule())
    })
    .await?;
    Ok(set_pushrule_actions::v3::Response::new())
}

#[cfg(test)]
mod tests {
    use ruma::{push::NewPatternedPushRule, user_id};

    use super::*;
    use crate::preferences::default_rules;

    fn rule(id: &str) -> NewPushRule {
        NewPushRule::Content(NewPatternedPushRule::new(
            id.to_owned(),
            "cake".to_owned(),
            vec![Action::Notify],
        ))
    }

    /// The order of a user's own content rules after some were put into their places; they come before the default one.
    fn order(steps: &[(&str, Option<&str>, Option<&str>)]) -> Vec<String> {
        let mut rules = default_rules(user_id!("@a:b"));
        for (id, after, before) in steps {
            insert(&mut rules, rule(id), *after, *before).unwrap();
        }
        let mut ids: Vec<_> = rules.content.into_iter().map(|rule| rule.rule_id).collect();
        assert_eq!(ids.pop().as_deref(), Some(".m.rule.contains_user_name"));
        ids
    }

    #[test]
    fn rules_come_where_they_are_put() {
        let two = [("b", None, None), ("a", None, None)];
        assert_eq!(order(&two), ["a", "b"]);
        let with = |step| order(&[two[0], two[1], step]);
        assert_eq!(with(("b", None, None)), ["a", "b"], "it stays");
        assert_eq!(with(("c", Some("a"), None)), ["a", "c", "b"]);
        assert_eq!(with(("c", Some("b"), None)), ["a", "b", "c"]);
        assert_eq!(with(("c", None, Some("b"))), ["a", "c", "b"]);
        assert_eq!(with(("c", Some("a"), Some("b"))), ["a", "c", "b"]);
        assert_eq!(with(("a", Some("b"), None)), ["b", "a"]);
        assert_eq!(with(("b", None, Some("a"))), ["b", "a"]);
    }

    #[test]
    fn a_rule_that_moves_stays_disabled() {
        let mut rules = default_rules(user_id!("@a:b"));
        insert(&mut rules, rule("a"), None, None).unwrap();
        insert(&mut rules, rule("b"), None, None).unwrap();
        rules.set_enabled(RuleKind::Content, "a", false).unwrap();
        insert(&mut rules, rule("a"), None, Some("b")).unwrap();
        assert!(!rules.get(RuleKind::Content, "a").unwrap().enabled());
    }

    #[test]
    fn impossible_places_are_refused() {
        for (id, after, before) in [
            (".mine", None, None),
            ("a/b", None, None),
            ("a\\b", None, None),
            ("c", Some("nothing"), None),
            ("c", None, Some(".m.rule.contains_user_name")),
            ("a", Some("a"), None),
            ("c", Some("a"), Some("b")),
        ] {
            let mut rules = default_rules(user_id!("@a:b"));
            insert(&mut rules, rule("a"), None, None).unwrap();
            insert(&mut rules, rule("b"), None, None).unwrap();
            let result = insert(&mut rules, rule(id), after, before);
            assert!(result.is_err(), "{id} {after:?} {before:?}");
        }
    }
}
