//! Time of one call: wall clock, CPU clock, and what the call is doing. Used on the guest's thread only.

use std::time::{Duration, Instant};

use palisade_core::Phase;
use rustix::time::{ClockId, clock_gettime};

#[derive(Debug)]
pub(crate) struct Meter {
    started: Instant,
    cpu_start: Duration,
    pub(crate) phase: Phase,
}

impl Meter {
    /// Begins a call that was asked for at `started`.
    pub(crate) fn new(started: Instant) -> Self {
        Meter { started, cpu_start: thread_cpu_time(), phase: Phase::Starting }
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    pub(crate) fn wall_time(&self) -> Duration {
        self.started.elapsed()
    }

    /// Time this thread was on a CPU since the call began on it.
    pub(crate) fn cpu_time(&self) -> Duration {
        thread_cpu_time().saturating_sub(self.cpu_start)
    }
}

fn thread_cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
