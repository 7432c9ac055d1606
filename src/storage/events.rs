//! `event` and `event_json`: the events.

use std::{collections::HashMap, sync::Arc};

use homing_federation::Pdu;
use ruma::room_version_rules::RoomVersionRules;
use serde_json::value::RawValue;

use super::{
    Arg, Db, DeviceNid, EventNid, Insert, KeyNid, Pos, Position, Result, RoomNid, Row, TypeNid,
    UserNid, Write, pack,
};
use crate::{args, sql};

/// An event as this server keeps it: the PDU and what belongs to it here.
#[derive(Clone, Debug)]
pub struct Event {
    /// The event.
    pub nid: EventNid,
    /// Its room.
    pub room: RoomNid,
    /// The event as it was signed (as redacted, if it was).
    pub pdu: Arc<Pdu>,
    /// Its place in the log; `None` if it was never news here.
    pub pos: Option<Pos>,
    /// With the depth, its place in the room's history.
    pub ord: i64,
    /// Its type.
    pub type_nid: TypeNid,
    /// Its type and state key, if it is a state event.
    pub key: Option<KeyNid>,
    /// Who sent it.
    pub sender: UserNid,
    /// See [`flags`].
    pub flags: i64,
    /// The line of the state before it.
    pub state_line: i64,
    /// The version of that line.
    pub state_sv: i64,
    /// The state event whose place it takes.
    pub replaces: Option<EventNid>,
    /// The redaction that redacted it.
    pub redacted_by: Option<EventNid>,
    /// How many events of the room (of its thread, if it is in one) notify by default, up to this one.
    pub unread_idx: i64,
    /// The root of the thread that it is in.
    pub thread: Option<EventNid>,
    /// The device that sent it and under which transaction id.
    pub txn: Option<(DeviceNid, Arc<str>)>,
}

/// Bits of [`Event::flags`].
pub mod flags {
    /// The event has no place in the room's history.
    pub const OUTLIER: i64 = 1;
    /// The event broke a rule and nobody sees it.
    pub const REJECTED: i64 = 2;
    /// The event is kept from clients.
    pub const SOFT_FAILED: i64 = 4;
    /// The event has a `url` in its content.
    pub const HAS_URL: i64 = 8;
    /// The event notifies by default, so it is counted in `unread_idx`.
    pub const NOTIFIES: i64 = 16;
    /// This server must see to it that the other servers in the room get the event.
    pub const OURS: i64 = 32;
    /// What the event does to the state is not the next version of the line of the state before it; `event_after` says
    /// which it is.
    pub const FORKED: i64 = 64;
    /// Something is missing directly before the event.
    pub const AFTER_GAP: i64 = 128;
    /// A state event that holds in the place of another which it does not know: it came with the state after a gap, or
    /// holds again because branches met.
    pub const TOOK_OVER: i64 = 256;
    /// The event came when the room had a deeper one, so it was not the end of the history then.
    pub const LATE: i64 = 512;
    /// None of these may be shown.
    pub const HIDDEN: i64 = OUTLIER | REJECTED | SOFT_FAILED;
}

impl Event {
    /// The event's depth.
    #[must_use]
    pub fn depth(&self) -> i64 {
        self.pdu.depth
    }
}

static EVENT: Insert = Insert {
    table: "event",
    columns: &[
        "nid",
        "event_id",
        "room_nid",
        "pos",
        "depth",
        "ord",
        "type_nid",
        "key_nid",
        "sender_nid",
        "ts",
        "flags",
        "state_line",
        "state_sv",
        "auth_nids",
        "replaces_nid",
        "redacted_by",
        "unread_idx",
        "thread_nid",
        "device_nid",
        "txn_id",
    ],
    key: 0,
    conflict: "",
};

static JSON: Insert = Insert {
    table: "event_json",
    columns: &["nid", "json"],
    key: 0,
    conflict: "",
};

