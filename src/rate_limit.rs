//! How often somebody may do something: `M_LIMIT_EXCEEDED` beyond ("Rate limiting").
//!
//! Each pair of what is done and who does it has a bucket, kept as one number: when the bucket will be full again. A
//! full bucket is the same as none, so those can be forgotten.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    app::App,
    auth::Requester,
    config::{Rate, RateLimits},
    error::{Error, Result},
    storage::UserNid,
};

/// How many buckets are kept. When there would be more, full ones are forgotten, then all.
const BUCKETS: usize = 100_000;

/// What is limited; each has a rate in the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Attempts to log in from one address.
    LoginPerAddress,
    /// Attempts to log in to one account.
    LoginPerAccount,
    /// Registrations from one address.
    Registration,
    /// What one user sends.
    Messages,
    /// Rooms that one user joins or knocks on.
    Joins,
    /// Invites that one user sends.
    Invites,
    /// Invites that one user gets from other servers.
    InvitesFromElsewhere,
    /// Refreshed access tokens from one address.
    Refreshes,
    /// Files that one user uploads or makes names for.
    Uploads,
    /// What one user changes in their profile.
    Profiles,
    /// Pages that are fetched because one user wants to see a preview.
    Previews,
}

impl Class {
    fn rate(self, limits: &RateLimits) -> Rate {
        match self {
            Self::LoginPerAddress => limits.login_per_address,
            Self::LoginPerAccount => limits.login_per_account,
            Self::Registration => limits.registration,
            Self::Messages => limits.messages,
            Self::Joins => limits.joins,
            Self::Invites | Self::InvitesFromElsewhere => limits.invites,
            Self::Refreshes => limits.refreshes,
            Self::Uploads => limits.uploads,
            Self::Profiles => limits.profiles,
            Self::Previews => limits.previews,
        }
    }
}

/// Who is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// A local user.
    User(UserNid),
    /// An address; of an IPv6 address the first 64 bits, which one customer gets as a whole.
    Address(IpAddr),
    /// All whose address is not known.
    Unknown,
    /// Nobody: administrators.
    Exempt,
}

impl From<&Requester> for Who {
    fn from(requester: &Requester) -> Self {
        if requester.is_admin {
            Self::Exempt
        } else {
            Self::User(requester.user)
        }
    }
}

impl From<&Arc<Requester>> for Who {
    fn from(requester: &Arc<Requester>) -> Self {
        Self::from(&**requester)
    }
}

impl From<UserNid> for Who {
    fn from(user: UserNid) -> Self {
        Self::User(user)
    }
}

impl From<Option<IpAddr>> for Who {
    fn from(address: Option<IpAddr>) -> Self {
        match address.map(|address| address.to_canonical()) {
            Some(IpAddr::V6(address)) => {
                let network = Ipv6Addr::from_bits(address.to_bits() >> 64 << 64);
                Self::Address(network.into())
            }
            Some(address) => Self::Address(address),
            None => Self::Unknown,
        }
    }
}

/// The buckets that are not full: when they will be, in ticks of the [`Clock`](crate::clock::Clock).
#[derive(Debug, Default)]
pub struct Buckets(Mutex<HashMap<(Class, Who), i64>>);

impl Buckets {
    /// Takes one from a bucket, or says how long to wait for that.
    fn take(&self, key: (Class, Who), rate: Rate, now: i64) -> Option<Duration> {
        let interval = 1e6 / rate.per_second;
        #[expect(clippy::cast_possible_truncation, reason = "saturates, which is fine")]
        let (interval, whole) = (interval as i64, (interval * f64::from(rate.burst)) as i64);
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // No bucket is emptier than empty: if it looks so, the clock was set back.
        let full = buckets.get(&key).copied().unwrap_or(now);
        let full = full.clamp(now, now.saturating_add(whole));
        let next = full.saturating_add(interval);
        let wait = next.saturating_sub(now).saturating_sub(whole);
        if wait > 0 {
            buckets.insert(key, full);
            return Some(Duration::from_micros(wait.cast_unsigned()));
        }
        if buckets.len() >= BUCKETS && !buckets.contains_key(&key) {
            buckets.retain(|_, full| *full > now);
            if buckets.len() >= BUCKETS {
                buckets.clear();
            }
        }
        buckets.insert(key, next);
        None
    }
}

/// Counts that `who` does something now.
///
/// # Errors
/// `M_LIMIT_EXCEEDED` if it is too often.
pub fn check(app: &App, class: Class, who: impl Into<Who>) -> Result<()> {
    let limits = &app.config.rate_limits;
    let who = who.into();
    if !limits.enabled || who == Who::Exempt {
        return Ok(());
    }
    let now = app.clock.ticks();
    match app.buckets.take((class, who), class.rate(limits), now) {
        None => Ok(()),
        Some(wait) => Err(Error::limit_exceeded(wait)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn rate(per_second: f64, burst: u32) -> Rate {
        Rate { per_second, burst }
    }

    #[test]
    fn burst_then_rate() {
        let buckets = Buckets::default();
        let key = (Class::Messages, Who::Unknown);
        let take = |now| buckets.take(key, rate(0.5, 3), now);
        assert_eq!([take(0), take(0), take(0)], [None; 3]);
        assert_eq!(take(0), Some(Duration::from_secs(2)));
        assert_eq!(take(SECOND), Some(Duration::from_secs(1)));
        assert_eq!(take(2 * SECOND), None);
        assert!(take(2 * SECOND).is_some());
        assert_eq!([take(100 * SECOND); 1], [None]);
        let other = (Class::Messages, Who::User(UserNid(1)));
        assert_eq!(buckets.take(other, rate(0.5, 1), 2 * SECOND), None);
    }

    #[test]
    fn a_clock_that_is_set_back_shuts_nobody_out() {
        let buckets = Buckets::default();
        let key = (Class::Messages, Who::Unknown);
        let take = |now| buckets.take(key, rate(0.5, 3), now);
        assert_eq!(take(10_000 * SECOND), None);
        assert_eq!(take(0), Some(Duration::from_secs(2)));
        assert_eq!(take(2 * SECOND), None);
    }

    #[test]
    fn memory_is_bounded() {
        let buckets = Buckets::default();
        for user in (0..).take(3 * BUCKETS) {
            buckets.take((Class::Joins, Who::User(UserNid(user))), rate(1e-6, 1), 0);
        }
        assert!(buckets.0.lock().unwrap().len() <= BUCKETS);
    }

    #[test]
    fn neighbours_in_an_ipv6_network_are_one() {
        let who = |text: &str| Who::from(Some(text.parse::<IpAddr>().unwrap()));
        assert_eq!(who("2001:db8::1"), who("2001:db8::ffff:1"));
        assert_ne!(who("2001:db8::1"), who("2001:db8:0:1::1"));
        assert_ne!(who("192.0.2.1"), who("192.0.2.2"));
        assert_eq!(who("192.0.2.1"), who("::ffff:192.0.2.1"));
    }
}
