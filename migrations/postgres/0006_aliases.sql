-- The names of rooms on this server.

CREATE TABLE alias (
    alias TEXT NOT NULL PRIMARY KEY,
    room_nid BIGINT NOT NULL,
    creator_nid BIGINT NOT NULL
);

CREATE INDEX alias_room ON alias (room_nid);
