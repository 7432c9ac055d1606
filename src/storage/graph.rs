//! `event`, along the edges of a room's graph, for other servers.

use ruma::room_version_rules::RoomVersionRules;

use super::{
    Db, Event, EventNid, Result, RoomNid,
    events::{json, readable},
    timeline::Place,
};
use crate::{args, sql};

/// How many events are looked up at once.
const BATCH: usize = 1000;

/// The last `limit` events of a room's history at or before a place, newest first, also those that clients are not
/// shown.
pub async fn before(
    db: &Db,
    rules: &RoomVersionRules,
    room: RoomNid,
    place: Place,
    limit: i64,
) -> Result<Vec<Event>> {
    let query = sql!(
        "SELECT ",
        (event_columns),
        " FROM event e JOIN event_json j ON j.nid = e.nid WHERE e.room_nid = $1 AND (e.depth, e.ord) <= ($2, $3) ",
        "AND e.flags & 1 = 0 ORDER BY e.depth DESC, e.ord DESC LIMIT $4"
    );
    db.rows(query, args![room, place.depth, place.ord, limit])
        .await?
        .iter()
        .filter_map(|row| readable(row, rules).transpose())
        .collect()
}

/// The room of an event, if the event is known here.
pub async fn room_of(db: &Db, event_id: &str) -> Result<Option<String>> {
    let query = sql!(
        "SELECT r.room_id FROM event e JOIN room r ON r.nid = e.room_nid WHERE e.event_id = $1"
    );
    let row = db.maybe(query, args![event_id]).await?;
    row.map(|row| row.get(0)).transpose()
}

/// The JSON of events, in no particular order, without those that were rejected, and those that cannot be read: a text that is
/// no JSON would spoil the whole list.
pub async fn texts(db: &Db, nids: &[EventNid]) -> Result<Vec<String>> {
    let query = sql!(
        "SELECT j.json, e.event_id FROM event e JOIN event_json j ON j.nid = e.nid WHERE e.flags & 2 = 0 AND e.nid ",
        list(1)
    );
    let rows = db.rows(query, args![nids]).await?;
    rows.iter()
        .filter_map(|row| json(row, 0, 1).transpose())
        .collect()
}

/// The ids of events, in no particular order, without those that were rejected.
pub async fn ids(db: &Db, nids: &[EventNid]) -> Result<Vec<String>> {
    let query = sql!(
        "SELECT event_id FROM event WHERE flags & 2 = 0 AND nid ",
        list(1)
    );
    let mut found = Vec::with_capacity(nids.len());
    for batch in nids.chunks(BATCH) {
        for row in db.rows(query, args![batch]).await? {
            found.push(row.get(0)?);
        }
    }
    Ok(found)
}
