//! The nine benchmarks of the original system, by their names and with their targets, on every backend of this machine.
//!
//! `cargo bench -p palisade-benches --bench original`, or with a part of a name behind `--`. Ends with a table, and with
//! exit code 1 when a target was missed.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::Criterion;
use palisade::{
    Call, Completion, Execution, HostFunctions, LeaseRequest, MetricsSink, Outcome, PreparedExt, RetryPolicy,
    Scheduler, Task, TaskState, Tenant, Usage, WorkerId, block_on,
};
use palisade_benches::fabric::{Fabric, succeeded};
use palisade_benches::guests::{Backend, Guest};
use palisade_benches::resident::{cpu_time, held};
use palisade_benches::verdict::{Table, Target};
use palisade_fabric::{InstanceMode, LocalScheduler, NullSink, PrometheusSink, SchedulerOptions};

/// How long a guest that waits does so: long beside what starting it takes.
const WAIT: Duration = Duration::from_millis(20);
/// Tasks waiting while the queue's operations are timed.
const QUEUED: usize = 10_000;

fn main() -> ExitCode {
    let mut run = Run {
        criterion: Criterion::default()
            .sample_size(10)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(1))
            .configure_from_args(),
        // Criterion reads the same argument; what it does not time must be left out by hand.
        filter: std::env::args().skip(1).find(|argument| !argument.starts_with('-')),
        table: Table::default(),
    };
    for backend in Backend::all() {
        // First, before others leave a warm pool from which agents would take theirs for nothing.
        run.memory_per_agent(&backend);
        run.agent_spawn_latency(&backend);
        run.task_throughput(&backend);
        run.scheduler_overhead(&backend);
        run.concurrent_scaling(&backend);
        run.retry_overhead(&backend);
        run.metrics_collection_overhead(&backend);
    }
    // No backend has a part in these.
    run.serialization();
    run.queue_operations();
    run.criterion.final_summary();
    run.table.finish()
}

struct Run {
    criterion: Criterion,
    filter: Option<String>,
    table: Table,
}

