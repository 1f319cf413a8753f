//! The reference scheduler: the plain way, in memory, breakable on purpose.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use palisade_core::{
    BoxFuture, Completion, Error, ErrorKind, Execution, Fence, Lease, LeaseRequest, Outcome, Phase, Priority, Resource,
    Result, Scheduler, SchedulerMode, SchedulerStats, Submission, Task, TaskId, TaskPage, TaskQuery, TaskRecord,
    TaskState, Tenant, Usage,
};

use crate::fault::faults;

faults! {
    /// One thing that is wrong with the scheduler.
    pub enum SchedulerFault;
    /// A task loses the last byte of its input.
    AltersTasks = "alters-tasks",
    /// Idempotency keys are not looked at.
    IgnoresKeys = "ignores-keys",
    /// An id that is there already is taken again.
    IgnoresIds = "ignores-ids",
    /// A task that runs is leased to others as well.
    LeasesTwice = "leases-twice",
    /// A worker that waits hears of nothing.
    NeverWakes = "never-wakes",
    /// Of several workers that wait, one hears of the next task, whether it wants it or not.
    WakesOneOnly = "wakes-one-only",
    /// A worker that went away while it waited has the next task.
    LeasesToTheDropped = "leases-to-the-dropped",
    /// More tasks are given than were asked for.
    IgnoresTasksMax = "ignores-tasks-max",
    /// A worker gets tasks of plugins it has no room for.
    IgnoresPluginLimits = "ignores-plugin-limits",
    /// A task that a worker does not want is in the way of all others.
    WaitsForTheUnwanted = "waits-for-the-unwanted",
    /// A task that a worker did not want once is given to nobody any more.
    ForgetsTheUnwanted = "forgets-the-unwanted",
    /// All classes are one.
    IgnoresPriority = "ignores-priority",
    /// All tenants are one.
    IgnoresTenants = "ignores-tenants",
    /// The latest task comes first.
    LastComeFirst = "last-come-first",
    /// Every fence is the newest.
    AcceptsStale = "accepts-stale",
    /// Leases last for ever.
    NeverExpires = "never-expires",
    /// A lost worker's task is given up on after no number of times.
    RetriesLostForEver = "retries-lost-for-ever",
    /// A lease says another time of submission.
    AltersSubmissionTimes = "alters-submission-times",
    /// A renewed lease ends as if it were not.
    IgnoresRenewal = "ignores-renewal",
    /// A second completion replaces the first.
    RecordsTwice = "records-twice",
    /// The recorded outcome is always success.
    AltersCompletions = "alters-completions",
    /// Waiting for an outcome never ends.
    NeverTells = "never-tells",
    /// Every failure is tried again.
    RetriesEverything = "retries-everything",
    /// Attempts are not bounded.
    RetriesForEver = "retries-for-ever",
    /// Retries come at once, whatever the guest asks for.
    IgnoresDelay = "ignores-delay",
    /// A cancelled task that waits is leased all the same.
    LeasesCancelled = "leases-cancelled",
    /// A cancelled task that runs may be completed.
    CompletesCancelled = "completes-cancelled",
    /// Tasks start before their time.
    StartsEarly = "starts-early",
    /// Deadlines of waiting tasks are not looked at.
    IgnoresDeadline = "ignores-deadline",
    /// A released lease counts as a lost one.
    CountsReleases = "counts-releases",
    /// Of several released leases, the last comes first.
    ReversesReleases = "reverses-releases",
    /// One task is lost between two pages of a list.
    SkipsListed = "skips-listed",
    /// All tasks are listed, whatever was asked for.
    IgnoresFilters = "ignores-filters",
    /// The dead-letter queue looks empty.
    HidesDeadLetters = "hides-dead-letters",
    /// A task that is requeued keeps its count of failures.
    RequeuesSpent = "requeues-spent",
    /// A task past its deadline is requeued.
    RequeuesHopeless = "requeues-hopeless",
    /// While it drains, tasks are taken from the dead-letter queue.
    RequeuesWhileDraining = "requeues-while-draining",
    /// Pausing does nothing.
    IgnoresPause = "ignores-pause",
    /// Draining does nothing.
    IgnoresDrain = "ignores-drain",
    /// What is past its deadline or malformed is taken.
    AcceptsHopeless = "accepts-hopeless",
}

