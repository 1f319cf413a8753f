//! The contract of a scheduler.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{ArtifactHash, BoxFuture, Execution, Result, Task, TaskId, Tenant};

/// Decides which task runs next, and records exactly one outcome for each.
///
/// # Contract
///
/// Execution is at least once, recording is exactly once: a worker holds a task by a [`Lease`] with a [`Fence`], and
/// only the newest fence may complete it. Nothing assumes that workers live in the scheduler's process.
pub trait Scheduler: Send + Sync + fmt::Debug {
    /// Takes a task.
    ///
    /// # Behavior
    ///
    /// * When it returns, the task is kept as safely as the scheduler promises (a durable one: on disk).
    /// * The same idempotency key, tenant and plugin give the earlier task back, and the new one is not kept. So does
    ///   the same id, which makes it safe to submit again after a lost answer.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Exhausted`](crate::ErrorKind::Exhausted) when the queue is full, the tenant is over its rate, or the
    /// scheduler drains; with [`Error::retry_after`](crate::Error::retry_after) where waiting helps.
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) when the task is malformed, too large or past its
    /// deadline, or when an earlier task with the same key or id differs from this one.
    fn submit(&self, task: Task) -> BoxFuture<'_, Result<Submission>>;

    /// Waits for tasks to run and leases them.
    ///
    /// # Behavior
    ///
    /// * Gives at least one task and at most [`LeaseRequest::tasks_max`], in the order they should start: by priority
    ///   class, then fair between tenants, then first come, first served.
    /// * Of a plugin in [`LeaseRequest::plugin_limits`], gives no more than that. Tasks the worker has no room for are skipped:
    ///   later tasks are leased first, and skipped tasks keep their place in line. To ask for something else, a worker drops
    ///   the future and calls again.
    /// * A task is never leased to two workers at once; after the lease ends it is given out again with a greater fence.
    /// * Dropping the future leases nothing.
    /// * While the scheduler is [paused](SchedulerMode::Paused), gives nothing.
    /// * May give less for a time than there is, so that a task is alone which may have ended its last worker.
    fn lease(&self, request: LeaseRequest) -> BoxFuture<'_, Result<Vec<Lease>>>;

    /// Prolongs a lease and returns its new end.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Stale`](crate::ErrorKind::Stale) when the lease ended or the task was cancelled: stop working on it.
    fn renew(&self, task: TaskId, fence: Fence, lease_time: Duration) -> BoxFuture<'_, Result<SystemTime>>;

    /// Ends an attempt. The scheduler decides between a retry, the dead-letter queue and the end.
    ///
    /// # Behavior
    ///
    /// * Compare-and-set on the fence: of several completions one is recorded.
    /// * An outcome that is [retryable](crate::Outcome::is_retryable) is tried again within the task's
    ///   [`RetryPolicy`](crate::RetryPolicy) and before its deadline.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Stale`](crate::ErrorKind::Stale) when `fence` is not the newest.
    fn complete(&self, task: TaskId, fence: Fence, completion: Completion) -> BoxFuture<'_, Result<TaskState>>;

    /// Ends several attempts, each as [`Scheduler::complete`] does, and gives the answers in the order of the reports. One
    /// that is refused changes nothing for the others.
    fn complete_all(&self, reports: Vec<Report>) -> BoxFuture<'_, Vec<Result<TaskState>>> {
        Box::pin(async move {
            let mut answers = Vec::with_capacity(reports.len());
            for Report { task, fence, completion } in reports {
                answers.push(self.complete(task, fence, completion).await);
            }
            answers
        })
    }

    /// Gives a lease back without an attempt: the task waits again, in front of its tenant's others, and nothing is
    /// counted. Several that are given back stand in the order in which they were first leased.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Stale`](crate::ErrorKind::Stale) when `fence` is not the newest.
    fn release(&self, task: TaskId, fence: Fence) -> BoxFuture<'_, Result<()>>;

    /// Cancels a task that is queued or running. Ending it twice changes nothing.
    ///
    /// # Behavior
    ///
    /// * A running task has its outcome at once: [`Scheduler::wait`] returns, by which its worker hears of it, and what
    ///   the worker reports afterwards is refused.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) when there is no such task.
    fn cancel(&self, task: TaskId) -> BoxFuture<'_, Result<TaskState>>;

    /// Looks a task up.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) when there is none, or its time-to-live is over.
    fn get(&self, task: TaskId) -> BoxFuture<'_, Result<TaskRecord>>;

    /// Waits until a task has its outcome.
    ///
    /// # Errors
    ///
    /// As [`Scheduler::get`].
    fn wait(&self, task: TaskId) -> BoxFuture<'_, Result<TaskRecord>>;

    /// Tasks in the dead-letter queue, sorted by id, those after `after` only, at most `tasks_max`.
    fn dead_letters(&self, after: Option<TaskId>, tasks_max: usize) -> BoxFuture<'_, Result<Vec<TaskRecord>>>;

    /// A page of the tasks that are kept, latest id first: ids sort by time.
    ///
    /// # Behavior
    ///
    /// * Looks at a bounded number of tasks, so that a long list delays nothing. A page may therefore hold fewer tasks
    ///   than were asked for, even none, while [`TaskPage::next`] says where to go on.
    /// * Page after page, each task that matches and is kept all the while comes exactly once.
    fn list(&self, query: TaskQuery) -> BoxFuture<'_, Result<TaskPage>>;

    /// Takes a task out of the dead-letter queue and tries it again from the beginning, as if newly submitted.
    ///
    /// # Errors
    ///
    /// As [`Scheduler::submit`], also while it drains, and [`Scheduler::get`];
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) when the task is not in the dead-letter queue.
    fn requeue(&self, task: TaskId) -> BoxFuture<'_, Result<TaskState>>;

    /// Pauses, resumes or drains. It holds until it is set again or the scheduler is opened anew.
    fn set_mode(&self, mode: SchedulerMode) -> BoxFuture<'_, Result<()>>;

    /// Counts of what is queued and running.
    fn stats(&self) -> SchedulerStats;
}

