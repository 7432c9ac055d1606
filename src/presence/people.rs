//! Who is there, in memory: what devices say, what follows from it, and what time makes of it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use ruma::{OwnedMxcUri, UInt, events::presence::PresenceEventContent, presence::PresenceState};

use crate::storage::{DeviceNid, UserNid, presence::LastSeen};

/// How long a device counts after its last sync, in milliseconds.
const SYNC_TIMEOUT: i64 = 30_000;
/// After how long without activity a user is idle, in milliseconds.
const IDLE_TIMEOUT: i64 = 5 * 60_000;
/// For how long after an activity a user is "currently active", in milliseconds.
const ACTIVE_TIME: i64 = 60_000;
/// How long one who is offline stays in memory, in milliseconds: until then no sync needs to ask the database.
const OFFLINE_TIME: i64 = 10 * 60_000;
/// How long one on another server counts as being there when nothing is heard of them, in milliseconds.
const REMOTE_TIMEOUT: i64 = 30 * 60_000;
/// Everybody who is or was about.
#[derive(Debug, Default)]
pub struct Presence(Mutex<People>);

#[derive(Debug, Default)]
pub(super) struct People {
    pub(super) people: HashMap<UserNid, Person>,
    /// When each one must be looked at again, at the latest.
    pub(super) due: BTreeSet<(i64, UserNid)>,
}

#[derive(Debug)]
pub(super) struct Person {
    pub(super) devices: HashMap<DeviceNid, Device>,
    /// What another server says of the user, and when it did.
    pub(super) remote: Option<(View, i64)>,
    pub(super) status_msg: Option<String>,
    pub(super) last_active: i64,
    /// What the others were told last.
    told: (PresenceState, bool, Option<String>),
    /// Since when the user is offline.
    offline_since: i64,
    /// Whether the database does not know what would be written now.
    pub(super) unsaved: bool,
    /// The entry in [`People::due`].
    due: i64,
}

#[derive(Debug)]
pub(super) struct Device {
    pub(super) says: PresenceState,
    /// Syncs that are running.
    pub(super) syncs: u32,
    pub(super) last_seen: i64,
}

/// What others see of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Online, unavailable or offline.
    pub state: PresenceState,
    /// What the user says of it.
    pub status_msg: Option<String>,
    /// When the user was last active, in milliseconds since 1970; `None` if that is not known.
    pub last_active: Option<i64>,
    /// Whether the user is online and did something just now.
    pub currently_active: bool,
}

impl View {
    /// One of whom nothing is known.
    pub(super) fn unknown() -> Self {
        Self {
            state: PresenceState::Offline,
            status_msg: None,
            last_active: None,
            currently_active: false,
        }
    }

    pub(super) fn of(seen: LastSeen) -> Self {
        Self {
            status_msg: seen.status_msg,
            last_active: Some(seen.last_active_ts),
            ..Self::unknown()
        }
    }

    /// For how long the user has not been active, in milliseconds.
    #[must_use]
    pub fn last_active_ago(&self, now: i64) -> Option<u64> {
        self.last_active
            .map(|at| u64::try_from(now - at).unwrap_or(0))
    }

    /// The content of an `m.presence` event.
    #[must_use]
    pub fn content(
        &self,
        now: i64,
        display_name: Option<String>,
        avatar_url: Option<OwnedMxcUri>,
    ) -> PresenceEventContent {
        let mut content = PresenceEventContent::new(self.state.clone());
        content.status_msg.clone_from(&self.status_msg);
        content.last_active_ago = self
            .last_active_ago(now)
            .and_then(|ago| UInt::try_from(ago).ok());
        if self.state == PresenceState::Online {
            content.currently_active = Some(self.currently_active);
        }
        content.displayname = display_name;
        content.avatar_url = avatar_url;
        content
    }
}

impl Person {
    fn new(seen: Option<LastSeen>, now: i64) -> Self {
        let unsaved = seen.is_none();
        let seen = seen.unwrap_or(LastSeen {
            last_active_ts: now,
            status_msg: None,
        });
        Self {
            devices: HashMap::new(),
            remote: None,
            told: (PresenceState::Offline, false, seen.status_msg.clone()),
            status_msg: seen.status_msg,
            last_active: seen.last_active_ts,
            offline_since: now,
            unsaved,
            due: i64::MAX,
        }
    }

