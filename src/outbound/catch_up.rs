//! What a destination was not sent, read from the database.

use std::sync::Arc;

use ruma::ServerName;

use super::{
    destination::{MOST_BYTES, MOST_PDUS},
    transaction::{Pdu, is_made_by},
};
use crate::{
    app::App,
    error::Result,
    storage::{Pos, ServerNid, destinations},
};

/// The most events of one room. The destination can ask for those before them.
const OF_A_ROOM: usize = 20;

/// Reads what comes next for a destination: of the rooms in which something happened after `after`, those where that is
/// longest ago, and of each of them the latest events after `from`. Answers the events, and how far the destination has
/// come when it has them; `None` if nothing is left.
///
/// # Errors
/// If the database fails.
pub(super) async fn read(
    app: &App,
    server: ServerNid,
    name: &ServerName,
    after: Pos,
    from: Pos,
) -> Result<(Vec<Arc<Pdu>>, Option<Pos>)> {
    let most = i64::try_from(MOST_PDUS).unwrap_or(i64::MAX);
    let rooms = destinations::rooms_behind(&app.db, server, after, most).await?;
    let mut pdus: Vec<Arc<Pdu>> = Vec::new();
    let mut come_to = None;
    let mut bytes = 0;
    for room in rooms {
        let from = from.max(room.from_pos);
        let most = i64::try_from(OF_A_ROOM).unwrap_or(i64::MAX);
        let events = destinations::latest(&app.db, room.room, from, room.upto, most).await?;
        let mut of_room = 0;
        let events: Vec<_> = events
            .into_iter()
            .filter(|event| !is_made_by(name, &event.sender, &event.json))
            .take_while(|event| {
                of_room += event.json.len();
                of_room == event.json.len() || of_room <= MOST_BYTES
            })
            .collect();
        bytes += of_room;
        let is_full = pdus.len() + events.len() > MOST_PDUS || bytes > MOST_BYTES;
        if is_full && !pdus.is_empty() {
            break;
        }
        pdus.extend(events.into_iter().rev().map(|event| {
            Arc::new(Pdu {
                pos: event.pos,
                json: event.json.into(),
            })
        }));
        come_to = Some(room.upto);
    }
    Ok((pdus, come_to))
}
