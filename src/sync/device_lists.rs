//! Whose devices have changed since the last sync, and with whom the user shares no room any more ("Tracking the device list
//! for a user").

use std::collections::{HashMap, HashSet};

use ruma::OwnedUserId;

use super::{
    Context,
    answer::DeviceLists,
    batch::{Batch, Part, was_joined},
    state::is_member,
};
use crate::{
    error::Result,
    storage::{self, EventNid, KeyNid, RoomNid, UserNid},
};

/// Who has come and gone, as far as the rooms of an answer tell.
#[derive(Debug, Default)]
pub(super) struct Company {
    /// Rooms that the user has come into.
    entered: Vec<RoomNid>,
    /// Rooms that the user has left.
    left: Vec<RoomNid>,
    /// Users who have come into rooms of the user.
    come: HashSet<Box<str>>,
    /// Users who have left them.
    gone: HashSet<Box<str>>,
}

impl Company {
    /// Notes what the rooms of a batch tell, whose state is loaded.
    pub(super) async fn add(&mut self, context: &Context<'_>, batch: &mut Batch<'_>) -> Result<()> {
        if context.since == 0 {
            return Ok(());
        }
        let mut changes: Vec<Vec<Option<EventNid>>> = Vec::new();
        let known = |part: &&Part<'_>| !part.is_strange || part.was_inside;
        for part in batch.parts.iter().filter(known) {
            match part.is_joined() {
                true if part.since == 0 => self.entered.push(part.room.nid),
                false if part.member.pos > context.since => self.left.push(part.room.nid),
                false => {}
                true => changes.extend(members(part, batch)),
            }
        }
        let all = changes.iter().flatten().flatten().copied().collect();
        batch.read(context, all).await?;
        for change in changes {
            let event = |nid: &Option<EventNid>| nid.and_then(|nid| batch.known.get(&nid));
            let has_joined = |nid| event(nid).is_some_and(|event| was_joined(&event.pdu.json));
            let Some((now, before)) = change.split_last() else {
                continue;
            };
            let Some(user) = event(now).and_then(|now| now.pdu.state_key.clone()) else {
                continue;
            };
            // Who has gone and come back was told of nothing in between.
            if has_joined(now) && !before.iter().all(has_joined) {
                self.come.insert(user);
            } else if !has_joined(now) && before.iter().any(has_joined) {
                self.gone.insert(user);
            }
        }
        Ok(())
    }

    /// What is told: with those whose devices `changed`.
    pub(super) async fn finish(
        self,
        context: &Context<'_>,
        mut changed: HashSet<UserNid>,
    ) -> Result<DeviceLists> {
        let (app, me) = (context.app, context.requester.user);
        changed.extend(self.users(context, &self.come).await?);
        changed.extend(storage::device_lists::members(&app.db, &self.entered).await?);
        let mut left = self.users(context, &self.gone).await?;
        left.extend(storage::device_lists::members(&app.db, &self.left).await?);
        left.remove(&me);
        let gone: Vec<UserNid> = left.iter().copied().collect();
        for user in storage::device_lists::sharing(&app.db, me, &gone).await? {
            left.remove(&user);
        }
        changed.retain(|user| !left.contains(user));
        let all: Vec<UserNid> = changed.iter().chain(&left).copied().collect();
        let ids = app.names.user_ids(&app.db, &all).await?;
        let named = |users: HashSet<UserNid>| -> Vec<OwnedUserId> {
            let ids = users.iter().filter_map(|user| ids.get(user).cloned());
            ids.collect()
        };
        Ok(DeviceLists {
            changed: named(changed),
            left: named(left),
        })
    }

    async fn users(
        &self,
        context: &Context<'_>,
        ids: &HashSet<Box<str>>,
    ) -> Result<HashSet<UserNid>> {
        let app = context.app;
        let ids: Vec<OwnedUserId> = ids
            .iter()
            .filter_map(|id| OwnedUserId::try_from(&**id).ok())
            .collect();
        let ids = ids.iter().map(|id| &**id);
        Ok(app
            .names
            .find_users(&app.db, ids)
            .await?
            .into_values()
            .collect())
    }
}

/// The member events that have held in a room, one after the other: for each member who has changed since the last sync that
/// which held then (`None`: none did) and all that have come since.
fn members(part: &Part<'_>, batch: &Batch<'_>) -> Vec<Vec<Option<EventNid>>> {
    let mut changes: HashMap<KeyNid, Vec<Option<EventNid>>> = HashMap::new();
    for delta in &part.deltas {
        let change = changes.entry(delta.key);
        let change = change.or_insert_with(|| vec![delta.before]);
        change.push(delta.event);
    }
    let is_member = |nid: &EventNid| batch.known.get(nid).is_some_and(|event| is_member(event));
    changes.retain(|_, change| change.iter().flatten().any(is_member));
    changes.into_values().collect()
}
