//! Work that many want done at the same time, and that is done once.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::OwnedMutexGuard;

/// How many keys are known before those are forgotten on which nobody works any more.
const CROWDED: usize = 64;

/// What is being worked on, by what it is about.
#[derive(Debug)]
pub struct Flights<K>(Mutex<HashMap<K, Weak<tokio::sync::Mutex<()>>>>);

impl<K> Default for Flights<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Flights<K> {
    /// Waits until nobody else works on `key`; nobody else does as long as the answer lives. Whoever has waited looks
    /// first whether the work is done.
    pub async fn turn(&self, key: K) -> OwnedMutexGuard<()> {
        let lock = {
            let mut running = self.lock();
            if running.len() >= CROWDED {
                running.retain(|_, lock| lock.strong_count() > 0);
            }
            let known = running.get(&key).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::default();
                running.insert(key, Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Weak<tokio::sync::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_for_each_key() {
        let flights = Flights::default();
        let first = flights.turn(1).await;
        drop(flights.turn(2).await);
        let second = flights.turn(1);
        tokio::pin!(second);
        let early = std::future::poll_fn(|context| {
            std::task::Poll::Ready(second.as_mut().poll(context).is_ready())
        });
        assert!(!early.await);
        drop(first);
        drop(second.await);
        for key in 0..1000 {
            drop(flights.turn(key).await);
        }
        assert!(flights.lock().len() <= CROWDED);
    }
}
