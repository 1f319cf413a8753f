//! Everything the suite knows: requirements, and the checks that exercise them.

mod core;
mod isolation;
pub mod metrics;
mod process;
mod quota;
pub mod scheduler;

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use palisade_core::{Call, Execution, HostFunctions, Policy, Prepared, PreparedExt, Resource};

use crate::clock::{self, Spinner};
use crate::{Check, Context, Failure, Requirement};

/// Every check, profile by profile.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    [core::CHECKS, isolation::CHECKS, quota::CHECKS, process::CHECKS].into_iter().flatten()
}

/// Every requirement, profile by profile.
pub fn requirements() -> impl Iterator<Item = &'static Requirement> {
    [core::REQUIREMENTS, isolation::REQUIREMENTS, quota::REQUIREMENTS, process::REQUIREMENTS].into_iter().flatten()
}

/// A requirement that is certified and was there from the suite's first version on.
const fn must(id: &'static str, sentence: &'static str, threat: &'static str) -> Requirement {
    Requirement { id, level: crate::Level::Must, sentence, threat, since: "0.1.0" }
}

/// Numbers as probes read them.
fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// A number of a probe's output; `u32::MAX` when it is not there.
fn number_at(output: &[u8], index: usize) -> u32 {
    let bytes = output.get(4 * index..4 * index + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(u32::MAX, u32::from_le_bytes)
}

/// Whether `nonce` is somewhere in `bytes`.
fn contains(bytes: &[u8], nonce: &str) -> bool {
    bytes.windows(nonce.len()).any(|window| window == nonce.as_bytes())
}

/// How long a guest waits, in checks of what its host does meanwhile.
const IDLE: Duration = Duration::from_millis(500);
/// CPU time that a host which waits so long may use in any case: what it takes to begin and end a call, many times over. More
/// may be up to a quarter of what a thread beside it used, which wants a processor all the time.
const IDLE_CPU_TIME: Duration = Duration::from_millis(20);
/// Most times a call's future is polled meanwhile, for the same. A host that goes round is polled more often even where
/// many others want the processor.
const IDLE_POLLS: u32 = 100;

/// Makes a call that waits until its wall time, [`IDLE`], is over, and requires that this process did nothing meanwhile.
fn expect_idle(ctx: &mut Context, prepared: &dyn Prepared, call: Call) -> Result<(), Failure> {
    let mut polls = 0;
    let failed = |ctx: &Context, error: palisade_core::Error| ctx.failure(format!("a call that waits: {error}"));
    let mut instance = ctx.block_on(prepared.instantiate()).map_err(|error| failed(ctx, error))?;
    let spinner = Spinner::start().ok_or_else(|| ctx.failure("there is no thread to compare with"))?;
    let before = clock::process_cpu_time();
    let made = ctx.block_on(async {
        let mut running = pin!(instance.call(call));
        let execution = poll_fn(|context| {
            polls += 1;
            running.as_mut().poll(context)
        });
        clock::within(IDLE + PATIENCE, execution).await
    });
    let used = clock::process_cpu_time().saturating_sub(before);
    let beside = spinner.stop();
    let used = used.saturating_sub(beside);
    let made = made.ok_or_else(|| ctx.failure("a call that waits: nothing ended it"))?;
    let execution = made.map_err(|error| failed(ctx, error))?;
    ctx.expect_exceeded("a guest that waits", &execution, Resource::WallTime)?;
    let seen = format!("{used:?} beside a thread that used {beside:?}");
    ctx.expect("CPU time of its host", seen, used <= (beside / 4).max(IDLE_CPU_TIME))?;
    ctx.expect("times its future was polled", polls, polls <= IDLE_POLLS)
}

/// How long an end is waited for that must come at once. A guest that is not ended would go on for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes one call that nothing but a limit ends, in a fresh instance. That it does not end in [`PATIENCE`] is a failure.
fn ended(
    ctx: &mut Context,
    verb: &str,
    call: Call,
    policy: &Policy,
    functions: HostFunctions,
) -> Result<Execution, Failure> {
    let prepared = ctx.prepare(verb, policy, functions)?;
    // A deadline that is long is waited for as well; one so long is none.
    let time = PATIENCE + policy.quota.wall_time.filter(|time| *time < PATIENCE).unwrap_or_default();
    match ctx.block_on(clock::within(time, prepared.run(call))) {
        Some(made) => made.map_err(|error| ctx.failure(format!("probe `{verb}`: {error}"))),
        None => Err(ctx.failure(format!("probe `{verb}`: it did not end in {time:?}"))),
    }
}

/// Makes one call in a fresh instance, and measures this process's CPU time of it.
fn measured(ctx: &mut Context, prepared: &dyn Prepared, input: Vec<u8>) -> Result<(Execution, Duration), Failure> {
    let before = clock::process_cpu_time();
    let made = ctx.block_on(prepared.run(Call::new().input(input)));
    let execution = made.map_err(|error| ctx.failure(format!("a fresh instance: {error}")))?;
    Ok((execution, clock::process_cpu_time().saturating_sub(before)))
}

/// Rounds of the probe `count` that use about `time` of a processor here: compilers, interpreters and machines differ.
fn rounds_lasting(ctx: &mut Context, time: Duration) -> Result<u64, Failure> {
    const ENOUGH: Duration = Duration::from_millis(10);
    const ROUNDS_MAX: u64 = 300_000_000;
    let prepared = ctx.prepare("count", &ctx.generous(), HostFunctions::new())?;
    let mut rounds: u64 = 1 << 16;
    loop {
        let (execution, used) = measured(ctx, &*prepared, rounds.to_le_bytes().to_vec())?;
        ctx.expect_completed("a loop, to see how fast this is", &execution)?;
        if used >= ENOUGH || rounds >= ROUNDS_MAX {
            let scale = time.as_secs_f64() / used.max(Duration::from_micros(1)).as_secs_f64();
            // Rounds of a loop of a second fit into 53 bits.
            return Ok((rounds as f64 * scale) as u64);
        }
        rounds *= 4;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn assert_well_formed(id: &str) {
        let parts: Vec<_> = id.split('.').collect();
        assert_eq!(parts.len(), 3, "{id} is not profile.area.slug");
        let fits = |part: &str| {
            !part.is_empty()
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        assert!(parts.iter().all(|part| fits(part)), "{id}");
    }

    #[test]
    fn ids_are_unique_and_well_formed() {
        let mut seen = BTreeSet::new();
        for check in checks() {
            assert_well_formed(check.id);
            assert!(seen.insert(check.id), "check {} is there twice", check.id);
        }
        let mut seen = BTreeSet::new();
        for requirement in requirements() {
            assert_well_formed(requirement.id);
            assert!(seen.insert(requirement.id), "requirement {} is there twice", requirement.id);
        }
    }

    #[test]
    fn checks_and_requirements_cover_each_other() {
        let known: BTreeSet<_> = requirements().map(|requirement| requirement.id).collect();
        let cited: BTreeSet<_> = checks().flat_map(|check| check.requires).copied().collect();
        assert_eq!(known, cited);
        for check in checks() {
            assert!(!check.requires.is_empty(), "{} cites nothing", check.id);
        }
    }

    #[test]
    fn every_sentence_says_how_strict_it_is() {
        for requirement in requirements() {
            let word = match requirement.level {
                crate::Level::Must => "MUST",
                crate::Level::Should => "SHOULD",
            };
            assert!(requirement.sentence.contains(word), "{}", requirement.id);
            assert!(!requirement.threat.is_empty(), "{}", requirement.id);
        }
    }

    #[test]
    fn controls_are_unique() {
        let mut seen = BTreeSet::new();
        for check in checks() {
            assert!(seen.insert(check.control), "control {} proves two checks", check.control);
        }
    }

    #[test]
    fn the_security_tests_of_the_original_system_are_there_by_name() {
        let names = [
            "filesystem-isolation",
            "network-isolation",
            "agent-to-agent-isolation",
            "timing-attack-resistance",
            "cpu-quota",
            "memory-quota",
            "resource-cleanup-on-termination",
            "syscall-restriction",
            "fork-bomb-protection",
        ];
        for name in names {
            assert!(requirements().any(|requirement| requirement.id.ends_with(&format!(".{name}"))), "{name}");
        }
    }
}
