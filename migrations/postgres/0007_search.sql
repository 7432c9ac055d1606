-- What can be searched. rowid: the event; room and key: one word each that says where the words are from.

CREATE TABLE event_search (
    rowid BIGINT PRIMARY KEY,
    room TEXT NOT NULL,
    key TEXT NOT NULL,
    words TEXT NOT NULL,
    vector TSVECTOR GENERATED ALWAYS AS (
        to_tsvector('simple'::regconfig, words) || array_to_tsvector(ARRAY['#' || room, '#' || key])
    ) STORED
);

CREATE INDEX event_search_vector ON event_search USING gin (vector);
