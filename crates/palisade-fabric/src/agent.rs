//! Agents: named, supervised workers made from a template.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use palisade_core::{
    Artifact, ArtifactHash, Completion, Error, ErrorKind, HostFunctions, Module, Outcome, Policy, Result,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::clock::to_millis;
use crate::latency::Latencies;
use crate::lines::{Line, Lines};
use crate::narrow::narrowed;
use crate::trace::Traced;
use crate::{AgentMemory, Events, MemoryLimits};

/// What agents are made from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AgentTemplate {
    /// Name, unique in an executor.
    pub name: String,
    /// What it runs.
    pub artifact: Artifact,
    /// The most its tasks may use and reach. A task's own quota holds where it is smaller; what a task asks to reach
    /// beyond this is refused.
    pub policy: Policy,
    /// Whether tasks share an instance.
    pub instances: InstanceMode,
    /// Tasks it runs at once. Default 64.
    pub tasks_max: usize,
    /// How often it is started again after it failed.
    pub restarts: RestartBudget,
    /// Bounds of its memory.
    pub memory: MemoryLimits,
    /// Where its memory is kept while no executor has the agent: read when it is spawned, written when it is removed
    /// and when its executor is drained. `None`: nowhere.
    pub memory_file: Option<PathBuf>,
}

impl AgentTemplate {
    /// An agent called `name` that runs `artifact`, with defaults for everything else.
    pub fn new(name: impl Into<String>, artifact: Artifact) -> AgentTemplate {
        AgentTemplate {
            name: name.into(),
            artifact,
            policy: Policy::default(),
            instances: InstanceMode::Fresh,
            tasks_max: 64,
            restarts: RestartBudget::default(),
            memory: MemoryLimits::default(),
            memory_file: None,
        }
    }
}

/// Whether tasks of an agent share an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum InstanceMode {
    /// Each task has an instance of its own: nothing of one task is left for the next.
    #[default]
    Fresh,
    /// An instance serves task after task until it ends abnormally, or makes room for those of others. Tasks of one policy
    /// share it, whoever submitted them.
    Kept,
}

/// How often an agent is started again after it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RestartBudget {
    /// Failures within [`RestartBudget::window`] it survives; one more terminates it. Default 5.
    pub failures_max: u32,
    /// How long a failure counts. Default 1 min.
    pub window: Duration,
    /// Pause after the first failure; doubles with each that counts. Default 100 ms.
    pub backoff_initial: Duration,
    /// Longest pause. Default 10 s.
    pub backoff_max: Duration,
}

impl Default for RestartBudget {
    fn default() -> Self {
        RestartBudget {
            failures_max: 5,
            window: Duration::from_secs(60),
            backoff_initial: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
        }
    }
}

/// Where an agent is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    /// Made, and has run nothing yet.
    Spawned,
    /// Can run tasks and runs none.
    Ready,
    /// Runs tasks.
    Busy,
    /// Takes no more tasks and ends those it has.
    Draining,
    /// Runs nothing any more.
    Terminated,
}

/// What moves an agent from state to state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A task begins.
    Begin,
    /// A task ended; so many still run.
    End { left: usize },
    /// Its executor wants it to end; so many tasks run.
    Drain { running: usize },
    /// Its budget of restarts is used up.
    GiveUp,
}

impl AgentState {
    /// The next state, or `None` when the event cannot happen in this one.
    pub(crate) fn after(self, event: Event) -> Option<AgentState> {
        use AgentState::{Busy, Draining, Ready, Spawned, Terminated};
        match (self, event) {
            (Spawned | Ready | Busy, Event::Begin) => Some(Busy),
            (Busy, Event::End { left: 0 }) => Some(Ready),
            (Busy, Event::End { .. }) => Some(Busy),
            (Draining, Event::End { left: 0 }) => Some(Terminated),
            (Draining, Event::End { .. }) => Some(Draining),
            (Terminated, Event::End { .. }) => Some(Terminated),
            (Spawned | Ready | Busy | Draining, Event::Drain { running: 0 }) => Some(Terminated),
            (Spawned | Ready | Busy | Draining, Event::Drain { .. }) => Some(Draining),
            (Terminated, Event::Drain { .. }) => Some(Terminated),
            (_, Event::GiveUp) => Some(Terminated),
            (Draining | Terminated, Event::Begin) | (Spawned | Ready, Event::End { .. }) => None,
        }
    }
}

