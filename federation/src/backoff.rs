//! How long to leave a server alone that does not answer.

use std::time::Duration;

/// The wait after the first failure: a server that is started anew, or a connection that was cut, is back within seconds,
/// and people wait for their messages meanwhile. Who does not come back costs five more attempts than with half a minute.
pub const SHORTEST: Duration = Duration::from_secs(2);
/// The longest wait.
pub const LONGEST: Duration = Duration::from_hours(24);

/// The wait after this many failures in a row: it doubles with each of them. `jitter`, from 0 to 1, takes off up to a
/// fifth of it, so that servers which have failed together are not asked together again. No failure, no wait.
#[must_use]
pub fn wait(failures: u32, jitter: f64) -> Duration {
    let Some(doublings) = failures.checked_sub(1) else {
        return Duration::ZERO;
    };
    let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
    let full = SHORTEST.saturating_mul(factor).min(LONGEST);
    full.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 5.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_day() {
        let cases = [
            (0, 0.0, 0),
            (1, 0.0, 2),
            (2, 0.0, 4),
            (3, 0.0, 8),
            (16, 0.0, 65_536),
            (17, 0.0, 86_400),
            (32, 0.0, 86_400),
            (33, 0.0, 86_400),
            (u32::MAX, 0.0, 86_400),
            (5, 1.0, 25),
            (5, 0.5, 28),
            (6, 7.0, 51),
            (u32::MAX, 1.0, 69_120),
        ];
        for (failures, jitter, seconds) in cases {
            assert_eq!(
                wait(failures, jitter).as_secs(),
                seconds,
                "{failures} {jitter}"
            );
        }
    }
}
