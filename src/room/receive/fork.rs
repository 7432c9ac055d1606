//! An event that follows something else than what its room has last.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ruma::{OwnedEventId, UserId};

use super::{
    Fate, Missing, Opinion, finish_known, hide,
    items::{Item, Known},
    judge::{self, Verdict},
    lacks_signature, place, redacted_early, write,
};
use crate::{
    bus::Effect,
    error::Result,
    room::{
        append::step::{Placed, Step, key_of},
        branches::{Changed, Derived, compare, merge},
        head::{self, StateMap},
        resolution::Newest,
        visibility::{VISIBILITY, allowed, is_shared, membership_of, visibility_of},
    },
    storage::{
        self, Event, KeyNid, Membership, UserNid,
        events::{Stub, flags},
        gaps,
        state::StateAt,
    },
};

/// Takes the event into the room: as the only one of its change, or, if it is history, after others of which that rests on
/// nothing that they change but what [`Past`](crate::room::past::Past) knows. `None` if it must have a change of its own.
pub(super) async fn take(
    step: &mut Step<'_>,
    known: &mut Known,
    item: &Item,
) -> Result<Option<Fate>> {
    if known.is_here(&item.pdu) {
        return Ok(Some(finish_known(step, known, item)));
    }
    let mut missing = Missing::default();
    let auth = known.auth_events(&item.pdu).unwrap_or_else(|ids| {
        missing.auth_events = ids;
        Vec::new()
    });
    let met = match &item.before {
        Some(_) => Vec::new(),
        None => match states_after(step, &item.pdu.prev_events).await? {
            Ok(states) => states,
            Err(ids) => {
                missing.prev_events = ids;
                Vec::new()
            }
        },
    };
    if is_old(step, item, &missing).await? {
        write(step, item);
        let reason = "it is from before somebody here joined the room";
        return Ok(Some(Fate::Rejected(reason.to_owned())));
    }
    if missing != Missing::default() {
        return Ok(Some(Fate::Missing(missing)));
    }
    if !step.past.is_empty() && (item.before.is_some() || met.len() > 1) {
        return Ok(None);
    }
    let before = match &item.before {
        Some(before) => before.clone(),
        None => step.met(&met).await?,
    };
    let mut keys = judge::keys(step.room, &item.pdu);
    keys.push((VISIBILITY.into(), "".into()));
    let state = step.events_of(&before, &keys).await?;
    let verdict = match judge::by_auth_events(step.room, &item.pdu, &auth, &state) {
        Verdict::Accepted => judge::by_state(step.room, &item.pdu, &state),
        rejected @ Verdict::Rejected(_) => rejected,
    };
    let is_unsigned = verdict == Verdict::Accepted && lacks_signature(step, item).await?;
    if is_unsigned && item.opinion == Opinion::Unknown {
        return Ok(Some(Fate::Unsigned));
    }
    write(step, item);
    let at = step.keep_state(&met, &before).await?;
    let mut placed = place(step.app, known, item, &auth, at)?;
    if item.before.is_some() && !item.is_history {
        placed.flags |= flags::AFTER_GAP;
    }
    if let Verdict::Rejected(reason) = verdict {
        hide(step, known, item, placed, flags::REJECTED)?;
        step.past.follow(item.pdu.event_id.clone(), at);
        return Ok(Some(Fate::Rejected(reason)));
    }

    let key = key_of(&item.pdu);
    let key_nid = key
        .as_ref()
        .map(|_| step.event(Arc::clone(&item.pdu), &placed))
        .transpose()?
        .and_then(|event| event.key);
    let (after, forked) = match key_nid {
        Some(key) => step.branch_off(at, key, placed.nid).await?,
        None => (at, false),
    };
    if forked {
        placed.flags |= flags::FORKED;
    }
    note_gaps(step, item).await?;
    if item.is_history {
        add_history(step, known, item, placed, &state).await?;
        step.past.follow(item.pdu.event_id.clone(), after);
        return Ok(Some(Fate::Accepted));
    }
    let now = step.state_at(&keys).await?;
    let is_allowed = judge::by_state(step.room, &item.pdu, &now) == Verdict::Accepted;
    if is_unsigned || !item.is_return && !is_allowed {
        let flag = (placed.flags | flags::SOFT_FAILED) & !flags::OURS;
        hide(step, known, item, placed, flag)?;
        return Ok(Some(Fate::SoftFailed));
    }
    step.blind = blind(step, item, &before, &state).await?;
    let after = After {
        at: after,
        state: match key_nid {
            Some(key) => before.with(key, placed.nid),
            None => before,
        },
        key: key_nid,
    };
    accept(step, known, item, placed, after, &now).await?;
    known.arrived(step);
    Ok(Some(Fate::Accepted))
}

