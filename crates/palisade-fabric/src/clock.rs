//! Where a scheduler reads the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::wheel::Millis;

/// Where a scheduler reads the time.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    System { read_at: Instant, time: Millis },
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The system's time, read once; from then on by a clock that never goes back or leaps. Setting the system's time
    /// neither ends leases nor prolongs them.
    pub fn system() -> Clock {
        Clock(Source::System { read_at: Instant::now(), time: to_millis(SystemTime::now()) })
    }

    /// A clock that stands still but for [`Clock::advance`], for tests. Its clones show the same time.
    pub fn manual() -> Clock {
        // Any time will do that is not near a boundary of the wheel.
        Clock(Source::Manual(Arc::new(AtomicU64::new(1_800_000_000_123))))
    }

    /// Moves a manual clock on. The scheduler hears of it with its next operation, or by
    /// [`LocalScheduler::tick`](crate::LocalScheduler::tick).
    ///
    /// # Panics
    ///
    /// When the clock is the system's.
    pub fn advance(&self, by: Duration) {
        match &self.0 {
            Source::Manual(time) => drop(time.fetch_add(span(by), Ordering::SeqCst)),
            Source::System { .. } => panic!("the system's clock cannot be moved"),
        }
    }

    /// What the clock shows.
    pub fn now(&self) -> SystemTime {
        from_millis(self.millis())
    }

    pub(crate) fn millis(&self) -> Millis {
        match &self.0 {
            Source::System { read_at, time } => time + span(read_at.elapsed()),
            Source::Manual(time) => time.load(Ordering::SeqCst),
        }
    }

    pub(crate) fn is_manual(&self) -> bool {
        matches!(self.0, Source::Manual(_))
    }
}

/// Latest moment that is told apart from later ones: far enough, and sums with any span stay in range.
const LATEST: Millis = 1 << 52;

/// Whole milliseconds, none before the epoch, so that nothing is early: a part counts as a whole one.
pub(crate) fn to_millis(time: SystemTime) -> Millis {
    span(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

pub(crate) fn from_millis(millis: Millis) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis.min(LATEST))
}

/// A span in milliseconds, rounded up.
pub(crate) fn span(duration: Duration) -> Millis {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(LATEST).min(LATEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_way_there_and_back() {
        let clock = Clock::manual();
        let same = clock.clone();
        clock.advance(Duration::from_micros(1));
        assert_eq!(same.millis(), 1_800_000_000_124, "rounded up");
        assert_eq!(to_millis(clock.now()), clock.millis());
        assert_eq!(to_millis(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), 0);
        assert_eq!(span(Duration::MAX), LATEST);
        assert_eq!(to_millis(from_millis(u64::MAX)), LATEST);
        let system = Clock::system();
        assert!(system.millis().abs_diff(to_millis(SystemTime::now())) < 1000);
    }
}