/// The reference scheduler. Its tables are searched from end to end; it is for tens of tasks.
pub struct FakeScheduler {
    shared: Arc<Shared>,
    ticker: Option<JoinHandle<()>>,
}

struct Shared {
    fault: Option<SchedulerFault>,
    state: Mutex<State>,
    closing: Condvar,
}

#[derive(Default)]
struct State {
    tasks: Vec<Kept>,
    mode: SchedulerMode,
    fence: u64,
    order: i64,
    /// Start tags of tenants (start-time fair queueing), by class.
    tags: BTreeMap<(Priority, Tenant), u64>,
    tag: u64,
    wakers: Vec<Waker>,
    closing: bool,
}

struct Kept {
    record: TaskRecord,
    /// Smaller comes first.
    order: i64,
    ready_at: SystemTime,
    fence: Fence,
    /// Since it lined up last.
    first_fence: Option<Fence>,
    lease_end: SystemTime,
}

/// Lost workers before a task is given up on.
const LOST_MAX: u32 = 3;
/// How long a waiting future may not notice that something is due.
const TICK: Duration = Duration::from_millis(2);
/// Longer than anybody waits.
const NEVER: Duration = Duration::from_secs(1 << 30);

impl fmt::Debug for FakeScheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeScheduler").field("fault", &self.shared.fault).finish_non_exhaustive()
    }
}

impl FakeScheduler {
    /// The correct scheduler, or one with a fault.
    ///
    /// # Panics
    ///
    /// When the system gives no thread.
    pub fn new(fault: Option<SchedulerFault>) -> FakeScheduler {
        let shared = Arc::new(Shared { fault, state: Mutex::default(), closing: Condvar::new() });
        let theirs = Arc::clone(&shared);
        let ticker = std::thread::spawn(move || {
            let mut state = theirs.lock();
            while !state.closing {
                theirs.advance(&mut state);
                state = theirs.closing.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
            }
        });
        FakeScheduler { shared, ticker: Some(ticker) }
    }
}

impl Drop for FakeScheduler {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.closing.notify_all();
        if let Some(ticker) = self.ticker.take() {
            let _ = ticker.join();
        }
    }
}

impl Shared {
    fn has(&self, fault: SchedulerFault) -> bool {
        self.fault == Some(fault)
    }

    // Whole after each statement.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets everything happen that is due.
    fn advance(&self, state: &mut State) {
        let now = SystemTime::now();
        let mut changed = false;
        for at in 0..state.tasks.len() {
            let order = state.next_order();
            let kept = &mut state.tasks[at];
            let before = kept.record.state;
            match before {
                TaskState::Delayed if kept.ready_at <= now || self.has(SchedulerFault::StartsEarly) => {
                    (kept.record.state, kept.order) = (TaskState::Queued, order);
                }
                TaskState::Running if kept.lease_end <= now && !self.has(SchedulerFault::NeverExpires) => {
                    kept.record.lost += 1;
                    (kept.record.state, kept.order) = (TaskState::Queued, kept.front());
                    if kept.record.lost >= LOST_MAX && !self.has(SchedulerFault::RetriesLostForEver) {
                        let message = "its worker was lost too often".to_owned();
                        kept.finish(TaskState::DeadLettered, Completion::HostError { message, retryable: false });
                    }
                }
                _ => {}
            }
            let waits = matches!(kept.record.state, TaskState::Queued | TaskState::Delayed);
            let deadline = kept.record.task.deadline.filter(|deadline| *deadline <= now);
            if let Some(deadline) = deadline.filter(|_| waits && !self.has(SchedulerFault::IgnoresDeadline)) {
                let since = |time: SystemTime| {
                    time.duration_since(kept.record.submitted_at).unwrap_or_default().as_nanos() as u64
                };
                let (limit, used) = (since(deadline), since(now).max(since(deadline) + 1));
                let outcome =
                    Outcome::QuotaExceeded { resource: Resource::WallTime, limit, used, phase: Phase::Queued };
                kept.finish(TaskState::Failed, executed(outcome));
            }
            changed |= kept.record.state != before;
        }
        if changed {
            self.wake(state);
        }
    }

    fn wake(&self, state: &mut State) {
        let woken = if self.has(SchedulerFault::WakesOneOnly) { state.wakers.len().min(1) } else { state.wakers.len() };
        state.wakers.drain(..woken).for_each(Waker::wake);
    }

