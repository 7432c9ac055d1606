//! `membership`: who is in which room, now.

use ruma::events::room::member::MembershipState;

use super::{Db, EventNid, Insert, KeyNid, Pos, Position, Result, RoomNid, Row, UserNid, Write};
use crate::{args, sql};

/// What a user is to a room; the numbers are the table's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Membership {
    /// Invited.
    Invite = 1,
    /// Joined.
    Join = 2,
    /// Knocking.
    Knock = 3,
    /// Left, kicked, or the invite rejected.
    Leave = 4,
    /// Banned.
    Ban = 5,
}

impl Membership {
    pub(super) fn from_number(number: i64) -> Self {
        match number {
            1 => Self::Invite,
            2 => Self::Join,
            3 => Self::Knock,
            5 => Self::Ban,
            _ => Self::Leave,
        }
    }

    /// The membership of a member event's content; what is unknown is no membership.
    #[must_use]
    pub fn from_state(state: &MembershipState) -> Self {
        match state {
            MembershipState::Invite => Self::Invite,
            MembershipState::Join => Self::Join,
            MembershipState::Knock => Self::Knock,
            MembershipState::Ban => Self::Ban,
            _ => Self::Leave,
        }
    }

    /// As the specification spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invite => "invite",
            Self::Join => "join",
            Self::Knock => "knock",
            Self::Leave => "leave",
            Self::Ban => "ban",
        }
    }
}

impl From<Membership> for super::Arg {
    fn from(membership: Membership) -> Self {
        Self::Int(Some(membership as i64))
    }
}

/// A user in a room.
#[derive(Clone, Debug)]
pub struct Member {
    /// The room.
    pub room: RoomNid,
    /// The user.
    pub user: UserNid,
    /// What the user is to the room.
    pub membership: Membership,
    /// The member event.
    pub event: EventNid,
    /// Who sent it.
    pub sender: UserNid,
    /// Its position.
    pub pos: Pos,
    /// Whether the user has an account here.
    pub is_local: bool,
    /// The display name in this room.
    pub display_name: Option<String>,
    /// The avatar in this room.
    pub avatar_url: Option<String>,
    /// Whether the user wants to hear of the room no more.
    pub forgotten: bool,
}

static MEMBER: Insert = Insert {
    table: "membership",
    columns: &[
        "room_nid",
        "user_nid",
        "membership",
        "event_nid",
        "sender_nid",
        "pos",
        "is_local",
        "display_name",
        "avatar_url",
        "forgotten",
    ],
    key: 2,
    conflict: "ON CONFLICT (room_nid, user_nid) DO UPDATE SET membership = excluded.membership, \
               event_nid = excluded.event_nid, sender_nid = excluded.sender_nid, pos = excluded.pos, \
               is_local = excluded.is_local, display_name = excluded.display_name, \
               avatar_url = excluded.avatar_url, forgotten = excluded.forgotten",
};

/// Sets what a user is to a room; `member.pos` does not count, `at` does.
#[must_use]
pub fn set(member: &Member, at: Position) -> Write {
    let row = args![
        member.room,
        member.user,
        member.membership,
        member.event,
        member.sender,
        at,
        member.is_local,
        member.display_name.clone(),
        member.avatar_url.clone(),
        member.forgotten,
    ];
    Write::Insert(&MEMBER, row)
}

/// Takes away the names that a member event gave a user, if it is still the one that counts.
#[must_use]
pub fn forget_names(room: RoomNid, user: UserNid, event: EventNid) -> Write {
    let sql = sql!(
        "UPDATE membership SET display_name = NULL, avatar_url = NULL ",
        "WHERE room_nid = $1 AND user_nid = $2 AND event_nid = $3"
    );
    Write::Run(sql, args![room, user, event])
}

/// Makes the room forgotten for a user who is not in it (any more).
#[must_use]
pub fn forget(room: RoomNid, user: UserNid) -> Write {
    let sql = sql!(
        "UPDATE membership SET forgotten = TRUE WHERE room_nid = $1 AND user_nid = $2 AND membership > 2"
    );
    Write::Expect(sql, args![room, user], 1)
}

fn member(row: &Row) -> Result<Member> {
    Ok(Member {
        room: RoomNid(row.get(0)?),
        user: UserNid(row.get(1)?),
        membership: Membership::from_number(row.get(2)?),
        event: EventNid(row.get(3)?),
        sender: UserNid(row.get(4)?),
        pos: row.get(5)?,
        is_local: row.get(6)?,
        display_name: row.get(7)?,
        avatar_url: row.get(8)?,
        forgotten: row.get(9)?,
    })
}

/// What a user is to a room, if anything.
pub async fn get(db: &Db, room: RoomNid, user: UserNid) -> Result<Option<Member>> {
    let query = sql!(
        "SELECT room_nid, user_nid, membership, event_nid, sender_nid, pos, is_local, display_name, avatar_url, ",
        "forgotten FROM membership WHERE room_nid = $1 AND user_nid = $2"
    );
    db.maybe(query, args![room, user])
        .await?
        .map(|row| member(&row))
        .transpose()
}

