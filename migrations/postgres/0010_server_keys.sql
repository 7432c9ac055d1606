-- Keys of other servers.

-- valid_until_ts: what the key has signed up to this time holds.
CREATE TABLE server_key (
    server_nid BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    public_key TEXT NOT NULL,
    valid_until_ts BIGINT NOT NULL,
    PRIMARY KEY (server_nid, key_id)
);

-- What each server has published last, to be passed on to those who ask this server as a notary.
CREATE TABLE server_key_document (
    server_nid BIGINT PRIMARY KEY,
    json TEXT NOT NULL,
    fetched_ts BIGINT NOT NULL,
    valid_until_ts BIGINT NOT NULL
);
