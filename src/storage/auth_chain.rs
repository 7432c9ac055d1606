//! The auth events of events, and theirs: walks over `event.auth_nids`.

use std::collections::HashSet;

use super::{Db, EventNid, Result, unpack};
use crate::{args, sql};

/// How many events are looked up at once.
const BATCH: usize = 1000;

/// All events on which `events` rest: their auth events, the auth events of these, and so on, each once, the nearest
/// first. One of `events` is in it only if another rests on it. `None` if there are more than `limit`.
pub async fn closure(db: &Db, events: &[EventNid], limit: usize) -> Result<Option<Vec<EventNid>>> {
    let mut chain = Vec::new();
    let mut met = HashSet::new();
    let mut level = events.to_vec();
    while !level.is_empty() {
        let mut next = Vec::new();
        for batch in level.chunks(BATCH) {
            let query = sql!("SELECT auth_nids FROM event WHERE nid ", list(1));
            for row in db.rows(query, args![batch]).await? {
                let auth = unpack(&row.get::<Vec<u8>>(0)?);
                next.extend(
                    auth.into_iter()
                        .map(EventNid)
                        .filter(|nid| met.insert(*nid)),
                );
            }
            if met.len() > limit {
                return Ok(None);
            }
        }
        chain.extend(&next);
        level = next;
    }
    Ok(Some(chain))
}

/// Which events each of some events names as those that allow it.
pub async fn edges(db: &Db, nids: &[EventNid]) -> Result<Vec<(EventNid, Vec<EventNid>)>> {
    if nids.is_empty() {
        return Ok(Vec::new());
    }
    let query = sql!("SELECT nid, auth_nids FROM event WHERE nid ", list(1));
    db.rows(query, args![nids])
        .await?
        .iter()
        .map(|row| {
            let auth = unpack(&row.get::<Vec<u8>>(1)?);
            Ok((
                EventNid(row.get(0)?),
                auth.into_iter().map(EventNid).collect(),
            ))
        })
        .collect()
}
