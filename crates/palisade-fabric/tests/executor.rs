//! Tasks run by agents, on the reference backend.

mod support;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use palisade_core::{
    Artifact, BoxFuture, Bytes, CancelToken, Capabilities, Completion, Error, ErrorKind, Fence, HostFunctions, Lease,
    LeaseRequest, Module, Outcome, Phase, Priority, Quota, Resource, Result, Sandbox, Scheduler, SchedulerMode,
    SchedulerStats, Submission, Task, TaskId, TaskPage, TaskQuery, TaskRecord, TaskState, Tenant,
};
use palisade_fabric::{
    AgentState, AgentTemplate, Clock, Event, EventFilter, Executor, ExecutorOptions, InstanceMode, Journal,
    JournalEntry, LocalScheduler, RecordingSink, RestartBudget, Restored, SchedulerOptions, SqliteJournal,
};
use palisade_fake::Fake;
use tokio::sync::Notify;

/// A probe the reference backend knows by its name; its bytes differ, so that each is a plugin of its own.
fn probe(verb: &str) -> Artifact {
    let custom = [&[0, verb.len() as u8 + 1, verb.len() as u8][..], verb.as_bytes()].concat();
    Artifact::wasm([&b"\0asm\x01\0\0\0"[..], &custom].concat()).named(verb)
}

/// The reference backend, with loads that can be counted, held up and broken.
struct Watched {
    inner: Fake,
    loads: AtomicUsize,
    /// While there is one, loading waits for it.
    hold: Option<CancelToken>,
    /// So many loads fail first.
    failing: AtomicUsize,
    /// Loads at once; more are refused.
    room: usize,
    underway: AtomicUsize,
    /// Loading panics.
    panics: bool,
    /// The artifact of this name is prepared when it is let go.
    slow: Option<(&'static str, Gate)>,
    loading: Notify,
}

impl Watched {
    fn new() -> Watched {
        Watched {
            inner: Fake::new(None),
            loads: AtomicUsize::new(0),
            hold: None,
            failing: AtomicUsize::new(0),
            room: usize::MAX,
            underway: AtomicUsize::new(0),
            panics: false,
            slow: None,
            loading: Notify::new(),
        }
    }
}

/// What waits here goes on when it is let go.
type Gate = Arc<(std::sync::Mutex<bool>, std::sync::Condvar)>;

/// A module of the reference backend whose preparation waits until it is let go.
#[derive(Debug)]
struct Slow(Arc<dyn Module>, Gate);

impl Module for Slow {
    fn info(&self) -> &palisade_core::ModuleInfo {
        self.0.info()
    }

    fn prepare(&self, policy: palisade_core::Policy, host: HostFunctions) -> Result<Arc<dyn palisade_core::Prepared>> {
        let (let_go, changed) = &*self.1;
        drop(changed.wait_while(let_go.lock().unwrap(), |let_go| !*let_go).unwrap());
        self.0.prepare(policy, host)
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watched")
    }
}

impl Sandbox for Watched {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn load(&self, artifact: Artifact) -> BoxFuture<'_, Result<Arc<dyn Module>>> {
        Box::pin(async move {
            self.loads.fetch_add(1, Ordering::SeqCst);
            self.loading.notify_one();
            assert!(!self.panics, "the loader panics");
            if self.underway.fetch_add(1, Ordering::SeqCst) >= self.room {
                self.underway.fetch_sub(1, Ordering::SeqCst);
                return Err(Error::new(ErrorKind::Exhausted, "load", "too many artifacts are loaded at once"));
            }
            if let Some(hold) = &self.hold {
                hold.cancelled().await;
            }
            self.underway.fetch_sub(1, Ordering::SeqCst);
            if self.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                return Err(Error::new(ErrorKind::Io, "load", "the disk stutters"));
            }
            let slow = self.slow.as_ref().filter(|(verb, _)| artifact.hash() == probe(verb).hash());
            let module = self.inner.load(artifact).await?;
            Ok(match slow {
                Some((_, gate)) => Arc::new(Slow(module, Arc::clone(gate))),
                None => module,
            })
        })
    }
}

struct Setting {
    scheduler: Arc<LocalScheduler>,
    sandbox: Arc<Watched>,
    executor: Executor,
}

fn start(sandbox: Watched, change: impl FnOnce(&mut ExecutorOptions)) -> Setting {
    start_over(SchedulerOptions::default(), sandbox, change)
}

fn start_over(mut options: SchedulerOptions, sandbox: Watched, change: impl FnOnce(&mut ExecutorOptions)) -> Setting {
    options.limits.completion_bytes_max = COMPLETION_BYTES_MAX;
    options.events_kept = 1 << 16;
    let scheduler = Arc::new(LocalScheduler::open(options).unwrap());
    let sandbox = Arc::new(sandbox);
    let mut options = ExecutorOptions::new(Arc::clone(&scheduler) as _, Arc::clone(&sandbox) as _);
    change(&mut options);
    Setting { scheduler, sandbox, executor: Executor::start(options).unwrap() }
}

/// What the schedulers of these tests keep of one completion.
const COMPLETION_BYTES_MAX: usize = 10_000;

fn task(verb: &str, input: impl Into<Bytes>) -> Task {
    let mut task = Task::new(probe(verb).hash());
    task.input = input.into();
    task.retry.attempts_max = 1;
    task
}

/// A task that calls the host function `wait`.
fn waiting() -> Task {
    let mut task = task("host", [&1u32.to_le_bytes()[..], b"wait"].concat());
    task.policy.grants.host_functions.insert("wait".into());
    task
}

/// With no bounds but those of its agent.
fn unbounded(mut task: Task) -> Task {
    task.policy.quota = Quota::unlimited();
    task
}

impl Setting {
    fn spawn(&self, verb: &str) {
        self.spawn_with(verb, |_| {});
    }

    fn spawn_with(&self, verb: &str, change: impl FnOnce(&mut AgentTemplate)) {
        let mut template = AgentTemplate::new(verb, probe(verb));
        change(&mut template);
        self.executor.spawn(template).unwrap();
    }

