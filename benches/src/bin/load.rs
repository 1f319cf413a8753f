//! Drives a whole fabric on Wasmtime with many agents at once, for a short time at each of several numbers of them, or
//! for a long time to see whether anything grows.
//!
//! ```text
//! cargo run --release -p palisade-benches --bin load
//! cargo run --release -p palisade-benches --bin load -- --soak 20m
//! ```

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use palisade::{ArtifactHash, Bytes, HostFunctions, Outcome, Resource, RetryPolicy, Task, units};
use palisade_benches::fabric::{Fabric, outcome, succeeded};
use palisade_benches::guests::{Backend, Guest, INSTANCES_MAX};
use palisade_benches::resident::{Held, held};
use palisade_benches::trend::Trend;
use palisade_fabric::SchedulerOptions;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Mappings of ten agents whose guests wait: 2 for each memory, 2 or 3 for the code of each module. The kernel bounds them for
/// a process.
const MAPPINGS_OF_TEN: u32 = 44;
/// A stack, whether it is used or not: itself and its guard page.
const MAPPINGS_OF_A_STACK: u32 = 2;
/// Programs, libraries and the heap.
const MAPPINGS_BESIDES: u32 = 600;
/// What an agent that spins may take, for each task.
const HOG_CPU_TIME: Duration = Duration::from_millis(50);
/// Agents that run their first task at once: as many artifacts as the backend compiles at once.
const COMPILING_MAX: usize = 8;
/// Samples of a soak.
const SAMPLES: u32 = 240;

