//! The scheduler of one process: the deciding machine behind a lock, with a clock, metrics and perhaps a journal.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use palisade_core::{
    BoxFuture, Completion, Error, ErrorKind, Fence, Lease, LeaseRequest, MetricsSink, Report, Result, Scheduler,
    SchedulerMode, SchedulerStats, Submission, Task, TaskId, TaskPage, TaskQuery, TaskRecord, TaskState, Tenant,
};
use tokio::sync::Notify;

use crate::clock::from_millis;
use crate::journal::{Committer, JournalEntry};
use crate::kpi::{JournalKpis, Kpis};
use crate::machine::{Change, Machine, What, completion_bytes};
use crate::wheel::Millis;
use crate::{Clock, Events, Journal, Kept, NullSink, SchedulerLimits, TenantLimits, TenantReport, admission};

/// How to open a [`LocalScheduler`].
#[derive(Debug)]
#[non_exhaustive]
pub struct SchedulerOptions {
    /// What bounds it.
    pub limits: SchedulerLimits,
    /// Where it reads the time.
    pub clock: Clock,
    /// Where it keeps its tasks. `None`: in memory only.
    pub journal: Option<Box<dyn Journal>>,
    /// Who hears its figures.
    pub metrics: Arc<dyn MetricsSink>,
    /// How many tenants have figures of their own, in the order in which they turn up; the rest share one. Default 0: there
    /// are none by tenant.
    pub tenant_labels_max: usize,
    /// Events kept for subscribers that are slower than they come. Default 4096.
    pub events_kept: usize,
    /// Subscribers to events at once. Default 64.
    pub subscribers_max: usize,
    /// Seed of the retries' jitter. `None`: from the system.
    pub seed: Option<u64>,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        SchedulerOptions {
            limits: SchedulerLimits::default(),
            clock: Clock::system(),
            journal: None,
            metrics: Arc::new(NullSink),
            tenant_labels_max: 0,
            events_kept: 4096,
            subscribers_max: 64,
            seed: None,
        }
    }
}

/// The scheduler of one process, in memory or durable.
///
/// With a journal, whatever a future of it gave as its result is on disk; a task whose submission returned survives
/// the process. Leases do not: when the scheduler is opened again, what was running waits again and counts as lost once.
///
/// When the journal has no room, operations fail with [`ErrorKind::Exhausted`] until there is some, and then go on: only what
/// workers say is still taken, so that their work is not lost, but not acknowledged. Whatever else happens to the journal,
/// every operation fails from then on. In both cases nothing acknowledged is lost, and what was not may have happened.
///
/// Any executor can drive its futures: its timers and its journal have threads of their own.
///
/// ```
/// use std::time::Duration;
/// use palisade_core::*;
/// use palisade_fabric::{LocalScheduler, SchedulerOptions};
///
/// # fn main() -> Result<()> {
/// let scheduler = LocalScheduler::open(SchedulerOptions::default())?;
/// block_on(async {
///     let task = scheduler.submit(Task::new(ArtifactHash::of(b"plugin"))).await?.task;
///     let worker = WorkerId(uuid::Uuid::now_v7());
///     let request = LeaseRequest::new(worker, 1, Duration::from_secs(30));
///     let lease = scheduler.lease(request).await?.remove(0);
///     let done = Completion::Executed(Box::new(Execution::new(Outcome::Completed, Usage::default())));
///     assert_eq!(scheduler.complete(task, lease.fence, done).await?, TaskState::Completed);
///     assert!(scheduler.wait(task).await?.completion.is_some());
///     Ok(())
/// })
/// # }
/// ```
pub struct LocalScheduler {
    shared: Arc<Shared>,
    timer: Option<JoinHandle<()>>,
}

struct Shared {
    limits: SchedulerLimits,
    clock: Clock,
    state: Mutex<State>,
    /// Wakes the timer thread.
    timer: Condvar,
    /// Wakes a worker that waits for tasks.
    ready: Notify,
    /// Wakes all workers that wait and do not take every task: which of them wants the next one, only they know.
    ready_for_some: Notify,
    /// Workers that wait for that.
    choosy: AtomicUsize,
    events: Events,
    committer: Option<Committer>,
}

