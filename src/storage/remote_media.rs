//! `media` that came from elsewhere and can be fetched again: those of other servers, and the images of previews.

use super::{
    Db, MediaNid, Result, Row, Write,
    media::{ContentHash, hash},
};
use crate::{args, sql};

/// A media that came from elsewhere.
#[derive(Clone, Debug)]
pub struct RemoteMedia {
    /// The media.
    pub nid: MediaNid,
    /// What it holds.
    pub hash: ContentHash,
    /// What that and its thumbnails take on the disk.
    pub bytes: i64,
}

/// What all media from elsewhere take on the disk, with their thumbnails, in bytes.
pub async fn bytes(db: &Db) -> Result<i64> {
    let query = sql!(
        "SELECT CAST(coalesce(sum(b.bytes + coalesce((SELECT sum(t.bytes) FROM thumbnail t ",
        "WHERE t.sha256 = m.sha256 AND NOT t.is_original), 0)), 0) AS BIGINT) ",
        "FROM media m JOIN blob b ON b.sha256 = m.sha256 WHERE m.user_nid IS NULL"
    );
    db.one(query, args![]).await?.get(0)
}

/// The media from elsewhere for which nobody has asked for the longest time.
pub async fn oldest(db: &Db, limit: i64) -> Result<Vec<RemoteMedia>> {
    let query = sql!(
        "SELECT m.nid, m.sha256, CAST(b.bytes + coalesce((SELECT sum(t.bytes) FROM thumbnail t ",
        "WHERE t.sha256 = m.sha256 AND NOT t.is_original), 0) AS BIGINT) ",
        "FROM media m JOIN blob b ON b.sha256 = m.sha256 WHERE m.user_nid IS NULL ",
        "ORDER BY m.last_access_ts, m.nid LIMIT $1"
    );
    let rows = db.rows(query, args![limit]).await?;
    rows.iter().map(media).collect()
}

fn media(row: &Row) -> Result<RemoteMedia> {
    Ok(RemoteMedia {
        nid: MediaNid(row.get(0)?),
        hash: hash(row.get(1)?)?,
        bytes: row.get(2)?,
    })
}

/// Those that nobody uploaded and that are not to be kept any longer.
pub async fn expired(db: &Db, now: i64, limit: i64) -> Result<Vec<RemoteMedia>> {
    let query = sql!(
        "SELECT nid, sha256, CAST(0 AS BIGINT) FROM media ",
        "WHERE user_nid IS NULL AND sha256 IS NOT NULL AND expires_ts <= $1 ORDER BY expires_ts LIMIT $2"
    );
    let rows = db.rows(query, args![now, limit]).await?;
    rows.iter().map(media).collect()
}

/// Deletes a media, and its content with the thumbnails if no other media has the same.
#[must_use]
pub fn delete(media: &RemoteMedia) -> [Write; 4] {
    let hash = &media.hash[..];
    [
        Write::Run(sql!("DELETE FROM media WHERE nid = $1"), args![media.nid]),
        Write::Run(
            sql!("UPDATE blob SET uses = uses - 1 WHERE sha256 = $1"),
            args![hash],
        ),
        Write::Run(
            sql!("DELETE FROM blob WHERE sha256 = $1 AND uses <= 0"),
            args![hash],
        ),
        Write::Run(
            sql!(
                "DELETE FROM thumbnail WHERE sha256 = $1 AND NOT EXISTS ",
                "(SELECT 1 FROM blob WHERE blob.sha256 = $1)"
            ),
            args![hash],
        ),
    ]
}