/// What an agent did, and where it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AgentReport {
    /// Its name.
    pub name: String,
    /// What it runs.
    pub plugin: ArtifactHash,
    /// Where it is.
    pub state: AgentState,
    /// Tasks it runs now.
    pub running: usize,
    /// Ends by outcome, by the outcome's name.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Times it failed and was started again.
    pub restarts: u64,
    /// Half of the tasks took at most this, from lease to completion.
    pub latency_p50: Duration,
    /// Nine of ten took at most this.
    pub latency_p90: Duration,
    /// 99 of 100 took at most this.
    pub latency_p99: Duration,
    /// CPU time in all.
    pub cpu_time: Duration,
    /// Most memory one task had.
    pub memory_peak_bytes: u64,
    /// Entries of its memory.
    pub memory_entries: usize,
    /// Bytes of its memory.
    pub memory_bytes: usize,
}

/// A running agent. Aligned, because the counts of references, which each task writes, lie in front of it.
#[repr(align(128))]
pub(crate) struct Agent {
    pub(crate) template: AgentTemplate,
    pub(crate) memory: AgentMemory,
    /// The executor's functions and those of this agent's memory.
    host: HostFunctions,
    /// How many tasks it may still begin.
    room: AtomicUsize,
    /// Told when there is room again, while somebody wants to hear of it.
    changed: Arc<Notify>,
    tells_of_room: AtomicBool,
    /// Told when its last task ended.
    pub(crate) ended: Notify,
    events: Events,
    state: Mutex<State>,
}

struct State {
    state: AgentState,
    running: usize,
    outcomes: BTreeMap<&'static str, u64>,
    restarts: u64,
    /// Failures that count, oldest first.
    failures: VecDeque<Instant>,
    /// Not before this does it begin another task.
    rests_until: Option<Instant>,
    latencies: Latencies,
    cpu_time: Duration,
    memory_peak_bytes: u64,
    lines: Lines,
}

/// What an agent says to a task.
#[derive(Debug)]
pub(crate) enum Beginning {
    /// It begins, by what was prepared already for its policy.
    Begun(Option<Arc<Line>>),
    /// The agent rests, and says [until when](Agent::rests_until).
    Rests,
}

/// A place with an agent, for one task.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) agent: Arc<Agent>,
}

impl Turn {
    /// Takes a place, or gives the agent back that has none.
    pub(crate) fn take(agent: Arc<Agent>) -> Result<Turn, Arc<Agent>> {
        let taken = agent.room.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |room| room.checked_sub(1));
        if taken.is_ok() { Ok(Turn { agent }) } else { Err(agent) }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Either this sees that it must tell, or who asked for that sees the room: both are sequentially consistent.
        self.agent.room.fetch_add(1, Ordering::SeqCst);
        if self.agent.tells_of_room.load(Ordering::SeqCst) {
            self.agent.changed.notify_one();
        }
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").field("name", &self.template.name).finish_non_exhaustive()
    }
}