    async fn submit(&self, task: Task) -> TaskId {
        self.scheduler.submit(task).await.unwrap().task
    }

    async fn run(&self, task: Task) -> TaskRecord {
        let id = self.submit(task).await;
        self.scheduler.wait(id).await.unwrap()
    }
}

fn outcome(record: &TaskRecord) -> Outcome {
    match record.completion.as_deref() {
        Some(Completion::Executed(execution)) => execution.outcome.clone(),
        other => panic!("not executed: {other:?}"),
    }
}

fn message(record: &TaskRecord) -> String {
    match record.completion.as_deref() {
        Some(Completion::HostError { message, .. }) => message.clone(),
        other => panic!("no host error: {other:?}"),
    }
}

/// Input of the probes `count` and `sleep`: how long, in turns of a loop or in nanoseconds. Years.
fn for_ever() -> Bytes {
    Bytes::copy_from_slice(&(1u64 << 60).to_le_bytes())
}

#[tokio::test]
async fn tasks_run_and_their_agents_count_them() {
    let setting = start(Watched::new(), |_| {});
    setting.spawn("echo");
    setting.spawn("exit");
    let record = setting.run(task("echo", "hello")).await;
    let Some(Completion::Executed(execution)) = record.completion.as_deref() else { panic!("{record:?}") };
    assert_eq!((record.state, &execution.output[..]), (TaskState::Completed, &b"hello"[..]));
    for _ in 0..9 {
        setting.run(task("echo", "again")).await;
    }
    let record = setting.run(task("exit", vec![3, 0, 0, 0])).await;
    assert_eq!((record.state, outcome(&record)), (TaskState::Failed, Outcome::from_exit_code(3)));
    assert_eq!(setting.sandbox.loads.load(Ordering::SeqCst), 2, "each plugin is loaded once");
    let unknown = setting.run(task("random", "")).await;
    assert!(message(&unknown).contains("no agent here runs plugin"), "{unknown:?}");
    let reports = setting.executor.reports();
    let echo = &reports[0];
    assert_eq!((echo.name.as_str(), echo.outcomes["completed"]), ("echo", 10));
    assert!(matches!(echo.state, AgentState::Ready | AgentState::Busy));
    assert!(echo.latency_p50 > Duration::ZERO && echo.latency_p99 >= echo.latency_p50);
    assert!(echo.memory_peak_bytes > 0);
    assert_eq!(reports[1].outcomes["failed"], 1);
    let again = setting.executor.spawn(AgentTemplate::new("echo", probe("args"))).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::InvalidInput);
    assert_eq!(setting.executor.remove("echo").unwrap().outcomes["completed"], 10);
    assert_eq!(setting.executor.remove("echo").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(setting.executor.drain(Duration::from_secs(5)).await.in_time);
}

#[tokio::test]
async fn an_outcome_that_is_too_large_to_keep_says_so() {
    let setting = start(Watched::new(), |_| {});
    setting.spawn("echo");
    let fits = setting.run(task("echo", vec![7; COMPLETION_BYTES_MAX])).await;
    assert_eq!(fits.state, TaskState::Completed);
    let record = setting.run(task("echo", vec![7; COMPLETION_BYTES_MAX + 1])).await;
    assert_eq!((record.state, record.lost), (TaskState::Failed, 0));
    assert!(message(&record).contains("larger than allowed"), "{record:?}");
}

#[tokio::test]
async fn a_cancelled_task_stops_and_makes_room() {
    let setting = start(Watched::new(), |options| options.tasks_max = 1);
    setting.spawn_with("sleep", |template| template.policy.quota.wall_time = None);
    setting.spawn("echo");
    let mut endless = task("sleep", for_ever());
    endless.policy.quota.wall_time = None;
    let running = setting.submit(endless).await;
    let next = setting.submit(task("echo", "next")).await;
    setting.sandbox.loading.notified().await;
    assert_eq!(setting.scheduler.cancel(running).await.unwrap(), TaskState::Cancelled);
    // The only place is free again: at once, not when the lease would have been renewed.
    let next = tokio::time::timeout(Duration::from_secs(5), setting.scheduler.wait(next)).await.expect("it has room");
    assert_eq!(next.unwrap().state, TaskState::Completed);
    assert_eq!(setting.scheduler.get(running).await.unwrap().lost, 0);
}

#[tokio::test]
async fn the_deadline_names_the_phase_it_passed_in() {
    let deadline = |verb: &str| {
        let mut task = task(verb, for_ever());
        task.policy.quota.wall_time = None;
        task.deadline = Some(SystemTime::now() + Duration::from_millis(500));
        task
    };
    let phase = |record: &TaskRecord| match outcome(record) {
        Outcome::QuotaExceeded { resource: Resource::WallTime, limit, used, phase } => {
            // From the submission on, whoever says so. While a task is queued, whole milliseconds are counted.
            let allowed = record.task.deadline.unwrap().duration_since(record.submitted_at).unwrap();
            assert!(used > limit && u128::from(limit).abs_diff(allowed.as_nanos()) <= 1_000_000, "{limit} {used}");
            phase
        }
        other => panic!("{other}"),
    };
    let open = |template: &mut AgentTemplate| template.policy.quota.wall_time = None;
    let setting = start(Watched::new(), |_| {});
    setting.spawn_with("count", open);
    let record = setting.run(deadline("count")).await;
    assert_eq!((record.state, phase(&record)), (TaskState::Failed, Phase::Running));
    let Some(Completion::Executed(execution)) = record.completion.as_deref() else { panic!() };
    assert!(execution.usage.wall_time > Duration::ZERO, "usage is reported on every outcome");

    let mut slow = Watched::new();
    slow.hold = Some(CancelToken::new());
    let setting = start(slow, |_| {});
    setting.spawn_with("count", open);
    assert_eq!(phase(&setting.run(deadline("count")).await), Phase::Loading);

    let setting = start(Watched::new(), |_| {});
    setting.spawn_with("count", |template| {
        open(template);
        template.tasks_max = 1;
    });
    let mut endless = task("count", for_ever());
    endless.policy.quota.wall_time = None;
    let first = setting.submit(endless).await;
    setting.sandbox.loading.notified().await;
    let record = setting.run(deadline("count")).await;
    assert_eq!(phase(&record), Phase::Queued, "it waited for its agent");
    setting.scheduler.cancel(first).await.unwrap();
}

