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

use super::{must, number_at, numbers};
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
        id: "core.lifecycle.thousand-instances",
        requires: &["core.lifecycle.resource-cleanup-on-termination"],
        needs: REACTOR,
        control: "leaks-files",
        run: thousand_instances,
    },
];

/// Rounds of a loop that last well above the time bounds of the checks, and yet end.
const LONG: u64 = 300_000_000;

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
    let run = |ctx: &mut Context, armed: bool| {
        let token = CancelToken::new();
        let sink = Arc::new(CancelOnWrite { token: token.clone(), armed });
        let call = Call::new().input(LONG.to_le_bytes().to_vec()).cancel(token).sink(sink);
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

/// How long what a guest waits for takes, in checks that end the wait much earlier.
const WAIT: Duration = Duration::from_millis(50);

/// A slow host function must not keep its guest from being cancelled.
fn cancel_in_host_call(ctx: &mut Context) -> Result<(), Failure> {
    let run = |ctx: &mut Context, armed: bool| {
        let token = CancelToken::new();
        let cancel = token.clone();
        let functions = HostFunctions::new().add("f", move |_| {
            if armed {
                cancel.cancel();
            }
            async {
                tokio::time::sleep(WAIT).await;
                Ok(Bytes::new())
            }
        });
        let policy = granting(ctx, &functions);
        ctx.call("host", Call::new().input(host_input(1, "f")).cancel(token), &policy, functions)
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
        let input = ctx.late_input(WAIT, b"late", move || {
            if armed {
                cancel.cancel();
            }
        });
        let mut call = Call::new().cancel(token);
        call.input = input;
        ctx.call("stdin", call, &policy, HostFunctions::new())
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
    /// In which a busy guest uses twice as much, even beside another busy process on one processor.
    const WINDOW: Duration = Duration::from_millis(100);
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
            ctx.block_on(async { tokio::time::sleep(WINDOW).await });
            let used = own_cpu_time().saturating_sub(before);
            if used < BUSY || begun.elapsed() > PROMPTLY {
                break used;
            }
        };
        ctx.expect("CPU time used after the call was dropped", format!("{used:?} in {WINDOW:?}"), used < BUSY)?;
        match ctx.block_on(instance.call(Call::new())) {
            Ok(execution) => ctx.expect("the instance's next call", &execution.outcome, false),
            Err(error) => ctx.expect("the instance's next call", &error, error.kind() == ErrorKind::Stale),
        }
    })?;
    drop(instance);
    ctx.recovery()
}

/// CPU time of this process, all its threads together.
fn own_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
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
        for kind in GrantKind::ALL.into_iter().filter(|kind| !capabilities.grants.contains(kind)) {
            asked.push((format!("grant {kind}"), asking(ctx, kind)));
        }
        let mut bounds = policy.clone();
        for resource in Resource::ALL {
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

/// Time all threads of this process had on a CPU, from the kernel; `None` where it does not say.
fn kernel_cpu_time() -> Option<Duration> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let mut nanos = 0;
    for task in tasks.flatten() {
        // A thread may end while we look.
        let Ok(text) = std::fs::read_to_string(task.path().join("schedstat")) else { continue };
        nanos += text.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    (nanos > 0).then(|| Duration::from_nanos(nanos))
}

/// Tenants are billed by this number: it must agree with the kernel's.
fn cpu_time(ctx: &mut Context) -> Result<(), Failure> {
    let policy = ctx.generous();
    ctx.baseline(|ctx| {
        let execution = ctx.run("count", 1u64.to_le_bytes().to_vec(), &policy)?;
        ctx.expect_completed("one round", &execution)
    })?;
    ctx.enforced(|ctx| {
        let mut instance = ctx.instance("count", &policy, HostFunctions::new())?;
        let before = kernel_cpu_time();
        let execution = ctx.call_again(&mut instance, Call::new().input(LONG.to_le_bytes().to_vec()))?;
        let after = kernel_cpu_time();
        ctx.expect_completed("a long loop", &execution)?;
        let reported = execution.usage.cpu_time;
        let wall = execution.usage.wall_time;
        ctx.expect("CPU time within wall time", format!("{reported:?} of {wall:?}"), reported <= wall.mul_f64(1.2))?;
        let kernel = before.zip(after).map_or(wall, |(before, after)| after.saturating_sub(before));
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
