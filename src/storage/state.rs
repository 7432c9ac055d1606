//! `state_line`, `state_change`, `current_state`, `state_delta`: what holds in a room, now and at any event.
//!
//! See `ARCHITECTURE.md`, "State lines".

use std::collections::HashMap;

use ruma::room_version_rules::RoomVersionRules;

use super::{
    Db, Event, EventNid, Insert, KeyNid, Position, Result, RoomNid, Write,
    events::{event, readable},
};
use crate::{args, sql};

/// How deep lines may nest; deeper ones are not made.
const LINE_DEPTH: usize = 8;

/// A version of a line: the state of a room at some point of its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StateAt {
    /// The line.
    pub line: i64,
    /// Its version.
    pub sv: i64,
}

static LINE: Insert = Insert {
    table: "state_line",
    columns: &["line", "room_nid", "parent_line", "parent_sv"],
    key: 0,
    conflict: "",
};

/// A new line, that goes on from a version of its parent if it has one.
#[must_use]
pub fn add_line(line: i64, room: RoomNid, parent: Option<StateAt>) -> Write {
    Write::Insert(
        &LINE,
        args![line, room, parent.map(|at| at.line), parent.map(|at| at.sv)],
    )
}

static CHANGE: Insert = Insert {
    table: "state_change",
    columns: &["line", "key_nid", "sv", "event_nid"],
    key: 3,
    conflict: "ON CONFLICT (line, key_nid, sv) DO UPDATE SET event_nid = excluded.event_nid",
};

static CURRENT: Insert = Insert {
    table: "current_state",
    columns: &["room_nid", "key_nid", "event_nid"],
    key: 2,
    conflict: "ON CONFLICT (room_nid, key_nid) DO UPDATE SET event_nid = excluded.event_nid",
};

static DELTA: Insert = Insert {
    table: "state_delta",
    columns: &["room_nid", "pos", "key_nid", "event_nid", "prev_nid"],
    key: 0,
    conflict: "",
};

/// One key of the current state gets a new event, or none any more, and the line a new version.
#[must_use]
pub fn set_current(
    room: RoomNid,
    key: KeyNid,
    event: Option<EventNid>,
    replaces: Option<EventNid>,
    version: StateAt,
    at: Position,
) -> [Write; 3] {
    let current = match event {
        Some(event) => Write::Insert(&CURRENT, args![room, key, event]),
        None => Write::Run(
            sql!("DELETE FROM current_state WHERE room_nid = $1 AND key_nid = $2"),
            args![room, key],
        ),
    };
    [
        set_in_line(version, key, event),
        current,
        Write::Insert(&DELTA, args![room, at, key, event, replaces]),
    ]
}

/// One key of the state of a room that nobody can see yet.
#[must_use]
pub fn adopt(room: RoomNid, key: KeyNid, event: EventNid, version: StateAt) -> [Write; 2] {
    [
        set_in_line(version, key, Some(event)),
        Write::Insert(&CURRENT, args![room, key, event]),
    ]
}

/// One key gets a new event, or none any more, in a version of a line.
#[must_use]
pub fn set_in_line(version: StateAt, key: KeyNid, event: Option<EventNid>) -> Write {
    Write::Insert(&CHANGE, args![version.line, key, version.sv, event])
}

/// Events of the current state with the given keys.
pub async fn current(
    db: &Db,
    rules: &RoomVersionRules,
    room: RoomNid,
    keys: &[KeyNid],
) -> Result<Vec<Event>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let query = sql!(
        "SELECT ",
        (event_columns),
        " FROM current_state c JOIN event e ON e.nid = c.event_nid JOIN event_json j ON j.nid = e.nid ",
        "WHERE c.room_nid = $1 AND c.key_nid ",
        list(2)
    );
    let rows = db.rows(query, args![room, keys]).await?;
    rows.iter().map(|row| event(row, rules)).collect()
}

/// All events of the current state that can be read, for somebody who looks at them.
pub async fn whole(db: &Db, rules: &RoomVersionRules, room: RoomNid) -> Result<Vec<Event>> {
    let query = sql!(
        "SELECT ",
        (event_columns),
        " FROM current_state c JOIN event e ON e.nid = c.event_nid JOIN event_json j ON j.nid = e.nid ",
        "WHERE c.room_nid = $1"
    );
    let rows = db.rows(query, args![room]).await?;
    let events = rows.iter().map(|row| readable(row, rules));
    events.filter_map(Result::transpose).collect()
}

/// The lines that a line goes on from, nearest first, each with the version at which it was left; the line itself is
/// the first.
pub async fn ancestry(db: &Db, at: StateAt) -> Result<Vec<StateAt>> {
    let mut path = vec![at];
    while path.len() <= LINE_DEPTH {
        let line = path.last().map_or(at.line, |last| last.line);
        let query = sql!("SELECT parent_line, parent_sv FROM state_line WHERE line = $1");
        let Some(row) = db.maybe(query, args![line]).await? else {
            break;
        };
        match (row.get(0)?, row.get(1)?) {
            (Some(line), Some(sv)) => path.push(StateAt { line, sv }),
            _ => break,
        }
    }
    Ok(path)
}