/// A new event at a position of the change, and its JSON. Without a position it is no news to anybody here.
#[must_use]
pub fn add(event: &Event, auth: &[EventNid], at: Option<Position>) -> [Write; 2] {
    let pdu = &event.pdu;
    let (pos, ord) = at.map_or_else(
        || (Arg::Int(None), Arg::from(event.ord)),
        |at| (Arg::from(at), Arg::from(at)),
    );
    let (device, txn) = event
        .txn
        .clone()
        .map_or((None, None), |(device, txn)| (Some(device), Some(txn)));
    let row = args![
        event.nid,
        pdu.event_id.as_str(),
        event.room,
        pos,
        pdu.depth,
        ord,
        event.type_nid,
        event.key,
        event.sender,
        i64::from(pdu.origin_server_ts.0),
        event.flags,
        event.state_line,
        event.state_sv,
        pack(auth.iter().map(|nid| nid.0)),
        event.replaces,
        event.redacted_by,
        event.unread_idx,
        event.thread,
        device,
        txn,
    ];
    [
        Write::Insert(&EVENT, row),
        Write::Insert(&JSON, args![event.nid, &*pdu.json]),
    ]
}

/// Gives an event that was an outlier its place in the room.
#[must_use]
pub fn promote(event: &Event, auth: &[EventNid], at: Option<Position>) -> Write {
    let (pos, ord) = at.map_or_else(
        || (Arg::Int(None), Arg::from(event.ord)),
        |at| (Arg::from(at), Arg::from(at)),
    );
    Write::Run(
        sql!(
            "UPDATE event SET pos = $2, ord = $3, flags = $4 | (flags & 256), state_line = $5, state_sv = $6, auth_nids = $7, ",
            "replaces_nid = $8, unread_idx = $9, thread_nid = $10 WHERE nid = $1"
        ),
        args![
            event.nid,
            pos,
            ord,
            event.flags,
            event.state_line,
            event.state_sv,
            pack(auth.iter().map(|nid| nid.0)),
            event.replaces,
            event.unread_idx,
            event.thread,
        ],
    )
}

/// Marks an event as one that [took over](flags::TOOK_OVER).
#[must_use]
pub fn take_over(event: EventNid) -> Write {
    let sql = sql!("UPDATE event SET flags = flags | 256 WHERE nid = $1");
    Write::Run(sql, args![event])
}

/// What is known of an event without its JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stub {
    /// The event.
    pub nid: EventNid,
    /// The room that it is in.
    pub room: RoomNid,
    /// See [`flags`].
    pub flags: i64,
}

/// Those of some events that are here, by id.
pub async fn stubs(db: &Db, event_ids: Vec<String>) -> Result<HashMap<String, Stub>> {
    if event_ids.is_empty() {
        return Ok(HashMap::new());
    }
    let query = sql!(
        "SELECT event_id, nid, room_nid, flags FROM event WHERE event_id ",
        list(1)
    );
    let rows = db.rows(query, args![event_ids]).await?;
    let rows = rows.iter().map(|row| {
        let stub = Stub {
            nid: EventNid(row.get(1)?),
            room: RoomNid(row.get(2)?),
            flags: row.get(3)?,
        };
        Ok((row.get(0)?, stub))
    });
    rows.collect()
}

/// The keys of those of some events that are state events.
pub async fn keys(db: &Db, nids: &[EventNid]) -> Result<Vec<(KeyNid, EventNid)>> {
    let query = sql!(
        "SELECT key_nid, nid FROM event WHERE key_nid IS NOT NULL AND nid ",
        list(1)
    );
    db.rows(query, args![nids])
        .await?
        .iter()
        .map(|row| Ok((KeyNid(row.get(0)?), EventNid(row.get(1)?))))
        .collect()
}

/// The events of a room with these ids, in no particular order.
pub async fn by_ids(
    db: &Db,
    rules: &RoomVersionRules,
    room: RoomNid,
    event_ids: Vec<String>,
) -> Result<Vec<Event>> {
    if event_ids.is_empty() {
        return Ok(Vec::new());
    }
    let query = sql!(
        "SELECT ",
        (event_columns),
        " FROM event e JOIN event_json j ON j.nid = e.nid WHERE e.room_nid = $1 AND e.event_id ",
        list(2)
    );
    db.rows(query, args![room, event_ids])
        .await?
        .iter()
        .map(|row| event(row, rules))
        .collect()
}

