//! The one door: how an event of this server enters a room.
//!
//! Computed under the room's lock on the room's head: authorized, hashed, signed. What belongs to it (position, state,
//! members, relations, counts, transaction id) travels as one [`Change`]. The head moves on when the change is handed to
//! the log, so that the next event need not wait for the disk; if the change fails, the head is read again.
//!
//! In a room with a policy server an event is made and given up again, signed there while nobody holds the room, and then
//! let in as if another server had sent it: where the room has moved on meanwhile, it is a branch.

mod counts;
mod draft;
mod members;
pub(in crate::room) mod names;
mod servers;
pub(in crate::room) mod step;

use std::sync::Arc;

use homing_federation::Pdu;
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedUserId, UserId,
    events::TimelineEventType,
};

use super::{
    head, policy_server,
    receive::{Fate, Received, take},
    visibility::membership_of,
};
use crate::{
    app::App,
    auth::Requester,
    bus::Effect,
    error::{Error, Result},
    log::AppendError,
    rooms::Room,
    storage::{self, DeviceNid, Event, EventNid, Membership, UserNid, Write},
    typing,
};
use names::Names;
use step::Step;

/// How often a change is computed again because the room changed meanwhile.
const TRIES: usize = 5;

/// An event to be.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Its type.
    pub event_type: String,
    /// Its state key, if it is a state event.
    pub state_key: Option<String>,
    /// Its content.
    pub content: CanonicalJsonObject,
    /// What it redacts, if it is a redaction.
    pub redacts: Option<OwnedEventId>,
    /// When it was sent, if not now.
    pub ts: Option<MilliSecondsSinceUnixEpoch>,
}

impl NewEvent {
    /// A state event.
    #[must_use]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers have a type of ruma's or a text"
    )]
    pub fn state(
        event_type: impl ToString,
        state_key: impl Into<String>,
        content: CanonicalJsonObject,
    ) -> Self {
        Self {
            event_type: event_type.to_string(),
            state_key: Some(state_key.into()),
            content,
            redacts: None,
            ts: None,
        }
    }

    /// An event that is not state.
    #[must_use]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers have a type of ruma's or a text"
    )]
    pub fn message(event_type: impl ToString, content: CanonicalJsonObject) -> Self {
        Self {
            event_type: event_type.to_string(),
            state_key: None,
            content,
            redacts: None,
            ts: None,
        }
    }
}

/// A local user who sends an event.
#[derive(Clone, Debug)]
pub struct Sender {
    /// The user's id.
    pub id: OwnedUserId,
    /// The user.
    pub user: UserNid,
    /// The device, and the transaction id that it gave the request.
    pub txn: Option<(DeviceNid, Arc<str>)>,
}

impl Sender {
    /// The requester, without a transaction id.
    #[must_use]
    pub fn of(requester: &Requester) -> Self {
        Self {
            id: requester.user_id.clone(),
            user: requester.user,
            txn: None,
        }
    }

    /// The requester, with the transaction id of the request.
    #[must_use]
    pub fn with_txn(requester: &Requester, txn: &str) -> Self {
        let txn = Some((requester.device, txn.into()));
        Self {
            txn,
            ..Self::of(requester)
        }
    }
}

/// An event that has entered a room.
#[derive(Clone, Debug)]
pub struct Appended {
    /// The event.
    pub nid: EventNid,
    /// Its id.
    pub event_id: OwnedEventId,
}

/// Lets one event enter a room; it is durable when this returns.
///
/// # Errors
/// `M_FORBIDDEN` if the room's rules do not allow it, `M_TOO_LARGE` and `M_BAD_JSON` if it is no event.
pub async fn append(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    event: NewEvent,
) -> Result<Appended> {
    let mut appended = append_all(app, room, sender, vec![event]).await?;
    appended
        .pop()
        .ok_or_else(|| Error::internal("an event was appended and is not there"))
}

/// Lets some events enter a room, all of them or none.
///
/// # Errors
/// Those of [`append`].
pub async fn append_all(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    events: Vec<NewEvent>,
) -> Result<Vec<Appended>> {
    append_with(app, room, sender, events, &[], Vec::new).await
}

/// Who is no longer in a room does not type there.
pub(super) async fn end_typing(app: &App, room: &Arc<Room>, events: &[Arc<Event>]) -> Result<()> {
    for event in events {
        if event.pdu.kind == TimelineEventType::RoomMember
            && let Some(Ok(id)) = event.pdu.state_key.as_deref().map(UserId::parse)
            && let Some(user) = app.names.find_user(&app.db, &id).await?
        {
            let is_gone = if app.is_local(&id) {
                !room.seen().local.contains_key(&user)
            } else {
                membership_of(event) != Membership::Join
            };
            if is_gone {
                typing::stop(app, room, user);
            }
        }
    }
    Ok(())
}

