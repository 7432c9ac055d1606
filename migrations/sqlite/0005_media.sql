-- The content repository.

-- What was uploaded, once for each content; the bytes are in a file named after their hash.
-- uses: how many media have this content.
CREATE TABLE blob (
    sha256 BLOB NOT NULL PRIMARY KEY,
    bytes BIGINT NOT NULL,
    uses BIGINT NOT NULL,
    created_ts BIGINT NOT NULL
) WITHOUT ROWID;

-- The names of media: mxc://origin/media_id. user_nid: who uploaded it, if that was here.
-- sha256 is NULL and expires_ts is set while a media waits for its upload.
CREATE TABLE media (
    nid INTEGER PRIMARY KEY,
    origin TEXT NOT NULL,
    media_id TEXT NOT NULL,
    user_nid BIGINT,
    sha256 BLOB,
    content_type TEXT,
    filename TEXT,
    created_ts BIGINT NOT NULL,
    expires_ts BIGINT,
    last_access_ts BIGINT NOT NULL,
    UNIQUE (origin, media_id)
);

CREATE INDEX media_user ON media (user_nid, created_ts);
CREATE INDEX media_pending ON media (user_nid, expires_ts) WHERE sha256 IS NULL;
CREATE INDEX media_blob ON media (sha256);

-- Thumbnails that were made, for each content; their files can always be made again.
-- method: 1 crop, 2 scale. is_original: the content itself serves, and there is no file.
CREATE TABLE thumbnail (
    sha256 BLOB NOT NULL,
    width BIGINT NOT NULL,
    height BIGINT NOT NULL,
    method BIGINT NOT NULL,
    content_type TEXT NOT NULL,
    is_original BOOLEAN NOT NULL,
    bytes BIGINT NOT NULL,
    created_ts BIGINT NOT NULL,
    PRIMARY KEY (sha256, width, height, method)
) WITHOUT ROWID;
