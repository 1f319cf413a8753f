//! Why a host call does not simply return to the guest.

use std::time::Instant;

use palisade_core::{Outcome, Phase, Resource, TrapKind};

use crate::OutOfBounds;

/// Why a host call does not return to the guest now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The guest ended itself with this exit code.
    Exit(i32),
    /// The guest has to wait; call the same function with the same arguments again afterwards.
    Wait(Wait),
    /// A part of the work is done. Look at the guest's limits and let others have their turn; then call the same function
    /// with the same arguments again.
    Yield,
    /// A quota ran out.
    Exceeded {
        /// Which one.
        resource: Resource,
        /// Its limit.
        limit: u64,
        /// What was used or asked for.
        used: u64,
    },
    /// The caller cancelled.
    Cancelled,
    /// The guest used something that was not granted.
    Denied(String),
    /// The guest gave a range outside its memory.
    OutOfBounds,
    /// A host function failed in a way that is not the guest's doing.
    Crashed(String),
}

/// What a guest waits for: whatever comes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wait {
    /// This time.
    pub until: Option<Instant>,
    /// A piece of input ([`Streams::poll_input`](crate::Streams::poll_input)).
    pub input: bool,
    /// Work that is done elsewhere ([`WasiContext::take_work`](crate::WasiContext::take_work)).
    pub work: bool,
}

impl From<OutOfBounds> for Stop {
    fn from(_: OutOfBounds) -> Self {
        Stop::OutOfBounds
    }
}

impl Stop {
    /// The outcome of a call that this ends; `None` for [`Stop::Wait`] and [`Stop::Yield`], which end nothing.
    pub fn outcome(self, phase: Phase) -> Option<Outcome> {
        Some(match self {
            Stop::Exit(code) => Outcome::from_exit_code(code),
            Stop::Wait(_) | Stop::Yield => return None,
            Stop::Exceeded { resource, limit, used } => Outcome::QuotaExceeded { resource, limit, used, phase },
            Stop::Cancelled => Outcome::Cancelled { phase },
            Stop::Denied(grant) => Outcome::Denied { grant },
            Stop::OutOfBounds => Outcome::Trapped {
                trap: TrapKind::MemoryOutOfBounds,
                message: "a host call was given a range outside the guest's memory".into(),
            },
            Stop::Crashed(message) => Outcome::Crashed { message },
        })
    }
}
