//! Profile `core`: loading, calling, cancelling, and telling the truth about it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use palisade_core::{
    Abi, Artifact, Bytes, Call, CancelToken, Clocks, DirectoryGrant, Enforcement, ErrorKind, GrantKind, HostFunctions,
    Outcome, OutputSink, OutputStream, Policy, Randomness, Resource, TrapKind,
};

use super::{ended, expect_idle, measured, must, number_at, numbers, own_cpu_time, rounds_lasting};
use crate::{Check, Context, Failure, Need, Requirement};

pub(super) const REQUIREMENTS: &[Requirement] = &[
    must("core.call.output", "A guest's output MUST reach the host byte for byte.", "results that are not the guest's"),
    must(
        "core.call.outcome",
        "How a guest ended MUST be reported as a typed outcome: its exit code, or what kind of trap it was.",
        "a failure taken for success",
    ),
    must(
        "core.load.hostile-artifacts",
        "A malformed artifact, or one that imports what nothing provides, MUST be refused before any of it runs.",
        "an artifact that attacks its loader",
    ),
    must(
        "core.call.entry",
        "A call MUST run the entry it names or be refused, listing the entries.",
        "wrong code runs",
    ),
    must(
        "core.cancel.anywhere",
        "Cancelling MUST end the call with the outcome `Cancelled`, whatever the guest is doing, and no other call.",
        "a guest that cannot be stopped",
    ),
    must(
        "core.drop.is-cancel",
        "Dropping a call's future MUST stop the guest and release what the call held.",
        "a guest that outlives its caller",
    ),
    must(
        "core.instance.stale",
        "After an abnormal end an instance MUST refuse every further call.",
        "a guest in an undefined state",
    ),
    must(
        "core.host.functions",
        "A guest MUST get a host function's result or error as such, and a panic MUST end its call only.",
        "host errors that look like answers",
    ),
    must(
        "core.host.granted-only",
        "A guest MUST NOT be able to call a host function that the policy does not grant.",
        "a confused deputy",
    ),
    must(
        "core.policy.fail-closed",
        "A policy that the backend cannot enforce MUST be refused with `Unsupported`.",
        "protection that silently is not there",
    ),
    must(
        "core.usage.truthful",
        "Reported usage MUST be true: memory at least what was touched, fuel the same on each run, CPU time as measured.",
        "bills and alarms that lie",
    ),
    must(
        "core.load.runs-nothing",
        "Loading an artifact and making an instance of it MUST NOT run any of its code.",
        "code that runs outside of every quota",
    ),
    must(
        "core.load.independent",
        "A module MUST work when the artifact it was made of is gone.",
        "plugins that fail once their bytes are freed",
    ),
    must(
        "core.sink.order",
        "A sink MUST get what a guest writes in the order in which it wrote it, and all of it before the call ends.",
        "output that is mixed up, or comes when nobody listens any more",
    ),
    must(
        "core.capabilities.constant",
        "What a backend declares MUST stay the same for as long as it is open.",
        "policies that are admitted by what is not true any more",
    ),
    must(
        "core.call.arguments",
        "An argument that no program could get, one with a NUL byte, MUST be refused with `InvalidInput`.",
        "a guest that gets other arguments than were meant",
    ),
    must(
        "core.call.initialize",
        "Where a module exports `_initialize`, that MUST run before its entry, once in each instance.",
        "a guest whose memory was never set up",
    ),
    must(
        "core.call.hostile-numbers",
        "Any number that a guest passes to an import MUST give a result or an error, soon and without wrapping.",
        "a host that counts for ever, or hands out what it must not",
    ),
    must(
        "core.host.unknown",
        "A policy that grants a host function which the host does not offer MUST be refused with `NotFound`.",
        "a plugin that fails when it runs, instead of when it is installed",
    ),
    must(
        "core.host.own-call",
        "What a host function gave in one call MUST NOT be readable in the next.",
        "data of the call before",
    ),
    must(
        "core.wait.costs-nothing",
        "While a guest waits, asleep, for input or for a host function, its host MUST NOT use a processor for it.",
        "guests that starve behind their own host",
    ),
    must(
        "core.lifecycle.resource-cleanup-on-termination",
        "A thousand instances that come and go MUST leave no open file, thread or process.",
        "a host that fills up",
    ),
];

