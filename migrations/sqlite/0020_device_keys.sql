-- Devices and their keys ("End-to-end encryption"): of local users, and of those on other servers whom they talk to.

-- json: the keys of a device as it has signed them.
CREATE TABLE device_key (
    device_nid INTEGER PRIMARY KEY,
    json TEXT NOT NULL
);

-- Keys that are handed out once, those with the lowest nid first. json: the key, as it was uploaded.
CREATE TABLE one_time_key (
    nid INTEGER PRIMARY KEY,
    device_nid BIGINT NOT NULL,
    algorithm TEXT NOT NULL,
    key_id TEXT NOT NULL,
    json TEXT NOT NULL,
    UNIQUE (device_nid, algorithm, key_id)
);

-- Those that were handed out: hash is the SHA-256 of json. Their ids must not come again with other keys.
CREATE TABLE one_time_key_used (
    device_nid BIGINT NOT NULL,
    algorithm TEXT NOT NULL,
    key_id TEXT NOT NULL,
    hash BLOB NOT NULL,
    PRIMARY KEY (device_nid, algorithm, key_id)
) WITHOUT ROWID;

-- What is handed out when no one-time key is left; used: it was.
CREATE TABLE fallback_key (
    device_nid BIGINT NOT NULL,
    algorithm TEXT NOT NULL,
    key_id TEXT NOT NULL,
    json TEXT NOT NULL,
    used BOOLEAN NOT NULL,
    PRIMARY KEY (device_nid, algorithm)
) WITHOUT ROWID;

-- usage: master, self_signing or user_signing; json: the key with the signatures that it was uploaded with.
CREATE TABLE cross_signing_key (
    user_nid BIGINT NOT NULL,
    usage TEXT NOT NULL,
    json TEXT NOT NULL,
    PRIMARY KEY (user_nid, usage)
) WITHOUT ROWID;

-- Signatures that were added later. key_id: what is signed, a device's id or a public key of user_nid.
-- signer_key: what it was signed with, such as ed25519:ID.
CREATE TABLE key_signature (
    user_nid BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    signer_nid BIGINT NOT NULL,
    signer_key TEXT NOT NULL,
    signature TEXT NOT NULL,
    PRIMARY KEY (user_nid, key_id, signer_nid, signer_key)
) WITHOUT ROWID;

-- Whose devices or keys have changed when, by place in the log. device_id: of a local user the device; empty where the keys
-- of the user have changed, and for users of other servers.
CREATE TABLE device_change (
    pos INTEGER PRIMARY KEY,
    user_nid BIGINT NOT NULL,
    device_id TEXT NOT NULL
);

CREATE INDEX device_change_user ON device_change (user_nid, pos);

-- What is known of the devices of users of other servers. keys_json: NULL if a device has no keys.
CREATE TABLE remote_device (
    user_nid BIGINT NOT NULL,
    device_id TEXT NOT NULL,
    display_name TEXT,
    keys_json TEXT,
    PRIMARY KEY (user_nid, device_id)
) WITHOUT ROWID;

-- stream_id: up to where the list is known, as its server counts; is_stale: it must be asked for again.
-- pos: the place in the log when it was asked for. It is kept up to date only while a room is shared.
CREATE TABLE remote_device_list (
    user_nid INTEGER PRIMARY KEY,
    stream_id BIGINT NOT NULL,
    is_stale BOOLEAN NOT NULL,
    pos BIGINT NOT NULL
);

-- Up to where a server was told whose devices have changed. Without a row: to where it came into the first room.
CREATE TABLE destination_devices (
    server_nid INTEGER PRIMARY KEY,
    pos BIGINT NOT NULL
);