    /// Runs `operation` after what is due, and wakes whoever waits.
    fn with<T>(&self, operation: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.lock();
        self.advance(&mut state);
        let result = operation(&mut state);
        self.wake(&mut state);
        result
    }

    fn poll<T>(&self, context: &Context<'_>, found: impl FnOnce(&mut State) -> Option<T>) -> Poll<T> {
        let mut state = self.lock();
        self.advance(&mut state);
        match found(&mut state) {
            Some(found) => Poll::Ready(found),
            None => {
                state.wakers.push(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn lease(&self, state: &mut State, request: &LeaseRequest) -> Vec<Lease> {
        let mut leases = Vec::new();
        let tasks_max = request.tasks_max + usize::from(self.has(SchedulerFault::IgnoresTasksMax)) * 10;
        while leases.len() < tasks_max {
            if state.mode == SchedulerMode::Paused && !self.has(SchedulerFault::IgnoresPause) {
                break;
            }
            let twice = self.has(SchedulerFault::LeasesTwice) && leases.is_empty();
            let may = |kept: &Kept| match kept.record.state {
                TaskState::Queued => true,
                TaskState::Running => twice,
                TaskState::Cancelled => kept.fence == Fence(0) && self.has(SchedulerFault::LeasesCancelled),
                _ => false,
            };
            let place = |kept: &Kept| {
                let task = &kept.record.task;
                let class = if self.has(SchedulerFault::IgnoresPriority) { 0 } else { task.priority.rank() };
                let tag = state.tags.get(&(task.priority, task.tenant.clone())).copied().unwrap_or(0).max(state.tag);
                let tag = if self.has(SchedulerFault::IgnoresTenants) { 0 } else { tag };
                let order = if self.has(SchedulerFault::LastComeFirst) { -kept.order } else { kept.order };
                (std::cmp::Reverse(class), tag, order)
            };
            let wants = |kept: &Kept| {
                let plugin = kept.record.task.plugin;
                let given = leases.iter().filter(|lease: &&Lease| lease.task.plugin == plugin).count();
                let mut limits = request.plugin_limits.iter().filter(|limit| limit.plugin == plugin);
                limits.all(|limit| given < limit.tasks_max) || self.has(SchedulerFault::IgnoresPluginLimits)
            };
            let next: Vec<_> = (0..state.tasks.len()).filter(|at| may(&state.tasks[*at])).collect();
            let first = next.iter().min_by_key(|at| place(&state.tasks[**at]));
            if self.has(SchedulerFault::WaitsForTheUnwanted) && first.is_some_and(|at| !wants(&state.tasks[*at])) {
                break;
            }
            let (next, unwanted): (Vec<_>, Vec<_>) = next.into_iter().partition(|at| wants(&state.tasks[*at]));
            let first = next.into_iter().min_by_key(|at| place(&state.tasks[*at]));
            if self.has(SchedulerFault::ForgetsTheUnwanted) {
                for at in unwanted {
                    state.tasks[at].record.state = TaskState::Delayed;
                    state.tasks[at].ready_at = SystemTime::now() + NEVER;
                }
            }
            let Some(at) = first else { break };
            state.fence += 1;
            let (fence, tag) = (Fence(state.fence), state.tag);
            let kept = &mut state.tasks[at];
            let flow = state.tags.entry((kept.record.task.priority, kept.record.task.tenant.clone())).or_default();
            state.tag = (*flow).max(tag);
            *flow = state.tag + 1;
            kept.record.state = TaskState::Running;
            (kept.fence, kept.lease_end) = (fence, SystemTime::now() + request.lease_time);
            kept.first_fence.get_or_insert(fence);
            let mut task = Arc::clone(&kept.record.task);
            if self.has(SchedulerFault::AltersTasks) {
                let task = Arc::make_mut(&mut task);
                task.input = task.input.slice(..task.input.len().saturating_sub(1));
            }
            let attempt = kept.record.failures + kept.record.lost + 1;
            let submitted_at = match self.has(SchedulerFault::AltersSubmissionTimes) {
                true => SystemTime::UNIX_EPOCH,
                false => kept.record.submitted_at,
            };
            leases.push(Lease { task, fence, attempt, submitted_at, expires_at: kept.lease_end });
        }
        leases
    }

    fn complete(&self, kept: &mut Kept, completion: Completion, order: i64) -> TaskState {
        let retryable = match &completion {
            Completion::Executed(execution) => execution.outcome.is_retryable(),
            Completion::HostError { retryable, .. } => *retryable,
        };
        let asked = match &completion {
            Completion::Executed(execution) => match &execution.outcome {
                Outcome::Failed { retry_after, .. } => *retry_after,
                _ => None,
            },
            Completion::HostError { .. } => None,
        };
        let success = matches!(&completion, Completion::Executed(execution) if execution.outcome.is_success());
        let completion =
            if self.has(SchedulerFault::AltersCompletions) { executed(Outcome::Completed) } else { completion };
        if success {
            kept.finish(TaskState::Completed, completion);
            return TaskState::Completed;
        }
        kept.record.failures += 1;
        let policy = &kept.record.task.retry;
        if !retryable && !self.has(SchedulerFault::RetriesEverything) {
            kept.finish(TaskState::Failed, completion);
        } else if kept.record.failures >= policy.attempts_max && !self.has(SchedulerFault::RetriesForEver) {
            kept.finish(TaskState::DeadLettered, completion);
        } else {
            // The middle of what jitter allows.
            let backoff = policy.backoff_initial.saturating_mul(1 << kept.record.failures.min(16)) / 4;
            let delay = asked.unwrap_or(backoff).min(policy.backoff_max);
            let delay = if self.has(SchedulerFault::IgnoresDelay) { Duration::ZERO } else { delay };
            kept.ready_at = SystemTime::now() + delay;
            kept.record.completion = Some(Arc::new(completion));
            kept.record.state = TaskState::Delayed;
            (kept.order, kept.first_fence) = (order, None);
        }
        kept.record.state
    }
}

impl State {
    fn next_order(&mut self) -> i64 {
        self.order += 1;
        self.order
    }

    fn find(&mut self, task: TaskId, operation: &'static str) -> Result<&mut Kept> {
        // The latest, should a fault have let in two.
        let found = self.tasks.iter_mut().rev().find(|kept| kept.record.task.id == task);
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, operation, "there is no such task"))
    }

    fn count(&self, state: TaskState) -> u64 {
        self.tasks.iter().filter(|kept| kept.record.state == state).count() as u64
    }
}

impl Kept {
    fn finish(&mut self, state: TaskState, completion: Completion) {
        self.record.state = state;
        self.record.completion = Some(Arc::new(completion));
        self.record.finished_at = Some(SystemTime::now());
    }

    /// Its order when it is given back: before all others, among those given back by when they were first leased.
    fn front(&self) -> i64 {
        i64::MIN / 2 + self.first_fence.unwrap_or(self.fence).0 as i64
    }

    fn holds(&self, fence: Fence, operation: &'static str) -> Result<()> {
        if self.record.state == TaskState::Running && self.fence == fence {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Stale, operation, "the lease ended").with_help("stop working on the task"))
    }
}

fn executed(outcome: Outcome) -> Completion {
    Completion::Executed(Box::new(Execution::new(outcome, Usage::default())))
}

impl Scheduler for FakeScheduler {
    fn submit(&self, task: Task) -> BoxFuture<'_, Result<Submission>> {
        let shared = &self.shared;
        Box::pin(async move {
            shared.with(|state| {
                let earlier = state.tasks.iter().find(|kept| {
                    let other = &kept.record.task;
                    let same_key = task.idempotency_key.is_some()
                        && (&other.idempotency_key, &other.tenant, other.plugin)
                            == (&task.idempotency_key, &task.tenant, task.plugin);
                    same_key && !shared.has(SchedulerFault::IgnoresKeys)
                        || other.id == task.id && !shared.has(SchedulerFault::IgnoresIds)
                });
                if let Some(kept) = earlier {
                    return Ok(Submission { task: kept.record.task.id, duplicate: true });
                }
                if state.mode == SchedulerMode::Draining && !shared.has(SchedulerFault::IgnoresDrain) {
                    return Err(Error::new(ErrorKind::Exhausted, "submit", "the scheduler drains"));
                }
                let now = SystemTime::now();
                let hopeless = task.deadline.is_some_and(|deadline| deadline <= now) || task.retry.attempts_max == 0;
                if hopeless && !shared.has(SchedulerFault::AcceptsHopeless) {
                    return Err(Error::new(ErrorKind::InvalidInput, "submit", "the task can never run"));
                }
                let ready_at = task.not_before.unwrap_or(now);
                let id = task.id;
                let order = state.next_order();
                let record = TaskRecord {
                    task: Arc::new(task),
                    state: if ready_at > now { TaskState::Delayed } else { TaskState::Queued },
                    submitted_at: now,
                    finished_at: None,
                    failures: 0,
                    lost: 0,
                    completion: None,
                };
                state.tasks.push(Kept { record, order, ready_at, fence: Fence(0), first_fence: None, lease_end: now });
                Ok(Submission { task: id, duplicate: false })
            })
        })
    }

