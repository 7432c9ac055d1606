-- Local accounts, their devices, and the tokens that speak for them. Times are milliseconds since 1970, NULL for never.

CREATE TABLE account (
    user_nid INTEGER PRIMARY KEY,
    localpart TEXT NOT NULL UNIQUE,
    password_hash TEXT,
    created_ts BIGINT NOT NULL,
    is_admin BOOLEAN NOT NULL,
    is_guest BOOLEAN NOT NULL,
    deactivated BOOLEAN NOT NULL,
    erased BOOLEAN NOT NULL,
    user_type TEXT
);

CREATE TABLE device (
    nid INTEGER PRIMARY KEY,
    user_nid BIGINT NOT NULL,
    device_id TEXT NOT NULL,
    display_name TEXT,
    created_ts BIGINT NOT NULL,
    UNIQUE (user_nid, device_id)
);

-- Apart from `device`, because it is written in bulk every minute.
CREATE TABLE device_seen (
    device_nid INTEGER PRIMARY KEY,
    ts BIGINT NOT NULL,
    ip TEXT
);

-- Tokens are kept as SHA-256 hashes. refresh_hash: the refresh token that was given out with it.
CREATE TABLE access_token (
    hash BLOB NOT NULL PRIMARY KEY,
    device_nid BIGINT NOT NULL,
    expires BIGINT,
    refresh_hash BLOB
);

CREATE INDEX access_token_device ON access_token (device_nid);
CREATE INDEX access_token_refresh ON access_token (refresh_hash);

-- parent_hash: the refresh token that it replaces, which stays valid until this one or its access token is used.
CREATE TABLE refresh_token (
    hash BLOB NOT NULL PRIMARY KEY,
    device_nid BIGINT NOT NULL,
    expires BIGINT,
    parent_hash BLOB
);

CREATE INDEX refresh_token_device ON refresh_token (device_nid);
CREATE INDEX refresh_token_parent ON refresh_token (parent_hash);

-- For `m.login.token`, each good for one login.
CREATE TABLE login_token (
    hash BLOB NOT NULL PRIMARY KEY,
    user_nid BIGINT NOT NULL,
    expires BIGINT NOT NULL
);

CREATE INDEX login_token_user ON login_token (user_nid);
CREATE INDEX login_token_expires ON login_token (expires);

CREATE TABLE openid_token (
    hash BLOB NOT NULL PRIMARY KEY,
    user_nid BIGINT NOT NULL,
    expires BIGINT NOT NULL
);

CREATE INDEX openid_token_user ON openid_token (user_nid);
CREATE INDEX openid_token_expires ON openid_token (expires);

-- is_first: the token of the first account, there as long as there is no account. It is kept readable because it is
-- printed at each start.
CREATE TABLE registration_token (
    token TEXT NOT NULL PRIMARY KEY,
    uses_allowed BIGINT,
    uses BIGINT NOT NULL,
    expires BIGINT,
    is_first BOOLEAN NOT NULL
);
