//! Runs the tasks of a scheduler in a sandbox.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use palisade_core::{
    ArtifactHash, BoxFuture, Call, CancelToken, Completion, Error, ErrorKind, Execution, HostFunctions, Lease,
    LeaseRequest, MetricsSink, Outcome, Phase, Report, Resource, Result, Sandbox, Scheduler, Task, TraceContext, Usage,
    WorkerId,
};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;
use tracing::Instrument;
use uuid::Uuid;

use crate::agent::{Agent, Beginning, Turn, name as outcome_name};
use crate::busy::BusyAgents;
use crate::figures::{Figures, Notes, Told, quota_used};
use crate::lines::{self, Line, WEIGHTS_BYTES_MAX};
use crate::modules::Modules;
use crate::trace::AttemptTrace;
use crate::{AgentMemory, AgentReport, AgentTemplate, Events, InstanceMode, NullSink};

/// Whether a task may run at all, asked before each attempt: see [`ExecutorOptions::admit`].
#[derive(Clone)]
pub struct AdmitTask(Arc<Admit>);

type Admit = dyn Fn(&Task) -> Result<()> + Send + Sync;

impl AdmitTask {
    /// Asks `admit`, which must not wait for anything.
    pub fn new(admit: impl Fn(&Task) -> Result<()> + Send + Sync + 'static) -> AdmitTask {
        AdmitTask(Arc::new(admit))
    }
}

impl fmt::Debug for AdmitTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdmitTask")
    }
}

/// How to start an [`Executor`].
#[derive(Debug)]
#[non_exhaustive]
pub struct ExecutorOptions {
    /// Where tasks come from.
    pub scheduler: Arc<dyn Scheduler>,
    /// Where they run.
    pub sandbox: Arc<dyn Sandbox>,
    /// What guests may be granted, besides their agent's memory.
    pub host: HostFunctions,
    /// Tasks leased at once. Default 256.
    pub tasks_max: usize,
    /// How long a lease lasts unless it is renewed; it is, each third of this time. Default 30 s.
    pub lease_time: Duration,
    /// Loaded modules kept. Default 256.
    pub modules_max: usize,
    /// Agents at once. Default 10 000.
    pub agents_max: usize,
    /// How long a guest that was told to end may take before it is dropped. Default 1 s.
    pub stop_grace: Duration,
    /// Who hears its figures.
    pub metrics: Arc<dyn MetricsSink>,
    /// Where its agents' changes of state are told.
    pub events: Events,
    /// Has the last word on each attempt: what was allowed when a task was submitted need not be allowed any more. A task
    /// that is refused fails for good. `None`: all may run that their agents admit.
    pub admit: Option<AdmitTask>,
}

impl ExecutorOptions {
    /// Defaults for everything but the two sides it connects.
    pub fn new(scheduler: Arc<dyn Scheduler>, sandbox: Arc<dyn Sandbox>) -> ExecutorOptions {
        ExecutorOptions {
            scheduler,
            sandbox,
            host: HostFunctions::new(),
            tasks_max: 256,
            lease_time: Duration::from_secs(30),
            modules_max: 256,
            agents_max: 10_000,
            stop_grace: Duration::from_secs(1),
            metrics: Arc::new(NullSink),
            events: Events::default(),
            admit: None,
        }
    }
}

/// Leases tasks and runs each by the agent of its plugin.
///
/// While a task runs, its lease is renewed; when the lease is lost or the task cancelled, the guest is stopped. A task's
/// deadline covers everything from loading to teardown, and the outcome names the phase it passed in. A panic in one task
/// ends that task only, as `Crashed`.
///
/// Tasks of an agent that is at its limit, or rests after a failure, wait in the scheduler, and those behind them go ahead;
/// those it was leased before it came to that are given back.
#[derive(Debug)]
pub struct Executor {
    shared: Arc<Shared>,
    leasing: Option<JoinHandle<()>>,
    telling: JoinHandle<()>,
    runtime: Handle,
    /// Agents that are removed and still run tasks, and how saving their memory after that goes.
    leaving: Mutex<Vec<(String, JoinHandle<Result<()>>)>>,
}

/// What became of the tasks that ran when an executor was drained.
#[derive(Debug)]
#[non_exhaustive]
pub struct Drained {
    /// Whether all came to their end within the grace. Otherwise those that had not were stopped and given back.
    pub in_time: bool,
    /// Agents whose memory could not be saved, and why.
    pub unsaved: Vec<(String, Error)>,
}

