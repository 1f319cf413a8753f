//! Time of one call: wall clock, CPU clock, and what the call is doing.
//!
//! Shared between the future that drives a call and the guest's epoch callback, which run on the same thread, one inside
//! the other; hence relaxed atomics.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use palisade_core::Phase;
use rustix::time::{ClockId, clock_gettime};

#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// CPU time of finished polls.
    cpu_nanos: AtomicU64,
    /// Thread CPU clock when the current poll began; [`UNREAD`] in a call's first poll.
    poll_cpu_start_nanos: AtomicU64,
    /// Time since the call's start when the current poll began.
    poll_wall_start_nanos: AtomicU64,
    phase: AtomicU8,
}

/// Reading a thread's CPU clock is a system call, which a call of a few microseconds should not pay twice. So a call's
/// first poll, which lasts one time slice at most, is charged by the wall clock, which is never less.
const UNREAD: u64 = u64::MAX;

const PHASES: [Phase; 3] = [Phase::Starting, Phase::Running, Phase::HostCall];

impl Meter {
    /// Begins a call.
    pub(crate) fn reset(&self) {
        self.cpu_nanos.store(0, Ordering::Relaxed);
        // Before its first poll a call has used nothing, whatever its thread did before.
        self.poll_cpu_start_nanos.store(UNREAD, Ordering::Relaxed);
        self.poll_wall_start_nanos.store(0, Ordering::Relaxed);
        self.set_phase(Phase::Starting);
    }

    pub(crate) fn phase(&self) -> Phase {
        PHASES[self.phase.load(Ordering::Relaxed) as usize]
    }

    /// Sets the phase, which must be one of a call's own: starting, running or host call.
    pub(crate) fn set_phase(&self, phase: Phase) {
        let index = PHASES.iter().position(|known| *known == phase);
        debug_assert!(index.is_some(), "a call is never {phase}");
        self.phase.store(index.unwrap_or(1) as u8, Ordering::Relaxed);
    }

    /// A poll begins, `wall_time` after the call's start.
    pub(crate) fn poll_started(&self, wall_time: Duration, first: bool) {
        let cpu = if first { UNREAD } else { thread_cpu_nanos() };
        self.poll_cpu_start_nanos.store(cpu, Ordering::Relaxed);
        self.poll_wall_start_nanos.store(nanos(wall_time), Ordering::Relaxed);
    }

    /// A poll ended, `wall_time` after the call's start.
    pub(crate) fn poll_ended(&self, wall_time: Duration) {
        let cpu = self.cpu_time(wall_time);
        self.cpu_nanos.store(nanos(cpu), Ordering::Relaxed);
    }

    /// CPU time up to now, which is `wall_time` after the call's start. To be called on the thread of the current poll.
    pub(crate) fn cpu_time(&self, wall_time: Duration) -> Duration {
        let current = match self.poll_cpu_start_nanos.load(Ordering::Relaxed) {
            UNREAD => nanos(wall_time).saturating_sub(self.poll_wall_start_nanos.load(Ordering::Relaxed)),
            start => thread_cpu_nanos().saturating_sub(start),
        };
        Duration::from_nanos(self.cpu_nanos.load(Ordering::Relaxed).saturating_add(current))
    }

    /// CPU time of all finished polls.
    pub(crate) fn cpu_time_of_polls(&self) -> Duration {
        Duration::from_nanos(self.cpu_nanos.load(Ordering::Relaxed))
    }
}

fn thread_cpu_nanos() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
