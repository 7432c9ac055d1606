-- Backups of the keys of encrypted rooms ("Server-side key backups").

-- The newest version that each user has ever made, so that no version comes twice.
CREATE TABLE key_backup_newest (
    user_nid BIGINT PRIMARY KEY,
    version BIGINT NOT NULL
);

-- nid: whose keys are its own; another one once all of them were deleted. count: how many they are. etag: how often they
-- have changed.
CREATE TABLE key_backup (
    user_nid BIGINT NOT NULL,
    version BIGINT NOT NULL,
    nid BIGINT NOT NULL,
    algorithm TEXT NOT NULL,
    auth_data TEXT NOT NULL,
    count BIGINT NOT NULL,
    etag BIGINT NOT NULL,
    PRIMARY KEY (user_nid, version)
);

-- The keys. json: the session_data.
CREATE TABLE key_backup_session (
    backup_nid BIGINT NOT NULL,
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    first_message_index BIGINT NOT NULL,
    forwarded_count BIGINT NOT NULL,
    is_verified BOOLEAN NOT NULL,
    json TEXT NOT NULL,
    PRIMARY KEY (backup_nid, room_id, session_id)
);

-- The nids whose keys nobody can see any more. They are many, and so deleted bit by bit.
CREATE TABLE key_backup_gone (
    nid BIGINT PRIMARY KEY
);
