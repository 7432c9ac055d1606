//! What a sync reads, for many rooms at once.

use std::collections::HashMap;

use ruma::room_version_rules::RoomVersionRules;

use super::{
    Db, Event, EventNid, KeyNid, Membership, Pos, Result, RoomNid, Row, UserNid, events::readable,
};
use crate::{args, sql};

/// The rules of each room that a query may answer events of.
pub type Rules = HashMap<RoomNid, &'static RoomVersionRules>;

/// How many receipts of a room are sent at once.
const RECEIPTS: i64 = 100;

/// Events that cannot be read are left out, and those of a room whose rules are not given.
fn events(rows: &[Row], rules: &Rules) -> Result<Vec<Event>> {
    let mut events = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(rules) = rules.get(&RoomNid(row.get(2)?)) {
            events.extend(readable(row, rules)?);
        }
    }
    Ok(events)
}

/// The newest events of each room, at most `limit`, after `from` up to `upto`, oldest first; `None` for one that cannot be
/// read. Of a room that the reader has left, only those up to the leave.
pub async fn timelines(
    db: &Db,
    rules: &Rules,
    reader: UserNid,
    rooms: &[RoomNid],
    (from, upto): (Pos, Pos),
    limit: i64,
) -> Result<Vec<(RoomNid, Option<Event>)>> {
    if rooms.is_empty() {
        return Ok(Vec::new());
    }
    let query = sql!(
        "WITH reach AS (SELECT room_nid, CASE WHEN membership > 3 AND pos < $4 THEN pos ELSE $4 END AS upto ",
        "FROM membership WHERE user_nid = $2 AND is_local AND room_nid ",
        list(1),
        "), span AS MATERIALIZED (SELECT m.room_nid, m.upto, coalesce((SELECT x.pos FROM event x ",
        "WHERE x.room_nid = m.room_nid AND x.pos > $3 AND x.pos <= m.upto AND x.flags & 7 = 0 ",
        "ORDER BY x.pos DESC LIMIT 1 OFFSET $5), $3 + 1) AS first FROM reach AS m) SELECT ",
        (event_columns),
        // A cross join keeps SQLite from looking at a room before it is known where its timeline begins.
        " FROM span CROSS JOIN event e JOIN event_json j ON j.nid = e.nid WHERE e.room_nid = span.room_nid ",
        "AND e.pos >= span.first AND e.pos <= span.upto AND e.flags & 7 = 0 ORDER BY e.pos"
    );
    let rows = db
        .rows(query, args![rooms, reader, from, upto, limit - 1])
        .await?;
    let mut events = Vec::with_capacity(rows.len());
    for row in &rows {
        let room = RoomNid(row.get(2)?);
        if let Some(rules) = rules.get(&room) {
            events.push((room, readable(row, rules)?));
        }
    }
    Ok(events)
}

/// A change of a room's current state.
#[derive(Clone, Copy, Debug)]
pub struct Delta {
    /// The room.
    pub room: RoomNid,
    /// When.
    pub pos: Pos,
    /// What changed.
    pub key: KeyNid,
    /// The event that holds now; `None` if none does.
    pub event: Option<EventNid>,
    /// The event that held before.
    pub before: Option<EventNid>,
}

/// How the current state of some rooms changed after `from` up to `upto`, oldest change first.
pub async fn deltas(db: &Db, rooms: &[RoomNid], (from, upto): (Pos, Pos)) -> Result<Vec<Delta>> {
    if rooms.is_empty() {
        return Ok(Vec::new());
    }
    let query = sql!(
        "SELECT room_nid, pos, key_nid, event_nid, prev_nid FROM state_delta WHERE pos > $2 AND pos <= $3 AND room_nid ",
        list(1),
        " ORDER BY pos"
    );
    db.rows(query, args![rooms, from, upto])
        .await?
        .iter()
        .map(|row| {
            Ok(Delta {
                room: RoomNid(row.get(0)?),
                pos: row.get(1)?,
                key: KeyNid(row.get(2)?),
                event: row.get::<Option<i64>>(3)?.map(EventNid),
                before: row.get::<Option<i64>>(4)?.map(EventNid),
            })
        })
        .collect()
}