const HOST: &[Need] = &[Need::Abi(Abi::Reactor), Need::Grant(GrantKind::HostFunctions)];
const REACTOR: &[Need] = &[Need::Abi(Abi::Reactor)];

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "core.call.echo",
        requires: &["core.call.output"],
        needs: REACTOR,
        control: "corrupts-output",
        run: echo,
    },
    Check {
        id: "core.call.exit-code",
        requires: &["core.call.outcome"],
        needs: &[Need::Abi(Abi::Reactor), Need::Abi(Abi::Command)],
        control: "loses-exit-code",
        run: exit_code,
    },
    Check {
        id: "core.call.typed-trap",
        requires: &["core.call.outcome"],
        needs: REACTOR,
        control: "untyped-trap",
        run: typed_trap,
    },
    Check {
        id: "core.call.unknown-entry",
        requires: &["core.call.entry"],
        needs: REACTOR,
        control: "runs-any-entry",
        run: unknown_entry,
    },
    Check {
        id: "core.load.malformed",
        requires: &["core.load.hostile-artifacts"],
        needs: REACTOR,
        control: "accepts-malformed",
        run: malformed,
    },
    Check {
        id: "core.load.unknown-import",
        requires: &["core.load.hostile-artifacts"],
        needs: REACTOR,
        control: "stubs-imports",
        run: unknown_import,
    },
    Check {
        id: "core.cancel.before-the-call",
        requires: &["core.cancel.anywhere"],
        needs: HOST,
        control: "ignores-cancel-before",
        run: cancel_before,
    },
    Check {
        id: "core.cancel.while-running",
        requires: &["core.cancel.anywhere"],
        needs: REACTOR,
        control: "ignores-cancel-running",
        run: cancel_while_running,
    },
    Check {
        id: "core.cancel.in-a-start-function",
        requires: &["core.cancel.anywhere"],
        needs: REACTOR,
        control: "ignores-cancel-start",
        run: cancel_in_start_function,
    },
    Check {
        id: "core.cancel.in-a-host-call",
        requires: &["core.cancel.anywhere"],
        needs: HOST,
        control: "ignores-cancel-host-call",
        run: cancel_in_host_call,
    },
    Check {
        id: "core.cancel.blocked-on-input",
        requires: &["core.cancel.anywhere"],
        needs: &[Need::Abi(Abi::Reactor), Need::Abi(Abi::Command)],
        control: "ignores-cancel-input",
        run: cancel_blocked_on_input,
    },
    Check {
        id: "core.cancel.stale-token",
        requires: &["core.cancel.anywhere"],
        needs: REACTOR,
        control: "stale-cancel",
        run: cancel_stale,
    },
    Check {
        id: "core.drop.releases-host-call",
        requires: &["core.drop.is-cancel"],
        needs: HOST,
        control: "keeps-dropped-calls",
        run: drop_releases_host_call,
    },
    Check {
        id: "core.drop.stops-a-loop",
        requires: &["core.drop.is-cancel"],
        needs: &[],
        control: "spins-after-drop",
        run: drop_stops_a_loop,
    },
    Check {
        id: "core.instance.refuses-after-trap",
        requires: &["core.instance.stale"],
        needs: REACTOR,
        control: "revives-instances",
        run: refuses_after_trap,
    },
    Check {
        id: "core.host.error",
        requires: &["core.host.functions"],
        needs: HOST,
        control: "hides-host-errors",
        run: host_error,
    },
    Check {
        id: "core.host.panic",
        requires: &["core.host.functions"],
        needs: HOST,
        control: "hides-host-panics",
        run: host_panic,
    },
    Check {
        id: "core.host.not-granted",
        requires: &["core.host.granted-only"],
        needs: HOST,
        control: "grants-all-functions",
        run: host_not_granted,
    },
    Check {
        id: "core.policy.undeclared-is-refused",
        requires: &["core.policy.fail-closed"],
        needs: REACTOR,
        control: "accepts-undeclared",
        run: undeclared_is_refused,
    },
    Check {
        id: "core.usage.memory-peak",
        requires: &["core.usage.truthful"],
        needs: REACTOR,
        control: "understates-memory",
        run: memory_peak,
    },
    Check {
        id: "core.usage.fuel-repeats",
        requires: &["core.usage.truthful"],
        needs: &[Need::Abi(Abi::Reactor), Need::Quota(Resource::Fuel)],
        control: "random-fuel",
        run: fuel_repeats,
    },
    Check {
        id: "core.usage.cpu-time",
        requires: &["core.usage.truthful"],
        needs: REACTOR,
        control: "no-cpu-time",
        run: cpu_time,
    },
    Check {
        id: "core.load.runs-nothing",
        requires: &["core.load.runs-nothing"],
        needs: REACTOR,
        control: "starts-when-loaded",
        run: load_runs_nothing,
    },
    Check {
        id: "core.instance.runs-nothing",
        requires: &["core.load.runs-nothing"],
        needs: REACTOR,
        control: "starts-when-made",
        run: instance_runs_nothing,
    },
    Check {
        id: "core.load.without-artifact",
        requires: &["core.load.independent"],
        needs: REACTOR,
        control: "needs-artifact",
        run: load_independent,
    },
    Check {
        id: "core.sink.order",
        requires: &["core.sink.order"],
        needs: &[Need::Abi(Abi::Reactor), Need::Abi(Abi::Command)],
        control: "mixes-up-sinks",
        run: sink_order,
    },
    Check {
        id: "core.capabilities.constant",
        requires: &["core.capabilities.constant"],
        needs: REACTOR,
        control: "changes-capabilities",
        run: capabilities_constant,
    },
    Check {
        id: "core.call.nul-in-argument",
        requires: &["core.call.arguments"],
        needs: REACTOR,
        control: "accepts-nul",
        run: nul_in_argument,
    },
    Check {
        id: "core.call.initialize-first",
        requires: &["core.call.initialize"],
        needs: &[Need::Abi(Abi::Reactor), Need::Abi(Abi::Command)],
        control: "skips-initialize",
        run: initialize_first,
    },
    Check {
        id: "core.call.directory-cookie",
        requires: &["core.call.hostile-numbers"],
        needs: &[Need::Abi(Abi::Reactor), Need::Abi(Abi::Command), Need::Grant(GrantKind::DirectoriesReadOnly)],
        control: "wraps-cookies",
        run: directory_cookie,
    },
    Check {
        id: "core.load.nesting",
        requires: &["core.load.hostile-artifacts"],
        needs: REACTOR,
        control: "accepts-deep-nesting",
        run: nesting,
    },
    Check {
        id: "core.instance.refuses-after-exhaustion",
        requires: &["core.instance.stale"],
        needs: &[Need::Abi(Abi::Reactor), Need::Quota(Resource::Output)],
        control: "revives-after-exhaustion",
        run: refuses_after_exhaustion,
    },
    Check {
        id: "core.instance.refuses-after-cancel",
        requires: &["core.instance.stale"],
        needs: &[Need::Abi(Abi::Reactor), Need::Abi(Abi::Command)],
        control: "revives-after-being-stopped",
        run: refuses_after_cancel,
    },
    Check {
        id: "core.instance.refuses-after-host-panic",
        requires: &["core.instance.stale"],
        needs: HOST,
        control: "revives-after-panics",
        run: refuses_after_panic,
    },
    Check {
        id: "core.instance.refuses-after-denial",
        requires: &["core.instance.stale"],
        needs: HOST,
        control: "revives-after-denials",
        run: refuses_after_denial,
    },
    Check {
        id: "core.host.unknown-function",
        requires: &["core.host.unknown"],
        needs: HOST,
        control: "grants-unknown-functions",
        run: host_unknown,
    },
    Check {
        id: "core.host.last-result",
        requires: &["core.host.own-call"],
        needs: HOST,
        control: "keeps-host-results",
        run: host_last_result,
    },
    Check {
        id: "core.wait.sleep",
        requires: &["core.wait.costs-nothing"],
        needs: &[Need::Abi(Abi::Reactor), Need::Abi(Abi::Command), Need::Quota(Resource::WallTime)],
        control: "busy-sleep",
        run: wait_sleep,
    },
    Check {
        id: "core.wait.input",
        requires: &["core.wait.costs-nothing"],
        needs: &[Need::Abi(Abi::Reactor), Need::Abi(Abi::Command), Need::Quota(Resource::WallTime)],
        control: "busy-input",
        run: wait_input,
    },
    Check {
        id: "core.wait.host-call",
        requires: &["core.wait.costs-nothing"],
        needs: &[Need::Abi(Abi::Reactor), Need::Grant(GrantKind::HostFunctions), Need::Quota(Resource::WallTime)],
        control: "busy-host-call",
        run: wait_host_call,
    },
    Check {
        id: "core.usage.input",
        requires: &["core.usage.truthful"],
        needs: REACTOR,
        control: "no-input-usage",
        run: usage_input,
    },
    Check {
        id: "core.usage.output",
        requires: &["core.usage.truthful"],
        needs: REACTOR,
        control: "no-output-usage",
        run: usage_output,
    },
    Check {
        id: "core.usage.log",
        requires: &["core.usage.truthful"],
        needs: REACTOR,
        control: "no-log-usage",
        run: usage_log,
    },
    Check {
        id: "core.usage.open-files",
        requires: &["core.usage.truthful"],
        needs: &[Need::Abi(Abi::Reactor), Need::Abi(Abi::Command), Need::Grant(GrantKind::DirectoriesReadOnly)],
        control: "no-open-files-usage",
        run: usage_open_files,
    },
    Check {
        id: "core.usage.disk",
        requires: &["core.usage.truthful"],
        needs: &[Need::Abi(Abi::Reactor), Need::Abi(Abi::Command), Need::Grant(GrantKind::DirectoriesReadWrite)],
        control: "no-disk-usage",
        run: usage_disk,
    },
    Check {
        id: "core.usage.host-calls",
        requires: &["core.usage.truthful"],
        needs: HOST,
        control: "no-host-calls-usage",
        run: usage_host_calls,
    },
    Check {
        id: "core.lifecycle.thousand-instances",
        requires: &["core.lifecycle.resource-cleanup-on-termination"],
        needs: REACTOR,
        control: "leaks-files",
        run: thousand_instances,
    },
];

/// How long a loop uses a processor, well above what checks look for, and yet ends.
const LONG: Duration = Duration::from_millis(150);