struct Shared {
    scheduler: Arc<dyn Scheduler>,
    modules: Modules,
    host: HostFunctions,
    options: Bounds,
    slots: Arc<Semaphore>,
    agents: Mutex<HashMap<ArtifactHash, Arc<Agent>>>,
    /// Names and artifacts of agents that are being made, or were removed and are being saved. Locked after the agents.
    taken: Mutex<HashSet<(String, ArtifactHash)>>,
    /// What the lines of all agents weigh.
    weights: Arc<AtomicUsize>,
    /// Why no tasks are leased, while that is so.
    trouble: Mutex<Option<Error>>,
    busy: BusyAgents,
    /// What tasks that run are to do.
    order: watch::Sender<Order>,
    metrics: Figures,
    events: Events,
    admit: Option<AdmitTask>,
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    tasks_max: usize,
    lease_time: Duration,
    agents_max: usize,
    stop_grace: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
enum Order {
    Work,
    /// Take no more tasks.
    Drain,
    /// Give back what still runs.
    Stop,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).finish_non_exhaustive()
    }
}

/// How often a scheduler that fails is asked again, at first and at most.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Most tasks leased in one go.
const BATCH_MAX: usize = 64;

impl Executor {
    /// Starts leasing and running tasks on the current Tokio runtime, whose timer must be enabled.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for bounds of zero, those of registering metrics.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub fn start(options: ExecutorOptions) -> Result<Executor> {
        if options.tasks_max == 0 || options.lease_time.is_zero() {
            return Err(Error::new(ErrorKind::InvalidInput, "start", "an executor runs 1 task or more, for some time"));
        }
        let bounds = Bounds {
            tasks_max: options.tasks_max.min(Semaphore::MAX_PERMITS),
            lease_time: options.lease_time,
            agents_max: options.agents_max,
            stop_grace: options.stop_grace,
        };
        let shared = Arc::new(Shared {
            scheduler: options.scheduler,
            modules: Modules::new(options.sandbox, options.modules_max),
            host: options.host,
            slots: Arc::new(Semaphore::new(bounds.tasks_max)),
            options: bounds,
            agents: Mutex::default(),
            taken: Mutex::default(),
            weights: Arc::default(),
            trouble: Mutex::default(),
            busy: BusyAgents::default(),
            order: watch::Sender::new(Order::Work),
            metrics: Figures::new(options.metrics)?,
            events: options.events,
            admit: options.admit,
        });
        let leasing = tokio::spawn(keep_leasing(Arc::clone(&shared)));
        let telling = tokio::spawn(tell_agents(Arc::clone(&shared)));
        let (runtime, leaving) = (Handle::current(), Mutex::default());
        Ok(Executor { shared, leasing: Some(leasing), telling, runtime, leaving })
    }

    /// Whether it gets tasks.
    ///
    /// # Errors
    ///
    /// The scheduler's, when it gave an error the last time it was asked; it is asked again from time to time.
    pub fn check(&self) -> Result<()> {
        let trouble = lock(&self.shared.trouble);
        let Some(error) = &*trouble else { return Ok(()) };
        Err(Error::new(error.kind(), "lease", format!("no tasks are leased: {error}")))
    }

    /// Makes an agent, which runs the tasks of its template's artifact from now on. Reads its memory from a file when there is
    /// one, so call it where that may take its time.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] when there is an agent of that name or for that artifact,
    /// [`ErrorKind::InvalidPolicy`], [`ErrorKind::Exhausted`] when there are too many agents, and when one of that name or
    /// artifact was removed and still runs tasks whose memory is to be saved; those of [`AgentMemory::load`].
    pub fn spawn(&self, template: AgentTemplate) -> Result<AgentMemory> {
        template.policy.validate()?;
        let plugin = template.artifact.hash();
        let place = {
            let agents = self.shared.agents();
            let mut taken = lock(&self.shared.taken);
            if agents.len() + taken.len() >= self.shared.options.agents_max {
                return Err(Error::new(ErrorKind::Exhausted, "spawn", "there are too many agents")
                    .with_context("limit", self.shared.options.agents_max)
                    .with_help("remove one that is not needed"));
            }
            let named = |agent: &Arc<Agent>| agent.template.name == template.name;
            if agents.contains_key(&plugin) || agents.values().any(named) {
                let message = format!("there is an agent `{}` or another for this artifact already", template.name);
                return Err(Error::new(ErrorKind::InvalidInput, "spawn", message));
            }
            if taken.iter().any(|(name, artifact)| *name == template.name || *artifact == plugin) {
                let message = format!("an agent `{}` or another for this artifact still begins or ends", template.name);
                return Err(Error::new(ErrorKind::Exhausted, "spawn", message)
                    .with_help("wait until the tasks of the earlier one have ended")
                    .with_retry_after(Duration::from_secs(1)));
            }
            Taken::take(&self.shared, &mut taken, (template.name.clone(), plugin))
        };
        let agent = Agent::new(template, &self.shared.host, self.shared.events.clone(), self.shared.busy.changed())?;
        let memory = agent.memory.clone();
        let mut agents = self.shared.agents();
        agents.insert(plugin, Arc::new(agent));
        drop(place);
        Ok(memory)
    }

    /// Removes an agent: it takes no more tasks, and ends when those it runs have ended. Gives its report. Its memory is
    /// saved before this returns, and again when the last of its tasks has ended, unless its file was taken away meanwhile.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`]; those of [`AgentMemory::save`], and then it is not removed. What fails later is told by
    /// [`Executor::drain`] and in the log.
    pub fn remove(&self, name: &str) -> Result<AgentReport> {
        let (plugin, agent, before, place) = {
            let mut agents = self.shared.agents();
            let found = agents.iter().find(|(_, agent)| agent.template.name == name);
            let (plugin, agent) = found
                .map(|(plugin, agent)| (*plugin, Arc::clone(agent)))
                .ok_or_else(|| Error::new(ErrorKind::NotFound, "remove", format!("there is no agent `{name}`")))?;
            agents.remove(&plugin);
            let place = Taken::take(&self.shared, &mut lock(&self.shared.taken), (name.to_owned(), plugin));
            let before = agent.drain();
            (plugin, agent, before, place)
        };
        let runs_tasks = agent.running() > 0;
        if let Err(error) = agent.save() {
            let mut agents = self.shared.agents();
            agent.resume(before);
            agents.insert(plugin, agent);
            drop(place);
            return Err(error);
        }
        if runs_tasks && agent.template.memory_file.is_some() {
            let leaver = Arc::clone(&agent);
            let saving = self.runtime.spawn(async move {
                while leaver.running() > 0 {
                    leaver.ended.notified().await;
                }
                let saved = tokio::task::spawn_blocking(move || leaver.save_again()).await;
                let saved = saved.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "save", "saving panicked")));
                if let Err(error) = &saved {
                    tracing::error!(agent = place.0.0, "the memory of a removed agent is not saved: {error}");
                }
                drop(place);
                saved
            });
            let mut leaving = lock(&self.leaving);
            leaving.retain(|(_, saving)| !saving.is_finished());
            leaving.push((name.to_owned(), saving));
        }
        self.shared.busy.remove(plugin);
        Ok(agent.report())
    }

    /// What each agent did and where it is, sorted by name.
    pub fn reports(&self) -> Vec<AgentReport> {
        let mut reports: Vec<_> = self.shared.agents().values().map(|agent| agent.report()).collect();
        reports.sort_by(|one, other| one.name.cmp(&other.name));
        reports
    }

    /// The memory of the agent that runs the tasks of `plugin`, if there is one.
    pub fn memory(&self, plugin: ArtifactHash) -> Option<AgentMemory> {
        self.shared.agents().get(&plugin).map(|agent| agent.memory.clone())
    }

    /// Takes no more tasks, lets those that run come to their end within `grace`, then stops what is left and gives it
    /// back to the scheduler, uncounted.
    pub async fn drain(mut self, grace: Duration) -> Drained {
        self.shared.order.send_replace(Order::Drain);
        if let Some(leasing) = self.leasing.take() {
            let _ = leasing.await;
        }
        self.shared.agents().values().for_each(|agent| {
            agent.drain();
        });
        let all = u32::try_from(self.shared.options.tasks_max).unwrap_or(u32::MAX);
        let in_time = tokio::time::timeout(grace, self.shared.slots.acquire_many(all)).await.is_ok();
        if !in_time {
            self.shared.order.send_replace(Order::Stop);
            // Bounded: each task ends within the grace for stopping, or is dropped.
            let _ = self.shared.slots.acquire_many(all).await;
        }
        let agents: Vec<_> = self.shared.agents().values().cloned().collect();
        let mut saving: Vec<_> = agents
            .chunks(agents.len().div_ceil(SAVES_MAX).max(1))
            .map(|part| {
                let part = part.to_vec();
                tokio::task::spawn_blocking(move || {
                    let unsaved =
                        part.iter().filter_map(|agent| Some((agent.template.name.clone(), agent.save().err()?)));
                    unsaved.collect::<Vec<_>>()
                })
            })
            .collect();
        let mut unsaved = Vec::new();
        for part in saving.drain(..) {
            unsaved.extend(part.await.unwrap_or_default());
        }
        let leaving = std::mem::take(&mut *lock(&self.leaving));
        for (name, saving) in leaving {
            if let Ok(Err(error)) = saving.await {
                unsaved.push((name, error));
            }
        }
        Drained { in_time, unsaved }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.shared.order.send_replace(Order::Stop);
        self.telling.abort();
        if let Some(leasing) = self.leasing.take() {
            leasing.abort();
        }
    }
}