/// The current state of some rooms; without events of type `without` if it is given.
pub async fn states(
    db: &Db,
    rules: &Rules,
    rooms: &[RoomNid],
    without: Option<super::TypeNid>,
) -> Result<Vec<Event>> {
    if rooms.is_empty() {
        return Ok(Vec::new());
    }
    let query = sql!(
        "SELECT ",
        (event_columns),
        " FROM current_state c JOIN event e ON e.nid = c.event_nid JOIN event_json j ON j.nid = e.nid ",
        "WHERE e.type_nid <> $2 AND c.room_nid ",
        list(1)
    );
    let without = without.map_or(-1, |kind| kind.0);
    let rows = db.rows(query, args![rooms, without]).await?;
    events(&rows, rules)
}

/// The events of the current state with these keys in these rooms; `None` for one that cannot be read.
pub async fn state_of(
    db: &Db,
    rules: &Rules,
    keys: &[(RoomNid, KeyNid)],
) -> Result<HashMap<(RoomNid, KeyNid), Option<Event>>> {
    let mut found = HashMap::with_capacity(keys.len());
    if keys.is_empty() {
        return Ok(found);
    }
    let query = sql!(
        "SELECT ",
        (event_columns),
        " FROM ",
        only {
            sqlite: "(SELECT CAST(substr(value, 1, instr(value, ' ') - 1) AS INTEGER) AS room, \
                     CAST(substr(value, instr(value, ' ') + 1) AS INTEGER) AS key FROM json_each($1)) AS pair",
            postgres: "(SELECT split_part(value, ' ', 1)::bigint AS room, split_part(value, ' ', 2)::bigint AS key \
                       FROM unnest($1) AS list(value)) AS pair"
        },
        " JOIN current_state c ON c.room_nid = pair.room AND c.key_nid = pair.key ",
        "JOIN event e ON e.nid = c.event_nid JOIN event_json j ON j.nid = e.nid"
    );
    let pairs: Vec<String> = keys
        .iter()
        .map(|(room, key)| format!("{} {}", room.0, key.0))
        .collect();
    for row in &db.rows(query, args![pairs]).await? {
        let room = RoomNid(row.get(2)?);
        let key: Option<i64> = row.get(6)?;
        if let (Some(rules), Some(key)) = (rules.get(&room), key) {
            found.insert((room, KeyNid(key)), readable(row, rules)?);
        }
    }
    Ok(found)
}

/// The events with these nids, of any of the rooms.
pub async fn many(db: &Db, rules: &Rules, nids: &[EventNid]) -> Result<Vec<Event>> {
    if nids.is_empty() {
        return Ok(Vec::new());
    }
    let query = sql!(
        "SELECT ",
        (event_columns),
        " FROM event e JOIN event_json j ON j.nid = e.nid WHERE e.nid ",
        list(1)
    );
    let rows = db.rows(query, args![nids]).await?;
    events(&rows, rules)
}

/// The rooms of a user in which something has happened after `since`, apart from what is the user's own.
pub async fn changed_rooms(db: &Db, user: UserNid, since: Pos) -> Result<Vec<RoomNid>> {
    let query = sql!(
        "SELECT m.room_nid FROM membership m JOIN room_head h ON h.room_nid = m.room_nid ",
        "WHERE m.user_nid = $1 AND m.is_local AND NOT m.forgotten AND (m.pos > $2 OR m.membership = 2 AND ",
        "(h.last_pos > $2 OR EXISTS (SELECT 1 FROM receipt r WHERE r.room_nid = m.room_nid AND r.pos > $2 ",
        "AND (r.kind = 1 OR r.user_nid = $1))))"
    );
    db.rows(query, args![user, since])
        .await?
        .iter()
        .map(|row| row.get(0).map(RoomNid))
        .collect()
}

/// A member after whom a room without a name is called.
#[derive(Debug)]
pub struct Hero {
    /// The user.
    pub user: UserNid,
    /// What the user is to the room.
    pub membership: Membership,
    /// The member event.
    pub event: Event,
}