struct State {
    machine: Machine,
    kpis: Kpis,
    /// Those who wait for an outcome.
    waiting: HashMap<TaskId, Arc<Ended>, foldhash::fast::RandomState>,
    /// Those of them whose task came to its end since the last time they were told, with what was recorded.
    ended: Vec<(Arc<Ended>, Option<TaskRecord>)>,
    /// How many of the machine's changes were looked at for that.
    noted: usize,
    /// When the timer thread looks again.
    timer_at: Millis,
    closing: bool,
}

/// Where those who wait for a task's outcome find it, without asking again.
#[derive(Default)]
struct Ended {
    told: Notify,
    /// What was recorded, and its journal position; `None` when it was not kept. Empty until the end, and set before
    /// anybody is told.
    record: OnceLock<Option<(TaskRecord, u64)>>,
}

impl fmt::Debug for LocalScheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalScheduler")
            .field("stats", &self.stats())
            .field("durable", &self.shared.committer.is_some())
            .finish()
    }
}

impl LocalScheduler {
    /// Opens it, and takes back what the journal kept.
    ///
    /// # Errors
    ///
    /// Those of [`Journal::open`] and of registering metrics; [`ErrorKind::Io`] when the system gives no thread.
    pub fn open(options: SchedulerOptions) -> Result<LocalScheduler> {
        let SchedulerOptions { limits, clock, journal, metrics, tenant_labels_max, events_kept, subscribers_max, seed } =
            options;
        limits.tenant.validate()?;
        let seed = match seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(|error| {
                Error::new(ErrorKind::Io, "open", "the system gives no randomness").with_source(error)
            })?,
        };
        let mut machine = Machine::new(limits.clone(), 0, seed, clock.millis());
        let mut committer = None;
        if let Some(mut journal) = journal {
            let mut kept = Vec::new();
            let epoch = journal.open(&mut |one| {
                kept.push(one);
                Ok(())
            })?;
            machine = Machine::new(limits.clone(), epoch, seed, clock.millis());
            let is_running =
                |one: &&Kept| matches!(one, Kept::Task { status, .. } if status.state == TaskState::Running);
            let was_alone = kept.iter().filter(is_running).count() <= 1;
            for one in kept {
                match one {
                    Kept::Task { seq, task, status } => {
                        let bytes = admission::weigh(&task);
                        machine.restore(seq, Arc::new(*task), bytes, status, was_alone)?;
                    }
                    Kept::Limits { tenant, limits } => machine.restore_limits(&tenant, limits)?,
                }
            }
            committer = Some(Committer::start(journal, JournalKpis::new(Arc::clone(&metrics))?)?);
        }
        let kpis = Kpis::new(metrics, tenant_labels_max)?;
        let mut events = Events::new(events_kept, subscribers_max);
        if let Some(committer) = &committer {
            events = events.once_safe(committer.progress());
        }
        let shared = Arc::new(Shared {
            limits,
            clock,
            state: Mutex::new(State {
                machine,
                kpis,
                waiting: HashMap::default(),
                ended: Vec::new(),
                noted: 0,
                timer_at: 0,
                closing: false,
            }),
            timer: Condvar::new(),
            ready: Notify::new(),
            ready_for_some: Notify::new(),
            choosy: AtomicUsize::new(0),
            events,
            committer,
        });
        shared.settle(shared.lock(), true);
        let mut timer = None;
        if !shared.clock.is_manual() {
            let theirs = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name("palisade-timers".to_owned());
            let thread = thread.spawn(move || theirs.run_timers());
            timer = Some(thread.map_err(|error| {
                Error::new(ErrorKind::Io, "open", "no thread for the scheduler's timers").with_source(error)
            })?);
        }
        Ok(LocalScheduler { shared, timer })
    }

    /// Lets everything happen that is due. Needed after [`Clock::advance`] only; with the system's clock a thread does it.
    pub fn tick(&self) {
        let mut state = self.shared.lock();
        state.machine.advance(self.shared.clock.millis());
        self.shared.settle(state, true);
    }

    /// Where it tells of what happens, once that is safe. An executor and a service can tell there as well.
    pub fn events(&self) -> Events {
        self.shared.events.clone()
    }

    /// Whether it can keep what it is given.
    ///
    /// # Errors
    ///
    /// The journal's: [`ErrorKind::Exhausted`] while it has no room, [`ErrorKind::Io`] or [`ErrorKind::Corrupt`] for good.
    pub fn check(&self) -> Result<()> {
        self.shared.check()
    }

    /// Sets what a tenant may do, from now on and after the scheduler is opened again, or with `None` lets it have the
    /// limits of every tenant again. A tenant with limits of its own need not have tasks; it is never forgotten, and counts
    /// towards [`SchedulerLimits::tenants_max`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for a name of no or too many bytes and for limits that would stop the tenant for ever,
    /// [`ErrorKind::Exhausted`] when there are too many tenants, [`ErrorKind::NotFound`] for `None` when it has none;
    /// those of [`LocalScheduler::check`].
    pub async fn set_tenant_limits(&self, tenant: &Tenant, limits: Option<TenantLimits>) -> Result<()> {
        admission::check_tenant(tenant, "set_limits")?;
        self.shared.check()?;
        let position = {
            let mut state = self.shared.lock();
            match limits {
                Some(limits) => state.machine.set_limits(tenant, limits)?,
                None => state.machine.reset_limits(tenant)?,
            }
            let entry = JournalEntry::Limits { tenant: tenant.clone(), limits };
            let position = self.shared.committer.as_ref().map_or(0, |committer| committer.append([entry]));
            // Tasks that had to wait may be able to start.
            self.shared.settle(state, true);
            position
        };
        self.shared.safe(position).await
    }

    /// Tenants with limits of their own or with tasks that have no outcome, sorted by name: those after `after`, at most
    /// `tenants_max` of them.
    pub fn tenants(&self, after: Option<&Tenant>, tenants_max: usize) -> Vec<TenantReport> {
        let (now, mut state) = (self.shared.clock.millis(), self.shared.lock());
        state.machine.advance(now);
        let tenants = state.machine.tenants(after, tenants_max);
        self.shared.settle(state, true);
        tenants
    }

    /// As [`LocalScheduler::tenants`], of one tenant.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when it has neither tasks nor limits of its own.
    pub fn tenant(&self, tenant: &Tenant) -> Result<TenantReport> {
        self.shared.lock().machine.tenant_report(tenant).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "find", "no such tenant has tasks or limits of its own")
                .with_context("tenant", &tenant.0)
        })
    }
}

