-- Devices that nobody is signed in on: they collect messages until a client of the user takes them over. One for each user.
-- json: what a client needs for that, encrypted.
CREATE TABLE dehydrated_device (
    user_nid INTEGER PRIMARY KEY,
    device_nid BIGINT NOT NULL,
    json TEXT NOT NULL
);

CREATE INDEX dehydrated_device_nid ON dehydrated_device (device_nid);

-- When a user has signed another one last, by place in the log: the signer's devices hear of it, and nobody else.
CREATE TABLE signature_change (
    signer_nid BIGINT NOT NULL,
    user_nid BIGINT NOT NULL,
    pos BIGINT NOT NULL,
    PRIMARY KEY (signer_nid, user_nid)
) WITHOUT ROWID;

CREATE INDEX key_signature_signer ON key_signature (signer_nid, signer_key);
