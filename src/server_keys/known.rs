//! What memory holds of the keys of other servers.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use homing_federation::{
    VerifyKey,
    server_keys::{KeyDocument, LONGEST_VALIDITY, OwnKeys},
};
use quick_cache::sync::Cache;
use ruma::{OwnedServerName, ServerName};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use crate::storage::server_keys::{Document, ServerKey};

/// How many servers' keys are kept in memory, and of how many it is remembered that they do not answer.
const SERVERS: usize = 20_000;
/// How many servers are asked at one time: to check events, to check requests, and for what others want to know.
const CONCURRENT: usize = 32;
const CONCURRENT_FOR_REQUESTS: usize = 32;
const CONCURRENT_FOR_OTHERS: usize = 8;
/// How long to wait until another one can be asked: the events of a large room come from many, of whom some do not answer.
const PATIENCE: Duration = Duration::from_mins(2);
const PATIENCE_OF_STRANGERS: Duration = Duration::from_secs(10);
/// How long a server that does not answer is left alone: this, then doubling up to an hour.
const FAILED: Duration = Duration::from_mins(1);
const FAILED_OFTEN: Duration = Duration::from_hours(1);
/// How long no notary is asked for a key that none has known.
const MISSED: Duration = Duration::from_mins(10);
/// A server whose keys were got less long ago than this is not asked again, but for a key that it has never had: it may have
/// come with a new one just now. That is done once in this time.
const LEAST_AGE: Duration = Duration::from_secs(10);

/// How many keys of one server are known. One that has had more loses those that ended first.
const MAX_KEYS: usize = 256;

/// The keys of one server.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// By id: the key, and until when what it signs holds, in milliseconds since 1970.
    pub(super) keys: BTreeMap<Box<str>, (VerifyKey, i64)>,
    /// When they were got last, and until when they are valid.
    fetched: i64,
    valid_until: i64,
}

/// The time in the middle.
pub(super) fn half_way(fetched: i64, valid_until: i64) -> i64 {
    fetched + (valid_until - fetched).max(0) / 2
}

/// Until when what a server has published is believed.
pub(super) fn believed_until(document: &KeyDocument, now: i64) -> i64 {
    document.valid_until.min(now + LONGEST_VALIDITY)
}

impl Known {
    /// The keys of this server itself.
    pub(super) fn own(own: &OwnKeys) -> Self {
        let signing = own.signing.iter();
        let signing = signing.map(|key| (key.id().into(), (key.verify_key(), i64::MAX)));
        let old = own.old.iter().cloned();
        let old = old.map(|(id, key, expired)| (id, (key, expired)));
        Self {
            keys: signing.chain(old).collect(),
            fetched: i64::MAX,
            valid_until: i64::MAX,
        }
    }

    /// What the database has of a server. A key that cannot be read there is as good as none.
    pub(super) fn stored(keys: &[ServerKey], document: Option<&Document>) -> Self {
        let key = |key: &ServerKey| {
            let read = VerifyKey::from_base64(&key.public_key).ok()?;
            Some((key.key_id.as_str().into(), (read, key.valid_until)))
        };
        Self {
            keys: keys.iter().filter_map(key).collect(),
            fetched: document.map_or(0, |document| document.fetched),
            valid_until: document.map_or(0, |document| document.valid_until),
        }
    }

    /// What is known after a server itself has published this.
    #[must_use]
    pub(super) fn with(&self, document: &KeyDocument, now: i64) -> Self {
        let valid_until = believed_until(document, now);
        let mut keys = self.keys.clone();
        for (id, key) in &document.verify_keys {
            let known = keys.get(id).filter(|(known, _)| known == key);
            let until = known.map_or(valid_until, |(_, until)| valid_until.max(*until));
            keys.insert(id.clone(), (key.clone(), until));
        }
        // An old key ends when the server says, even if it was to be valid for longer.
        for (id, (key, expired)) in &document.old_verify_keys {
            keys.insert(id.clone(), (key.clone(), (*expired).min(now)));
        }
        drop_oldest(&mut keys);
        Self {
            keys,
            fetched: now,
            valid_until,
        }
    }

