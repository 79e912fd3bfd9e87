//! Time as entries with a deadline know it: milliseconds of Unix time.

use std::num::NonZeroU64;
#[cfg(test)]
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Shortest and longest life of an entry.
const TTL_MIN: Duration = Duration::from_millis(1);
const TTL_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);

/// When an entry ends, in milliseconds of Unix time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(NonZeroU64);

impl Deadline {
    /// The instant so many milliseconds after the beginning of 1970; none for 0.
    pub fn from_millis(millis: u64) -> Option<Self> {
        NonZeroU64::new(millis).map(Self)
    }

    /// Milliseconds since the beginning of 1970.
    pub fn millis(self) -> u64 {
        self.0.get()
    }

    /// The instant as a time of the system.
    pub fn time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.millis())
    }
}

/// Checks how long an entry may live.
///
/// # Errors
/// What was expected.
pub fn check_ttl(ttl: Duration) -> Result<(), String> {
    if (TTL_MIN..=TTL_MAX).contains(&ttl) {
        return Ok(());
    }
    Err(format!("ttl of {ttl:?}: expected 1ms to 3650d"))
}

/// The writer's clock. It reads the system's time once and counts on from there by the monotonic clock, so no jump of the
/// system's time shortens or prolongs a life while the process runs. What is stored is compared with the system's time
/// again at the next start.
#[derive(Clone)]
pub(super) enum Clock {
    System {
        began: Duration,
        since: Instant,
    },
    /// Set by a test.
    #[cfg(test)]
    Hand(Arc<AtomicU64>),
}

/// How often the writer looks for entries that have ended.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// Least time between two transactions of entries that end, so that those that end one after the other share one.
    pub(super) interval: Duration,
    /// After a transaction of these failed.
    pub(super) retry: Duration,
    /// Longest wait without a look at the clock while there are entries that end.
    pub(super) wait_max: Duration,
}

impl Clock {
    pub(super) fn pace(&self) -> Pace {
        match self {
            Self::System { .. } => Pace {
                interval: Duration::from_millis(250),
                retry: Duration::from_secs(1),
                wait_max: Duration::from_millis(500),
            },
            #[cfg(test)]
            Self::Hand(_) => Pace {
                interval: Duration::ZERO,
                retry: Duration::from_millis(1),
                wait_max: Duration::from_millis(1),
            },
        }
    }

    pub(super) fn system() -> Self {
        let began = SystemTime::now().duration_since(UNIX_EPOCH);
        Self::System {
            // A clock before 1970 is as wrong as one at 1970.
            began: began.unwrap_or_default(),
            since: Instant::now(),
        }
    }

    /// Milliseconds of Unix time.
    pub(super) fn now(&self) -> u64 {
        match self {
            Self::System { began, since } => {
                u64::try_from((*began + since.elapsed()).as_millis()).unwrap_or(u64::MAX)
            }
            #[cfg(test)]
            Self::Hand(now) => now.load(Ordering::SeqCst),
        }
    }
}

/// The instant `ttl` after `now`.
pub(super) fn deadline_after(now: u64, ttl: Duration) -> Option<Deadline> {
    // Half a millisecond is no reason to end before the time that was asked for.
    let millis = u64::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    Deadline::from_millis(now.saturating_add(millis).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_at_least_what_was_asked_for() {
        let millis = |ttl| deadline_after(1_000, ttl).map(Deadline::millis);
        assert_eq!(millis(Duration::from_millis(5)), Some(1_005));
        assert_eq!(millis(Duration::from_micros(5_001)), Some(1_006));
        assert_eq!(millis(Duration::MAX), Some(u64::MAX));
    }

    #[test]
    fn lives_have_bounds() {
        assert!(check_ttl(TTL_MIN).is_ok() && check_ttl(TTL_MAX).is_ok());
        for bad in [Duration::ZERO, TTL_MAX + Duration::from_secs(1)] {
            assert!(
                check_ttl(bad)
                    .unwrap_err()
                    .contains("expected 1ms to 3650d")
            );
        }
    }
}
