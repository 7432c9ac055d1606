-- What can be searched. rowid: the event; room and key: one word each that says where the words are from.
-- differs on PostgreSQL, whose full-text search is its own.

CREATE VIRTUAL TABLE event_search USING fts5 (
    room,
    key,
    words,
    content = '',
    contentless_delete = 1,
    tokenize = 'unicode61 remove_diacritics 2'
);
