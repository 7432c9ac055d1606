//! When and from where devices were last seen, gathered in memory and written now and then.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::storage::DeviceNid;

/// When, in milliseconds since 1970, and from where.
pub type Sighting = (i64, Option<IpAddr>);

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Not yet written.
    fresh: Mutex<HashMap<DeviceNid, Sighting>>,
}

impl Seen {
    fn fresh(&self) -> MutexGuard<'_, HashMap<DeviceNid, Sighting>> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a device was seen.
    pub fn note(&self, device: DeviceNid, now: i64, address: Option<IpAddr>) {
        self.fresh().insert(device, (now, address));
    }

    /// What is not written yet about a device.
    #[must_use]
    pub fn get(&self, device: DeviceNid) -> Option<Sighting> {
        self.fresh().get(&device).copied()
    }

    /// Forgets devices that have ended.
    pub fn forget(&self, devices: &[DeviceNid]) {
        let mut fresh = self.fresh();
        for device in devices {
            fresh.remove(device);
        }
    }

    /// Everything that is to be written.
    #[must_use]
    pub fn take(&self) -> HashMap<DeviceNid, Sighting> {
        std::mem::take(&mut *self.fresh())
    }
}