/// Most memories saved at once: enough that a disk is busy.
const SAVES_MAX: usize = 8;

// What is locked is whole after each statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name and an artifact that no other agent may have meanwhile.
struct Taken((String, ArtifactHash), Arc<Shared>);

impl Taken {
    fn take(shared: &Arc<Shared>, taken: &mut HashSet<(String, ArtifactHash)>, what: (String, ArtifactHash)) -> Taken {
        taken.insert(what.clone());
        Taken(what, Arc::clone(shared))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        lock(&self.1.taken).remove(&self.0);
    }
}

impl Shared {
    fn agents(&self) -> MutexGuard<'_, HashMap<ArtifactHash, Arc<Agent>>> {
        lock(&self.agents)
    }

    fn tell_agents(&self) {
        // Looked at one by one later, so that nobody waits meanwhile.
        let agents: Vec<_> = self.agents().values().cloned().collect();
        self.metrics.agents(agents.iter().map(|agent| agent.state()));
        let now = Instant::now();
        agents.iter().for_each(|agent| agent.drop_idle_lines(now));
    }

    /// Makes room when what all agents have prepared is too much.
    fn bound_lines(&self) {
        let weights = self.weights.load(Ordering::Relaxed);
        if weights <= WEIGHTS_BYTES_MAX {
            return;
        }
        let agents: Vec<_> = self.agents().values().cloned().collect();
        if let Some(until) = lines::cut(agents.iter().flat_map(|agent| agent.unused_lines()).collect(), weights) {
            agents.iter().for_each(|agent| agent.drop_lines_until(until));
        }
    }

    /// Notes whether tasks are leased, and says so in the log when that changes.
    fn note_trouble(&self, trouble: Option<Error>) {
        let mut noted = lock(&self.trouble);
        match (&*noted, &trouble) {
            (None, Some(error)) => tracing::error!("no tasks are leased: {error}"),
            (Some(_), None) => tracing::info!("tasks are leased again"),
            _ => {}
        }
        *noted = trouble;
    }
}