/// A fabric without a journal or metrics.
fn fabric(backend: &Backend) -> Fabric {
    Fabric::start(backend, SchedulerOptions::default(), WAIT, |options| options.tasks_max = 1024)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Run {
    /// Median time of one round, as Criterion samples it; `None` when the filter leaves it out. `work` does so many
    /// rounds and says how long they took.
    fn time(&mut self, name: &str, mut work: impl FnMut(u64) -> Duration) -> Option<Duration> {
        let mut samples = Vec::new();
        self.criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                let time = work(rounds);
                samples.push(time.div_f64(rounds as f64));
                time
            });
        });
        samples.sort();
        samples.get(samples.len() / 2).copied()
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter))
    }

    /// From making an agent, of an artifact never seen before, to the outcome of its first task.
    fn agent_spawn_latency(&mut self, backend: &Backend) {
        let name = format!("agent_spawn_latency/{}", backend.name);
        let fabric = fabric(backend);
        let mut number = 0;
        let time = self.time(&name, |rounds| {
            let mut total = Duration::ZERO;
            for _ in 0..rounds {
                number += 1;
                let template = backend.template("agent", Guest::NoOp, number);
                let begun = Instant::now();
                let plugin = fabric.spawn(template);
                assert!(succeeded(&fabric.one(Task::new(plugin))));
                total += begun.elapsed();
                fabric.executor.remove("agent").expect("it is removed");
            }
            total
        });
        fabric.end();
        if let Some(time) = time {
            self.table.add(name, milliseconds(time), "ms", Target::AtMost(50.0));
        }
    }

    /// No-op tasks per minute, a fresh instance each.
    fn task_throughput(&mut self, backend: &Backend) {
        let name = format!("task_throughput/{}", backend.name);
        let fabric = fabric(backend);
        let mut template = backend.template("agent", Guest::NoOp, 0);
        template.tasks_max = 64;
        let plugin = fabric.spawn(template);
        let time = self.time(&name, |rounds| {
            let tasks = (rounds as usize).max(64);
            let rate = fabric.throughput(64, tasks, move |_| Task::new(plugin));
            Duration::from_secs_f64(rounds as f64 / rate)
        });
        fabric.end();
        if let Some(time) = time {
            self.table.add(name, 60.0 / time.as_secs_f64(), "/min", Target::AtLeast(1000.0));
        }
    }

    /// What submitting a task, waiting for it and all between adds to running its guest by hand.
    fn scheduler_overhead(&mut self, backend: &Backend) {
        let name = format!("scheduler_overhead/{}", backend.name);
        let fabric = fabric(backend);
        let plugin = fabric.spawn(backend.template("agent", Guest::NoOp, 0));
        let through = self.time(&name, |rounds| {
            let begun = Instant::now();
            (0..rounds).for_each(|_| assert!(succeeded(&fabric.one(Task::new(plugin)))));
            begun.elapsed()
        });
        let bare = self.time(&format!("{name}/bare"), |rounds| bare(&fabric, backend, Guest::NoOp, rounds));
        fabric.end();
        if let (Some(through), Some(bare)) = (through, bare) {
            self.table.add(name, milliseconds(through.saturating_sub(bare)), "ms", Target::AtMost(5.0));
        }
    }

    /// Tasks per second of 50 agents against those of one, each agent with one task at a time that waits.
    fn concurrent_scaling(&mut self, backend: &Backend) {
        let name = format!("concurrent_scaling/{}", backend.name);
        let mut times = Vec::new();
        for agents in [1, 10, 50] {
            let fabric = fabric(backend);
            let plugins: Vec<_> = (0..agents)
                .map(|number| {
                    let mut template = backend.template(format!("agent {number}"), Guest::Waits, number as u64);
                    template.tasks_max = 1;
                    fabric.spawn(template)
                })
                .collect();
            // All are loaded before anything is timed.
            let make = make(backend, plugins);
            fabric.throughput(agents, agents, make.clone());
            let time = self.time(&format!("{name}/{agents}"), |rounds| {
                let rate = fabric.throughput(agents, (rounds as usize).max(agents), make.clone());
                Duration::from_secs_f64(rounds as f64 / rate)
            });
            fabric.end();
            times.extend(time);
        }
        if let [one, _, fifty] = times[..] {
            let figure = one.as_secs_f64() / fifty.as_secs_f64();
            self.table.add(format!("{name}/1-50"), figure, "x", Target::AtLeast(10.0));
        }
    }

    /// Memory of an agent that ran a task and holds an instance for the next, all processes of it included.
    fn memory_per_agent(&mut self, backend: &Backend) {
        const AGENTS: u64 = 50;
        let name = format!("memory_per_agent/{}", backend.name);
        if !self.is_wanted(&name) {
            return;
        }
        let fabric = fabric(backend);
        // What the first one brings along, others share.
        let plugin = fabric.spawn(backend.template("first", Guest::NoOp, 0));
        assert!(succeeded(&fabric.one(Task::new(plugin))));
        let before = held();
        for number in 1..=AGENTS {
            let mut template = backend.template(format!("agent {number}"), Guest::NoOp, number);
            template.instances = InstanceMode::Kept;
            let plugin = fabric.spawn(template);
            assert!(succeeded(&fabric.one(Task::new(plugin))));
        }
        let bytes = held().memory_bytes.saturating_sub(before.memory_bytes);
        fabric.end();
        let mebibytes = bytes as f64 / AGENTS as f64 / f64::from(1 << 20);
        self.table.add(name, mebibytes, "MiB", Target::AtMost(64.0));
    }

    /// What each attempt after the first takes beyond running the guest, without any pause between.
    fn retry_overhead(&mut self, backend: &Backend) {
        const ATTEMPTS: u32 = 11;
        let name = format!("retry_overhead/{}", backend.name);
        let fabric = fabric(backend);
        let plugin = fabric.spawn(backend.template("agent", Guest::AsksAgain, 0));
        let mut with = |attempts_max: u32| {
            self.time(&format!("{name}/{attempts_max}"), |rounds| {
                let begun = Instant::now();
                for _ in 0..rounds {
                    let mut task = Task::new(plugin);
                    task.retry =
                        RetryPolicy { attempts_max, backoff_initial: Duration::ZERO, backoff_max: Duration::ZERO };
                    let record = fabric.one(task);
                    assert_eq!((record.state, record.failures), (TaskState::DeadLettered, attempts_max));
                }
                begun.elapsed()
            })
        };
        let (one, many) = (with(1), with(ATTEMPTS));
        let bare = self.time(&format!("{name}/bare"), |rounds| bare(&fabric, backend, Guest::AsksAgain, rounds));
        fabric.end();
        if let (Some(one), Some(many), Some(bare)) = (one, many, bare) {
            let each = many.saturating_sub(one) / (ATTEMPTS - 1);
            self.table.add(name, milliseconds(each.saturating_sub(bare)), "ms", Target::AtMost(1.0));
        }
    }

    /// CPU time that the figures for Prometheus take, as a part of what no-op tasks take at full speed: the worst case.
    fn metrics_collection_overhead(&mut self, backend: &Backend) {
        const ROUNDS: usize = 31;
        let name = format!("metrics_collection_overhead/{}", backend.name);
        if !self.is_wanted(&name) {
            return;
        }
        let prometheus = Arc::new(PrometheusSink::new());
        let start = |sink: Arc<dyn MetricsSink>| {
            let mut options = SchedulerOptions::default();
            options.metrics = Arc::clone(&sink);
            let fabric = Fabric::start(backend, options, WAIT, |options| options.metrics = sink);
            let plugin = fabric.spawn(backend.template("agent", Guest::NoOp, 0));
            (fabric, plugin)
        };
        let (with, without) = (start(Arc::clone(&prometheus) as _), start(Arc::new(NullSink)));
        // As many tasks as take about a fifth of a second, which one round is to find out.
        let (fabric, plugin) = &without;
        let plugin = *plugin;
        let tasks = (fabric.throughput(64, 640, move |_| Task::new(plugin)) / 5.0) as usize;
        let cpu = |(fabric, plugin): &(Fabric, _), scrape: bool| {
            let plugin = *plugin;
            let begun = cpu_time();
            fabric.throughput(64, tasks, move |_| Task::new(plugin));
            if scrape {
                assert!(prometheus.export().expect("it can be written").contains("palisade_tasks_finished_total"));
            }
            (cpu_time() - begun).as_secs_f64()
        };
        let mut parts: Vec<_> = (0..ROUNDS)
            .map(|round| {
                let (with, without) = if round % 2 == 0 {
                    let with = cpu(&with, true);
                    (with, cpu(&without, false))
                } else {
                    let without = cpu(&without, false);
                    (cpu(&with, true), without)
                };
                (with / without - 1.0) * 100.0
            })
            .collect();
        parts.sort_by(f64::total_cmp);
        with.0.end();
        without.0.end();
        self.table.add(name, parts[ROUNDS / 2], "%", Target::AtMost(2.0));
    }

    /// A task with 1 KiB of input and its outcome with as much output, to text and back, and to the journal's bytes and
    /// back.
    fn serialization(&mut self) {
        let mut task = Task::new(palisade::ArtifactHash::of(b"plugin"));
        task.input = vec![7; 1024].into();
        task.arguments = vec!["argument".to_owned(); 4];
        let mut execution = Execution::new(Outcome::Completed, Usage::default());
        execution.output = vec![7; 1024].into();
        let completion = Completion::Executed(Box::new(execution));
        let json = self.time("serialization/json", |rounds| {
            let begun = Instant::now();
            for _ in 0..rounds {
                let text = serde_json::to_string(&(&task, &completion)).expect("it is written");
                let back: (Task, Completion) = serde_json::from_str(&text).expect("it is read");
                assert!(back.0.id == task.id && back.1 == completion);
            }
            begun.elapsed()
        });
        let packed = self.time("serialization/journal", |rounds| {
            let begun = Instant::now();
            for _ in 0..rounds {
                let bytes = rmp_serde::to_vec_named(&(&task, &completion)).expect("it is written");
                let back: (Task, Completion) = rmp_serde::from_slice(&bytes).expect("it is read");
                assert!(back.0.id == task.id && back.1 == completion);
            }
            begun.elapsed()
        });
        for (name, time) in [("serialization/json", json), ("serialization/journal", packed)] {
            if let Some(time) = time {
                self.table.add(name, milliseconds(time), "ms", Target::AtMost(1.0));
            }
        }
    }

    /// Submit, lease and complete one task while many of many tenants wait.
    fn queue_operations(&mut self) {
        let scheduler = LocalScheduler::open(SchedulerOptions::default()).expect("it opens");
        let task = |number: usize| {
            let mut task = Task::new(palisade::ArtifactHash::of(b"plugin"));
            task.tenant = Tenant(format!("tenant {}", number % 1000));
            task
        };
        for number in 0..QUEUED {
            block_on(scheduler.submit(task(number))).expect("it is taken");
        }
        let request = LeaseRequest::new(WorkerId::new(), 1, Duration::from_secs(30));
        let name = "queue_operations";
        let time = self.time(name, |rounds| {
            let begun = Instant::now();
            for number in 0..rounds {
                block_on(async {
                    scheduler.submit(task(number as usize)).await.expect("it is taken");
                    let lease = scheduler.lease(request.clone()).await.expect("there are tasks").remove(0);
                    let done = Completion::Executed(Box::new(Execution::new(Outcome::Completed, Usage::default())));
                    scheduler.complete(lease.task.id, lease.fence, done).await.expect("it is recorded");
                });
            }
            begun.elapsed()
        });
        if let Some(time) = time {
            self.table.add(name, time.as_secs_f64() * 1e6, "us", Target::AtMost(100.0));
        }
    }
}

