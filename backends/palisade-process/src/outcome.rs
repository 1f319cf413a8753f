//! From the end of a process to an outcome.

use palisade_core::{Outcome, Phase, Quota, Resource, TrapKind};

use crate::sys::EndedBy;

/// The outcome of a process that ended by itself, or that the kernel ended.
pub(crate) fn from_end(by: EndedBy, quota: &Quota, phase: Phase, cpu_time_ns: u64) -> Outcome {
    let signal = match by {
        EndedBy::Exit(code) => return Outcome::from_exit_code(code),
        EndedBy::Signal(signal) => signal,
    };
    match signal {
        // What the host was asked about ended otherwise.
        libc::SIGSYS => Outcome::Denied { grant: "system calls of another architecture".to_owned() },
        // The kernel's own bound on CPU time, which only matters when the host could not look in time.
        libc::SIGXCPU | libc::SIGKILL
            if quota.cpu_time.is_some_and(|limit| limit.as_nanos() < u128::from(cpu_time_ns)) =>
        {
            let limit = quota.get(Resource::CpuTime).unwrap_or(0);
            Outcome::QuotaExceeded { resource: Resource::CpuTime, limit, used: cpu_time_ns, phase }
        }
        number => Outcome::Trapped { trap: TrapKind::Signal { number }, message: name(number).to_owned() },
    }
}

/// What a signal means, for people.
fn name(signal: i32) -> &'static str {
    match signal {
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error: touched a mapped file beyond its end",
        libc::SIGFPE => "arithmetic error, such as a division by zero",
        libc::SIGILL => "illegal instruction",
        libc::SIGKILL => "killed",
        libc::SIGSEGV => "touched memory that is not its own, or ran over its stack",
        libc::SIGTERM => "terminated",
        libc::SIGTRAP => "breakpoint",
        libc::SIGXCPU => "ran longer than the kernel's bound on CPU time",
        _ => "ended by a signal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_end_has_its_outcome() {
        let mut quota = Quota::default();
        let from = |by, quota: &Quota| from_end(by, quota, Phase::Running, 3_000_000_000);
        assert_eq!(from(EndedBy::Exit(0), &quota), Outcome::Completed);
        assert_eq!(from(EndedBy::Exit(75), &quota), Outcome::from_exit_code(75));
        assert!(matches!(from(EndedBy::Signal(libc::SIGSYS), &quota), Outcome::Denied { .. }));
        for number in (1..=64).filter(|number| *number != libc::SIGSYS) {
            let outcome = from(EndedBy::Signal(number), &quota);
            assert!(matches!(outcome, Outcome::Trapped { trap: TrapKind::Signal { number: n }, .. } if n == number));
        }
        quota.cpu_time = Some(Duration::from_secs(2));
        let outcome = from(EndedBy::Signal(libc::SIGXCPU), &quota);
        assert!(matches!(outcome, Outcome::QuotaExceeded { resource: Resource::CpuTime, .. }), "{outcome}");
    }
}
