//! Reading the directory of published rooms, page by page, the largest rooms first.

use ruma::{
    UInt,
    directory::{Filter, RoomNetwork},
};

use serde::Deserialize;

use super::summary::{self, Summary};
use crate::{
    app::App,
    error::{Error, Result},
    storage::{RoomNid, summaries},
};

/// How many rooms an answer has where the request does not say.
const DEFAULT_LIMIT: usize = 100;
/// The most rooms in one answer.
const MAX_LIMIT: usize = 500;
/// How many rooms are read at once.
const BATCH: u16 = 250;
/// The most rooms that are read for one page; a page may have fewer rooms than asked for, and a next page.
const MAX_READ: usize = 5_000;

/// A place in the directory: a number of members, and a room that has so many.
pub type Place = (i64, RoomNid);

/// Which way to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
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

impl From<Filter> for Query {
    fn from(filter: Filter) -> Self {
        let term = filter.generic_search_term;
        let room_types = filter.room_types.iter();
        Self {
            term: term
                .map(|term| term.trim().to_lowercase())
                .filter(|term| !term.is_empty()),
            room_types: room_types
                .map(|kind| kind.as_str().map(ToOwned::to_owned))
                .collect(),
        }
    }
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
#[derive(Debug, Default)]
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

/// Which networks a request is about.
#[derive(Debug, Deserialize)]
pub struct Networks {
    #[serde(rename = "include_all_networks")]
    _all: Option<bool>,
    #[serde(rename = "third_party_instance_id")]
    _one: Option<String>,
}

/// Checks what the body of a request says of networks: ruma takes what is no boolean for `false`, and what is no text for
/// nothing.
///
/// # Errors
/// `M_BAD_JSON`.
pub fn check_networks(body: &[u8]) -> Result<()> {
    if body.is_empty() {
        return Ok(());
    }
    let read = serde_json::from_slice::<Networks>(body);
    read.map(drop)
        .map_err(|error| Error::bad_json(error.to_string()))
}

/// The page of the directory that a request asks for. The rooms of third-party networks are none here.
///
/// # Errors
/// `M_INVALID_PARAM` if `since` is no token.
pub async fn asked(
    app: &App,
    since: Option<&str>,
    limit: Option<UInt>,
    network: &RoomNetwork,
    query: &Query,
) -> Result<Page> {
    if matches!(network, RoomNetwork::ThirdParty(_)) {
        return Ok(Page::default());
    }
    let limit = match limit.map(u64::from) {
        // As other servers have it: no limit of the client's.
        Some(0) => MAX_LIMIT,
        Some(limit) => usize::try_from(limit).unwrap_or(MAX_LIMIT).min(MAX_LIMIT),
        None => DEFAULT_LIMIT,
    };
    let since = since
        .map(|token| parse(token).ok_or_else(|| Error::invalid_param("`since` is no token")))
        .transpose()?;
    page(app, since, limit, query).await
}

/// The token of the next page, which begins at a place.
#[must_use]
pub fn token_after(place: Place) -> String {
    token(Direction::Forward, place)
}

/// The token of the page before, which ends at a place.
#[must_use]
pub fn token_before(place: Place) -> String {
    token(Direction::Backward, place)
}

/// `n<members>_<room>` to go on, `p<members>_<room>` to go back.
fn token(direction: Direction, (members, room): Place) -> String {
    let sign = match direction {
        Direction::Forward => 'n',
        Direction::Backward => 'p',
    };
    format!("{sign}{members}_{}", room.0)
}

fn parse(text: &str) -> Option<(Direction, Place)> {
    let direction = match text.get(..1)? {
        "n" => Direction::Forward,
        "p" => Direction::Backward,
        _ => return None,
    };
    let (members, room) = text[1..].split_once('_')?;
    let place = (members.parse().ok()?, RoomNid(room.parse().ok()?));
    Some((direction, place)).filter(|_| token(direction, place) == text)
}

/// At most `limit` rooms of the directory: from its start, or from a place in one direction.
async fn page(
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
