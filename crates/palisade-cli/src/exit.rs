//! Exit codes.

use std::process::ExitCode;

use palisade::{Error, ErrorKind, Outcome, Resource};

/// Shown at the end of `--help`.
pub(crate) const HELP: &str = "\
Exit codes of `palisade run`, `wait` and `submit --wait`:
  the guest's own   it came to its end
  122               a quota other than those below ran out
  123               the guest trapped
  124               wall time, CPU time or fuel ran out
  125               an error of the host, or a wrong command line
  126               refused or denied by the policy
  130               cancelled (Ctrl-C)
  137               memory ran out
  141               nobody reads the output any more
With --json, the outcome says exactly which.";

/// How the command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Success,
    /// The guest's own code, not zero.
    Guest(u8),
    Quota,
    Trap,
    Time,
    HostError,
    Refused,
    Cancelled,
    Memory,
    BrokenPipe,
}

impl Exit {
    pub(crate) fn of_outcome(outcome: &Outcome) -> Exit {
        match outcome {
            Outcome::Completed => Exit::Success,
            // The system keeps the low eight bits; an error must not become a success by that.
            Outcome::Failed { exit_code, .. } => Exit::Guest(((*exit_code & 0xff) as u8).max(1)),
            Outcome::Trapped { .. } => Exit::Trap,
            Outcome::QuotaExceeded { resource, .. } => match resource {
                Resource::WallTime | Resource::CpuTime | Resource::Fuel => Exit::Time,
                Resource::Memory => Exit::Memory,
                _ => Exit::Quota,
            },
            Outcome::Denied { .. } => Exit::Refused,
            Outcome::Cancelled { .. } => Exit::Cancelled,
            _ => Exit::HostError,
        }
    }

    pub(crate) fn of_error(error: &Error) -> Exit {
        match error.kind() {
            ErrorKind::Unsupported | ErrorKind::Denied => Exit::Refused,
            _ => Exit::HostError,
        }
    }

    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Success => 0,
            Exit::Guest(code) => code,
            Exit::Quota => 122,
            Exit::Trap => 123,
            Exit::Time => 124,
            Exit::HostError => 125,
            Exit::Refused => 126,
            Exit::Cancelled => 130,
            Exit::Memory => 137,
            Exit::BrokenPipe => 141,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_never_becomes_a_success() {
        let code = |exit_code| Exit::of_outcome(&Outcome::from_exit_code(exit_code)).code();
        assert_eq!((code(0), code(3), code(256), code(-1)), (0, 3, 1, 255));
    }

    #[test]
    fn every_code_is_documented() {
        let all = [
            Exit::Quota,
            Exit::Trap,
            Exit::Time,
            Exit::HostError,
            Exit::Refused,
            Exit::Cancelled,
            Exit::Memory,
            Exit::BrokenPipe,
        ];
        for exit in all {
            assert!(HELP.contains(&format!("\n  {} ", exit.code())), "{exit:?} is not in the help");
        }
    }
}
