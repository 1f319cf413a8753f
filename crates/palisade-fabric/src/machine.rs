//! The deciding state machine of a scheduler: no threads, no clock, no disk. Time is an argument.
//!
//! ```text
//! submit -> Delayed -> Queued -> Running -> Completed | Failed | Cancelled | DeadLettered -> forgotten
//!              ^         ^         |
//!              +- retry -+- lost --+
//! ```

use std::collections::{BTreeMap, HashMap, VecDeque, btree_map, hash_map};
use std::sync::Arc;
use std::time::Duration;

use palisade_core::{
    ArtifactHash, Completion, Error, ErrorKind, Execution, Fence, IdempotencyKey, Lease, LeaseRequest, Outcome, Phase,
    Priority, Resource, Result, SchedulerMode, SchedulerStats, Submission, Task, TaskId, TaskPage, TaskQuery,
    TaskRecord, TaskState, Tenant, Usage,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::aside::Wanted;
use crate::clock::{from_millis, span, to_millis};
use crate::fair::FairQueue;
use crate::limits::Bucket;
use crate::outcomes::{Hint, KeptAt, Outcomes};
use crate::places::{Held, Places, is_long};
use crate::retry::{self, Verdict};
use crate::suspects::{Suspects, Turn};
use crate::wheel::{Millis, TimerId, Wheel};
use crate::{Rate, SchedulerLimits, TenantLimits, TenantReport};

/// Bits of a fence that count leases; the bits above are the epoch, which grows each time a journal is opened. So
/// fences need not be on disk: those of an earlier epoch are smaller than all of a later one.
const FENCE_BITS: u32 = 40;

/// How often more a task may be lost beside others than alone: it may be healthy, but it is not tried for ever.
const BESIDE_OTHERS: u32 = 8;

/// Tasks looked at for one page of a list: some tens of microseconds.
const LOOKED_AT_MAX: usize = 1024;

#[derive(Debug)]
pub(crate) struct Machine {
    limits: SchedulerLimits,
    mode: SchedulerMode,
    now: Millis,
    slots: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_id: BTreeMap<TaskId, u32>,
    by_key: HashMap<(Tenant, ArtifactHash, IdempotencyKey), u32>,
    queue: FairQueue,
    timers: Wheel<Timer>,
    tenants: Tenants,
    random: ChaCha8Rng,
    next_fence: u64,
    next_seq: u64,
    /// Tasks without an outcome.
    live: Total,
    delayed: usize,
    running: usize,
    places: Places,
    /// Tenants that wait because they hold their share of some worker's places.
    held_back: Vec<u32>,
    /// The worker that asked last.
    asked_last: Option<u32>,
    suspects: Suspects,
    suspects_timer: Option<TimerId>,
    /// Outcomes but for the dead letters.
    results: Outcomes,
    /// One timer for all of them, never later than the first.
    results_timer: Option<(Millis, TimerId)>,
    dead_letters: Outcomes,
    dead_timer: Option<(Millis, TimerId)>,
    dead: BTreeMap<TaskId, u32>,
    pace: Pace,
    changes: Vec<Change>,
    forgotten: Vec<Entry>,
    /// Tenants of tasks that lined up without a change: their time came, or a journal kept them.
    lined_up: Vec<u32>,
    /// A timer came since the changes were taken.
    timer_came: bool,
    has_more: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Total {
    tasks: usize,
    bytes: usize,
}

impl Total {
    fn add(&mut self, bytes: usize) {
        self.tasks += 1;
        self.bytes += bytes;
    }

    fn subtract(&mut self, bytes: usize) {
        self.tasks -= 1;
        self.bytes -= bytes;
    }
}

/// How fast tasks come to their end, to advise those that are refused.
#[derive(Debug)]
struct Pace {
    last: Millis,
    /// Milliseconds between two ends, a moving average.
    interval: f64,
}

#[derive(Debug)]
pub(crate) struct Entry {
    task: Arc<Task>,
    /// What the end of its time needs of the task, which by then has long left the processor's cache.
    id: TaskId,
    class: Priority,
    has_key: bool,
    /// Order of submission, never used twice.
    seq: u64,
    /// Journal position of its latest change.
    position: u64,
    bytes: usize,
    tenant: u32,
    submitted_at: Millis,
    failures: u32,
    lost: u32,
    /// It ran when the process ended before, and is run alone.
    is_suspect: bool,
    /// The first fence since it lined up last; given back, it stands before those whose first came later.
    first_fence: u64,
    place: Place,
    deadline: Option<(Millis, Option<TimerId>)>,
    completion: Option<Arc<Completion>>,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Delayed { until: Millis, timer: TimerId },
    Queued { since: Millis },
    Running { fence: Fence, timer: TimerId, held: Option<Held> },
    Done { state: TaskState, at: Millis, kept: KeptAt },
}

#[derive(Debug, Clone, Copy)]
enum Timer {
    Ready(u32),
    Deadline(u32),
    LeaseEnd(u32),
    /// A dead letter was kept for long enough, if it is still there.
    ForgetDead,
    /// A result was.
    ForgetResults,
    /// It may be another's turn.
    Suspects,
    /// A tenant may start tasks again.
    Start(u32),
}

/// Something that happened to a task: what there is to journal, count and tell. That it is forgotten is not among it.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) slot: u32,
    pub(crate) seq: u64,
    pub(crate) class: Priority,
    pub(crate) task: Arc<Task>,
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    Submitted,
    /// Waits for a worker from now on.
    Leased {
        waited: Duration,
        attempt: u32,
    },
    Retried {
        failures: u32,
    },
    Lost,
    Released,
    Requeued,
    Finished {
        state: TaskState,
        completion: Arc<Completion>,
    },
}

/// What changes about a task during its life: a journal keeps the latest.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Where it is.
    pub state: TaskState,
    /// Submission, in milliseconds since the Unix epoch.
    pub submitted_at: u64,
    /// While delayed: when it may start, in milliseconds since the Unix epoch.
    pub ready_at: u64,
    /// Once it has an outcome: since when, in milliseconds since the Unix epoch.
    pub finished_at: u64,
    /// Attempts that failed.
    pub failures: u32,
    /// Attempts whose worker was lost.
    pub lost: u32,
    /// As in [`TaskRecord::completion`].
    pub completion: Option<Arc<Completion>>,
}

impl Entry {
    /// Order of submission, never used twice.
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }
}

