//! Doing one thing at a time, or a few, for each of many.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Semaphore;

/// Locks, one for each key that somebody holds or waits for.
#[derive(Debug)]
pub struct Turns<K>(Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>);

/// How many have turns of their own before those are forgotten that use none.
const CROWDED: usize = 64;

/// So many turns for each key.
#[derive(Debug)]
pub struct FewTurns<K> {
    each: usize,
    of: Mutex<HashMap<K, Arc<Semaphore>>>,
}

impl<K: Clone + Eq + Hash> FewTurns<K> {
    /// So many for `each`.
    #[must_use]
    pub fn new(each: usize) -> Self {
        Self {
            each,
            of: Mutex::default(),
        }
    }

    /// The turns of a key.
    pub fn of(&self, key: &K) -> Arc<Semaphore> {
        let mut turns = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.len() >= CROWDED {
            turns.retain(|_, turns| Arc::strong_count(turns) > 1);
        }
        let of_key = turns.entry(key.clone());
        Arc::clone(of_key.or_insert_with(|| Arc::new(Semaphore::new(self.each))))
    }
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> Turns<K> {
    /// The lock of a key.
    pub fn turn(&self, key: &K) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.len() >= 1024 && turns.len().is_power_of_two() {
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        Arc::clone(turns.entry(key.clone()).or_default())
    }
}