/// Marks an event as redacted and leaves only its redacted form.
#[must_use]
pub fn redact(target: EventNid, by: EventNid, redacted_json: &str) -> [Write; 2] {
    [
        Write::Run(
            sql!("UPDATE event SET redacted_by = $2 WHERE nid = $1"),
            args![target, by],
        ),
        Write::Run(
            sql!("UPDATE event_json SET json = $2 WHERE nid = $1"),
            args![target, redacted_json],
        ),
    ]
}

/// The columns that [`event`] reads, after `SELECT` and before `FROM event e JOIN event_json j ON j.nid = e.nid`.
#[macro_export]
macro_rules! event_columns {
    () => {
        "e.nid, e.event_id, e.room_nid, e.pos, e.ord, e.type_nid, e.key_nid, e.sender_nid, e.flags, e.state_line, \
         e.state_sv, e.replaces_nid, e.redacted_by, e.unread_idx, e.thread_nid, e.device_nid, e.txn_id, j.json"
    };
}

/// Reads an event from a row of `event_columns!()`.
///
/// # Errors
/// If the row or its JSON cannot be read.
pub fn event(row: &Row, rules: &RoomVersionRules) -> Result<Event> {
    let event_id: String = row.get(1)?;
    let event_id = event_id.try_into().map_err(decode_error)?;
    let mut pdu =
        Pdu::from_canonical(event_id, row.get::<String>(17)?, rules).map_err(decode_error)?;
    let flags: i64 = row.get(8)?;
    pdu.rejected = flags & flags::REJECTED != 0;
    let device: Option<i64> = row.get(15)?;
    let txn: Option<String> = row.get(16)?;
    Ok(Event {
        nid: EventNid(row.get(0)?),
        room: RoomNid(row.get(2)?),
        pdu: Arc::new(pdu),
        pos: row.get(3)?,
        ord: row.get(4)?,
        type_nid: TypeNid(row.get(5)?),
        key: row.get::<Option<i64>>(6)?.map(KeyNid),
        sender: UserNid(row.get(7)?),
        flags,
        state_line: row.get(9)?,
        state_sv: row.get(10)?,
        replaces: row.get::<Option<i64>>(11)?.map(EventNid),
        redacted_by: row.get::<Option<i64>>(12)?.map(EventNid),
        unread_idx: row.get(13)?,
        thread: row.get::<Option<i64>>(14)?.map(EventNid),
        txn: device
            .zip(txn)
            .map(|(device, txn)| (DeviceNid(device), txn.into())),
    })
}

