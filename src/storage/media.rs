//! `media`, `blob` and `thumbnail`: the content repository's names and what they stand for.

use super::{Db, Insert, MediaNid, Result, Row, UserNid, Write};
use crate::{args, sql};

/// The SHA-256 of a content.
pub type ContentHash = [u8; 32];

/// A media, uploaded or still to be.
#[derive(Clone, Debug)]
pub struct Media {
    /// The media.
    pub nid: MediaNid,
    /// Who uploaded it or may do so; nobody if it came from elsewhere.
    pub user: Option<UserNid>,
    /// What was uploaded.
    pub content: Option<Content>,
    /// Until when it waits for its upload or is kept, in milliseconds since 1970.
    pub expires: Option<i64>,
    /// When it was last asked for, give or take a day, in milliseconds since 1970.
    pub last_access: i64,
}

/// What a media holds.
#[derive(Clone, Debug)]
pub struct Content {
    /// The hash of its bytes.
    pub hash: ContentHash,
    /// The media type that the uploader gave.
    pub content_type: Option<String>,
    /// The file name that the uploader gave.
    pub filename: Option<String>,
}

/// The media with this name.
pub async fn get(db: &Db, origin: &str, media_id: &str) -> Result<Option<Media>> {
    let query = sql!(
        "SELECT nid, user_nid, sha256, content_type, filename, expires_ts, last_access_ts FROM media ",
        "WHERE origin = $1 AND media_id = $2"
    );
    let Some(row) = db.maybe(query, args![origin, media_id]).await? else {
        return Ok(None);
    };
    let content = match row.get::<Option<Vec<u8>>>(2)? {
        Some(bytes) => Some(Content {
            hash: hash(bytes)?,
            content_type: row.get(3)?,
            filename: row.get(4)?,
        }),
        None => None,
    };
    Ok(Some(Media {
        nid: MediaNid(row.get(0)?),
        user: row.get::<Option<i64>>(1)?.map(UserNid),
        content,
        expires: row.get(5)?,
        last_access: row.get(6)?,
    }))
}

/// Counts one more media with this content, of so many bytes.
#[must_use]
pub fn use_blob(hash: &ContentHash, bytes: i64, now: i64) -> Write {
    let statement = sql!(
        "INSERT INTO blob (sha256, bytes, uses, created_ts) VALUES ($1, $2, 1, $3) ",
        "ON CONFLICT (sha256) DO UPDATE SET uses = blob.uses + 1"
    );
    Write::Run(statement, args![&hash[..], bytes, now])
}

/// How many bytes the media of a user take; the same content counts each time.
pub async fn bytes_of(db: &Db, user: UserNid) -> Result<i64> {
    let query = sql!(
        "SELECT CAST(coalesce(sum(b.bytes), 0) AS BIGINT) FROM media m JOIN blob b ON b.sha256 = m.sha256 ",
        "WHERE m.user_nid = $1"
    );
    db.one(query, args![user]).await?.get(0)
}

/// Refuses the change if the media of a user take more bytes than this.
#[must_use]
pub fn expect_at_most(user: UserNid, bytes: i64) -> Write {
    let statement = sql!(
        "UPDATE account SET deactivated = deactivated WHERE user_nid = $1 AND $2 >= ",
        "(SELECT coalesce(sum(b.bytes), 0) FROM media m JOIN blob b ON b.sha256 = m.sha256 WHERE m.user_nid = $1)"
    );
    Write::Expect(statement, args![user, bytes], 1)
}

/// The contents whose hashes begin with this byte.
pub async fn blobs(db: &Db, first: u8) -> Result<Vec<ContentHash>> {
    let query = sql!("SELECT sha256 FROM blob WHERE sha256 BETWEEN $1 AND $2");
    let (mut least, mut most) = ([0; 32], [u8::MAX; 32]);
    (least[0], most[0]) = (first, first);
    let rows = db.rows(query, args![&least[..], &most[..]]).await?;
    rows.iter().map(|row| hash(row.get(0)?)).collect()
}

pub(super) fn hash(bytes: Vec<u8>) -> Result<ContentHash> {
    bytes
        .try_into()
        .map_err(|_| sqlx::Error::Decode("a hash has another length".into()))
}

/// How many media have this content.
pub async fn uses(db: &Db, hash: &ContentHash) -> Result<i64> {
    let query = sql!("SELECT uses FROM blob WHERE sha256 = $1");
    match db.maybe(query, args![&hash[..]]).await? {
        Some(row) => row.get(0),
        None => Ok(0),
    }
}

static MEDIA: Insert = Insert {
    table: "media",
    columns: &[
        "nid",
        "origin",
        "media_id",
        "user_nid",
        "sha256",
        "content_type",
        "filename",
        "created_ts",
        "last_access_ts",
    ],
    key: 0,
    conflict: "",
};

/// Names a content that a user uploaded, or that came from elsewhere.
#[must_use]
pub fn add(
    nid: MediaNid,
    (origin, media_id): (&str, &str),
    user: Option<UserNid>,
    content: Content,
    now: i64,
) -> Write {
    let row = args![
        nid,
        origin,
        media_id,
        user,
        &content.hash[..],
        content.content_type,
        content.filename,
        now,
        now
    ];
    Write::Insert(&MEDIA, row)
}

/// Names a content that came from elsewhere and is kept until `expires` at the longest.
#[must_use]
pub fn add_until(
    nid: MediaNid,
    (origin, media_id): (&str, &str),
    content: Content,
    (now, expires): (i64, i64),
) -> Write {
    let statement = sql!(
        "INSERT INTO media (nid, origin, media_id, sha256, content_type, filename, created_ts, expires_ts, ",
        "last_access_ts) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $7)"
    );
    let row = args![
        nid,
        origin,
        media_id,
        &content.hash[..],
        content.content_type,
        content.filename,
        now,
        expires
    ];
    Write::Run(statement, row)
}

