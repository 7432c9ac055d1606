//! The one-time keys that are handed out next, in memory: so many who ask at the same moment get one each, and share a commit.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync;

use crate::{
    app::App,
    error::Result,
    flights::Flights,
    storage::{
        DeviceNid,
        keys::{self, OneTimeKey},
    },
};

/// How many keys of a device are read at once; of many devices about so many in all, but one of each.
const READ: usize = 50;
const READ_OF_ALL: usize = 1000;
/// Of how many devices keys are kept in memory.
const SHELVES: usize = 1000;
/// In how many parts the devices are divided: of each part one at a time reads keys.
const PARTS: usize = 32;

/// A device and an algorithm.
pub(super) type Place = (DeviceNid, Arc<str>);

/// The one-time keys of devices that are handed out next.
#[derive(Debug, Default)]
pub struct Stocks {
    stock: Mutex<Stock>,
    reading: [sync::Mutex<()>; PARTS],
    adding: Flights<DeviceNid>,
}

#[derive(Debug, Default)]
struct Stock {
    /// The next keys, first the oldest. No shelf is empty.
    shelves: HashMap<Place, VecDeque<OneTimeKey>>,
    /// The keys that somebody has taken, and of which the database may not know it yet.
    taken: HashMap<Place, HashSet<i64>>,
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

impl Taken<'_> {
    /// Whose key it is.
    pub(super) fn device(&self) -> DeviceNid {
        self.place.0
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut stock = self.stocks.lock();
        if let Some(taken) = stock.taken.get_mut(&self.place) {
            taken.remove(&self.key.nid);
            if taken.is_empty() {
                stock.taken.remove(&self.place);
            }
        }
    }
}

impl Stock {
    /// Takes the next key of a device off its shelf.
    fn pop(&mut self, place: &Place) -> Option<OneTimeKey> {
        let shelf = self.shelves.get_mut(place)?;
        let key = shelf.pop_front();
        if shelf.is_empty() {
            self.shelves.remove(place);
        }
        key
    }
}

impl Stocks {
    fn lock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a key is taken.
    fn taken(&self, stock: &mut Stock, place: Place, key: OneTimeKey) -> Taken<'_> {
        let taken = stock.taken.entry(place.clone()).or_default();
        taken.insert(key.nid);
        Taken {
            stocks: self,
            place,
            key,
        }
    }

    /// Takes the next key of each device that has one in memory; leaves the places that have none.
    fn pop<'s>(&'s self, places: &mut Vec<Place>, taken: &mut Vec<Taken<'s>>) {
        let mut stock = self.lock();
        places.retain(|place| match stock.pop(place) {
            Some(key) => {
                taken.push(self.taken(&mut stock, place.clone(), key));
                false
            }
            None => true,
        });
    }

    /// Waits until nobody else reads keys of these devices.
    async fn turns(&self, places: &[Place]) -> Vec<sync::MutexGuard<'_, ()>> {
        let part = |(device, _): &Place| usize::try_from(device.0).unwrap_or(0) % PARTS;
        // All take them in this order, so nobody waits for somebody who waits for them.
        let parts: BTreeSet<usize> = places.iter().map(part).collect();
        let mut turns = Vec::with_capacity(parts.len());
        for part in parts {
            turns.push(self.reading[part].lock().await);
        }
        turns
    }

    /// What of these devices is taken now.
    fn known_taken(&self, algorithm: &Arc<str>, devices: &[DeviceNid]) -> Vec<i64> {
        let stock = self.lock();
        let places = devices
            .iter()
            .map(|device| (*device, Arc::clone(algorithm)));
        let taken = places.filter_map(|place| stock.taken.get(&place));
        taken.flatten().copied().collect()
    }

    /// Takes the first of each device's keys, and puts the others on its shelf.
    fn fill<'s>(
        &'s self,
        algorithm: &Arc<str>,
        keys: Vec<(DeviceNid, OneTimeKey)>,
        taken: &mut Vec<Taken<'s>>,
    ) {
        let mut stock = self.lock();
        let devices: HashSet<DeviceNid> = keys.iter().map(|(device, _)| *device).collect();
        if keys.len() > devices.len() && stock.shelves.len() + devices.len() > SHELVES {
            stock.shelves.clear();
        }
        let mut first = devices;
        for (device, key) in keys {
            let place = (device, Arc::clone(algorithm));
            if first.remove(&device) {
                taken.push(self.taken(&mut stock, place, key));
            } else {
                stock.shelves.entry(place).or_default().push_back(key);
            }
        }
    }

    /// Takes the next key of each device; none of those that have none left. No device may be named twice.
    ///
    /// # Errors
    /// If the database fails.
    pub(super) async fn take(&self, app: &App, mut places: Vec<Place>) -> Result<Vec<Taken<'_>>> {
        let mut taken = Vec::with_capacity(places.len());
        self.pop(&mut places, &mut taken);
        let _turns = self.turns(&places).await;
        self.pop(&mut places, &mut taken);
        // The shelves of those that are left are empty, and nobody else fills them: what anybody holds was taken before the
        // database is asked.
        let mut empty: BTreeMap<Arc<str>, Vec<DeviceNid>> = BTreeMap::new();
        for (device, algorithm) in places {
            empty.entry(algorithm).or_default().push(device);
        }
        for (algorithm, devices) in empty {
            let before = self.known_taken(&algorithm, &devices);
            let most = (READ_OF_ALL / devices.len()).clamp(1, READ);
            let most = i64::try_from(most).unwrap_or(1);
            let keys = keys::next(&app.db, &devices, &algorithm, before, most).await?;
            self.fill(&algorithm, keys, &mut taken);
        }
        Ok(taken)
    }

    /// Waits until nobody else adds keys of a device; nobody else does as long as the answer lives.
    pub(super) async fn adding(&self, device: DeviceNid) -> sync::OwnedMutexGuard<()> {
        self.adding.turn(device).await
    }

    /// Forgets what is known of some devices, because it was not as it is in the database.
    pub(super) fn forget(&self, devices: &HashSet<DeviceNid>) {
        let mut stock = self.lock();
        stock
            .shelves
            .retain(|(device, _), _| !devices.contains(device));
    }
}
