-- Media of other servers in the order in which they are given up.
CREATE INDEX media_remote ON media (last_access_ts, nid) WHERE user_nid IS NULL;
