//! `commit_log` and `id_block`: how far the log has come, and which ids are given.

use super::{Arg, Db, Insert, Pos, Result, Sql, Write};
use crate::{args, sql};

/// The newest committed position; 0 if there is none.
pub async fn head(db: &Db) -> Result<Pos> {
    db.one(
        sql!("SELECT coalesce(max(pos), 0) FROM commit_log"),
        args![],
    )
    .await?
    .get(0)
}

/// One row for each committed batch.
pub static ROW: Insert = Insert {
    table: "commit_log",
    columns: &["pos", "from_pos", "ts"],
    key: 0,
    conflict: "",
};

/// The row for the batch with the positions after `from` up to `pos`.
#[must_use]
pub fn row(pos: Pos, from: Pos) -> Vec<Arg> {
    args![pos, from, chrono::Utc::now().timestamp_millis()]
}

/// Reserves a block of ids and returns the end of it.
pub static RESERVE: &Sql = sql!(
    "INSERT INTO id_block (name, next) VALUES ('nid', $1 + 1) ",
    "ON CONFLICT (name) DO UPDATE SET next = id_block.next + $1 RETURNING next"
);

/// The parameters of [`RESERVE`].
#[must_use]
pub fn reserve(count: i64) -> Vec<Arg> {
    args![count]
}

/// Forgets batches committed before `ts` (milliseconds since 1970), but never the newest.
#[must_use]
pub fn prune(ts: i64) -> Write {
    let sql =
        sql!("DELETE FROM commit_log WHERE ts < $1 AND pos < (SELECT max(pos) FROM commit_log)");
    Write::Run(sql, args![ts])
}
