//! `event_after` and the differences between lines: the state of a room where its history has branches.

use std::collections::{HashMap, HashSet};

use super::{
    Db, EventNid, Insert, KeyNid, Result, Write,
    events::flags,
    state::{StateAt, all_at, ancestry},
};
use crate::{args, sql};

static AFTER: Insert = Insert {
    table: "event_after",
    columns: &["event_nid", "line", "sv"],
    key: 1,
    conflict: "ON CONFLICT (event_nid) DO UPDATE SET line = excluded.line, sv = excluded.sv",
};

/// Keeps which state holds after an event, where its flags say that it is [`flags::FORKED`].
#[must_use]
pub fn set_after(event: EventNid, at: StateAt) -> Write {
    Write::Insert(&AFTER, args![event, at.line, at.sv])
}

/// The states after some events. What has no place in the room's history (any outlier) is left out.
pub async fn after(db: &Db, events: &[EventNid]) -> Result<HashMap<EventNid, StateAt>> {
    if events.is_empty() {
        return Ok(HashMap::new());
    }
    let query = sql!(
        "SELECT e.nid, e.state_line, e.state_sv, e.key_nid, e.flags, a.line, a.sv FROM event e ",
        "LEFT JOIN event_after a ON a.event_nid = e.nid WHERE e.nid ",
        list(1)
    );
    let mut found = HashMap::with_capacity(events.len());
    for row in db.rows(query, args![events]).await? {
        let of: i64 = row.get(4)?;
        if of & flags::OUTLIER != 0 {
            continue;
        }
        let (forked_line, forked_sv): (Option<i64>, Option<i64>) = (row.get(5)?, row.get(6)?);
        let at = match forked_line.zip(forked_sv) {
            Some((line, sv)) if of & flags::FORKED != 0 => StateAt { line, sv },
            _ => {
                let changes = row.get::<Option<i64>>(3)?.is_some() && of & flags::REJECTED == 0;
                StateAt {
                    line: row.get(1)?,
                    sv: row.get::<i64>(2)? + i64::from(changes),
                }
            }
        };
        found.insert(EventNid(row.get(0)?), at);
    }
    Ok(found)
}

/// The newest version of a line.
pub async fn tip(db: &Db, line: i64) -> Result<i64> {
    let query = sql!("SELECT coalesce(max(sv), 0) FROM state_change WHERE line = $1");
    db.one(query, args![line]).await?.get(0)
}

/// The events that some keys have at a version of a line; `None` where the state has none.
pub async fn values(
    db: &Db,
    at: StateAt,
    keys: &[KeyNid],
) -> Result<HashMap<KeyNid, Option<EventNid>>> {
    values_on(db, &ancestry(db, at).await?, keys).await
}

async fn values_on(
    db: &Db,
    path: &[StateAt],
    keys: &[KeyNid],
) -> Result<HashMap<KeyNid, Option<EventNid>>> {
    let query = sql!(
        "SELECT s.key_nid, s.event_nid FROM state_change s WHERE s.line = $1 AND s.sv <= $2 AND s.key_nid ",
        list(3),
        " AND s.sv = (SELECT max(m.sv) FROM state_change m WHERE m.line = s.line AND m.key_nid = s.key_nid ",
        "AND m.sv <= $2)"
    );
    let mut found = HashMap::with_capacity(keys.len());
    let mut missing: HashSet<KeyNid> = keys.iter().copied().collect();
    for at in path {
        if missing.is_empty() {
            break;
        }
        let wanted: Vec<KeyNid> = missing.iter().copied().collect();
        for row in db.rows(query, args![at.line, at.sv, &*wanted]).await? {
            let key = KeyNid(row.get(0)?);
            missing.remove(&key);
            found.insert(key, row.get::<Option<i64>>(1)?.map(EventNid));
        }
    }
    found.extend(missing.into_iter().map(|key| (key, None)));
    Ok(found)
}

/// What differs between two states: for each key that does, the event in the one and in the other.
pub type Difference = HashMap<KeyNid, (Option<EventNid>, Option<EventNid>)>;

/// The keys whose events differ between two versions, be they of one line or of several. Costs what was changed between
/// them, not what the room has; lines that have nothing in common are compared as a whole.
pub async fn difference(db: &Db, one: StateAt, other: StateAt) -> Result<Difference> {
    if one == other {
        return Ok(Difference::new());
    }
    let (path, other_path) = (ancestry(db, one).await?, ancestry(db, other).await?);
    let meet = path.iter().enumerate().find_map(|(index, at)| {
        let there = other_path.iter().position(|other| other.line == at.line)?;
        Some((index, there))
    });
    let Some((here, there)) = meet else {
        return whole_difference(db, one, other).await;
    };
    let mut keys = HashSet::new();
    for at in path[..here].iter().chain(&other_path[..there]) {
        changed_keys(db, at.line, (0, at.sv), &mut keys).await?;
    }
    let (from, to) = (path[here].sv, other_path[there].sv);
    let span = (from.min(to), from.max(to));
    changed_keys(db, path[here].line, span, &mut keys).await?;
    let keys: Vec<KeyNid> = keys.into_iter().collect();
    let ours = values_on(db, &path, &keys).await?;
    let theirs = values_on(db, &other_path, &keys).await?;
    let of = |map: &HashMap<KeyNid, Option<EventNid>>, key| map.get(key).copied().flatten();
    Ok(keys
        .iter()
        .map(|key| (*key, (of(&ours, key), of(&theirs, key))))
        .filter(|(_, (one, other))| one != other)
        .collect())
}

async fn changed_keys(
    db: &Db,
    line: i64,
    (after, upto): (i64, i64),
    keys: &mut HashSet<KeyNid>,
) -> Result<()> {
    if after >= upto {
        return Ok(());
    }
    let query =
        sql!("SELECT DISTINCT key_nid FROM state_change WHERE line = $1 AND sv > $2 AND sv <= $3");
    for row in db.rows(query, args![line, after, upto]).await? {
        keys.insert(KeyNid(row.get(0)?));
    }
    Ok(())
}

async fn whole_difference(db: &Db, one: StateAt, other: StateAt) -> Result<Difference> {
    let mut found = Difference::new();
    for (key, event) in all_at(db, one).await? {
        found.entry(key).or_default().0 = Some(event);
    }
    for (key, event) in all_at(db, other).await? {
        found.entry(key).or_default().1 = Some(event);
    }
    found.retain(|_, (one, other)| one != other);
    Ok(found)
}