/// Which tasks to list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskQuery {
    /// Only those in one of these states. Empty: in any.
    pub states: Vec<TaskState>,
    /// Only those of this tenant.
    pub tenant: Option<Tenant>,
    /// Only those of this plugin.
    pub plugin: Option<ArtifactHash>,
    /// Only those whose id is smaller, to go on where a page ended.
    pub before: Option<TaskId>,
    /// Most tasks in the page; 0 counts as 1.
    pub tasks_max: usize,
}

impl TaskQuery {
    /// Whether a task that is in `state` is asked for. Where the page begins and ends is not looked at.
    pub fn matches(&self, task: &Task, state: TaskState) -> bool {
        (self.states.is_empty() || self.states.contains(&state))
            && self.tenant.as_ref().is_none_or(|tenant| *tenant == task.tenant)
            && self.plugin.is_none_or(|plugin| plugin == task.plugin)
    }
}

/// A part of a list of tasks.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TaskPage {
    /// Latest id first.
    pub tasks: Vec<TaskRecord>,
    /// There may be more: ask again with this as [`TaskQuery::before`].
    pub next: Option<TaskId>,
}

/// Answer to a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Submission {
    /// The task that will run.
    pub task: TaskId,
    /// It was there before, under the same idempotency key.
    pub duplicate: bool,
}

/// Identity of a worker, new at each boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(pub Uuid);

impl WorkerId {
    /// A new id. Uses the system's clock and randomness.
    #[expect(clippy::new_without_default, reason = "two defaults would differ")]
    pub fn new() -> Self {
        WorkerId(Uuid::now_v7())
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Increases with every lease of a task; only the newest may complete it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(pub u64);

/// What a worker asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// Who asks.
    pub worker: WorkerId,
    /// Most tasks to give at once.
    pub tasks_max: usize,
    /// Time until the lease ends unless it is renewed.
    pub lease_time: Duration,
    /// Tasks the worker runs at once in all, those included that it has. A scheduler may leave some of these places to other
    /// tenants than the one that wants them all. 0: it does not say.
    #[serde(default)]
    pub places: usize,
    /// Plugins of which the worker has room for fewer tasks than that. If one is named twice, the smaller limit holds.
    #[serde(default)]
    pub plugin_limits: Arc<[PluginLimit]>,
}

impl LeaseRequest {
    /// A request for tasks of any plugins.
    pub fn new(worker: WorkerId, tasks_max: usize, lease_time: Duration) -> LeaseRequest {
        LeaseRequest { worker, tasks_max, lease_time, places: 0, plugin_limits: Arc::default() }
    }
}

/// How many tasks of one plugin a worker has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginLimit {
    /// The plugin.
    pub plugin: ArtifactHash,
    /// Most tasks of it to give at once; 0: none.
    pub tasks_max: usize,
}

