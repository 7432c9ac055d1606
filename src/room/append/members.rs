//! What a member event means: who is in the room, and what is unread to them.

use std::sync::Arc;

use homing_federation::event::Pdu;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, UserId, events::room::member::MembershipState,
};
use serde::Deserialize;

use super::step::Step;
use crate::{
    bus::Effect,
    error::{Error, Result},
    storage::{Event, Member, Membership, Position, ReadMarker, highlights, members, receipts},
};

/// The fields of a member event that have columns of their own. Other servers write there what they like.
#[derive(Debug, Deserialize)]
struct MemberContent {
    membership: MembershipState,
    #[serde(default)]
    displayname: serde_json::Value,
    #[serde(default)]
    avatar_url: serde_json::Value,
}

/// A text that can be stored: PostgreSQL has no NUL in one.
fn storable(value: serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::String(text) if text.contains('\0') => Some(text.replace('\0', "")),
        serde_json::Value::String(text) => Some(text),
        _ => None,
    }
}

/// Checks the content of a member event of this server.
///
/// # Errors
/// `M_BAD_JSON` if a name or an avatar is no text.
pub(super) fn check(content: &CanonicalJsonObject) -> Result<()> {
    for field in ["displayname", "avatar_url"] {
        match content.get(field) {
            None | Some(CanonicalJsonValue::Null | CanonicalJsonValue::String(_)) => {}
            Some(_) => return Err(Error::bad_json(format!("`{field}` is a text"))),
        }
    }
    Ok(())
}

fn membership_of(pdu: &Pdu) -> Option<Membership> {
    let content: MemberContent = pdu.content_as().ok()?;
    Some(Membership::from_state(&content.membership))
}

impl Step<'_> {
    /// Sets what somebody is to the room by their new member event; if the state has none for them any more, they have
    /// left.
    pub(super) fn set_member(
        &mut self,
        user_id: &str,
        event: Option<&Event>,
        before: Option<&Event>,
        at: Position,
    ) -> Result<()> {
        let Ok(user_id) = UserId::parse(user_id) else {
            return Ok(());
        };
        let Some(source) = event.or(before) else {
            return Ok(());
        };
        let content: MemberContent = source.pdu.content_as().map_err(Error::internal)?;
        let membership = if event.is_some() {
            Membership::from_state(&content.membership)
        } else {
            Membership::Leave
        };
        let before = before.and_then(|event| membership_of(&event.pdu));
        let member = Member {
            room: self.room.nid,
            user: self
                .names
                .member(&user_id)
                .or_else(|_| self.others.member(&user_id))?,
            membership,
            event: source.nid,
            sender: source.sender,
            pos: 0,
            is_local: self.app.is_local(&user_id),
            display_name: storable(content.displayname),
            avatar_url: storable(content.avatar_url),
            forgotten: false,
        };
        let delta =
            |which| i64::from(member.membership == which) - i64::from(before == Some(which));
        self.row.joined_count += delta(Membership::Join);
        self.row.invited_count += delta(Membership::Invite);
        if member.is_local && delta(Membership::Join) > 0 {
            // Nothing that was said before somebody came is unread to them.
            let marker = ReadMarker {
                pos: self.app.head(),
                idx: self.row.unread_idx,
                own: 0,
            };
            self.set_marker(member.user, 0, marker);
            self.set_marker(member.user, receipts::EVERYTHING, marker);
        }
        if member.is_local && (delta(Membership::Invite) < 0 || delta(Membership::Join) != 0) {
            // The invite that is answered now was a notification; and to who has left, nothing is unread.
            let write = highlights::clear(member.user, member.room);
            self.change.write(write);
            self.highlights.insert(member.user, 0);
        }
        if !member.is_local {
            self.count_server(user_id.server_name(), before, member.membership, at)?;
        }
        self.change.write(members::set(&member, at));
        let room = Arc::clone(self.room);
        self.change.effect(Effect::Member { room, member, at });
        Ok(())
    }
}
