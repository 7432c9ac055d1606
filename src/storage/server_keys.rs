//! `server_key` and `server_key_document`: the keys of other servers.

use super::{Db, Insert, Result, ServerNid, Write};
use crate::{args, sql};

/// A key of another server.
#[derive(Clone, Debug)]
pub struct ServerKey {
    /// The server's name.
    pub server: String,
    /// The id of the key.
    pub key_id: String,
    /// The key in base64.
    pub public_key: String,
    /// Until when what it signs holds, in milliseconds since 1970.
    pub valid_until: i64,
}

/// What another server has published.
#[derive(Clone, Debug)]
pub struct Document {
    /// The server's name.
    pub server: String,
    /// The document, in canonical JSON.
    pub json: String,
    /// When it was got, in milliseconds since 1970.
    pub fetched: i64,
    /// Until when it is valid, in milliseconds since 1970.
    pub valid_until: i64,
}

static KEY: Insert = Insert {
    table: "server_key",
    columns: &["server_nid", "key_id", "public_key", "valid_until_ts"],
    key: 2,
    conflict: "ON CONFLICT (server_nid, key_id) DO UPDATE SET public_key = excluded.public_key, \
               valid_until_ts = excluded.valid_until_ts",
};

static DOCUMENT: Insert = Insert {
    table: "server_key_document",
    columns: &["server_nid", "json", "fetched_ts", "valid_until_ts"],
    key: 1,
    conflict: "ON CONFLICT (server_nid) DO UPDATE SET json = excluded.json, \
               fetched_ts = excluded.fetched_ts, valid_until_ts = excluded.valid_until_ts",
};

/// Stores a key, in place of the one with the same id.
#[must_use]
pub fn set(server: ServerNid, key_id: &str, public_key: String, valid_until: i64) -> Write {
    Write::Insert(&KEY, args![server, key_id, public_key, valid_until])
}

/// Forgets a key.
#[must_use]
pub fn forget(server: ServerNid, key_id: &str) -> Write {
    Write::Run(
        sql!("DELETE FROM server_key WHERE server_nid = $1 AND key_id = $2"),
        args![server, key_id],
    )
}

/// Forgets the keys of servers that were never in a room that is known here, but for the `most` that were asked last.
#[must_use]
pub fn forget_strangers(most: i64) -> [Write; 2] {
    [
        Write::Run(
            sql!(
                "DELETE FROM server_key_document WHERE server_nid IN (SELECT d.server_nid FROM server_key_document d ",
                "WHERE NOT EXISTS (SELECT 1 FROM room_server r WHERE r.server_nid = d.server_nid) ",
                "ORDER BY d.fetched_ts DESC LIMIT 1000000 OFFSET $1)"
            ),
            args![most],
        ),
        Write::Run(
            sql!(
                "DELETE FROM server_key WHERE NOT EXISTS (SELECT 1 FROM room_server r ",
                "WHERE r.server_nid = server_key.server_nid) AND NOT EXISTS (SELECT 1 FROM server_key_document d ",
                "WHERE d.server_nid = server_key.server_nid)"
            ),
            args![],
        ),
    ]
}

/// Stores what a server has published, in place of what it had published before.
#[must_use]
pub fn set_document(server: ServerNid, json: &str, fetched: i64, valid_until: i64) -> Write {
    Write::Insert(&DOCUMENT, args![server, json, fetched, valid_until])
}

/// All keys of some servers.
pub async fn of(db: &Db, servers: Vec<String>) -> Result<Vec<ServerKey>> {
    let query = sql!(
        "SELECT s.name, k.key_id, k.public_key, k.valid_until_ts FROM server s ",
        "JOIN server_key k ON k.server_nid = s.nid WHERE s.name ",
        list(1)
    );
    db.rows(query, args![servers])
        .await?
        .iter()
        .map(|row| {
            Ok(ServerKey {
                server: row.get(0)?,
                key_id: row.get(1)?,
                public_key: row.get(2)?,
                valid_until: row.get(3)?,
            })
        })
        .collect()
}

/// What some servers have published last.
pub async fn documents(db: &Db, servers: Vec<String>) -> Result<Vec<Document>> {
    let query = sql!(
        "SELECT s.name, d.json, d.fetched_ts, d.valid_until_ts FROM server s ",
        "JOIN server_key_document d ON d.server_nid = s.nid WHERE s.name ",
        list(1)
    );
    db.rows(query, args![servers])
        .await?
        .iter()
        .map(|row| {
            Ok(Document {
                server: row.get(0)?,
                json: row.get(1)?,
                fetched: row.get(2)?,
                valid_until: row.get(3)?,
            })
        })
        .collect()
}
