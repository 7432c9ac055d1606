-- Local accounts and their sessions.

CREATE TABLE account (
    user_nid BIGINT PRIMARY KEY,
    localpart TEXT NOT NULL UNIQUE,
    password_hash TEXT,
    created_ts BIGINT NOT NULL,
    is_admin BOOLEAN NOT NULL,
    is_guest BOOLEAN NOT NULL,
    deactivated BOOLEAN NOT NULL
);

CREATE TABLE device (
    nid BIGINT PRIMARY KEY,
    user_nid BIGINT NOT NULL,
    device_id TEXT NOT NULL,
    display_name TEXT,
    created_ts BIGINT NOT NULL,
    last_seen_ts BIGINT,
    last_seen_ip TEXT,
    UNIQUE (user_nid, device_id)
);

-- Tokens are kept as SHA-256 hashes. expires: milliseconds since 1970, NULL for never.
CREATE TABLE access_token (
    hash BYTEA NOT NULL PRIMARY KEY,
    device_nid BIGINT NOT NULL,
    expires BIGINT
);

CREATE INDEX access_token_device ON access_token (device_nid);
