//! Profile `quota`: every bound holds, exactly where it is a number, and allows what it says.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use palisade_core::{
    Abi, Bytes, Call, DirectoryGrant, ErrorKind, Execution, GrantKind, HostFunctions, Outcome, OutputSink,
    OutputStream, Phase, Policy, PreparedExt, Resource,
};

use super::{ended, measured, must, number_at, numbers, rounds_lasting};
use crate::{Check, Context, Failure, Need, Requirement};

pub(super) const REQUIREMENTS: &[Requirement] = &[
    must(
        "quota.time.wall-time",
        "Wall time MUST end a call whatever it does: loops, start functions, sleeps, host calls, waits for input.",
        "a guest that occupies a worker for ever",
    ),
    must("quota.cpu.cpu-quota", "CPU time and fuel MUST be bounded as the policy says.", "a guest that burns the CPU"),
    must(
        "quota.memory.memory-quota",
        "Memory MUST be bounded to the byte, over initial and grown memory, tables and what the host holds for a guest.",
        "a guest that starves its host of memory",
    ),
    must(
        "quota.stack.hard-limit",
        "The stack MUST be bounded, and overflow be a typed outcome.",
        "a guest that crashes its host",
    ),
    must("quota.streams.exact", "Output and log MUST keep exactly their limit.", "a flood of output or log"),
    must("quota.host-calls.exact", "A guest MUST get exactly the host calls it may make.", "a flood of host calls"),
    must(
        "quota.files.exact",
        "Open files and disk growth MUST be bounded exactly.",
        "a guest that exhausts files or disk",
    ),
    must(
        "quota.reset.per-call",
        "Quotas of a call MUST begin anew in the next call.",
        "one call that starves the next",
    ),
    must(
        "quota.instances.declared",
        "A backend MUST hold as many instances at once as it declares, and refuse the next one with `Exhausted`.",
        "a host that runs out of room for instances without noticing",
    ),
    must(
        "quota.neighbour.unaffected",
        "What one guest exhausts MUST NOT be missing for another.",
        "a tenant that harms its neighbours",
    ),
];