/// All events of the state at a version of a line: key and event.
pub async fn all_at(db: &Db, at: StateAt) -> Result<Vec<(KeyNid, EventNid)>> {
    let mut found = HashMap::new();
    for at in ancestry(db, at).await? {
        let query = sql!(
            "SELECT key_nid, event_nid FROM state_change s WHERE line = $1 AND sv <= $2 AND sv = ",
            "(SELECT max(sv) FROM state_change m WHERE m.line = s.line AND m.key_nid = s.key_nid AND m.sv <= $2)"
        );
        for row in db.rows(query, args![at.line, at.sv]).await? {
            found
                .entry(KeyNid(row.get(0)?))
                .or_insert(row.get::<Option<i64>>(1)?.map(EventNid));
        }
    }
    Ok(found
        .into_iter()
        .filter_map(|(key, event)| Some((key, event?)))
        .collect())
}

/// The events that some keys have at a version of a line.
pub async fn at(
    db: &Db,
    rules: &RoomVersionRules,
    at: StateAt,
    keys: &[KeyNid],
) -> Result<Vec<Event>> {
    let query = sql!(
        "SELECT ",
        (event_columns),
        ", s.key_nid FROM state_change s LEFT JOIN event e ON e.nid = s.event_nid ",
        "LEFT JOIN event_json j ON j.nid = e.nid WHERE s.line = $1 AND s.sv <= $2 AND s.key_nid ",
        list(3),
        " AND s.sv = (SELECT max(m.sv) FROM state_change m WHERE m.line = s.line AND m.key_nid = s.key_nid ",
        "AND m.sv <= $2)"
    );
    let mut missing = keys.to_vec();
    let mut found = Vec::new();
    if missing.is_empty() {
        return Ok(found);
    }
    for at in ancestry(db, at).await? {
        for row in db.rows(query, args![at.line, at.sv, &*missing]).await? {
            let key = KeyNid(row.get(18)?);
            missing.retain(|missing| *missing != key);
            if row.get::<Option<i64>>(0)?.is_some() {
                found.push(event(&row, rules)?);
            }
        }
        if missing.is_empty() {
            break;
        }
    }
    Ok(found)
}

/// The lines of a room that go on from others, each with the version that it goes on from.
pub async fn lines(db: &Db, room: RoomNid) -> Result<HashMap<i64, StateAt>> {
    let query = sql!(
        "SELECT line, parent_line, parent_sv FROM state_line WHERE room_nid = $1 AND parent_line IS NOT NULL"
    );
    db.rows(query, args![room])
        .await?
        .iter()
        .map(|row| {
            let parent = StateAt {
                line: row.get(1)?,
                sv: row.get(2)?,
            };
            Ok((row.get(0)?, parent))
        })
        .collect()
}

/// A change of a key anywhere in a room's history.
#[derive(Clone, Debug)]
pub struct RoomChange {
    /// The version from which it holds.
    pub at: StateAt,
    /// The key.
    pub key: KeyNid,
    /// The event; `None` if the key was removed.
    pub event: Option<Event>,
}

/// The history of some keys in all lines of a room, oldest first in each line.
pub async fn room_history(
    db: &Db,
    rules: &RoomVersionRules,
    room: RoomNid,
    keys: &[KeyNid],
) -> Result<Vec<RoomChange>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let query = sql!(
        "SELECT ",
        (event_columns),
        ", s.line, s.sv, s.key_nid FROM state_line l JOIN state_change s ON s.line = l.line ",
        "LEFT JOIN event e ON e.nid = s.event_nid LEFT JOIN event_json j ON j.nid = e.nid ",
        "WHERE l.room_nid = $1 AND s.key_nid ",
        list(2),
        " ORDER BY s.line, s.sv"
    );
    db.rows(query, args![room, keys])
        .await?
        .iter()
        .map(|row| {
            let known: Option<i64> = row.get(0)?;
            Ok(RoomChange {
                at: StateAt {
                    line: row.get(18)?,
                    sv: row.get(19)?,
                },
                key: KeyNid(row.get(20)?),
                event: known.map(|_| event(row, rules)).transpose()?,
            })
        })
        .collect()
}

/// One change of a key in a line's history.
#[derive(Clone, Copy, Debug)]
pub struct KeyChange {
    /// The key.
    pub key: KeyNid,
    /// The version from which it holds.
    pub sv: i64,
    /// The event; `None` if the key was removed.
    pub event: Option<EventNid>,
}

/// The history of some keys in one line, oldest first.
pub async fn history(db: &Db, line: i64, keys: &[KeyNid]) -> Result<Vec<KeyChange>> {
    let query = sql!(
        "SELECT key_nid, sv, event_nid FROM state_change WHERE line = $1 AND key_nid ",
        list(2),
        " ORDER BY sv"
    );
    db.rows(query, args![line, keys])
        .await?
        .iter()
        .map(|row| {
            Ok(KeyChange {
                key: KeyNid(row.get(0)?),
                sv: row.get(1)?,
                event: row.get::<Option<i64>>(2)?.map(EventNid),
            })
        })
        .collect()
}