/// The same, with other writes and effects that belong to the events. Effects are for rooms that are being created: no policy
/// server is in those.
///
/// # Errors
/// Those of [`append`].
pub async fn append_with(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    events: Vec<NewEvent>,
    writes: &[Write],
    effects: impl Fn() -> Vec<Effect>,
) -> Result<Vec<Appended>> {
    let is_exempt =
        |event: &NewEvent| policy_server::is_exempt(&event.event_type, event.state_key.as_deref());
    if policy_server::of(app, room).await?.is_some() && !events.iter().all(is_exempt) {
        return Box::pin(append_signed(app, room, sender, events, writes)).await;
    }
    let names = match Names::find(app, &events).await? {
        Some(names) => names,
        None => {
            may_send(app, room, sender, &events).await?;
            Names::give(app, &events).await?
        }
    };
    for _ in 0..TRIES {
        let place = app.log.place().await?;
        let mut slot = room.head.lock().await;
        let head = head::in_slot(app, room, &mut slot).await?;
        let mut step = Step::new(app, room, head, &names);
        step.also(writes, effects());
        for event in &events {
            step.add(sender, event.clone()).await?;
        }
        let finished = step.finish()?;
        let pending = place.append(finished.change);
        drop(slot);
        match pending.committed().await {
            Ok(_) => {
                end_typing(app, room, &finished.appended).await?;
                let appended = finished.appended.into_iter().map(|event| Appended {
                    nid: event.nid,
                    event_id: event.pdu.event_id.clone(),
                });
                return Ok(appended.collect());
            }
            Err(error) => {
                head::forget(app, room, &finished.reading).await?;
                if !matches!(error, AppendError::Conflict) {
                    return Err(error.into());
                }
            }
        }
    }
    Err(AppendError::Busy.into())
}

/// Lets events enter a room that uses a policy server, one after the other. The writes go with the first.
async fn append_signed(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    events: Vec<NewEvent>,
    writes: &[Write],
) -> Result<Vec<Appended>> {
    let mut appended = Vec::with_capacity(events.len());
    for event in events {
        let writes = if appended.is_empty() { writes } else { &[] };
        appended.push(append_one_signed(app, room, sender, event, writes).await?);
    }
    Ok(appended)
}

async fn append_one_signed(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    event: NewEvent,
    writes: &[Write],
) -> Result<Appended> {
    for _ in 0..TRIES {
        let pdu = {
            let mut slot = room.head.lock().await;
            let head = head::in_slot(app, room, &mut slot).await?;
            let nameless = Names::default();
            let step = Step::new(app, room, head, &nameless);
            let (pdu, state) = step.build(sender, event.clone()).await?;
            step.check_relation(sender.user, &pdu).await?;
            step.check_redaction(&pdu, &state).await?;
            pdu
        };
        let received = Received {
            is_ours: true,
            txn: sender.txn.clone(),
            writes: writes.to_vec(),
            ..Received::new(policy_server::signed(app, room, Arc::new(pdu)).await?)
        };
        if let Some(appended) = bring(app, room, received).await? {
            return Ok(appended);
        }
    }
    Err(AppendError::Busy.into())
}

/// Lets a whole event of this server enter a room. `None` if it lacks the signature of a policy server that the room has
/// got meanwhile.
///
/// # Errors
/// `M_FORBIDDEN` if the room's rules do not allow it any more.
pub(super) async fn bring(
    app: &App,
    room: &Arc<Room>,
    received: Received,
) -> Result<Option<Appended>> {
    let event_id = received.pdu.event_id.clone();
    match take(app, room, vec![received]).await?.pop() {
        Some(Fate::Accepted | Fate::Known) => {}
        Some(Fate::Unsigned) => return Ok(None),
        Some(Fate::Rejected(reason)) => return Err(Error::forbidden(reason)),
        _ => return Err(Error::forbidden("the room has changed meanwhile")),
    }
    let stubs = storage::events::stubs(&app.db, vec![event_id.to_string()]).await?;
    let stub = stubs.get(event_id.as_str());
    let stub = stub.ok_or_else(|| Error::internal("an event was taken and is not there"))?;
    Ok(Some(Appended {
        nid: stub.nid,
        event_id,
    }))
}

/// An event that could be appended now, as it would be; nothing is kept of it.
///
/// # Errors
/// Those of [`append`].
pub(super) async fn draft(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    event: NewEvent,
) -> Result<Pdu> {
    let mut slot = room.head.lock().await;
    let head = head::in_slot(app, room, &mut slot).await?;
    let nameless = Names::default();
    let step = Step::new(app, room, head, &nameless);
    let (pdu, _) = step.build(sender, event).await?;
    Ok(pdu)
}

/// Refuses what the sender may not send, before its names are written for ever: the first event, on which the others of
/// the change build.
async fn may_send(app: &App, room: &Arc<Room>, sender: &Sender, events: &[NewEvent]) -> Result<()> {
    if let Some(first) = events.first() {
        draft(app, room, sender, first.clone()).await?;
    }
    Ok(())
}
