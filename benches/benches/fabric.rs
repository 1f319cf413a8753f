//! The fabric as its users see it: submit to outcome, in memory and durable, by a real engine with a fresh instance for
//! each task; many agents that do nothing; and coming back after a restart.
//!
//! `cargo bench -p palisade-benches --bench fabric`, or only a part: `... --bench fabric -- memory`, of `memory`, `tasks`,
//! `durable`, `agents` and `recovery`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade::{
    ArtifactHash, Call, Completion, Execution, HostFunctions, LeaseRequest, Outcome, PreparedExt, Scheduler, Task,
    TaskState, Tenant, Usage, WorkerId,
};
use palisade_benches::fabric::Fabric;
use palisade_benches::guests::{Backend, Guest};
use palisade_benches::resident::{cpu_time, held};
use palisade_benches::verdict::{Table, Target};
use palisade_fabric::{Journal, JournalEntry, LocalScheduler, SchedulerOptions, SqliteJournal, Status};

const IN_FLIGHT: usize = 256;
const MEMORY_TASKS: usize = 400_000;
const DURABLE_TASKS: usize = 60_000;
const ROUNDS: usize = 5;
const KEPT: u64 = 100_000;
const AGENTS: u64 = 10_000;

fn main() -> ExitCode {
    let folder = tempfile::tempdir().expect("a folder");
    let durable = |name: &str| {
        let mut options = SchedulerOptions::default();
        let journal = SqliteJournal::new(folder.path().join(name), 1 << 32).expect("the journal opens");
        options.journal = Some(Box::new(journal));
        options
    };
    let mut table = Table::default();
    let backend = Backend::open("wasmtime").expect("this backend needs nothing of the machine");
    let parts: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    // First, before others leave memory from which agents would take theirs for nothing.
    if wanted("agents") {
        idle_agents(&backend, &mut table);
    }
    if wanted("memory") {
        in_memory(&backend, &mut table);
    }
    // To be looked at with a profiler; what it measures, `memory` measures in turn with the engine.
    if parts.iter().any(|part| part == "tasks") {
        executed(&backend, SchedulerOptions::default(), 4 * MEMORY_TASKS);
    }
    if wanted("durable") {
        let rates = (0..3).map(|round| executed(&backend, durable(&format!("executed {round}")), DURABLE_TASKS));
        table.add("durable, no-op tasks", rates.fold(0.0, f64::max), "/s", Target::AtLeast(20_000.0));
        let rates = (0..3).map(|round| outcomes(durable(&format!("outcomes {round}")), DURABLE_TASKS));
        println!("durable, scheduler only, best of 3: {:.0} /s", rates.fold(0.0, f64::max));
    }
    if wanted("recovery") {
        fill(&folder.path().join("kept"));
        let times = (0..3).map(|_| {
            let options = durable("kept");
            let begun = Instant::now();
            let scheduler = LocalScheduler::open(options).expect("it opens");
            let time = begun.elapsed();
            assert_eq!(scheduler.stats().queued, KEPT);
            time.as_secs_f64()
        });
        table.add(format!("{KEPT} tasks come back"), times.fold(f64::MAX, f64::min), "s", Target::AtMost(2.0));
    }
    table.finish()
}

fn in_memory(backend: &Backend, table: &mut Table) {
    // Engine and fabric in turn, so that a busy machine slows both.
    let mut pairs: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let bare = bare(backend);
            let fabric = executed(backend, SchedulerOptions::default(), MEMORY_TASKS);
            (fabric / bare, fabric, bare)
        })
        .collect();
    pairs.sort_by(|one, other| one.0.total_cmp(&other.0));
    let best = |rate: fn(&(f64, f64, f64)) -> f64| pairs.iter().map(rate).fold(0.0, f64::max);
    println!("the engine alone, best of {ROUNDS}: {:.0} /s", best(|pair| pair.2));
    table.add("in memory, no-op tasks", best(|pair| pair.1), "/s", Target::AtLeast(200_000.0));
    table.add("in memory, of the engine's own rate", pairs[ROUNDS / 2].0, "", Target::AtLeast(0.5));

    let rates = (0..3).map(|_| outcomes(SchedulerOptions::default(), MEMORY_TASKS));
    println!("in memory, scheduler only, best of 3: {:.0} /s", rates.fold(0.0, f64::max));
}

/// Fresh instances, each called and dropped, per second of two tasks on two threads, over about a second.
fn bare(backend: &Backend) -> f64 {
    const CALLS: u32 = 200_000;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime starts");
    let module = runtime.block_on(backend.sandbox.load(backend.artifact(Guest::NoOp, 0))).expect("it loads");
    let prepared = module.prepare(backend.policy(Guest::NoOp), HostFunctions::new()).expect("it is admitted");
    let (begun, cpu) = (Instant::now(), cpu_time());
    let half = || {
        let prepared = Arc::clone(&prepared);
        runtime.spawn(async move {
            for _ in 0..CALLS {
                let execution = prepared.run(Call::new()).await.expect("it runs");
                assert!(execution.outcome.is_success());
            }
        })
    };
    let halves = [half(), half()];
    halves.into_iter().for_each(|half| runtime.block_on(half).expect("it ends"));
    let rate = f64::from(2 * CALLS) / begun.elapsed().as_secs_f64();
    println!("{rate:.0} /s, {:.2} us of CPU a call", (cpu_time() - cpu).as_secs_f64() * 1e6 / f64::from(2 * CALLS));
    rate
}