/// How often it is told what the agents do.
const TELL_TIME: Duration = Duration::from_secs(1);

async fn tell_agents(shared: Arc<Shared>) {
    let mut times = tokio::time::interval(TELL_TIME);
    times.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        times.tick().await;
        shared.tell_agents();
    }
}

/// Leases until it is told to end, also when a scheduler panics.
/// How long a scheduler that gave errors lets a lease wait before it counts as recovered.
const RECOVERED: Duration = Duration::from_millis(200);

async fn keep_leasing(shared: Arc<Shared>) {
    let mut order = shared.order.subscribe();
    while tokio::spawn(lease_all(Arc::clone(&shared))).await.is_err() {
        shared.note_trouble(Some(Error::new(ErrorKind::Internal, "lease", "the scheduler panicked")));
        tokio::select! {
            () = ordered(&mut order, Order::Drain) => return,
            () = tokio::time::sleep(PATIENCE.1) => {}
        }
    }
}

async fn lease_all(shared: Arc<Shared>) {
    let worker = WorkerId(Uuid::now_v7());
    let mut order = shared.order.subscribe();
    let mut patience = PATIENCE.0;
    // Perhaps the last one panicked.
    let mut troubled = true;
    let mut cut_short = 0;
    loop {
        let mut permits = tokio::select! {
            biased;
            // Never closed.
            first = Arc::clone(&shared.slots).acquire_owned() => match first {
                Ok(first) => first,
                Err(_) => return,
            },
            () = ordered(&mut order, Order::Drain) => return,
        };
        let more = shared.slots.available_permits().min(BATCH_MAX - 1);
        if let Ok(more) = Arc::clone(&shared.slots).try_acquire_many_owned(more as u32) {
            permits.merge(more);
        }
        let mut request = LeaseRequest::new(worker, permits.num_permits(), shared.options.lease_time);
        request.places = shared.options.tasks_max;
        let tasks_max = request.tasks_max;
        let mut wish = shared.busy.wish(tasks_max);
        request.plugin_limits = Arc::clone(&wish.limits);
        let lease = async {
            let mut lease = shared.scheduler.lease(request);
            if troubled {
                // A scheduler that lets it wait, for want of tasks, has no trouble any more.
                match tokio::time::timeout(RECOVERED, &mut lease).await {
                    Ok(leases) => return leases,
                    Err(_) => shared.note_trouble(None),
                }
            }
            lease.await
        };
        let leases = tokio::select! {
            biased;
            () = ordered(&mut order, Order::Drain) => return,
            leases = lease => leases,
            () = shared.busy.another_wish(&wish, cut_short) => {
                cut_short += 1;
                shared.busy.had_enough(wish);
                continue;
            }
        };
        cut_short = 0;
        match leases {
            Ok(leases) => {
                patience = PATIENCE.0;
                if std::mem::take(&mut troubled) {
                    shared.note_trouble(None);
                }
                let has_more = leases.len() >= tasks_max;
                // As many as were asked for at most.
                let leased = leases.into_iter().map(|lease| {
                    let turn = wish.turn(&lease);
                    (lease, permits.split(1), turn)
                });
                start(&shared, leased.collect());
                if !has_more {
                    shared.busy.had_enough(wish);
                }
            }
            Err(error) => {
                drop(permits);
                troubled = true;
                shared.note_trouble(Some(error));
                tokio::select! {
                    () = ordered(&mut order, Order::Drain) => return,
                    () = tokio::time::sleep(patience) => patience = (patience * 2).min(PATIENCE.1),
                }
            }
        }
    }
}

