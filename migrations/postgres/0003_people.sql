-- What people say about themselves and set for themselves.

-- One row for each field of a local user's profile; json is its value.
-- folded: the display name in lower case, for the user directory.
CREATE TABLE profile (
    user_nid BIGINT NOT NULL,
    field TEXT NOT NULL,
    json TEXT NOT NULL,
    folded TEXT,
    PRIMARY KEY (user_nid, field)
);

-- Filters that clients refer to by id; the id is made of the filter, so that the same filter is kept once.
CREATE TABLE filter (
    user_nid BIGINT NOT NULL,
    filter_id TEXT NOT NULL,
    json TEXT NOT NULL,
    created_ts BIGINT NOT NULL,
    PRIMARY KEY (user_nid, filter_id)
);

-- What was last known of a user who is offline.
CREATE TABLE presence (
    user_nid BIGINT PRIMARY KEY,
    last_active_ts BIGINT NOT NULL,
    status_msg TEXT
);

-- Reports to the administrators: of an event in a room, of a room, or of a user.
CREATE TABLE report (
    nid BIGINT PRIMARY KEY,
    reporter_nid BIGINT NOT NULL,
    ts BIGINT NOT NULL,
    room_nid BIGINT,
    event_nid BIGINT,
    user_nid BIGINT,
    reason TEXT NOT NULL
);

CREATE INDEX report_reporter ON report (reporter_nid, ts);
