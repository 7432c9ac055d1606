//! What another server sends of its own accord: the PDUs of a transaction.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use futures_util::{StreamExt as _, stream};
use homing_federation::{Pdu, received::room_id_of};
use ruma::{OwnedEventId, OwnedRoomId, ServerName};
use serde_json::value::RawValue;
use tracing::{debug, error};

use super::{Fate, Received, staging, take, verify::verify};
use crate::{
    app::App,
    error::{Error, Result},
    log::AppendError,
    room::{remote, server_acl},
    rooms::Room,
};

/// How many rooms of a transaction are worked on at the same time.
const ROOMS_AT_ONCE: usize = 10;

/// What is answered for each event: nothing, or why it was not taken.
pub type Answers = BTreeMap<OwnedEventId, Result<(), String>>;

/// Takes the events of a transaction. A text that is no event costs the others nothing; there is an answer for it if it is
/// so near to an event that it has an id. A room that this server has trouble with costs the other rooms nothing.
///
/// # Errors
/// If something could not even be kept, so that it has to be sent again: the database fails.
pub async fn incoming(
    app: &Arc<App>,
    origin: &ServerName,
    pdus: Vec<Box<RawValue>>,
) -> Result<Answers> {
    let mut by_room: BTreeMap<OwnedRoomId, Vec<Box<RawValue>>> = BTreeMap::new();
    for pdu in pdus {
        match room_id_of(pdu.get()) {
            Ok(room) => by_room.entry(room).or_default().push(pdu),
            Err(error) => debug!(%origin, %error, "something that is no event"),
        }
    }
    let mut answers = Answers::new();
    let mut failure = None;
    let mut rooms = stream::iter(by_room)
        .map(|(room, pdus)| in_room(app, origin, room, pdus))
        .buffer_unordered(ROOMS_AT_ONCE);
    // What is begun in the other rooms is finished.
    while let Some(some) = rooms.next().await {
        match some {
            Ok(some) => answers.extend(some),
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(answers),
    }
}

async fn in_room(
    app: &Arc<App>,
    origin: &ServerName,
    id: OwnedRoomId,
    texts: Vec<Box<RawValue>>,
) -> Result<Answers> {
    let mut answers = Answers::new();
    let Some(room) = app.rooms.by_id(&app.db, &app.log, &id).await? else {
        debug!(%origin, room = %id, "events of a room that is not known here");
        return Ok(answers);
    };
    let mut pdus = Vec::with_capacity(texts.len());
    for checked in verify(app, room.rules, texts).await? {
        match checked {
            Ok(pdu) => pdus.push(pdu),
            Err(refused) => {
                debug!(%origin, room = %id, error = %refused, "an event is dropped");
                let reason = refused.to_string();
                answers.extend(refused.event_id.map(|id| (id, Err(reason))));
            }
        }
    }
    if !server_acl::is_allowed(app, &room, origin).await? {
        let reason = "the room's access control list bars this server";
        answers.extend(refused(pdus, reason));
        return Ok(answers);
    }
    if room.seen().local.is_empty() {
        let mut others = Vec::new();
        for pdu in pdus {
            if remote::retract(app, &room, origin, &pdu).await? {
                answers.insert(pdu.event_id.clone(), Ok(()));
            } else {
                others.push(pdu);
            }
        }
        answers.extend(refused(others, "nobody here is in this room"));
        return Ok(answers);
    }
    // Only who is in a room has something to tell of it but their own events.
    let is_inside = room
        .seen()
        .servers
        .get(origin)
        .is_some_and(|server| server.joined > 0);
    let is_theirs = |pdu: &Arc<Pdu>| is_inside || pdu.sender.server_name() == origin;
    let (mut pdus, foreign): (Vec<_>, Vec<_>) = pdus.into_iter().partition(is_theirs);
    answers.extend(refused(foreign, "your server is not in this room"));
    // An event may stand before one that it follows.
    pdus.sort_by_key(|pdu| pdu.depth);
    let mut met = HashSet::new();
    pdus.retain(|pdu| met.insert(pdu.event_id.clone()));
    let mut waiting: Vec<Arc<Pdu>> = Vec::new();
    for (pdu, fate) in fates(app, &room, pdus).await {
        let answer = match fate {
            Some(Fate::Known | Fate::Accepted | Fate::SoftFailed) => Ok(()),
            Some(Fate::Rejected(reason)) => {
                debug!(%origin, event = %pdu.event_id, %reason, "an event was rejected");
                Err(reason)
            }
            // It cannot be judged yet, or this server has trouble with it. Neither events nor signatures are asked for
            // while a transaction waits.
            Some(Fate::Missing(_) | Fate::Unsigned) | None => {
                waiting.push(pdu);
                continue;
            }
        };
        answers.insert(pdu.event_id.clone(), answer);
    }
    let kept = staging::keep(app, &room, origin, &waiting).await?;
    for (index, pdu) in waiting.into_iter().enumerate() {
        let answer = if index < kept {
            Ok(())
        } else {
            Err("too many events of this server wait here".to_owned())
        };
        answers.insert(pdu.event_id.clone(), answer);
    }
    Ok(answers)
}

/// What becomes of some events of a room; `None` if this server has trouble with an event. Then the others are tried
/// without it.
async fn fates(app: &App, room: &Arc<Room>, pdus: Vec<Arc<Pdu>>) -> Vec<(Arc<Pdu>, Option<Fate>)> {
    let received = |pdus: &[Arc<Pdu>]| pdus.iter().cloned().map(Received::new).collect();
    match take(app, room, received(&pdus)).await {
        Ok(fates) => return pdus.into_iter().zip(fates.into_iter().map(Some)).collect(),
        Err(error) => error!(%error, room = %room.id, "events cannot be taken together"),
    }
    let mut fates = Vec::with_capacity(pdus.len());
    for pdu in pdus {
        let fate = match take(app, room, received(std::slice::from_ref(&pdu))).await {
            Ok(mut fates) => fates.pop(),
            Err(Error::Append(AppendError::NullCharacter)) => {
                Some(Fate::Rejected("it has a null character".to_owned()))
            }
            Err(error) => {
                error!(%error, event = %pdu.event_id, "an event cannot be taken");
                None
            }
        };
        fates.push((pdu, fate));
    }
    fates
}

fn refused(pdus: Vec<Arc<Pdu>>, reason: &str) -> Answers {
    pdus.into_iter()
        .map(|pdu| (pdu.event_id.clone(), Err(reason.to_owned())))
        .collect()
}
