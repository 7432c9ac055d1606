-- before_join: what is missing there happened before somebody here joined the room.

ALTER TABLE backward_extremity ADD COLUMN before_join BOOLEAN NOT NULL DEFAULT FALSE;