/// Tasks per second from submission to known outcome, run by an executor.
fn executed(backend: &Backend, options: SchedulerOptions, tasks: usize) -> f64 {
    let fabric = Fabric::start(backend, options, Duration::ZERO, |_| ());
    let mut template = backend.template("no-op", Guest::NoOp, 0);
    template.tasks_max = IN_FLIGHT;
    let plugin = fabric.spawn(template);
    let cpu = cpu_time();
    let rate = fabric.throughput(IN_FLIGHT, tasks, move |_| Task::new(plugin));
    println!("{rate:.0} /s, {:.2} us of CPU a task", (cpu_time() - cpu).as_secs_f64() * 1e6 / tasks as f64);
    fabric.end();
    rate
}

/// The same with workers that run nothing and report success.
fn outcomes(options: SchedulerOptions, tasks: usize) -> f64 {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime starts");
    let scheduler = Arc::new(LocalScheduler::open(options).expect("it opens"));
    let done = || Completion::Executed(Box::new(Execution::new(Outcome::Completed, Usage::default())));
    let worker = |_| {
        let scheduler = Arc::clone(&scheduler);
        runtime.spawn(async move {
            let worker = WorkerId::new();
            let request = LeaseRequest::new(worker, 64, Duration::from_secs(30));
            loop {
                let leases = scheduler.lease(request.clone()).await.expect("tasks come");
                let completions = leases.iter().map(|lease| scheduler.complete(lease.task.id, lease.fence, done()));
                all(completions.collect()).await;
            }
        })
    };
    let workers: Vec<_> = (0..2).map(worker).collect();
    let begun = Instant::now();
    let client = |number: usize| {
        let scheduler = Arc::clone(&scheduler);
        runtime.spawn(async move {
            for _ in 0..tasks / IN_FLIGHT {
                let mut task = Task::new(ArtifactHash::of(b"plugin"));
                task.tenant = Tenant(format!("tenant {}", number % 16));
                let record = palisade_benches::fabric::outcome(&*scheduler, task).await;
                assert_eq!(record.state, TaskState::Completed);
            }
        })
    };
    let clients: Vec<_> = (0..IN_FLIGHT).map(client).collect();
    clients.into_iter().for_each(|client| runtime.block_on(client).expect("the client ends"));
    let time = begun.elapsed();
    workers.into_iter().for_each(|worker| worker.abort());
    (tasks / IN_FLIGHT * IN_FLIGHT) as f64 / time.as_secs_f64()
}

/// Waits for all at once: their commits are shared.
async fn all<T, E: std::fmt::Debug>(futures: Vec<palisade::BoxFuture<'_, Result<T, E>>>) {
    let mut left = futures;
    std::future::poll_fn(|context| {
        left.retain_mut(|future| match future.as_mut().poll(context) {
            std::task::Poll::Ready(result) => {
                result.expect("it is recorded");
                false
            }
            std::task::Poll::Pending => true,
        });
        if left.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// Memory of many agents that do nothing, and the time to make one.
fn idle_agents(backend: &Backend, table: &mut Table) {
    let fabric = Fabric::start(backend, SchedulerOptions::default(), Duration::ZERO, |_| ());
    let templates: Vec<_> =
        (0..AGENTS).map(|number| backend.template(format!("agent {number}"), Guest::NoOp, number)).collect();
    let (before, begun) = (held(), Instant::now());
    for template in &templates {
        fabric.spawn(template.clone());
    }
    let time = begun.elapsed().as_secs_f64() * 1e3 / AGENTS as f64;
    let mebibytes = held().memory_bytes.saturating_sub(before.memory_bytes) as f64 / f64::from(1 << 20);
    table.add(format!("{AGENTS} idle agents"), mebibytes, "MiB", Target::AtMost(1024.0));
    println!("one agent made in {time:.3} ms");
    fabric.end();
}

fn fill(path: &std::path::Path) {
    let mut journal = SqliteJournal::new(path, 1 << 32).expect("the journal opens");
    let status = Status {
        state: TaskState::Queued,
        submitted_at: 1_800_000_000_000,
        ready_at: 0,
        finished_at: 0,
        failures: 0,
        lost: 0,
        completion: None,
    };
    for chunk in 0..KEPT / 10_000 {
        let entries: Vec<_> = (chunk * 10_000..(chunk + 1) * 10_000)
            .map(|seq| {
                let mut task = Task::new(ArtifactHash::of(b"plugin"));
                task.input = vec![1; 128].into();
                task.tenant = Tenant(format!("tenant {}", seq % 1000));
                JournalEntry::Submit { seq, task: Arc::new(task), status: status.clone() }
            })
            .collect();
        journal.commit(&entries).expect("it is kept");
    }
}