#[tokio::test]
async fn leases_are_renewed_as_long_as_a_task_runs() {
    // A host function that waits, longer than several leases.
    let gate = CancelToken::new();
    let sink = Arc::new(RecordingSink::new());
    let clock = Clock::manual();
    let mut scheduler = SchedulerOptions::default();
    (scheduler.metrics, scheduler.clock) = (Arc::clone(&sink) as _, clock.clone());
    let scheduler = Arc::new(LocalScheduler::open(scheduler).unwrap());
    let mut options = ExecutorOptions::new(Arc::clone(&scheduler) as _, Arc::new(Fake::new(None)));
    options.lease_time = Duration::from_millis(60);
    let (opened, called) = (gate.clone(), Arc::new(AtomicUsize::new(0)));
    let calls = Arc::clone(&called);
    options.host = HostFunctions::new().add("wait", move |_| {
        calls.fetch_add(1, Ordering::SeqCst);
        let gate = opened.clone();
        async move {
            gate.cancelled().await;
            Ok(Bytes::from_static(b"done"))
        }
    });
    let executor = Executor::start(options).unwrap();
    let mut template = AgentTemplate::new("host", probe("host"));
    template.policy.grants.host_functions.insert("wait".into());
    executor.spawn(template).unwrap();
    let id = scheduler.submit(waiting()).await.unwrap().task;
    // Each time it was renewed, most of another lease passes.
    for renewals in 1..=8 {
        let renewed = async {
            while sink.value("palisade_task_leases_renewed_total", &[]) < Some(f64::from(renewals)) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), renewed).await.expect("it is renewed");
        clock.advance(Duration::from_millis(40));
        scheduler.tick();
    }
    let record = scheduler.get(id).await.unwrap();
    assert_eq!((record.state, record.lost), (TaskState::Running, 0));
    gate.cancel();
    let record = scheduler.wait(id).await.unwrap();
    assert_eq!((record.state, record.lost, called.load(Ordering::SeqCst)), (TaskState::Completed, 0, 1));
}

/// A host function that counts its calls, and lets none go before the token is cancelled.
fn gate(gate: &CancelToken, calls: &Arc<AtomicUsize>) -> HostFunctions {
    let (gate, calls) = (gate.clone(), Arc::clone(calls));
    HostFunctions::new().add("wait", move |_| {
        calls.fetch_add(1, Ordering::SeqCst);
        let gate = gate.clone();
        async move {
            gate.cancelled().await;
            Ok(Bytes::from_static(b"done"))
        }
    })
}