impl Machine {
    pub(crate) fn new(limits: SchedulerLimits, epoch: u64, seed: u64, now: Millis) -> Machine {
        Machine {
            results: Outcomes::new(limits.results_max, limits.results_bytes_max),
            dead_letters: Outcomes::new(limits.dead_letters_max, limits.results_bytes_max),
            queue: FairQueue::new(limits.order),
            tenants: Tenants::new(limits.tenants_max),
            limits,
            mode: SchedulerMode::Running,
            now,
            slots: Vec::new(),
            free: Vec::new(),
            by_id: BTreeMap::new(),
            by_key: HashMap::new(),
            timers: Wheel::new(now),
            random: ChaCha8Rng::seed_from_u64(seed),
            next_fence: (epoch << FENCE_BITS) + 1,
            next_seq: 0,
            live: Total::default(),
            delayed: 0,
            running: 0,
            places: Places::default(),
            held_back: Vec::new(),
            asked_last: None,
            suspects: Suspects::default(),
            suspects_timer: None,
            results_timer: None,
            dead_timer: None,
            dead: BTreeMap::new(),
            pace: Pace { last: now, interval: 0.0 },
            changes: Vec::new(),
            forgotten: Vec::new(),
            lined_up: Vec::new(),
            timer_came: false,
            has_more: false,
        }
    }

    /// Lets everything happen that is due. Every other operation on time does it first.
    pub(crate) fn advance(&mut self, now: Millis) {
        self.now = self.now.max(now);
        while let Some(timer) = self.timers.pop(self.now) {
            self.timer_came = true;
            match timer {
                Timer::Ready(slot) => {
                    self.lined_up.push(self.entry(slot).tenant);
                    self.enqueue(slot, false);
                }
                Timer::Deadline(slot) => {
                    if let Some((_, timer)) = &mut self.entry_mut(slot).deadline {
                        *timer = None;
                    }
                    self.expire(slot, Phase::Queued);
                }
                Timer::LeaseEnd(slot) => self.lose(slot),
                Timer::ForgetDead => self.forget_overdue(true),
                Timer::ForgetResults => self.forget_overdue(false),
                Timer::Suspects => self.suspects_timer = None,
                Timer::Start(tenant) => {
                    self.tenants.at(tenant).start_timer = None;
                    self.queue.unblock(tenant);
                }
            }
        }
    }

    /// When [`Machine::advance`] has something to do; never too late.
    pub(crate) fn next_timer(&self) -> Option<Millis> {
        self.timers.next()
    }

    /// What happened since the last time.
    pub(crate) fn changes(&mut self) -> &mut Vec<Change> {
        self.timer_came = false;
        &mut self.changes
    }

    /// As [`Machine::changes`], to look only.
    pub(crate) fn changes_so_far(&self) -> &[Change] {
        &self.changes
    }

    /// Whether nothing happened since [`Machine::changes`] were taken.
    pub(crate) fn is_settled(&self) -> bool {
        self.changes.is_empty() && !self.timer_came
    }