/// Everything else rests on output being what the guest wrote: empty, one byte, a page and more.
fn echo(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    ctx.baseline(|ctx| {
        let execution = ctx.run("echo", "", &policy)?;
        ctx.expect_completed("echo of nothing", &execution)
    })?;
    ctx.enforced(|ctx| {
        for length in [0, 1, 4096, 100_000] {
            let text = ctx.nonce().repeat(length / 32 + 1)[..length].to_owned();
            let execution = ctx.run("echo", text.clone(), &policy)?;
            ctx.expect_completed("echo", &execution)?;
            let seen = format!("{length} bytes in, {} out", execution.output.len());
            ctx.expect("output", seen, execution.output == text.as_bytes())?;
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// A guest that reports an error must not look like one that succeeded.
fn exit_code(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    ctx.baseline(|ctx| {
        let execution = ctx.run("exit", numbers(&[0]), &policy)?;
        ctx.expect_completed("exit code 0", &execution)
    })?;
    ctx.enforced(|ctx| {
        for code in [1, 75, 117] {
            let execution = ctx.run("exit", numbers(&[code]), &policy)?;
            let expected = Outcome::from_exit_code(code.cast_signed());
            ctx.expect("exit code", &execution.outcome, execution.outcome == expected)?;
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// Operators act on what kind of trap it was; it must be right, and no trap may pass for an end.
fn typed_trap(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    ctx.baseline(|ctx| {
        let execution = ctx.run("trap", numbers(&[0]), &policy)?;
        ctx.expect_completed("no trap", &execution)
    })?;
    ctx.enforced(|ctx| {
        let kinds = [
            (1, TrapKind::Unreachable),
            (2, TrapKind::MemoryOutOfBounds),
            (3, TrapKind::DivisionByZero),
            (4, TrapKind::TableOutOfBounds),
            (5, TrapKind::MemoryOutOfBounds),
        ];
        for (number, kind) in kinds {
            let execution = ctx.run("trap", numbers(&[number]), &policy)?;
            let holds = matches!(&execution.outcome, Outcome::Trapped { trap, .. } if *trap == kind);
            ctx.expect(&format!("trap {kind:?}"), &execution.outcome, holds)?;
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// A typing mistake in an entry must not run something else, and the message must help.
fn unknown_entry(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let prepared = ctx.baseline(|ctx| {
        let execution = ctx.call("echo", Call::new().entry("_start"), &policy, HostFunctions::new())?;
        ctx.expect_completed("entry `_start`", &execution)?;
        ctx.prepare("echo", &policy, HostFunctions::new())
    })?;
    ctx.enforced(|ctx| {
        let entry = ctx.nonce();
        let made = ctx.block_on(async { prepared.instantiate().await?.call(Call::new().entry(entry)).await });
        match made {
            Ok(execution) => ctx.expect("unknown entry", &execution.outcome, false),
            Err(error) => {
                let holds = error.kind() == ErrorKind::NotFound && error.to_string().contains("_start");
                ctx.expect("unknown entry", &error, holds)
            }
        }
    })?;
    ctx.recovery()
}

/// Artifacts come from strangers: nothing that is not whole may get past loading.
fn malformed(ctx: &mut Context) -> Result<(), Failure> {
    let artifact = ctx.artifact("echo");
    ctx.baseline(|ctx| {
        let loaded = ctx.block_on(ctx.sandbox().load(artifact.clone()));
        let seen = loaded.as_ref().err().map_or("loaded".to_owned(), ToString::to_string);
        ctx.expect("the whole artifact", seen, loaded.is_ok())
    })?;
    ctx.enforced(|ctx| {
        let whole = artifact.bytes();
        let garbage = ctx.nonce().repeat(16).into_bytes();
        let mut forms = vec![("empty", Vec::new()), ("garbage", garbage.clone())];
        for cut in [4, whole.len() / 2, whole.len() - 1] {
            forms.push(("truncated", whole[..cut].to_vec()));
        }
        forms.push(("with garbage at its end", [&whole[..], &garbage].concat()));
        for (form, bytes) in forms {
            let artifact = Artifact::new(artifact.kind(), bytes).named("echo");
            match ctx.block_on(ctx.sandbox().load(artifact)) {
                Ok(_) => ctx.expect(form, "loaded", false)?,
                Err(error) => ctx.expect(form, &error, error.kind() == ErrorKind::InvalidArtifact)?,
            }
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// What nothing provides must be named before anything runs, not stubbed.
fn unknown_import(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    ctx.baseline(|ctx| {
        let execution = ctx.run("echo", "", &policy)?;
        ctx.expect_completed("a module whose imports are provided", &execution)
    })?;
    ctx.enforced(|ctx| match ctx.try_prepare("unknown", &policy, HostFunctions::new()) {
        Ok(_) => ctx.expect("a module with an unknown import", "accepted", false),
        Err(error) => {
            let holds = error.kind() == ErrorKind::Unsupported && error.to_string().contains("back_door");
            ctx.expect("a module with an unknown import", &error, holds)
        }
    })?;
    ctx.recovery()
}

/// Host functions granted to a guest.
fn granting(ctx: &Context, functions: &HostFunctions) -> Policy {
    let mut policy = ctx.generous();
    policy.grants.host_functions = functions.names().map(str::to_owned).collect();
    policy
}

/// Input of the probe `host`.
fn host_input(times: u32, name: &str) -> Vec<u8> {
    [&numbers(&[times])[..], name.as_bytes()].concat()
}

fn expect_cancelled(ctx: &mut Context, subject: &str, outcome: &Outcome) -> Result<(), Failure> {
    ctx.expect(subject, outcome, matches!(outcome, Outcome::Cancelled { .. }))
}

/// A task that was cancelled while it was queued must not run at all.
fn cancel_before(ctx: &mut Context) -> Result<(), Failure> {
    let made = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&made);
    let functions = HostFunctions::new().add("f", move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        async { Ok(Bytes::new()) }
    });
    let policy = granting(ctx, &functions);
    let call = || Call::new().input(host_input(1, "f"));
    ctx.baseline(|ctx| {
        let execution = ctx.call("host", call().cancel(CancelToken::new()), &policy, functions.clone())?;
        ctx.expect_completed("a call that is not cancelled", &execution)?;
        ctx.expect("host calls made", made.load(Ordering::SeqCst), made.load(Ordering::SeqCst) == 1)
    })?;
    ctx.enforced(|ctx| {
        let token = CancelToken::new();
        token.cancel();
        let execution = ctx.call("host", call().cancel(token), &policy, functions.clone())?;
        expect_cancelled(ctx, "a call cancelled before it began", &execution.outcome)?;
        ctx.expect("host calls made", made.load(Ordering::SeqCst), made.load(Ordering::SeqCst) == 1)
    })?;
    ctx.recovery()
}

/// Cancels as soon as the guest writes something.
#[derive(Debug)]
struct CancelOnWrite {
    token: CancelToken,
    armed: bool,
}

impl OutputSink for CancelOnWrite {
    fn write(&self, _: OutputStream, _: &[u8]) {
        if self.armed {
            self.token.cancel();
        }
    }
}

/// A loop must be stopped although it never asks.
fn cancel_while_running(ctx: &mut Context) -> Result<(), Failure> {
    cancel_a_loop(ctx, "count")
}

/// Code that runs before the entry is guest code like any other.
fn cancel_in_start_function(ctx: &mut Context) -> Result<(), Failure> {
    cancel_a_loop(ctx, "start")
}

/// Cancels the probe `verb`, which loops, once it wrote that it started.
fn cancel_a_loop(ctx: &mut Context, verb: &str) -> Result<(), Failure> {
    let policy = ctx.generous();
    let rounds = ctx.baseline(|ctx| rounds_lasting(ctx, LONG))?;
    let run = |ctx: &mut Context, armed: bool| {
        let token = CancelToken::new();
        let sink = Arc::new(CancelOnWrite { token: token.clone(), armed });
        let call = Call::new().input(rounds.to_le_bytes().to_vec()).cancel(token).sink(sink);
        ctx.call(verb, call, &policy, HostFunctions::new())
    };
    ctx.baseline(|ctx| {
        let execution = run(ctx, false)?;
        ctx.expect_completed("a loop that is not cancelled", &execution)
    })?;
    ctx.enforced(|ctx| {
        let execution = run(ctx, true)?;
        expect_cancelled(ctx, "a loop cancelled after it said that it started", &execution.outcome)
    })?;
    ctx.recovery()
}

/// How long what a guest waits for takes, where nobody ends the wait. Where somebody must, it never comes.
const WAIT: Duration = Duration::from_millis(50);
/// Longer than any check.
const NEVER: Duration = Duration::from_secs(3600);

/// A slow host function must not keep its guest from being cancelled.
fn cancel_in_host_call(ctx: &mut Context) -> Result<(), Failure> {
    let run = |ctx: &mut Context, armed: bool| {
        let token = CancelToken::new();
        let cancel = token.clone();
        let functions = HostFunctions::new().add("f", move |_| {
            if armed {
                cancel.cancel();
            }
            async move {
                tokio::time::sleep(if armed { NEVER } else { WAIT }).await;
                Ok(Bytes::new())
            }
        });
        let policy = granting(ctx, &functions);
        ended(ctx, "host", Call::new().input(host_input(1, "f")).cancel(token), &policy, functions)
    };
    ctx.baseline(|ctx| {
        let execution = run(ctx, false)?;
        ctx.expect_completed("a host call that is not cancelled", &execution)
    })?;
    ctx.enforced(|ctx| {
        let execution = run(ctx, true)?;
        expect_cancelled(ctx, "a host call cancelled while it ran", &execution.outcome)
    })?;
    ctx.recovery()
}

/// A guest that reads what never comes must be cancellable.
fn cancel_blocked_on_input(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let run = |ctx: &mut Context, armed: bool| {
        let token = CancelToken::new();
        let cancel = token.clone();
        let after = if armed { NEVER } else { WAIT };
        let input = ctx.late_input(after, b"late", move || {
            if armed {
                cancel.cancel();
            }
        });
        ended(ctx, "stdin", Call::new().cancel(token).input(input), &policy, HostFunctions::new())
    };
    ctx.baseline(|ctx| {
        let execution = run(ctx, false)?;
        ctx.expect_completed("input that comes late", &execution)?;
        ctx.expect("its text", String::from_utf8_lossy(&execution.output), &execution.output[..] == b"late")
    })?;
    ctx.enforced(|ctx| {
        let execution = run(ctx, true)?;
        expect_cancelled(ctx, "a call cancelled while it waited for input", &execution.outcome)
    })?;
    ctx.recovery()
}

/// A cancel that comes too late must not hit the next tenant of the instance.
fn cancel_stale(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let token = CancelToken::new();
    let mut instance = ctx.baseline(|ctx| {
        let mut instance = ctx.instance("echo", &policy, HostFunctions::new())?;
        let execution = ctx.call_again(&mut instance, Call::new().cancel(token.clone()))?;
        ctx.expect_completed("the first call", &execution)?;
        Ok(instance)
    })?;
    ctx.enforced(|ctx| {
        token.cancel();
        let execution = ctx.call_again(&mut instance, Call::new().input("next").cancel(CancelToken::new()))?;
        ctx.expect_completed("the next call, after the first one's token was cancelled", &execution)?;
        ctx.expect("its output", String::from_utf8_lossy(&execution.output), &execution.output[..] == b"next")
    })?;
    drop(instance);
    ctx.recovery()
}

/// Dropping is how callers in a hurry cancel; nothing of the call may stay.
fn drop_releases_host_call(ctx: &mut Context) -> Result<(), Failure> {
    struct Alive(Arc<AtomicUsize>);
    impl Drop for Alive {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let alive = Arc::new(AtomicUsize::new(0));
    let hangs = Arc::new(AtomicBool::new(false));
    let (counter, hanging) = (Arc::clone(&alive), Arc::clone(&hangs));
    let functions = HostFunctions::new().add("f", move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        let held = Alive(Arc::clone(&counter));
        let hangs = hanging.load(Ordering::SeqCst);
        async move {
            let _held = held;
            if hangs {
                std::future::pending::<()>().await;
            }
            Ok(Bytes::new())
        }
    });
    let policy = granting(ctx, &functions);
    let call = || Call::new().input(host_input(1, "f"));
    ctx.baseline(|ctx| {
        let execution = ctx.call("host", call(), &policy, functions.clone())?;
        ctx.expect_completed("a call that is not dropped", &execution)
    })?;
    ctx.enforced(|ctx| {
        hangs.store(true, Ordering::SeqCst);
        let mut instance = ctx.instance("host", &policy, functions.clone())?;
        {
            let mut running = pin!(instance.call(call()));
            let entered = ctx.block_on(poll_fn(|context| {
                let ended = running.as_mut().poll(context).is_ready();
                let entered = alive.load(Ordering::SeqCst) > 0;
                if ended || entered { Poll::Ready(entered) } else { Poll::Pending }
            }));
            ctx.expect("the host function runs", entered, entered)?;
        }
        let left = alive.load(Ordering::SeqCst);
        ctx.expect("host functions alive after the call was dropped", left, left == 0)?;
        match ctx.block_on(instance.call(call())) {
            Ok(execution) => ctx.expect("the instance's next call", &execution.outcome, false),
            Err(error) => ctx.expect("the instance's next call", &error, error.kind() == ErrorKind::Stale),
        }
    })?;
    ctx.recovery()
}

/// A guest that nobody waits for any more must not go on burning what others pay for.
fn drop_stops_a_loop(ctx: &mut Context) -> Result<(), Failure> {
    /// Well above what a host does that only waits.
    const BUSY: Duration = Duration::from_millis(20);
    /// What a thread of this check uses of a processor meanwhile. A guest that spins beside it gets as much as it, however
    /// busy the machine is.
    const BESIDE: Duration = Duration::from_millis(80);
    /// How long a guest may take to notice.
    const PROMPTLY: Duration = Duration::from_secs(1);
    /// Seconds of spinning, should nothing stop it.
    const ROUNDS: u64 = 5_000_000_000;
    let policy = ctx.generous();
    let mut instance = ctx.baseline(|ctx| ctx.instance("count", &policy, HostFunctions::new()))?;
    {
        let mut running = pin!(instance.call(Call::new().input(ROUNDS.to_le_bytes().to_vec())));
        let before = own_cpu_time();
        let spins = ctx.block_on(poll_fn(|context| {
            let ended = running.as_mut().poll(context).is_ready();
            // Looked at again and again, also when the guest has a thread of its own and wakes nobody.
            context.waker().wake_by_ref();
            let busy = own_cpu_time().saturating_sub(before) > BUSY;
            if ended || busy { Poll::Ready(busy && !ended) } else { Poll::Pending }
        }));
        ctx.baseline(|ctx| ctx.expect("a guest spins", spins, spins))?;
    }
    ctx.enforced(|ctx| {
        let begun = std::time::Instant::now();
        let used = loop {
            let before = own_cpu_time();
            let spinner = std::thread::spawn(|| while own_thread_cpu_time() < BESIDE {});
            spinner.join().map_err(|_| ctx.failure("the spinning thread panicked"))?;
            let used = own_cpu_time().saturating_sub(before).saturating_sub(BESIDE);
            if used < BUSY || begun.elapsed() > PROMPTLY {
                break used;
            }
        };
        let seen = format!("{used:?} beside a thread that used {BESIDE:?}");
        ctx.expect("CPU time used after the call was dropped", seen, used < BUSY)?;
        match ctx.block_on(instance.call(Call::new())) {
            Ok(execution) => ctx.expect("the instance's next call", &execution.outcome, false),
            Err(error) => ctx.expect("the instance's next call", &error, error.kind() == ErrorKind::Stale),
        }
    })?;
    drop(instance);
    ctx.recovery()
}

/// CPU time of this thread.
fn own_thread_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// After a trap the guest's own state may be half changed; nobody may build on it.
fn refuses_after_trap(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let mut instance = ctx.baseline(|ctx| {
        let mut instance = ctx.instance("trap", &policy, HostFunctions::new())?;
        for _ in 0..2 {
            let execution = ctx.call_again(&mut instance, Call::new().input(numbers(&[0])))?;
            ctx.expect_completed("a call without a trap", &execution)?;
        }
        Ok(instance)
    })?;
    ctx.enforced(|ctx| {
        let execution = ctx.call_again(&mut instance, Call::new().input(numbers(&[1])))?;
        ctx.expect("a trap", &execution.outcome, matches!(execution.outcome, Outcome::Trapped { .. }))?;
        match ctx.block_on(instance.call(Call::new().input(numbers(&[0])))) {
            Ok(execution) => ctx.expect("the next call", &execution.outcome, false),
            Err(error) => ctx.expect("the next call", &error, error.kind() == ErrorKind::Stale),
        }
    })?;
    drop(instance);
    ctx.recovery()
}

/// A guest must be able to tell an error from an answer.
fn host_error(ctx: &mut Context) -> Result<(), Failure> {
    let nonce = ctx.nonce();
    let (answer, error) = (nonce.clone(), nonce.clone());
    let functions = HostFunctions::new()
        .add("works", move |call| {
            let answer = [answer.as_bytes(), &call.input].concat();
            async move { Ok(answer.into()) }
        })
        .add("fails", move |_| {
            let error = error.clone();
            async move { Err(error.into()) }
        });
    let policy = granting(ctx, &functions);
    ctx.baseline(|ctx| {
        let call = Call::new().input(host_input(1, "works"));
        let execution = ctx.call("host", call, &policy, functions.clone())?;
        ctx.expect_completed("a host function that works", &execution)?;
        let expected = format!("{nonce}argument");
        ctx.expect("its result", String::from_utf8_lossy(&execution.output), execution.output == expected.as_bytes())
    })?;
    ctx.enforced(|ctx| {
        let execution = ctx.call("host", Call::new().input(host_input(1, "fails")), &policy, functions.clone())?;
        ctx.expect("a host function that fails", &execution.outcome, execution.outcome == Outcome::from_exit_code(1))?;
        ctx.expect("its error", String::from_utf8_lossy(&execution.error), execution.error == nonce.as_bytes())
    })?;
    ctx.recovery()
}

/// A defect of the embedder must neither take the host down nor pass for an answer.
fn host_panic(ctx: &mut Context) -> Result<(), Failure> {
    let functions = HostFunctions::new()
        .add("works", |_| async { Ok(Bytes::new()) })
        // Without a message on the terminal, and yet a panic.
        .add("panics", |_| async { std::panic::resume_unwind(Box::new("told to")) });
    let policy = granting(ctx, &functions);
    ctx.baseline(|ctx| {
        let call = Call::new().input(host_input(1, "works"));
        let execution = ctx.call("host", call, &policy, functions.clone())?;
        ctx.expect_completed("a host function that works", &execution)
    })?;
    ctx.enforced(|ctx| {
        let call = Call::new().input(host_input(1, "panics"));
        let execution = ctx.call("host", call, &policy, functions.clone())?;
        let holds = matches!(&execution.outcome, Outcome::Crashed { message } if message.contains("told to"));
        ctx.expect("a host function that panics", &execution.outcome, holds)
    })?;
    ctx.recovery()
}

/// Offered by the host is not granted by the policy.
fn host_not_granted(ctx: &mut Context) -> Result<(), Failure> {
    let made = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&made);
    let name = format!("f{}", ctx.nonce());
    let functions = HostFunctions::new().add(&name, move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        async { Ok(Bytes::new()) }
    });
    let policy = granting(ctx, &functions);
    ctx.baseline(|ctx| {
        let execution = ctx.call("host", Call::new().input(host_input(1, &name)), &policy, functions.clone())?;
        ctx.expect_completed("a granted host function", &execution)?;
        ctx.expect("calls that reached it", made.load(Ordering::SeqCst), made.load(Ordering::SeqCst) == 1)
    })?;
    ctx.enforced(|ctx| {
        let policy = ctx.generous();
        let execution = ctx.call("host", Call::new().input(host_input(1, &name)), &policy, functions.clone())?;
        let holds = matches!(&execution.outcome, Outcome::Denied { grant } if grant.contains(&name));
        ctx.expect("a host function that is not granted", &execution.outcome, holds)?;
        ctx.expect("calls that reached it", made.load(Ordering::SeqCst), made.load(Ordering::SeqCst) == 1)
    })?;
    ctx.recovery()
}

/// A policy that asks for one thing.
fn asking(ctx: &Context, kind: GrantKind) -> Policy {
    let mut policy = ctx.generous();
    // What is asked of clocks must not get in the way of the other kinds.
    if !ctx.capabilities().grants.contains(&GrantKind::ClocksCoarse) {
        policy.grants.clocks = Clocks::Fine;
    }
    let grants = &mut policy.grants;
    match kind {
        GrantKind::DirectoriesReadOnly => grants.directories.push(DirectoryGrant::read_only(ctx.scratch(), "/d")),
        GrantKind::DirectoriesReadWrite => grants.directories.push(DirectoryGrant::read_write(ctx.scratch(), "/d")),
        GrantKind::Environment => drop(grants.environment.insert("A".into(), "1".into())),
        GrantKind::ClocksCoarse => grants.clocks = Clocks::default(),
        GrantKind::ClocksFine => grants.clocks = Clocks::Fine,
        GrantKind::RandomnessSeeded => grants.randomness = Randomness::Seeded(1),
        GrantKind::HostFunctions => drop(grants.host_functions.insert("f".into())),
        GrantKind::Network => grants.network = true,
        GrantKind::Interpreter => grants.interpreter = Some("python3".into()),
        GrantKind::DirectoryOwner => {
            grants.directories.push(DirectoryGrant::read_only(ctx.scratch(), "/d").owned_by(ctx.scratch_owner()));
        }
        GrantKind::ExecutableMemory => grants.executable_memory = true,
        GrantKind::Scratch => (grants.scratch, policy.quota.disk_bytes) = (Some("/s".into()), Some(1 << 20)),
        _ => grants.child_processes = true,
    }
    policy
}

/// Nothing may be silently weaker: what is not declared, or above a declared bound, is refused.
fn undeclared_is_refused(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let capabilities = ctx.capabilities().clone();
    ctx.baseline(|ctx| {
        let execution = ctx.run("echo", "", &policy)?;
        ctx.expect_completed("a policy the backend can enforce", &execution)
    })?;
    ctx.enforced(|ctx| {
        let mut asked = Vec::new();
        for kind in GrantKind::ALL.iter().copied().filter(|kind| !capabilities.grants.contains(kind)) {
            asked.push((format!("grant {kind}"), asking(ctx, kind)));
        }
        let mut bounds = policy.clone();
        for resource in Resource::ALL.iter().copied() {
            if capabilities.enforcement(resource) == Enforcement::Unsupported {
                let quota = &mut bounds.quota;
                match resource {
                    Resource::WallTime => quota.wall_time = Some(WAIT),
                    Resource::CpuTime => quota.cpu_time = Some(WAIT),
                    Resource::Fuel => quota.fuel = Some(1 << 30),
                    Resource::Memory => quota.memory_bytes = Some(1 << 24),
                    Resource::Stack => quota.stack_bytes = Some(capabilities.stack_bytes_min),
                    Resource::Output => quota.output_bytes = Some(1 << 20),
                    Resource::Log => quota.log_bytes = Some(1 << 20),
                    Resource::OpenFiles => quota.open_files = Some(8),
                    Resource::Disk => quota.disk_bytes = Some(1 << 20),
                    Resource::HostCalls => quota.host_calls = Some(8),
                    Resource::Processes => quota.processes = Some(1),
                    _ => quota.threads = Some(1),
                }
                asked.push((format!("quota {resource}"), std::mem::replace(&mut bounds, policy.clone())));
            }
        }
        bounds.quota.memory_bytes = capabilities.memory_bytes_max.checked_add(1);
        asked.push(("memory above the bound".to_owned(), std::mem::replace(&mut bounds, policy.clone())));
        bounds.quota.stack_bytes = capabilities.stack_bytes_max.checked_add(1);
        asked.push(("stack above the bound".to_owned(), bounds));
        for (subject, policy) in asked {
            ctx.expect_refused(&subject, "echo", &policy, ErrorKind::Unsupported)?;
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// Capacity is planned by this number.
fn memory_peak(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let peak_of = |ctx: &mut Context, pages: u32| {
        let execution = ctx.run("grow", numbers(&[pages]), &policy)?;
        ctx.expect_completed("growing", &execution)?;
        Ok(execution.usage.memory_peak_bytes)
    };
    let small = ctx.baseline(|ctx| peak_of(ctx, 1))?;
    ctx.enforced(|ctx| {
        let peak = peak_of(ctx, 63)?;
        // One page to begin with, and those it grew by, were touched.
        ctx.expect("reported peak of 64 touched pages", peak, peak >= 64 << 16)?;
        let more = peak.saturating_sub(small);
        ctx.expect("more than for 2 touched pages", more, more >= 62 << 16)?;
        ctx.expect("less than twice the truth", peak, peak < 128 << 16)
    })?;
    ctx.recovery()
}

/// Fuel is the one quota that means the same on every machine, if it is counted the same each time.
fn fuel_repeats(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let fuel_of = |ctx: &mut Context, rounds: u64| {
        let execution = ctx.run("count", rounds.to_le_bytes().to_vec(), &policy)?;
        ctx.expect_completed("counting", &execution)?;
        Ok(execution.usage.fuel)
    };
    let first = ctx.baseline(|ctx| {
        let fuel = fuel_of(ctx, 1000)?;
        ctx.expect("fuel of 1000 rounds", fuel, fuel >= 1000)?;
        Ok(fuel)
    })?;
    ctx.enforced(|ctx| {
        for _ in 0..3 {
            let again = fuel_of(ctx, 1000)?;
            ctx.expect("fuel of the same again", format!("{again}, first {first}"), again == first)?;
        }
        let longer = fuel_of(ctx, 2000)?;
        ctx.expect("fuel of 2000 rounds", longer, longer >= first + 1000)
    })?;
    ctx.recovery()
}

/// Tenants are billed by this number: it must agree with the kernel's.
fn cpu_time(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let rounds = ctx.baseline(|ctx| rounds_lasting(ctx, LONG))?;
    ctx.enforced(|ctx| {
        let prepared = ctx.prepare("count", &policy, HostFunctions::new())?;
        let (execution, kernel) = measured(ctx, &*prepared, rounds.to_le_bytes().to_vec())?;
        ctx.expect_completed("a long loop", &execution)?;
        let reported = execution.usage.cpu_time;
        let wall = execution.usage.wall_time;
        ctx.expect("CPU time within wall time", format!("{reported:?} of {wall:?}"), reported <= wall.mul_f64(1.2))?;
        // The kernel brings its figure up to date once a tick, and there are two of them.
        let slack = Duration::from_millis(10);
        let near = reported + slack >= kernel.mul_f64(0.8) && reported <= kernel.mul_f64(1.2) + slack;
        ctx.expect("CPU time near the kernel's", format!("{reported:?}, kernel {kernel:?}"), near)
    })?;
    ctx.recovery()
}

/// Threads of this process.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// What one start and stop leaves behind, a thousand show.
fn thousand_instances(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let prepared = ctx.prepare("traces", &policy, HostFunctions::new())?;
    let cycle = |ctx: &mut Context, times: usize| {
        for _ in 0..times {
            let nonce = ctx.nonce();
            let execution = ctx
                .block_on(palisade_core::PreparedExt::run(&*prepared, Call::new().input(nonce)))
                .map_err(|error| ctx.failure(error.to_string()))?;
            if !execution.outcome.is_success() || number_at(&execution.output, 0) != 0 {
                return ctx.expect("one of many instances", &execution.outcome, false);
            }
        }
        Ok(())
    };
    let before = ctx.baseline(|ctx| {
        // Pools fill during the first few.
        cycle(ctx, 20)?;
        Ok(threads())
    })?;
    ctx.enforced(|ctx| {
        cycle(ctx, 1000)?;
        let after = threads();
        ctx.expect("threads before and after", format!("{before}, {after}"), after <= before)
    })?;
    drop(prepared);
    ctx.recovery()
}

/// Policies are admitted by what a backend declares; that must not change with what it went through.
fn capabilities_constant(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let declared = ctx.baseline(|ctx| Ok(ctx.capabilities().clone()))?;
    ctx.enforced(|ctx| {
        for trap in [0, 1] {
            ctx.run("trap", numbers(&[trap]), &policy)?;
            let same = *ctx.capabilities() == declared;
            ctx.expect("declared as before", same, same)?;
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// What reads arguments as C does sees another one than the host wrote.
fn nul_in_argument(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    ctx.baseline(|ctx| {
        let execution = ctx.call("echo", Call::new().arguments(["whole"]), &policy, HostFunctions::new())?;
        ctx.expect_completed("an argument without a NUL byte", &execution)
    })?;
    ctx.enforced(|ctx| {
        let mut instance = ctx.instance("echo", &policy, HostFunctions::new())?;
        for argument in ["cut\0off", "\0", "end\0"] {
            match ctx.block_on(instance.call(Call::new().arguments([argument]))) {
                Ok(execution) => ctx.expect("an argument with a NUL byte", &execution.outcome, false)?,
                Err(error) => {
                    ctx.expect("an argument with a NUL byte", &error, error.kind() == ErrorKind::InvalidInput)?;
                }
            }
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// What compilers put into `_initialize` is what the rest of a module relies on.
fn initialize_first(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let mut instance = ctx.baseline(|ctx| ctx.instance("reactor", &policy, HostFunctions::new()))?;
    ctx.enforced(|ctx| {
        for call in ["the first call", "the next one"] {
            let execution = ctx.call_again(&mut instance, Call::new().entry("run"))?;
            ctx.expect_completed(call, &execution)?;
            let times = number_at(&execution.output, 0);
            ctx.expect("times that `_initialize` ran", times, times == 1)?;
        }
        Ok(())
    })?;
    drop(instance);
    ctx.recovery()
}

/// Cookies of directories are numbers a guest may make up.
fn directory_cookie(ctx: &mut Context) -> Result<(), Failure> {
    let folder = ctx.make_directory("files")?;
    let name = ctx.nonce();
    std::fs::write(folder.join(&name), "").map_err(|error| ctx.failure(error.to_string()))?;
    let mut policy = ctx.generous();
    policy.grants.directories.push(DirectoryGrant::read_only(&folder, "/files"));
    let list = |ctx: &mut Context, cookie: u64| {
        let call = Call::new().input(cookie.to_le_bytes().to_vec());
        let execution = ended(ctx, "list", call, &policy, HostFunctions::new())?;
        ctx.expect_completed("listing a directory", &execution)?;
        Ok((number_at(&execution.output, 0), super::contains(&execution.output, &name)))
    };
    ctx.baseline(|ctx| {
        let (errno, there) = list(ctx, 0)?;
        ctx.expect("from the beginning", format!("errno {errno}, its file: {there}"), errno == 0 && there)
    })?;
    ctx.enforced(|ctx| {
        for cookie in [u64::MAX, u64::MAX - 1, 1 << 63, u64::from(u32::MAX)] {
            let (errno, there) = list(ctx, cookie)?;
            ctx.expect("from beyond the end", format!("errno {errno}, its file: {there}"), !there)?;
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// Deepest nesting of blocks that loads.
const NESTING: usize = 1000;

/// A module whose one function nests `depth` blocks.
fn nested(depth: usize) -> Vec<u8> {
    let number = |mut value: usize| {
        let mut bytes = Vec::new();
        while value > 127 {
            bytes.push((value & 127) as u8 | 128);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    };
    let section = |id: u8, body: &[u8]| [&[id][..], &number(body.len()), body].concat();
    // No locals, blocks without a type, their ends, and the end of the function.
    let code = [&[0][..], &[0x02, 0x40].repeat(depth), &[0x0b].repeat(depth + 1)].concat();
    [
        &b"\0asm\x01\0\0\0"[..],
        &section(1, &[1, 0x60, 0, 0]),
        &section(3, &[1, 0]),
        &section(5, &[1, 0, 1]),
        &section(7, b"\x02\x06_start\0\0\x06memory\x02\0"),
        &section(10, &[&[1][..], &number(code.len()), &code].concat()),
    ]
    .concat()
}

/// Compilers and validators that recurse have a stack that ends.
fn nesting(ctx: &mut Context) -> Result<(), Failure> {
    let load = |ctx: &Context, depth: usize| {
        let artifact = Artifact::new(ctx.artifact("echo").kind(), nested(depth)).named("echo");
        ctx.block_on(ctx.sandbox().load(artifact)).map(drop)
    };
    ctx.baseline(|ctx| {
        let loaded = load(ctx, NESTING);
        let seen = loaded.as_ref().err().map_or("loaded".to_owned(), ToString::to_string);
        ctx.expect("blocks as deep as they may be", seen, loaded.is_ok())
    })?;
    ctx.enforced(|ctx| {
        for depth in [NESTING + 1, 100_000] {
            match load(ctx, depth) {
                Ok(()) => ctx.expect("deeper blocks", format!("{depth} loaded"), false)?,
                Err(error) => ctx.expect("deeper blocks", &error, error.kind() == ErrorKind::InvalidArtifact)?,
            }
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// Requires that an instance refuses further calls after `bad`, which must end as `expected` says.
fn refuses_after(
    ctx: &mut Context,
    mut instance: Box<dyn palisade_core::Instance>,
    good: impl Fn() -> Call,
    bad: Call,
    expected: fn(&Outcome) -> bool,
) -> Result<(), Failure> {
    ctx.baseline(|ctx| {
        for _ in 0..2 {
            let execution = ctx.call_again(&mut instance, good())?;
            ctx.expect_completed("an ordinary call", &execution)?;
        }
        Ok(())
    })?;
    ctx.enforced(|ctx| {
        let made = ctx.block_on(async { tokio::time::timeout(super::PATIENCE, instance.call(bad)).await });
        let execution = made
            .map_err(|_| ctx.failure("a call that something must end: nothing did"))?
            .map_err(|error| ctx.failure(format!("a call that something must end: {error}")))?;
        ctx.expect("an abnormal end", &execution.outcome, expected(&execution.outcome))?;
        for _ in 0..2 {
            match ctx.block_on(instance.call(good())) {
                Ok(execution) => ctx.expect("the next call", &execution.outcome, false)?,
                Err(error) => ctx.expect("the next call", &error, error.kind() == ErrorKind::Stale)?,
            }
        }
        Ok(())
    })?;
    drop(instance);
    ctx.recovery()
}

/// What a quota ended was stopped anywhere.
fn refuses_after_exhaustion(ctx: &mut Context) -> Result<(), Failure> {
    let mut policy = ctx.generous();
    policy.quota.output_bytes = Some(100);
    let instance = ctx.instance("write", &policy, HostFunctions::new())?;
    let write = |bytes: u32| Call::new().input(numbers(&[0, bytes, 1]));
    refuses_after(ctx, instance, || write(10), write(101), |outcome| matches!(outcome, Outcome::QuotaExceeded { .. }))
}

/// What somebody cancelled was stopped anywhere.
fn refuses_after_cancel(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let instance = ctx.instance("stdin", &policy, HostFunctions::new())?;
    let token = CancelToken::new();
    let cancel = token.clone();
    let bad = Call::new().input(ctx.late_input(NEVER, b"late", move || cancel.cancel())).cancel(token);
    refuses_after(ctx, instance, Call::new, bad, |outcome| matches!(outcome, Outcome::Cancelled { .. }))
}

/// A guest waits for an answer that a function which panicked never gave.
fn refuses_after_panic(ctx: &mut Context) -> Result<(), Failure> {
    let functions = HostFunctions::new()
        .add("works", |_| async { Ok(Bytes::new()) })
        .add("panics", |_| async { std::panic::resume_unwind(Box::new("told to")) });
    let policy = granting(ctx, &functions);
    let instance = ctx.instance("host", &policy, functions)?;
    let call = |name: &str| Call::new().input(host_input(1, name));
    refuses_after(ctx, instance, || call("works"), call("panics"), |outcome| matches!(outcome, Outcome::Crashed { .. }))
}

/// A guest that was denied something stands where it asked for it.
fn refuses_after_denial(ctx: &mut Context) -> Result<(), Failure> {
    let functions = HostFunctions::new().add("works", |_| async { Ok(Bytes::new()) });
    let policy = granting(ctx, &functions);
    let instance = ctx.instance("host", &policy, functions)?;
    let call = |name: &str| Call::new().input(host_input(1, name));
    refuses_after(ctx, instance, || call("works"), call("secret"), |outcome| matches!(outcome, Outcome::Denied { .. }))
}

/// A name that is misspelt must be noticed before anything runs.
fn host_unknown(ctx: &mut Context) -> Result<(), Failure> {
    let functions = HostFunctions::new().add("offered", |_| async { Ok(Bytes::new()) });
    let mut policy = granting(ctx, &functions);
    ctx.baseline(|ctx| ctx.prepare("host", &policy, functions.clone()).map(drop))?;
    ctx.enforced(|ctx| {
        policy.grants.host_functions.insert(format!("f{}", ctx.nonce()));
        match ctx.try_prepare("host", &policy, functions.clone()) {
            Ok(_) => ctx.expect("a grant of what the host does not offer", "accepted", false),
            Err(error) => {
                ctx.expect("a grant of what the host does not offer", &error, error.kind() == ErrorKind::NotFound)
            }
        }
    })?;
    ctx.recovery()
}

/// One instance may serve many callers.
fn host_last_result(ctx: &mut Context) -> Result<(), Failure> {
    let nonce = ctx.nonce();
    let answer = nonce.clone();
    let functions = HostFunctions::new().add("f", move |_| {
        let answer = answer.clone();
        async move { Ok(answer.into()) }
    });
    let policy = granting(ctx, &functions);
    let mut instance = ctx.baseline(|ctx| {
        let mut instance = ctx.instance("host", &policy, functions)?;
        let execution = ctx.call_again(&mut instance, Call::new().input(host_input(1, "f")))?;
        let own = super::contains(&execution.output, &nonce);
        ctx.expect("the result, in its own call", own, own)?;
        Ok(instance)
    })?;
    ctx.enforced(|ctx| {
        let execution = ctx.call_again(&mut instance, Call::new().input(host_input(0, "f")))?;
        ctx.expect_completed("a call that calls nothing", &execution)?;
        let len = execution.output.len();
        ctx.expect("bytes of the call before", len, len == 0)
    })?;
    drop(instance);
    ctx.recovery()
}

/// Requires that the host of a guest that waits waits as well.
fn expect_idle_guest(
    ctx: &mut Context,
    verb: &str,
    mut policy: Policy,
    functions: HostFunctions,
    short: Call,
    long: Call,
) -> Result<(), Failure> {
    let prepared = ctx.baseline(|ctx| {
        policy.quota.wall_time = Some(Duration::from_secs(10));
        let execution = ctx.call(verb, short, &policy, functions.clone())?;
        ctx.expect_completed("a short wait", &execution)?;
        policy.quota.wall_time = Some(super::IDLE);
        ctx.prepare(verb, &policy, functions)
    })?;
    ctx.enforced(|ctx| expect_idle(ctx, &*prepared, long))?;
    drop(prepared);
    ctx.recovery()
}

/// Thousands of guests sleep.
fn wait_sleep(ctx: &mut Context) -> Result<(), Failure> {
    let sleep = |time: Duration| Call::new().input((time.as_nanos() as u64).to_le_bytes().to_vec());
    expect_idle_guest(ctx, "sleep", ctx.generous(), HostFunctions::new(), sleep(Duration::from_millis(1)), sleep(NEVER))
}

/// Thousands of guests wait for somebody to write.
fn wait_input(ctx: &mut Context) -> Result<(), Failure> {
    let input = |ctx: &Context, after: Duration| Call::new().input(ctx.late_input(after, b"late", || {}));
    let (short, long) = (input(ctx, Duration::from_millis(1)), input(ctx, NEVER));
    expect_idle_guest(ctx, "stdin", ctx.generous(), HostFunctions::new(), short, long)
}

/// Thousands of guests wait for a service that their host asks for them.
fn wait_host_call(ctx: &mut Context) -> Result<(), Failure> {
    let functions = HostFunctions::new().add("works", |_| async { Ok(Bytes::new()) }).add("never", |_| async {
        std::future::pending::<()>().await;
        Ok(Bytes::new())
    });
    let policy = granting(ctx, &functions);
    let call = |name: &str| Call::new().input(host_input(1, name));
    expect_idle_guest(ctx, "host", policy, functions, call("works"), call("never"))
}

/// Requires that the usage of a call, as `figure` picks it, is `expected`; another call shows that it differs.
fn expect_usage(
    ctx: &mut Context,
    calls: [(&str, Vec<u8>, u64); 2],
    policy: &Policy,
    functions: HostFunctions,
    figure: fn(&palisade_core::Usage) -> u64,
) -> Result<(), Failure> {
    ctx.enforced(|ctx| {
        for (verb, input, expected) in calls {
            let execution = ctx.call(verb, Call::new().input(input), policy, functions.clone())?;
            ctx.expect_completed("a call", &execution)?;
            let told = figure(&execution.usage);
            ctx.expect("usage told", format!("{told}, in truth {expected}"), told == expected)?;
        }
        Ok(())
    })?;
    ctx.recovery()
}

/// Input is what callers pay for first.
fn usage_input(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let calls = [("echo", vec![b'x'; 1000], 1000), ("echo", Vec::new(), 0)];
    expect_usage(ctx, calls, &policy, HostFunctions::new(), |usage| usage.input_bytes)
}

/// Output is stored and sent.
fn usage_output(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let calls = [("write", numbers(&[0, 101, 2]), 202), ("write", numbers(&[1, 101, 2]), 0)];
    expect_usage(ctx, calls, &policy, HostFunctions::new(), |usage| usage.output_bytes)
}

/// Error text ends in logs.
fn usage_log(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let calls = [("write", numbers(&[1, 101, 2]), 202), ("write", numbers(&[0, 101, 2]), 0)];
    expect_usage(ctx, calls, &policy, HostFunctions::new(), |usage| usage.log_bytes)
}

/// Descriptors are what hosts run out of first. What a backend opens by itself may count too.
fn usage_open_files(ctx: &mut Context) -> Result<(), Failure> {
    let folder = ctx.make_directory("files")?;
    std::fs::write(folder.join("a"), "a").map_err(|error| ctx.failure(error.to_string()))?;
    let mut policy = ctx.generous();
    policy.grants.directories.push(DirectoryGrant::read_only(&folder, "/files"));
    let opens = |ctx: &mut Context, times: u32| {
        let execution = ctx.run("open", [&numbers(&[times])[..], b"a"].concat(), &policy)?;
        let opened = number_at(&execution.output, 0);
        ctx.expect("files opened", opened, opened == times)?;
        Ok(execution.usage.open_files_peak)
    };
    let few = ctx.baseline(|ctx| opens(ctx, 2))?;
    ctx.enforced(|ctx| {
        let many = opens(ctx, 8)?;
        let holds = few >= 2 && many == few + 6;
        ctx.expect("most files open", format!("{few} with 2 opened, {many} with 8"), holds)
    })?;
    ctx.recovery()
}

/// Disks are billed by the byte.
fn usage_disk(ctx: &mut Context) -> Result<(), Failure> {
    let folder = ctx.make_directory("files")?;
    std::fs::write(folder.join("a"), "").map_err(|error| ctx.failure(error.to_string()))?;
    let mut policy = ctx.generous();
    policy.grants.directories.push(DirectoryGrant::read_write(&folder, "/files"));
    let write = |len: usize| super::isolation::write_request(3, "a", &vec![b'x'; len]);
    let calls = [("file", write(1000), 1000), ("file", write(0), 0)];
    expect_usage(ctx, calls, &policy, HostFunctions::new(), |usage| usage.disk_bytes)
}

/// Host calls cost the host.
fn usage_host_calls(ctx: &mut Context) -> Result<(), Failure> {
    let functions = HostFunctions::new().add("f", |_| async { Ok(Bytes::new()) });
    let policy = granting(ctx, &functions);
    let calls = [("host", host_input(7, "f"), 7), ("host", host_input(0, "f"), 0)];
    expect_usage(ctx, calls, &policy, functions, |usage| usage.host_calls)
}

/// What its start function does shows when it ran.
fn load_runs_nothing(ctx: &mut Context) -> Result<(), Failure> {
    runs_nothing(ctx, |ctx| ctx.block_on(ctx.sandbox().load(ctx.artifact("bomb"))).map(drop))
}

/// A pool of instances that are made ahead would run code for nobody.
fn instance_runs_nothing(ctx: &mut Context) -> Result<(), Failure> {
    runs_nothing(ctx, |ctx| {
        let prepared = ctx.try_prepare("bomb", &ctx.generous(), HostFunctions::new())?;
        ctx.block_on(prepared.instantiate()).map(drop)
    })
}

/// Requires that `before`, which comes before a call of a module that traps at its start, does not fail.
fn runs_nothing(ctx: &mut Context, before: fn(&Context) -> palisade_core::Result<()>) -> Result<(), Failure> {
    let policy = ctx.generous();
    ctx.baseline(|ctx| {
        let execution = ctx.run("start", 1u64.to_le_bytes().to_vec(), &policy)?;
        ctx.expect_completed("a module with a start function", &execution)
    })?;
    ctx.enforced(|ctx| {
        let done = before(ctx);
        let seen = done.as_ref().err().map_or("done".to_owned(), ToString::to_string);
        ctx.expect("before a call", seen, done.is_ok())?;
        let execution = ctx.run("bomb", "", &policy)?;
        let trapped = matches!(execution.outcome, Outcome::Trapped { trap: TrapKind::Unreachable, .. });
        ctx.expect("its call", &execution.outcome, trapped)
    })?;
    ctx.recovery()
}

/// Whoever loads a plugin frees its bytes.
fn load_independent(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let echo = |ctx: &mut Context, artifact: Artifact, kept: Option<Artifact>| {
        let module = ctx.block_on(ctx.sandbox().load(artifact));
        let made = module.and_then(|module| module.prepare(policy.clone(), HostFunctions::new()));
        let prepared = made.map_err(|error| ctx.failure(error.to_string()))?;
        let call = Call::new().input("text");
        let made = ctx.block_on(palisade_core::PreparedExt::run(&*prepared, call));
        let execution = made.map_err(|error| ctx.failure(error.to_string()))?;
        drop(kept);
        ctx.expect_completed("echo", &execution)?;
        ctx.expect("its output", execution.output.len(), execution.output == "text".as_bytes())
    };
    ctx.baseline(|ctx| {
        let artifact = ctx.artifact("echo");
        echo(ctx, artifact.clone(), Some(artifact))
    })?;
    ctx.enforced(|ctx| {
        let artifact = ctx.artifact("echo");
        echo(ctx, artifact, None)
    })?;
    ctx.recovery()
}

/// Keeps what it is given.
#[derive(Debug, Default)]
struct Keeping(std::sync::Mutex<Vec<u8>>);

impl OutputSink for Keeping {
    fn write(&self, _: OutputStream, bytes: &[u8]) {
        if let Ok(mut kept) = self.0.lock() {
            kept.extend_from_slice(bytes);
        }
    }
}

/// Input in pieces that are there at once.
struct Pieces(std::vec::IntoIter<Bytes>);

impl futures_core::Stream for Pieces {
    type Item = std::io::Result<Bytes>;

    fn poll_next(mut self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.next().map(Ok))
    }
}

/// Whoever forwards output as it comes has no way to put it right afterwards.
fn sink_order(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    let pieces: Vec<Bytes> = (0..8).map(|_| ctx.nonce().into()).collect();
    let whole = pieces.concat();
    let input = || palisade_core::Input::Stream(Box::pin(Pieces(pieces.clone().into_iter())));
    ctx.baseline(|ctx| {
        let execution = ctx.run("stdin", input(), &policy)?;
        ctx.expect_completed("copying", &execution)?;
        ctx.expect("without a sink", execution.output.len(), execution.output == whole)
    })?;
    ctx.enforced(|ctx| {
        let sink = Arc::new(Keeping::default());
        let call = Call::new().input(input()).sink(Arc::clone(&sink) as Arc<dyn OutputSink>);
        let execution = ctx.call("stdin", call, &policy, HostFunctions::new())?;
        ctx.expect_completed("copying to a sink", &execution)?;
        let kept = sink.0.lock().map(|kept| kept.clone()).unwrap_or_default();
        let seen = format!("{} of {} bytes", kept.len(), whole.len());
        ctx.expect("what the sink got, in this order", seen, kept == whole)
    })?;
    ctx.recovery()
}
