-- Other servers: which rooms they are in, and what they have been sent.

CREATE TABLE server (
    nid BIGINT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

-- joined_count: how many of the server's users have joined the room.
-- from_pos: what happened in the room after this position, and up to left_pos, is for the server.
-- left_pos: where the server heard of the room last; NULL while it is in it.
CREATE TABLE room_server (
    room_nid BIGINT NOT NULL,
    server_nid BIGINT NOT NULL,
    joined_count BIGINT NOT NULL,
    from_pos BIGINT NOT NULL,
    left_pos BIGINT,
    PRIMARY KEY (room_nid, server_nid)
);

CREATE INDEX room_server_server ON room_server (server_nid);

-- The rooms of a user of another server.
CREATE INDEX membership_remote ON membership (user_nid) WHERE membership = 2 AND NOT is_local;

-- last_ok_pos: all that is for the server up to here has reached it. A server without a row has been sent nothing.
-- failures: how often in a row it could not be reached, since fail_since; not tried again before next_try.
CREATE TABLE destination (
    server_nid BIGINT PRIMARY KEY,
    last_ok_pos BIGINT NOT NULL,
    failures BIGINT NOT NULL,
    fail_since BIGINT,
    next_try BIGINT
);

-- All events so far are of this server, which tells others of them.
UPDATE event SET flags = flags | 32;