    /// What was forgotten, to be journaled after the changes, and freed where nobody waits for it.
    pub(crate) fn take_forgotten(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.forgotten)
    }

    /// Numbers of the tenants of tasks that lined up without a change, of some perhaps more than once.
    pub(crate) fn take_lined_up(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.lined_up)
    }

    /// The time it is here.
    pub(crate) fn now(&self) -> Millis {
        self.now
    }

    /// Whether a worker that asks now may get a task.
    pub(crate) fn has_work(&self) -> bool {
        self.mode != SchedulerMode::Paused && !(self.queue.is_empty() && self.suspects.is_empty())
    }

    pub(crate) fn submit(&mut self, now: Millis, task: Arc<Task>, bytes: usize) -> Result<Submission> {
        self.advance(now);
        if let Some(earlier) = self.earlier(&task) {
            return self.duplicate(earlier, &task);
        }
        self.check_mode("submit")?;
        let deadline = task.deadline.map(to_millis);
        if deadline.is_some_and(|deadline| deadline <= self.now) {
            return Err(Error::new(ErrorKind::InvalidInput, "submit", "the task's deadline has passed")
                .with_context("task", task.id));
        }
        let tenant = self.admit(&task, bytes, "submit")?;
        let id = task.id;
        let not_before = task.not_before.map(to_millis);
        let slot = self.insert(task, bytes, tenant, self.next_seq, self.now);
        match not_before.filter(|until| *until > self.now) {
            Some(until) => self.delay(slot, until),
            None => self.enqueue(slot, false),
        }
        self.watch_deadline(slot);
        self.changed(slot, What::Submitted);
        Ok(Submission { task: id, duplicate: false })
    }

    /// Leases tasks to a worker, and gives the journal position that must be safe before they may start.
    pub(crate) fn lease(&mut self, now: Millis, request: &LeaseRequest, leases: &mut Vec<Lease>) -> u64 {
        self.advance(now);
        let mut position = 0;
        self.has_more = false;
        if self.mode == SchedulerMode::Paused {
            return position;
        }
        let now = self.now;
        let tasks_max = request.tasks_max.min(self.limits.batch_max);
        let mut wanted = (!request.plugin_limits.is_empty()).then(|| Wanted::new(&request.plugin_limits));
        let worker = self.places.worker(request.worker, request.places).filter(|_| self.limits.tenant_shares);
        if self.asked_last != worker {
            // Who holds its share of one worker's places may have less of another's.
            self.unblock_held_back();
            self.asked_last = worker;
        }
        let suspect = if self.suspects.is_empty() { None } else { self.next_suspect(worker, wanted.as_ref()) };
        match self.suspects.turn(now, self.running, !self.queue.is_empty(), suspect.is_some()) {
            Turn::Others(another) => another.into_iter().for_each(|at| self.watch_suspects(at)),
            Turn::Nobody(until) => {
                self.watch_suspects(until);
                return position;
            }
            Turn::Suspect => {
                if let Some(slot) = suspect {
                    let Entry { class, .. } = *self.entry(slot);
                    self.suspects.start(slot, class, now, self.running == 0);
                    return self.start(slot, request, worker, leases);
                }
            }
        }
        self.queue.recall(wanted.as_ref(), tasks_max);
        while leases.len() < tasks_max {
            let (tenants, timers, slots) = (&mut self.tenants, &mut self.timers, &self.slots);
            let (places, held_back) = (&self.places, &mut self.held_back);
            let may_start = |tenant| {
                let has_room = worker.is_none_or(|worker| places.has_room(worker, tenant));
                if !has_room {
                    held_back.push(tenant);
                }
                has_room && tenants.at(tenant).may_start(now, |at| timers.set(at, Timer::Start(tenant)))
            };
            let plugin_of =
                |slot: u32| slots[slot as usize].as_ref().expect("what is queued has its entry").task.plugin;
            let Some(slot) = self.queue.pop(may_start, wanted.as_mut(), plugin_of) else { break };
            position = position.max(self.start(slot, request, worker, leases));
            if let (Some(wanted), Some(lease)) = (&mut wanted, leases.last()) {
                wanted.took(&lease.task.plugin);
            }
        }
        self.has_more = wanted.is_some_and(|wanted| wanted.is_tired());
        position
    }

    /// Leases a task that was taken out of its line. Gives its journal position.
    fn start(&mut self, slot: u32, request: &LeaseRequest, worker: Option<u32>, leases: &mut Vec<Lease>) -> u64 {
        let now = self.now;
        let fence = Fence(self.next_fence);
        self.next_fence += 1;
        let expires_at = self.lease_end(slot, request.lease_time);
        let timer = self.timers.set(expires_at, Timer::LeaseEnd(slot));
        self.unwatch_deadline(slot);
        let entry = self.slots[slot as usize].as_mut().expect("a slot in use has its entry");
        let Place::Queued { since } = entry.place else { unreachable!("only queued tasks are in the queue") };
        let tenant = entry.tenant;
        let held = worker.filter(|_| is_long(&entry.task)).map(|worker| self.places.hold(worker, tenant));
        entry.place = Place::Running { fence, timer, held };
        if entry.first_fence == 0 {
            entry.first_fence = fence.0;
        }
        let (task, position) = (Arc::clone(&entry.task), entry.position);
        let (attempt, submitted_at) = (entry.failures + entry.lost + 1, from_millis(entry.submitted_at));
        self.running += 1;
        let waited = Duration::from_millis(now.saturating_sub(since));
        self.changed(slot, What::Leased { waited, attempt });
        leases.push(Lease { task, fence, attempt, submitted_at, expires_at: from_millis(expires_at) });
        let tenant = self.tenants.at(tenant);
        tenant.running += 1;
        if let Some(started) = &mut tenant.started {
            started.take();
        }
        position
    }

    /// The first that is to run alone and may start.
    fn next_suspect(&mut self, worker: Option<u32>, wanted: Option<&Wanted>) -> Option<u32> {
        let (slots, tenants, timers, now) = (&self.slots, &mut self.tenants, &mut self.timers, self.now);
        let places = &self.places;
        self.suspects.waiting().find(|slot| {
            let entry = slots[*slot as usize].as_ref().expect("what waits has its entry");
            let tenant = entry.tenant;
            wanted.is_none_or(|wanted| wanted.wants(&entry.task.plugin))
                && worker.is_none_or(|worker| places.has_room(worker, tenant))
                && tenants.at(tenant).may_start(now, |at| timers.set(at, Timer::Start(tenant)))
        })
    }

    fn watch_suspects(&mut self, at: Millis) {
        if self.suspects_timer.is_none() {
            self.suspects_timer = Some(self.timers.set(at, Timer::Suspects));
        }
    }

    fn unblock_held_back(&mut self) {
        let queue = &mut self.queue;
        self.held_back.drain(..).for_each(|tenant| queue.unblock(tenant));
    }

    /// Whether the latest lease ended early, because it went past many tasks: there may be more for the same request.
    pub(crate) fn has_more(&self) -> bool {
        self.has_more
    }

    pub(crate) fn renew(&mut self, now: Millis, task: TaskId, fence: Fence, lease_time: Duration) -> Result<Millis> {
        self.advance(now);
        let slot = self.held(task, fence, "renew")?;
        let expires_at = self.lease_end(slot, lease_time);
        let renewed = self.timers.set(expires_at, Timer::LeaseEnd(slot));
        if let Place::Running { timer, .. } = &mut self.entry_mut(slot).place {
            let earlier = std::mem::replace(timer, renewed);
            self.timers.cancel(earlier);
        }
        Ok(expires_at)
    }

    pub(crate) fn complete(
        &mut self,
        now: Millis,
        task: TaskId,
        fence: Fence,
        completion: Completion,
    ) -> Result<TaskState> {
        self.advance(now);
        let slot = self.held(task, fence, "complete")?;
        let verdict = retry::judge(&completion);
        let completion = Arc::new(completion);
        self.stop(slot);
        // It ended, and the process did not.
        self.entry_mut(slot).is_suspect = false;
        Ok(match verdict {
            Verdict::Success => self.finish(slot, TaskState::Completed, completion),
            Verdict::Cancelled => self.finish(slot, TaskState::Cancelled, completion),
            Verdict::Failure => {
                self.entry_mut(slot).failures += 1;
                self.finish(slot, TaskState::Failed, completion)
            }
            Verdict::Retry(asked) => {
                let random = self.random.next_u64();
                self.entry_mut(slot).failures += 1;
                let entry = self.entry(slot);
                let policy = &entry.task.retry;
                let until = self.now + span(retry::delay(policy, entry.failures, asked, random));
                let used_up = entry.failures >= policy.attempts_max;
                let deadline = entry.deadline.map_or(Millis::MAX, |(deadline, _)| deadline);
                // A task past its deadline has failed by that, however many attempts it had left.
                if used_up && self.now < deadline {
                    self.finish(slot, TaskState::DeadLettered, completion)
                } else if used_up || until >= deadline {
                    self.finish(slot, TaskState::Failed, completion)
                } else {
                    self.entry_mut(slot).completion = Some(completion);
                    if until > self.now {
                        self.delay(slot, until)
                    } else {
                        self.enqueue(slot, false)
                    }
                    self.watch_deadline(slot);
                    let failures = self.entry(slot).failures;
                    self.changed(slot, What::Retried { failures });
                    self.state(slot)
                }
            }
        })
    }

    pub(crate) fn release(&mut self, now: Millis, task: TaskId, fence: Fence) -> Result<()> {
        self.advance(now);
        let slot = self.held(task, fence, "release")?;
        self.stop(slot);
        let (now, tenant) = (self.now, self.entry(slot).tenant);
        let tenant = self.tenants.at(tenant);
        if let (Some(started), Some(rate)) = (&mut tenant.started, tenant.limits.start_rate) {
            // Nothing was started after all.
            started.put_back(rate, now);
        }
        self.enqueue(slot, true);
        self.watch_deadline(slot);
        self.changed(slot, What::Released);
        Ok(())
    }

    pub(crate) fn cancel(&mut self, now: Millis, task: TaskId) -> Result<TaskState> {
        self.advance(now);
        let slot = self.find(task, "cancel")?;
        let phase = match self.entry(slot).place {
            Place::Done { state, .. } => return Ok(state),
            Place::Running { .. } => Phase::Running,
            Place::Delayed { .. } | Place::Queued { .. } => Phase::Queued,
        };
        self.stop(slot);
        let execution = Execution::new(Outcome::Cancelled { phase }, Usage::default());
        Ok(self.finish(slot, TaskState::Cancelled, Arc::new(Completion::Executed(Box::new(execution)))))
    }

    pub(crate) fn requeue(&mut self, now: Millis, task: TaskId) -> Result<TaskState> {
        self.advance(now);
        let slot = self.find(task, "requeue")?;
        let entry = self.entry(slot);
        let Place::Done { state: TaskState::DeadLettered, kept, .. } = entry.place else {
            return Err(Error::new(ErrorKind::InvalidInput, "requeue", "the task is not in the dead-letter queue")
                .with_context("task", task)
                .with_context("state", format!("{:?}", self.state(slot))));
        };
        self.check_mode("requeue")?;
        if entry.deadline.is_some_and(|(deadline, _)| deadline <= self.now) {
            return Err(Error::new(ErrorKind::InvalidInput, "requeue", "the task's deadline has passed")
                .with_context("task", task)
                .with_help("submit it anew with a later deadline"));
        }
        let (record, bytes) = (Arc::clone(&entry.task), entry.bytes);
        let tenant = self.admit(&record, bytes, "requeue")?;
        self.dead.remove(&task);
        self.dead_letters.remove(slot, kept);
        self.live.add(bytes);
        self.tenants.enter(tenant, bytes);
        let entry = self.entry_mut(slot);
        (entry.tenant, entry.failures, entry.lost, entry.completion) = (tenant, 0, 0, None);
        self.enqueue(slot, false);
        self.watch_deadline(slot);
        self.changed(slot, What::Requeued);
        Ok(self.state(slot))
    }

    /// What is recorded about a task, and its journal position.
    pub(crate) fn get(&mut self, now: Millis, task: TaskId) -> Result<(TaskRecord, u64)> {
        self.advance(now);
        let slot = self.find(task, "get")?;
        Ok((self.record(slot), self.entry(slot).position))
    }

    /// As [`Machine::get`], for a task that has its outcome.
    pub(crate) fn outcome(&mut self, now: Millis, task: TaskId) -> Result<Option<(TaskRecord, u64)>> {
        self.advance(now);
        let slot = self.find(task, "get")?;
        let entry = self.entry(slot);
        let done = matches!(entry.place, Place::Done { .. });
        Ok(done.then(|| (self.record(slot), entry.position)))
    }

    pub(crate) fn dead_letters(&mut self, now: Millis, after: Option<TaskId>, max: usize) -> (Vec<TaskRecord>, u64) {
        use std::ops::Bound::{Excluded, Unbounded};
        self.advance(now);
        let from = after.map_or(Unbounded, Excluded);
        let slots: Vec<_> = self.dead.range((from, Unbounded)).map(|(_, slot)| *slot).take(max).collect();
        let position = slots.iter().map(|slot| self.entry(*slot).position).max().unwrap_or_default();
        (slots.into_iter().map(|slot| self.record(slot)).collect(), position)
    }

    /// A page of tasks, and its journal position.
    pub(crate) fn list(&mut self, now: Millis, query: &TaskQuery) -> (TaskPage, u64) {
        use std::ops::Bound::{Excluded, Unbounded};
        self.advance(now);
        let tasks_max = query.tasks_max.clamp(1, self.limits.batch_max.max(1));
        let (mut page, mut position) = (TaskPage::default(), 0);
        let to = query.before.map_or(Unbounded, Excluded);
        let mut looked_at = query.before;
        for (seen, (id, slot)) in self.by_id.range((Unbounded, to)).rev().enumerate() {
            if seen >= LOOKED_AT_MAX || page.tasks.len() >= tasks_max {
                page.next = looked_at;
                break;
            }
            looked_at = Some(*id);
            let entry = self.entry(*slot);
            if query.matches(&entry.task, self.state(*slot)) {
                position = position.max(entry.position);
                page.tasks.push(self.record(*slot));
            }
        }
        (page, position)
    }

    pub(crate) fn set_mode(&mut self, mode: SchedulerMode) {
        self.mode = mode;
    }

    pub(crate) fn set_limits(&mut self, tenant: &Tenant, limits: TenantLimits) -> Result<()> {
        limits.validate()?;
        self.restore_limits(tenant, limits)
    }

    /// As [`Machine::set_limits`], with limits that were found good when they were set.
    pub(crate) fn restore_limits(&mut self, tenant: &Tenant, limits: TenantLimits) -> Result<()> {
        let tenant = self.tenant(tenant, "set_limits")?;
        self.apply_limits(tenant, Some(limits));
        Ok(())
    }

    /// Lets a tenant have the limits of every tenant again.
    pub(crate) fn reset_limits(&mut self, name: &Tenant) -> Result<()> {
        let tenant = self.tenants.find(name).filter(|tenant| self.tenants.at(*tenant).own.is_some());
        let Some(tenant) = tenant else {
            return Err(Error::new(ErrorKind::NotFound, "reset_limits", "no such tenant has limits of its own")
                .with_context("tenant", &name.0)
                .with_help("list those that have"));
        };
        self.apply_limits(tenant, None);
        Ok(())
    }

    fn apply_limits(&mut self, tenant: u32, own: Option<TenantLimits>) {
        let limits = self.tenants.set(tenant, own, self.limits.tenant);
        self.queue.set_weight(tenant, weight(limits));
        self.queue.unblock(tenant);
    }

    /// Tenants with limits of their own or with tasks, sorted by name: those after `after`, at most `tenants_max`.
    pub(crate) fn tenants(&self, after: Option<&Tenant>, tenants_max: usize) -> Vec<TenantReport> {
        self.tenants.list(after, tenants_max)
    }

    /// What there is to say of one tenant.
    pub(crate) fn tenant_report(&self, name: &Tenant) -> Option<TenantReport> {
        self.tenants.find(name).map(|tenant| self.tenants.all[tenant as usize].report())
    }

    /// The name of one of [`Machine::take_lined_up`], before anything else happens.
    pub(crate) fn tenant_name(&self, tenant: u32) -> &Tenant {
        &self.tenants.all[tenant as usize].name
    }

    /// A tenant's tasks that wait for a worker.
    pub(crate) fn tenant_queued(&self, name: &Tenant) -> usize {
        self.tenants.find(name).map_or(0, |tenant| self.tenants.all[tenant as usize].queued())
    }

    pub(crate) fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            queued: Priority::ALL.iter().map(|class| self.queued(*class) as u64).sum(),
            delayed: self.delayed as u64,
            running: self.running as u64,
            dead_lettered: self.dead.len() as u64,
        }
    }

    /// Tasks that wait for a worker, by class from the most urgent; that are delayed; that run; dead letters.
    pub(crate) fn gauges(&self) -> [usize; 7] {
        let [critical, high, normal, low] = Priority::ALL.map(|class| self.queued(class));
        [critical, high, normal, low, self.delayed, self.running, self.dead.len()]
    }

    fn queued(&self, class: Priority) -> usize {
        self.queue.len(class) + self.suspects.len(class)
    }

    /// Takes back what a journal kept. In the order of `seq`, before anything else happens. `was_alone`: one task at most
    /// was running.
    pub(crate) fn restore(
        &mut self,
        seq: u64,
        task: Arc<Task>,
        bytes: usize,
        status: Status,
        was_alone: bool,
    ) -> Result<()> {
        let tenant = self.tenant(&task.tenant, "restore")?;
        let slot = self.insert(task, bytes, tenant, seq, status.submitted_at);
        let entry = self.entry_mut(slot);
        (entry.failures, entry.lost, entry.completion) = (status.failures, status.lost, status.completion);
        match status.state {
            TaskState::Delayed => self.delay(slot, status.ready_at),
            TaskState::Queued => {
                self.lined_up.push(tenant);
                self.entry_mut(slot).is_suspect = status.lost > 0;
                self.enqueue(slot, false);
            }
            // Its worker lived in the process that ended, or cannot know that its lease did. With others beside it, it
            // need not be the one that ended it.
            TaskState::Running => {
                self.entry_mut(slot).is_suspect = true;
                let lost_max = self.limits.lost_max;
                self.count_lost(slot, false, if was_alone { lost_max } else { lost_max.saturating_mul(BESIDE_OTHERS) });
                return Ok(());
            }
            state => {
                let completion = self.entry_mut(slot).completion.take();
                let completion = completion.unwrap_or_else(|| Arc::new(host_error("its outcome was not kept")));
                self.settle(slot, state, status.finished_at, completion);
                return Ok(());
            }
        }
        self.watch_deadline(slot);
        Ok(())
    }

    /// What a journal keeps of a task, unless it is another one's place by now.
    pub(crate) fn status(&self, slot: u32, seq: u64) -> Option<(&Arc<Task>, Status)> {
        let entry = self.slots.get(slot as usize)?.as_ref().filter(|entry| entry.seq == seq)?;
        let (ready_at, finished_at) = match entry.place {
            Place::Delayed { until, .. } => (until, 0),
            Place::Done { at, .. } => (0, at),
            Place::Queued { .. } | Place::Running { .. } => (0, 0),
        };
        Some((
            &entry.task,
            Status {
                state: self.state(slot),
                submitted_at: entry.submitted_at,
                ready_at,
                finished_at,
                failures: entry.failures,
                lost: entry.lost,
                completion: entry.completion.clone(),
            },
        ))
    }

    /// Notes where in the journal a task's latest change is.
    pub(crate) fn set_position(&mut self, slot: u32, seq: u64, position: u64) {
        if let Some(entry) = self.slots[slot as usize].as_mut().filter(|entry| entry.seq == seq) {
            entry.position = position;
        }
    }

    fn earlier(&self, task: &Task) -> Option<u32> {
        if let Some(slot) = self.by_id.get(&task.id) {
            return Some(*slot);
        }
        let key = task.idempotency_key.clone()?;
        self.by_key.get(&(task.tenant.clone(), task.plugin, key)).copied()
    }

    fn duplicate(&self, earlier: u32, task: &Task) -> Result<Submission> {
        let kept = &self.entry(earlier).task;
        let same = kept.plugin == task.plugin
            && kept.tenant == task.tenant
            && kept.entry == task.entry
            && kept.arguments == task.arguments
            && kept.input == task.input;
        if !same {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "submit",
                "an earlier task under the same key or id asks for something else",
            )
            .with_context("earlier", kept.id)
            .with_help("use a new key for new work"));
        }
        Ok(Submission { task: kept.id, duplicate: true })
    }

    /// Checks the bounds a new task would break, and gives its tenant.
    fn admit(&mut self, task: &Task, bytes: usize, operation: &'static str) -> Result<u32> {
        let refused = |message| refused(operation, message);
        let full = |what: &'static str, limit: usize| {
            Err(refused("the queue is full")
                .with_context("bound", what)
                .with_context("limit", limit)
                .with_retry_after(self.advice()))
        };
        if self.live.tasks >= self.limits.tasks_max {
            return full("tasks", self.limits.tasks_max);
        }
        if self.live.bytes + bytes > self.limits.bytes_max {
            return full("bytes", self.limits.bytes_max);
        }
        let tenant = self.tenant(&task.tenant, operation)?;
        let advice = self.advice();
        let (free, free_bytes) = (self.limits.tasks_max - self.live.tasks, self.limits.bytes_max - self.live.bytes);
        let shares = self.limits.tenant_shares;
        let state = self.tenants.at(tenant);
        if let Some(limit) = state.limits.tasks_max
            && state.tasks >= limit
        {
            return Err(refused("the tenant has as many tasks as it may")
                .with_context("tenant", &task.tenant.0)
                .with_context("limit", limit)
                .with_retry_after(advice));
        }
        // As much as is left, so that some is left whoever comes (dynamic thresholds: Choudhury and Hahne 1998).
        if shares && (state.tasks >= free || state.bytes + bytes > free_bytes) {
            return Err(refused("the tenant has its share of the queue, which is as much as is left for others")
                .with_context("tenant", &task.tenant.0)
                .with_context("tasks", state.tasks)
                .with_context("bytes", state.bytes)
                .with_retry_after(advice));
        }
        if let Some(rate) = state.limits.submit_rate {
            let now = self.now;
            let bucket = state.submitted.get_or_insert_with(|| Bucket::full(rate, now));
            if let Err(wait) = bucket.ready(rate, now) {
                return Err(refused("the tenant submits more often than it may")
                    .with_context("tenant", &task.tenant.0)
                    .with_context("rate_per_second", rate.per_second)
                    .with_retry_after(wait));
            }
            bucket.take();
        }
        Ok(tenant)
    }

    fn check_mode(&self, operation: &'static str) -> Result<()> {
        if self.mode == SchedulerMode::Draining {
            return Err(
                refused(operation, "the scheduler drains and takes no more tasks").with_help("submit to another one")
            );
        }
        Ok(())
    }

    /// How long until a hundredth of a full queue is done, at the present pace.
    fn advice(&self) -> Duration {
        let interval = self.pace.interval.max(self.now.saturating_sub(self.pace.last) as f64 / 8.0);
        let wait = (interval * (self.limits.tasks_max as f64 / 100.0)).clamp(100.0, 30_000.0);
        Duration::from_millis(wait as u64)
    }

    fn tenant(&mut self, name: &Tenant, operation: &'static str) -> Result<u32> {
        if let Some(tenant) = self.tenants.find(name) {
            return Ok(tenant);
        }
        let queue = &mut self.queue;
        let timers = &mut self.timers;
        self.tenants
            .make(name, self.limits.tenant, self.now, queue, timers)
            .inspect(|tenant| queue.set_weight(*tenant, weight(self.limits.tenant)))
            .ok_or_else(|| {
                Error::new(ErrorKind::Exhausted, operation, "as many tenants are known as there may be tenants")
                    .with_context("limit", self.limits.tenants_max)
                    .with_retry_after(Duration::from_secs(1))
            })
    }

    fn insert(&mut self, task: Arc<Task>, bytes: usize, tenant: u32, seq: u64, submitted_at: Millis) -> u32 {
        self.next_seq = self.next_seq.max(seq + 1);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.by_id.insert(task.id, slot);
        if let Some(key) = &task.idempotency_key {
            self.by_key.insert((task.tenant.clone(), task.plugin, key.clone()), slot);
        }
        self.slots[slot as usize] = Some(Entry {
            deadline: task.deadline.map(|deadline| (to_millis(deadline), None)),
            id: task.id,
            class: task.priority,
            has_key: task.idempotency_key.is_some(),
            task,
            seq,
            position: 0,
            bytes,
            tenant,
            submitted_at,
            failures: 0,
            lost: 0,
            is_suspect: false,
            first_fence: 0,
            place: Place::Queued { since: self.now },
            completion: None,
        });
        self.live.add(bytes);
        self.tenants.enter(tenant, bytes);
        slot
    }

    fn delay(&mut self, slot: u32, until: Millis) {
        let timer = self.timers.set(until, Timer::Ready(slot));
        self.delayed += 1;
        let entry = self.entry_mut(slot);
        entry.place = Place::Delayed { until, timer };
        let tenant = entry.tenant;
        self.tenants.at(tenant).delayed += 1;
    }

    fn enqueue(&mut self, slot: u32, in_front: bool) {
        let now = self.now;
        let entry = self.entry_mut(slot);
        let was = std::mem::replace(&mut entry.place, Place::Queued { since: now });
        let (class, tenant) = (entry.class, entry.tenant);
        if matches!(was, Place::Delayed { .. }) {
            self.delayed -= 1;
            self.tenants.at(tenant).delayed -= 1;
        }
        if self.entry(slot).is_suspect {
            match in_front {
                true => self.suspects.give_back(slot, class),
                false => self.suspects.push(slot, class),
            }
        } else if in_front {
            let Entry { first_fence, task, .. } = self.entry(slot);
            let (first_fence, plugin) = (*first_fence, task.plugin);
            self.queue.give_back(class, tenant, plugin, slot, first_fence);
        } else {
            self.entry_mut(slot).first_fence = 0;
            self.queue.push_back(class, tenant, slot);
        }
    }

    /// Takes a task out of where it waits or runs.
    fn stop(&mut self, slot: u32) {
        self.unwatch_deadline(slot);
        let entry = self.entry(slot);
        let (class, tenant) = (entry.class, entry.tenant);
        match entry.place {
            Place::Delayed { timer, .. } => {
                self.timers.cancel(timer);
                self.delayed -= 1;
                self.tenants.at(tenant).delayed -= 1;
            }
            Place::Queued { .. } if entry.is_suspect => self.suspects.remove(slot, class),
            Place::Queued { .. } => self.queue.remove(class, tenant, entry.task.plugin, slot),
            Place::Running { timer, held, .. } => {
                self.timers.cancel(timer);
                self.running -= 1;
                self.tenants.at(tenant).running -= 1;
                self.queue.unblock(tenant);
                self.suspects.end(slot, self.now);
                if let Some(held) = held {
                    self.places.give_back(held, tenant);
                    self.unblock_held_back();
                }
            }
            Place::Done { .. } => {}
        }
    }

    /// A lease ended without a word from its worker.
    fn lose(&mut self, slot: u32) {
        self.stop(slot);
        if self.entry(slot).deadline.is_some_and(|(deadline, _)| deadline <= self.now) {
            return self.finish_expired(slot, Phase::Running);
        }
        self.count_lost(slot, true, self.limits.lost_max);
    }

    fn count_lost(&mut self, slot: u32, in_front: bool, lost_max: u32) {
        let entry = self.entry_mut(slot);
        entry.lost += 1;
        if entry.lost >= lost_max {
            let message = format!("its worker was lost {} times", entry.lost);
            self.changed(slot, What::Lost);
            self.finish(slot, TaskState::DeadLettered, Arc::new(host_error(&message)));
        } else {
            self.enqueue(slot, in_front);
            self.watch_deadline(slot);
            self.changed(slot, What::Lost);
        }
    }

    /// The deadline passed while a task waited.
    fn expire(&mut self, slot: u32, phase: Phase) {
        self.stop(slot);
        self.finish_expired(slot, phase);
    }

    fn finish_expired(&mut self, slot: u32, phase: Phase) {
        let now = self.now;
        let entry = self.entry(slot);
        let nanos = |until: Millis| until.saturating_sub(entry.submitted_at).saturating_mul(1_000_000);
        let deadline = entry.deadline.map_or(now, |(deadline, _)| deadline);
        let outcome = Outcome::QuotaExceeded {
            resource: Resource::WallTime,
            limit: nanos(deadline),
            used: nanos(now.max(deadline + 1)),
            phase,
        };
        let execution = Execution::new(outcome, Usage::default());
        self.finish(slot, TaskState::Failed, Arc::new(Completion::Executed(Box::new(execution))));
    }

    /// Records the outcome of a task that was stopped.
    fn finish(&mut self, slot: u32, state: TaskState, completion: Arc<Completion>) -> TaskState {
        let interval = self.now.saturating_sub(self.pace.last) as f64;
        self.pace.interval += (interval - self.pace.interval) / 8.0;
        self.pace.last = self.now;
        let now = self.now;
        let told = What::Finished { state, completion: Arc::clone(&completion) };
        self.changed(slot, told);
        self.settle(slot, state, now, completion);
        state
    }

    /// Keeps an outcome for as long as there is time and room.
    fn settle(&mut self, slot: u32, state: TaskState, at: Millis, completion: Arc<Completion>) {
        let dead = state == TaskState::DeadLettered;
        let time = if dead { self.limits.dead_letter_time } else { self.limits.result_time };
        let until = at.saturating_add(span(time));
        let entry = self.slots[slot as usize].as_mut().expect("a slot in use has its entry");
        let live = entry.bytes;
        let bytes = live + completion_bytes(&completion);
        let outcomes = if dead { &mut self.dead_letters } else { &mut self.results };
        let hint = &mut self.tenants.all[entry.tenant as usize].hints[usize::from(dead)];
        let kept = outcomes.insert(&entry.task.tenant, hint, slot, bytes, until);
        entry.place = Place::Done { state, at, kept };
        entry.completion = Some(completion);
        let (tenant, id) = (entry.tenant, entry.id);
        self.live.subtract(live);
        self.tenants.leave(tenant, live);
        if dead {
            self.dead.insert(id, slot);
        }
        while let Some(surplus) = self.outcomes(dead).surplus(slot) {
            self.forget(surplus);
        }
        self.watch_outcomes(dead, Some(until));
    }

    fn outcomes(&mut self, dead: bool) -> &mut Outcomes {
        if dead { &mut self.dead_letters } else { &mut self.results }
    }

    /// Sees to it that the first of the outcomes is forgotten in time. `until`: when one is that came just now.
    fn watch_outcomes(&mut self, dead: bool, until: Option<Millis>) {
        let watched = if dead { self.dead_timer } else { self.results_timer };
        if let (Some((at, _)), Some(until)) = (watched, until)
            && at <= until
        {
            return;
        }
        let Some(next) = self.outcomes(dead).next_due() else { return };
        if let Some((_, timer)) = watched {
            self.timers.cancel(timer);
        }
        let timer = self.timers.set(next, if dead { Timer::ForgetDead } else { Timer::ForgetResults });
        *(if dead { &mut self.dead_timer } else { &mut self.results_timer }) = Some((next, timer));
    }

    /// Forgets outcomes whose time is over, when their timer came.
    fn forget_overdue(&mut self, dead: bool) {
        *(if dead { &mut self.dead_timer } else { &mut self.results_timer }) = None;
        let now = self.now;
        while let Some(slot) = self.outcomes(dead).overdue(now) {
            self.forget(slot);
        }
        self.watch_outcomes(dead, None);
    }

    /// Forgets an outcome.
    fn forget(&mut self, slot: u32) {
        let Some(entry) = self.slots[slot as usize].take() else { return };
        self.free.push(slot);
        // A journal that ended between a task and the end of an earlier one under the same id or key gives both back.
        if let btree_map::Entry::Occupied(known) = self.by_id.entry(entry.id)
            && *known.get() == slot
        {
            known.remove();
        }
        if entry.has_key
            && let Some(key) = &entry.task.idempotency_key
            && let hash_map::Entry::Occupied(known) =
                self.by_key.entry((entry.task.tenant.clone(), entry.task.plugin, key.clone()))
            && *known.get() == slot
        {
            known.remove();
        }
        let Place::Done { state, kept, .. } = entry.place else {
            unreachable!("only tasks with an outcome are forgotten")
        };
        let dead = state == TaskState::DeadLettered;
        if dead && self.dead.get(&entry.id) == Some(&slot) {
            self.dead.remove(&entry.id);
        }
        self.outcomes(dead).remove(slot, kept);
        self.forgotten.push(entry);
    }

    fn watch_deadline(&mut self, slot: u32) {
        let Some((at, None)) = self.entry(slot).deadline else { return };
        let timer = self.timers.set(at, Timer::Deadline(slot));
        self.entry_mut(slot).deadline = Some((at, Some(timer)));
    }

    fn unwatch_deadline(&mut self, slot: u32) {
        if let Some((at, Some(timer))) = self.entry(slot).deadline {
            self.timers.cancel(timer);
            self.entry_mut(slot).deadline = Some((at, None));
        }
    }

    /// When a lease taken or renewed now ends: a task past its deadline gets no more time than the grace.
    fn lease_end(&self, slot: u32, lease_time: Duration) -> Millis {
        let end = self.now + span(lease_time.min(self.limits.lease_time_max)).max(1);
        let last = self.entry(slot).deadline.map(|(deadline, _)| deadline + span(self.limits.deadline_grace));
        end.min(last.unwrap_or(end)).max(self.now + 1)
    }

    fn changed(&mut self, slot: u32, what: What) {
        let entry = self.entry(slot);
        let change = Change { slot, seq: entry.seq, class: entry.class, task: Arc::clone(&entry.task), what };
        self.changes.push(change);
    }

    fn find(&self, task: TaskId, operation: &'static str) -> Result<u32> {
        self.by_id.get(&task).copied().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, operation, "there is no such task, or its outcome was kept long enough")
                .with_context("task", task)
        })
    }

    /// The task that is held under `fence`.
    fn held(&self, task: TaskId, fence: Fence, operation: &'static str) -> Result<u32> {
        let slot = self.by_id.get(&task).copied();
        slot.filter(|slot| matches!(self.entry(*slot).place, Place::Running { fence: held, .. } if held == fence))
            .ok_or_else(|| {
                Error::new(ErrorKind::Stale, operation, "the lease ended; another worker may have the task")
                    .with_context("task", task)
                    .with_context("fence", fence.0)
                    .with_help("stop working on it")
            })
    }

    /// What is recorded about a task, unless it is another one's place by now.
    pub(crate) fn recorded(&self, slot: u32, seq: u64) -> Option<TaskRecord> {
        self.slots.get(slot as usize)?.as_ref().filter(|entry| entry.seq == seq)?;
        Some(self.record(slot))
    }

    fn record(&self, slot: u32) -> TaskRecord {
        let entry = self.entry(slot);
        TaskRecord {
            task: Arc::clone(&entry.task),
            state: self.state(slot),
            submitted_at: from_millis(entry.submitted_at),
            finished_at: match entry.place {
                Place::Done { at, .. } => Some(from_millis(at)),
                _ => None,
            },
            failures: entry.failures,
            lost: entry.lost,
            completion: entry.completion.clone(),
        }
    }

    fn state(&self, slot: u32) -> TaskState {
        match self.entry(slot).place {
            Place::Delayed { .. } => TaskState::Delayed,
            Place::Queued { .. } => TaskState::Queued,
            Place::Running { .. } => TaskState::Running,
            Place::Done { state, .. } => state,
        }
    }

    // Slots come from the indices and timers of this module, which go with the entry.
    fn entry(&self, slot: u32) -> &Entry {
        self.slots[slot as usize].as_ref().expect("a slot in use has its entry")
    }

    fn entry_mut(&mut self, slot: u32) -> &mut Entry {
        self.slots[slot as usize].as_mut().expect("a slot in use has its entry")
    }
}