impl Agent {
    /// Reads its memory from where it is kept, so this may take its time.
    pub(crate) fn new(
        template: AgentTemplate,
        host: &HostFunctions,
        events: Events,
        changed: Arc<Notify>,
    ) -> Result<Agent> {
        let memory = match &template.memory_file {
            Some(file) => AgentMemory::load(template.memory, file)?,
            None => AgentMemory::new(template.memory),
        };
        let agent = Agent {
            host: memory.add_to(host.clone()).wrapped(|function| Arc::new(Traced(function))),
            memory,
            room: AtomicUsize::new(template.tasks_max.max(1)),
            changed,
            tells_of_room: AtomicBool::new(false),
            ended: Notify::new(),
            state: Mutex::new(State {
                state: AgentState::Spawned,
                running: 0,
                outcomes: BTreeMap::new(),
                restarts: 0,
                failures: VecDeque::new(),
                rests_until: None,
                latencies: Latencies::default(),
                cpu_time: Duration::ZERO,
                memory_peak_bytes: 0,
                lines: Lines::default(),
            }),
            events,
            template,
        };
        agent.tell(AgentState::Spawned);
        Ok(agent)
    }

    /// Writes its memory to where it is kept.
    pub(crate) fn save(&self) -> Result<()> {
        self.template.memory_file.as_ref().map_or(Ok(()), |file| self.memory.save(file))
    }

    /// As [`Agent::save`], unless what was saved before was taken away: then nobody wants it any more.
    pub(crate) fn save_again(&self) -> Result<()> {
        let is_wanted = self.template.memory_file.as_ref().is_some_and(|file| file.exists());
        if is_wanted { self.save() } else { Ok(()) }
    }

    /// How many tasks it may still begin.
    pub(crate) fn room(&self) -> usize {
        self.room.load(Ordering::SeqCst)
    }

    /// Where it is in its life.
    pub(crate) fn state(&self) -> AgentState {
        self.lock().state
    }

    /// Until when it rests, if it does.
    pub(crate) fn rests_until(&self, now: Instant) -> Option<Instant> {
        self.lock().rests_until.filter(|until| *until > now)
    }

    /// Sets whether it tells of room.
    pub(crate) fn tell_of_room(&self, tells: bool) {
        self.tells_of_room.store(tells, Ordering::SeqCst);
    }

    /// Begins a task with `policy`, unless the agent rests.
    pub(crate) fn begin(&self, now: Instant, policy: &Policy) -> Result<Beginning> {
        let mut state = self.lock();
        let Some(next) = state.state.after(Event::Begin) else {
            let message = format!("agent `{}` is {:?} and runs no more tasks", self.template.name, state.state);
            let kind = if state.state == AgentState::Draining { ErrorKind::Exhausted } else { ErrorKind::Stale };
            return Err(Error::new(kind, "run", message).with_context("restarts", state.restarts));
        };
        if state.rests_until.is_some_and(|until| until > now) {
            return Ok(Beginning::Rests);
        }
        state.rests_until = None;
        state.running += 1;
        self.enter(&mut state, next);
        Ok(Beginning::Begun(state.lines.find(policy, now)))
    }

    /// Ends a task that [`Agent::begin`] began. Gives the pause before a restart when the agent failed.
    pub(crate) fn end(&self, completion: &Completion, latency: Duration, failed: bool, now: Instant) {
        // Dropped outside of the lock.
        let mut dropped = Lines::default();
        let mut state = self.lock();
        state.running -= 1;
        let left = state.running;
        if left == 0 && matches!(state.state, AgentState::Draining | AgentState::Terminated) {
            self.ended.notify_one();
        }
        self.move_on(&mut state, Event::End { left });
        *state.outcomes.entry(name(completion)).or_default() += 1;
        state.latencies.add(latency);
        if let Completion::Executed(execution) = completion {
            state.cpu_time += execution.usage.cpu_time;
            state.memory_peak_bytes = state.memory_peak_bytes.max(execution.usage.memory_peak_bytes);
        }
        if failed {
            let budget = self.template.restarts;
            state.failures.push_back(now);
            while state.failures.front().is_some_and(|at| now.duration_since(*at) > budget.window) {
                state.failures.pop_front();
            }
            let counted = u32::try_from(state.failures.len()).unwrap_or(u32::MAX);
            if counted > budget.failures_max {
                tracing::warn!(agent = &*self.template.name, "the agent failed too often and is terminated");
                self.move_on(&mut state, Event::GiveUp);
                dropped = std::mem::take(&mut state.lines);
            } else {
                state.restarts += 1;
                let pause = budget.backoff_initial.saturating_mul(1 << (counted - 1).min(31)).min(budget.backoff_max);
                state.rests_until = now.checked_add(pause);
            }
        }
        drop(state);
        drop(dropped);
    }