/// Reads an event for somebody who looks at a room. One that cannot be read is `None` and a line in the log: it costs the
/// others nothing. Who judges by events must know all of them, and takes [`event`].
///
/// # Errors
/// If the row cannot be read.
pub fn readable(row: &Row, rules: &RoomVersionRules) -> Result<Option<Event>> {
    match event(row, rules) {
        Ok(event) => Ok(Some(event)),
        Err(super::Error::Decode(error)) => {
            let event: String = row.get(1)?;
            tracing::error!(event, %error, "an event cannot be read, and is left out");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The JSON of an event that is told to others as it is stored, from a row with that and the event's id in these columns.
/// What is no JSON is `None` and a line in the log: it would spoil all that is told with it.
///
/// # Errors
/// If the row cannot be read.
pub(super) fn json(row: &Row, json: usize, id: usize) -> Result<Option<String>> {
    let json: String = row.get(json)?;
    if json.starts_with('{') && serde_json::from_str::<&RawValue>(&json).is_ok() {
        return Ok(Some(json));
    }
    let event: String = row.get(id)?;
    tracing::error!(event, "an event cannot be read, and is left out");
    Ok(None)
}

fn decode_error(error: impl std::error::Error + Send + Sync + 'static) -> super::Error {
    super::Error::Decode(Box::new(error))
}

/// The event with this id in this room.
pub async fn by_id(
    db: &Db,
    rules: &RoomVersionRules,
    room: RoomNid,
    event_id: &str,
) -> Result<Option<Event>> {
    let row = row_by_id(db, room, event_id).await?;
    row.map(|row| event(&row, rules)).transpose()
}

/// The same for somebody who looks at it: `None` too if it cannot be read.
pub async fn readable_by_id(
    db: &Db,
    rules: &RoomVersionRules,
    room: RoomNid,
    event_id: &str,
) -> Result<Option<Event>> {
    let row = row_by_id(db, room, event_id).await?;
    row.map_or(Ok(None), |row| readable(&row, rules))
}

async fn row_by_id(db: &Db, room: RoomNid, event_id: &str) -> Result<Option<Row>> {
    let query = sql!(
        "SELECT ",
        (event_columns),
        " FROM event e JOIN event_json j ON j.nid = e.nid WHERE e.event_id = $1 AND e.room_nid = $2"
    );
    db.maybe(query, args![event_id, room]).await
}

/// The events with these nids, in no particular order.
pub async fn many(db: &Db, rules: &RoomVersionRules, nids: &[EventNid]) -> Result<Vec<Event>> {
    let rows = rows(db, nids).await?;
    rows.iter().map(|row| event(row, rules)).collect()
}

/// Those of the events with these nids that can be read, for somebody who looks at them.
pub async fn some(db: &Db, rules: &RoomVersionRules, nids: &[EventNid]) -> Result<Vec<Event>> {
    let rows = rows(db, nids).await?;
    let events = rows.iter().map(|row| readable(row, rules));
    events.filter_map(Result::transpose).collect()
}

async fn rows(db: &Db, nids: &[EventNid]) -> Result<Vec<Row>> {
    if nids.is_empty() {
        return Ok(Vec::new());
    }
    let query = sql!(
        "SELECT ",
        (event_columns),
        " FROM event e JOIN event_json j ON j.nid = e.nid WHERE e.nid ",
        list(1)
    );
    db.rows(query, args![nids]).await
}

/// The event that a device sent to a room under a transaction id, if it did.
pub async fn by_txn(
    db: &Db,
    device: DeviceNid,
    txn: &str,
    room: RoomNid,
    kind: TypeNid,
) -> Result<Option<String>> {
    let query = sql!(
        "SELECT event_id FROM event WHERE device_nid = $1 AND txn_id = $2 AND room_nid = $3 AND type_nid = $4"
    );
    db.maybe(query, args![device, txn, room, kind])
        .await?
        .map(|row| row.get(0))
        .transpose()
}

/// The ids of events.
pub async fn ids(db: &Db, nids: &[EventNid]) -> Result<Vec<(EventNid, String)>> {
    let query = sql!("SELECT nid, event_id FROM event WHERE nid ", list(1));
    db.rows(query, args![nids])
        .await?
        .iter()
        .map(|row| Ok((EventNid(row.get(0)?), row.get(1)?)))
        .collect()
}

/// The ids of events, and who sent them.
pub async fn senders(db: &Db, nids: &[EventNid]) -> Result<Vec<(EventNid, String, String)>> {
    let query = sql!(
        "SELECT e.nid, e.event_id, u.mxid FROM event e JOIN user_id u ON u.nid = e.sender_nid WHERE e.nid ",
        list(1)
    );
    db.rows(query, args![nids])
        .await?
        .iter()
        .map(|row| Ok((EventNid(row.get(0)?), row.get(1)?, row.get(2)?)))
        .collect()
}

/// How many events that notify by default some users have sent after the position `from`, up to `to`: in a thread, or
/// (0) outside of all.
pub async fn sent_between(
    db: &Db,
    room: RoomNid,
    users: &[UserNid],
    thread: i64,
    (from, to): (Pos, Pos),
) -> Result<i64> {
    let query = sql!(
        "SELECT count(*) FROM event WHERE room_nid = $1 AND pos > $4 AND pos <= $5 AND flags & 16 <> 0 ",
        "AND coalesce(thread_nid, 0) = $3 AND sender_nid ",
        list(2)
    );
    db.one(query, args![room, users, thread, from, to])
        .await?
        .get(0)
}

/// The count of events in no thread that notify by default, up to a position.
pub async fn unread_idx_at(db: &Db, room: RoomNid, pos: Pos) -> Result<i64> {
    let query = sql!(
        "SELECT unread_idx FROM event WHERE room_nid = $1 AND pos <= $2 AND thread_nid IS NULL ",
        "ORDER BY pos DESC LIMIT 1"
    );
    let row = db.maybe(query, args![room, pos]).await?;
    row.map_or(Ok(0), |row| row.get(0))
}