fn refused(operation: &'static str, message: &'static str) -> Error {
    Error::new(ErrorKind::Exhausted, operation, message)
}

fn weight(limits: TenantLimits) -> u32 {
    limits.weight.unwrap_or(1)
}

fn host_error(message: &str) -> Completion {
    Completion::HostError { message: message.to_owned(), retryable: false }
}

/// What a completion weighs.
pub(crate) fn completion_bytes(completion: &Completion) -> usize {
    match completion {
        Completion::Executed(execution) => {
            let log: usize = execution.log.iter().map(|record| record.message.len()).sum();
            execution.output.len() + execution.error.len() + log
        }
        Completion::HostError { message, .. } => message.len(),
    }
}

#[derive(Debug)]
struct Tenants {
    max: usize,
    all: Vec<TenantState>,
    by_name: HashMap<Tenant, u32>,
    free: Vec<u32>,
    /// Those with tasks or limits of their own, which are not forgotten.
    needed: usize,
    /// Those that may be forgotten, and some that are needed again since.
    idle: VecDeque<u32>,
}

/// Tenants looked at to find one that can be forgotten: a few microseconds.
const IDLE_LOOKED_AT_MAX: usize = 64;

#[derive(Debug)]
struct TenantState {
    name: Tenant,
    /// Its own limits, and for the rest those of every tenant.
    limits: TenantLimits,
    own: Option<TenantLimits>,
    /// Tasks without an outcome.
    tasks: usize,
    /// Their bytes.
    bytes: usize,
    /// It is among the idle.
    in_idle: bool,
    /// Where its results and dead letters are.
    hints: [Hint; 2],
    /// Those of them that wait for their time.
    delayed: usize,
    running: u32,
    submitted: Option<Bucket>,
    started: Option<Bucket>,
    start_timer: Option<TimerId>,
}