/// A task, its place among those that run at once, and its place with a busy agent.
type Leased = (Lease, Option<OwnedSemaphorePermit>, Option<Turn>);

/// Most tasks that one Tokio task runs one after the other.
const RUN_MAX: usize = 16;
/// How long it does so; then others may want the rest of them.
const RUN_TIME: Duration = Duration::from_micros(100);

/// Starts tasks, spread over the threads.
fn start(shared: &Arc<Shared>, mut leased: Vec<Leased>) {
    let each = leased.len().div_ceil(2).clamp(1, RUN_MAX);
    while leased.len() > each {
        let rest = leased.split_off(each);
        tokio::spawn(run_all(Arc::clone(shared), leased));
        leased = rest;
    }
    tokio::spawn(run_all(Arc::clone(shared), leased));
}

/// Runs quick tasks one after the other and reports their ends together, which costs less than a Tokio task and a report
/// for each. No task waits here for one that is not done at once: the rest is started elsewhere.
fn run_all(shared: Arc<Shared>, leased: Vec<Leased>) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let begun = Instant::now();
        let mut now = begun;
        let mut leased = leased.into_iter();
        let mut ended = Vec::with_capacity(leased.len());
        while let Some((lease, permit, turn)) = leased.next() {
            let started = now;
            let mut work = pin!(run(&shared, lease, turn, started));
            let polled = std::future::poll_fn(|context| {
                // A sink or scheduler that panics takes none of the others along.
                Poll::Ready(catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))).unwrap_or(Poll::Ready(None)))
            });
            let polled = polled.await;
            now = Instant::now();
            if leased.len() > 0 && (polled.is_pending() || now.duration_since(begun) > RUN_TIME) {
                start(&shared, leased.by_ref().collect());
            }
            let completed = match polled {
                Poll::Ready(completed) => completed,
                Poll::Pending => {
                    report(&shared, std::mem::take(&mut ended)).await;
                    let completed = work.await;
                    now = Instant::now();
                    completed
                }
            };
            let time = now.duration_since(started);
            ended.extend(completed.map(|(report, notes)| Completed { report, notes, time, permit }));
        }
        report(&shared, ended).await;
    })
}

/// What came of a task, how long it ran, and its place among those that run at once.
struct Completed {
    report: Report,
    notes: Notes,
    time: Duration,
    permit: Option<OwnedSemaphorePermit>,
}

/// Counts and reports ends; then their places are free.
async fn report(shared: &Shared, ended: Vec<Completed>) {
    if ended.is_empty() {
        return;
    }
    shared.metrics.tell(ended.iter().map(|Completed { report, notes, time, .. }| Told {
        completion: &report.completion,
        time: *time,
        notes,
    }));
    let (reports, permits): (Vec<_>, Vec<_>) = ended.into_iter().map(|ended| (ended.report, ended.permit)).unzip();
    // As one, which is given back in one go.
    let permit = permits.into_iter().flatten().reduce(|mut all, permit| {
        all.merge(permit);
        all
    });
    let tasks: Vec<_> = reports.iter().map(|report| (report.task, report.fence)).collect();
    let answers = shared.scheduler.complete_all(reports).await;
    for (answer, (task, fence)) in answers.into_iter().zip(tasks) {
        // It cannot be kept as it is, and would not be by another worker either. Any other error means that the scheduler
        // gave the task to somebody else or recorded its end already, or that it failed; then the lease ends by itself,
        // and the task is tried again.
        match answer {
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                let _ = shared.scheduler.complete(task, fence, host_error(&error)).await;
            }
            Err(error) if error.kind() != ErrorKind::Stale => {
                tracing::warn!(%task, "the end of a task was not recorded: {error}");
            }
            _ => {}
        }
    }
    drop(permit);
}

