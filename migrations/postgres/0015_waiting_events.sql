-- An event waits for each server that has sent it: one of them may tell what it rests on, and another not.
ALTER TABLE inbound_pdu RENAME TO inbound_pdu_before;

CREATE TABLE inbound_pdu (
    room_nid BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    nid BIGINT NOT NULL,
    origin TEXT NOT NULL,
    json TEXT NOT NULL,
    ts BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    next_ts BIGINT NOT NULL,
    PRIMARY KEY (room_nid, event_id, origin)
);

INSERT INTO inbound_pdu (room_nid, event_id, nid, origin, json, ts, attempts, next_ts)
SELECT room_nid, event_id, nid, origin, json, ts, attempts, next_ts FROM inbound_pdu_before;

DROP TABLE inbound_pdu_before;

-- How many events of a server wait, and which of them are next.
CREATE INDEX inbound_pdu_origin ON inbound_pdu (origin, room_nid, nid);