impl TenantState {
    fn new(name: Tenant, limits: TenantLimits) -> TenantState {
        TenantState {
            name,
            limits,
            own: None,
            tasks: 0,
            bytes: 0,
            in_idle: false,
            hints: [Hint::default(); 2],
            delayed: 0,
            running: 0,
            submitted: None,
            started: None,
            start_timer: None,
        }
    }

    fn is_needed(&self) -> bool {
        self.own.is_some() || self.tasks > 0
    }

    /// Whether it may do as much as one that nobody knows.
    fn has_its_rates(&mut self, now: Millis) -> bool {
        let is_full = |bucket: &mut Option<Bucket>, rate: Option<Rate>| match (bucket, rate) {
            (Some(bucket), Some(rate)) => bucket.is_full(rate, now),
            _ => true,
        };
        is_full(&mut self.submitted, self.limits.submit_rate) && is_full(&mut self.started, self.limits.start_rate)
    }

    fn queued(&self) -> usize {
        self.tasks - self.delayed - self.running as usize
    }

    fn report(&self) -> TenantReport {
        TenantReport {
            tenant: self.name.clone(),
            limits: self.limits,
            own_limits: self.own,
            queued: self.queued() as u64,
            delayed: self.delayed as u64,
            running: u64::from(self.running),
        }
    }

