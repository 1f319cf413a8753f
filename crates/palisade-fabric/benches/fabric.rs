//! Schedulers as their users see them: submit to outcome, in memory and durable, and coming back after a restart.
//!
//! `cargo bench -p palisade-fabric --bench fabric`

use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_core::{
    Artifact, ArtifactHash, Call, Completion, Execution, HostFunctions, LeaseRequest, Outcome, Policy, PreparedExt,
    Sandbox, Scheduler, Task, TaskState, Tenant, Usage, WorkerId,
};
use palisade_fabric::{
    AgentTemplate, Executor, ExecutorOptions, Journal, JournalEntry, LocalScheduler, SchedulerOptions, SqliteJournal,
    Status,
};
use palisade_fake::Fake;
use tokio::runtime::Runtime;

const IN_FLIGHT: usize = 256;
const MEMORY_TASKS: usize = 400_000;
const DURABLE_TASKS: usize = 100_000;
const MEMORY_TARGET: f64 = 200_000.0;
const DURABLE_TARGET: f64 = 20_000.0;
const KEPT: u64 = 100_000;
const RECOVERY_TARGET: Duration = Duration::from_secs(2);

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");

    let rates: Vec<_> = (0..3).map(|_| outcomes(&runtime, SchedulerOptions::default(), MEMORY_TASKS)).collect();
    report("in memory, scheduler only, submit to outcome", &rates, MEMORY_TARGET);

    let rates: Vec<_> = (0..3).map(|_| executed(&runtime, SchedulerOptions::default(), MEMORY_TASKS)).collect();
    bare(&runtime);
    report("in memory, no-op tasks run by an executor on the fake, submit to outcome", &rates, MEMORY_TARGET);

    let rates: Vec<_> = (0..3)
        .map(|round| {
            let mut options = SchedulerOptions::default();
            let path = folder.path().join(format!("journal {round}"));
            options.journal = Some(Box::new(SqliteJournal::new(path, 1 << 32).expect("the journal opens")));
            outcomes(&runtime, options, DURABLE_TASKS)
        })
        .collect();
    report("durable, scheduler only, submit to outcome", &rates, DURABLE_TARGET);

    idle_agents(&runtime);

    let path = folder.path().join("kept");
    fill(&path);
    let times: Vec<_> = (0..3)
        .map(|_| {
            let begun = Instant::now();
            let mut options = SchedulerOptions::default();
            options.journal = Some(Box::new(SqliteJournal::new(&path, 1 << 32).expect("the journal opens")));
            let scheduler = LocalScheduler::open(options).expect("it opens");
            let time = begun.elapsed();
            assert_eq!(scheduler.stats().queued, KEPT);
            time
        })
        .collect();
    let best = times.iter().min().copied().unwrap_or_default();
    let verdict = if best <= RECOVERY_TARGET { "met" } else { "MISSED" };
    println!("TIME {KEPT} tasks come back: {times:?}; target {RECOVERY_TARGET:?}: {verdict}");
}

/// CPU time of this process: what a busy machine's other programs do not change much.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name, which may hold anything: user and system time are the 12th and 13th, in hundredths of a second.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks: u64 = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn report(what: &str, rates: &[f64], target: f64) {
    let best = rates.iter().copied().fold(0.0, f64::max);
    let all: Vec<_> = rates.iter().map(|rate| format!("{rate:.0}")).collect();
    let verdict = if best >= target { "met" } else { "MISSED" };
    println!("RATE {what}: {} /s; target {target:.0}: {verdict} ({:.2} of it)", all.join(", "), best / target);
}

/// Tasks per second from submission to known outcome, with workers that only report success.
fn outcomes(runtime: &Runtime, options: SchedulerOptions, tasks: usize) -> f64 {
    let scheduler = Arc::new(LocalScheduler::open(options).expect("it opens"));
    let done = || Completion::Executed(Box::new(Execution::new(Outcome::Completed, Usage::default())));
    let worker = |_| {
        let scheduler = Arc::clone(&scheduler);
        runtime.spawn(async move {
            let worker = WorkerId(uuid::Uuid::now_v7());
            let request = LeaseRequest { worker, tasks_max: 64, lease_time: Duration::from_secs(30) };
            loop {
                let leases = scheduler.lease(request).await.expect("tasks come");
                let completions = leases.iter().map(|lease| scheduler.complete(lease.task.id, lease.fence, done()));
                all(completions.collect()).await;
            }
        })
    };
    let workers: Vec<_> = (0..2).map(worker).collect();
    let rate = clients(runtime, &scheduler, ArtifactHash::of(b"plugin"), tasks);
    workers.into_iter().for_each(|worker| worker.abort());
    rate
}

