-- A redacted event highlights no more, for whomever it did.
CREATE INDEX highlight_event ON highlight (event_nid);
