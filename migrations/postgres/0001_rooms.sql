-- Names: each id is text here and an integer everywhere else.

CREATE TABLE id_block (
    name TEXT NOT NULL PRIMARY KEY,
    next BIGINT NOT NULL
);

CREATE TABLE user_id (
    nid BIGINT PRIMARY KEY,
    mxid TEXT NOT NULL UNIQUE
);

CREATE TABLE event_type (
    nid BIGINT PRIMARY KEY,
    type TEXT NOT NULL UNIQUE
);

-- A pair of event type and state key.
CREATE TABLE state_key (
    nid BIGINT PRIMARY KEY,
    type TEXT NOT NULL,
    key TEXT NOT NULL,
    UNIQUE (type, key)
);

-- Order: one row for each committed batch; the largest pos is the head of the log.

CREATE TABLE commit_log (
    pos BIGINT PRIMARY KEY,
    from_pos BIGINT NOT NULL,
    ts BIGINT NOT NULL
);

-- Rooms.

CREATE TABLE room (
    nid BIGINT PRIMARY KEY,
    room_id TEXT NOT NULL UNIQUE,
    room_version TEXT NOT NULL,
    room_type TEXT,
    created_ts BIGINT NOT NULL,
    published BOOLEAN NOT NULL DEFAULT FALSE
);

CREATE INDEX room_published ON room (nid) WHERE published;

-- What changes with every event of the room, apart from what does not.
-- base: the version that this one was computed on; a write whose base is not the stored version comes too late.
CREATE TABLE room_head (
    room_nid BIGINT PRIMARY KEY,
    base BIGINT NOT NULL,
    version BIGINT NOT NULL,
    extremities BYTEA NOT NULL,
    state_line BIGINT NOT NULL,
    state_sv BIGINT NOT NULL,
    max_depth BIGINT NOT NULL,
    unread_idx BIGINT NOT NULL,
    joined_count BIGINT NOT NULL,
    invited_count BIGINT NOT NULL,
    last_pos BIGINT NOT NULL,
    last_local_pos BIGINT NOT NULL,
    bump_pos BIGINT NOT NULL
);

-- pos: place in the log, NULL for events that were never news here (outliers, history fetched later).
-- (depth, ord): place in the room's history; ord is pos for news and negative for history fetched later.
-- state_line, state_sv: the room's state before the event.
-- unread_idx: how many events of the room (of the thread, for one in a thread) notify by default, up to this one.
-- device_nid, txn_id: which device sent it, under which transaction id.
CREATE TABLE event (
    nid BIGINT PRIMARY KEY,
    event_id TEXT NOT NULL UNIQUE,
    room_nid BIGINT NOT NULL,
    pos BIGINT,
    depth BIGINT NOT NULL,
    ord BIGINT NOT NULL,
    type_nid BIGINT NOT NULL,
    key_nid BIGINT,
    sender_nid BIGINT NOT NULL,
    ts BIGINT NOT NULL,
    flags BIGINT NOT NULL,
    state_line BIGINT NOT NULL,
    state_sv BIGINT NOT NULL,
    auth_nids BYTEA NOT NULL,
    replaces_nid BIGINT,
    redacted_by BIGINT,
    unread_idx BIGINT NOT NULL,
    thread_nid BIGINT,
    device_nid BIGINT,
    txn_id TEXT
);

CREATE UNIQUE INDEX event_pos ON event (room_nid, pos) WHERE pos IS NOT NULL;
CREATE INDEX event_history ON event (room_nid, depth, ord);
CREATE INDEX event_thread ON event (thread_nid, pos) WHERE thread_nid IS NOT NULL;
CREATE INDEX event_ts ON event (room_nid, ts);
CREATE UNIQUE INDEX event_txn ON event (device_nid, txn_id, room_nid, type_nid) WHERE txn_id IS NOT NULL;

-- The event as it was signed: canonical JSON.
CREATE TABLE event_json (
    nid BIGINT PRIMARY KEY,
    json TEXT NOT NULL
);

CREATE TABLE relation (
    parent_nid BIGINT NOT NULL,
    rel_type TEXT NOT NULL,
    child_nid BIGINT NOT NULL,
    PRIMARY KEY (parent_nid, rel_type, child_nid)
);