/// Makes a name for an upload to come before `expires`. Refused if the user has `limit` such names already.
#[must_use]
pub fn reserve(
    nid: MediaNid,
    (origin, media_id): (&str, &str),
    user: UserNid,
    (now, expires): (i64, i64),
    limit: u32,
) -> Write {
    let statement = sql!(
        "INSERT INTO media (nid, origin, media_id, user_nid, created_ts, expires_ts, last_access_ts) ",
        "SELECT $1, $2, $3, $4, $5, $6, $5 WHERE ",
        "(SELECT COUNT(*) FROM media WHERE user_nid = $4 AND sha256 IS NULL AND expires_ts > $5) < $7"
    );
    let row = args![nid, origin, media_id, user, now, expires, i64::from(limit)];
    Write::Expect(statement, row, 1)
}

/// Deletes the user's names whose upload did not come in time.
#[must_use]
pub fn delete_expired(user: UserNid, now: i64) -> Write {
    let statement =
        sql!("DELETE FROM media WHERE user_nid = $1 AND sha256 IS NULL AND expires_ts <= $2");
    Write::Run(statement, args![user, now])
}

/// Gives a name its content. Refused if it has one.
#[must_use]
pub fn fill(nid: MediaNid, content: Content) -> Write {
    let statement = sql!(
        "UPDATE media SET sha256 = $2, content_type = $3, filename = $4, expires_ts = NULL ",
        "WHERE nid = $1 AND sha256 IS NULL"
    );
    let row = args![
        nid,
        &content.hash[..],
        content.content_type,
        content.filename
    ];
    Write::Expect(statement, row, 1)
}

/// Notes that a media was asked for.
#[must_use]
pub fn touch(nid: MediaNid, now: i64) -> Write {
    let statement = sql!("UPDATE media SET last_access_ts = $2 WHERE nid = $1");
    Write::Run(statement, args![nid, now])
}

/// How big a thumbnail is to be, and how it gets there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ThumbnailSize {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// How.
    pub method: ThumbnailMethod,
    /// Whether it moves if the image does.
    pub animated: bool,
}

impl ThumbnailSize {
    /// The number that the table has for the method; those of what moves come after the others.
    #[must_use]
    pub fn number(self) -> i64 {
        self.method as i64 + if self.animated { ANIMATED } else { 0 }
    }
}

/// What is added to the number of a method where the thumbnail moves.
const ANIMATED: i64 = 2;

/// The ways to make an image smaller, with the numbers that the table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ThumbnailMethod {
    /// Fills the size; what juts out is cut off.
    Crop = 1,
    /// Fits into the size with nothing cut off.
    Scale = 2,
}

/// A thumbnail that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thumbnail {
    /// Its media type; nothing if there is none that moves, and the still one serves.
    pub content_type: String,
    /// Whether the content itself is the thumbnail, being small enough.
    pub is_original: bool,
    /// The size of its file.
    pub bytes: i64,
}

/// The sizes of the thumbnails of a content that have files of their own.
pub async fn thumbnail_sizes(db: &Db, hash: &ContentHash) -> Result<Vec<ThumbnailSize>> {
    let query =
        sql!("SELECT width, height, method FROM thumbnail WHERE sha256 = $1 AND NOT is_original");
    let size = |row: &Row| -> Result<ThumbnailSize> {
        let pixels = |value: i64| u32::try_from(value).unwrap_or(u32::MAX);
        Ok(ThumbnailSize {
            width: pixels(row.get(0)?),
            height: pixels(row.get(1)?),
            method: match row.get::<i64>(2)? {
                1 | 3 => ThumbnailMethod::Crop,
                _ => ThumbnailMethod::Scale,
            },
            animated: row.get::<i64>(2)? > ANIMATED,
        })
    };
    let rows = db.rows(query, args![&hash[..]]).await?;
    rows.iter().map(size).collect()
}

/// The thumbnail of a content, if it was made.
pub async fn thumbnail(
    db: &Db,
    hash: &ContentHash,
    size: ThumbnailSize,
) -> Result<Option<Thumbnail>> {
    let query = sql!(
        "SELECT content_type, is_original, bytes FROM thumbnail ",
        "WHERE sha256 = $1 AND width = $2 AND height = $3 AND method = $4"
    );
    let (width, height) = (i64::from(size.width), i64::from(size.height));
    let key = args![&hash[..], width, height, size.number()];
    let Some(row) = db.maybe(query, key).await? else {
        return Ok(None);
    };
    Ok(Some(Thumbnail {
        content_type: row.get(0)?,
        is_original: row.get(1)?,
        bytes: row.get(2)?,
    }))
}

static THUMBNAIL: Insert = Insert {
    table: "thumbnail",
    columns: &[
        "sha256",
        "width",
        "height",
        "method",
        "content_type",
        "is_original",
        "bytes",
        "created_ts",
    ],
    key: 4,
    conflict: "ON CONFLICT (sha256, width, height, method) DO UPDATE SET content_type = excluded.content_type, \
               is_original = excluded.is_original, bytes = excluded.bytes, created_ts = excluded.created_ts",
};

/// Notes that a thumbnail was made.
#[must_use]
pub fn add_thumbnail(
    hash: &ContentHash,
    size: ThumbnailSize,
    thumbnail: Thumbnail,
    now: i64,
) -> Write {
    let row = args![
        &hash[..],
        i64::from(size.width),
        i64::from(size.height),
        size.number(),
        thumbnail.content_type,
        thumbnail.is_original,
        thumbnail.bytes,
        now
    ];
    Write::Insert(&THUMBNAIL, row)
}