    /// Whether a task may start now; else something will bring the tenant back: the end of a task, or a timer.
    fn may_start(&mut self, now: Millis, set_timer: impl FnOnce(Millis) -> TimerId) -> bool {
        if self.limits.running_max.is_some_and(|max| self.running >= max) {
            return false;
        }
        let Some(rate) = self.limits.start_rate else { return true };
        match self.started.get_or_insert_with(|| Bucket::full(rate, now)).ready(rate, now) {
            Ok(()) => true,
            Err(wait) => {
                if self.start_timer.is_none() {
                    self.start_timer = Some(set_timer(now + span(wait)));
                }
                false
            }
        }
    }
}

impl Tenants {
    fn new(max: usize) -> Tenants {
        Tenants {
            max: max.max(1),
            all: Vec::new(),
            by_name: HashMap::new(),
            free: Vec::new(),
            needed: 0,
            idle: VecDeque::new(),
        }
    }

    fn at(&mut self, tenant: u32) -> &mut TenantState {
        &mut self.all[tenant as usize]
    }

    fn find(&self, name: &Tenant) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// Makes room for a tenant, forgetting one that need not be remembered; `None` when there is none.
    fn make(
        &mut self,
        name: &Tenant,
        limits: TenantLimits,
        now: Millis,
        queue: &mut FairQueue,
        timers: &mut Wheel<Timer>,
    ) -> Option<u32> {
        if self.by_name.len() >= self.max {
            let forgotten = self.forgettable(now, queue)?;
            let state = &mut self.all[forgotten as usize];
            if let Some(timer) = state.start_timer.take() {
                timers.cancel(timer);
            }
            self.by_name.remove(&state.name);
            queue.forget(forgotten);
            self.free.push(forgotten);
        }
        let state = TenantState::new(name.clone(), limits);
        let tenant = match self.free.pop() {
            Some(tenant) => {
                self.all[tenant as usize] = state;
                tenant
            }
            None => {
                self.all.push(state);
                (self.all.len() - 1) as u32
            }
        };
        self.by_name.insert(name.clone(), tenant);
        self.rest(tenant);
        Some(tenant)
    }