fn of(tenant: &str, mut task: Task) -> Task {
    task.tenant = Tenant(tenant.to_owned());
    task
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_agent_holds_nobodys_places() {
    const WAITING: usize = 1000;
    const PLACES: usize = 8;
    let (open, calls) = (CancelToken::new(), Arc::new(AtomicUsize::new(0)));
    let setting = start(Watched::new(), |options| {
        (options.tasks_max, options.host) = (PLACES, gate(&open, &calls));
    });
    setting.spawn("echo");
    setting.spawn_with("host", |template| {
        template.tasks_max = 1;
        template.policy.grants.host_functions.insert("wait".into());
    });
    let filter = EventFilter { plugin: Some(probe("host").hash()), ..EventFilter::default() };
    let mut events = setting.scheduler.events().subscribe(filter).unwrap();
    let heard = tokio::spawn(async move {
        let (mut started, mut given_back, mut ended) = (Vec::new(), Vec::new(), 0);
        while ended < WAITING {
            match &*events.next().await.unwrap() {
                Event::Started { about, .. } => started.push(about.task),
                Event::Released { about } => given_back.push(about.task),
                Event::Finished { .. } => ended += 1,
                Event::Missed { .. } => panic!("an event was missed"),
                _ => {}
            }
        }
        (started, given_back)
    });
    let (mut slow, mut quick) = (Vec::new(), Vec::new());
    for _ in 0..WAITING {
        slow.push(setting.submit(of("slow", waiting())).await);
    }
    // Behind all of these, of the same tenant and another.
    for number in 0..100 {
        quick.push(setting.submit(of(["slow", "other"][number % 2], task("echo", "x"))).await);
    }
    let all_quick = async {
        for id in &quick {
            let record = setting.scheduler.wait(*id).await.unwrap();
            assert_eq!((record.state, record.lost, record.failures), (TaskState::Completed, 0, 0));
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all_quick).await.expect("they need not wait for the slow one");
    assert_eq!(calls.load(Ordering::SeqCst), 1, "it is still in its first task");
    // What it was leased beyond its room is given back.
    let settled = async {
        while setting.scheduler.stats().queued != WAITING as u64 - 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), settled).await.expect("all others wait in the scheduler");
    assert_eq!(setting.scheduler.stats().running, 1);
    open.cancel();
    let all_slow = async {
        for id in &slow {
            let record = setting.scheduler.wait(*id).await.unwrap();
            assert_eq!((record.state, record.lost, record.failures), (TaskState::Completed, 0, 0));
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all_slow).await.expect("each end makes room for the next");
    assert_eq!(calls.load(Ordering::SeqCst), WAITING, "each ran once");
    let (mut started, given_back) = heard.await.unwrap();
    // Before it was known to be busy, some were leased to no avail.
    assert!(given_back.len() < 10 * PLACES, "{} tasks were given back", given_back.len());
    started.retain(|task| !given_back.contains(task));
    slow.retain(|task| !given_back.contains(task));
    assert!(started == slow, "the others start in their order");
}

#[tokio::test]
async fn a_resting_agent_holds_nobodys_places_and_is_asked_again_when_it_rested() {
    let mut sandbox = Watched::new();
    sandbox.panics = true;
    let setting = start(sandbox, |options| options.tasks_max = 2);
    const REST: Duration = Duration::from_millis(300);
    setting.spawn_with("args", |template| {
        template.restarts = RestartBudget { failures_max: 2, backoff_initial: REST, ..RestartBudget::default() };
    });
    let failed = Instant::now();
    assert!(matches!(outcome(&setting.run(task("args", "")).await), Outcome::Crashed { .. }));
    let mut resting = Vec::new();
    for _ in 0..10 {
        resting.push(setting.submit(task("args", "")).await);
    }
    // No agent runs this, which takes a place nevertheless.
    let record = setting.run(task("random", "")).await;
    assert!(message(&record).contains("no agent here") && failed.elapsed() < REST, "{:?}", failed.elapsed());
    // It crashes twice more and is terminated; the rest hears of it.
    for id in resting {
        let ended = tokio::time::timeout(Duration::from_secs(20), setting.scheduler.wait(id)).await;
        assert!(ended.expect("it is asked again").unwrap().state.is_final());
    }
    let report = &setting.executor.reports()[0];
    assert_eq!((report.state, report.restarts, report.outcomes["crashed"]), (AgentState::Terminated, 2, 3));
    assert!(failed.elapsed() >= REST);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_agents_get_on_with_a_journal() {
    // Room comes free all the time, also while a lease still waits for the journal.
    const TASKS: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let mut options = SchedulerOptions::default();
    options.journal = Some(Box::new(SqliteJournal::new(folder.path().join("tasks"), 64 << 20).unwrap()));
    let scheduler = Arc::new(LocalScheduler::open(options).unwrap());
    let mut options = ExecutorOptions::new(Arc::clone(&scheduler) as _, Arc::new(Fake::new(None)));
    options.tasks_max = 8;
    let executor = Executor::start(options).unwrap();
    let verbs = ["sleep", "echo", "args"];
    for verb in verbs {
        let mut template = AgentTemplate::new(verb, probe(verb));
        template.tasks_max = 1;
        executor.spawn(template).unwrap();
    }
    let submit = |verb: &'static str| {
        let scheduler = Arc::clone(&scheduler);
        tokio::spawn(async move {
            let mut ids = Vec::new();
            for _ in 0..TASKS {
                // A fifth of a millisecond.
                let task = task(verb, 200_000u64.to_le_bytes().to_vec());
                ids.push(scheduler.submit(task).await.unwrap().task);
            }
            for id in ids {
                let record = scheduler.wait(id).await.unwrap();
                assert_eq!((record.state, record.lost, record.failures), (TaskState::Completed, 0, 0));
            }
        })
    };
    for submitted in verbs.map(submit) {
        tokio::time::timeout(Duration::from_secs(60), submitted).await.expect("they get on").unwrap();
    }
    assert!(executor.reports().iter().all(|report| report.outcomes["completed"] == TASKS as u64));
}

#[tokio::test]
async fn a_panic_stays_where_it_is() {
    let mut sandbox = Watched::new();
    sandbox.panics = true;
    let setting = start(sandbox, |_| {});
    setting.spawn("echo");
    let record = setting.run(task("echo", "x")).await;
    let Outcome::Crashed { message } = outcome(&record) else { panic!("{record:?}") };
    assert!(message.contains("the loader panics"), "{message}");
    // The executor is well, and says so about the next one.
    let record = setting.run(task("random", "")).await;
    assert!(self::message(&record).contains("no agent here"));
    assert!(setting.executor.drain(Duration::from_secs(5)).await.in_time);
}

#[tokio::test]
async fn failures_of_the_host_are_tried_again_and_agents_that_go_on_failing_end() {
    let mut sandbox = Watched::new();
    *sandbox.failing.get_mut() = 1;
    let setting = start(sandbox, |_| {});
    setting.spawn("echo");
    let mut patient = task("echo", "x");
    (patient.retry.attempts_max, patient.retry.backoff_initial) = (2, Duration::from_millis(1));
    let record = setting.run(patient).await;
    assert_eq!((record.state, record.failures), (TaskState::Completed, 1));
    assert_eq!(setting.sandbox.loads.load(Ordering::SeqCst), 2, "a load that failed is not kept");

    let mut sandbox = Watched::new();
    sandbox.panics = true;
    let setting = start(sandbox, |_| {});
    setting.spawn_with("echo", |template| {
        template.restarts =
            RestartBudget { failures_max: 2, backoff_initial: Duration::from_millis(1), ..RestartBudget::default() };
    });
    for _ in 0..3 {
        assert!(matches!(outcome(&setting.run(task("echo", "x")).await), Outcome::Crashed { .. }));
    }
    let record = setting.run(task("echo", "x")).await;
    assert!(message(&record).contains("Terminated"), "{record:?}");
    assert_eq!(record.state, TaskState::Failed);
    assert_eq!(setting.sandbox.loads.load(Ordering::SeqCst), 3, "it is not even tried");
    let report = &setting.executor.reports()[0];
    assert_eq!((report.state, report.restarts, report.running), (AgentState::Terminated, 2, 0));
}

#[tokio::test]
async fn many_new_agents_wait_for_room_to_load_and_lose_no_attempt() {
    const ROOM: usize = 8;
    const AGENTS: u8 = 24;
    let hold = CancelToken::new();
    let mut sandbox = Watched::new();
    (sandbox.room, sandbox.hold) = (ROOM, Some(hold.clone()));
    let setting = start(sandbox, |_| {});
    let mut tasks = Vec::new();
    for number in 0..AGENTS {
        let artifact = Artifact::wasm([&probe("echo").bytes()[..], &[0, 3, 1, b'n', number]].concat()).named("echo");
        let mut task = task("echo", "x");
        task.plugin = artifact.hash();
        setting.executor.spawn(AgentTemplate::new(format!("agent {number}"), artifact)).unwrap();
        tasks.push(setting.submit(task).await);
    }
    while setting.sandbox.loads.load(Ordering::SeqCst) < ROOM {
        setting.sandbox.loading.notified().await;
    }
    hold.cancel();
    for task in tasks {
        let record = setting.scheduler.wait(task).await.unwrap();
        assert_eq!((record.state, record.failures), (TaskState::Completed, 0), "{record:?}");
    }
    assert_eq!(setting.sandbox.loads.load(Ordering::SeqCst), usize::from(AGENTS));
}

#[tokio::test]
async fn fresh_instances_share_nothing_and_kept_ones_go_on_until_they_end_badly() {
    // The probe `grow` takes memory that its instance keeps.
    let pages = |pages: u32| Bytes::copy_from_slice(&pages.to_le_bytes());
    for (mode, expected) in [
        (InstanceMode::Fresh, [TaskState::Completed; 3]),
        (InstanceMode::Kept, [TaskState::Completed, TaskState::Failed, TaskState::Completed]),
    ] {
        let setting = start(Watched::new(), |_| {});
        setting.spawn_with("grow", |template| {
            template.instances = mode;
            template.policy.quota.memory_bytes = Some(100 << 16);
            template.restarts.backoff_initial = Duration::from_millis(1);
        });
        let mut states = Vec::new();
        for _ in 0..3 {
            states.push(setting.run(unbounded(task("grow", pages(60)))).await.state);
        }
        assert_eq!(states, expected, "{mode:?}");
    }
}

#[tokio::test]
async fn malformed_tasks_end_no_agent_and_cost_no_instance() {
    let setting = start(Watched::new(), |_| {});
    setting.spawn_with("grow", |template| {
        template.instances = InstanceMode::Kept;
        template.policy.quota.memory_bytes = Some(100 << 16);
    });
    let grow = || unbounded(task("grow", Bytes::copy_from_slice(&30u32.to_le_bytes())));
    assert_eq!(setting.run(grow()).await.state, TaskState::Completed);
    for number in 0..20 {
        let mut malformed = task("grow", "");
        match number % 2 {
            0 => malformed.entry = format!("no such entry {number}"),
            _ => malformed.policy.grants.network = true,
        }
        let record = setting.run(malformed).await;
        assert!(!message(&record).contains("Terminated"), "{record:?}");
    }
    let report = &setting.executor.reports()[0];
    assert_eq!((report.state, report.restarts), (AgentState::Ready, 0));
    // The instance has what it had: 30 pages, 60, and no 30 more beside its own.
    assert_eq!(setting.run(grow()).await.state, TaskState::Completed);
    assert_eq!(setting.run(grow()).await.state, TaskState::Completed);
    assert_eq!(setting.run(grow()).await.state, TaskState::Failed, "the same instance all the while");
}

#[tokio::test]
async fn what_running_tasks_remember_is_saved_when_their_agent_was_removed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("memory");
    let (open, calls) = (CancelToken::new(), Arc::new(AtomicUsize::new(0)));
    let setting = start(Watched::new(), |options| options.host = gate(&open, &calls));
    let template = || {
        let mut template = AgentTemplate::new("one", probe("host"));
        template.policy.grants.host_functions = ["wait".to_owned()].into();
        template.memory_file = Some(file.clone());
        template
    };
    let memory = setting.executor.spawn(template()).unwrap();
    memory.set(b"key", Bytes::from_static(b"before")).unwrap();
    let mut waits = task("host", [&1u32.to_le_bytes()[..], b"wait"].concat());
    waits.policy.grants.host_functions = ["wait".to_owned()].into();
    let id = setting.submit(waits).await;
    until("it runs", || calls.load(Ordering::SeqCst) == 1).await;
    assert_eq!(setting.executor.remove("one").unwrap().state, AgentState::Draining);
    let early = setting.executor.spawn(template()).unwrap_err();
    assert_eq!(early.kind(), ErrorKind::Exhausted, "{early}");
    assert!(early.retry_after().is_some());
    memory.set(b"key", Bytes::from_static(b"after")).unwrap();
    open.cancel();
    assert_eq!(setting.scheduler.wait(id).await.unwrap().state, TaskState::Completed);
    let mut again = None;
    until("the name is free", || {
        again = setting.executor.spawn(template()).ok();
        again.is_some()
    })
    .await;
    assert_eq!(again.unwrap().get(b"key").as_deref(), Some(&b"after"[..]));
    // What cannot be saved is not removed, and goes on.
    std::fs::remove_dir_all(folder.path()).unwrap();
    assert_eq!(setting.executor.remove("one").unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(setting.executor.reports()[0].state, AgentState::Spawned);
    let mut waits = task("host", [&1u32.to_le_bytes()[..], b"wait"].concat());
    waits.policy.grants.host_functions = ["wait".to_owned()].into();
    assert_eq!(setting.run(waits).await.state, TaskState::Completed);
    let unsaved = setting.executor.drain(Duration::from_secs(5)).await.unsaved;
    assert_eq!((unsaved[0].0.as_str(), unsaved.len()), ("one", 1));
}

#[tokio::test]
async fn a_memory_that_was_taken_away_is_not_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("memory");
    let (open, calls) = (CancelToken::new(), Arc::new(AtomicUsize::new(0)));
    let setting = start(Watched::new(), |options| options.host = gate(&open, &calls));
    let template = || {
        let mut template = AgentTemplate::new("one", probe("host"));
        template.policy.grants.host_functions = ["wait".to_owned()].into();
        template.memory_file = Some(file.clone());
        template
    };
    setting.executor.spawn(template()).unwrap().set(b"key", Bytes::from_static(b"value")).unwrap();
    let mut waits = task("host", [&1u32.to_le_bytes()[..], b"wait"].concat());
    waits.policy.grants.host_functions = ["wait".to_owned()].into();
    let id = setting.submit(waits).await;
    until("it runs", || calls.load(Ordering::SeqCst) == 1).await;
    setting.executor.remove("one").unwrap();
    // As with the plugin whose agent it was.
    std::fs::remove_file(&file).unwrap();
    open.cancel();
    assert_eq!(setting.scheduler.wait(id).await.unwrap().state, TaskState::Completed);
    let mut again = None;
    until("the name is free", || {
        again = setting.executor.spawn(template()).ok();
        again.is_some()
    })
    .await;
    assert!(again.unwrap().is_empty() && !file.exists());
}

#[tokio::test]
async fn leases_are_renewed_in_the_time_that_was_granted() {
    let sink = Arc::new(RecordingSink::new());
    let mut scheduler = SchedulerOptions::default();
    scheduler.metrics = Arc::clone(&sink) as _;
    scheduler.limits.lease_time_max = Duration::from_millis(300);
    let (open, calls) = (CancelToken::new(), Arc::new(AtomicUsize::new(0)));
    let setting = start_over(scheduler, Watched::new(), |options| {
        options.lease_time = Duration::from_secs(3600);
        options.host = gate(&open, &calls);
    });
    setting.spawn_with("host", |template| template.policy.grants.host_functions = ["wait".to_owned()].into());
    let mut waits = task("host", [&1u32.to_le_bytes()[..], b"wait"].concat());
    waits.policy.grants.host_functions = ["wait".to_owned()].into();
    let id = setting.submit(waits).await;
    until("it is renewed", || sink.value("palisade_task_leases_renewed_total", &[]) >= Some(3.0)).await;
    open.cancel();
    assert_eq!(setting.scheduler.wait(id).await.unwrap().state, TaskState::Completed);

    // The shortest there is, is as long as a scheduler makes it.
    let setting = start(Watched::new(), |options| options.lease_time = Duration::from_nanos(1));
    setting.spawn("sleep");
    let record = setting.run(task("sleep", Bytes::copy_from_slice(&1_000_000u64.to_le_bytes()))).await;
    assert!(record.state.is_final(), "{record:?}");
}

/// A scheduler that panics first, then fails, then works.
#[derive(Debug)]
struct Moody {
    inner: LocalScheduler,
    asked: AtomicUsize,
}

impl Scheduler for Moody {
    fn submit(&self, task: Task) -> BoxFuture<'_, Result<Submission>> {
        self.inner.submit(task)
    }

    fn lease(&self, request: LeaseRequest) -> BoxFuture<'_, Result<Vec<Lease>>> {
        match self.asked.fetch_add(1, Ordering::SeqCst) {
            0 => panic!("the scheduler panics"),
            1 => Box::pin(async { Err(Error::new(ErrorKind::Io, "lease", "the wire is cut")) }),
            _ => self.inner.lease(request),
        }
    }

    fn renew(&self, task: TaskId, fence: Fence, lease_time: Duration) -> BoxFuture<'_, Result<SystemTime>> {
        self.inner.renew(task, fence, lease_time)
    }

    fn complete(&self, task: TaskId, fence: Fence, completion: Completion) -> BoxFuture<'_, Result<TaskState>> {
        self.inner.complete(task, fence, completion)
    }

    fn release(&self, task: TaskId, fence: Fence) -> BoxFuture<'_, Result<()>> {
        self.inner.release(task, fence)
    }

    fn cancel(&self, task: TaskId) -> BoxFuture<'_, Result<TaskState>> {
        self.inner.cancel(task)
    }

    fn get(&self, task: TaskId) -> BoxFuture<'_, Result<TaskRecord>> {
        self.inner.get(task)
    }

    fn wait(&self, task: TaskId) -> BoxFuture<'_, Result<TaskRecord>> {
        self.inner.wait(task)
    }

    fn dead_letters(&self, after: Option<TaskId>, tasks_max: usize) -> BoxFuture<'_, Result<Vec<TaskRecord>>> {
        self.inner.dead_letters(after, tasks_max)
    }

    fn list(&self, query: TaskQuery) -> BoxFuture<'_, Result<TaskPage>> {
        self.inner.list(query)
    }

    fn requeue(&self, task: TaskId) -> BoxFuture<'_, Result<TaskState>> {
        self.inner.requeue(task)
    }

    fn set_mode(&self, mode: SchedulerMode) -> BoxFuture<'_, Result<()>> {
        self.inner.set_mode(mode)
    }

    fn stats(&self) -> SchedulerStats {
        self.inner.stats()
    }
}