    /// What is known after a notary has said that the server has once published this. That may be long ago, so it only
    /// adds to what is known.
    #[must_use]
    pub(super) fn with_older(&self, document: &KeyDocument, now: i64) -> Self {
        let told = Self::default().with(document, now);
        let mut keys = told.keys;
        for (id, (key, until)) in &self.keys {
            let same = keys.get(id).filter(|(told, _)| told == key);
            let is_longer = same.is_some_and(|(_, told)| told > until);
            if !is_longer || document.old_verify_keys.contains_key(id) {
                keys.insert(id.clone(), (key.clone(), *until));
            }
        }
        drop_oldest(&mut keys);
        Self {
            keys,
            fetched: self.fetched,
            valid_until: self.valid_until,
        }
    }

    /// The key with this id, if what it signed at that time holds.
    pub(super) fn valid_at(&self, id: &str, at: i64) -> Option<&VerifyKey> {
        let (key, until) = self.keys.get(id)?;
        (*until >= at).then_some(key)
    }

    /// Whether there is no use in asking for this key: it was valid at that time, or the server has since published that
    /// it is not any more.
    pub(super) fn suffices(&self, id: &str, at: i64) -> bool {
        let known = self.keys.get(id);
        known.is_some_and(|(_, until)| *until >= at || *until < self.fetched)
    }

    /// Whether half of the time has passed for which the keys are valid.
    pub(super) fn is_stale(&self, now: i64) -> bool {
        half_way(self.fetched, self.valid_until) <= now
    }

    /// Whether one of these keys was never among them.
    pub(super) fn lacks(&self, ids: &HashSet<String>) -> bool {
        ids.iter().any(|id| !self.keys.contains_key(id.as_str()))
    }

    /// Whether they were got just now.
    pub(super) fn is_new(&self, now: i64) -> bool {
        now - self.fetched < millis(LEAST_AGE)
    }
}

