-- Where people are told of what happens while they do not look ("Push Notifications").

-- device_nid: the device that has set it, and with which it goes. set_ts: when. json: the pusher as it was set.
-- pos: what came later is for it. waits: not all of that which push_cursor covers has been taken.
CREATE TABLE pusher (
    nid INTEGER PRIMARY KEY,
    user_nid BIGINT NOT NULL,
    device_nid BIGINT NOT NULL,
    app_id TEXT NOT NULL,
    pushkey TEXT NOT NULL,
    set_ts BIGINT NOT NULL,
    json TEXT NOT NULL,
    pos BIGINT NOT NULL,
    waits BOOLEAN NOT NULL,
    UNIQUE (app_id, pushkey, user_nid)
);

CREATE INDEX pusher_user ON pusher (user_nid);
CREATE INDEX pusher_device ON pusher (device_nid);

-- Up to where the log was gone through for all pushers; in the row with nid 0.
CREATE TABLE push_cursor (
    nid INTEGER PRIMARY KEY,
    pos BIGINT NOT NULL
);