    fn lease(&self, request: LeaseRequest) -> BoxFuture<'_, Result<Vec<Lease>>> {
        if request.tasks_max == 0 {
            return Box::pin(async {
                Err(Error::new(ErrorKind::InvalidInput, "lease", "a lease is for 1 task or more"))
            });
        }
        let shared = &self.shared;
        if shared.has(SchedulerFault::NeverWakes) {
            return Box::pin(poll_fn(move |_| match shared.lease(&mut shared.lock(), &request) {
                leases if leases.is_empty() => Poll::Pending,
                leases => Poll::Ready(Ok(leases)),
            }));
        }
        if shared.has(SchedulerFault::LeasesToTheDropped) {
            return Box::pin(Greedy { shared: Arc::clone(shared), request, polled: false });
        }
        Box::pin(poll_fn(move |context| {
            let leases = |state: &mut State| Some(shared.lease(state, &request)).filter(|leases| !leases.is_empty());
            shared.poll(context, leases).map(Ok)
        }))
    }

    fn renew(&self, task: TaskId, fence: Fence, lease_time: Duration) -> BoxFuture<'_, Result<SystemTime>> {
        Box::pin(async move {
            self.shared.with(|state| {
                let kept = state.find(task, "renew")?;
                kept.holds(fence, "renew")?;
                let end = SystemTime::now() + lease_time;
                if !self.shared.has(SchedulerFault::IgnoresRenewal) {
                    kept.lease_end = end;
                }
                Ok(end)
            })
        })
    }

    fn complete(&self, task: TaskId, fence: Fence, completion: Completion) -> BoxFuture<'_, Result<TaskState>> {
        Box::pin(async move {
            self.shared.with(|state| {
                let order = state.next_order();
                let kept = state.find(task, "complete")?;
                let forgiven = match kept.record.state {
                    TaskState::Cancelled => self.shared.has(SchedulerFault::CompletesCancelled),
                    TaskState::Completed => kept.fence == fence && self.shared.has(SchedulerFault::RecordsTwice),
                    TaskState::Running | TaskState::Queued => self.shared.has(SchedulerFault::AcceptsStale),
                    _ => false,
                };
                if !forgiven {
                    kept.holds(fence, "complete")?;
                }
                Ok(self.shared.complete(kept, completion, order))
            })
        })
    }

    fn release(&self, task: TaskId, fence: Fence) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.shared.with(|state| {
                let last = -state.next_order();
                let kept = state.find(task, "release")?;
                kept.holds(fence, "release")?;
                kept.record.lost += u32::from(self.shared.has(SchedulerFault::CountsReleases));
                let reverses = self.shared.has(SchedulerFault::ReversesReleases);
                (kept.record.state, kept.order) = (TaskState::Queued, if reverses { last } else { kept.front() });
                Ok(())
            })
        })
    }

    fn cancel(&self, task: TaskId) -> BoxFuture<'_, Result<TaskState>> {
        Box::pin(async move {
            self.shared.with(|state| {
                let kept = state.find(task, "cancel")?;
                if !kept.record.state.is_final() {
                    let running = kept.record.state == TaskState::Running;
                    let phase = if running { Phase::Running } else { Phase::Queued };
                    kept.finish(TaskState::Cancelled, executed(Outcome::Cancelled { phase }));
                }
                Ok(kept.record.state)
            })
        })
    }

    fn get(&self, task: TaskId) -> BoxFuture<'_, Result<TaskRecord>> {
        Box::pin(async move { self.shared.with(|state| Ok(state.find(task, "get")?.record.clone())) })
    }

    fn wait(&self, task: TaskId) -> BoxFuture<'_, Result<TaskRecord>> {
        Box::pin(poll_fn(move |context| {
            self.shared.poll(context, |state| match state.find(task, "wait") {
                Ok(_) if self.shared.has(SchedulerFault::NeverTells) => None,
                Ok(kept) => kept.record.state.is_final().then(|| Ok(kept.record.clone())),
                Err(error) => Some(Err(error)),
            })
        }))
    }

    fn dead_letters(&self, after: Option<TaskId>, tasks_max: usize) -> BoxFuture<'_, Result<Vec<TaskRecord>>> {
        Box::pin(async move {
            self.shared.with(|state| {
                let mut dead: Vec<_> = state
                    .tasks
                    .iter()
                    .map(|kept| &kept.record)
                    .filter(|record| record.state == TaskState::DeadLettered && Some(record.task.id) > after)
                    .cloned()
                    .collect();
                dead.sort_by_key(|record| record.task.id);
                let hidden = self.shared.has(SchedulerFault::HidesDeadLetters);
                dead.truncate(if hidden { 0 } else { tasks_max });
                Ok(dead)
            })
        })
    }

    fn list(&self, query: TaskQuery) -> BoxFuture<'_, Result<TaskPage>> {
        Box::pin(async move {
            self.shared.with(|state| {
                let before = |id: TaskId| query.before.is_none_or(|before| id < before);
                let all = self.shared.has(SchedulerFault::IgnoresFilters);
                let matches =
                    |record: &TaskRecord| (all || query.matches(&record.task, record.state)) && before(record.task.id);
                let records = state.tasks.iter().map(|kept| &kept.record);
                let mut tasks: Vec<_> = records.filter(|record| matches(record)).cloned().collect();
                tasks.sort_by_key(|record| std::cmp::Reverse(record.task.id));
                let more = tasks.len() > query.tasks_max.max(1);
                if more && self.shared.has(SchedulerFault::SkipsListed) {
                    tasks.remove(0);
                }
                tasks.truncate(query.tasks_max.max(1));
                let next = tasks.last().map(|record| record.task.id).filter(|_| more);
                Ok(TaskPage { tasks, next })
            })
        })
    }

    fn requeue(&self, task: TaskId) -> BoxFuture<'_, Result<TaskState>> {
        Box::pin(async move {
            self.shared.with(|state| {
                let order = state.next_order();
                let drains = state.mode == SchedulerMode::Draining;
                let kept = state.find(task, "requeue")?;
                if kept.record.state != TaskState::DeadLettered {
                    let message = "the task is not in the dead-letter queue";
                    return Err(Error::new(ErrorKind::InvalidInput, "requeue", message));
                }
                if drains && !self.shared.has(SchedulerFault::RequeuesWhileDraining) {
                    return Err(Error::new(ErrorKind::Exhausted, "requeue", "the scheduler drains"));
                }
                let is_late = kept.record.task.deadline.is_some_and(|deadline| deadline <= SystemTime::now());
                if is_late && !self.shared.has(SchedulerFault::RequeuesHopeless) {
                    return Err(Error::new(ErrorKind::InvalidInput, "requeue", "the task's deadline has passed"));
                }
                (kept.record.state, kept.order, kept.first_fence) = (TaskState::Queued, order, None);
                (kept.record.completion, kept.record.finished_at) = (None, None);
                if !self.shared.has(SchedulerFault::RequeuesSpent) {
                    (kept.record.failures, kept.record.lost) = (0, 0);
                }
                Ok(TaskState::Queued)
            })
        })
    }

    fn set_mode(&self, mode: SchedulerMode) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.shared.with(|state| {
                state.mode = mode;
                Ok(())
            })
        })
    }

    fn stats(&self) -> SchedulerStats {
        let state = self.shared.lock();
        SchedulerStats {
            queued: state.count(TaskState::Queued),
            delayed: state.count(TaskState::Delayed),
            running: state.count(TaskState::Running),
            dead_lettered: state.count(TaskState::DeadLettered),
        }
    }
}

/// A lease request that takes a task with it when it is dropped after it had to wait.
struct Greedy {
    shared: Arc<Shared>,
    request: LeaseRequest,
    polled: bool,
}

impl Future for Greedy {
    type Output = Result<Vec<Lease>>;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let shared = Arc::clone(&self.shared);
        let request = self.request.clone();
        let leases = |state: &mut State| Some(shared.lease(state, &request)).filter(|leases| !leases.is_empty());
        let answer = shared.poll(context, leases);
        self.polled = answer.is_pending();
        answer.map(Ok)
    }
}

impl Drop for Greedy {
    fn drop(&mut self) {
        if self.polled {
            self.shared.lease(&mut self.shared.lock(), &self.request);
        }
    }
}
