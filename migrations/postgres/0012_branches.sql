-- What other servers tell of rooms: branches, gaps, and what waits to be looked at.

-- The version of a line that is the state after an event, for events marked as forked.
CREATE TABLE event_after (
    event_nid BIGINT PRIMARY KEY,
    line BIGINT NOT NULL,
    sv BIGINT NOT NULL
);

-- Events that others follow and that are not here: where to ask for older history. depth: that of the one that follows.
CREATE TABLE backward_extremity (
    room_nid BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    depth BIGINT NOT NULL,
    PRIMARY KEY (room_nid, event_id)
);

-- Events whose signatures are good, which the sender was told have arrived, and which have not found their place yet.
-- nid: in the order in which they have come. attempts, next_ts: how often it was tried in vain, and when to try again.
CREATE TABLE inbound_pdu (
    room_nid BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    nid BIGINT NOT NULL,
    origin TEXT NOT NULL,
    json TEXT NOT NULL,
    ts BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    next_ts BIGINT NOT NULL,
    PRIMARY KEY (room_nid, event_id)
);

-- Events that relate to another which has not come yet: how (redactions: empty), and which they are.
CREATE TABLE early_relation (
    room_nid BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    rel_type TEXT NOT NULL,
    nid BIGINT NOT NULL,
    PRIMARY KEY (room_nid, event_id, rel_type, nid)
);

-- What a user was told of a room that this server is not in, with an invite or for a knock: a JSON list of stripped state.
CREATE TABLE stripped_state (
    room_nid BIGINT NOT NULL,
    user_nid BIGINT NOT NULL,
    json TEXT NOT NULL,
    PRIMARY KEY (room_nid, user_nid)
);

-- Rooms whose state is being taken in for a join that is not finished. Rows that belong to them are nobody's.
CREATE TABLE room_ingest (
    room_nid BIGINT PRIMARY KEY,
    line BIGINT NOT NULL,
    started_ts BIGINT NOT NULL
);