const REACTOR: Need = Need::Abi(Abi::Reactor);
const COMMAND: Need = Need::Abi(Abi::Command);
const HOST: Need = Need::Grant(GrantKind::HostFunctions);

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "quota.instances.declared-number",
        requires: &["quota.instances.declared"],
        needs: &[REACTOR],
        control: "ignores-instances",
        run: instances,
    },
    Check {
        id: "quota.wall-time.loop",
        requires: &["quota.time.wall-time"],
        needs: &[REACTOR, Need::Quota(Resource::WallTime)],
        control: "no-deadline-running",
        run: wall_time_loop,
    },
    Check {
        id: "quota.wall-time.start-function",
        requires: &["quota.time.wall-time"],
        needs: &[REACTOR, Need::Quota(Resource::WallTime)],
        control: "no-deadline-start",
        run: wall_time_start,
    },
    Check {
        id: "quota.wall-time.sleep",
        requires: &["quota.time.wall-time"],
        needs: &[REACTOR, COMMAND, Need::Quota(Resource::WallTime)],
        control: "no-deadline-sleep",
        run: wall_time_sleep,
    },
    Check {
        id: "quota.wall-time.host-call",
        requires: &["quota.time.wall-time"],
        needs: &[REACTOR, HOST, Need::Quota(Resource::WallTime)],
        control: "no-deadline-host-call",
        run: wall_time_host_call,
    },
    Check {
        id: "quota.wall-time.blocked-on-input",
        requires: &["quota.time.wall-time"],
        needs: &[REACTOR, COMMAND, Need::Quota(Resource::WallTime)],
        control: "no-deadline-input",
        run: wall_time_input,
    },
    Check {
        id: "quota.cpu.time-in-a-loop",
        requires: &["quota.cpu.cpu-quota"],
        needs: &[REACTOR, Need::Quota(Resource::CpuTime)],
        control: "ignores-cpu-time",
        run: cpu_time_loop,
    },
    Check {
        id: "quota.cpu.fuel",
        requires: &["quota.cpu.cpu-quota"],
        needs: &[REACTOR, Need::Quota(Resource::Fuel)],
        control: "ignores-fuel",
        run: fuel,
    },
    Check {
        id: "quota.memory.initial",
        requires: &["quota.memory.memory-quota"],
        needs: &[REACTOR, Need::Quota(Resource::Memory)],
        control: "ignores-initial-memory",
        run: memory_initial,
    },
    Check {
        id: "quota.memory.grown",
        requires: &["quota.memory.memory-quota"],
        needs: &[REACTOR, Need::Quota(Resource::Memory)],
        control: "ignores-grown-memory",
        run: memory_grown,
    },
    Check {
        id: "quota.memory.tables",
        requires: &["quota.memory.memory-quota"],
        needs: &[REACTOR, Need::Quota(Resource::Memory)],
        control: "ignores-tables",
        run: memory_tables,
    },
    Check {
        id: "quota.memory.host-buffers",
        requires: &["quota.memory.memory-quota"],
        needs: &[REACTOR, Need::Quota(Resource::Memory)],
        control: "ignores-host-buffers",
        run: memory_host_buffers,
    },
    Check {
        id: "quota.stack.recursion",
        requires: &["quota.stack.hard-limit"],
        needs: &[REACTOR, Need::Quota(Resource::Stack)],
        control: "ignores-stack",
        run: stack_recursion,
    },
    Check {
        id: "quota.output.exact",
        requires: &["quota.streams.exact"],
        needs: &[REACTOR, Need::Quota(Resource::Output)],
        control: "ignores-output",
        run: output_exact,
    },
    Check {
        id: "quota.log.error-text",
        requires: &["quota.streams.exact"],
        needs: &[REACTOR, Need::Quota(Resource::Log)],
        control: "ignores-error-text",
        run: error_text,
    },
    Check {
        id: "quota.log.records",
        requires: &["quota.streams.exact"],
        needs: &[REACTOR, Need::Quota(Resource::Log)],
        control: "ignores-log",
        run: log_records,
    },
    Check {
        id: "quota.host-calls.count",
        requires: &["quota.host-calls.exact"],
        needs: &[REACTOR, HOST, Need::Quota(Resource::HostCalls)],
        control: "ignores-host-calls",
        run: host_calls,
    },
    Check {
        id: "quota.files.open",
        requires: &["quota.files.exact"],
        needs: &[REACTOR, COMMAND, Need::Quota(Resource::OpenFiles), Need::Grant(GrantKind::DirectoriesReadOnly)],
        control: "ignores-open-files",
        run: open_files,
    },
    Check {
        id: "quota.files.disk-bytes",
        requires: &["quota.files.exact"],
        needs: &[REACTOR, COMMAND, Need::Quota(Resource::Disk), Need::Grant(GrantKind::DirectoriesReadWrite)],
        control: "ignores-disk",
        run: disk_bytes,
    },
    Check {
        id: "quota.wall-time.long-import",
        requires: &["quota.time.wall-time"],
        needs: &[REACTOR, COMMAND, Need::Quota(Resource::WallTime)],
        control: "no-deadline-in-long-calls",
        run: wall_time_long_import,
    },
    Check {
        id: "quota.wall-time.many-imports",
        requires: &["quota.time.wall-time"],
        needs: &[REACTOR, COMMAND, Need::Quota(Resource::WallTime)],
        control: "no-deadline-between-calls",
        run: wall_time_many_imports,
    },
    Check {
        id: "quota.cpu.fuel-in-a-start-function",
        requires: &["quota.cpu.cpu-quota"],
        needs: &[REACTOR, Need::Quota(Resource::Fuel)],
        control: "ignores-fuel-start",
        run: fuel_start,
    },
    Check {
        id: "quota.memory.host-call-input",
        requires: &["quota.memory.memory-quota"],
        needs: &[REACTOR, HOST, Need::Quota(Resource::Memory)],
        control: "ignores-host-input",
        run: memory_host_input,
    },
    Check {
        id: "quota.output.through-a-sink",
        requires: &["quota.streams.exact"],
        needs: &[REACTOR, Need::Quota(Resource::Output)],
        control: "ignores-output-of-sinks",
        run: output_sink,
    },
    Check {
        id: "quota.log.through-a-sink",
        requires: &["quota.streams.exact"],
        needs: &[REACTOR, Need::Quota(Resource::Log)],
        control: "ignores-log-of-sinks",
        run: log_sink,
    },
    Check {
        id: "quota.reset.host-calls",
        requires: &["quota.reset.per-call"],
        needs: &[REACTOR, HOST, Need::Quota(Resource::HostCalls)],
        control: "never-resets-host-calls",
        run: next_host_calls,
    },
    Check {
        id: "quota.files.nothing-at-all",
        requires: &["quota.files.exact"],
        needs: &[REACTOR, COMMAND, Need::Quota(Resource::Disk), Need::Grant(GrantKind::DirectoriesReadWrite)],
        control: "makes-entries-for-nothing",
        run: disk_nothing,
    },
    Check {
        id: "quota.reset.next-call",
        requires: &["quota.reset.per-call"],
        needs: &[REACTOR, Need::Quota(Resource::Output)],
        control: "never-resets",
        run: next_call,
    },
    Check {
        id: "quota.neighbour.after-exhaustion",
        requires: &["quota.neighbour.unaffected"],
        needs: &[REACTOR, Need::Quota(Resource::Output), Need::Quota(Resource::Memory)],
        control: "spreads-exhaustion",
        run: after_exhaustion,
    },
    Check {
        id: "quota.neighbour.at-the-same-time",
        requires: &["quota.neighbour.unaffected"],
        needs: &[REACTOR, COMMAND, Need::Quota(Resource::Output), Need::Quota(Resource::Memory)],
        control: "disturbs-neighbours",
        run: at_the_same_time,
    },
    Check {
        id: "quota.edge.one-byte-less",
        requires: &["quota.streams.exact"],
        needs: &[REACTOR, Need::Quota(Resource::Output)],
        control: "one-too-few",
        run: exactly_the_limit,
    },
];

/// A deadline well below [`LASTS`].
const DEADLINE: Duration = Duration::from_millis(15);
/// How long what should be ended would last, in CPU time where it is a loop.
const LASTS: Duration = Duration::from_millis(300);
/// What should be ended, where nothing else ends it.
const NEVER: Duration = Duration::from_secs(3600);
/// Longest deadline that is tried to reach the phase a check is about, on a machine that is busy.
const DEADLINE_MAX: Duration = Duration::from_secs(4);
/// The same for loops, which last twenty times as long.
const LOOP_DEADLINE_MAX: Duration = Duration::from_millis(480);
/// Rounds of a loop that others end.
const ROUNDS: u64 = 300_000_000;

fn with_deadline(ctx: &Context, deadline: Duration) -> Policy {
    let mut policy = ctx.generous();
    policy.quota.wall_time = Some(deadline);
    policy
}

/// Requires that a deadline of `deadline` ended it in `phase`, and that what is told is what was `seen`.
fn expect_ended(
    ctx: &mut Context,
    execution: &Execution,
    deadline: Duration,
    phase: Phase,
    seen: Duration,
) -> Result<(), Failure> {
    ctx.expect_exceeded_in("with a deadline", execution, Resource::WallTime, phase)?;
    ctx.expect_exceeded("by more than the deadline", execution, Resource::WallTime)?;
    let reported = execution.usage.wall_time;
    let holds = reported > deadline && reported <= seen;
    ctx.expect("reported time, and time seen from outside", format!("{reported:?}, {seen:?}"), holds)
}

/// Whether a busy machine took so long to begin that the deadline was over before what the check is about.
fn ended_too_early(execution: &Execution, wanted: Phase) -> bool {
    let early = matches!(&execution.outcome,
        Outcome::QuotaExceeded { resource: Resource::WallTime, phase, .. } if *phase != wanted);
    early && wanted != Phase::Starting
}