#[tokio::test(start_paused = true)]
async fn a_scheduler_in_trouble_is_told_of_and_asked_again() {
    let scheduler = Arc::new(Moody {
        inner: LocalScheduler::open(SchedulerOptions::default()).unwrap(),
        asked: AtomicUsize::new(0),
    });
    let sandbox: Arc<dyn Sandbox> = Arc::new(Fake::new(None));
    let executor = Executor::start(ExecutorOptions::new(Arc::clone(&scheduler) as _, sandbox)).unwrap();
    executor.spawn(AgentTemplate::new("echo", probe("echo"))).unwrap();
    let mut seen = Vec::new();
    until("it works", || {
        if let Err(error) = executor.check()
            && seen.last() != Some(&error.to_string())
        {
            seen.push(error.to_string());
        }
        scheduler.asked.load(Ordering::SeqCst) > 2
    })
    .await;
    assert!(seen[0].contains("panicked") && seen[1].contains("the wire is cut"), "{seen:?}");
    let id = scheduler.submit(task("echo", "")).await.unwrap().task;
    assert_eq!(scheduler.wait(id).await.unwrap().state, TaskState::Completed);
    until("all is well", || executor.check().is_ok()).await;
}

/// However many tasks without an end one tenant submits, of whatever class: the others' run.
#[tokio::test]
async fn a_tenant_whose_tasks_never_end_leaves_places_for_others() {
    let (open, calls) = (CancelToken::new(), Arc::new(AtomicUsize::new(0)));
    let setting = start(Watched::new(), |options| {
        options.tasks_max = 8;
        options.host = gate(&open, &calls);
    });
    setting.spawn_with("host", |template| {
        template.policy.grants.host_functions = ["wait".to_owned()].into();
        template.policy.quota.wall_time = None;
    });
    setting.spawn("echo");
    for number in 0..30 {
        let mut endless = of("greedy", task("host", [&1u32.to_le_bytes()[..], b"wait"].concat()));
        endless.policy.grants.host_functions = ["wait".to_owned()].into();
        endless.policy.quota.wall_time = None;
        (endless.priority, endless.arguments) = (Priority::Critical, vec![number.to_string()]);
        setting.submit(endless).await;
    }
    until("as many run as may", || calls.load(Ordering::SeqCst) == 4).await;
    for _ in 0..20 {
        let mut modest = of("modest", task("echo", "quick"));
        modest.priority = Priority::Low;
        assert_eq!(setting.run(modest).await.state, TaskState::Completed);
    }
    assert_eq!((calls.load(Ordering::SeqCst), setting.scheduler.stats().running), (4, 4));
    open.cancel();
    until("all come to their end", || setting.scheduler.stats().running + setting.scheduler.stats().queued == 0).await;
    assert_eq!(calls.load(Ordering::SeqCst), 30);
}

