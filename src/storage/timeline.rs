//! `event`, in the order of a room's history.

use std::{cmp::Reverse, collections::HashMap};

use ruma::{api::Direction, room_version_rules::RoomVersionRules};

use super::{
    Db, Event, EventNid, Pos, Result, RoomNid, Row, Sql, TypeNid, UserNid, events::readable,
};
use crate::{args, sql};

/// A place in a room's history: just after the event with this depth and order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The depth of the event.
    pub depth: i64,
    /// Its order among those of the same depth.
    pub ord: i64,
}

impl Place {
    /// Before everything.
    pub const START: Self = Self { depth: -1, ord: 0 };
    /// After everything.
    pub const END: Self = Self {
        depth: i64::MAX,
        ord: i64::MAX,
    };

    /// Just after an event.
    #[must_use]
    pub fn after(event: &Event) -> Self {
        Self {
            depth: event.depth(),
            ord: event.ord,
        }
    }

    /// Just before an event.
    #[must_use]
    pub fn before(event: &Event) -> Self {
        Self::after(event).just_before()
    }

    fn just_before(self) -> Self {
        Self {
            ord: self.ord.saturating_sub(1),
            ..self
        }
    }
}

/// A part of a room's history, to be read from one end.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// The room.
    pub room: RoomNid,
    /// Where to begin.
    pub from: Place,
    /// Where to end.
    pub to: Place,
    /// Towards newer or older events.
    pub direction: Direction,
    /// Without what came to this server after this.
    pub upto: Pos,
}

impl Range {
    /// All before a place, newest first.
    #[must_use]
    pub fn before(room: RoomNid, from: Place) -> Self {
        Self {
            room,
            from,
            to: Place::START,
            direction: Direction::Backward,
            upto: Pos::MAX,
        }
    }

    /// All after a place, oldest first.
    #[must_use]
    pub fn after(room: RoomNid, from: Place) -> Self {
        Self {
            room,
            from,
            to: Place::END,
            direction: Direction::Forward,
            upto: Pos::MAX,
        }
    }

    /// The place at which to go on after an event that is at `place`.
    #[must_use]
    pub fn beyond(&self, place: Place) -> Place {
        match self.direction {
            Direction::Forward => place,
            Direction::Backward => place.just_before(),
        }
    }
}

/// The next `limit` events of a range that clients may be shown, without those that cannot be read; and the place of the last
/// of them, if there are so many.
pub async fn page(
    db: &Db,
    rules: &RoomVersionRules,
    range: &Range,
    limit: i64,
) -> Result<(Vec<Event>, Option<Place>)> {
    let query = match range.direction {
        Direction::Backward => sql!(
            "SELECT ",
            (event_columns),
            ", e.depth FROM event e JOIN event_json j ON j.nid = e.nid WHERE e.room_nid = $1 AND (e.depth, e.ord) <= ($2, $3) ",
            "AND (e.depth, e.ord) > ($4, $5) AND e.ord <= $7 AND e.flags & 7 = 0 ",
            "ORDER BY e.depth DESC, e.ord DESC LIMIT $6"
        ),
        Direction::Forward => sql!(
            "SELECT ",
            (event_columns),
            ", e.depth FROM event e JOIN event_json j ON j.nid = e.nid WHERE e.room_nid = $1 AND (e.depth, e.ord) > ($2, $3) ",
            "AND (e.depth, e.ord) <= ($4, $5) AND e.ord <= $7 AND e.flags & 7 = 0 ORDER BY e.depth, e.ord LIMIT $6"
        ),
    };
    let rows = db.rows(query, bounds(range, limit)).await?;
    let is_full = i64::try_from(rows.len()).is_ok_and(|read| read >= limit);
    let last = match rows.last().filter(|_| is_full) {
        Some(row) => Some(Place {
            depth: row.get(18)?,
            ord: row.get(4)?,
        }),
        None => None,
    };
    Ok((events(&rows, rules)?, last))
}

/// Those events that can be read.
fn events(rows: &[Row], rules: &RoomVersionRules) -> Result<Vec<Event>> {
    let events = rows.iter().map(|row| readable(row, rules));
    events.filter_map(Result::transpose).collect()
}

fn bounds(range: &Range, limit: i64) -> Vec<super::Arg> {
    let (from, to) = (range.from, range.to);
    // The order of what is in the log is its position there; that of fetched history is less than any.
    args![
        range.room, from.depth, from.ord, to.depth, to.ord, limit, range.upto
    ]
}

/// What can be known of an event without its JSON.
#[derive(Clone, Copy, Debug)]
pub struct Outline {
    /// The event.
    pub nid: EventNid,
    /// Just after it.
    pub place: Place,
    /// Its type.
    pub type_nid: TypeNid,
    /// Who sent it.
    pub sender: UserNid,
    /// See [`flags`](super::events::flags).
    pub flags: i64,
}