/// Where a task is, for the outcome of a deadline, and what is noted on the way.
struct Progress {
    begun: Instant,
    /// In the order of [`PHASES`].
    phase: AtomicU8,
    notes: Notes,
}

const PHASES: [Phase; 5] = [Phase::Queued, Phase::Loading, Phase::Starting, Phase::Running, Phase::Teardown];

impl Progress {
    fn enter(&self, phase: Phase) {
        let number = PHASES.iter().position(|known| *known == phase).unwrap_or_default();
        self.phase.store(number as u8, Ordering::Relaxed);
    }

    fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Relaxed)) % PHASES.len()]
    }
}

/// Why a task is told to end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stop {
    Deadline,
    /// Cancelled, or leased to somebody else: nobody wants to hear of it.
    Unwanted,
    /// The executor ends.
    Shutdown,
}

/// Runs one task to its completion, whatever happens. Gives what there is to report.
async fn run(shared: &Shared, lease: Lease, turn: Option<Turn>, now: Instant) -> Option<(Report, Notes)> {
    let (task, fence) = (lease.task.id, lease.fence);
    let begun = match begin(shared, &lease, turn, now) {
        Ok(Some(begun)) => Ok(begun),
        Ok(None) => {
            // It fails as a report may, and with the same end.
            let _ = shared.scheduler.release(task, fence).await;
            return None;
        }
        Err(completion) => Err(completion),
    };
    let token = CancelToken::new();
    let progress = Progress { begun: now, phase: AtomicU8::new(0), notes: Notes::default() };
    let trace = AttemptTrace::open(&lease);
    let completion = {
        let work = attempt(shared, begun, &lease, &token, &progress, trace.context);
        let mut work = pin!(guarded(work).instrument(trace.span.clone()));
        // Most tasks of a quick guest are done at once, and need nobody to watch them.
        match std::future::poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await {
            Poll::Ready(completion) => Ok(completion),
            // Boxed, so that those who need none of its timers do not make room for them.
            Poll::Pending => Box::pin(supervise(shared, &lease, &token, &progress, work)).await,
        }
    };
    match completion {
        Ok(completion) => {
            trace.span.record("outcome", outcome_name(&completion));
            trace.span.in_scope(|| tracing::debug!("the attempt ended"));
            Some((Report { task, fence, completion }, progress.notes))
        }
        Err(Stop::Shutdown) => {
            trace.span.record("outcome", "released");
            // It fails as a report may, and with the same end.
            let _ = shared.scheduler.release(task, fence).await;
            None
        }
        Err(Stop::Unwanted | Stop::Deadline) => {
            trace.span.record("outcome", "unwanted");
            None
        }
    }
}

/// Drives `work`, renews the lease, and stops the guest when it must.
async fn supervise(
    shared: &Shared,
    lease: &Lease,
    token: &CancelToken,
    progress: &Progress,
    mut work: Pin<&mut impl Future<Output = Completion>>,
) -> Result<Completion, Stop> {
    let (task, fence) = (lease.task.id, lease.fence);
    let mut ended = shared.scheduler.wait(task);
    let mut watched = true;
    let mut order = shared.order.subscribe();
    let deadline = lease.task.deadline;
    let left = deadline.map(|deadline| deadline.duration_since(SystemTime::now()).unwrap_or_default());
    let mut until_deadline = pin!(tokio::time::sleep(left.unwrap_or(Duration::MAX)));
    let lease_time = shared.options.lease_time;
    let mut renewal = pin!(tokio::time::sleep(until_renewal(lease.expires_at, lease_time)));
    let stop = loop {
        tokio::select! {
            biased;
            completion = &mut work => return Ok(completion),
            waited = &mut ended, if watched => match waited {
                // The scheduler has no room for now, which is no reason to stop: there may be some at the end.
                Err(error) if error.kind() == ErrorKind::Exhausted => watched = false,
                // Cancelled, or a failing scheduler: then the lease cannot be kept either.
                _ => break Stop::Unwanted,
            },
            () = &mut until_deadline, if deadline.is_some() => break Stop::Deadline,
            () = ordered(&mut order, Order::Stop) => break Stop::Shutdown,
            () = &mut renewal => {
                // Another way round while the scheduler fails, as long as the lease may last.
                let next = match shared.scheduler.renew(task, fence, lease_time).await {
                    Ok(expires_at) => until_renewal(expires_at, lease_time),
                    Err(error) if error.kind() == ErrorKind::Stale => break Stop::Unwanted,
                    Err(_) => (lease_time / 3).clamp(RENEWAL_MIN, PATIENCE.1),
                };
                renewal.as_mut().reset(tokio::time::Instant::now() + next);
                if !watched {
                    (ended, watched) = (shared.scheduler.wait(task), true);
                }
            }
        }
    };
    let phase = progress.phase();
    let told = Instant::now();
    token.cancel();
    let last = tokio::time::timeout(shared.options.stop_grace, &mut work).await;
    if stop != Stop::Deadline {
        shared.metrics.killed(told.elapsed());
        return Err(stop);
    }
    let usage = match &last {
        // The guest ended by itself before it heard.
        Ok(Completion::Executed(execution)) if !matches!(execution.outcome, Outcome::Cancelled { .. }) => {
            return last.map_err(|_| stop);
        }
        Ok(Completion::Executed(execution)) => execution.usage,
        Ok(Completion::HostError { .. }) | Err(_) => Usage::default(),
    };
    // The guest's own word on where it was is finer.
    let phase = match last {
        Ok(Completion::Executed(execution)) => match execution.outcome {
            Outcome::Cancelled { phase } => phase,
            _ => phase,
        },
        _ => phase,
    };
    Ok(Completion::Executed(Box::new(Execution::new(past_deadline(lease, phase), usage))))
}