/// A worker's time-limited, fenced right to run a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    /// The task.
    pub task: Arc<Task>,
    /// Proof of the right.
    pub fence: Fence,
    /// Which attempt this is, from 1; lost ones count.
    pub attempt: u32,
    /// When the task was submitted, as in [`TaskRecord::submitted_at`].
    pub submitted_at: SystemTime,
    /// When the right ends.
    pub expires_at: SystemTime,
}

/// How an attempt ended, as the worker reports it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Completion {
    /// The guest was called.
    Executed(Box<Execution>),
    /// The host could not run it. `retryable` as in [`ErrorKind::is_retryable`](crate::ErrorKind::is_retryable).
    HostError {
        /// The error's text.
        message: String,
        /// Whether another attempt may help.
        retryable: bool,
    },
}

/// One of several attempts that ended: the arguments of [`Scheduler::complete`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The task.
    pub task: TaskId,
    /// Proof of the right to end it.
    pub fence: Fence,
    /// How the attempt ended.
    pub completion: Completion,
}

/// Where a task is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TaskState {
    /// Waiting for its time or for a retry.
    Delayed,
    /// Waiting for a worker.
    Queued,
    /// Leased.
    Running,
    /// Ended with success.
    Completed,
    /// Ended without success, and will not be tried again.
    Failed,
    /// Cancelled.
    Cancelled,
    /// Given up after too many attempts; kept for a person to look at.
    DeadLettered,
}

impl TaskState {
    /// All states, in the order of a task's life.
    pub const ALL: &[TaskState] = &[
        TaskState::Delayed,
        TaskState::Queued,
        TaskState::Running,
        TaskState::Completed,
        TaskState::Failed,
        TaskState::Cancelled,
        TaskState::DeadLettered,
    ];

    /// The name in lower case, with underscores.
    pub fn as_str(self) -> &'static str {
        match self {
            TaskState::Delayed => "delayed",
            TaskState::Queued => "queued",
            TaskState::Running => "running",
            TaskState::Completed => "completed",
            TaskState::Failed => "failed",
            TaskState::Cancelled => "cancelled",
            TaskState::DeadLettered => "dead_lettered",
        }
    }

    /// Whether the task has its outcome.
    pub fn is_final(self) -> bool {
        !matches!(self, TaskState::Delayed | TaskState::Queued | TaskState::Running)
    }
}

/// Everything recorded about a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// The task.
    pub task: Arc<Task>,
    /// Where it is.
    pub state: TaskState,
    /// When it was submitted.
    pub submitted_at: SystemTime,
    /// When it got its outcome.
    pub finished_at: Option<SystemTime>,
    /// Attempts that were reported to have failed.
    pub failures: u32,
    /// Attempts whose worker was lost.
    pub lost: u32,
    /// The recorded outcome, once there is one; before, that of the latest failed attempt.
    pub completion: Option<Arc<Completion>>,
}

/// What a scheduler does with tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerMode {
    /// Takes tasks and leases them.
    #[default]
    Running,
    /// Takes tasks and leases none. Leases that are out go on.
    Paused,
    /// Takes no more tasks and leases those it has, until none is left.
    Draining,
}

/// Counts of what a scheduler holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SchedulerStats {
    /// Tasks waiting for a worker.
    pub queued: u64,
    /// Tasks waiting for their time.
    pub delayed: u64,
    /// Tasks leased.
    pub running: u64,
    /// Tasks in the dead-letter queue.
    pub dead_lettered: u64,
}
