//! The time, as an argument: tests can set it forward.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, Instant},
};

use ruma::{MilliSecondsSinceUnixEpoch, UInt};

/// The system's clocks, and how far they are set forward.
#[derive(Debug)]
pub struct Clock {
    started: Instant,
    ahead: AtomicI64,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            ahead: AtomicI64::new(0),
        }
    }
}

impl Clock {
    /// Microseconds since some time before; it never goes back, also when somebody sets the system's clock.
    #[must_use]
    pub fn ticks(&self) -> i64 {
        let elapsed = i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX / 2);
        elapsed + self.ahead.load(Ordering::Relaxed) * 1000
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn now(&self) -> i64 {
        chrono::Utc::now().timestamp_millis() + self.ahead.load(Ordering::Relaxed)
    }

    /// The same as events have it.
    #[must_use]
    pub fn timestamp(&self) -> MilliSecondsSinceUnixEpoch {
        timestamp(self.now())
    }

    /// Sets the clock forward.
    pub fn advance(&self, time: Duration) {
        let millis = i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 2);
        self.ahead.fetch_add(millis, Ordering::Relaxed);
    }
}

/// Milliseconds since 1970 as events have them.
#[must_use]
pub fn timestamp(millis: i64) -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch(UInt::try_from(millis).unwrap_or(UInt::MIN))
}
