//! From the engine's errors to outcomes.

use palisade_core::{Outcome, Phase, Quota, Resource, TrapKind};
use palisade_wasi::Stop;
use wasmtime::{Trap, WasmBacktrace};

use crate::engine::{STACK_BYTES_DEFAULT, stack_bytes};
use crate::guest::Halt;

/// Longest function name shown in a trap message. The name is the guest's.
const NAME_CHARS_MAX: usize = 120;

/// The outcome of a call that ended in `error`.
pub(crate) fn from_error(
    error: &wasmtime::Error,
    memory_refused: Option<Stop>,
    quota: &Quota,
    phase: Phase,
) -> Outcome {
    if let Some(Halt(stop)) = error.downcast_ref::<Halt>() {
        return from_stop(stop.clone(), phase);
    }
    if let Some(stop) = memory_refused {
        return from_stop(stop, phase);
    }
    let exceeded = |resource| {
        let limit = quota.get(resource).unwrap_or(u64::MAX);
        // The engine reports that the next step did not fit, not how large it was.
        Outcome::QuotaExceeded { resource, limit, used: limit.saturating_add(1), phase }
    };
    let Some(trap) = error.downcast_ref::<Trap>() else {
        return Outcome::Crashed { message: format!("{error:#}") };
    };
    let kind = match trap {
        Trap::OutOfFuel => return exceeded(Resource::Fuel),
        Trap::StackOverflow => {
            let limit = quota.stack_bytes.unwrap_or(STACK_BYTES_DEFAULT);
            let used = stack_bytes(limit).saturating_add(1);
            return Outcome::QuotaExceeded { resource: Resource::Stack, limit, used, phase };
        }
        Trap::MemoryOutOfBounds | Trap::HeapMisaligned => TrapKind::MemoryOutOfBounds,
        Trap::TableOutOfBounds => TrapKind::TableOutOfBounds,
        Trap::IndirectCallToNull | Trap::BadSignature | Trap::NullReference => TrapKind::IndirectCall,
        Trap::IntegerDivisionByZero => TrapKind::DivisionByZero,
        Trap::IntegerOverflow | Trap::BadConversionToInteger => TrapKind::Arithmetic,
        Trap::UnreachableCodeReached => TrapKind::Unreachable,
        _ => TrapKind::Other,
    };
    let place =
        error.downcast_ref::<WasmBacktrace>().and_then(|backtrace| backtrace.frames().first()).map(|frame| match frame
            .func_name()
        {
            Some(name) => format!("in function `{}`", printable(name)),
            None => format!("in function {}", frame.func_index()),
        });
    let message = match (kind, place) {
        (TrapKind::Other, Some(place)) => format!("{trap} {place}"),
        (TrapKind::Other, None) => trap.to_string(),
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
