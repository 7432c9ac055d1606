-- Messages from device to device ("Send-to-Device messaging").

-- Those that wait for a device, until it has come back with a later token. json: the event as the device gets it.
CREATE TABLE to_device (
    device_nid BIGINT NOT NULL,
    pos BIGINT NOT NULL,
    json TEXT NOT NULL,
    PRIMARY KEY (device_nid, pos)
);

-- Those that wait for another server, until it has taken them. json: the EDU.
CREATE TABLE to_device_out (
    server_nid BIGINT NOT NULL,
    pos BIGINT NOT NULL,
    json TEXT NOT NULL,
    PRIMARY KEY (server_nid, pos)
);

-- What has come from a server, and from a device under a transaction id, so that it is not taken twice. Kept for some days.
CREATE TABLE to_device_in (
    server_nid BIGINT NOT NULL,
    message_id TEXT NOT NULL,
    ts BIGINT NOT NULL,
    PRIMARY KEY (server_nid, message_id)
);

CREATE INDEX to_device_in_ts ON to_device_in (ts);

CREATE TABLE to_device_txn (
    device_nid BIGINT NOT NULL,
    type TEXT NOT NULL,
    txn_id TEXT NOT NULL,
    ts BIGINT NOT NULL,
    PRIMARY KEY (device_nid, type, txn_id)
);

CREATE INDEX to_device_txn_ts ON to_device_txn (ts);