/// Run many agents at once, and show what it takes.
#[derive(Debug, Parser)]
#[command(name = "load", version, about)]
struct Options {
    /// Agents whose guests wait in a host call, one run for each number
    #[arg(long, value_name = "COUNT", value_delimiter = ',', default_value = "100,1000,10000",
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    agents: Vec<u32>,
    /// Agents besides, whose guests spin until their CPU time is used up
    #[arg(long, value_name = "COUNT", default_value = "4", value_parser = clap::value_parser!(u32).range(0..=1000))]
    hogs: u32,
    /// How long a guest waits
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = units::parse_duration)]
    wait: Duration,
    /// How long each run lasts
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = units::parse_duration)]
    time: Duration,
    /// Instead run the last number of agents for this long, and fail when anything grows
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    soak: Option<Duration>,
    /// Part of a soak that does not count, in percent
    #[arg(long, value_name = "PERCENT", default_value = "20", value_parser = clap::value_parser!(u32).range(0..=80))]
    warm_up: u32,
    /// Growth of resident memory that fails a soak, in MiB an hour
    #[arg(long, value_name = "MIB", default_value = "8", allow_negative_numbers = true)]
    memory_slope_max: f64,
    /// Growth of open files and of threads that fails a soak, in pieces an hour
    #[arg(long, value_name = "COUNT", default_value = "6", allow_negative_numbers = true)]
    count_slope_max: f64,
    /// Loss of throughput that fails a soak, in percent an hour
    #[arg(long, value_name = "PERCENT", default_value = "10", allow_negative_numbers = true)]
    loss_max: f64,
    /// Write a soak's samples here, as comma-separated values
    #[arg(long, value_name = "FILE")]
    samples: Option<std::path::PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    palisade_benches::resident::allow_files();
    let Some(backend) = Backend::open("wasmtime") else { return ExitCode::FAILURE };
    match options.soak {
        Some(time) => soak(&options, &backend, time),
        None => {
            println!("agents  hogs  tasks/s  p50 ms  p90 ms  p99 ms  max ms  hog tasks/s  RSS MiB  files  threads");
            let most = agents_max();
            for agents in &options.agents {
                run(&options, &backend, (*agents).min(most));
            }
            if let Some(wanted) = options.agents.iter().find(|agents| **agents > most) {
                eprintln!(
                    "error: {wanted} agents need {} mappings, more than vm.max_map_count allows a process; {most} were run \
                     instead. Allow more with `sysctl -w vm.max_map_count=262144`",
                    INSTANCES_MAX * MAPPINGS_OF_A_STACK + MAPPINGS_BESIDES + wanted.div_ceil(10) * MAPPINGS_OF_TEN
                );
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
    }
}

/// Agents for which the kernel allows this process mappings enough.
fn agents_max() -> u32 {
    let allowed = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    let left = |allowed: u32| allowed.saturating_sub(INSTANCES_MAX * MAPPINGS_OF_A_STACK + MAPPINGS_BESIDES);
    // Where the kernel does not say, nothing is known to be too much.
    allowed.trim().parse().map_or(u32::MAX, |allowed| left(allowed) / MAPPINGS_OF_TEN * 10)
}

/// A fabric under load, until it is ended.
struct Load {
    fabric: Fabric,
    clients: Vec<JoinHandle<()>>,
    counts: Arc<Counts>,
}

struct Counts {
    stop: AtomicBool,
    waiters: AtomicU64,
    hogs: AtomicU64,
    /// From submission to known outcome, without the wait itself, in microseconds.
    late: Mutex<Histogram<u64>>,
}

impl Counts {
    fn reset(&self) {
        self.waiters.store(0, Ordering::Relaxed);
        self.hogs.store(0, Ordering::Relaxed);
        self.late.lock().unwrap_or_else(PoisonError::into_inner).reset();
    }
}

impl Load {
    /// Makes the agents and starts a client for each, once every agent has run a task.
    fn start(options: &Options, backend: &Backend, agents: u32) -> Load {
        let all = agents + options.hogs;
        let mut scheduler = SchedulerOptions::default();
        // Few, so that what it keeps on purpose stops growing soon, and enough for all to hear of theirs.
        scheduler.limits.results_max = (2 * all as usize).max(1000);
        scheduler.limits.dead_letters_max = 100;
        // Nobody waits in a first task, which is to load the module.
        let loaded = Arc::new(AtomicBool::new(false));
        let (is_loaded, wait) = (Arc::clone(&loaded), options.wait);
        let host = HostFunctions::new().add("wait", move |_| {
            let time = if is_loaded.load(Ordering::Relaxed) { wait } else { Duration::ZERO };
            async move {
                tokio::time::sleep(time).await;
                Ok(Bytes::new())
            }
        });
        let fabric = Fabric::start(backend, scheduler, wait, |executor| {
            executor.host = host;
            executor.tasks_max = all as usize;
            executor.agents_max = all as usize;
        });
        let bar = progress(u64::from(all), "{pos}/{len} agents {wide_bar} {eta}");
        let plugins: Vec<_> = (0..all)
            .map(|number| {
                let guest = if number < agents { Guest::Waits } else { Guest::Spins };
                let mut template = backend.template(format!("agent {number}"), guest, number.into());
                template.tasks_max = 1;
                template.policy.quota.wall_time = Some(Duration::from_secs(300));
                if guest == Guest::Spins {
                    template.policy.quota.cpu_time = Some(HOG_CPU_TIME);
                }
                bar.inc(1);
                (guest, fabric.spawn(template))
            })
            .collect();
        bar.finish_and_clear();
        let counts = Arc::new(Counts {
            stop: AtomicBool::new(false),
            waiters: AtomicU64::new(0),
            hogs: AtomicU64::new(0),
            late: Mutex::new(Histogram::new_with_bounds(1, 600_000_000, 3).expect("the bounds are in order")),
        });
        // Few at a time: a backend compiles only so many artifacts at once, and refuses more for a moment.
        let compiling = Arc::new(Semaphore::new(COMPILING_MAX));
        let client = |(guest, plugin): (Guest, ArtifactHash), first: bool| {
            let (scheduler, counts, wait) = (Arc::clone(&fabric.scheduler), Arc::clone(&counts), options.wait);
            let compiling = Arc::clone(&compiling);
            fabric.runtime.spawn(async move {
                if first {
                    let _permit = compiling.acquire().await;
                    return one(guest, plugin, &*scheduler, wait, &counts).await;
                }
                while !counts.stop.load(Ordering::Relaxed) {
                    one(guest, plugin, &*scheduler, wait, &counts).await;
                }
            })
        };
        let firsts: Vec<_> = plugins.iter().map(|plugin| client(*plugin, true)).collect();
        let bar = progress(u64::from(all), "{pos}/{len} first tasks {wide_bar} {eta}");
        for first in firsts {
            fabric.runtime.block_on(first).expect("the first task ends");
            bar.inc(1);
        }
        bar.finish_and_clear();
        counts.reset();
        loaded.store(true, Ordering::Relaxed);
        let clients = plugins.iter().map(|plugin| client(*plugin, false)).collect();
        Load { fabric, clients, counts }
    }

    fn end(self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            self.fabric.runtime.block_on(client).expect("the client ends");
        }
        self.fabric.end();
    }
}

/// One task of an agent, as it should end.
async fn one(guest: Guest, plugin: ArtifactHash, scheduler: &dyn palisade::Scheduler, wait: Duration, counts: &Counts) {
    let mut task = Task::new(plugin);
    // What it asks for stays below what its agent may use, which is the bound meant here.
    task.policy.quota = palisade::Quota::unlimited();
    task.retry = RetryPolicy { attempts_max: 1, ..RetryPolicy::default() };
    let begun = Instant::now();
    let record = outcome(scheduler, task).await;
    if guest == Guest::Waits {
        assert!(succeeded(&record), "{record:?}");
        let late = u64::try_from(begun.elapsed().saturating_sub(wait).as_micros()).unwrap_or(u64::MAX);
        counts.late.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(late.max(1));
        counts.waiters.fetch_add(1, Ordering::Relaxed);
    } else {
        let stopped = matches!(
            record.completion.as_deref(),
            Some(palisade::Completion::Executed(execution))
                if matches!(execution.outcome, Outcome::QuotaExceeded { resource: Resource::CpuTime, .. })
        );
        assert!(stopped, "{record:?}");
        counts.hogs.fetch_add(1, Ordering::Relaxed);
    }
}

