//! The one-time keys that are handed out next, in memory: so many who ask at the same moment get one each, and share a commit.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    app::App,
    error::Result,
    flights::Flights,
    storage::{
        DeviceNid,
        keys::{self, OneTimeKey},
    },
};

/// How many keys are read at once.
const READ: i64 = 50;
/// Of how many devices keys are kept in memory.
const SHELVES: usize = 1000;

type Place = (DeviceNid, Arc<str>);

/// The one-time keys of devices that are handed out next.
#[derive(Debug, Default)]
pub struct Stocks {
    shelves: Mutex<HashMap<Place, Shelf>>,
    reading: Flights<Place>,
}

#[derive(Debug, Default)]
struct Shelf {
    /// The next keys, first the oldest.
    keys: VecDeque<OneTimeKey>,
    /// Those that somebody has taken, and of which the database may not know it yet.
    taken: HashSet<i64>,
}

/// A key that nobody else is given as long as this lives. By then the database must know that it was handed out, or it may
/// be given to somebody else, whose change is refused if it was.
#[derive(Debug)]
pub(super) struct Taken<'s> {
    stocks: &'s Stocks,
    place: Place,
    /// The key.
    pub(super) key: OneTimeKey,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut shelves = self.stocks.lock();
        if let Some(shelf) = shelves.get_mut(&self.place) {
            shelf.taken.remove(&self.key.nid);
            if shelf.taken.is_empty() && shelf.keys.is_empty() {
                shelves.remove(&self.place);
            }
        }
    }
}

impl Stocks {
    fn lock(&self) -> MutexGuard<'_, HashMap<Place, Shelf>> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pop(&self, place: &Place) -> Option<Taken<'_>> {
        let mut shelves = self.lock();
        let shelf = shelves.get_mut(place)?;
        let key = shelf.keys.pop_front()?;
        shelf.taken.insert(key.nid);
        Some(Taken {
            stocks: self,
            place: place.clone(),
            key,
        })
    }

    /// What of a place is taken now.
    fn taken(&self, place: &Place) -> HashSet<i64> {
        let shelves = self.lock();
        shelves
            .get(place)
            .map_or_else(HashSet::new, |shelf| shelf.taken.clone())
    }

    fn fill(&self, place: &Place, keys: Vec<OneTimeKey>) {
        let mut shelves = self.lock();
        if shelves.len() >= SHELVES {
            shelves.retain(|_, shelf| {
                shelf.keys.clear();
                !shelf.taken.is_empty()
            });
        }
        shelves.entry(place.clone()).or_default().keys = keys.into();
    }

    /// Takes the next key of a device; `None` if none is left.
    ///
    /// # Errors
    /// If the database fails.
    pub(super) async fn take(
        &self,
        app: &App,
        device: DeviceNid,
        algorithm: &str,
    ) -> Result<Option<Taken<'_>>> {
        let place = (device, Arc::from(algorithm));
        if let Some(taken) = self.pop(&place) {
            return Ok(Some(taken));
        }
        let _turn = self.reading.turn(place.clone()).await;
        if let Some(taken) = self.pop(&place) {
            return Ok(Some(taken));
        }
        // The shelf is empty and nobody else fills it: what anybody holds was taken before the database is asked.
        let before = self.taken(&place);
        let most = READ + i64::try_from(before.len()).unwrap_or(READ);
        let mut keys = keys::next(&app.db, device, algorithm, most).await?;
        keys.retain(|key| !before.contains(&key.nid));
        if keys.is_empty() {
            return Ok(None);
        }
        self.fill(&place, keys);
        Ok(self.pop(&place))
    }

    /// Forgets what is known of some devices, because it was not as it is in the database.
    pub(super) fn forget(&self, devices: &HashSet<DeviceNid>) {
        for ((device, _), shelf) in self.lock().iter_mut() {
            if devices.contains(device) {
                shelf.keys.clear();
            }
        }
    }
}