    /// Takes no more tasks. Gives where it was.
    pub(crate) fn drain(&self) -> AgentState {
        let mut state = self.lock();
        let (before, running) = (state.state, state.running);
        self.move_on(&mut state, Event::Drain { running });
        before
    }

    /// Takes tasks again, when it cannot end yet.
    pub(crate) fn resume(&self, before: AgentState) {
        let mut state = self.lock();
        self.enter(&mut state, before);
    }

    /// Tasks it runs.
    pub(crate) fn running(&self) -> usize {
        self.lock().running
    }

    /// Prepares the module for tasks with `policy`, on a thread that may block: a backend may build a jail for it.
    pub(crate) async fn prepare(
        &self,
        module: Arc<dyn Module>,
        policy: &Policy,
        weights: &Arc<AtomicUsize>,
    ) -> Result<Arc<Line>> {
        let (asked, host) = (narrowed(policy, &self.template.policy)?, self.host.clone());
        let prepared = match tokio::task::spawn_blocking(move || module.prepare(asked, host)).await {
            Ok(prepared) => prepared?,
            // It ends the task that it came from, as everywhere.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return Err(Error::new(ErrorKind::Exhausted, "prepare", "the runtime is shutting down")),
        };
        let line = Line::new(prepared, self.template.artifact.bytes().len(), weights);
        // What goes is dropped outside of the lock.
        let (line, _gone) = self.lock().lines.insert(policy, line, Instant::now());
        Ok(line)
    }

    /// Drops what was prepared and is not used.
    pub(crate) fn drop_idle_lines(&self, now: Instant) {
        let gone = self.lock().lines.take_idle(now);
        drop(gone);
    }

    /// When each of the lines that nobody uses now was used last.
    pub(crate) fn unused_lines(&self) -> Vec<(Instant, usize)> {
        self.lock().lines.unused()
    }

    /// Drops lines that nobody uses and that were not used after `until`.
    pub(crate) fn drop_lines_until(&self, until: Instant) {
        let gone = self.lock().lines.take_until(until);
        drop(gone);
    }

    pub(crate) fn report(&self) -> AgentReport {
        let state = self.lock();
        AgentReport {
            name: self.template.name.clone(),
            plugin: self.template.artifact.hash(),
            state: state.state,
            running: state.running,
            outcomes: state.outcomes.clone(),
            restarts: state.restarts,
            latency_p50: state.latencies.at(0.5),
            latency_p90: state.latencies.at(0.9),
            latency_p99: state.latencies.at(0.99),
            cpu_time: state.cpu_time,
            memory_peak_bytes: state.memory_peak_bytes,
            memory_entries: self.memory.len(),
            memory_bytes: self.memory.bytes(),
        }
    }

    fn move_on(&self, state: &mut State, event: Event) {
        let next = state.state.after(event);
        debug_assert!(next.is_some(), "{event:?} in {:?}", state.state);
        self.enter(state, next.unwrap_or(state.state));
    }

    /// Under the lock, so that states are told in their order.
    fn enter(&self, state: &mut State, next: AgentState) {
        if std::mem::replace(&mut state.state, next) != next {
            self.tell(next);
        }
    }

    fn tell(&self, state: AgentState) {
        self.events.tell(|| crate::Event::Agent {
            unix_ms: to_millis(SystemTime::now()),
            name: self.template.name.clone(),
            plugin: self.template.artifact.hash(),
            state,
        });
    }