/// Tasks of guests that wait, each client's for an agent of its own.
fn make(
    backend: &Backend,
    plugins: Vec<palisade::ArtifactHash>,
) -> impl Fn(usize) -> Task + Clone + Send + Sync + 'static {
    let arguments = backend.arguments(Guest::Waits, WAIT);
    move |client| {
        let mut task = Task::new(plugins[client]);
        task.arguments.clone_from(&arguments);
        task
    }
}

/// The same guest without a fabric: fresh instance, call and drop, on the same threads.
fn bare(fabric: &Fabric, backend: &Backend, guest: Guest, rounds: u64) -> Duration {
    let (sandbox, artifact, policy) = (Arc::clone(&backend.sandbox), backend.artifact(guest, 0), backend.policy(guest));
    let run = fabric.runtime.spawn(async move {
        let module = sandbox.load(artifact).await.expect("it loads");
        let prepared = module.prepare(policy, HostFunctions::new()).expect("it is admitted");
        let begun = Instant::now();
        for _ in 0..rounds {
            let outcome = prepared.run(Call::new()).await.expect("it runs").outcome;
            assert!(outcome.is_success() || outcome.is_retryable(), "{outcome}");
        }
        begun.elapsed()
    });
    fabric.runtime.block_on(run).expect("it ends")
}