#[tokio::test]
async fn agents_have_memories_of_their_own() {
    let setting = start(Watched::new(), |_| {});
    let mut memories = Vec::new();
    for (name, verb) in [("one", "host"), ("two", "echo")] {
        let mut template = AgentTemplate::new(name, probe(verb));
        template.policy.grants.host_functions = ["kv.set".to_owned(), "kv.get".to_owned()].into();
        memories.push(setting.executor.spawn(template).unwrap());
    }
    memories[0].set(b"argument", Bytes::from_static(b"of one")).unwrap();
    // The probe calls the function with the input `argument`, which is a key, and writes what it gets.
    let ask = || {
        let mut ask = task("host", [&1u32.to_le_bytes()[..], b"kv.get"].concat());
        ask.policy.grants.host_functions.insert("kv.get".into());
        ask
    };
    let record = setting.run(ask()).await;
    let Some(Completion::Executed(execution)) = record.completion.as_deref() else { panic!("{record:?}") };
    assert!(execution.output.ends_with(b"\x01of one"), "{:?}", execution.output);
    assert!(memories[1].is_empty());
    assert_eq!(setting.executor.reports()[0].memory_bytes, 14);
    let mut denied = ask();
    denied.policy.grants.network = true;
    let record = setting.run(denied).await;
    assert!(message(&record).contains("the network"), "{record:?}");
}

