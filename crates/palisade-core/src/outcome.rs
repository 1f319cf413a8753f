//! How a call ended.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Resource, Usage};

/// Everything a call leaves behind: how it ended, what it took, what it wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Execution {
    /// How the call ended.
    pub outcome: Outcome,
    /// What it took.
    pub usage: Usage,
    /// Standard output, or a reactor's output. Empty when an [`OutputSink`](crate::OutputSink) took it.
    pub output: Bytes,
    /// Standard error, or a reactor's error text. Empty when an [`OutputSink`](crate::OutputSink) took it.
    pub error: Bytes,
    /// Log records. Empty when an [`OutputSink`](crate::OutputSink) took them.
    pub log: Vec<LogRecord>,
    /// What stood between the guest and the host, layer by layer, where the backend is made of layers.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub isolation: Arc<[Layer]>,
}

/// One layer of isolation around a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Layer {
    /// What it is, for example `network namespace`.
    pub name: Cow<'static, str>,
    /// Whether it was there.
    pub status: LayerStatus,
    /// Detail for people.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub detail: Cow<'static, str>,
}

/// Whether a layer of isolation was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LayerStatus {
    /// In force around this guest.
    Enforced,
    /// This machine cannot do it; what depends on it was refused.
    Unavailable,
    /// The policy did not ask for it.
    NotAskedFor,
}

impl Execution {
    /// An execution that wrote nothing.
    pub fn new(outcome: Outcome, usage: Usage) -> Self {
        Execution {
            outcome,
            usage,
            output: Bytes::new(),
            error: Bytes::new(),
            log: Vec::new(),
            isolation: Arc::default(),
        }
    }
}

/// One record a guest logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LogRecord {
    /// How important the guest says it is.
    pub level: LogLevel,
    /// The text; bytes that were not UTF-8 are replaced.
    pub message: String,
}

/// How important a guest says a log record is. Guests pass the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// 0
    Trace = 0,
    /// 1
    Debug = 1,
    /// 2
    Info = 2,
    /// 3
    Warn = 3,
    /// 4 and above
    Error = 4,
}

impl LogLevel {
    /// The level for a guest's number; numbers above 4 count as [`LogLevel::Error`].
    pub fn from_guest(level: u32) -> Self {
        match level {
            0 => LogLevel::Trace,
            1 => LogLevel::Debug,
            2 => LogLevel::Info,
            3 => LogLevel::Warn,
            _ => LogLevel::Error,
        }
    }

    /// The name in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Trace => "trace",
            LogLevel::Debug => "debug",
            LogLevel::Info => "info",
            LogLevel::Warn => "warn",
            LogLevel::Error => "error",
        }
    }
}

/// How a call ended: typed, never a string to parse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// The guest came to its end and reported success.
    Completed,
    /// The guest came to its end and reported an error of its own.
    Failed {
        /// The exit code of a command, or the result of a reactor's entry.
        exit_code: i32,
        /// The guest asks to be tried again: exit code 75 (`EX_TEMPFAIL` of `sysexits.h`).
        retry_requested: bool,
        /// The delay it asks for, when it named one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<Duration>,
    },
    /// The guest did something its machine forbids.
    Trapped {
        /// What it did.
        trap: TrapKind,
        /// Detail for people.
        message: String,
    },
    /// A quota ran out.
    QuotaExceeded {
        /// Which one.
        resource: Resource,
        /// Its limit, in the resource's [unit](Resource::unit).
        limit: u64,
        /// What was used, or asked for when the request itself was refused. More than the limit.
        used: u64,
        /// What was going on.
        phase: Phase,
    },
    /// The guest used something that was not granted, in a way it cannot go on from.
    Denied {
        /// The missing grant, for example `host_functions: kv.get`.
        grant: String,
    },
    /// The caller cancelled through its [`CancelToken`](crate::CancelToken).
    Cancelled {
        /// What was going on.
        phase: Phase,
    },
    /// The sandbox itself, or a host function, failed. Not the guest's doing.
    Crashed {
        /// Detail for people.
        message: String,
    },
}

/// The exit code by which a guest asks to be tried again: `EX_TEMPFAIL` of `sysexits.h`.
const EXIT_CODE_RETRY: i32 = 75;

impl Outcome {
    /// The outcome for a guest that ended by itself with `exit_code`.
    pub fn from_exit_code(exit_code: i32) -> Self {
        match exit_code {
            0 => Outcome::Completed,
            _ => Outcome::Failed { exit_code, retry_requested: exit_code == EXIT_CODE_RETRY, retry_after: None },
        }
    }

    /// Whether the guest came to its end and reported success.
    pub fn is_success(&self) -> bool {
        matches!(self, Outcome::Completed)
    }

    /// Whether the instance ended by itself and may serve another call.
    pub fn leaves_instance_usable(&self) -> bool {
        matches!(self, Outcome::Completed | Outcome::Failed { .. })
    }

