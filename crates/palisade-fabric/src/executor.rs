//! Runs the tasks of a scheduler in a sandbox.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use palisade_core::{
    Artifact, ArtifactHash, BoxFuture, Error, ErrorKind, HostFunctions, MetricsSink, Module, Result, Sandbox,
    Scheduler, Task, Tenant,
};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

mod attempt;
mod leasing;

use self::leasing::keep_leasing;
use crate::agent::Agent;
use crate::busy::BusyAgents;
use crate::figures::Figures;
use crate::modules::Modules;
use crate::prepared::{self, WEIGHTS_BYTES_MAX};
use crate::{AgentMemory, AgentReport, AgentTemplate, Events, NullSink};

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
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "start",
                "`tasks_max` and `lease_time` must be greater than zero",
            ));
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
    /// [`ErrorKind::InvalidPolicy`], [`ErrorKind::Exhausted`] when the limit on agents is reached, and when one of that name or
    /// artifact was removed and still runs tasks whose memory is to be saved; those of [`AgentMemory::load`].
    pub fn spawn(&self, template: AgentTemplate) -> Result<AgentMemory> {
        template.policy.validate()?;
        let plugin = template.artifact.hash();
        let place = {
            let agents = self.shared.agents();
            let mut taken = lock(&self.shared.taken);
            if agents.len() + taken.len() >= self.shared.options.agents_max {
                return Err(Error::new(ErrorKind::Exhausted, "spawn", "the limit on agents is reached")
                    .with_context("limit", self.shared.options.agents_max)
                    .with_help("remove one that is not needed"));
            }
            let named = |agent: &Arc<Agent>| agent.template.name == template.name;
            if agents.contains_key(&plugin) || agents.values().any(named) {
                let message = format!("an agent named `{}`, or one for this artifact, already exists", template.name);
                return Err(Error::new(ErrorKind::InvalidInput, "spawn", message));
            }
            if taken.iter().any(|(name, artifact)| *name == template.name || *artifact == plugin) {
                let message = format!(
                    "an agent named `{}`, or one for this artifact, is still starting or stopping",
                    template.name
                );
                return Err(Error::new(ErrorKind::Exhausted, "spawn", message)
                    .with_help("retry when the tasks of the previous agent have finished")
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
                .ok_or_else(|| Error::new(ErrorKind::NotFound, "remove", format!("no agent is named `{name}`")))?;
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

    /// Loads an artifact for `tenant` in its turn, and keeps the module for tasks to come. Of many who want the same, one loads
    /// it; of many tenants who want different ones, each gets its part of the places to load.
    ///
    /// # Errors
    ///
    /// Those of [`Sandbox::load`].
    pub fn load(&self, artifact: Artifact, tenant: Tenant) -> BoxFuture<'static, Result<Arc<dyn Module>>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { shared.modules.get(&artifact, &tenant).await })
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

// Every statement leaves the state consistent, so a poisoned lock is safe to use again.
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
        let until = prepared::cut(agents.iter().flat_map(|agent| agent.unused_lines()).collect(), weights);
        if !until.is_empty() {
            agents.iter().for_each(|agent| agent.drop_lines_until(&until));
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

/// Waits until the executor is told to do this, or more.
async fn ordered(order: &mut watch::Receiver<Order>, wanted: Order) {
    // An error means that the executor is gone, which is an order as well.
    let _ = order.wait_for(|order| *order >= wanted).await;
}