impl Drop for LocalScheduler {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.timer.notify_one();
        if let Some(timer) = self.timer.take() {
            let _ = timer.join();
        }
    }
}

/// How often a thread looks whether the state is free before it sleeps, and how many pauses it makes in between. Together
/// some 20 us, which is what the longest operations take: to put a thread to sleep and wake it costs more than that.
const SPINS_MAX: u32 = 64;
const SPIN_PAUSES: u32 = 16;

impl State {
    /// Finds those who wait for what came to its end, while it is still recorded.
    fn note_ended(&mut self) {
        let State { machine, waiting, ended, noted, .. } = self;
        for Change { slot, seq, task, what, .. } in &machine.changes_so_far()[*noted..] {
            if let What::Finished { .. } = what
                && let Some(waiting) = waiting.remove(&task.id)
            {
                ended.push((waiting, machine.recorded(*slot, *seq)));
            }
        }
        *noted = machine.changes_so_far().len();
    }
}

impl Shared {
    // A panic inside would be a defect of the machine; going on with what it left serves more tasks than stopping.
    fn lock(&self) -> MutexGuard<'_, State> {
        for _ in 0..SPINS_MAX {
            match self.state.try_lock() {
                Ok(state) => return state,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => (0..SPIN_PAUSES).for_each(|_| std::hint::spin_loop()),
            }
        }
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The journal's failure, if it failed.
    fn check(&self) -> Result<()> {
        self.committer.as_ref().map_or(Ok(()), Committer::check)
    }