/// Whether an event is told as news that was there before this server was in the room. It would look like a branch on which
/// nobody who came later has joined, and could throw them out. When somebody reads so far back, it is asked for as history.
async fn is_old(step: &Step<'_>, item: &Item, missing: &Missing) -> Result<bool> {
    if item.is_history || item.is_return || item.before.is_some() {
        return Ok(false);
    }
    if item.pdu.prev_events.is_empty() {
        return Ok(true);
    }
    let is_cut_off = !missing.prev_events.is_empty();
    Ok(is_cut_off && item.pdu.depth < gaps::depth_of_join(&step.app.db, step.room.nid).await?)
}

/// The state after an event: where it is kept, how it is told, and the key that the event changed in it.
struct After {
    at: StateAt,
    state: Derived,
    key: Option<KeyNid>,
}

/// Lets the event come, and makes current what the room's branches amount to with it.
async fn accept(
    step: &mut Step<'_>,
    known: &Known,
    item: &Item,
    placed: Placed,
    after: After,
    now: &StateMap,
) -> Result<()> {
    let (pdu, placed) = redacted_early(step, known, item, placed, now)?;
    known.meet_early(step, &pdu.event_id, placed.nid);
    if item.is_return {
        step.extremities.clear();
    }
    let key = key_of(&pdu);
    let replaces = key
        .as_ref()
        .and_then(|key| now.get(key)?.as_ref())
        .map(|event| event.nid);
    let auth = placed.auth.clone();
    let (event, at) = step.enter(pdu, placed, replaces).await?;
    let newest = Newest {
        event: &event,
        auth: &auth,
    };
    step.follow(&event, after.at);
    let states = branches(step, &event, after.state);
    let current = current(step, states, after.key.map(|_| newest)).await?;
    let own = key.as_ref().map(|key| (key, &event));
    let Changed { own, others, .. } = step.set_current(&current, own, at).await?;
    step.apply_redaction(&event, now).await?;
    let is_other = key.is_some() && !own || !others.is_empty() || item.before.is_some();
    step.come(event, key.filter(|_| own), at);
    if is_other {
        step.change.effect(Effect::State {
            room: Arc::clone(step.room),
            changes: Some(others),
            at,
        });
    }
    Ok(())
}

/// Notes which events that this one follows are not here, so that history can be asked for from there on.
async fn note_gaps(step: &mut Step<'_>, item: &Item) -> Result<()> {
    let (pdu, room) = (&item.pdu, step.room.nid);
    if item.is_history {
        step.past.close(&pdu.event_id);
    }
    if item.before.is_some()
        && let Err(missing) = states_after(step, &pdu.prev_events).await?
    {
        let is_old =
            item.is_history && pdu.depth <= gaps::depth_of_join(&step.app.db, room).await?;
        let before_join = item.is_return || is_old;
        for id in missing {
            let write = gaps::open(room, id.as_str(), pdu.depth, before_join);
            step.change.write(write);
        }
    }
    Ok(())
}

/// Gives an event its place in the room's history, where nobody is told of it.
async fn add_history(
    step: &mut Step<'_>,
    known: &mut Known,
    item: &Item,
    placed: Placed,
    state: &StateMap,
) -> Result<()> {
    let (pdu, placed) = redacted_early(step, known, item, placed, state)?;
    known.meet_early(step, &pdu.event_id, placed.nid);
    let event = step.remember(pdu, &placed).await?;
    step.apply_redaction(&event, state).await?;
    known.hidden(step, event);
    Ok(())
}