#[tokio::test]
async fn a_memory_outlives_its_executor() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("memory");
    let template = || {
        let mut template = AgentTemplate::new("one", probe("echo"));
        template.memory_file = Some(file.clone());
        template
    };
    let setting = start(Watched::new(), |_| {});
    let memory = setting.executor.spawn(template()).unwrap();
    memory.set(b"key", Bytes::from_static(b"value")).unwrap();
    assert!(setting.executor.drain(Duration::from_secs(5)).await.unsaved.is_empty());
    let setting = start(Watched::new(), |_| {});
    let memory = setting.executor.spawn(template()).unwrap();
    assert_eq!(memory.get(b"key").as_deref(), Some(&b"value"[..]));
    memory.delete(b"key");
    setting.executor.remove("one").unwrap();
    assert!(setting.executor.spawn(template()).unwrap().is_empty());
    std::fs::remove_dir_all(folder.path()).unwrap();
    let unsaved = setting.executor.drain(Duration::from_secs(5)).await.unsaved;
    assert_eq!((unsaved[0].0.as_str(), unsaved[0].1.kind(), unsaved.len()), ("one", ErrorKind::Io, 1));
}

#[tokio::test]
async fn draining_is_bounded_and_gives_back_what_still_runs() {
    // With room for more, and without: then the executor waits for a place.
    for places in [256, 1] {
        draining_is_bounded(places).await;
    }
}

async fn draining_is_bounded(places: usize) {
    let setting = start(Watched::new(), |options| options.tasks_max = places);
    setting.spawn_with("count", |template| template.policy.quota.wall_time = None);
    setting.spawn("echo");
    let done = setting.run(task("echo", "x")).await;
    assert_eq!(done.state, TaskState::Completed);
    let mut endless = task("count", for_ever());
    endless.policy.quota.wall_time = None;
    let id = setting.submit(endless).await;
    while setting.scheduler.get(id).await.unwrap().state != TaskState::Running {
        tokio::task::yield_now().await;
    }
    let Setting { scheduler, executor, .. } = setting;
    let drained = tokio::time::timeout(Duration::from_secs(20), executor.drain(Duration::from_millis(20))).await;
    let drained = drained.expect("it is bounded");
    assert!(!drained.in_time);
    let record = scheduler.get(id).await.unwrap();
    assert_eq!((record.state, record.lost, record.failures), (TaskState::Queued, 0, 0), "given back, uncounted");
    let late = scheduler.submit(task("echo", "late")).await.unwrap().task;
    assert_eq!(scheduler.get(late).await.unwrap().state, TaskState::Queued, "nobody leases any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_of_many_agents() {
    const TASKS: usize = 2000;
    let setting = start(Watched::new(), |options| options.modules_max = 2);
    let verbs = ["echo", "args", "environ", "random"];
    verbs.iter().for_each(|verb| setting.spawn(verb));
    let ids = Mutex::new(Vec::new());
    for number in 0..TASKS {
        let input = if number % 4 == 3 { 8u32.to_le_bytes().to_vec() } else { b"x".to_vec() };
        let id = setting.submit(task(verbs[number % 4], input)).await;
        ids.lock().unwrap().push(id);
    }
    let ids = ids.into_inner().unwrap();
    for id in ids {
        let record = setting.scheduler.wait(id).await.unwrap();
        assert_eq!(record.state, TaskState::Completed, "{record:?}");
    }
    let drained = setting.executor.reports().iter().map(|report| report.outcomes["completed"]).sum::<u64>();
    assert_eq!(drained, TASKS as u64);
    let loads = setting.sandbox.loads.load(Ordering::SeqCst);
    assert!((4..TASKS).contains(&loads), "{loads} loads with room for two modules");
}

/// Has no room while it is told so.
#[derive(Debug)]
struct NoRoom(Arc<AtomicBool>);

impl Journal for NoRoom {
    fn open(&mut self, _: &mut dyn FnMut(Restored) -> Result<()>) -> Result<u64> {
        Ok(1)
    }

    fn commit(&mut self, _: &[JournalEntry]) -> Result<()> {
        match self.0.load(Ordering::SeqCst) {
            true => Err(Error::new(ErrorKind::Exhausted, "commit", "there is no room")),
            false => Ok(()),
        }
    }
}

/// A task that runs while the disk is full runs on, once, and its outcome is kept when there is room; and it can still be
/// cancelled afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_run_on_while_the_disk_is_full() {
    let (full, sink) = (Arc::new(AtomicBool::new(false)), Arc::new(RecordingSink::new()));
    let mut options = SchedulerOptions::default();
    options.journal = Some(Box::new(NoRoom(Arc::clone(&full))));
    options.metrics = Arc::clone(&sink) as _;
    let (mut sandbox, hold) = (Watched::new(), CancelToken::new());
    sandbox.hold = Some(hold.clone());
    let setting = start_over(options, sandbox, |options| options.lease_time = Duration::from_millis(300));
    setting.spawn("echo");
    setting.spawn("sleep");
    let echo = setting.submit(task("echo", "over the gap")).await;
    setting.sandbox.loading.notified().await;

    full.store(true, Ordering::SeqCst);
    let refused = task("sleep", for_ever());
    assert_eq!(setting.scheduler.submit(refused.clone()).await.unwrap_err().kind(), ErrorKind::Exhausted);
    // Longer than a lease lasts.
    let renewed = || sink.value("palisade_task_leases_renewed_total", &[]).unwrap_or_default();
    let before = renewed();
    until("leases are renewed", || renewed() >= before + 4.0).await;
    hold.cancel();
    until("the task ends", || setting.scheduler.stats().running == 0).await;
    assert_eq!(setting.scheduler.get(echo).await.unwrap_err().kind(), ErrorKind::Exhausted);

    full.store(false, Ordering::SeqCst);
    until("there is room", || setting.scheduler.check().is_ok()).await;
    let record = setting.scheduler.wait(echo).await.unwrap();
    assert_eq!((record.state, record.failures, record.lost), (TaskState::Completed, 0, 0));

    // One that runs from before the next gap until after it.
    let sleep = setting.submit(refused).await;
    until("it runs", || setting.scheduler.stats().running == 1).await;
    full.store(true, Ordering::SeqCst);
    assert!(setting.scheduler.submit(task("echo", "")).await.is_err());
    let before = renewed();
    until("its lease is renewed", || renewed() >= before + 4.0).await;
    full.store(false, Ordering::SeqCst);
    until("there is room again", || setting.scheduler.check().is_ok()).await;
    let running = || setting.executor.reports().iter().map(|agent| agent.running).sum::<usize>();
    until("only it runs", || running() == 1).await;
    assert_eq!(setting.scheduler.get(sleep).await.unwrap().lost, 0);
    setting.scheduler.cancel(sleep).await.unwrap();
    until("its worker hears of it", || running() == 0).await;
}

