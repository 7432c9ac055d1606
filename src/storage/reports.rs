//! `report`: what users have reported to the administrators.

use super::{Db, EventNid, Insert, Result, RoomNid, UserNid, Write};
use crate::{args, sql};

/// A report of an event (with its room), of a room, or of a user.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its number.
    pub nid: i64,
    /// Who reports.
    pub reporter: UserNid,
    /// When, in milliseconds since 1970.
    pub ts: i64,
    /// The room.
    pub room: Option<RoomNid>,
    /// The event.
    pub event: Option<EventNid>,
    /// The user.
    pub user: Option<UserNid>,
    /// Why, as the reporter says.
    pub reason: String,
}

static REPORT: Insert = Insert {
    table: "report",
    columns: &[
        "nid",
        "reporter_nid",
        "ts",
        "room_nid",
        "event_nid",
        "user_nid",
        "reason",
    ],
    key: 0,
    conflict: "",
};

/// Adds a report.
#[must_use]
pub fn add(report: &Report) -> Write {
    let row = args![
        report.nid,
        report.reporter,
        report.ts,
        report.room,
        report.event,
        report.user,
        report.reason.as_str(),
    ];
    Write::Insert(&REPORT, row)
}

/// How many reports a user has made since a time.
pub async fn count_since(db: &Db, reporter: UserNid, ts: i64) -> Result<i64> {
    db.one(
        sql!("SELECT count(*) FROM report WHERE reporter_nid = $1 AND ts > $2"),
        args![reporter, ts],
    )
    .await?
    .get(0)
}

/// The newest reports.
pub async fn newest(db: &Db, limit: i64) -> Result<Vec<Report>> {
    let query = sql!(
        "SELECT nid, reporter_nid, ts, room_nid, event_nid, user_nid, reason FROM report ",
        "ORDER BY nid DESC LIMIT $1"
    );
    db.rows(query, args![limit])
        .await?
        .iter()
        .map(|row| {
            Ok(Report {
                nid: row.get(0)?,
                reporter: UserNid(row.get(1)?),
                ts: row.get(2)?,
                room: row.get::<Option<i64>>(3)?.map(RoomNid),
                event: row.get::<Option<i64>>(4)?.map(EventNid),
                user: row.get::<Option<i64>>(5)?.map(UserNid),
                reason: row.get(6)?,
            })
        })
        .collect()
}
