//! `relation`: which event points to which.

use std::collections::HashSet;

use ruma::{EventId, api::Direction, room_version_rules::RoomVersionRules};

use super::{
    Db, Event, EventNid, Insert, Result, RoomNid, Row, TypeNid, UserNid, Write, events::readable,
    timeline::Range,
};
use crate::{args, sql};

static RELATION: Insert = Insert {
    table: "relation",
    columns: &["parent_nid", "rel_type", "child_nid"],
    key: 3,
    conflict: "ON CONFLICT (parent_nid, rel_type, child_nid) DO NOTHING",
};

/// A new event relates to one of the same room.
#[must_use]
pub fn add(parent: EventNid, rel_type: &str, child: EventNid) -> Write {
    Write::Insert(&RELATION, args![parent, rel_type, child])
}

/// What stands in the place of a relation type for redactions.
pub const REDACTION: &str = "";

static EARLY: Insert = Insert {
    table: "early_relation",
    columns: &["room_nid", "event_id", "rel_type", "nid"],
    key: 4,
    conflict: "ON CONFLICT (room_nid, event_id, rel_type, nid) DO NOTHING",
};

/// A new event relates to one that has not come yet; a redaction with [`REDACTION`].
#[must_use]
pub fn add_early(room: RoomNid, early: &Early) -> Write {
    let (parent, rel_type) = (early.parent.as_str(), early.rel_type.as_str());
    Write::Insert(&EARLY, args![room, parent, rel_type, early.child])
}

/// An event that came before the one that it relates to.
#[derive(Clone, Debug)]
pub struct Early {
    /// The id of the event to which it relates.
    pub parent: String,
    /// How; [`REDACTION`] if it redacts it.
    pub rel_type: String,
    /// The event.
    pub child: EventNid,
}

impl Early {
    /// Whether the event redacts the other.
    #[must_use]
    pub fn is_redaction(&self) -> bool {
        self.rel_type == REDACTION
    }

    /// Whether it is this event that it relates to.
    #[must_use]
    pub fn is_of(&self, event: &EventId) -> bool {
        self.parent == event.as_str()
    }
}

/// The events that came before some events to which they relate.
pub async fn early(db: &Db, room: RoomNid, event_ids: Vec<String>) -> Result<Vec<Early>> {
    if event_ids.is_empty() {
        return Ok(Vec::new());
    }
    let query = sql!(
        "SELECT event_id, rel_type, nid FROM early_relation WHERE room_nid = $1 AND event_id ",
        list(2)
    );
    db.rows(query, args![room, event_ids])
        .await?
        .iter()
        .map(|row| {
            Ok(Early {
                parent: row.get(0)?,
                rel_type: row.get(1)?,
                child: EventNid(row.get(2)?),
            })
        })
        .collect()
}

/// An event has come to which others related before.
#[must_use]
pub fn forget_early(room: RoomNid, event_id: &str) -> Write {
    Write::Run(
        sql!("DELETE FROM early_relation WHERE room_nid = $1 AND event_id = $2"),
        args![room, event_id],
    )
}

/// The JSON of the annotations of one type that a user has made of an event, the latest first, at most `limit` of them.
pub async fn own_annotations(
    db: &Db,
    parent: EventNid,
    user: UserNid,
    event_type: TypeNid,
    limit: i64,
) -> Result<Vec<String>> {
    let query = sql!(
        "SELECT j.json FROM relation r JOIN event c ON c.nid = r.child_nid JOIN event_json j ON j.nid = c.nid ",
        "WHERE r.parent_nid = $1 AND r.rel_type = 'm.annotation' AND c.sender_nid = $2 AND c.type_nid = $3 ",
        "AND c.redacted_by IS NULL ORDER BY r.child_nid DESC LIMIT $4"
    );
    db.rows(query, args![parent, user, event_type, limit])
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect()
}

/// Which children of which events are asked for.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The parents.
    pub parents: &'a [EventNid],
    /// Who asks.
    pub viewer: UserNid,
    /// The users whose events do not count.
    pub ignored: Vec<UserNid>,
    /// How many events of each thread, the latest first.
    pub thread_events: i64,
}

/// A child that is told with its parent.
#[derive(Debug)]
pub struct Child {
    /// The parent.
    pub parent: EventNid,
    /// How they relate.
    pub rel_type: String,
    /// How many children the parent has that relate to it in this way.
    pub total: i64,
    /// Whether one of them is the viewer's.
    pub own: bool,
    /// The child.
    pub event: Event,
}

/// The children of events that are told with them: the latest edits by the same sender, the first references, the latest
/// events of threads.
pub async fn children(
    db: &Db,
    rules: &RoomVersionRules,
    wanted: &Wanted<'_>,
) -> Result<Vec<Child>> {
    let query = sql!(
        "SELECT ",
        (event_columns),
        ", w.parent_nid, w.rel_type, w.total, w.own FROM (SELECT r.parent_nid, r.rel_type, r.child_nid, ",
        "row_number() OVER (PARTITION BY r.parent_nid, r.rel_type ORDER BY CASE r.rel_type ",
        "WHEN 'm.replace' THEN -c.ts WHEN 'm.thread' THEN -c.depth ELSE c.depth END, ",
        "CASE r.rel_type WHEN 'm.thread' THEN -c.ord ELSE c.ord END) AS place, ",
        "count(*) OVER (PARTITION BY r.parent_nid, r.rel_type) AS total, ",
        "max(CASE WHEN c.sender_nid = $2 THEN CAST(1 AS BIGINT) ELSE 0 END) OVER (PARTITION BY r.parent_nid, r.rel_type) AS own ",
        "FROM relation r JOIN event c ON c.nid = r.child_nid JOIN event p ON p.nid = r.parent_nid ",
        "WHERE r.parent_nid ",
        list(1),
        " AND r.rel_type IN ('m.replace', 'm.reference', 'm.thread') AND c.redacted_by IS NULL AND c.flags & 7 = 0 ",
        "AND NOT (c.sender_nid ",
        list(3),
        ") AND (r.rel_type <> 'm.replace' OR (c.sender_nid = p.sender_nid AND c.type_nid = p.type_nid))) w ",
        "JOIN event e ON e.nid = w.child_nid JOIN event_json j ON j.nid = e.nid ",
        "WHERE w.place <= CASE w.rel_type WHEN 'm.thread' THEN $4 WHEN 'm.replace' THEN 10 ELSE 100 END"
    );
    let args = args![
        wanted.parents,
        wanted.viewer,
        &*wanted.ignored,
        wanted.thread_events
    ];
    db.rows(query, args)
        .await?
        .iter()
        .filter_map(|row| child(row, rules).transpose())
        .collect()
}