/// All rooms that a local user has anything to do with, apart from forgotten ones.
pub async fn of_user(db: &Db, user: UserNid) -> Result<Vec<Member>> {
    let query = sql!(
        "SELECT room_nid, user_nid, membership, event_nid, sender_nid, pos, is_local, display_name, avatar_url, ",
        "forgotten FROM membership WHERE user_nid = $1 AND is_local AND NOT forgotten"
    );
    db.rows(query, args![user])
        .await?
        .iter()
        .map(member)
        .collect()
}

/// The rooms that a user of another server has joined.
pub async fn of_remote_user(db: &Db, user: UserNid) -> Result<Vec<RoomNid>> {
    let query = sql!(
        "SELECT room_nid FROM membership WHERE user_nid = $1 AND membership = 2 AND NOT is_local"
    );
    let rows = db.rows(query, args![user]).await?;
    rows.iter().map(|row| row.get(0).map(RoomNid)).collect()
}

/// The rooms that a local user has left after a position and forgotten.
pub async fn forgotten_since(db: &Db, user: UserNid, since: Pos) -> Result<Vec<Member>> {
    let query = sql!(
        "SELECT room_nid, user_nid, membership, event_nid, sender_nid, pos, is_local, display_name, avatar_url, ",
        "forgotten FROM membership WHERE user_nid = $1 AND is_local AND forgotten AND pos > $2"
    );
    db.rows(query, args![user, since])
        .await?
        .iter()
        .map(member)
        .collect()
}

/// The users whose accounts are closed and who are still in a room, invited or knocking.
pub async fn of_deactivated(db: &Db) -> Result<Vec<UserNid>> {
    let query = sql!(
        "SELECT DISTINCT a.user_nid FROM account a JOIN membership m ON m.user_nid = a.user_nid ",
        "WHERE a.deactivated AND m.is_local AND m.membership < 4"
    );
    let rows = db.rows(query, args![]).await?;
    rows.iter().map(|row| row.get(0).map(UserNid)).collect()
}

/// All members of a room with one of these memberships.
pub async fn of_room(db: &Db, room: RoomNid, memberships: &[Membership]) -> Result<Vec<Member>> {
    let query = sql!(
        "SELECT room_nid, user_nid, membership, event_nid, sender_nid, pos, is_local, display_name, avatar_url, ",
        "forgotten FROM membership WHERE room_nid = $1 AND membership ",
        list(2)
    );
    let memberships: Vec<i64> = memberships
        .iter()
        .map(|membership| *membership as i64)
        .collect();
    db.rows(query, args![room, memberships])
        .await?
        .iter()
        .map(member)
        .collect()
}

/// The local users who have joined a room, with their display names in it.
pub async fn local_joined(
    db: &Db,
    rooms: &[RoomNid],
) -> Result<Vec<(RoomNid, UserNid, Option<String>)>> {
    let query = sql!(
        "SELECT room_nid, user_nid, display_name FROM membership WHERE membership = 2 AND is_local AND room_nid ",
        list(1)
    );
    db.rows(query, args![rooms])
        .await?
        .iter()
        .map(|row| Ok((RoomNid(row.get(0)?), UserNid(row.get(1)?), row.get(2)?)))
        .collect()
}

/// The ids of all users of another server that ever had to do with a room, with the keys of their member events.
pub async fn of_server(db: &Db, room: RoomNid, server: &str) -> Result<Vec<(String, KeyNid)>> {
    let query = sql!(
        "SELECT u.mxid, k.nid FROM membership m JOIN user_id u ON u.nid = m.user_nid ",
        "JOIN state_key k ON k.type = 'm.room.member' AND k.key = u.mxid ",
        "WHERE m.room_nid = $1 AND NOT m.is_local AND u.mxid LIKE $2"
    );
    db.rows(query, args![room, format!("%:{server}")])
        .await?
        .iter()
        .map(|row| Ok((row.get(0)?, KeyNid(row.get(1)?))))
        .collect()
}

/// Those of some rooms to which users of another server are invited.
pub async fn inviting_server(db: &Db, rooms: &[RoomNid], server: &str) -> Result<Vec<RoomNid>> {
    let query = sql!(
        "SELECT DISTINCT m.room_nid FROM membership m JOIN user_id u ON u.nid = m.user_nid ",
        "WHERE m.membership = 1 AND NOT m.is_local AND u.mxid LIKE $2 AND m.room_nid ",
        list(1)
    );
    db.rows(query, args![rooms, format!("%:{server}")])
        .await?
        .iter()
        .map(|row| Ok(RoomNid(row.get(0)?)))
        .collect()
}

/// Those of the rooms with these ids that local users have joined, by id.
pub async fn with_local_users(db: &Db, ids: Vec<String>) -> Result<Vec<String>> {
    let query = sql!(
        "SELECT r.room_id FROM room r WHERE EXISTS (SELECT 1 FROM membership m WHERE m.room_nid = r.nid ",
        "AND m.membership = 2 AND m.is_local) AND r.room_id ",
        list(1)
    );
    let rows = db.rows(query, args![ids]).await?;
    rows.iter().map(|row| row.get(0)).collect()
}
