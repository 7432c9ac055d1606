//! What another server sends of its own accord: the PDUs of a transaction.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use futures_util::{StreamExt as _, stream};
use homing_federation::{Pdu, received::room_id_of};
use ruma::{OwnedEventId, OwnedRoomId, ServerName};
use serde_json::value::RawValue;
use tracing::debug;

use super::{Fate, Received, staging, take, verify::verify};
use crate::{
    app::App,
    error::Result,
    room::{remote, server_acl},
};

/// How many rooms of a transaction are worked on at the same time.
const ROOMS_AT_ONCE: usize = 10;

/// What is answered for each event: nothing, or why it was not taken.
pub type Answers = BTreeMap<OwnedEventId, Result<(), String>>;

/// Takes the events of a transaction. A text that is no event costs the others nothing; there is no answer for it, since
/// nobody knows its id.
///
/// # Errors
/// If the database fails.
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
    let mut rooms = stream::iter(by_room)
        .map(|(room, pdus)| in_room(app, origin, room, pdus))
        .buffer_unordered(ROOMS_AT_ONCE);
    while let Some(some) = rooms.next().await {
        answers.extend(some?);
    }
    Ok(answers)
}

async fn in_room(
    app: &Arc<App>,
    origin: &ServerName,
    id: OwnedRoomId,
    texts: Vec<Box<RawValue>>,
) -> Result<Answers> {
    let mut answers = Answers::new();
    let Some(room) = app.rooms.by_id(&app.db, || app.head(), &id).await? else {
        debug!(%origin, room = %id, "events of a room that is not known here");
        return Ok(answers);
    };
    let mut pdus = Vec::with_capacity(texts.len());
    for checked in verify(app, room.rules, texts).await? {
        match checked {
            Ok(pdu) => pdus.push(pdu),
            Err(error) => debug!(%origin, room = %id, %error, "an event is dropped"),
        }
    }
    if !server_acl::is_allowed(app, &room, origin).await? {
        return Ok(refused(
            pdus,
            "the room's access control list bars this server",
        ));
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
    // An event may stand before one that it follows.
    pdus.sort_by_key(|pdu| pdu.depth);
    let mut met = HashSet::new();
    pdus.retain(|pdu| met.insert(pdu.event_id.clone()));
    let received = pdus
        .iter()
        .map(|pdu| Received::new(Arc::clone(pdu)))
        .collect();
    let fates = take(app, &room, received).await?;
    let mut waiting: Vec<Arc<Pdu>> = Vec::new();
    for (pdu, fate) in pdus.into_iter().zip(fates) {
        let answer = match fate {
            Fate::Known | Fate::Accepted | Fate::SoftFailed => Ok(()),
            Fate::Rejected(reason) => {
                debug!(%origin, event = %pdu.event_id, %reason, "an event was rejected");
                Err(reason)
            }
            // Neither events nor signatures are asked for while a transaction waits.
            Fate::Missing(_) | Fate::Unsigned => {
                waiting.push(pdu);
                continue;
            }
        };
        answers.insert(pdu.event_id.clone(), answer);
    }
    if !waiting.is_empty() {
        let kept = staging::keep(app, &room, origin, &waiting).await?;
        for pdu in waiting {
            let answer = if kept {
                Ok(())
            } else {
                Err("too many events wait in this room".to_owned())
            };
            answers.insert(pdu.event_id.clone(), answer);
        }
    }
    Ok(answers)
}

fn refused(pdus: Vec<Arc<Pdu>>, reason: &str) -> Answers {
    pdus.into_iter()
        .map(|pdu| (pdu.event_id.clone(), Err(reason.to_owned())))
        .collect()
}