/// Drops the keys that ended first, if there are too many.
fn drop_oldest(keys: &mut BTreeMap<Box<str>, (VerifyKey, i64)>) {
    let excess = keys.len().saturating_sub(MAX_KEYS);
    if excess == 0 {
        return;
    }
    let mut ends: Vec<_> = keys
        .iter()
        .map(|(id, (_, until))| (*until, id.clone()))
        .collect();
    ends.sort_unstable();
    for (_, id) in &ends[..excess] {
        keys.remove(id);
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Places for those who ask other servers.
#[derive(Debug)]
pub(super) struct Places {
    free: Semaphore,
    patience: Duration,
}

impl Places {
    fn new(count: usize, patience: Duration) -> Self {
        Self {
            free: Semaphore::new(count),
            patience,
        }
    }

    /// Waits for a place; `None` if there was none for too long.
    pub(super) async fn enter(&self) -> Option<SemaphorePermit<'_>> {
        let free = tokio::time::timeout(self.patience, self.free.acquire());
        free.await.ok()?.ok()
    }
}

/// The keys of other servers, in memory.
#[derive(Debug)]
pub struct ServerKeys {
    known: Cache<OwnedServerName, Arc<Known>>,
    /// How often servers have not answered, and until when they are left alone.
    failed: Cache<OwnedServerName, (u32, i64)>,
    /// Servers that were asked again soon for a new key, and until when they are not for another.
    asked_soon: Cache<OwnedServerName, i64>,
    /// Keys that no notary knew, and until when none is asked again.
    missed: Cache<(OwnedServerName, Box<str>), i64>,
    /// Who is being asked: one at a time for each server.
    asking: Mutex<HashMap<OwnedServerName, Arc<tokio::sync::Mutex<()>>>>,
    changes: AtomicU64,
    /// Those to be asked again, and that there are some.
    stale: Mutex<HashSet<OwnedServerName>>,
    is_stale: Notify,
    /// Places for those who ask because of an event.
    pub(super) places: Places,
    /// Places for those who ask because of a request, which anybody can make.
    pub(super) places_for_requests: Places,
    /// Places for those who ask because others want to know.
    pub(super) places_for_others: Places,
}

impl Default for ServerKeys {
    fn default() -> Self {
        Self {
            known: Cache::new(SERVERS),
            failed: Cache::new(SERVERS),
            asked_soon: Cache::new(SERVERS),
            missed: Cache::new(SERVERS),
            asking: Mutex::default(),
            changes: AtomicU64::new(0),
            stale: Mutex::default(),
            is_stale: Notify::new(),
            places: Places::new(CONCURRENT, PATIENCE),
            places_for_requests: Places::new(CONCURRENT_FOR_REQUESTS, PATIENCE_OF_STRANGERS),
            places_for_others: Places::new(CONCURRENT_FOR_OTHERS, PATIENCE_OF_STRANGERS),
        }
    }
}

impl ServerKeys {
    pub(super) fn get(&self, server: &ServerName) -> Option<Arc<Known>> {
        self.known.get(server)
    }

    /// A count of what was learnt, to be taken before the database is read.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Keeps what the database had, unless something was learnt since.
    pub(super) fn keep(&self, server: &ServerName, known: &Arc<Known>, before: u64) {
        if self.changes() == before {
            self.known.insert(server.to_owned(), Arc::clone(known));
        }
    }

    /// Keeps what was learnt.
    pub(super) fn learn(&self, server: &ServerName, known: &Arc<Known>) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.known.insert(server.to_owned(), Arc::clone(known));
    }

    /// Whether a server has lately not answered.
    pub(super) fn has_failed(&self, server: &ServerName, now: i64) -> bool {
        let failed = self.failed.get(server);
        failed.is_some_and(|(_, until)| until > now)
    }

    pub(super) fn fail(&self, server: &ServerName, now: i64) {
        let failures = self.failed.get(server).map_or(0, |(failures, _)| failures);
        let factor = 1_u32.checked_shl(failures).unwrap_or(u32::MAX);
        let wait = FAILED.saturating_mul(factor).min(FAILED_OFTEN);
        let failed = (failures.saturating_add(1), now + millis(wait));
        self.failed.insert(server.to_owned(), failed);
    }

    /// A server has answered, or contacts us by itself: it may be asked again.
    pub(super) fn forgive(&self, server: &ServerName) {
        self.failed.remove(server);
    }

    /// Whether a server may be asked for a new key though it has told its keys just now. Who asks does so.
    pub(super) fn may_ask_soon(&self, server: &ServerName, now: i64) -> bool {
        if self.asked_soon.get(server).is_some_and(|until| until > now) {
            return false;
        }
        let until = now + millis(LEAST_AGE);
        self.asked_soon.insert(server.to_owned(), until);
        true
    }

    /// Whether no notary has known a key lately.
    pub(super) fn is_missed(&self, server: &ServerName, id: &str, now: i64) -> bool {
        let missed = self.missed.get(&(server.to_owned(), id.into()));
        missed.is_some_and(|until| until > now)
    }

    pub(super) fn miss(&self, server: &ServerName, id: &str, now: i64) {
        let key = (server.to_owned(), id.into());
        self.missed.insert(key, now + millis(MISSED));
    }

    /// Has servers asked again, some time soon.
    pub(super) fn renew_soon<'a>(&self, servers: impl Iterator<Item = &'a OwnedServerName>) {
        let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
        let before = stale.len();
        for server in servers {
            if stale.len() < SERVERS {
                stale.insert(server.clone());
            }
        }
        if stale.len() > before {
            self.is_stale.notify_one();
        }
    }

    /// Waits until there are servers to be asked again.
    pub(super) async fn stale(&self) -> HashSet<OwnedServerName> {
        loop {
            self.is_stale.notified().await;
            let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
            if !stale.is_empty() {
                return std::mem::take(&mut *stale);
            }
        }
    }

    /// The right to ask a server, which one has at a time.
    pub(super) fn turn(&self, server: &ServerName) -> Arc<tokio::sync::Mutex<()>> {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        asking.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(asking.entry(server.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use homing_federation::SigningKey;
    use ruma::server_name;

    use super::*;

    const DAY: i64 = 24 * 60 * 60 * 1000;

    fn own(text: &str) -> OwnKeys {
        let line = |line: &str| {
            let mut words = line.split(' ');
            let version = words.next().unwrap_or_default();
            let letter = if version == "a" { "A" } else { "I" };
            let more: Vec<_> = words.collect();
            format!("ed25519 {version} {} {}", letter.repeat(43), more.join(" "))
        };
        let lines: Vec<_> = text.lines().map(line).collect();
        OwnKeys::parse(&lines.join("\n")).unwrap()
    }

    fn document(text: &str, now: i64) -> KeyDocument {
        let name = server_name!("a.example");
        let text = own(text).document(name, now).unwrap();
        KeyDocument::parse(text.as_bytes(), name).unwrap()
    }

    fn until(known: &Known, id: &str) -> Option<i64> {
        known.keys.get(id).map(|(_, until)| *until)
    }

    #[test]
    fn keys_stay_known_for_what_they_have_signed() {
        let first = Known::default().with(&document("a", 0), 0);
        assert_eq!(until(&first, "ed25519:a"), Some(DAY));
        assert!(first.valid_at("ed25519:a", DAY).is_some());
        assert!(first.valid_at("ed25519:a", DAY + 1).is_none());
        assert!(first.valid_at("ed25519:b", i64::MIN).is_none());
        assert!(!first.is_stale(DAY / 2 - 1) && first.is_stale(DAY / 2));
        // The key is gone without a word.
        let second = first.with(&document("b", 2 * DAY), 2 * DAY);
        assert_eq!(until(&second, "ed25519:a"), Some(DAY));
        assert_eq!(until(&second, "ed25519:b"), Some(3 * DAY));
        // The key was given up before its time.
        let third = first.with(&document("b\na 1000", DAY / 2), DAY / 2);
        assert_eq!(until(&third, "ed25519:a"), Some(1000));
        // A server cannot say that it will give a key up later than now.
        let future = first.with(&document(&format!("b\na {}", 9 * DAY), 5), 5);
        assert_eq!(until(&future, "ed25519:a"), Some(5));
    }

    #[test]
    fn no_key_is_believed_for_more_than_a_week() {
        // Its clock is a year ahead.
        let known = Known::default().with(&document("a", 365 * DAY), 0);
        assert_eq!(until(&known, "ed25519:a"), Some(7 * DAY));
        assert!(known.is_stale(4 * DAY));
    }

    #[test]
    fn notaries_only_add() {
        let now = 10 * DAY;
        let revoked = Known::default().with(&document("b\na 1000", now), now);
        let told = revoked.with_older(&document("a", now - DAY), now);
        assert_eq!(until(&told, "ed25519:b"), until(&revoked, "ed25519:b"));
        assert!(told.keys.contains_key("ed25519:a"));
        assert_eq!(told.fetched, now);
        let nothing = Known::default().with_older(&document("a", 0), now);
        assert_eq!(until(&nothing, "ed25519:a"), Some(DAY));
        assert!(nothing.is_stale(now));
    }

    #[test]
    fn failures_are_remembered_for_a_minute_up_to_an_hour() {
        let keys = ServerKeys::default();
        let server = server_name!("a.example");
        let minute = 60_000;
        assert!(!keys.has_failed(server, 0));
        keys.fail(server, 0);
        assert!(keys.has_failed(server, minute - 1) && !keys.has_failed(server, minute));
        for _ in 0..40 {
            keys.fail(server, 0);
        }
        assert!(keys.has_failed(server, 60 * minute - 1) && !keys.has_failed(server, 60 * minute));
        keys.forgive(server);
        assert!(!keys.has_failed(server, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_place_for_ever() {
        let places = Places::new(1, PATIENCE);
        let taken = places.enter().await.unwrap();
        assert!(places.enter().await.is_none());
        drop(taken);
        assert!(places.enter().await.is_some());
    }

    #[test]
    fn own_keys_are_known() {
        let own = own("a\nb 1000");
        let known = Known::own(&own);
        let key: &SigningKey = &own.signing[0];
        assert_eq!(known.valid_at("ed25519:a", DAY), Some(&key.verify_key()));
        assert!(known.valid_at("ed25519:b", 1000).is_some());
        assert!(known.valid_at("ed25519:b", 1001).is_none());
        assert!(!known.is_stale(i64::MAX - 1));
    }
}