/// Waits for something that nobody tells of.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}: not within 30 s");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_of_attempts_and_agents_are_told() {
    let sink = Arc::new(RecordingSink::new());
    let setting = start(Watched::new(), |options| options.metrics = Arc::clone(&sink) as _);
    setting.spawn_with("echo", |template| {
        template.instances = InstanceMode::Kept;
        template.policy.quota.output_bytes = Some(1000);
        template.policy.quota.wall_time = None;
    });
    setting.spawn("sleep");
    setting.spawn("crash");
    for length in [100, 500] {
        assert_eq!(setting.run(unbounded(task("echo", vec![b'.'; length]))).await.state, TaskState::Completed);
    }
    let instances = |from| sink.value("palisade_task_instances_total", &[("from", from)]);
    assert_eq!((instances("new"), instances("kept")), (Some(1.0), Some(1.0)));
    let used = sink.observed("palisade_task_quota_used_ratio", &[("resource", "output_bytes")]).unwrap();
    assert_eq!(used, [0.1, 0.5], "of no quota a larger part was used");
    let start = sink.observed("palisade_task_start_seconds", &[]).unwrap();
    let run = sink.observed("palisade_task_run_seconds", &[]).unwrap();
    assert!(start.len() == 2 && run.iter().zip(&start).all(|(run, start)| run >= start && *start > 0.0));

    // One is stopped by its limit, one because it is cancelled.
    let kills = || sink.observed("palisade_task_kill_seconds", &[]).unwrap();
    assert_eq!(kills().len(), 0);
    let mut limited = task("sleep", for_ever());
    limited.policy.quota.wall_time = Some(Duration::from_millis(20));
    assert_eq!(setting.run(limited).await.state, TaskState::DeadLettered);
    assert!(matches!(kills()[..], [late] if late > 0.0 && late < 10.0), "{:?}", kills());
    let cancelled = setting.submit(task("sleep", for_ever())).await;
    let agents = |state| sink.value("palisade_agents", &[("state", state)]);
    let running = || setting.executor.reports().iter().map(|agent| agent.running).sum::<usize>();
    until("it runs", || running() == 1).await;
    let told = || ["spawned", "ready", "busy", "draining", "terminated"].map(|state| agents(state).unwrap_or_default());
    until("the agent's work is told", || told() == [1.0, 1.0, 1.0, 0.0, 0.0]).await;
    setting.scheduler.cancel(cancelled).await.unwrap();
    until("the end is told", || kills().len() == 2).await;
    until("the agent's rest is told", || told() == [1.0, 2.0, 0.0, 0.0, 0.0]).await;
}

/// On one thread: whoever blocks it blocks everybody.
#[tokio::test]
async fn preparing_holds_nobody_up() {
    let gate = Arc::new((std::sync::Mutex::new(false), std::sync::Condvar::new()));
    let mut sandbox = Watched::new();
    sandbox.slow = Some(("count", Arc::clone(&gate)));
    let setting = start(sandbox, |_| {});
    setting.spawn("count");
    setting.spawn("echo");
    let slow = setting.submit(task("count", 1u64.to_le_bytes().to_vec())).await;
    let record = tokio::time::timeout(Duration::from_secs(60), setting.run(task("echo", "x"))).await;
    assert_eq!(record.expect("others run meanwhile").state, TaskState::Completed);
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    assert_eq!(setting.scheduler.wait(slow).await.unwrap().state, TaskState::Completed);
}
