//! Which member events a device has been sent, so that they are not sent again and again ("Lazy-loading room members").
//!
//! Kept in memory only: to send one again does no harm.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use quick_cache::sync::Cache;

use crate::storage::{DeviceNid, EventNid, KeyNid, Pos, RoomNid};

/// For how many pairs of device and room this is remembered.
const PAIRS: usize = 50_000;
/// How many members of a room are remembered for a device.
const MEMBERS: usize = 1000;

/// By member: the member event and the `next_batch` with which it was sent.
type Sent = HashMap<KeyNid, (EventNid, Pos)>;

/// What has been sent.
#[derive(Debug)]
pub struct LazyMembers(Cache<(DeviceNid, RoomNid), Arc<Mutex<Sent>>>);

impl Default for LazyMembers {
    fn default() -> Self {
        Self(Cache::new(PAIRS))
    }
}

impl LazyMembers {
    /// Whether a device that has come to `since` has this member event.
    #[must_use]
    pub fn has(
        &self,
        device: DeviceNid,
        room: RoomNid,
        since: Pos,
        member: KeyNid,
        event: EventNid,
    ) -> bool {
        self.sent(device, room).is_some_and(|sent| {
            let sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
            sent.get(&member)
                .is_some_and(|(known, pos)| *known == event && *pos <= since)
        })
    }

    /// Remembers what is sent to a device with `next_batch` at `upto`.
    pub fn add(
        &self,
        device: DeviceNid,
        room: RoomNid,
        upto: Pos,
        members: impl Iterator<Item = (KeyNid, EventNid)>,
    ) {
        let mut members = members.peekable();
        if members.peek().is_none() {
            return;
        }
        let sent = self.sent(device, room).unwrap_or_else(|| {
            let sent = Arc::default();
            self.0.insert((device, room), Arc::clone(&sent));
            sent
        });
        let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
        for (member, event) in members {
            if sent.len() >= MEMBERS {
                sent.clear();
            }
            sent.insert(member, (event, upto));
        }
    }

    fn sent(&self, device: DeviceNid, room: RoomNid) -> Option<Arc<Mutex<Sent>>> {
        self.0.get(&(device, room))
    }
}