/// One number of agents, for a short time.
fn run(options: &Options, backend: &Backend, agents: u32) {
    let load = Load::start(options, backend, agents);
    let begun = Instant::now();
    pause(&load, options.time);
    let (time, held) = (begun.elapsed().as_secs_f64(), held());
    let rate = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64 / time;
    {
        let late = load.counts.late.lock().unwrap_or_else(PoisonError::into_inner);
        let at = |share: f64| late.value_at_quantile(share) as f64 / 1e3;
        println!(
            "{agents:6}  {:4}  {:7.0}  {:6.1}  {:6.1}  {:6.1}  {:6.1}  {:11.1}  {:7.1}  {:5}  {:7}",
            options.hogs,
            rate(&load.counts.waiters),
            at(0.5),
            at(0.9),
            at(0.99),
            at(1.0),
            rate(&load.counts.hogs),
            mebibytes(&held),
            held.files,
            held.threads,
        );
    }
    assert!(load.counts.waiters.load(Ordering::Relaxed) > 0, "no agent came to its end; use a longer --time");
    load.end();
}

/// One number of agents, for a long time. Fails when something grows.
fn soak(options: &Options, backend: &Backend, time: Duration) -> ExitCode {
    let agents = (*options.agents.last().unwrap_or(&1000)).min(agents_max());
    let load = Load::start(options, backend, agents);
    let bar = progress(u64::from(SAMPLES), "{elapsed_precise} {wide_bar} {eta_precise} {msg}");
    let begun = Instant::now();
    let mut samples: Vec<(f64, Held, f64)> = Vec::with_capacity(SAMPLES as usize);
    let (mut earlier, mut done) = (begun, 0);
    for number in 1..=SAMPLES {
        pause(&load, (time * number / SAMPLES).saturating_sub(begun.elapsed()));
        let (now, now_done) = (Instant::now(), load.counts.waiters.load(Ordering::Relaxed));
        let rate = (now_done - done) as f64 / (now - earlier).as_secs_f64();
        let held = held();
        samples.push(((now - begun).as_secs_f64(), held, rate));
        (earlier, done) = (now, now_done);
        bar.set_message(format!("{:.1} MiB, {rate:.0} tasks/s", mebibytes(&held)));
        bar.inc(1);
    }
    bar.finish_and_clear();
    load.end();
    if let Some(file) = &options.samples {
        let lines: String = samples
            .iter()
            .map(|(at, held, rate)| {
                format!("{at:.3},{},{},{},{rate:.1}\n", held.memory_bytes, held.files, held.threads)
            })
            .collect();
        let text = format!("seconds,memory_bytes,files,threads,tasks_per_second\n{lines}");
        if let Err(error) = std::fs::write(file, text) {
            eprintln!("error: the samples cannot be written to {}: {error}", file.display());
            return ExitCode::FAILURE;
        }
    }

    let counted = &samples[(samples.len() * options.warm_up as usize / 100)..];
    println!(
        "soak of {}: {agents} agents, {} hogs, {done} tasks, {} samples after {} % of warm-up",
        units::display_duration(time),
        options.hogs,
        counted.len(),
        options.warm_up
    );
    println!("figure      mean         first        last         slope an hour          bound    ");
    let mut failed = false;
    let mut show = |name: &str, unit: &str, figure: &dyn Fn(&(f64, Held, f64)) -> f64, bound: f64, grows: bool| {
        let points: Vec<_> = counted.iter().map(|sample| (sample.0, figure(sample))).collect();
        let Some(trend) = Trend::of(&points) else {
            println!("{name}: too few samples for a trend");
            failed = true;
            return;
        };
        // Of throughput a part of itself, as its bound is.
        let scale = if grows { 1.0 } else { 100.0 / trend.mean };
        let relative = Trend { mean: trend.mean, per_hour: trend.per_hour * scale, error: trend.error * scale };
        let beyond = if grows { relative.grows_beyond(bound) } else { relative.shrinks_beyond(bound) };
        failed |= beyond;
        println!(
            "{name:10}  {:11.1}  {:11.1}  {:11.1}  {:+10.2} +- {:<8.2} {unit}  {}{bound} {unit}  {}",
            trend.mean,
            points.first().map_or(0.0, |point| point.1),
            points.last().map_or(0.0, |point| point.1),
            relative.per_hour,
            2.0 * relative.error,
            if grows { "+" } else { "-" },
            if beyond { "EXCEEDED" } else { "kept" }
        );
    };
    show("memory", "MiB", &|sample| mebibytes(&sample.1), options.memory_slope_max, true);
    show("files", "", &|sample| sample.1.files as f64, options.count_slope_max, true);
    show("threads", "", &|sample| sample.1.threads as f64, options.count_slope_max, true);
    show("tasks/s", "%", &|sample| sample.2, options.loss_max, false);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Lets the load run for a time.
fn pause(load: &Load, time: Duration) {
    load.fabric.runtime.block_on(async { tokio::time::sleep(time).await });
}

fn mebibytes(held: &Held) -> f64 {
    held.memory_bytes as f64 / f64::from(1 << 20)
}

/// A bar on a terminal, and nothing elsewhere.
fn progress(length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is well-formed");
    ProgressBar::new(length).with_style(style)
}
