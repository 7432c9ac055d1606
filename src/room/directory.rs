//! Reading the directory of published rooms, page by page, the largest rooms first.

use super::summary::{self, Summary};
use crate::{
    app::App,
    error::Result,
    storage::{RoomNid, summaries},
};

/// How many rooms are read at once.
const BATCH: u16 = 250;
/// The most rooms that are read for one page; a page may have fewer rooms than asked for, and a next page.
const MAX_READ: usize = 5_000;

/// A place in the directory: a number of members, and a room that has so many.
pub type Place = (i64, RoomNid);

/// Which way to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To smaller rooms.
    Forward,
    /// To larger rooms.
    Backward,
}

/// Which rooms are asked for.
#[derive(Debug, Default)]
pub struct Query {
    /// What the name, topic or alias has in it, in lower case.
    pub term: Option<String>,
    /// The room types; none: all. `None` stands for rooms without a type.
    pub room_types: Vec<Option<String>>,
}

impl Query {
    fn wants(&self, room: &Summary) -> bool {
        let of_type = self.room_types.is_empty() || self.room_types.contains(&room.room_type);
        of_type
            && self.term.as_ref().is_none_or(|term| {
                let alias = room.canonical_alias.as_ref().map(|alias| alias.as_str());
                [room.name.as_deref(), room.topic.as_deref(), alias]
                    .into_iter()
                    .flatten()
                    .any(|text| text.to_lowercase().contains(term))
            })
    }
}

/// A page of the directory.
#[derive(Debug)]
pub struct Page {
    /// The rooms, the largest first.
    pub rooms: Vec<Summary>,
    /// Where the page before ends, if there may be one.
    pub before: Option<Place>,
    /// Where the next page begins, if there may be one.
    pub after: Option<Place>,
    /// How many rooms the whole directory has.
    pub total: i64,
}

/// At most `limit` rooms of the directory: from its start, or from a place in one direction.
///
/// # Errors
/// If the database fails.
pub async fn page(
    app: &App,
    since: Option<(Direction, Place)>,
    limit: usize,
    query: &Query,
) -> Result<Page> {
    let total = summaries::published_count(&app.db).await?;
    let (direction, start) = since.unwrap_or((Direction::Forward, (i64::MAX, RoomNid(0))));
    let mut rooms: Vec<Summary> = Vec::new();
    let mut place = start;
    let mut more = true;
    let mut read = 0;
    while rooms.len() <= limit && more && read < MAX_READ {
        let rows = match direction {
            Direction::Forward => summaries::published_after(&app.db, place, BATCH.into()).await?,
            Direction::Backward => {
                summaries::published_before(&app.db, place, BATCH.into()).await?
            }
        };
        more = rows.len() == usize::from(BATCH);
        read += rows.len();
        place = rows.last().map_or(place, |row| (row.joined_count, row.nid));
        let batch = summary::of_rows(app, rows).await?;
        rooms.extend(batch.into_iter().filter(|room| query.wants(room)));
    }
    let at = |room: &Summary| (room.joined_count, room.nid);
    if rooms.len() > limit {
        rooms.truncate(limit);
        place = rooms.last().map_or(place, at);
        more = true;
    }
    // What was read up to now is behind the reader, whichever way they go.
    let onward = more.then_some(place);
    let back = rooms.first().map_or(beside(direction, start), at);
    let (before, after) = match direction {
        Direction::Forward => (since.map(|_| back), onward),
        Direction::Backward => (onward, Some(back)),
    };
    if direction == Direction::Backward {
        rooms.reverse();
    }
    Ok(Page {
        rooms,
        before,
        after,
        total,
    })
}

/// The place from which the way back begins with the room at `start` itself.
fn beside(direction: Direction, (members, RoomNid(room)): Place) -> Place {
    match direction {
        Direction::Forward => (members, RoomNid(room.saturating_add(1))),
        Direction::Backward => (members, RoomNid(room.saturating_sub(1))),
    }
}
