//! How events of other servers enter a room ("Checks performed on receipt of a PDU").
//!
//! What comes here has the right format, signatures and hash. Events that follow what this server knows last (nearly all)
//! are judged by the room's head and go together in one change. An event that follows something else opens or joins
//! branches: it has a change of its own, computed when all before it is committed.

mod fetch;
mod fork;
mod gaps;
pub mod history;
pub mod incoming;
mod items;
mod judge;
pub mod outliers;
pub(in crate::room) mod parts;
pub mod staging;
pub mod verify;

use std::sync::Arc;

use homing_federation::Pdu;
use ruma::OwnedEventId;
use tokio::sync::MutexGuard;

use super::{
    append::{
        end_typing,
        names::Names,
        step::{Placed, Step},
    },
    branches::Derived,
    head, receipts,
};
use crate::{
    app::App,
    error::{Error, Result},
    log::{AppendError, Change},
    rooms::{Head, Room},
    storage::{
        self, DeviceNid, Event, EventNid, Write,
        events::{Stub, flags},
    },
};
use items::{Item, Known};
use judge::Verdict;

/// How often a change is computed again because the room changed meanwhile.
const TRIES: usize = 5;
/// The most events of history in one change.
const PART: usize = 100;

/// What became of an event of another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was here already.
    Known,
    /// It is in the room.
    Accepted,
    /// It is kept, but from the eyes of clients: the room as it is now does not allow it.
    SoftFailed,
    /// It is kept as a rejected one: the rules of the room do not allow it.
    Rejected(String),
    /// It cannot be judged without these events.
    Missing(Missing),
    /// It lacks the signature of the room's policy server, which nobody has asked for yet.
    Unsigned,
}

/// What the policy server of a room says of an event, beside what it has signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opinion {
    /// It was not asked.
    Unknown,
    /// It was asked for its signature and has not given it.
    Unwanted,
}

/// Events that are not here and are needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Those that it follows.
    pub prev_events: Vec<OwnedEventId>,
    /// Those that allow it.
    pub auth_events: Vec<OwnedEventId>,
}

impl Missing {
    /// All of them.
    fn all(&self) -> impl Iterator<Item = &OwnedEventId> {
        self.prev_events.iter().chain(&self.auth_events)
    }
}

/// An event to be taken into a room.
#[derive(Clone, Debug)]
pub struct Received {
    /// The event, with good signatures.
    pub pdu: Arc<Pdu>,
    /// Whether this server must send it to the others in the room: it was the first to accept it.
    pub is_ours: bool,
    /// The state before it, where that was found out otherwise than from the events before it, of which some are not
    /// here.
    pub before: Option<Derived>,
    /// Whether it is older than what is known of the room: then it is no news, and the room stays where it is.
    pub is_history: bool,
    /// Whether somebody here comes back with it to a room that this server has left: what was known of the room counts no
    /// more, but for how it differs from `before`.
    pub is_return: bool,
    /// What the room's policy server says of it.
    pub opinion: Opinion,
    /// The transaction id under which a device here has sent it.
    pub txn: Option<(DeviceNid, Arc<str>)>,
    /// What is written in the same commit.
    pub writes: Vec<Write>,
}

impl Received {
    /// An event that another server sends to all.
    #[must_use]
    pub fn new(pdu: Arc<Pdu>) -> Self {
        Self {
            pdu,
            is_ours: false,
            before: None,
            is_history: false,
            is_return: false,
            opinion: Opinion::Unknown,
            txn: None,
            writes: Vec::new(),
        }
    }
}

/// Takes events into a room in the order given, which must be one in which none comes before one that it follows.
/// Answers what became of each; all that is not [`Fate::Missing`] or [`Fate::Unsigned`] is durable. Of history only those up to
/// the first that is missing something are taken, as the next ones mostly rest on it.
///
/// # Errors
/// If the database fails. Then some of the events may have been taken; they are known when they come again.
pub async fn take(app: &App, room: &Arc<Room>, events: Vec<Received>) -> Result<Vec<Fate>> {
    let pdus: Vec<_> = events.iter().map(|event| Arc::clone(&event.pdu)).collect();
    let names = Names::give_for(app, &pdus).await?;
    let mut known = Known::load(app, room, &pdus).await?;
    let items = items::prepare(app, events).await?;
    let mut fates = Vec::with_capacity(items.len());
    let mut tries = 0;
    let mut has_waited = false;
    while fates.len() < items.len() {
        // Where several events together were refused, the first is tried alone.
        let most = if tries == 0 { PART } else { 1 };
        let rest = &items[fates.len()..];
        match take_some(app, room, &names, &mut known, (rest, most)).await {
            Ok(mut some) => {
                tries = 0;
                let is_missing = |fate: &Fate| matches!(fate, Fate::Missing(_));
                if let Some(first) = some.iter().position(is_missing).filter(|_| !has_waited) {
                    // What is missing may have been on its way into the log when it was looked for.
                    some.truncate(first);
                    app.log.settled().await?;
                    known.look_again(app, &pdus).await?;
                    has_waited = true;
                }
                fates.extend(some);
                let last = items.get(fates.len().saturating_sub(1));
                if has_waited
                    && fates.last().is_some_and(is_missing)
                    && last.is_some_and(|item| item.is_history)
                {
                    break;
                }
            }
            // The room changed, or somebody else has brought one of these events.
            Err(Error::Append(AppendError::Conflict | AppendError::Duplicate)) if tries < TRIES => {
                tries += 1;
                known.look_again(app, &pdus).await?;
            }
            Err(error) => return Err(error),
        }
    }
    elsewhere(app, room, &items, &mut fates).await?;
    let come = pdus.iter().zip(&fates);
    let come = come.filter(|(_, fate)| matches!(fate, Fate::Accepted));
    let come: Vec<_> = come.map(|(pdu, _)| &pdu.event_id).collect();
    receipts::come(app, room, &come).await?;
    Ok(fates)
}