/// The local members who may not see an event, since they were not there yet in the state `before` it, of which `state` has
/// the room's visibility.
async fn blind(
    step: &Step<'_>,
    item: &Item,
    before: &Derived,
    state: &StateMap,
) -> Result<HashSet<UserNid>> {
    let (app, room) = (step.app, step.room);
    let visibility = state.get(&(VISIBILITY.into(), "".into()));
    let Some(visibility) = visibility.and_then(Option::as_deref).map(visibility_of) else {
        return Ok(HashSet::new());
    };
    if is_shared(&visibility) {
        return Ok(HashSet::new());
    }
    let both = [before.clone(), Derived::stored(step.current())];
    let conflict = compare(app, &both).await?;
    let of_before = conflict.states.first();
    let nids: Vec<_> = of_before
        .into_iter()
        .flat_map(HashMap::values)
        .copied()
        .collect();
    let events = head::events(app, room, &nids).await?;
    let keys = app.names.key_names(&app.db, &conflict.keys).await?;
    let mut users = Vec::new();
    for (nid, (kind, state_key)) in keys {
        let Ok(user) = UserId::parse(&*state_key) else {
            continue;
        };
        let is_own = item.pdu.state_key.as_deref() == Some(&*state_key);
        if &*kind != "m.room.member" || is_own || !app.is_local(&user) {
            continue;
        }
        let member = of_before.and_then(|of_before| events.get(of_before.get(&nid)?));
        let membership = member.map_or(Membership::Leave, |member| membership_of(member));
        if !allowed(&visibility, membership, true) {
            users.push(user);
        }
    }
    let users = app
        .names
        .find_users(&app.db, users.iter().map(AsRef::as_ref))
        .await?;
    Ok(users.into_values().collect())
}

/// The states of the room's branches, each once; `after` is that after `event`, with which one of them ends.
fn branches(step: &Step<'_>, event: &Event, after: Derived) -> Vec<Derived> {
    let others = step.extremities.iter().filter(|one| one.nid != event.nid);
    let others = each_once(others.map(|one| one.after).collect());
    let mut states: Vec<Derived> = others.into_iter().map(Derived::stored).collect();
    states.retain(|state| *state != after);
    states.insert(0, after);
    states
}

/// The state that the room's branches amount to; `newest` is in one of them.
async fn current(
    step: &Step<'_>,
    states: Vec<Derived>,
    newest: Option<Newest<'_>>,
) -> Result<Derived> {
    if let [only] = states.as_slice() {
        return Ok(only.clone());
    }
    merge(step.app, step.room, states, newest).await
}

/// The states after events, each once, in order, or the ids of those that have no place in the room.
async fn states_after(
    step: &Step<'_>,
    prev_events: &[OwnedEventId],
) -> Result<Result<Vec<StateAt>, Vec<OwnedEventId>>> {
    let mut states = Vec::with_capacity(prev_events.len());
    let mut wanted = Vec::new();
    for id in prev_events {
        match step.extremities.iter().find(|one| one.id == *id) {
            Some(extremity) => states.push(extremity.after),
            None => match step.past.after(id) {
                Some(after) => states.push(after),
                None => wanted.push(id),
            },
        }
    }
    if wanted.is_empty() {
        return Ok(Ok(each_once(states)));
    }
    let db = &step.app.db;
    let ids = wanted.iter().map(ToString::to_string).collect();
    let stubs = storage::events::stubs(db, ids).await?;
    let is_placed = |stub: &&Stub| stub.room == step.room.nid && stub.flags & flags::OUTLIER == 0;
    let nids: Vec<_> = stubs
        .values()
        .filter(is_placed)
        .map(|stub| stub.nid)
        .collect();
    let after = storage::branches::after(db, &nids).await?;
    let mut missing = Vec::new();
    for id in wanted {
        match stubs.get(id.as_str()).and_then(|stub| after.get(&stub.nid)) {
            Some(at) => states.push(*at),
            None => missing.push(id.clone()),
        }
    }
    Ok(if missing.is_empty() {
        Ok(each_once(states))
    } else {
        Err(missing)
    })
}

fn each_once(mut states: Vec<StateAt>) -> Vec<StateAt> {
    states.sort_unstable_by_key(|at| (at.line, at.sv));
    states.dedup();
    states
}