/// Soonest that a lease is renewed again.
const RENEWAL_MIN: Duration = Duration::from_millis(1);

/// How long to wait before a lease is renewed: a third of what the scheduler granted, which may be less than was asked for.
fn until_renewal(expires_at: SystemTime, lease_time: Duration) -> Duration {
    // Where the clocks disagree, what was asked for, but no long time.
    let granted = expires_at.duration_since(SystemTime::now()).unwrap_or(Duration::from_secs(1));
    (granted.min(lease_time) / 3).max(RENEWAL_MIN)
}

/// The outcome of a task whose deadline passed, counted from its submission, as the scheduler does.
fn past_deadline(lease: &Lease, phase: Phase) -> Outcome {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let since = |time: SystemTime| nanos(time.duration_since(lease.submitted_at).unwrap_or_default());
    let limit = since(lease.task.deadline.unwrap_or(lease.submitted_at));
    Outcome::QuotaExceeded { resource: Resource::WallTime, limit, used: since(SystemTime::now()).max(limit + 1), phase }
}

/// `work`, with a panic of it as its outcome.
async fn guarded(work: impl Future<Output = Completion>) -> Completion {
    let mut work = pin!(work);
    std::future::poll_fn(|context| {
        catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".to_owned());
            let outcome = Outcome::Crashed { message: format!("a panic of the host: {text}") };
            Poll::Ready(Completion::Executed(Box::new(Execution::new(outcome, Usage::default()))))
        })
    })
    .await
}

/// Finds the agent of a task and begins it there. Gives `None` when the agent has no room for it or rests.
fn begin(shared: &Shared, lease: &Lease, turn: Option<Turn>, now: Instant) -> Result<Option<Begun>, Completion> {
    let agent = shared.agents().get(&lease.task.plugin).cloned();
    let Some(agent) = agent else {
        let message = format!("no agent here runs plugin {}", lease.task.plugin);
        return Err(Completion::HostError { message, retryable: false });
    };
    if let Some(AdmitTask(admit)) = &shared.admit {
        admit(&lease.task).map_err(|error| host_error(&error))?;
    }
    let turn = turn.filter(|turn| Arc::ptr_eq(&turn.agent, &agent));
    let turn = match turn.map_or_else(|| Turn::take(agent), Ok) {
        Ok(turn) => turn,
        Err(agent) => {
            shared.busy.add(&agent);
            return Ok(None);
        }
    };
    match turn.agent.begin(now, &lease.task.policy) {
        Ok(Beginning::Begun(line)) => Ok(Some(Begun { turn, line, at: now, ended: false })),
        Ok(Beginning::Rests) => {
            shared.busy.add(&turn.agent);
            Ok(None)
        }
        Err(error) => Err(host_error(&error)),
    }
}

/// Runs a task that its agent began, and counts what became of it.
async fn attempt(
    shared: &Shared,
    begun: Result<Begun, Completion>,
    lease: &Lease,
    token: &CancelToken,
    progress: &Progress,
    trace: Option<Arc<TraceContext>>,
) -> Completion {
    let mut begun = match begun {
        Ok(begun) => begun,
        Err(completion) => return completion,
    };
    let line = begun.line.take();
    let (completion, failed) = call(shared, &begun.turn.agent, line, lease, token, progress, trace).await;
    progress.enter(Phase::Teardown);
    begun.end(&completion, failed);
    completion
}

/// A task that an agent began and whose end it counts, even when its future panics or is dropped.
struct Begun {
    turn: Turn,
    /// What is prepared already for its policy.
    line: Option<Arc<Line>>,
    at: Instant,
    ended: bool,
}

