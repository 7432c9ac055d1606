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
    storage::{self, EventNid, KeyNid, RoomNid, UserNid, sync::Delta},
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
        let mut changes: Vec<(EventNid, Option<EventNid>)> = Vec::new();
        for part in batch.parts.iter().filter(|part| !part.is_strange) {
            match part.is_joined() {
                true if part.since == 0 => self.entered.push(part.room.nid),
                false if part.member.pos > context.since => self.left.push(part.room.nid),
                false => {}
                true => changes.extend(members(part, batch)),
            }
        }
        let before = changes.iter().filter_map(|(_, before)| *before).collect();
        batch.read(context, before).await?;
        for (now, before) in changes {
            let has_joined = |nid: EventNid| {
                let event = batch.known.get(&nid);
                event.is_some_and(|event| was_joined(&event.pdu.json))
            };
            let Some(user) = batch
                .known
                .get(&now)
                .and_then(|now| now.pdu.state_key.clone())
            else {
                continue;
            };
            match (before.is_some_and(has_joined), has_joined(now)) {
                (false, true) => drop(self.come.insert(user)),
                (true, false) => drop(self.gone.insert(user)),
                _ => {}
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

/// The member events that hold now in a room and have come since the last sync, each with what held before that.
fn members(part: &Part<'_>, batch: &Batch<'_>) -> Vec<(EventNid, Option<EventNid>)> {
    let mut changes: HashMap<KeyNid, (&Delta, &Delta)> = HashMap::new();
    for delta in &part.deltas {
        let (_, last) = changes.entry(delta.key).or_insert((delta, delta));
        *last = delta;
    }
    let is_member = |nid: &EventNid| batch.known.get(nid).is_some_and(|event| is_member(event));
    changes
        .into_values()
        .filter_map(|(first, last)| Some((last.event.filter(is_member)?, first.before)))
        .collect()
}