    /// Takes an idle tenant out that can be forgotten: who used up what it may do in a time cannot, or it could have that
    /// again by having others forgotten. Of several, one that had no more than its share; if all had more, one is forgiven.
    fn forgettable(&mut self, now: Millis, queue: &FairQueue) -> Option<u32> {
        let mut forgiven = None;
        for _ in 0..self.idle.len().min(IDLE_LOOKED_AT_MAX) {
            let tenant = self.idle.pop_front()?;
            let state = &mut self.all[tenant as usize];
            if state.is_needed() {
                state.in_idle = false;
                continue;
            }
            if state.has_its_rates(now) {
                if queue.is_forgettable(tenant) {
                    // The one that was found before stays.
                    return Some(tenant);
                }
                forgiven = forgiven.or(Some(tenant));
            }
            self.idle.push_back(tenant);
        }
        self.idle.retain(|tenant| Some(*tenant) != forgiven);
        forgiven
    }

    /// Notes a tenant that is not needed now.
    fn rest(&mut self, tenant: u32) {
        let state = &mut self.all[tenant as usize];
        if !state.is_needed() && !std::mem::replace(&mut state.in_idle, true) {
            self.idle.push_back(tenant);
        }
    }

    /// A task without an outcome more.
    fn enter(&mut self, tenant: u32, bytes: usize) {
        let state = &mut self.all[tenant as usize];
        self.needed += usize::from(!state.is_needed());
        state.tasks += 1;
        state.bytes += bytes;
    }