/// Rejects the events that rest on an event of another room: nothing can come that makes them good.
async fn elsewhere(app: &App, room: &Room, items: &[Item], fates: &mut [Fate]) -> Result<()> {
    let missing = |fate: &Fate| match fate {
        Fate::Missing(missing) => missing.all().map(ToString::to_string).collect(),
        _ => Vec::new(),
    };
    let ids: Vec<String> = fates.iter().flat_map(missing).collect();
    let found = storage::events::stubs(&app.db, ids).await?;
    let is_elsewhere = |id: &OwnedEventId| {
        let stub = found.get(id.as_str());
        stub.is_some_and(|stub| stub.room != room.nid)
    };
    let mut change = Change::new();
    let mut is_settled = false;
    for (item, fate) in items.iter().zip(fates) {
        if let Fate::Missing(missing) = fate
            && missing.all().any(is_elsewhere)
        {
            *fate = Fate::Rejected("it rests on an event of another room".to_owned());
            for write in &item.writes {
                change.write(write.clone());
                is_settled = true;
            }
        }
    }
    if is_settled {
        app.log.append(change).await?;
    }
    Ok(())
}

/// Takes the first of some events in one change, and with it those that follow it on top of the room, or `most` of those that
/// are history like it.
async fn take_some(
    app: &App,
    room: &Arc<Room>,
    names: &Names,
    known: &mut Known,
    (items, most): (&[Item], usize),
) -> Result<Vec<Fate>> {
    let place = app.log.place().await?;
    let mut slot = room.head.lock().await;
    let head = head::in_slot(app, room, &mut slot).await?;
    let mut step = Step::new(app, room, head, names);
    let mut fates = Vec::new();
    for item in items {
        match take_on_top(&mut step, known, item).await? {
            Some(fate) => fates.push(fate),
            None => break,
        }
    }
    let is_fork = fates.is_empty();
    if is_fork {
        let head = settled(app, room, &mut slot).await?;
        step = Step::new(app, room, head, names);
        let Some(item) = items.first() else {
            return Ok(fates);
        };
        let is_history = |item: &&Item| item.is_history;
        let count = items.iter().take(most).take_while(is_history).count();
        let items = &items[..count.max(1)];
        known.look_for(app, items).await?;
        if let Err(error) = take_apart(&mut step, known, items, &mut fates).await {
            // The head may rest on what is not written now.
            drop(step);
            *slot = None;
            drop(slot);
            let Error::Matrix { message, .. } = error else {
                return Err(error);
            };
            if !fates.is_empty() {
                return Err(AppendError::Conflict.into());
            }
            // What it would do to the room cannot be found out within limits.
            let mut change = Change::new();
            item.writes.iter().for_each(|write| {
                change.write(write.clone());
            });
            place.append(change).committed().await?;
            return Ok(vec![Fate::Rejected(message)]);
        }
    }
    let finished = step.finish()?;
    let pending = place.append(finished.change);
    drop(slot);
    if let Err(error) = pending.committed().await {
        head::forget(app, room, &finished.reading).await?;
        return Err(error.into());
    }
    known.committed();
    end_typing(app, room, &finished.appended).await?;
    Ok(fates)
}

/// Takes an event that does not follow what the room has last, and if it is history those after it, as far as one change can
/// tell of them.
async fn take_apart(
    step: &mut Step<'_>,
    known: &mut Known,
    items: &[Item],
    fates: &mut Vec<Fate>,
) -> Result<()> {
    for item in items {
        let Some(fate) = fork::take(step, known, item).await? else {
            break;
        };
        let is_missing = matches!(fate, Fate::Missing(_));
        fates.push(fate);
        if is_missing || step.past.has_opened() {
            break;
        }
    }
    Ok(())
}

/// The head of a locked room, once all that was handed to the log for it is committed.
pub(super) async fn settled<'a>(
    app: &App,
    room: &Room,
    slot: &'a mut MutexGuard<'_, Option<Head>>,
) -> Result<&'a mut Head> {
    for _ in 0..TRIES {
        let version = head::in_slot(app, room, slot).await?.row.version;
        if room.seen().version >= version {
            break;
        }
        app.log.settled().await?;
        if room.seen().version < version {
            **slot = None;
        }
    }
    head::in_slot(app, room, slot).await
}

