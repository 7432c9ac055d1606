//! Receipts of users of other servers that came before the events that they are about, as they do where three servers talk
//! and one is slow. They wait in memory: what is lost with it is said again with the next receipt.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ruma::{OwnedEventId, events::receipt::ReceiptThread};

use crate::storage::{RoomNid, UserNid};

/// How many wait; the oldest go first.
const MOST: usize = 1000;

/// A receipt of a user of another server, for all to see.
#[derive(Clone, Debug)]
pub struct RemoteReceipt {
    /// The reader.
    pub user: UserNid,
    /// Up to where.
    pub event: OwnedEventId,
    /// Which part of the room the receipt is about.
    pub thread: ReceiptThread,
    /// When, in milliseconds since 1970.
    pub ts: i64,
}

/// Receipts about events that are not here yet.
#[derive(Debug, Default)]
pub struct EarlyReceipts(Mutex<VecDeque<(RoomNid, RemoteReceipt)>>);

impl EarlyReceipts {
    /// Keeps a receipt until its event comes.
    pub fn keep(&self, room: RoomNid, receipt: RemoteReceipt) {
        let mut waiting = self.lock();
        if waiting.len() >= MOST {
            waiting.pop_front();
        }
        waiting.push_back((room, receipt));
    }

    /// Takes out the receipts about those events of a room that have come.
    pub fn take(
        &self,
        room: RoomNid,
        has_come: impl Fn(&OwnedEventId) -> bool,
    ) -> Vec<RemoteReceipt> {
        let mut waiting = self.lock();
        let (come, left) = waiting
            .drain(..)
            .partition::<Vec<_>, _>(|(of, receipt)| *of == room && has_come(&receipt.event));
        waiting.extend(left);
        come.into_iter().map(|(_, receipt)| receipt).collect()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(RoomNid, RemoteReceipt)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