impl Begun {
    fn end(mut self, completion: &Completion, failed: bool) {
        self.ended = true;
        let agent = &self.turn.agent;
        let now = Instant::now();
        agent.end(completion, now.duration_since(self.at), failed, now);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.ended {
            let message = "it panicked, or did not end when it was told to".to_owned();
            let completion =
                Completion::Executed(Box::new(Execution::new(Outcome::Crashed { message }, Usage::default())));
            self.turn.agent.end(&completion, self.at.elapsed(), std::thread::panicking(), Instant::now());
        }
    }
}

/// Whether the agent, not only its task, failed: its kept instance is gone.
fn is_failure(outcome: &Outcome, instances: InstanceMode) -> bool {
    match outcome {
        Outcome::Crashed { .. } => true,
        Outcome::Cancelled { .. } => false,
        outcome => instances == InstanceMode::Kept && !outcome.leaves_instance_usable(),
    }
}

/// Calls the guest. Gives what came of it, and whether the agent failed.
async fn call(
    shared: &Shared,
    agent: &Agent,
    line: Option<Arc<Line>>,
    lease: &Lease,
    token: &CancelToken,
    progress: &Progress,
    trace: Option<Arc<TraceContext>>,
) -> (Completion, bool) {
    let kept = agent.template.instances == InstanceMode::Kept;
    // What makes the instances of the agent is broken.
    let broken = |error: Error| if kept && !error.kind().is_retryable() { Ended::Broken(error) } else { error.into() };
    let result = async {
        progress.enter(Phase::Loading);
        let line = match line {
            Some(line) => line,
            None => {
                let module = unless_cancelled(token, shared.modules.get(&agent.template.artifact)).await;
                let module = module.ok_or(Ended::Cancelled)?.map_err(broken)?;
                // Refused where the task asks for too much, which is no fault of the agent.
                let prepared =
                    unless_cancelled(token, agent.prepare(module, &lease.task.policy, &shared.weights)).await;
                let line = prepared.ok_or(Ended::Cancelled)??;
                shared.bound_lines();
                line
            }
        };
        progress.enter(Phase::Starting);
        let idle = kept.then(|| line.take()).flatten();
        let was_kept = idle.is_some();
        let mut instance = match idle {
            Some(instance) => instance,
            None => {
                let made = unless_cancelled(token, line.prepared.instantiate()).await;
                made.ok_or(Ended::Cancelled)?.map_err(broken)?
            }
        };
        progress.enter(Phase::Running);
        let task = &lease.task;
        let mut call = Call::new()
            .entry(task.entry.clone())
            .arguments(task.arguments.iter().cloned())
            .input(task.input.clone())
            .cancel(token.clone());
        call.trace = trace;
        let _ = progress.notes.started.set((progress.begun.elapsed(), was_kept));
        // From here on the guest's call hears of the token itself, and says what it took.
        let execution = match instance.call(call).await {
            Ok(execution) => execution,
            // Asked for what there is not, by the task; no guest code ran, and the instance is as it was.
            Err(error) if !matches!(error.kind(), ErrorKind::Stale | ErrorKind::Internal) => {
                if kept {
                    line.give_back(instance);
                }
                return Err(error.into());
            }
            Err(error) => return Err(broken(error)),
        };
        if let Some(used) = quota_used(&line.prepared.policy().quota, &execution.usage) {
            let _ = progress.notes.quota_used.set(used);
        }
        if kept && execution.outcome.leaves_instance_usable() {
            line.give_back(instance);
        }
        Ok(execution)
    };
    match result.await {
        Ok(execution) => {
            let failed = is_failure(&execution.outcome, agent.template.instances);
            (Completion::Executed(Box::new(execution)), failed)
        }
        Err(Ended::Cancelled) => (cancelled(progress.phase()), false),
        Err(Ended::Error(error)) => (host_error(&error), false),
        Err(Ended::Broken(error)) => (host_error(&error), true),
    }
}

/// Why no guest code ran.
enum Ended {
    Cancelled,
    Error(Error),
    /// The agent cannot run any task.
    Broken(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Ended::Error(error)
    }
}

async fn unless_cancelled<T>(token: &CancelToken, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        result = work => Some(result),
        () = token.cancelled() => None,
    }
}

/// Waits until the executor is told to do this, or more.
async fn ordered(order: &mut watch::Receiver<Order>, wanted: Order) {
    // An error means that the executor is gone, which is an order as well.
    let _ = order.wait_for(|order| *order >= wanted).await;
}

fn host_error(error: &Error) -> Completion {
    Completion::HostError { message: error.to_string(), retryable: error.kind().is_retryable() }
}

fn cancelled(phase: Phase) -> Completion {
    Completion::Executed(Box::new(Execution::new(Outcome::Cancelled { phase }, Usage::default())))
}
