//! Telling time that passed from a clock that was set.
//!
//! Waits of a rollover are real time: what resolvers hold in their caches does not expire because
//! somebody sets our clock. While one process runs, the steady clock tells the difference, and the
//! times of deeds are moved along with the wall clock. Over a restart the wall clock is all there is.

use std::{
    sync::LazyLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// A smaller difference is a clock being trimmed; every wait holds a reserve of more (`propagation`).
const TRIM_SECONDS: u64 = 300;
/// The last second of the year 9999, beyond which no date is printed or kept.
pub(super) const LAST: u64 = 253_402_300_799;

/// One instant by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The date, which can be set.
    pub wall: SystemTime,
    /// Time since some instant of this process, which can't.
    pub steady: Duration,
}

impl Moment {
    /// This instant.
    pub fn now() -> Self {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        // Before the wall clock: a first call must not give a steady time from before `START`.
        let steady = START.elapsed();
        Self {
            wall: SystemTime::now(),
            steady,
        }
    }

    /// By how many seconds the clock was set forward (or back, below zero) since `before`.
    pub(super) fn set_since(&self, before: &Self) -> i64 {
        let signed = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        let wall = signed(seconds(self.wall)) - signed(seconds(before.wall));
        let steady = signed(self.steady.saturating_sub(before.steady).as_secs());
        let set = wall.saturating_sub(steady);
        if set.unsigned_abs() > TRIM_SECONDS {
            set
        } else {
            0
        }
    }
}

/// Whole seconds since 1970, within the years that can be written.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
        .min(LAST)
}

/// The time of so many seconds since 1970.
pub(super) fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.min(LAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_is_noticed_and_one_that_runs_is_not() {
        let at = |wall: u64, steady: u64| Moment {
            wall: time(wall),
            steady: Duration::from_secs(steady),
        };
        let start = at(1_000_000, 50);
        assert_eq!(at(1_090_000, 90_050).set_since(&start), 0);
        assert_eq!(at(1_090_100, 90_050).set_since(&start), 0, "trimmed");
        assert_eq!(at(2_000_060, 110).set_since(&start), 1_000_000);
        assert_eq!(at(500_060, 110).set_since(&start), -500_000);
        assert_eq!(at(0, 60).set_since(&start), -1_000_010);
        assert_eq!(
            seconds(UNIX_EPOCH - Duration::from_secs(9)),
            0,
            "before all"
        );
        assert!(Moment::now().steady <= Moment::now().steady);
    }
}
