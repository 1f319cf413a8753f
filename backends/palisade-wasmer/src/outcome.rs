//! From the engine's errors to outcomes.

use palisade_core::{Outcome, Phase, Quota, Resource, TrapKind};
use palisade_wasi::Stop;
use wasmer::sys::vm::TrapCode;
use wasmer::{InstantiationError, LinkError, RuntimeError};

use crate::guest::Halt;

/// Longest function name shown in a trap message. The name is the guest's.
const NAME_CHARS_MAX: usize = 120;

/// How a call ends other than by a result.
#[derive(Debug)]
pub(crate) enum Ended {
    Stop(Stop),
    Runtime(RuntimeError),
    Instantiation(Box<InstantiationError>),
}

impl From<Stop> for Ended {
    fn from(stop: Stop) -> Self {
        Ended::Stop(stop)
    }
}

impl From<RuntimeError> for Ended {
    fn from(error: RuntimeError) -> Self {
        Ended::Runtime(error)
    }
}

/// The outcome of a call that ended so. Functions from `functions` on are not the guest's.
pub(crate) fn from_ended(
    ended: Ended,
    memory_refused: Option<Stop>,
    quota: &Quota,
    phase: Phase,
    functions: u32,
) -> Outcome {
    let error = match ended {
        Ended::Stop(stop) => return from_stop(stop, phase),
        Ended::Runtime(error) => error,
        Ended::Instantiation(error) => match *error {
            InstantiationError::Start(error) | InstantiationError::Link(LinkError::Trap(error)) => error,
            error => {
                return match memory_refused {
                    Some(stop) => from_stop(stop, phase),
                    None => Outcome::Crashed { message: error.to_string() },
                };
            }
        },
    };
    let kind = match error.downcast_ref::<Halt>() {
        Some(Halt::Stop(stop)) => return from_stop(stop.clone(), phase),
        Some(Halt::Trap(kind)) => *kind,
        None => match error.clone().to_trap() {
            Some(TrapCode::StackOverflow) => {
                let limit = quota.get(Resource::Stack).unwrap_or(crate::engine::STACK_BYTES_DEFAULT);
                // The engine reports that the next step did not fit, not how large it was.
                return Outcome::QuotaExceeded {
                    resource: Resource::Stack,
                    limit,
                    used: limit.saturating_add(1),
                    phase,
                };
            }
            Some(TrapCode::HeapAccessOutOfBounds | TrapCode::HeapMisaligned) => TrapKind::MemoryOutOfBounds,
            Some(TrapCode::TableAccessOutOfBounds) => TrapKind::TableOutOfBounds,
            Some(TrapCode::IndirectCallToNull | TrapCode::BadSignature) => TrapKind::IndirectCall,
            Some(TrapCode::IntegerDivisionByZero) => TrapKind::DivisionByZero,
            Some(TrapCode::IntegerOverflow | TrapCode::BadConversionToInteger) => TrapKind::Arithmetic,
            Some(TrapCode::UnreachableCodeReached) => TrapKind::Unreachable,
            Some(_) => TrapKind::Other,
            None => return Outcome::Crashed { message: error.message() },
        },
    };
    let place =
        error.trace().iter().find(|frame| frame.func_index() < functions).map(|frame| match frame.function_name() {
            Some(name) => format!("in function `{}`", printable(name)),
            None => format!("in function {}", frame.func_index()),
        });
    let message = match (kind, place) {
        (TrapKind::Other, Some(place)) => format!("{} {place}", error.message()),
        (TrapKind::Other, None) => error.message(),
        (_, place) => place.unwrap_or_default(),
    };
    Outcome::Trapped { trap: kind, message }
}

/// The outcome of a call that `stop` ends.
pub(crate) fn from_stop(stop: Stop, phase: Phase) -> Outcome {
    stop.outcome(phase)
        .unwrap_or_else(|| Outcome::Crashed { message: "a wait was taken for an end; please report this".into() })
}

/// A guest's text as it may be shown: no control characters, not too long.
fn printable(name: &str) -> String {
    palisade_core::text::printable(&name.chars().take(NAME_CHARS_MAX).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_guests_are_made_harmless() {
        assert_eq!(printable("a\x1b[31m\nb"), "a\u{fffd}[31m\u{fffd}b");
        assert_eq!(printable(&"x".repeat(1000)).len(), NAME_CHARS_MAX);
    }
}
