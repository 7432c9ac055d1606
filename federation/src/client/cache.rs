//! What was found out, for as long as it holds; what many ask for at once is found out once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How many answers are kept before those that hold no longer are thrown away.
const MANY: usize = 20_000;

type Slot<V> = Arc<tokio::sync::Mutex<Option<Kept<V>>>>;

struct Kept<V> {
    value: V,
    until: Instant,
}

/// Answers by name.
pub(super) struct Cache<V>(Mutex<HashMap<Box<str>, Slot<V>>>);

impl<V> Default for Cache<V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<V: Clone> Cache<V> {
    /// The answer for `key`, if it still holds and nobody is about to renew it.
    pub(super) fn fresh(&self, key: &str) -> Option<V> {
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.get(key)?.try_lock().ok()?;
        let kept = slot.as_ref().filter(|kept| kept.until > Instant::now())?;
        Some(kept.value.clone())
    }

    /// The answer for `key`. If none holds, `find` gets the last one and answers the next, and how long that holds;
    /// everybody else who asks meanwhile waits for it.
    pub(super) async fn get(
        &self,
        key: &str,
        find: impl AsyncFnOnce(Option<V>) -> (V, Duration),
    ) -> V {
        let slot = self.slot(key);
        let mut kept = slot.lock().await;
        match kept.as_ref() {
            Some(kept) if kept.until > Instant::now() => kept.value.clone(),
            last => {
                let (value, holds) = find(last.map(|kept| kept.value.clone())).await;
                let until = Instant::now() + holds;
                kept.insert(Kept { value, until }).value.clone()
            }
        }
    }

    fn slot(&self, key: &str) -> Slot<V> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MANY && !slots.contains_key(key) {
            let now = Instant::now();
            // A slot that cannot be locked is just being filled.
            slots.retain(|_, slot| {
                slot.try_lock().map_or(true, |kept| {
                    kept.as_ref().is_some_and(|kept| kept.until > now)
                })
            });
            if slots.len() >= MANY {
                slots.retain(|_, slot| slot.try_lock().is_err());
            }
        }
        Arc::clone(slots.entry(key.into()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_holds_for_its_time() {
        let cache = Cache::default();
        let second = Duration::from_secs(1);
        assert_eq!(cache.fresh("a"), None);
        assert_eq!(cache.get("a", async |_| (1, second)).await, 1);
        assert_eq!(cache.fresh("a"), Some(1));
        assert_eq!(cache.get("a", async |_| (2, second)).await, 1);
        tokio::time::advance(second).await;
        assert_eq!(cache.fresh("a"), None);
        let next = async |last: Option<u32>| (last.unwrap_or(0) + 10, second);
        assert_eq!(cache.get("a", next).await, 11);
        assert_eq!(cache.get("b", next).await, 10);
    }

    #[tokio::test]
    async fn what_many_ask_for_is_found_out_once() {
        let cache = Arc::new(Cache::default());
        let asked = Arc::new(AtomicU32::new(0));
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let (cache, asked) = (Arc::clone(&cache), Arc::clone(&asked));
                tokio::spawn(async move {
                    let find = async |_| {
                        tokio::task::yield_now().await;
                        (
                            asked.fetch_add(1, Ordering::Relaxed),
                            Duration::from_hours(1),
                        )
                    };
                    cache.get("a", find).await
                })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap(), 0);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn only_so_many_are_kept() {
        let cache = Cache::default();
        for key in 0..MANY + 10 {
            cache
                .get(&key.to_string(), async |_| ((), Duration::from_hours(1)))
                .await;
        }
        assert!(cache.0.lock().unwrap().len() <= MANY);
    }
}