/// The baseline and the deadline of one kind of waiting. `run` is told how long the wait would be.
fn expect_deadline(
    ctx: &mut Context,
    mut run: impl FnMut(&mut Context, &Policy, Duration) -> Result<Execution, Failure>,
) -> Result<(), Failure> {
    let policy = ctx.generous();
    ctx.baseline(|ctx| {
        let execution = run(ctx, &policy, 2 * DEADLINE)?;
        ctx.expect_completed("without a deadline", &execution)?;
        let wall = execution.usage.wall_time;
        ctx.expect("lasted longer than the deadline", format!("{wall:?}"), wall > DEADLINE)
    })?;
    ctx.enforced(|ctx| {
        let mut deadline = DEADLINE;
        loop {
            let policy = with_deadline(ctx, deadline);
            let begun = std::time::Instant::now();
            let execution = run(ctx, &policy, NEVER)?;
            let seen = begun.elapsed();
            if ended_too_early(&execution, Phase::HostCall) && deadline < DEADLINE_MAX {
                deadline *= 2;
                continue;
            }
            return expect_ended(ctx, &execution, deadline, Phase::HostCall, seen);
        }
    })?;
    ctx.recovery()
}

/// A loop that would use a processor for [`LASTS`] must be ended by its deadline before it used half of that: CPU time, since
/// wall time says how busy the machine is.
fn expect_loop_ended(ctx: &mut Context, verb: &str, phase: Phase) -> Result<(), Failure> {
    let rounds = ctx.baseline(|ctx| rounds_lasting(ctx, LASTS))?;
    let whole = ctx.baseline(|ctx| {
        let prepared = ctx.prepare(verb, &ctx.generous(), HostFunctions::new())?;
        let (execution, used) = measured(ctx, &*prepared, rounds.to_le_bytes().to_vec())?;
        ctx.expect_completed("without a deadline", &execution)?;
        ctx.expect("CPU time of the whole", format!("{used:?}"), used > 4 * DEADLINE)?;
        Ok(used)
    })?;
    ctx.enforced(|ctx| {
        let (mut deadline, mut rounds, mut whole) = (DEADLINE, rounds, whole);
        loop {
            let prepared = ctx.prepare(verb, &with_deadline(ctx, deadline), HostFunctions::new())?;
            let begun = std::time::Instant::now();
            let (execution, used) = measured(ctx, &*prepared, rounds.to_le_bytes().to_vec())?;
            let seen = begun.elapsed();
            if ended_too_early(&execution, phase) && deadline < LOOP_DEADLINE_MAX {
                (deadline, rounds, whole) = (2 * deadline, 2 * rounds, 2 * whole);
                continue;
            }
            expect_ended(ctx, &execution, deadline, phase, seen)?;
            let seen = format!("{used:?} of {whole:?}");
            return ctx.expect("CPU time until its end", seen, used < whole / 2);
        }
    })?;
    ctx.recovery()
}

/// The commonest runaway.
fn wall_time_loop(ctx: &mut Context) -> Result<(), Failure> {
    expect_loop_ended(ctx, "count", Phase::Running)
}

/// A start function runs before anybody called anything, where deadlines are easily forgotten.
fn wall_time_start(ctx: &mut Context) -> Result<(), Failure> {
    expect_loop_ended(ctx, "start", Phase::Starting)
}

/// Random bytes that take a processor for some time, by calls of `random_get`, must be ended by their deadline before half
/// of that. `input` makes the probe's input of an amount: pages to grow by, and how often to fill them.
fn expect_imports_ended(ctx: &mut Context, input: fn(u32) -> [u32; 2], amount_max: u32) -> Result<(), Failure> {
    const ENOUGH: Duration = Duration::from_millis(200);
    let generous = ctx.generous();
    let (amount, grow, fill) = ctx.baseline(|ctx| {
        let prepared = ctx.prepare("randoms", &generous, HostFunctions::new())?;
        let mut amount = 64;
        loop {
            let (execution, used) = measured(ctx, &*prepared, numbers(&input(amount)))?;
            ctx.expect_completed("without a deadline", &execution)?;
            if used >= ENOUGH || amount >= amount_max {
                // Growing is one instruction, which may take its time.
                let (execution, grow) = measured(ctx, &*prepared, numbers(&[input(amount)[0], 0]))?;
                ctx.expect_completed("growing alone", &execution)?;
                let fill = used.saturating_sub(grow);
                ctx.expect("CPU time of growing, and of filling", format!("{grow:?}, {fill:?}"), fill >= DEADLINE)?;
                return Ok((amount, grow, fill));
            }
            amount *= 2;
        }
    })?;
    ctx.enforced(|ctx| {
        let prepared = ctx.prepare("randoms", &with_deadline(ctx, fill / 8), HostFunctions::new())?;
        let (execution, used) = measured(ctx, &*prepared, numbers(&input(amount)))?;
        ctx.expect_exceeded("with a deadline of an eighth", &execution, Resource::WallTime)?;
        let seen = format!("{used:?}, where growing takes {grow:?} and filling {fill:?}");
        ctx.expect("CPU time until its end", seen, used < grow + fill / 2)
    })?;
    ctx.recovery()
}

/// A call of an import that is asked for much is the host's own loop.
fn wall_time_long_import(ctx: &mut Context) -> Result<(), Failure> {
    expect_imports_ended(ctx, |amount| [amount, 1], 2048)
}

/// A guest that does nothing but call its host runs few instructions of its own.
fn wall_time_many_imports(ctx: &mut Context) -> Result<(), Failure> {
    expect_imports_ended(ctx, |amount| [1, amount], 1 << 16)
}

/// A sleeping guest runs no instruction that could be counted.
fn wall_time_sleep(ctx: &mut Context) -> Result<(), Failure> {
    expect_deadline(ctx, |ctx, policy, time| {
        let call = Call::new().input((time.as_nanos() as u64).to_le_bytes().to_vec());
        ended(ctx, "sleep", call, policy, HostFunctions::new())
    })
}