/// The first five members of each room besides the reader: of those who are joined or invited; where there are none,
/// of those who were.
pub async fn heroes(
    db: &Db,
    rules: &Rules,
    reader: UserNid,
    rooms: &[RoomNid],
) -> Result<Vec<Hero>> {
    if rooms.is_empty() {
        return Ok(Vec::new());
    }
    let query = sql!(
        "SELECT ",
        (event_columns),
        ", m.user_nid, m.membership FROM (SELECT room_nid, user_nid, membership, event_nid, row_number() OVER ",
        "(PARTITION BY room_nid ORDER BY CASE WHEN membership <= 2 THEN 0 ELSE 1 END, event_nid) AS place ",
        "FROM membership WHERE membership <> 3 AND user_nid <> $2 AND room_nid ",
        list(1),
        ") AS m JOIN event e ON e.nid = m.event_nid JOIN event_json j ON j.nid = e.nid WHERE m.place <= 5 ",
        "ORDER BY m.room_nid, m.place"
    );
    let mut heroes = Vec::new();
    for row in &db.rows(query, args![rooms, reader]).await? {
        if let Some(rules) = rules.get(&RoomNid(row.get(2)?))
            && let Some(event) = readable(row, rules)?
        {
            heroes.push(Hero {
                user: UserNid(row.get(18)?),
                membership: Membership::from_number(row.get(19)?),
                event,
            });
        }
    }
    Ok(heroes)
}

/// The newest receipts of some rooms after `since`, oldest first, and all of the reader's own; of private ones only
/// those of the reader.
pub async fn receipts(
    db: &Db,
    rooms: &[RoomNid],
    since: Pos,
    reader: UserNid,
) -> Result<Vec<super::Receipt>> {
    if rooms.is_empty() {
        return Ok(Vec::new());
    }
    let query = sql!(
        "WITH span AS MATERIALIZED (SELECT list.value AS room_nid, coalesce((SELECT x.pos FROM receipt x ",
        "WHERE x.room_nid = list.value ORDER BY x.pos DESC LIMIT 1 OFFSET $4), 0) AS first FROM ",
        rows(1),
        ") SELECT r.room_nid, r.user_nid, r.thread_nid, r.kind, r.event_nid, e.event_id, r.ts, r.pos ",
        "FROM span CROSS JOIN receipt r JOIN event e ON e.nid = r.event_nid WHERE r.room_nid = span.room_nid ",
        "AND r.pos > $2 AND (r.user_nid = $3 OR r.kind = 1 AND r.pos >= span.first) ORDER BY r.pos"
    );
    db.rows(query, args![rooms, since, reader, RECEIPTS])
        .await?
        .iter()
        .map(super::receipts::receipt)
        .collect()
}

/// What a member event said that another took the place of: room and content of the event before; `None` if there was
/// none. For the key of one member in some rooms, after `from` up to `upto`.
pub async fn replaced(
    db: &Db,
    rooms: &[RoomNid],
    key: KeyNid,
    (from, upto): (Pos, Pos),
) -> Result<Vec<(RoomNid, Option<String>)>> {
    let query = sql!(
        "SELECT d.room_nid, j.json FROM state_delta d LEFT JOIN event_json j ON j.nid = d.prev_nid ",
        "WHERE d.key_nid = $2 AND d.pos > $3 AND d.pos <= $4 AND d.room_nid ",
        list(1)
    );
    db.rows(query, args![rooms, key, from, upto])
        .await?
        .iter()
        .map(|row| Ok((RoomNid(row.get(0)?), row.get(1)?)))
        .collect()
}

/// Those of these events that other events relate to.
pub async fn parents(db: &Db, nids: &[EventNid]) -> Result<Vec<EventNid>> {
    if nids.is_empty() {
        return Ok(Vec::new());
    }
    let query = sql!(
        "SELECT DISTINCT parent_nid FROM relation WHERE parent_nid ",
        list(1)
    );
    db.rows(query, args![nids])
        .await?
        .iter()
        .map(|row| row.get(0).map(EventNid))
        .collect()
}