/// The next `limit` events of a range, without their JSON.
pub async fn outlines(db: &Db, range: &Range, limit: i64) -> Result<Vec<Outline>> {
    let query = match range.direction {
        Direction::Backward => sql!(
            "SELECT nid, depth, ord, type_nid, sender_nid, flags FROM event WHERE room_nid = $1 ",
            "AND (depth, ord) <= ($2, $3) AND (depth, ord) > ($4, $5) AND ord <= $7 AND flags & 7 = 0 ",
            "ORDER BY depth DESC, ord DESC LIMIT $6"
        ),
        Direction::Forward => sql!(
            "SELECT nid, depth, ord, type_nid, sender_nid, flags FROM event WHERE room_nid = $1 ",
            "AND (depth, ord) > ($2, $3) AND (depth, ord) <= ($4, $5) AND ord <= $7 AND flags & 7 = 0 ",
            "ORDER BY depth, ord LIMIT $6"
        ),
    };
    db.rows(query, bounds(range, limit))
        .await?
        .iter()
        .map(outline)
        .collect()
}

fn outline(row: &Row) -> Result<Outline> {
    Ok(Outline {
        nid: EventNid(row.get(0)?),
        place: Place {
            depth: row.get(1)?,
            ord: row.get(2)?,
        },
        type_nid: TypeNid(row.get(3)?),
        sender: UserNid(row.get(4)?),
        flags: row.get(5)?,
    })
}

/// The place in a room's history of the event that was the last to come up to a position.
pub async fn place_at(db: &Db, room: RoomNid, pos: Pos) -> Result<Place> {
    let query = sql!(
        "SELECT depth, ord FROM event WHERE room_nid = $1 AND pos <= $2 ORDER BY pos DESC LIMIT 1"
    );
    place(db, query, args![room, pos]).await
}

/// The end of a room's history as it was known at a position. That need not be the event that came last: a branch may have
/// come late.
pub async fn end_at(db: &Db, room: RoomNid, pos: Pos) -> Result<Place> {
    let query = sql!(
        "SELECT depth, ord FROM event WHERE room_nid = $1 AND pos <= $2 AND flags & 512 = 0 ",
        "ORDER BY pos DESC LIMIT 1"
    );
    place(db, query, args![room, pos]).await
}

async fn place(db: &Db, query: &'static Sql, args: Vec<super::Arg>) -> Result<Place> {
    match db.maybe(query, args).await? {
        Some(row) => Ok(Place {
            depth: row.get(0)?,
            ord: row.get(1)?,
        }),
        None => Ok(Place::START),
    }
}

/// For each of some rooms its latest events that clients may be shown: at most `limit` of those after `since` and up to
/// `until`, in the order of the log, oldest first. `rules` knows the rules of each room.
pub async fn latest<'r>(
    db: &Db,
    rooms: &[RoomNid],
    rules: impl Fn(RoomNid) -> Option<&'r RoomVersionRules>,
    since: Pos,
    until: Pos,
    limit: i64,
) -> Result<HashMap<RoomNid, Vec<Event>>> {
    let mut found: HashMap<RoomNid, Vec<Event>> = HashMap::new();
    if rooms.is_empty() || limit <= 0 {
        return Ok(found);
    }
    let query = sql!(
        "SELECT ",
        (event_columns),
        " FROM ",
        rows(1),
        " JOIN event e ON e.room_nid = list.value JOIN event_json j ON j.nid = e.nid ",
        "WHERE e.pos > $2 AND e.pos <= $3 AND e.flags & 7 = 0 AND e.pos >= coalesce((SELECT l.pos FROM event l ",
        "WHERE l.room_nid = list.value AND l.pos <= $3 AND l.flags & 7 = 0 ORDER BY l.pos DESC LIMIT 1 OFFSET $4), 0)"
    );
    for row in db
        .rows(query, args![rooms, since, until, limit - 1])
        .await?
    {
        let room = RoomNid(row.get(2)?);
        if let Some(rules) = rules(room) {
            found
                .entry(room)
                .or_default()
                .extend(readable(&row, rules)?);
        }
    }
    for events in found.values_mut() {
        events.sort_unstable_by_key(|event| event.pos);
    }
    Ok(found)
}

/// Events sent at or after (`Forward`), at or before (`Backward`) a time in milliseconds since 1970, nearest first.
pub async fn around(
    db: &Db,
    rules: &RoomVersionRules,
    room: RoomNid,
    ts: i64,
    direction: Direction,
    limit: i64,
) -> Result<Vec<Event>> {
    let query = match direction {
        Direction::Forward => sql!(
            "SELECT ",
            (event_columns),
            " FROM event e JOIN event_json j ON j.nid = e.nid WHERE e.room_nid = $1 AND e.ts >= $2 AND e.flags & 7 = 0 ",
            "ORDER BY e.ts, e.depth, e.ord LIMIT $3"
        ),
        Direction::Backward => sql!(
            "SELECT ",
            (event_columns),
            " FROM event e JOIN event_json j ON j.nid = e.nid WHERE e.room_nid = $1 AND e.ts <= $2 AND e.flags & 7 = 0 ",
            "ORDER BY e.ts DESC, e.depth DESC, e.ord DESC LIMIT $3"
        ),
    };
    events(&db.rows(query, args![room, ts, limit]).await?, rules)
}

/// Sorts events as a range gives them.
pub fn sort(events: &mut [Event], direction: Direction) {
    match direction {
        Direction::Forward => events.sort_unstable_by_key(Place::after),
        Direction::Backward => events.sort_unstable_by_key(|event| Reverse(Place::after(event))),
    }
}