    /// Whether running the same task again may end better.
    ///
    /// | outcome | retryable | why |
    /// |---|---|---|
    /// | `Completed` | no | done |
    /// | `Failed` | when the guest asks | it knows |
    /// | `Trapped` | no | the same input traps again |
    /// | `QuotaExceeded` of wall or CPU time | yes | the machine may be less busy |
    /// | `QuotaExceeded` of anything else | no | the same input needs as much again |
    /// | `Denied` | no | the policy does not change by waiting |
    /// | `Cancelled` | no | somebody wanted the end |
    /// | `Crashed` | yes | not the task's doing |
    pub fn is_retryable(&self) -> bool {
        match self {
            Outcome::Failed { retry_requested, .. } => *retry_requested,
            Outcome::QuotaExceeded { resource, .. } => matches!(resource, Resource::WallTime | Resource::CpuTime),
            Outcome::Crashed { .. } => true,
            Outcome::Completed | Outcome::Trapped { .. } | Outcome::Denied { .. } | Outcome::Cancelled { .. } => false,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Completed => write!(f, "completed"),
            Outcome::Failed { exit_code, retry_requested: false, .. } => write!(f, "failed with exit code {exit_code}"),
            Outcome::Failed { exit_code, .. } => write!(f, "failed with exit code {exit_code} and asks for a retry"),
            Outcome::Trapped { trap, message } if message.is_empty() => write!(f, "trapped: {trap}"),
            Outcome::Trapped { trap, message } => write!(f, "trapped: {trap} ({message})"),
            Outcome::QuotaExceeded { resource, limit, used, phase } => write!(
                f,
                "exceeded {resource}: {} of {} while {phase}",
                resource.display(*used),
                resource.display(*limit)
            ),
            Outcome::Denied { grant } => write!(f, "denied: the policy does not grant {grant}"),
            Outcome::Cancelled { phase } => write!(f, "cancelled while {phase}"),
            Outcome::Crashed { message } => write!(f, "the sandbox failed: {message}"),
        }
    }
}

/// What was going on when a call was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// Waiting for a worker.
    Queued,
    /// Loading or compiling the artifact.
    Loading,
    /// Making the instance, start function included.
    Starting,
    /// Running guest code.
    Running,
    /// Waiting in a host function, a sleep or for input.
    HostCall,
    /// Releasing what the call held.
    Teardown,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Queued => "queued",
            Phase::Loading => "loading",
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::HostCall => "waiting in a host call",
            Phase::Teardown => "tearing down",
        })
    }
}

/// What a guest did that its machine forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TrapKind {
    /// Reached an instruction that says this must not be reached; how many languages abort.
    Unreachable,
    /// Touched memory outside its own, or gave the host a range outside it.
    MemoryOutOfBounds,
    /// Touched a table outside its bounds.
    TableOutOfBounds,
    /// Called through a null or wrongly typed reference.
    IndirectCall,
    /// Integer division by zero.
    DivisionByZero,
    /// Integer overflow or a conversion that has no result.
    Arithmetic,
    /// Killed by a signal (process backend).
    Signal {
        /// The signal's number.
        number: i32,
    },
    /// Anything else.
    Other,
}

impl fmt::Display for TrapKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrapKind::Unreachable => f.write_str("unreachable code reached"),
            TrapKind::MemoryOutOfBounds => f.write_str("memory out of bounds"),
            TrapKind::TableOutOfBounds => f.write_str("table out of bounds"),
            TrapKind::IndirectCall => f.write_str("call through a null or wrongly typed reference"),
            TrapKind::DivisionByZero => f.write_str("division by zero"),
            TrapKind::Arithmetic => f.write_str("integer overflow or invalid conversion"),
            TrapKind::Signal { number } => write!(f, "signal {number}"),
            TrapKind::Other => f.write_str("trap"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retryability_is_as_documented() {
        let exceeded = |resource| Outcome::QuotaExceeded { resource, limit: 1, used: 2, phase: Phase::Running };
        assert!(!Outcome::from_exit_code(0).is_retryable());
        assert!(!Outcome::from_exit_code(1).is_retryable());
        assert!(Outcome::from_exit_code(75).is_retryable());
        assert!(exceeded(Resource::WallTime).is_retryable());
        assert!(exceeded(Resource::CpuTime).is_retryable());
        assert!(!exceeded(Resource::Memory).is_retryable());
        assert!(!exceeded(Resource::Fuel).is_retryable());
        assert!(!Outcome::Cancelled { phase: Phase::Queued }.is_retryable());
        assert!(!Outcome::Denied { grant: String::new() }.is_retryable());
        assert!(!Outcome::Trapped { trap: TrapKind::Unreachable, message: String::new() }.is_retryable());
        assert!(Outcome::Crashed { message: String::new() }.is_retryable());
    }

    #[test]
    fn only_an_instance_that_ended_by_itself_stays_usable() {
        assert!(Outcome::from_exit_code(3).leaves_instance_usable());
        assert!(!Outcome::Trapped { trap: TrapKind::Other, message: String::new() }.leaves_instance_usable());
        assert!(!Outcome::Cancelled { phase: Phase::Running }.leaves_instance_usable());
    }

    #[test]
    fn outcomes_are_tagged_in_json() {
        let outcome = Outcome::QuotaExceeded {
            resource: Resource::WallTime,
            limit: 2_000_000_000,
            used: 2_001_000_000,
            phase: Phase::HostCall,
        };
        let json = serde_json::to_value(&outcome).unwrap();
        assert_eq!(json["kind"], "quota_exceeded");
        assert_eq!(json["resource"], "wall_time");
        assert_eq!(json["phase"], "host_call");
        assert_eq!(serde_json::from_value::<Outcome>(json).unwrap(), outcome);
        assert_eq!(outcome.to_string(), "exceeded wall_time: 2 s of 2 s while waiting in a host call");
    }
}