    /// Runs an operation of the machine unless the journal failed, and gives the journal position that makes it safe.
    fn run<T>(&self, operation: impl FnOnce(&mut Machine, Millis) -> Result<T>) -> Result<(T, u64)> {
        self.check()?;
        self.decide(operation)
    }

    /// As [`Shared::run`], also while the journal fails: for what workers say, which is bounded by what they were given.
    fn decide<T>(&self, operation: impl FnOnce(&mut Machine, Millis) -> Result<T>) -> Result<(T, u64)> {
        let now = self.clock.millis();
        let mut state = self.lock();
        let result = operation(&mut state.machine, now);
        if let Err(error) = &result {
            match (error.operation(), error.kind()) {
                ("submit", kind) => state.kpis.refused(kind),
                ("complete", ErrorKind::Stale) => state.kpis.stale(),
                _ => {}
            }
        }
        let position = self.settle(state, true);
        Ok((result?, position))
    }

    /// Runs an operation and waits until it is safe.
    async fn run_safely<T>(&self, operation: impl FnOnce(&mut Machine, Millis) -> Result<T>) -> Result<T> {
        let (result, position) = self.run(operation)?;
        self.safe(position).await?;
        Ok(result)
    }

    async fn safe(&self, position: u64) -> Result<()> {
        match &self.committer {
            Some(committer) => committer.safe(position).await,
            None => Ok(()),
        }
    }