    /// A task without an outcome less.
    fn leave(&mut self, tenant: u32, bytes: usize) {
        let state = &mut self.all[tenant as usize];
        state.tasks -= 1;
        state.bytes -= bytes;
        self.needed -= usize::from(!state.is_needed());
        self.rest(tenant);
    }

    /// Sets a tenant's own limits, and gives what it may do with `others` for the rest.
    fn set(&mut self, tenant: u32, own: Option<TenantLimits>, others: TenantLimits) -> TenantLimits {
        let state = &mut self.all[tenant as usize];
        self.needed -= usize::from(state.is_needed());
        state.own = own;
        self.needed += usize::from(state.is_needed());
        let limits = own.unwrap_or_default().or(others);
        let changed = |earlier: Option<Rate>, now: Option<Rate>| earlier != now;
        if changed(state.limits.submit_rate, limits.submit_rate) {
            state.submitted = None;
        }
        if changed(state.limits.start_rate, limits.start_rate) {
            state.started = None;
        }
        state.limits = limits;
        debug_assert_eq!(self.by_name.get(&state.name), Some(&tenant));
        self.rest(tenant);
        limits
    }

    fn list(&self, after: Option<&Tenant>, max: usize) -> Vec<TenantReport> {
        let known = self.by_name.iter().filter(|(name, _)| after.is_none_or(|after| *name > after));
        let known = known.map(|(_, tenant)| &self.all[*tenant as usize]);
        let mut listed: Vec<_> = known.filter(|state| state.is_needed()).collect();
        // Only what is shown is sorted: the scheduler waits meanwhile.
        if max < listed.len() {
            listed.select_nth_unstable_by(max, |one, other| one.name.cmp(&other.name));
            listed.truncate(max);
        }
        listed.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        listed.into_iter().map(TenantState::report).collect()
    }
}

#[cfg(test)]
mod tests;
