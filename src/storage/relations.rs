//! `relation`: which event points to which.

use ruma::room_version_rules::RoomVersionRules;

use super::{Db, Event, EventNid, Insert, Result, Row, UserNid, Write, events::event};
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
        .map(|row| child(row, rules))
        .collect()
}

fn child(row: &Row, rules: &RoomVersionRules) -> Result<Child> {
    Ok(Child {
        parent: EventNid(row.get(18)?),
        rel_type: row.get(19)?,
        total: row.get(20)?,
        own: row.get::<Option<i64>>(21)?.unwrap_or(0) > 0,
        event: event(row, rules)?,
    })
}