/// A guest must not get around its deadline by way of a slow host function.
fn wall_time_host_call(ctx: &mut Context) -> Result<(), Failure> {
    expect_deadline(ctx, |ctx, policy, time| {
        let functions = HostFunctions::new().add("f", move |_| async move {
            tokio::time::sleep(time).await;
            Ok(Bytes::new())
        });
        let mut policy = policy.clone();
        policy.grants.host_functions.insert("f".to_owned());
        ended(ctx, "host", Call::new().input(host_input(1)), &policy, functions)
    })
}

/// Input comes from somebody who may never send it.
fn wall_time_input(ctx: &mut Context) -> Result<(), Failure> {
    expect_deadline(ctx, |ctx, policy, time| {
        let call = Call::new().input(ctx.late_input(time, b"late", || {}));
        ended(ctx, "stdin", call, policy, HostFunctions::new())
    })
}

/// Input of the probe `host` for function `f`.
fn host_input(times: u32) -> Vec<u8> {
    [&numbers(&[times])[..], b"f"].concat()
}

/// CPU time bounds the cost of a guest also when the machine is busy and wall time says little.
fn cpu_time_loop(ctx: &mut Context) -> Result<(), Failure> {
    /// The loop lasts so many times the bound.
    const TIMES: u32 = 20;
    let mut policy = ctx.generous();
    let (bound, rounds) = ctx.baseline(|ctx| {
        // What it takes to begin and to end, which the bound must leave room for.
        let execution = ctx.run("count", 1u64.to_le_bytes().to_vec(), &policy)?;
        ctx.expect_completed("a loop of one round", &execution)?;
        let bound = DEADLINE.max(4 * execution.usage.cpu_time);
        let rounds = rounds_lasting(ctx, TIMES * bound)?;
        let execution = ctx.run("count", rounds.to_le_bytes().to_vec(), &policy)?;
        ctx.expect_completed("without a bound", &execution)?;
        Ok((bound, rounds))
    })?;
    policy.quota.cpu_time = Some(bound);
    ctx.enforced(|ctx| {
        let execution = ctx.run("count", rounds.to_le_bytes().to_vec(), &policy)?;
        ctx.expect_exceeded("a long loop", &execution, Resource::CpuTime)?;
        // A tenth of the bound.
        let short = rounds / u64::from(10 * TIMES);
        let execution = ctx.run("count", short.to_le_bytes().to_vec(), &policy)?;
        ctx.expect_completed("a short loop", &execution)
    })?;
    ctx.recovery()
}