fn child(row: &Row, rules: &RoomVersionRules) -> Result<Option<Child>> {
    let Some(event) = readable(row, rules)? else {
        return Ok(None);
    };
    Ok(Some(Child {
        parent: EventNid(row.get(18)?),
        rel_type: row.get(19)?,
        total: row.get(20)?,
        own: row.get::<Option<i64>>(21)?.unwrap_or(0) > 0,
        event,
    }))
}

/// Those of `events` that have a child of one of these kinds from one of these users; `None` stands for any.
pub async fn related(
    db: &Db,
    events: &[EventNid],
    rel_types: Option<Vec<String>>,
    senders: Option<&[UserNid]>,
) -> Result<HashSet<EventNid>> {
    let query = sql!(
        "SELECT DISTINCT r.parent_nid FROM relation r JOIN event c ON c.nid = r.child_nid ",
        "WHERE c.redacted_by IS NULL AND c.flags & 7 = 0 AND r.parent_nid ",
        list(1),
        " AND ($2 OR r.rel_type ",
        list(3),
        ") AND ($4 OR c.sender_nid ",
        list(5),
        ")"
    );
    let args = args![
        events,
        rel_types.is_none(),
        rel_types.unwrap_or_default(),
        senders.is_none(),
        senders.unwrap_or_default()
    ];
    db.rows(query, args)
        .await?
        .iter()
        .map(|row| Ok(EventNid(row.get(0)?)))
        .collect()
}

/// Which children of which events `/relations` asks for.
#[derive(Debug)]
pub struct Query<'a> {
    /// The parents.
    pub parents: &'a [EventNid],
    /// How they relate, if that matters.
    pub rel_type: Option<&'a str>,
    /// Of which type they are, if that matters.
    pub type_nid: Option<TypeNid>,
}

/// The children of events in a part of the room's history, at most `limit`.
pub async fn page(
    db: &Db,
    rules: &RoomVersionRules,
    wanted: &Query<'_>,
    range: &Range,
    limit: i64,
) -> Result<Vec<Event>> {
    let query = match range.direction {
        Direction::Backward => sql!(
            "SELECT DISTINCT ",
            (event_columns),
            ", e.depth FROM relation r JOIN event e ON e.nid = r.child_nid JOIN event_json j ON j.nid = e.nid ",
            "WHERE r.parent_nid ",
            list(1),
            " AND (r.rel_type = $2 OR $2 = '') AND (e.type_nid = $3 OR $3 = 0) AND e.redacted_by IS NULL ",
            "AND e.flags & 7 = 0 AND (e.depth, e.ord) <= ($4, $5) AND (e.depth, e.ord) > ($6, $7) ",
            "ORDER BY e.depth DESC, e.ord DESC LIMIT $8"
        ),
        Direction::Forward => sql!(
            "SELECT DISTINCT ",
            (event_columns),
            ", e.depth FROM relation r JOIN event e ON e.nid = r.child_nid JOIN event_json j ON j.nid = e.nid ",
            "WHERE r.parent_nid ",
            list(1),
            " AND (r.rel_type = $2 OR $2 = '') AND (e.type_nid = $3 OR $3 = 0) AND e.redacted_by IS NULL ",
            "AND e.flags & 7 = 0 AND (e.depth, e.ord) > ($4, $5) AND (e.depth, e.ord) <= ($6, $7) ",
            "ORDER BY e.depth, e.ord LIMIT $8"
        ),
    };
    let (from, to) = (range.from, range.to);
    let args = args![
        wanted.parents,
        wanted.rel_type.unwrap_or_default(),
        wanted.type_nid.map_or(0, |nid| nid.0),
        from.depth,
        from.ord,
        to.depth,
        to.ord,
        limit
    ];
    db.rows(query, args)
        .await?
        .iter()
        .filter_map(|row| readable(row, rules).transpose())
        .collect()
}

/// The nids of the children of events, at most `limit`.
pub async fn child_nids(db: &Db, parents: &[EventNid], limit: i64) -> Result<Vec<EventNid>> {
    let query = sql!(
        "SELECT DISTINCT r.child_nid FROM relation r JOIN event e ON e.nid = r.child_nid WHERE r.parent_nid ",
        list(1),
        " AND e.redacted_by IS NULL AND e.flags & 7 = 0 ORDER BY r.child_nid DESC LIMIT $2"
    );
    db.rows(query, args![parents, limit])
        .await?
        .iter()
        .map(|row| Ok(EventNid(row.get(0)?)))
        .collect()
}