    fn view(&self, now: i64) -> View {
        if let Some((view, heard)) = &self.remote {
            let mut view = view.clone();
            if heard + REMOTE_TIMEOUT <= now {
                view.state = PresenceState::Offline;
                view.currently_active = false;
            }
            return view;
        }
        let there = |state: &PresenceState| {
            self.devices
                .values()
                .any(|device| device.says == *state && !device.is_gone(now))
        };
        let is_idle = self.last_active + IDLE_TIMEOUT <= now;
        let state = if there(&PresenceState::Online) && !is_idle {
            PresenceState::Online
        } else if there(&PresenceState::Online) || there(&PresenceState::Unavailable) {
            PresenceState::Unavailable
        } else {
            PresenceState::Offline
        };
        View {
            currently_active: state == PresenceState::Online
                && self.last_active + ACTIVE_TIME > now,
            state,
            status_msg: self.status_msg.clone(),
            last_active: Some(self.last_active),
        }
    }

    pub(super) fn seen(&self) -> LastSeen {
        LastSeen {
            last_active_ts: self.last_active,
            status_msg: self.status_msg.clone(),
        }
    }

    /// When something about the user may change next if nobody does anything.
    fn next(&self, now: i64) -> i64 {
        if let Some((view, heard)) = &self.remote
            && view.state != PresenceState::Offline
        {
            let silent = heard + REMOTE_TIMEOUT;
            return if silent > now {
                silent
            } else {
                silent + OFFLINE_TIME
            };
        }
        if self.devices.is_empty() {
            return self.offline_since + OFFLINE_TIME;
        }
        let ends = self
            .devices
            .values()
            .filter(|device| device.syncs == 0)
            .map(|device| device.last_seen + SYNC_TIMEOUT);
        let rests = [
            self.last_active + ACTIVE_TIME,
            self.last_active + IDLE_TIMEOUT,
        ];
        ends.chain(rests.into_iter().filter(|at| *at > now))
            .min()
            .unwrap_or(now + IDLE_TIMEOUT)
    }
}

impl Device {
    fn is_gone(&self, now: i64) -> bool {
        self.syncs == 0 && self.last_seen + SYNC_TIMEOUT <= now
    }
}

/// What is to be done after a look at somebody.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Those whom others see otherwise now.
    pub(super) seen: Vec<UserNid>,
    /// Those who went, and what is to be written down.
    pub(super) gone: Vec<(UserNid, LastSeen)>,
}

impl People {
    /// Looks at a user again after something has happened or time has passed.
    pub(super) fn look(&mut self, user: UserNid, now: i64, changes: &mut Changes) {
        let Some(person) = self.people.get_mut(&user) else {
            return;
        };
        let had_devices = !person.devices.is_empty();
        person.devices.retain(|_, device| !device.is_gone(now));
        if person.devices.is_empty() {
            if had_devices {
                person.offline_since = now;
            }
            if person.unsaved {
                person.unsaved = false;
                changes.gone.push((user, person.seen()));
            }
        }
        let view = person.view(now);
        let told = (view.state, view.currently_active, view.status_msg);
        if told != person.told {
            person.told = told;
            changes.seen.push(user);
        }
        let next = person.next(now);
        self.due.remove(&(person.due, user));
        if person.devices.is_empty() && next <= now {
            self.people.remove(&user);
        } else {
            person.due = next;
            self.due.insert((next, user));
        }
    }
}

impl Presence {
    pub(super) fn people(&self) -> MutexGuard<'_, People> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of `users` who are known in memory.
    pub(super) fn views(&self, users: &[UserNid], now: i64) -> HashMap<UserNid, View> {
        let people = self.people();
        users
            .iter()
            .filter_map(|user| Some((*user, people.people.get(user)?.view(now))))
            .collect()
    }

    /// Everybody who is online or unavailable.
    #[must_use]
    pub fn present(&self, now: i64) -> HashMap<UserNid, View> {
        let people = self.people();
        people
            .people
            .iter()
            .map(|(user, person)| (*user, person.view(now)))
            .filter(|(_, view)| view.state != PresenceState::Offline)
            .collect()
    }

    /// Those of `present` who are on other servers.
    #[must_use]
    pub fn remote(&self, present: &HashMap<UserNid, View>) -> Vec<UserNid> {
        let people = self.people();
        let is_remote = |user: &&UserNid| {
            let person = people.people.get(user);
            person.is_some_and(|person| person.remote.is_some())
        };
        present.keys().filter(is_remote).copied().collect()
    }

    pub(super) fn is_known(&self, user: UserNid) -> bool {
        self.people().people.contains_key(&user)
    }