/// Requires that `probe` may use exactly what it uses of `resource`, and not one less.
fn expect_exact(
    ctx: &mut Context,
    probe: &str,
    input: &[u8],
    resource: Resource,
    at_least: u64,
) -> Result<(), Failure> {
    let mut policy = ctx.generous();
    let used = ctx.baseline(|ctx| {
        let execution = ctx.run(probe, input.to_vec(), &policy)?;
        ctx.expect_completed("without a bound", &execution)?;
        let used = execution.usage.get(resource);
        ctx.expect("reported usage", resource.display(used), used >= at_least)?;
        Ok(used)
    })?;
    let mut bounded = |ctx: &mut Context, limit: u64| {
        match resource {
            Resource::Fuel => policy.quota.fuel = Some(limit),
            _ => policy.quota.memory_bytes = Some(limit),
        }
        ctx.run(probe, input.to_vec(), &policy)
    };
    ctx.enforced(|ctx| {
        let execution = bounded(ctx, used)?;
        ctx.expect_completed("bounded by exactly what it uses", &execution)?;
        for limit in [used - 1, at_least / 2] {
            let execution = bounded(ctx, limit)?;
            ctx.expect_exceeded("bounded by less", &execution, resource)?;
            let reported = execution.usage.get(resource);
            ctx.expect("usage within the bound", reported, reported <= limit)?;
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// Fuel is deterministic, so its bound is exact.
fn fuel(ctx: &mut Context) -> Result<(), Failure> {
    expect_exact(ctx, "count", &10_000u64.to_le_bytes(), Resource::Fuel, 10_000)
}

/// Code that runs before the entry costs as much as any.
fn fuel_start(ctx: &mut Context) -> Result<(), Failure> {
    expect_exact(ctx, "start", &10_000u64.to_le_bytes(), Resource::Fuel, 10_000)
}

/// A module can declare any amount before it runs an instruction.
fn memory_initial(ctx: &mut Context) -> Result<(), Failure> {
    expect_exact(ctx, "large", b"", Resource::Memory, 32 << 16)
}

/// Growing is where guests take most of their memory.
fn memory_grown(ctx: &mut Context) -> Result<(), Failure> {
    expect_exact(ctx, "grow", &numbers(&[31]), Resource::Memory, 32 << 16)
}

/// Tables are memory of the host that a guest can grow without touching its own.
fn memory_tables(ctx: &mut Context) -> Result<(), Failure> {
    // A reference takes at least four bytes anywhere.
    expect_exact(ctx, "table", &numbers(&[100_000]), Resource::Memory, 400_000)
}

/// What the host keeps for a guest is the guest's doing.
fn memory_host_buffers(ctx: &mut Context) -> Result<(), Failure> {
    // Sixteen writes of 32 KiB: half a mebibyte beside the guest's own memory of one page.
    expect_exact(ctx, "write", &numbers(&[0, 1 << 15, 16]), Resource::Memory, 1 << 19)
}

/// What a guest passes to a host function is held for as long as that runs, however long that is.
fn memory_host_input(ctx: &mut Context) -> Result<(), Failure> {
    const PASSED: u32 = 1 << 20;
    let seen = Arc::new(AtomicU64::new(0));
    let theirs = Arc::clone(&seen);
    let functions = HostFunctions::new().add("f", move |call| {
        theirs.fetch_add(call.input.len() as u64, Ordering::SeqCst);
        async { Ok(Bytes::new()) }
    });
    let mut policy = ctx.generous();
    policy.grants.host_functions.insert("f".to_owned());
    let pass = |ctx: &mut Context, policy: &Policy, bytes: u32| {
        seen.store(0, Ordering::SeqCst);
        let execution = ctx.call("argument", Call::new().input(numbers(&[bytes])), policy, functions.clone())?;
        Ok((execution, seen.load(Ordering::SeqCst)))
    };
    let least = ctx.baseline(|ctx| {
        let (execution, seen) = pass(ctx, &policy, PASSED)?;
        ctx.expect_completed("without a bound", &execution)?;
        ctx.expect("bytes that the host saw", seen, seen == u64::from(PASSED))?;
        let (execution, _) = pass(ctx, &policy, 1)?;
        Ok(execution.usage.memory_peak_bytes)
    })?;
    ctx.enforced(|ctx| {
        let (execution, _) = pass(ctx, &policy, PASSED)?;
        let more = execution.usage.memory_peak_bytes.saturating_sub(least);
        ctx.expect("peak memory beyond that of one byte", more, more >= u64::from(PASSED) - 1)?;
        policy.quota.memory_bytes = Some(least + u64::from(PASSED / 2));
        let (execution, seen) = pass(ctx, &policy, PASSED)?;
        ctx.expect_exceeded("more than there is room for", &execution, Resource::Memory)?;
        ctx.expect("bytes that the host saw", seen, seen == 0)?;
        let (execution, seen) = pass(ctx, &policy, PASSED / 4)?;
        ctx.expect_completed("what there is room for", &execution)?;
        ctx.expect("bytes that the host saw", seen, seen == u64::from(PASSED / 4))
    })?;
    ctx.recovery()
}

/// Overflowing the host's stack kills the host.
fn stack_recursion(ctx: &mut Context) -> Result<(), Failure> {
    let mut policy = ctx.generous();
    let (least, most) = (ctx.capabilities().stack_bytes_min, ctx.capabilities().stack_bytes_max);
    let small = (256 << 10).clamp(least, most);
    let deep = u32::try_from(small / 12).unwrap_or(u32::MAX);
    ctx.baseline(|ctx| {
        policy.quota.stack_bytes = Some(most);
        let execution = ctx.run("recurse", numbers(&[deep]), &policy)?;
        ctx.expect_completed("deep recursion on a large stack", &execution)
    })?;
    policy.quota.stack_bytes = Some(small);
    ctx.enforced(|ctx| {
        let execution = ctx.run("recurse", numbers(&[deep]), &policy)?;
        ctx.expect_exceeded("the same on a small one", &execution, Resource::Stack)?;
        let execution = ctx.run("recurse", numbers(&[50]), &policy)?;
        ctx.expect_completed("recursion that fits", &execution)
    })?;
    ctx.recovery()
}

/// A policy with a bound of `limit` on output and on the log.
fn with_streams(ctx: &Context, limit: u64) -> Policy {
    let mut policy = ctx.generous();
    policy.quota.output_bytes = Some(limit);
    policy.quota.log_bytes = Some(limit);
    policy
}

/// Writes of a stream up to its limit, and one byte beyond.
fn expect_exact_stream(
    ctx: &mut Context,
    stream: u32,
    resource: Resource,
    kept: fn(&Execution) -> usize,
) -> Result<(), Failure> {
    let policy = ctx.generous();
    ctx.baseline(|ctx| {
        let execution = ctx.run("write", numbers(&[stream, 101, 2]), &policy)?;
        ctx.expect_completed("without a bound", &execution)?;
        ctx.expect("bytes kept", kept(&execution), kept(&execution) == 202)
    })?;
    let policy = with_streams(ctx, 100);
    ctx.enforced(|ctx| {
        let execution = ctx.run("write", numbers(&[stream, 50, 2]), &policy)?;
        ctx.expect_completed("exactly the limit", &execution)?;
        ctx.expect("bytes kept", kept(&execution), kept(&execution) == 100)?;
        for input in [[stream, 101, 1], [stream, 1, 101]] {
            let execution = ctx.run("write", numbers(&input), &policy)?;
            ctx.expect_exceeded("one byte more", &execution, resource)?;
            ctx.expect("bytes kept", kept(&execution), kept(&execution) <= 100)?;
            let reported = execution.usage.get(resource);
            ctx.expect("reported usage", reported, reported <= 100)?;
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// Output is held by the host, and often stored.
fn output_exact(ctx: &mut Context) -> Result<(), Failure> {
    expect_exact_stream(ctx, 0, Resource::Output, |execution| execution.output.len())
}

/// Error text ends in logs that somebody pays for.
fn error_text(ctx: &mut Context) -> Result<(), Failure> {
    expect_exact_stream(ctx, 1, Resource::Log, |execution| execution.error.len())
}

/// Counts what it is given.
#[derive(Debug, Default)]
struct Counting {
    output: AtomicU64,
    log: AtomicU64,
}

impl OutputSink for Counting {
    fn write(&self, stream: OutputStream, bytes: &[u8]) {
        let count = if stream == OutputStream::Output { &self.output } else { &self.log };
        count.fetch_add(bytes.len() as u64, Ordering::SeqCst);
    }
}

/// Writes of a stream through a sink, up to its limit and beyond.
fn expect_exact_sink(ctx: &mut Context, stream: u32, resource: Resource) -> Result<(), Failure> {
    let write = |ctx: &mut Context, policy: &Policy, [len, times]: [u32; 2]| {
        let sink = Arc::new(Counting::default());
        let call = Call::new().input(numbers(&[stream, len, times])).sink(Arc::clone(&sink) as Arc<dyn OutputSink>);
        let execution = ctx.call("write", call, policy, HostFunctions::new())?;
        let seen = if stream == 0 { &sink.output } else { &sink.log };
        Ok((execution, seen.load(Ordering::SeqCst)))
    };
    let policy = ctx.generous();
    ctx.baseline(|ctx| {
        let (execution, seen) = write(ctx, &policy, [101, 2])?;
        ctx.expect_completed("without a bound", &execution)?;
        ctx.expect("bytes that the sink saw", seen, seen == 202)
    })?;
    let policy = with_streams(ctx, 100);
    ctx.enforced(|ctx| {
        let (execution, seen) = write(ctx, &policy, [50, 2])?;
        ctx.expect_completed("exactly the limit", &execution)?;
        ctx.expect("bytes that the sink saw", seen, seen == 100)?;
        for input in [[101, 1], [1, 101], [32_768, 100]] {
            let (execution, seen) = write(ctx, &policy, input)?;
            ctx.expect_exceeded("more than the limit", &execution, resource)?;
            ctx.expect("bytes that the sink saw", seen, seen <= 100)?;
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// A sink may be a socket or a file: what goes there is a flood as well.
fn output_sink(ctx: &mut Context) -> Result<(), Failure> {
    expect_exact_sink(ctx, 0, Resource::Output)
}

/// Logs that go straight to a service are paid for by the line.
fn log_sink(ctx: &mut Context) -> Result<(), Failure> {
    expect_exact_sink(ctx, 1, Resource::Log)
}

/// A flood of small records is a flood: their bytes count. What a record itself costs may count too.
fn log_records(ctx: &mut Context) -> Result<(), Failure> {
    let text = |execution: &Execution| execution.log.iter().map(|record| record.message.len()).sum::<usize>();
    let policy = ctx.generous();
    let used = ctx.baseline(|ctx| {
        let execution = ctx.run("write", numbers(&[2, 50, 4]), &policy)?;
        ctx.expect_completed("without a bound", &execution)?;
        ctx.expect("text kept", text(&execution), text(&execution) == 200)?;
        let used = execution.usage.log_bytes;
        ctx.expect("reported usage", used, used >= 200)?;
        Ok(used)
    })?;
    ctx.enforced(|ctx| {
        let policy = with_streams(ctx, used);
        let execution = ctx.run("write", numbers(&[2, 50, 4]), &policy)?;
        ctx.expect_completed("exactly the limit", &execution)?;
        let policy = with_streams(ctx, used - 1);
        let execution = ctx.run("write", numbers(&[2, 50, 4]), &policy)?;
        ctx.expect_exceeded("one byte more", &execution, Resource::Log)?;
        ctx.expect("text kept", text(&execution), text(&execution) < 200)
    })?;
    ctx.recovery()
}

/// Host calls cost the host, whatever they cost the guest.
fn host_calls(ctx: &mut Context) -> Result<(), Failure> {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    let made = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&made);
    let functions = HostFunctions::new().add("f", move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        async { Ok(Bytes::new()) }
    });
    let mut policy = ctx.generous();
    policy.grants.host_functions.insert("f".to_owned());
    let calls = |ctx: &mut Context, policy: &Policy, times: u32| {
        made.store(0, Ordering::SeqCst);
        let execution = ctx.call("host", Call::new().input(host_input(times)), policy, functions.clone())?;
        Ok((execution, made.load(Ordering::SeqCst)))
    };
    ctx.baseline(|ctx| {
        let (execution, seen) = calls(ctx, &policy, 8)?;
        ctx.expect_completed("without a bound", &execution)?;
        ctx.expect("calls seen by the host", seen, seen == 8)
    })?;
    policy.quota.host_calls = Some(7);
    ctx.enforced(|ctx| {
        let (execution, seen) = calls(ctx, &policy, 7)?;
        ctx.expect_completed("exactly the limit", &execution)?;
        ctx.expect("calls seen by the host", seen, seen == 7)?;
        let (execution, seen) = calls(ctx, &policy, 8)?;
        ctx.expect_exceeded("one more", &execution, Resource::HostCalls)?;
        ctx.expect("calls seen by the host", seen, seen == 7)
    })?;
    ctx.recovery()
}

/// Descriptors are shared by everything in the host's process.
fn open_files(ctx: &mut Context) -> Result<(), Failure> {
    let folder = ctx.make_directory("files")?;
    std::fs::write(folder.join("a"), "a").map_err(|error| ctx.failure(error.to_string()))?;
    let mut policy = ctx.generous();
    policy.grants.directories.push(DirectoryGrant::read_only(&folder, "/files"));
    let opens = |ctx: &mut Context, policy: &Policy, times: u32| {
        let execution = ctx.run("open", [&numbers(&[times])[..], b"a"].concat(), policy)?;
        ctx.expect_completed("opening", &execution)?;
        Ok((number_at(&execution.output, 0), number_at(&execution.output, 1)))
    };
    let seen = |(opened, errno): (u32, u32)| format!("{opened} opened, then errno {errno}");
    ctx.baseline(|ctx| {
        let found = opens(ctx, &policy, 8)?;
        ctx.expect("without a bound", seen(found), found == (8, 0))
    })?;
    policy.quota.open_files = Some(7);
    ctx.enforced(|ctx| {
        let found = opens(ctx, &policy, 7)?;
        ctx.expect("exactly the limit", seen(found), found == (7, 0))?;
        let found = opens(ctx, &policy, 8)?;
        // 33 is EMFILE: guests know what to do then.
        ctx.expect("one more", seen(found), found == (7, 33))
    })?;
    ctx.recovery()
}

/// A full disk stops everybody on the machine.
fn disk_bytes(ctx: &mut Context) -> Result<(), Failure> {
    let folder = ctx.make_directory("files")?;
    let mut policy = ctx.generous();
    policy.grants.directories.push(DirectoryGrant::read_write(&folder, "/files"));
    let write = |ctx: &mut Context, policy: &Policy, path: &str, len: usize| {
        // There already, since a backend may charge what a new entry takes of the disk.
        std::fs::write(folder.join(path), "").map_err(|error| ctx.failure(format!("cannot make {path}: {error}")))?;
        let input = super::isolation::write_request(3, path, &vec![b'x'; len]);
        let execution = ctx.run("file", input, policy)?;
        ctx.expect_completed("writing", &execution)?;
        let size = std::fs::metadata(folder.join(path)).map_or(0, |metadata| metadata.len());
        Ok((number_at(&execution.output, 0), number_at(&execution.output, 1), size))
    };
    let seen =
        |(errno, written, size): (u32, u32, u64)| format!("errno {errno}, {written} written, {size} on the disk");
    ctx.baseline(|ctx| {
        let found = write(ctx, &policy, "a", 1001)?;
        ctx.expect("without a bound", seen(found), found == (0, 1001, 1001))
    })?;
    policy.quota.disk_bytes = Some(1000);
    ctx.enforced(|ctx| {
        let found = write(ctx, &policy, "b", 1000)?;
        ctx.expect("exactly the limit", seen(found), found == (0, 1000, 1000))?;
        let found = write(ctx, &policy, "c", 1001)?;
        // Either nothing is written or what fits, and the guest is told.
        let told = found.0 != 0 || u64::from(found.1) == found.2;
        ctx.expect("one byte more", seen(found), told && found.2 <= 1000)
    })?;
    ctx.recovery()
}

/// Entries of directories take room that bytes of files do not show.
fn disk_nothing(ctx: &mut Context) -> Result<(), Failure> {
    let folder = |ctx: &mut Context, name: &str| {
        let folder = ctx.make_directory(name)?;
        std::fs::write(folder.join("file"), "").map_err(|error| ctx.failure(error.to_string()))?;
        let mut policy = ctx.generous();
        policy.grants.directories.push(DirectoryGrant::read_write(&folder, "/files"));
        Ok((folder, policy))
    };
    let makes = super::isolation::make_requests();
    ctx.baseline(|ctx| {
        let (folder, policy) = folder(ctx, "bounded-by-nothing")?;
        for (name, request) in &makes {
            let execution = ctx.run("file", request.clone(), &policy)?;
            ctx.expect_completed("making an entry", &execution)?;
            let there = folder.join(name).symlink_metadata().is_ok();
            let errno = number_at(&execution.output, 0);
            ctx.expect(name, format!("errno {errno}, there: {there}"), errno == 0 && there)?;
        }
        Ok(())
    })?;
    ctx.enforced(|ctx| {
        let (folder, mut policy) = folder(ctx, "bounded-by-zero")?;
        policy.quota.disk_bytes = Some(0);
        for (name, request) in &makes {
            let execution = ctx.run("file", request.clone(), &policy)?;
            ctx.expect_completed("making an entry", &execution)?;
            let there = folder.join(name).symlink_metadata().is_ok();
            let errno = number_at(&execution.output, 0);
            ctx.expect(name, format!("errno {errno}, there: {there}"), errno != 0 && !there)?;
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// Each call may make its host calls anew.
fn next_host_calls(ctx: &mut Context) -> Result<(), Failure> {
    let functions = HostFunctions::new().add("f", |_| async { Ok(Bytes::new()) });
    let mut policy = ctx.generous();
    policy.grants.host_functions.insert("f".to_owned());
    policy.quota.host_calls = Some(3);
    let mut instance = ctx.baseline(|ctx| {
        let mut instance = ctx.instance("host", &policy, functions)?;
        let execution = ctx.call_again(&mut instance, Call::new().input(host_input(3)))?;
        ctx.expect_completed("a first call that makes all of its host calls", &execution)?;
        Ok(instance)
    })?;
    ctx.enforced(|ctx| {
        for _ in 0..3 {
            let execution = ctx.call_again(&mut instance, Call::new().input(host_input(3)))?;
            ctx.expect_completed("the next call, making all of its own", &execution)?;
            let told = execution.usage.host_calls;
            ctx.expect("host calls told", told, told == 3)?;
        }
        let execution = ctx.call_again(&mut instance, Call::new().input(host_input(4)))?;
        ctx.expect_exceeded("the next call, making one more", &execution, Resource::HostCalls)
    })?;
    drop(instance);
    ctx.recovery()
}

/// An instance that serves many calls must give each its full quota.
fn next_call(ctx: &mut Context) -> Result<(), Failure> {
    let policy = with_streams(ctx, 100);
    let mut instance = ctx.baseline(|ctx| {
        let mut instance = ctx.instance("write", &policy, HostFunctions::new())?;
        let execution = ctx.call_again(&mut instance, Call::new().input(numbers(&[0, 100, 1])))?;
        ctx.expect_completed("a first call that uses all of its output", &execution)?;
        Ok(instance)
    })?;
    ctx.enforced(|ctx| {
        for _ in 0..3 {
            let execution = ctx.call_again(&mut instance, Call::new().input(numbers(&[0, 100, 1])))?;
            ctx.expect_completed("the next call, using all of its own", &execution)?;
            ctx.expect("output kept", execution.output.len(), execution.output.len() == 100)?;
        }
        let execution = ctx.call_again(&mut instance, Call::new().input(numbers(&[0, 101, 1])))?;
        ctx.expect_exceeded("the next call, using more", &execution, Resource::Output)
    })?;
    drop(instance);
    ctx.recovery()
}

/// Most instances a check makes; a backend that declares more is tested up to here and must refuse nothing.
const INSTANCES_MAX: u64 = 20_000;

/// Many small instances are a flood as well.
fn instances(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let prepared = ctx.baseline(|ctx| {
        let prepared = ctx.prepare("echo", &policy, HostFunctions::new())?;
        let first = ctx.block_on(prepared.instantiate());
        ctx.expect("one instance", outcome_of(&first), first.is_ok())?;
        Ok(prepared)
    })?;
    ctx.enforced(|ctx| {
        let declared = ctx.capabilities().instances_max;
        let mut held = Vec::new();
        for number in 1..=declared.min(INSTANCES_MAX) {
            match ctx.block_on(prepared.instantiate()) {
                Ok(instance) => held.push(instance),
                Err(error) => {
                    return ctx.expect("an instance within the declared number", format!("{number}: {error}"), false);
                }
            }
        }
        let enough = held.len() as u64 == declared.min(INSTANCES_MAX);
        ctx.expect("instances at once", held.len(), enough)?;
        if declared > INSTANCES_MAX {
            return Ok(());
        }
        let next = ctx.block_on(prepared.instantiate());
        let refused = matches!(&next, Err(error) if error.kind() == ErrorKind::Exhausted);
        ctx.expect("one more than declared", outcome_of(&next), refused)?;
        drop(held.pop());
        let next = ctx.block_on(prepared.instantiate());
        ctx.expect("one more after one was dropped", outcome_of(&next), next.is_ok())
    })?;
    ctx.recovery()
}

fn outcome_of<T>(made: &palisade_core::Result<T>) -> String {
    made.as_ref().map_or_else(ToString::to_string, |_| "made".to_owned())
}

/// One guest at its limits is everyday; the others must not notice.
fn after_exhaustion(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let neighbour = ctx.baseline(|ctx| {
        let mut neighbour = ctx.instance("write", &policy, HostFunctions::new())?;
        let execution = ctx.call_again(&mut neighbour, Call::new().input(numbers(&[0, 101, 1])))?;
        ctx.expect_completed("the neighbour, before", &execution)?;
        Ok(neighbour)
    })?;
    ctx.enforced(|ctx| {
        let mut neighbour = neighbour;
        let mut small = with_streams(ctx, 100);
        small.quota.memory_bytes = Some(4 << 16);
        let hog = ctx.prepare("write", &small, HostFunctions::new())?;
        let hungry = ctx.prepare("grow", &small, HostFunctions::new())?;
        for _ in 0..20 {
            let flood = ctx.block_on(hog.run(Call::new().input(numbers(&[0, 101, 1]))));
            let flood = flood.map_err(|error| ctx.failure(error.to_string()))?;
            ctx.expect_exceeded("a guest that floods", &flood, Resource::Output)?;
            let grow = ctx.block_on(hungry.run(Call::new().input(numbers(&[8]))));
            let grow = grow.map_err(|error| ctx.failure(error.to_string()))?;
            ctx.expect_exceeded("a guest that grows", &grow, Resource::Memory)?;
            let execution = ctx.call_again(&mut neighbour, Call::new().input(numbers(&[0, 101, 1])))?;
            ctx.expect_completed("the neighbour, between", &execution)?;
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// Guests at their limits must not hurt one that is in the middle of its call, nor one on another thread.
fn at_the_same_time(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let mut neighbour = ctx.baseline(|ctx| ctx.instance("stdin", &policy, HostFunctions::new()))?;
    let waits = Arc::new(AtomicBool::new(false));
    let theirs = Arc::clone(&waits);
    let call = Call::new().input(ctx.late_input(4 * DEADLINE, b"late", move || theirs.store(true, Ordering::SeqCst)));
    let mut running = neighbour.call(call);
    ctx.baseline(|ctx| {
        let in_its_call = ctx.block_on(poll_fn(|context| {
            let ended = running.as_mut().poll(context).is_ready();
            let waits = waits.load(Ordering::SeqCst);
            if ended || waits { Poll::Ready(waits && !ended) } else { Poll::Pending }
        }));
        ctx.expect("the neighbour waits for its input", in_its_call, in_its_call)
    })?;
    ctx.enforced(|ctx| {
        let mut small = with_streams(ctx, 100);
        small.quota.memory_bytes = Some(4 << 16);
        let hog = ctx.prepare("write", &small, HostFunctions::new())?;
        let hungry = ctx.prepare("grow", &small, HostFunctions::new())?;
        let endless = ctx.prepare("count", &with_deadline(ctx, DEADLINE), HostFunctions::new())?;
        let busy = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().ok()?;
            runtime.block_on(endless.run(Call::new().input(ROUNDS.to_le_bytes().to_vec()))).ok()
        });
        for _ in 0..5 {
            let flood = ctx.block_on(hog.run(Call::new().input(numbers(&[0, 101, 1]))));
            let flood = flood.map_err(|error| ctx.failure(error.to_string()))?;
            ctx.expect_exceeded("a guest that floods", &flood, Resource::Output)?;
            let grow = ctx.block_on(hungry.run(Call::new().input(numbers(&[8]))));
            let grow = grow.map_err(|error| ctx.failure(error.to_string()))?;
            ctx.expect_exceeded("a guest that grows", &grow, Resource::Memory)?;
        }
        let endless = busy.join().ok().flatten();
        let endless = endless.ok_or_else(|| ctx.failure("the guest on another thread did not run"))?;
        ctx.expect_exceeded("a guest that spins on another thread", &endless, Resource::WallTime)?;
        let execution = ctx.block_on(running).map_err(|error| ctx.failure(error.to_string()))?;
        ctx.expect_completed("the neighbour, after them", &execution)
    })?;
    drop(neighbour);
    ctx.recovery()
}

/// A bound that takes one byte more than it says breaks guests that keep to it.
fn exactly_the_limit(ctx: &mut Context) -> Result<(), Failure> {
    ctx.baseline(|ctx| {
        let policy = ctx.generous();
        let execution = ctx.run("write", numbers(&[0, 64, 1]), &policy)?;
        ctx.expect_completed("without a bound", &execution)
    })?;
    ctx.enforced(|ctx| {
        for limit in [1u32, 64, 32_768] {
            let policy = with_streams(ctx, limit.into());
            let execution = ctx.run("write", numbers(&[0, limit, 1]), &policy)?;
            ctx.expect_completed("exactly the limit", &execution)?;
            let policy = with_streams(ctx, u64::from(limit) - 1);
            let execution = ctx.run("write", numbers(&[0, limit, 1]), &policy)?;
            ctx.expect_exceeded("a limit of one byte less", &execution, Resource::Output)?;
        }
        Ok(())
    })?;
    ctx.recovery()
}