/// Takes an event that follows what the room has last. `None` if it follows something else.
async fn take_on_top(step: &mut Step<'_>, known: &mut Known, item: &Item) -> Result<Option<Fate>> {
    if known.is_here(&item.pdu) {
        return Ok(Some(finish_known(step, known, item)));
    }
    let follows = |id: &OwnedEventId| step.extremities.iter().any(|extremity| extremity.id == *id);
    let is_on_top = item.before.is_none()
        && !item.is_history
        && item.opinion == Opinion::Unknown
        && item.pdu.prev_events.len() == step.extremities.len()
        && item.pdu.prev_events.iter().all(follows);
    if !is_on_top {
        return Ok(None);
    }
    let auth = match known.auth_events(&item.pdu) {
        Ok(auth) => auth,
        Err(missing) => {
            return Ok(Some(Fate::Missing(Missing {
                auth_events: missing,
                ..Missing::default()
            })));
        }
    };
    let state = step.state_at(&judge::keys(step.room, &item.pdu)).await?;
    let before = step.current();
    let verdict = match judge::by_auth_events(step.room, &item.pdu, &auth, &state) {
        Verdict::Accepted => judge::by_state(step.room, &item.pdu, &state),
        rejected @ Verdict::Rejected(_) => rejected,
    };
    if verdict == Verdict::Accepted && lacks_signature(step, item).await? {
        return Ok(Some(Fate::Unsigned));
    }
    let placed = place(step.app, known, item, &auth, before)?;
    write(step, item);
    match verdict {
        Verdict::Accepted => {
            let (pdu, placed) = redacted_early(step, known, item, placed, &state)?;
            known.meet_early(step, &pdu.event_id, placed.nid);
            step.add_on_top(pdu, placed, &state).await?;
            known.arrived(step);
            Ok(Some(Fate::Accepted))
        }
        Verdict::Rejected(reason) => {
            hide(step, known, item, placed, flags::REJECTED)?;
            Ok(Some(Fate::Rejected(reason)))
        }
    }
}

/// What became of an event when it was here first, so that nobody gets by asking twice what was refused once.
fn finish_known(step: &mut Step<'_>, known: &Known, item: &Item) -> Fate {
    write(step, item);
    if item.is_history {
        step.past.close(&item.pdu.event_id);
    }
    match known.flags(&item.pdu) {
        kept if kept & flags::REJECTED != 0 => Fate::Rejected("it was rejected before".to_owned()),
        kept if kept & flags::SOFT_FAILED != 0 => Fate::SoftFailed,
        _ => Fate::Known,
    }
}

fn write(step: &mut Step<'_>, item: &Item) {
    step.also(&item.writes, Vec::new());
}

/// What the room keeps of an event that is not its own.
fn place(
    app: &App,
    known: &Known,
    item: &Item,
    auth: &[Arc<Event>],
    before: crate::storage::state::StateAt,
) -> Result<Placed> {
    let stored: Option<Stub> = known.stub(&item.pdu);
    Ok(Placed {
        nid: match stored {
            Some(stub) => stub.nid,
            None => EventNid(app.log.new_id()?),
        },
        is_stored: stored.is_some(),
        sender: item.sender,
        txn: item.txn.clone(),
        before,
        auth: auth.iter().map(|event| event.nid).collect(),
        flags: if item.is_ours { flags::OURS } else { 0 },
        redacted_by: None,
    })
}

/// Whether the room's policy server has not signed an event that it must sign (step 7 of the checks). What is older than
/// what is known of the room is no news for anybody.
async fn lacks_signature(step: &Step<'_>, item: &Item) -> Result<bool> {
    if item.is_history || item.is_return {
        return Ok(false);
    }
    let policy = step.policy().await?;
    Ok(policy.is_some_and(|policy| !policy.recommends(step.room, &item.pdu)))
}

/// Keeps an event that nobody is shown.
fn hide(
    step: &mut Step<'_>,
    known: &mut Known,
    item: &Item,
    mut placed: Placed,
    flag: i64,
) -> Result<()> {
    placed.flags = flag;
    let mut pdu = Arc::clone(&item.pdu);
    if flag & flags::REJECTED != 0 {
        Arc::make_mut(&mut pdu).rejected = true;
    }
    let event = step.event(pdu, &placed)?;
    step.store(&event, &placed, None);
    known.hidden(step, event);
    Ok(())
}

/// An event is redacted when it comes, if the redaction has come before it.
fn redacted_early(
    step: &Step<'_>,
    known: &Known,
    item: &Item,
    mut placed: Placed,
    state: &head::StateMap,
) -> Result<(Arc<Pdu>, Placed)> {
    for redaction in known.redactions(&item.pdu) {
        if step.redacts(&redaction.pdu, &item.pdu, state) {
            placed.redacted_by = Some(redaction.nid);
            let redacted = homing_federation::redact(&item.pdu, step.room.rules)?;
            return Ok((Arc::new(redacted), placed));
        }
    }
    Ok((Arc::clone(&item.pdu), placed))
}