    /// Another server says how one of its users is. What it says is not written down.
    pub(super) fn heard(&self, user: UserNid, view: View, now: i64) -> Changes {
        let nothing = LastSeen {
            last_active_ts: now,
            status_msg: None,
        };
        self.change(user, now, Some(nothing), |person| {
            person.offline_since = now;
            person.remote = Some((view, now));
        })
    }

    /// Changes what is known of a user, and looks at them. `seen` is what the database remembers of them.
    pub(super) fn change(
        &self,
        user: UserNid,
        now: i64,
        seen: Option<LastSeen>,
        change: impl FnOnce(&mut Person),
    ) -> Changes {
        let mut people = self.people();
        let person = people
            .people
            .entry(user)
            .or_insert_with(|| Person::new(seen, now));
        change(person);
        let mut changes = Changes::default();
        people.look(user, now, &mut changes);
        changes
    }
}

/// A device says how its user is. To become online is an activity.
pub(super) fn says(person: &mut Person, device: DeviceNid, state: &PresenceState, now: i64) {
    let before = person.devices.get(&device);
    let was_online =
        before.is_some_and(|device| device.says == PresenceState::Online && !device.is_gone(now));
    if *state == PresenceState::Online && !was_online {
        person.last_active = person.last_active.max(now);
    }
    person.unsaved = true;
    let syncs = before.map_or(0, |device| device.syncs);
    let device_now = Device {
        says: state.clone(),
        syncs,
        last_seen: now,
    };
    person.devices.insert(device, device_now);
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: UserNid = UserNid(1);
    const PHONE: DeviceNid = DeviceNid(1);
    const DESK: DeviceNid = DeviceNid(2);

    /// What others see at each time after some steps: when, which device says what, what is seen.
    #[test]
    fn devices_together_make_a_presence() {
        use PresenceState::{Offline, Online, Unavailable};
        let minute = 60_000;
        let table = [
            (0, Some((PHONE, Online)), Online),
            (29_999, None, Online),
            (30_000, None, Offline),
            (minute, Some((PHONE, Unavailable)), Unavailable),
            (minute, Some((DESK, Online)), Online),
            (minute + 20_000, Some((DESK, Offline)), Unavailable),
            (minute + 30_000, None, Offline),
        ];
        let presence = Presence::default();
        for (now, step, expected) in table {
            if let Some((device, state)) = step {
                presence.change(USER, now, None, |person| says(person, device, &state, now));
            }
            let views = presence.views(&[USER], now);
            assert_eq!(views[&USER].state, expected, "at {now}");
        }
    }

    #[test]
    fn who_syncs_and_does_nothing_becomes_idle() {
        let presence = Presence::default();
        presence.change(USER, 0, None, |person| {
            says(person, PHONE, &PresenceState::Online, 0);
            person.devices.get_mut(&PHONE).unwrap().syncs = 1;
        });
        let view = |now| presence.views(&[USER], now).remove(&USER).unwrap();
        assert!(view(ACTIVE_TIME - 1).currently_active);
        assert!(!view(ACTIVE_TIME).currently_active);
        assert_eq!(view(IDLE_TIMEOUT - 1).state, PresenceState::Online);
        assert_eq!(view(IDLE_TIMEOUT).state, PresenceState::Unavailable);
        let now = IDLE_TIMEOUT + 1;
        presence.change(USER, now, None, |person| {
            says(person, PHONE, &PresenceState::Online, now);
        });
        assert_eq!(
            view(now).state,
            PresenceState::Unavailable,
            "the next sync is no activity"
        );
    }

    #[test]
    fn each_change_is_told_once() {
        let presence = Presence::default();
        let told = |now| {
            presence
                .change(USER, now, None, |person| {
                    says(person, PHONE, &PresenceState::Online, now);
                })
                .seen
                .len()
        };
        assert_eq!((told(0), told(1), told(2)), (1, 0, 0));
        let mut changes = Changes::default();
        let mut people = presence.people();
        assert_eq!(people.due.first(), Some(&(2 + SYNC_TIMEOUT, USER)));
        people.look(USER, 2 + SYNC_TIMEOUT, &mut changes);
        assert_eq!((changes.seen.len(), changes.gone.len()), (1, 1));
        people.look(USER, 2 + SYNC_TIMEOUT + OFFLINE_TIME, &mut changes);
        assert!(people.people.is_empty() && people.due.is_empty());
        assert_eq!((changes.seen.len(), changes.gone.len()), (1, 1));
    }
}
