//! Who can be found by whom: the user directory and shared rooms, from `membership` and `profile`.

use super::{Db, Result, RoomNid, Row, UserNid};
use crate::{args, sql};

/// A user whom a search has found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The user.
    pub user: UserNid,
    /// The user's id.
    pub user_id: String,
    /// The display name: JSON for a local user, else as a room has it.
    pub display_name: Option<String>,
    /// The avatar, likewise.
    pub avatar_url: Option<String>,
    /// Whether the names are JSON.
    pub is_local: bool,
    /// Whether the searcher shares a room with the user.
    pub is_near: bool,
}

/// Local users whose id or display name contains `folded`, who share a room with `searcher` or are in a public one.
/// `pattern` is for LIKE, in lower case, with `\` before what is meant literally.
pub async fn local(db: &Db, searcher: UserNid, pattern: &str, limit: i64) -> Result<Vec<Found>> {
    let query = sql!(
        "SELECT f.nid, f.mxid, f.name, f.avatar, TRUE, f.near FROM (",
        "SELECT u.nid AS nid, u.mxid AS mxid, n.json AS name, p.json AS avatar, ",
        "EXISTS (SELECT 1 FROM membership m JOIN membership s ON s.room_nid = m.room_nid AND s.user_nid = $1 ",
        "AND s.membership = 2 WHERE m.user_nid = u.nid AND m.membership = 2 AND m.is_local) AS near ",
        "FROM account a JOIN user_id u ON u.nid = a.user_nid ",
        "LEFT JOIN profile n ON n.user_nid = u.nid AND n.field = 'displayname' ",
        "LEFT JOIN profile p ON p.user_nid = u.nid AND p.field = 'avatar_url' ",
        "WHERE u.nid <> $1 AND NOT a.deactivated ",
        "AND (lower(u.mxid) LIKE $2 ESCAPE '\\' OR n.folded LIKE $2 ESCAPE '\\')) AS f ",
        "WHERE f.near OR EXISTS (SELECT 1 FROM membership m JOIN room r ON r.nid = m.room_nid ",
        "WHERE m.user_nid = f.nid AND m.membership = 2 AND m.is_local AND (r.published OR EXISTS (",
        "SELECT 1 FROM state_key k JOIN current_state c ON c.key_nid = k.nid AND c.room_nid = r.nid ",
        "JOIN event_json j ON j.nid = c.event_nid WHERE k.type = 'm.room.join_rules' AND k.key = '' ",
        "AND j.json LIKE '%\"join_rule\":\"public\"%'))) ",
        "ORDER BY f.near DESC, length(f.mxid), f.nid LIMIT $3"
    );
    db.rows(query, args![searcher, pattern, limit])
        .await?
        .iter()
        .map(found)
        .collect()
}

/// Users of other servers whose id or display name matches, in rooms that `searcher` has joined and in public ones that
/// are known here from somebody who is in them.
pub async fn remote(db: &Db, searcher: UserNid, pattern: &str, limit: i64) -> Result<Vec<Found>> {
    let query = sql!(
        "SELECT m.user_nid, min(u.mxid), max(m.display_name), max(m.avatar_url), FALSE, max(r.near) > 0 FROM (",
        "SELECT s.room_nid AS nid, 1 AS near FROM membership s WHERE s.user_nid = $1 AND s.membership = 2 AND s.is_local ",
        "UNION ALL SELECT o.nid AS nid, 0 AS near FROM room o WHERE EXISTS (SELECT 1 FROM membership h ",
        "WHERE h.room_nid = o.nid AND h.membership = 2 AND h.is_local) AND (o.published OR EXISTS (",
        "SELECT 1 FROM state_key k JOIN current_state c ON c.key_nid = k.nid AND c.room_nid = o.nid ",
        "JOIN event_json j ON j.nid = c.event_nid WHERE k.type = 'm.room.join_rules' AND k.key = '' ",
        "AND j.json LIKE '%\"join_rule\":\"public\"%'))) AS r ",
        "JOIN membership m ON m.room_nid = r.nid AND m.membership = 2 AND NOT m.is_local ",
        "JOIN user_id u ON u.nid = m.user_nid ",
        "WHERE lower(u.mxid) LIKE $2 ESCAPE '\\' OR lower(m.display_name) LIKE $2 ESCAPE '\\' ",
        "GROUP BY m.user_nid ORDER BY max(r.near) DESC, m.user_nid LIMIT $3"
    );
    db.rows(query, args![searcher, pattern, limit])
        .await?
        .iter()
        .map(found)
        .collect()
}

fn found(row: &Row) -> Result<Found> {
    Ok(Found {
        user: UserNid(row.get(0)?),
        user_id: row.get(1)?,
        display_name: row.get(2)?,
        avatar_url: row.get(3)?,
        is_local: row.get(4)?,
        is_near: row.get(5)?,
    })
}

/// Whether a user has an account here that is in use.
pub async fn has_account(db: &Db, user: UserNid) -> Result<bool> {
    let query = sql!("SELECT 1 FROM account WHERE user_nid = $1 AND NOT deactivated");
    Ok(db.maybe(query, args![user]).await?.is_some())
}

/// The rooms that both have joined, from the first after `after` on, with their ids.
pub async fn mutual_rooms(
    db: &Db,
    one: UserNid,
    other: UserNid,
    after: RoomNid,
    limit: i64,
) -> Result<Vec<(RoomNid, String)>> {
    let query = sql!(
        "SELECT r.nid, r.room_id FROM membership a JOIN membership b ON b.room_nid = a.room_nid AND b.user_nid = $2 ",
        "AND b.membership = 2 JOIN room r ON r.nid = a.room_nid WHERE a.user_nid = $1 AND a.membership = 2 ",
        "AND a.is_local AND r.nid > $3 ORDER BY r.nid LIMIT $4"
    );
    db.rows(query, args![one, other, after, limit])
        .await?
        .iter()
        .map(|row| Ok((RoomNid(row.get(0)?), row.get(1)?)))
        .collect()
}

/// How many rooms both have joined.
pub async fn count_mutual_rooms(db: &Db, one: UserNid, other: UserNid) -> Result<i64> {
    let query = sql!(
        "SELECT count(*) FROM membership a JOIN membership b ON b.room_nid = a.room_nid AND b.user_nid = $2 ",
        "AND b.membership = 2 WHERE a.user_nid = $1 AND a.membership = 2 AND a.is_local"
    );
    db.one(query, args![one, other]).await?.get(0)
}

/// Which of `users` have joined a room that `user` has joined.
pub async fn sharing_of(db: &Db, user: UserNid, users: &[UserNid]) -> Result<Vec<UserNid>> {
    let query = sql!(
        "SELECT DISTINCT b.user_nid FROM membership a JOIN membership b ON b.room_nid = a.room_nid ",
        "AND b.membership = 2 WHERE a.user_nid = $1 AND a.membership = 2 AND a.is_local AND b.user_nid ",
        list(2)
    );
    db.rows(query, args![user, users])
        .await?
        .iter()
        .map(|row| Ok(UserNid(row.get(0)?)))
        .collect()
}