    /// Ends several attempts in one operation. Gives the answers, and the journal position that makes them safe.
    fn complete_all(&self, reports: Vec<Report>) -> (Vec<Result<TaskState>>, u64) {
        let checked = |report: &Report| self.check_completion(report.task, &report.completion);
        let checked: Vec<_> = reports.into_iter().map(|report| (checked(&report), report)).collect();
        let now = self.clock.millis();
        let mut state = self.lock();
        let answers = checked.into_iter().map(|(checked, Report { task, fence, completion })| {
            checked?;
            let answer = state.machine.complete(now, task, fence, completion);
            if answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Stale) {
                state.kpis.stale();
            }
            // At once, because the next outcome may take the room of this one.
            state.note_ended();
            answer
        });
        let answers = answers.collect();
        (answers, self.settle(state, true))
    }

    fn check_completion(&self, task: TaskId, completion: &Completion) -> Result<()> {
        let (bytes, limit) = (completion_bytes(completion), self.limits.completion_bytes_max);
        if bytes > limit {
            let message = format!("a completion of {bytes} bytes is larger than allowed");
            return Err(Error::new(ErrorKind::InvalidInput, "complete", message)
                .with_context("task", task)
                .with_context("limit", limit)
                .with_help("bound the task's output"));
        }
        Ok(())
    }

    /// Journals, counts and tells what the machine decided. Gives the journal position of the latest change.
    ///
    /// Nobody is woken and nothing freed under the lock: both take long, and whoever is woken wants the lock.
    fn settle(&self, mut guard: MutexGuard<'_, State>, wake_workers: bool) -> u64 {
        let state = &mut *guard;
        state.note_ended();
        state.noted = 0;
        let mut ended = std::mem::take(&mut state.ended);
        let mut changes = std::mem::take(state.machine.changes());
        let forgotten = state.machine.take_forgotten();
        let lined_up = state.machine.take_lined_up();
        let mut position = 0;
        if let Some(committer) = &self.committer {
            let entries = changes.iter().filter_map(|change| {
                let seq = change.seq;
                let (task, status) = state.machine.status(change.slot, seq)?;
                Some(match change.what {
                    What::Submitted => JournalEntry::Submit { seq, task: Arc::clone(task), status },
                    _ => JournalEntry::Update { seq, status },
                })
            });
            position = committer
                .append(entries.chain(forgotten.iter().map(|entry| JournalEntry::Forget { seq: entry.seq() })));
            for change in &changes {
                state.machine.set_position(change.slot, change.seq, position);
            }
        }
        self.events.tell_changes(&changes, state.machine.now(), position);
        changes.drain(..).for_each(|change| state.kpis.count(&change));
        for (ended, record) in &mut ended {
            let _ = ended.record.set(record.take().map(|record| (record, position)));
        }
        // Its room serves the next operation.
        *state.machine.changes() = changes;
        state.kpis.tell(&state.machine, &lined_up);
        let wake_workers = wake_workers && state.machine.has_work();
        let wake_choosy = wake_workers && self.choosy.load(Ordering::Relaxed) > 0;
        let wake_timer = state.machine.next_timer().is_some_and(|next| next < state.timer_at);
        drop(guard);
        if wake_workers {
            self.ready.notify_one();
        }
        if wake_choosy {
            self.ready_for_some.notify_waiters();
        }
        if wake_timer {
            self.timer.notify_one();
        }
        ended.iter().for_each(|(ended, _)| ended.told.notify_waiters());
        drop(forgotten);
        position
    }

    fn run_timers(&self) {
        let mut state = self.lock();
        while !state.closing {
            let now = self.clock.millis();
            state.machine.advance(now);
            state.timer_at = state.machine.next_timer().unwrap_or(Millis::MAX);
            self.settle(state, true);
            state = self.lock();
            // What was set meanwhile told a thread that did not wait yet.
            if state.machine.next_timer().is_some_and(|next| next < state.timer_at) || state.closing {
                continue;
            }
            // Not for ever, so that a span too long for the system's call does no harm.
            let wait = Duration::from_millis(state.timer_at.saturating_sub(now).clamp(1, 3_600_000));
            state = self.timer.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A task's outcome, or a place among those who wait for it: in one step, so that nothing is missed in between.
    fn look(&self, task: TaskId) -> Result<Look<'_>> {
        self.check()?;
        let now = self.clock.millis();
        let mut state = self.lock();
        let found = state.machine.outcome(now, task);
        let found = found.map(|found| found.ok_or_else(|| Arc::clone(state.waiting.entry(task).or_default())));
        // Whoever looks often finds that no timer came meanwhile, and then there is nothing to settle.
        match state.machine.is_settled() {
            true => drop(state),
            false => drop(self.settle(state, true)),
        }
        Ok(match found? {
            Ok((record, position)) => Look::Ended { record: Box::new(record), position },
            Err(ended) => Look::Waits(Waiting { shared: self, task, ended }),
        })
    }

    /// What is recorded about a task, once it is safe.
    async fn record(&self, task: TaskId) -> Result<TaskRecord> {
        let ((record, position), _) = self.run(|machine, now| machine.get(now, task))?;
        self.safe(position).await?;
        Ok(record)
    }
}

/// Leases that nobody has taken over yet.
struct Unclaimed<'a> {
    shared: &'a Shared,
    leases: Vec<Lease>,
}

impl Drop for Unclaimed<'_> {
    fn drop(&mut self) {
        // From the last, so that they stand in line as before.
        for lease in self.leases.drain(..).rev() {
            let _ = self.shared.decide(|machine, now| machine.release(now, lease.task.id, lease.fence));
        }
    }
}

/// A worker that waits and does not take every task.
struct Choosy<'a>(&'a AtomicUsize);

impl<'a> Choosy<'a> {
    /// Under the lock of the state, so that whatever happens next wakes it.
    fn enter(waiting: &'a AtomicUsize) -> Choosy<'a> {
        waiting.fetch_add(1, Ordering::Relaxed);
        Choosy(waiting)
    }
}

impl Drop for Choosy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What somebody who wants a task's outcome finds.
enum Look<'a> {
    Ended { record: Box<TaskRecord>, position: u64 },
    Waits(Waiting<'a>),
}

/// Somebody who waits for a task's outcome.
struct Waiting<'a> {
    shared: &'a Shared,
    task: TaskId,
    ended: Arc<Ended>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // The end cleared the table.
        if self.ended.record.get().is_some() {
            return;
        }
        let mut state = self.shared.lock();
        // Ours and the table's: nobody else waits.
        let ours = state.waiting.get(&self.task).is_some_and(|ended| Arc::ptr_eq(ended, &self.ended));
        if ours && Arc::strong_count(&self.ended) == 2 {
            state.waiting.remove(&self.task);
        }
    }
}