    // Whole after each statement.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The outcome's name, as in JSON.
pub(crate) fn name(completion: &Completion) -> &'static str {
    match completion {
        Completion::HostError { .. } => "host_error",
        Completion::Executed(execution) => match &execution.outcome {
            Outcome::Completed => "completed",
            Outcome::Failed { .. } => "failed",
            Outcome::Trapped { .. } => "trapped",
            Outcome::QuotaExceeded { .. } => "quota_exceeded",
            Outcome::Denied { .. } => "denied",
            Outcome::Cancelled { .. } => "cancelled",
            Outcome::Crashed { .. } => "crashed",
            _ => "other",
        },
    }
}

#[cfg(test)]
mod tests {
    use palisade_core::{Execution, Usage};

    use super::*;

    fn agent(restarts: RestartBudget) -> Agent {
        let mut template = AgentTemplate::new("agent", Artifact::wasm(&b"bytes"[..]));
        template.restarts = restarts;
        Agent::new(template, &HostFunctions::new(), Events::default(), Arc::default()).unwrap()
    }

    /// Begins a task; how long the agent rests, if it does.
    fn begin(agent: &Agent, now: Instant) -> Result<Option<Duration>> {
        Ok(match agent.begin(now, &Policy::default())? {
            Beginning::Begun(_) => None,
            Beginning::Rests => agent.rests_until(now).map(|until| until - now),
        })
    }

    fn ended(outcome: Outcome) -> Completion {
        Completion::Executed(Box::new(Execution::new(outcome, Usage::default())))
    }

    #[test]
    fn the_life_of_an_agent() {
        use AgentState::{Busy, Draining, Ready, Spawned, Terminated};
        let agent = agent(RestartBudget::default());
        let (now, done, none) = (Instant::now(), ended(Outcome::Completed), Duration::ZERO);
        let state = || agent.report().state;
        assert_eq!(state(), Spawned);
        assert!(begin(&agent, now).unwrap().is_none() && begin(&agent, now).unwrap().is_none());
        assert_eq!((state(), agent.report().running), (Busy, 2));
        agent.end(&done, none, false, now);
        assert_eq!(state(), Busy);
        agent.drain();
        assert_eq!(state(), Draining);
        assert_eq!(begin(&agent, now).unwrap_err().kind(), ErrorKind::Exhausted);
        agent.end(&done, none, false, now);
        assert_eq!(state(), Terminated);
        assert_eq!(begin(&agent, now).unwrap_err().kind(), ErrorKind::Stale);
        assert_eq!(Busy.after(Event::End { left: 0 }), Some(Ready));
        assert_eq!(Ready.after(Event::End { left: 0 }), None);
        assert_eq!(Ready.after(Event::Drain { running: 0 }), Some(Terminated));
    }

    #[test]
    fn restarts_are_paced_and_bounded() {
        let agent = agent(RestartBudget {
            failures_max: 2,
            window: Duration::from_secs(10),
            backoff_initial: Duration::from_secs(1),
            backoff_max: Duration::from_millis(1500),
        });
        let begun = Instant::now();
        let at = |millis| begun + Duration::from_millis(millis);
        let crash = |millis| {
            assert_eq!(begin(&agent, at(millis)).unwrap(), None);
            agent.end(&ended(Outcome::Crashed { message: String::new() }), Duration::ZERO, true, at(millis));
        };
        crash(0);
        assert_eq!(begin(&agent, at(400)).unwrap(), Some(Duration::from_millis(600)));
        crash(5000);
        assert_eq!(begin(&agent, at(5000)).unwrap(), Some(Duration::from_millis(1500)), "doubled, up to the longest");
        // The first no longer counts, so this is the second again.
        crash(10_500);
        assert_eq!(agent.report().restarts, 3);
        crash(12_000);
        assert_eq!(agent.report().state, AgentState::Terminated);
        assert_eq!(begin(&agent, at(99_000)).unwrap_err().kind(), ErrorKind::Stale);
        assert_eq!(agent.report().outcomes["crashed"], 4);
    }
}