CREATE TABLE thread (
    room_nid BIGINT NOT NULL,
    root_nid BIGINT NOT NULL,
    last_nid BIGINT NOT NULL,
    last_pos BIGINT NOT NULL,
    unread_idx BIGINT NOT NULL,
    PRIMARY KEY (room_nid, root_nid)
);

CREATE INDEX thread_last ON thread (room_nid, last_pos);

-- State: a line is a branch of a room's state history, a version of it changes one or more keys.

CREATE TABLE state_line (
    line BIGINT PRIMARY KEY,
    room_nid BIGINT NOT NULL,
    parent_line BIGINT,
    parent_sv BIGINT
);

CREATE INDEX state_line_room ON state_line (room_nid);

-- event_nid NULL: the key was removed.
CREATE TABLE state_change (
    line BIGINT NOT NULL,
    key_nid BIGINT NOT NULL,
    sv BIGINT NOT NULL,
    event_nid BIGINT,
    PRIMARY KEY (line, key_nid, sv)
);

CREATE INDEX state_change_version ON state_change (line, sv);

CREATE TABLE current_state (
    room_nid BIGINT NOT NULL,
    key_nid BIGINT NOT NULL,
    event_nid BIGINT NOT NULL,
    PRIMARY KEY (room_nid, key_nid)
);

-- How the current state changed, for sync. event_nid NULL: the key was removed.
CREATE TABLE state_delta (
    room_nid BIGINT NOT NULL,
    pos BIGINT NOT NULL,
    key_nid BIGINT NOT NULL,
    event_nid BIGINT,
    prev_nid BIGINT,
    PRIMARY KEY (room_nid, pos, key_nid)
);

-- membership: 1 invite, 2 join, 3 knock, 4 leave, 5 ban.
CREATE TABLE membership (
    room_nid BIGINT NOT NULL,
    user_nid BIGINT NOT NULL,
    membership BIGINT NOT NULL,
    event_nid BIGINT NOT NULL,
    sender_nid BIGINT NOT NULL,
    pos BIGINT NOT NULL,
    is_local BOOLEAN NOT NULL,
    display_name TEXT,
    avatar_url TEXT,
    forgotten BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (room_nid, user_nid)
);

CREATE INDEX membership_user ON membership (user_nid, membership, pos) WHERE is_local;
CREATE INDEX membership_room ON membership (room_nid, membership, is_local);

-- What a person has seen of a room (thread_nid 0) or a thread.

CREATE TABLE receipt (
    room_nid BIGINT NOT NULL,
    user_nid BIGINT NOT NULL,
    thread_nid BIGINT NOT NULL,
    kind BIGINT NOT NULL,
    event_nid BIGINT NOT NULL,
    ts BIGINT NOT NULL,
    pos BIGINT NOT NULL,
    PRIMARY KEY (room_nid, user_nid, thread_nid, kind)
);

CREATE INDEX receipt_pos ON receipt (room_nid, pos);

-- Read up to pos; idx is the room's unread_idx there, own how many notifying events the reader has sent since.
-- thread_nid: the thread, 0 for what is in none, -2 for everything, threads included.
CREATE TABLE read_marker (
    user_nid BIGINT NOT NULL,
    room_nid BIGINT NOT NULL,
    thread_nid BIGINT NOT NULL,
    pos BIGINT NOT NULL,
    idx BIGINT NOT NULL,
    own BIGINT NOT NULL,
    PRIMARY KEY (user_nid, room_nid, thread_nid)
);

-- Where a user's own push rules decide otherwise than the default rules. flags: 1 highlights, 2 counts although the
-- default would not, 4 does not count although the default would.
CREATE TABLE highlight (
    user_nid BIGINT NOT NULL,
    room_nid BIGINT NOT NULL,
    pos BIGINT NOT NULL,
    thread_nid BIGINT NOT NULL,
    event_nid BIGINT NOT NULL,
    flags BIGINT NOT NULL,
    PRIMARY KEY (user_nid, room_nid, pos)
);

CREATE TABLE account_data (
    user_nid BIGINT NOT NULL,
    room_nid BIGINT NOT NULL,
    type TEXT NOT NULL,
    json TEXT NOT NULL,
    pos BIGINT NOT NULL,
    PRIMARY KEY (user_nid, room_nid, type)
);

CREATE INDEX account_data_pos ON account_data (user_nid, pos);
