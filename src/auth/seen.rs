//! When and from where devices were last seen, gathered in memory and written now and then.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::storage::{DeviceNid, UserNid};

/// When, in milliseconds since 1970, and from where.
pub type Sighting = (i64, Option<IpAddr>);

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Not yet written.
    fresh: Mutex<HashMap<DeviceNid, (UserNid, Sighting)>>,
}

impl Seen {
    fn fresh(&self) -> MutexGuard<'_, HashMap<DeviceNid, (UserNid, Sighting)>> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a device of a user was seen.
    pub fn note(&self, user: UserNid, device: DeviceNid, now: i64, address: Option<IpAddr>) {
        self.fresh().insert(device, (user, (now, address)));
    }

    /// What is not written yet about a device.
    #[must_use]
    pub fn get(&self, device: DeviceNid) -> Option<Sighting> {
        self.fresh().get(&device).map(|(_, sighting)| *sighting)
    }

    /// Forgets devices that have ended.
    pub fn forget(&self, devices: &[DeviceNid]) {
        let mut fresh = self.fresh();
        for device in devices {
            fresh.remove(device);
        }
    }

    /// Forgets all devices of a user but `kept`.
    pub fn forget_all(&self, user: UserNid, kept: Option<DeviceNid>) {
        self.fresh()
            .retain(|device, (whose, _)| *whose != user || Some(*device) == kept);
    }

    /// Everything that is to be written.
    #[must_use]
    pub fn take(&self) -> Vec<(DeviceNid, Sighting)> {
        let fresh = std::mem::take(&mut *self.fresh());
        let rows = fresh.into_iter();
        rows.map(|(device, (_, sighting))| (device, sighting))
            .collect()
    }
}