impl Scheduler for LocalScheduler {
    fn submit(&self, task: Task) -> BoxFuture<'_, Result<Submission>> {
        // Before the future is boxed, so that a task is moved once.
        let task = Arc::new(task);
        Box::pin(async move {
            let bytes = match admission::check(&task, &self.shared.limits) {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.shared.lock().kpis.refused(error.kind());
                    return Err(error);
                }
            };
            self.shared.run_safely(|machine, now| machine.submit(now, task, bytes)).await
        })
    }

    fn lease(&self, request: LeaseRequest) -> BoxFuture<'_, Result<Vec<Lease>>> {
        Box::pin(async move {
            if request.tasks_max == 0 || request.lease_time.is_zero() {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    "lease",
                    "a lease is for 1 task or more, and some time",
                ));
            }
            let shared = &*self.shared;
            let takes_all = request.plugin_limits.is_empty();
            loop {
                let more = if takes_all { shared.ready.notified() } else { shared.ready_for_some.notified() };
                if let Some(committer) = &shared.committer {
                    committer.check()?;
                }
                let mut unclaimed = Unclaimed { shared, leases: Vec::new() };
                let (position, has_more, _choosy) = {
                    let now = shared.clock.millis();
                    let mut state = shared.lock();
                    let position = state.machine.lease(now, &request, &mut unclaimed.leases);
                    let has_more = state.machine.has_more();
                    let choosy = (!takes_all && unclaimed.leases.is_empty()).then(|| Choosy::enter(&shared.choosy));
                    // One that got nothing wakes nobody: the next would get nothing either, and wake this one. Unless it
                    // was this one that noticed what came due, and does not want it.
                    let noticed = !takes_all && !state.machine.is_settled();
                    shared.settle(state, noticed || !unclaimed.leases.is_empty());
                    (position, has_more, choosy)
                };
                if !unclaimed.leases.is_empty() {
                    if shared.committer.as_ref().is_some_and(|committer| !committer.is_safe(position)) {
                        shared.safe(position).await?;
                    }
                    return Ok(std::mem::take(&mut unclaimed.leases));
                }
                drop(unclaimed);
                if has_more {
                    continue;
                }
                match &shared.committer {
                    None => more.await,
                    // A journal that fails wakes those who wait.
                    Some(committer) => tokio::select! {
                        () = more => {}
                        error = committer.failed() => return Err(error),
                    },
                }
            }
        })
    }

    fn renew(&self, task: TaskId, fence: Fence, lease_time: Duration) -> BoxFuture<'_, Result<SystemTime>> {
        Box::pin(async move {
            let (end, _) = self.shared.decide(|machine, now| machine.renew(now, task, fence, lease_time))?;
            self.shared.lock().kpis.renewed();
            Ok(from_millis(end))
        })
    }

    fn complete(&self, task: TaskId, fence: Fence, completion: Completion) -> BoxFuture<'_, Result<TaskState>> {
        Box::pin(async move {
            self.shared.check_completion(task, &completion)?;
            let (state, position) =
                self.shared.decide(|machine, now| machine.complete(now, task, fence, completion))?;
            self.shared.safe(position).await?;
            Ok(state)
        })
    }

    fn complete_all(&self, reports: Vec<Report>) -> BoxFuture<'_, Vec<Result<TaskState>>> {
        Box::pin(async move {
            let (mut answers, position) = self.shared.complete_all(reports);
            for answer in &mut answers {
                if answer.is_ok()
                    && let Err(error) = self.shared.safe(position).await
                {
                    *answer = Err(error);
                }
            }
            answers
        })
    }

    fn release(&self, task: TaskId, fence: Fence) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.shared.decide(|machine, now| machine.release(now, task, fence)).map(drop) })
    }

    fn cancel(&self, task: TaskId) -> BoxFuture<'_, Result<TaskState>> {
        Box::pin(async move { self.shared.run_safely(|machine, now| machine.cancel(now, task)).await })
    }

    fn get(&self, task: TaskId) -> BoxFuture<'_, Result<TaskRecord>> {
        Box::pin(self.shared.record(task))
    }

    fn wait(&self, task: TaskId) -> BoxFuture<'_, Result<TaskRecord>> {
        Box::pin(async move {
            let shared = &*self.shared;
            loop {
                let waiting = match shared.look(task)? {
                    Look::Ended { record, position } => {
                        shared.safe(position).await?;
                        return Ok(*record);
                    }
                    Look::Waits(waiting) => waiting,
                };
                // It hears of everything from here on; what was before, the record shows.
                let told = waiting.ended.told.notified();
                if waiting.ended.record.get().is_none() {
                    match &shared.committer {
                        None => told.await,
                        Some(committer) => tokio::select! {
                            () = told => {}
                            error = committer.failed() => return Err(error),
                        },
                    }
                }
                if let Some(Some((record, position))) = waiting.ended.record.get() {
                    shared.safe(*position).await?;
                    return Ok(record.clone());
                }
            }
        })
    }

    fn dead_letters(&self, after: Option<TaskId>, tasks_max: usize) -> BoxFuture<'_, Result<Vec<TaskRecord>>> {
        Box::pin(async move {
            let max = tasks_max.min(self.shared.limits.batch_max);
            let ((records, position), _) = self.shared.run(|machine, now| Ok(machine.dead_letters(now, after, max)))?;
            self.shared.safe(position).await?;
            Ok(records)
        })
    }

    fn list(&self, query: TaskQuery) -> BoxFuture<'_, Result<TaskPage>> {
        Box::pin(async move {
            let ((page, position), _) = self.shared.run(|machine, now| Ok(machine.list(now, &query)))?;
            self.shared.safe(position).await?;
            Ok(page)
        })
    }

    fn requeue(&self, task: TaskId) -> BoxFuture<'_, Result<TaskState>> {
        Box::pin(async move { self.shared.run_safely(|machine, now| machine.requeue(now, task)).await })
    }

    fn set_mode(&self, mode: SchedulerMode) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.shared.run(|machine, _| {
                machine.set_mode(mode);
                Ok(())
            })?;
            Ok(())
        })
    }

    fn stats(&self) -> SchedulerStats {
        self.shared.lock().machine.stats()
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use palisade_core::{ArtifactHash, WorkerId, block_on};

    use super::*;

    #[test]
    fn nothing_is_left_of_those_who_waited() {
        let scheduler = LocalScheduler::open(SchedulerOptions::default()).unwrap();
        let id = block_on(scheduler.submit(Task::new(ArtifactHash::of(b"plugin")))).unwrap().task;
        let mut context = Context::from_waker(Waker::noop());
        let mut waits: Vec<_> = (0..3).map(|_| scheduler.wait(id)).collect();
        assert!(waits.iter_mut().all(|wait| wait.as_mut().poll(&mut context).is_pending()));
        let waiting = || scheduler.shared.lock().waiting.len();
        waits.truncate(1);
        assert_eq!(waiting(), 1, "one still waits");
        drop(waits);
        assert_eq!(waiting(), 0);
        let mut wait = scheduler.wait(id);
        assert!(wait.as_mut().poll(&mut context).is_pending());
        let request = LeaseRequest::new(WorkerId(uuid::Uuid::nil()), 1, Duration::from_secs(1));
        let lease = block_on(scheduler.lease(request)).unwrap().remove(0);
        let message = "over".to_owned();
        let completion = Completion::HostError { message, retryable: false };
        block_on(scheduler.complete(id, lease.fence, completion)).unwrap();
        assert_eq!(waiting(), 0);
        assert_eq!(block_on(wait).unwrap().state, TaskState::Failed);
        assert_eq!(waiting(), 0);
    }
}