/// Tasks per second from submission to known outcome, run by an executor, a fresh instance each.
fn executed(runtime: &Runtime, options: SchedulerOptions, tasks: usize) -> f64 {
    let scheduler = Arc::new(LocalScheduler::open(options).expect("it opens"));
    let artifact = Artifact::wasm(&b"\0asm\x01\0\0\0"[..]).named("exit");
    let plugin = artifact.hash();
    let options = ExecutorOptions::new(Arc::clone(&scheduler) as _, Arc::new(Fake::new(None)));
    let executor = runtime.block_on(async { Executor::start(options) }).expect("it starts");
    let mut template = AgentTemplate::new("no-op", artifact);
    template.tasks_max = IN_FLIGHT;
    executor.spawn(template).expect("the agent is made");
    let rate = clients(runtime, &scheduler, plugin, tasks);
    let drained = runtime.block_on(executor.drain(Duration::from_secs(5)));
    assert!(drained.in_time);
    rate
}

/// Memory of many agents that do nothing.
fn idle_agents(runtime: &Runtime) {
    const AGENTS: usize = 10_000;
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default() * 4096
    };
    let scheduler = Arc::new(LocalScheduler::open(SchedulerOptions::default()).expect("it opens"));
    let options = ExecutorOptions::new(scheduler, Arc::new(Fake::new(None)));
    let executor = runtime.block_on(async { Executor::start(options) }).expect("it starts");
    let (before, begun) = (resident(), Instant::now());
    for number in 0..AGENTS {
        let artifact = Artifact::wasm([&b"\0asm\x01\0\0\0"[..], &number.to_le_bytes()].concat());
        executor.spawn(AgentTemplate::new(format!("agent {number}"), artifact)).expect("the agent is made");
    }
    let each = begun.elapsed() / AGENTS as u32;
    let mebibytes = resident().saturating_sub(before) as f64 / f64::from(1 << 20);
    println!(
        "SIZE {AGENTS} idle agents: {mebibytes:.1} MiB; target 1024: {}",
        if mebibytes <= 1024.0 { "met" } else { "MISSED" }
    );
    println!("TIME one agent made: {each:?}; target 50ms");
    runtime.block_on(executor.drain(Duration::from_secs(5)));
}

/// What the fake alone takes of the tasks an executor runs on it.
fn bare(runtime: &Runtime) {
    const CALLS: u32 = 200_000;
    let fake = Fake::new(None);
    let artifact = Artifact::wasm(&b"\0asm\x01\0\0\0"[..]).named("exit");
    let time = runtime.block_on(async {
        let module = fake.load(artifact).await.expect("it loads");
        let prepared = module.prepare(Policy::default(), HostFunctions::new()).expect("it is admitted");
        let begun = Instant::now();
        for _ in 0..CALLS {
            prepared.run(Call::new()).await.expect("it runs");
        }
        begun.elapsed() / CALLS
    });
    println!("TIME fresh instance and call on the fake alone: {time:?}");
}

/// Tasks per second of `IN_FLIGHT` clients that each wait for theirs.
fn clients(runtime: &Runtime, scheduler: &Arc<LocalScheduler>, plugin: ArtifactHash, tasks: usize) -> f64 {
    let (begun, cpu) = (Instant::now(), cpu_time());
    runtime.block_on(async {
        let clients: Vec<_> = (0..IN_FLIGHT)
            .map(|number| {
                let scheduler = Arc::clone(scheduler);
                tokio::spawn(async move {
                    for _ in 0..tasks / IN_FLIGHT {
                        let mut task = Task::new(plugin);
                        task.tenant = Tenant(format!("tenant {}", number % 16));
                        let id = scheduler.submit(task).await.expect("it is taken").task;
                        let record = scheduler.wait(id).await.expect("it ends");
                        assert_eq!(record.state, TaskState::Completed);
                    }
                })
            })
            .collect();
        for client in clients {
            client.await.expect("the client ends");
        }
    });
    let done = tasks / IN_FLIGHT * IN_FLIGHT;
    println!("CPU  {:.2} us a task", (cpu_time() - cpu).as_secs_f64() * 1e6 / done as f64);
    done as f64 / begun.elapsed().as_secs_f64()
}

/// Waits for all at once: their commits are shared.
async fn all<T, E: std::fmt::Debug>(futures: Vec<palisade_core::BoxFuture<'_, Result<T, E>>>) {
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
