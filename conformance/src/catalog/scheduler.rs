//! Profile `scheduler`: what every [`Scheduler`] promises, whatever is behind it.
//!
//! The checks use the clock of the machine and short times. Where something must *not* happen, they wait for a deadline;
//! where something must, for the event.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use palisade_core::{
    ArtifactHash, Completion, ErrorKind, Execution, Fence, IdempotencyKey, Lease, LeaseRequest, Outcome, Phase,
    PluginLimit, Priority, Scheduler, SchedulerMode, Task, TaskId, TaskQuery, TaskRecord, TaskState, Tenant, TrapKind,
    Usage, WorkerId,
};

use super::must;
use crate::component::PATIENCE;
use crate::{Catalog, Check, Failure, Requirement, Trial, clock};

type Ctx = Trial<dyn Scheduler>;

/// Everything the suite knows about schedulers.
pub fn catalog() -> Catalog<Ctx> {
    Catalog::of(REQUIREMENTS, CHECKS)
}

const REQUIREMENTS: &[Requirement] = &[
    must(
        "scheduler.submit.keeps",
        "A worker MUST get a task exactly as it was submitted.",
        "work that was not asked for",
    ),
    must(
        "scheduler.submit.idempotent",
        "Submitting again under the same key, or the same id, MUST give the earlier task back and keep no second one.",
        "work done twice because an answer was lost",
    ),
    must(
        "scheduler.submit.refuses",
        "A task that is malformed or past its deadline MUST be refused with `InvalidInput`.",
        "tasks that can only fail fill the queue",
    ),
    must(
        "scheduler.lease.exclusive",
        "A task MUST NOT be leased to two workers at once, and no worker gets more tasks than it asked for.",
        "work done twice, or by a worker that has no room for it",
    ),
    must(
        "scheduler.lease.waits",
        "A worker that waits MUST hear of the next task, and one that went away MUST NOT take it along.",
        "tasks that nobody runs",
    ),
    must(
        "scheduler.lease.plugin-limits",
        "A worker MUST NOT get more tasks of a plugin than it has room for; others MUST go ahead, and those left MUST come \
         once they are wanted, in their order.",
        "one slow plugin holds up all others",
    ),
    must(
        "scheduler.lease.ends",
        "A lease that is not renewed MUST end, its task be given out again with a greater fence, and the loss be counted; \
         after a bounded number of losses the task MUST go to the dead-letter queue.",
        "tasks stuck with dead workers, or killing workers for ever",
    ),
    must(
        "scheduler.lease.since",
        "A lease MUST say when its task was submitted, as the task's record does.",
        "workers and schedulers that measure one deadline from two places",
    ),
    must("scheduler.lease.renewal", "A renewed lease MUST last.", "long tasks run twice"),
    must(
        "scheduler.lease.release",
        "A released task MUST be given out again, before those that were not leased yet and in the order of their first \
         leases, without being counted as failed or lost.",
        "shutting down a worker uses up attempts or mixes up the order of work",
    ),
    must(
        "scheduler.order.classes",
        "A more urgent task that waits MUST come before less urgent ones.",
        "urgent work waits",
    ),
    must(
        "scheduler.order.tenants",
        "Tasks of one class MUST be given out fairly between tenants.",
        "one tenant's flood starves the others",
    ),
    must(
        "scheduler.order.first-come",
        "Tasks of one class and tenant MUST come in the order of their submission.",
        "old work starves behind new",
    ),
    must(
        "scheduler.fence.newest",
        "Only the newest fence MUST be able to complete a task; others are refused with `Stale`.",
        "a worker that was thought dead overwrites what another did",
    ),
    must(
        "scheduler.outcome.once",
        "One completion MUST be recorded, unchanged, and whoever waits for the outcome MUST get it.",
        "two truths about one task, or none",
    ),
    must(
        "scheduler.retry.policy",
        "An outcome that is not retryable MUST be final; a retryable one is tried again within the task's attempts and not \
         before the time the guest asks for, and then goes to the dead-letter queue.",
        "work repeated that cannot end better, or for ever",
    ),
    must(
        "scheduler.cancel.anywhere",
        "Cancelling MUST end a task that waits before it starts, and one that runs at once; what its worker reports later \
         is refused.",
        "work that cannot be stopped",
    ),
    must("scheduler.time.not-before", "A task MUST NOT start before its time.", "work done too early"),
    must(
        "scheduler.time.deadline",
        "A task that waits past its deadline MUST fail with `QuotaExceeded` of wall time in the phase `Queued`.",
        "results nobody waits for any more",
    ),
    must(
        "scheduler.list.complete",
        "Tasks MUST be listed by tenant, plugin and state, latest first, and page after page each exactly once.",
        "work that nobody finds again, or another tenant's work",
    ),
    must(
        "scheduler.dead.requeue",
        "The dead-letter queue MUST list its tasks in pages; one that is requeued starts from the beginning, and one that is \
         past its deadline is refused with `InvalidInput`.",
        "failed work that nobody can look at or repair",
    ),
    must(
        "scheduler.mode.obeyed",
        "A paused scheduler MUST NOT lease; a draining one MUST NOT take tasks, also none from the dead-letter queue, and \
         lease those it has.",
        "maintenance that loses or starts work",
    ),
];

const fn check(
    id: &'static str,
    requires: &'static [&'static str],
    control: &'static str,
    run: fn(&mut Ctx) -> Result<(), Failure>,
) -> Check<Ctx> {
    Check { id, requires, needs: &[], control, run }
}

const CHECKS: &[Check<Ctx>] = &[
    check("scheduler.submit.contents", &["scheduler.submit.keeps"], "alters-tasks", contents),
    check("scheduler.submit.same-key", &["scheduler.submit.idempotent"], "ignores-keys", same_key),
    check("scheduler.submit.same-id", &["scheduler.submit.idempotent"], "ignores-ids", same_id),
    check("scheduler.submit.hopeless", &["scheduler.submit.refuses"], "accepts-hopeless", hopeless),
    check("scheduler.lease.one-holder", &["scheduler.lease.exclusive"], "leases-twice", one_holder),
    check("scheduler.lease.tasks-max", &["scheduler.lease.exclusive"], "ignores-tasks-max", tasks_max),
    check("scheduler.lease.is-woken", &["scheduler.lease.waits"], "never-wakes", is_woken),
    check("scheduler.lease.others-are-woken", &["scheduler.lease.waits"], "wakes-one-only", others_are_woken),
    check("scheduler.lease.dropped", &["scheduler.lease.waits"], "leases-to-the-dropped", dropped),
    check("scheduler.lease.no-room", &["scheduler.lease.plugin-limits"], "ignores-plugin-limits", no_room),
    check("scheduler.lease.goes-past", &["scheduler.lease.plugin-limits"], "waits-for-the-unwanted", goes_past),
    check("scheduler.lease.wanted-again", &["scheduler.lease.plugin-limits"], "forgets-the-unwanted", wanted_again),
    check("scheduler.lease.expires", &["scheduler.lease.ends"], "never-expires", expires),
    check("scheduler.lease.lost-bounded", &["scheduler.lease.ends"], "retries-lost-for-ever", lost_bounded),
    check("scheduler.lease.submitted", &["scheduler.lease.since"], "alters-submission-times", submitted),
    check("scheduler.lease.renewed", &["scheduler.lease.renewal"], "ignores-renewal", renewed),
    check("scheduler.lease.released", &["scheduler.lease.release"], "counts-releases", released),
    check("scheduler.lease.released-in-order", &["scheduler.lease.release"], "reverses-releases", released_in_order),
    check("scheduler.order.priority", &["scheduler.order.classes"], "ignores-priority", priority),
    check("scheduler.order.flood", &["scheduler.order.tenants"], "ignores-tenants", flood),
    check("scheduler.order.line", &["scheduler.order.first-come"], "last-come-first", line),
    check("scheduler.fence.zombie", &["scheduler.fence.newest"], "accepts-stale", zombie),
    check("scheduler.outcome.second", &["scheduler.outcome.once"], "records-twice", second),
    check("scheduler.outcome.unchanged", &["scheduler.outcome.once"], "alters-completions", unchanged),
    check("scheduler.outcome.told", &["scheduler.outcome.once"], "never-tells", told),
    check("scheduler.retry.final", &["scheduler.retry.policy"], "retries-everything", final_outcome),
    check("scheduler.retry.attempts", &["scheduler.retry.policy"], "retries-for-ever", attempts),
    check("scheduler.retry.asked-time", &["scheduler.retry.policy"], "ignores-delay", asked_time),
    check("scheduler.cancel.waiting", &["scheduler.cancel.anywhere"], "leases-cancelled", cancel_waiting),
    check("scheduler.cancel.running", &["scheduler.cancel.anywhere"], "completes-cancelled", cancel_running),
    check("scheduler.time.later", &["scheduler.time.not-before"], "starts-early", later),
    check("scheduler.time.too-late", &["scheduler.time.deadline"], "ignores-deadline", too_late),
    check("scheduler.dead.listed", &["scheduler.dead.requeue"], "hides-dead-letters", dead_listed),
    check("scheduler.dead.from-the-beginning", &["scheduler.dead.requeue"], "requeues-spent", dead_again),
    check("scheduler.dead.hopeless", &["scheduler.dead.requeue"], "requeues-hopeless", dead_too_late),
    check("scheduler.list.pages", &["scheduler.list.complete"], "skips-listed", list_pages),
    check("scheduler.list.filters", &["scheduler.list.complete"], "ignores-filters", list_filters),
    check("scheduler.mode.paused", &["scheduler.mode.obeyed"], "ignores-pause", paused),
    check("scheduler.mode.draining", &["scheduler.mode.obeyed"], "ignores-drain", draining),
    check("scheduler.mode.draining-dead", &["scheduler.mode.obeyed"], "requeues-while-draining", draining_dead),
];

/// Something that must not happen, does not within this time.
const QUIET: Duration = Duration::from_millis(150);
/// A lease nobody loses by accident.
const LONG: Duration = Duration::from_secs(60);

fn task(input: &str) -> Task {
    let mut task = Task::new(ArtifactHash::of(b"a plugin of the conformance suite"));
    task.input = input.as_bytes().to_vec().into();
    task
}

fn ended(outcome: Outcome) -> Completion {
    Completion::Executed(Box::new(Execution::new(outcome, Usage::default())))
}

fn success() -> Completion {
    ended(Outcome::Completed)
}

/// The guest's wish to be tried again.
fn again(retry_after: Duration) -> Completion {
    ended(Outcome::Failed { exit_code: 75, retry_requested: true, retry_after: Some(retry_after) })
}

fn request(tasks_max: usize, lease_time: Duration) -> LeaseRequest {
    // Any id will do: each call is another worker.
    LeaseRequest::new(WorkerId(TaskId::new().0), tasks_max, lease_time)
}

/// A task of another plugin than [`task`]'s.
fn of_another_plugin(input: &str) -> Task {
    let mut another = task(input);
    another.plugin = other_plugin();
    another
}

fn other_plugin() -> ArtifactHash {
    ArtifactHash::of(b"another plugin of the conformance suite")
}

/// A request with room for so many tasks of [`task`]'s plugin.
fn with_room(tasks_max: usize, room: usize) -> LeaseRequest {
    let limit = PluginLimit { plugin: task("").plugin, tasks_max: room };
    LeaseRequest { plugin_limits: [limit].into(), ..request(tasks_max, LONG) }
}

impl Ctx {
    fn submit(&self, task: Task) -> Result<TaskId, Failure> {
        let submission = self.patiently(self.subject().submit(task));
        let submission = submission.ok_or_else(|| self.silent("submit"))?;
        Ok(self.good("submit", submission)?.task)
    }

    /// Leases at most `tasks_max` tasks; none within the patience is a failure.
    fn lease(&self, tasks_max: usize, lease_time: Duration) -> Result<Vec<Lease>, Failure> {
        let leases = self.patiently(self.subject().lease(request(tasks_max, lease_time)));
        let leases = leases.ok_or_else(|| self.silent("lease"))?;
        self.good("lease", leases)
    }

    /// Drives a future for `time`: for as long as a machine needs that has time for it, when something must come.
    fn for_time<R>(&self, time: Duration, future: impl Future<Output = R>) -> Option<R> {
        if time >= PATIENCE { self.patiently(future) } else { self.within(time, future) }
    }

    /// What is leased within `time`, if anything.
    fn lease_within(&self, time: Duration) -> Result<Vec<Lease>, Failure> {
        let leases = self.for_time(time, self.subject().lease(request(10, LONG)));
        leases.map_or(Ok(Vec::new()), |leases| self.good("lease", leases))
    }

    /// What is leased to a worker with room for so many tasks of [`task`]'s plugin, in one go or several.
    fn lease_with_room(&self, time: Duration, tasks_max: usize, room: usize) -> Result<Vec<Lease>, Failure> {
        let mut all = Vec::<Lease>::new();
        while all.len() < tasks_max {
            let had = all.iter().filter(|lease| lease.task.plugin != other_plugin()).count();
            let request = with_room(tasks_max - all.len(), room.saturating_sub(had));
            let Some(leases) = self.for_time(time, self.subject().lease(request)) else { break };
            all.extend(self.good("lease", leases)?);
        }
        Ok(all)
    }

    /// A time in which a few steps of this scheduler are certainly done on this machine, as busy as it is: `least`, or more.
    fn time_for_a_few_steps(&self, least: Duration) -> Result<Duration, Failure> {
        let begun = Instant::now();
        self.submit(task("to see how fast this is"))?;
        let lease = self.one(LONG)?;
        self.complete(&lease, success())?;
        Ok(least.max(20 * begun.elapsed()))
    }

    fn one(&self, lease_time: Duration) -> Result<Lease, Failure> {
        let mut leases = self.lease(1, lease_time)?;
        leases.pop().ok_or_else(|| self.silent("a lease without a task"))
    }

    fn complete(&self, lease: &Lease, completion: Completion) -> Result<TaskState, Failure> {
        let state = self.try_complete(lease.task.id, lease.fence, completion);
        self.good("complete", state)
    }

    fn try_complete(&self, task: TaskId, fence: Fence, completion: Completion) -> palisade_core::Result<TaskState> {
        self.block_on(self.subject().complete(task, fence, completion))
    }

    fn record(&self, task: TaskId) -> Result<TaskRecord, Failure> {
        let record = self.block_on(self.subject().get(task));
        self.good("get", record)
    }

    fn state(&self, task: TaskId) -> Result<TaskState, Failure> {
        Ok(self.record(task)?.state)
    }

    fn silent(&self, what: &str) -> Failure {
        let nothing = Err(palisade_core::Error::new(ErrorKind::Internal, "wait", "nothing came within 5 s"));
        match self.good::<()>(what, nothing) {
            Err(failure) => failure,
            Ok(()) => unreachable!("an error stays one"),
        }
    }
}

fn ids(leases: &[Lease]) -> Vec<TaskId> {
    leases.iter().map(|lease| lease.task.id).collect()
}

fn contents(ctx: &mut Ctx) -> Result<(), Failure> {
    let mut sent = task("\0 a task with everything \u{1f980}");
    sent.entry = "entry".to_owned();
    sent.arguments = vec!["-x".to_owned(), String::new()];
    sent.priority = Priority::High;
    sent.tenant = Tenant("somebody".to_owned());
    sent.policy.quota.fuel = Some(7);
    sent.policy.grants.environment.insert("A".to_owned(), "B".to_owned());
    sent.labels.insert("label".to_owned(), "value".to_owned());
    sent.idempotency_key = Some(IdempotencyKey("key".to_owned()));
    ctx.submit(sent.clone())?;
    ctx.enforce();
    let lease = ctx.one(LONG)?;
    ctx.expect("the task a worker got", &lease.task, *lease.task == sent)?;
    ctx.expect("its attempt", lease.attempt, lease.attempt == 1)?;
    let record = ctx.record(sent.id)?;
    ctx.expect("the recorded task", &record.task, *record.task == sent)?;
    ctx.expect("its state", record.state, record.state == TaskState::Running)
}

fn same_key(ctx: &mut Ctx) -> Result<(), Failure> {
    let keyed = |tenant: &str| {
        let mut keyed = task("the same work");
        keyed.idempotency_key = Some(IdempotencyKey("key".to_owned()));
        keyed.tenant = Tenant(tenant.to_owned());
        keyed
    };
    let first = ctx.submit(keyed("one"))?;
    ctx.enforce();
    let other = ctx.submit(keyed("two"))?;
    ctx.expect("the same key of another tenant", other, other != first)?;
    let second = ctx.submit(keyed("one"))?;
    ctx.expect("the same key again", second, second == first)?;
    let leases = ctx.lease(10, LONG)?;
    ctx.expect("tasks to do", ids(&leases), leases.len() == 2)?;
    let after = ctx.submit(keyed("one"))?;
    ctx.expect("the same key while it runs", after, after == first)?;
    for lease in &leases {
        ctx.complete(lease, success())?;
    }
    let done = ctx.submit(keyed("one"))?;
    ctx.expect("the same key once it is done", done, done == first)
}

fn same_id(ctx: &mut Ctx) -> Result<(), Failure> {
    let sent = task("once");
    ctx.submit(sent.clone())?;
    ctx.enforce();
    let answer = ctx.block_on(ctx.subject().submit(sent.clone()));
    let answer = ctx.good("submit", answer)?;
    ctx.expect("the answer to the same id", answer, answer.task == sent.id && answer.duplicate)?;
    let leases = ctx.lease(10, LONG)?;
    ctx.expect("tasks to do", ids(&leases), leases.len() == 1)
}

fn hopeless(ctx: &mut Ctx) -> Result<(), Failure> {
    ctx.submit(task("a good one"))?;
    ctx.enforce();
    let mut late = task("late");
    late.deadline = Some(SystemTime::now() - Duration::from_secs(1));
    let answer = ctx.block_on(ctx.subject().submit(late));
    ctx.refused("a task past its deadline", answer, ErrorKind::InvalidInput)?;
    let mut never = task("never");
    never.retry.attempts_max = 0;
    let answer = ctx.block_on(ctx.subject().submit(never));
    ctx.refused("a task without any attempt", answer, ErrorKind::InvalidInput)
}

fn one_holder(ctx: &mut Ctx) -> Result<(), Failure> {
    let first = ctx.submit(task("one"))?;
    let held = ctx.one(LONG)?;
    let second = ctx.submit(task("two"))?;
    ctx.enforce();
    let others = ctx.lease(10, LONG)?;
    ctx.expect("what another worker gets", ids(&others), ids(&others) == [second])?;
    let nothing = ctx.lease_within(QUIET)?;
    ctx.expect("what a third one gets", ids(&nothing), nothing.is_empty())?;
    ctx.expect("who has the first", held.task.id, held.task.id == first)
}

fn tasks_max(ctx: &mut Ctx) -> Result<(), Failure> {
    for number in 0..5 {
        ctx.submit(task(&number.to_string()))?;
    }
    ctx.enforce();
    let leases = ctx.lease(2, LONG)?;
    ctx.expect("tasks for a worker that asked for two", leases.len(), (1..=2).contains(&leases.len()))?;
    let nothing = ctx.block_on(ctx.subject().lease(request(0, LONG)));
    ctx.refused("a lease of no task", nothing.map(|leases| leases.len()), ErrorKind::InvalidInput)
}

/// Polls a lease request once, so that it waits.
async fn begin_waiting(future: &mut palisade_core::BoxFuture<'_, palisade_core::Result<Vec<Lease>>>) -> bool {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending())).await
}

fn is_woken(ctx: &mut Ctx) -> Result<(), Failure> {
    ctx.enforce();
    let scheduler = Arc::clone(ctx.subject());
    let (waited, got) = ctx.block_on(async {
        // A task of its own is polled when it is woken, and only then.
        let worker = Arc::clone(&scheduler);
        let waits = tokio::spawn(async move { worker.lease(request(1, LONG)).await });
        tokio::task::yield_now().await;
        let waited = !waits.is_finished() && scheduler.submit(task("for one who waits")).await.is_ok();
        let leases = clock::within(PATIENCE, waits).await;
        (waited, matches!(leases, Some(Ok(Ok(leases))) if leases.len() == 1))
    });
    ctx.expect("a worker waits where nothing is to be done", waited, waited)?;
    ctx.expect("it gets the task that comes", got, got)
}

fn others_are_woken(ctx: &mut Ctx) -> Result<(), Failure> {
    ctx.enforce();
    let scheduler = Arc::clone(ctx.subject());
    let got = ctx.block_on(async {
        let mut waits = Vec::new();
        // The first and the last have no room for it.
        for request in [with_room(1, 0), request(1, LONG), with_room(1, 0)] {
            let worker = Arc::clone(&scheduler);
            waits.push(tokio::spawn(async move { worker.lease(request).await }));
            tokio::task::yield_now().await;
        }
        let submitted = scheduler.submit(task("for the one with room")).await.is_ok();
        let leases = clock::within(PATIENCE, &mut waits[1]).await;
        waits.iter().for_each(tokio::task::JoinHandle::abort);
        submitted && matches!(leases, Some(Ok(Ok(leases))) if leases.len() == 1)
    });
    ctx.expect("the one worker of three that has room for the task gets it", got, got)
}

fn no_room(ctx: &mut Ctx) -> Result<(), Failure> {
    for number in 0..4 {
        ctx.submit(task(&number.to_string()))?;
    }
    ctx.enforce();
    let one = ctx.lease_with_room(PATIENCE, 1, 1)?;
    ctx.expect("tasks for a worker with room for one", one.len(), one.len() == 1)?;
    let two = ctx.patiently(ctx.subject().lease(with_room(10, 2)));
    let two = two.map_or(Ok(Vec::new()), |leases| ctx.good("lease", leases))?;
    ctx.expect("tasks for a worker with room for two", two.len(), (1..=2).contains(&two.len()))?;
    let none = ctx.lease_with_room(QUIET, 10, 0)?;
    ctx.expect("tasks for a worker with room for none", ids(&none), none.is_empty())
}

fn goes_past(ctx: &mut Ctx) -> Result<(), Failure> {
    let slow = ctx.submit(task("first"))?;
    let mut others = Vec::new();
    for number in 0..3 {
        ctx.submit(task(&number.to_string()))?;
        others.push(ctx.submit(of_another_plugin(&number.to_string()))?);
    }
    ctx.enforce();
    let got = ids(&ctx.lease_with_room(QUIET, 3, 0)?);
    ctx.expect("tasks of another plugin behind those there is no room for", &got, got == others)?;
    let other = ctx.submit(of_another_plugin("late"))?;
    let got = ids(&ctx.lease_with_room(PATIENCE, 2, 1)?);
    ctx.expect("tasks once there is room for one", &got, got == [slow, other])
}

fn wanted_again(ctx: &mut Ctx) -> Result<(), Failure> {
    let mut order = Vec::new();
    for number in 0..3 {
        order.push(ctx.submit(task(&number.to_string()))?);
    }
    ctx.submit(of_another_plugin("another"))?;
    ctx.enforce();
    let other = ctx.lease_with_room(PATIENCE, 1, 0)?;
    ctx.expect("what a worker without room gets", other.len(), other.len() == 1)?;
    order.push(ctx.submit(task("late"))?);
    let mut got = ids(&ctx.lease_with_room(PATIENCE, 2, 2)?);
    while got.len() < 4 {
        let leases = ids(&ctx.lease_within(PATIENCE)?);
        if leases.is_empty() {
            break;
        }
        got.extend(leases);
    }
    ctx.expect("what others left, in its order", &got, got == order)
}

fn dropped(ctx: &mut Ctx) -> Result<(), Failure> {
    let scheduler = Arc::clone(ctx.subject());
    let waited = ctx.block_on(async {
        let mut waits = scheduler.lease(request(1, LONG));
        let waited = begin_waiting(&mut waits).await;
        let submitted = scheduler.submit(task("for whoever stays")).await.is_ok();
        drop(waits);
        waited && submitted
    });
    ctx.expect("a worker waited and went away", waited, waited)?;
    ctx.enforce();
    let leases = ctx.lease_within(PATIENCE)?;
    ctx.expect("what the next worker gets", ids(&leases), leases.len() == 1)?;
    let attempts: Vec<_> = leases.iter().map(|lease| lease.attempt).collect();
    ctx.expect("its attempt", &attempts, attempts == [1])
}

const SHORT: Duration = Duration::from_millis(60);

fn expires(ctx: &mut Ctx) -> Result<(), Failure> {
    /// Schedulers may count in ticks.
    const TICK: Duration = Duration::from_millis(50);
    let id = ctx.submit(task("lost once"))?;
    let lost = ctx.one(SHORT)?;
    ctx.enforce();
    // From when the lease is there on, so that it does not matter how long that took.
    let end = lost.expires_at.duration_since(SystemTime::now()).unwrap_or_default();
    ctx.expect("time to the lease's end", end, end <= SHORT + TICK)?;
    let next = ctx.one(LONG)?;
    ctx.expect("the task that is given out again", next.task.id, next.task.id == id)?;
    ctx.expect("its fence", (lost.fence, next.fence), next.fence > lost.fence)?;
    ctx.expect("its attempt", next.attempt, next.attempt == 2)?;
    let record = ctx.record(id)?;
    let counted = (record.failures, record.lost);
    ctx.expect("failures and losses", counted, counted == (0, 1))
}

fn lost_bounded(ctx: &mut Ctx) -> Result<(), Failure> {
    let id = ctx.submit(task("kills its worker"))?;
    ctx.enforce();
    for _ in 0..20 {
        let scheduler = Arc::clone(ctx.subject());
        let mut lease = scheduler.lease(request(1, Duration::from_millis(20)));
        let mut ended = scheduler.wait(id);
        let leased = ctx.patiently(poll_fn(|context| match lease.as_mut().poll(context) {
            Poll::Ready(_) => Poll::Ready(true),
            Poll::Pending => ended.as_mut().poll(context).map(|_| false),
        }));
        if leased != Some(true) {
            break;
        }
    }
    let record = ctx.patiently(ctx.subject().wait(id));
    let state = record.and_then(Result::ok).map(|record| (record.state, record.completion.is_some()));
    ctx.expect("a task that killed twenty workers", state, state == Some((TaskState::DeadLettered, true)))
}

fn renewed(ctx: &mut Ctx) -> Result<(), Failure> {
    let time = ctx.time_for_a_few_steps(Duration::from_millis(400))?;
    let id = ctx.submit(task("takes its time"))?;
    let lease = ctx.one(time)?;
    let end = ctx.block_on(ctx.subject().renew(id, lease.fence, LONG));
    let end = ctx.good("renew", end)?;
    ctx.enforce();
    ctx.expect("the new end", end, end > lease.expires_at)?;
    let past = lease.expires_at.duration_since(SystemTime::now()).unwrap_or_default() + 2 * QUIET;
    let others = ctx.within(past, ctx.subject().lease(request(10, LONG)));
    let others = others.map_or(Ok(Vec::new()), |leases| ctx.good("lease", leases))?;
    ctx.expect("what others get past the old end", ids(&others), others.is_empty())?;
    let state = ctx.complete(&lease, success())?;
    ctx.expect("its completion", state, state == TaskState::Completed)?;
    let late = ctx.block_on(ctx.subject().renew(id, lease.fence, LONG));
    ctx.refused("renewing what is done", late, ErrorKind::Stale)
}

fn released(ctx: &mut Ctx) -> Result<(), Failure> {
    let id = ctx.submit(task("given back"))?;
    let lease = ctx.one(LONG)?;
    let answer = ctx.block_on(ctx.subject().release(id, lease.fence));
    ctx.good("release", answer)?;
    ctx.enforce();
    let next = ctx.one(LONG)?;
    ctx.expect("the next attempt", (next.task.id, next.attempt), (next.task.id, next.attempt) == (id, 1))?;
    let record = ctx.record(id)?;
    let counted = (record.failures, record.lost);
    ctx.expect("failures and losses", counted, counted == (0, 0))?;
    let stale = ctx.block_on(ctx.subject().release(id, lease.fence));
    ctx.refused("releasing what was released", stale, ErrorKind::Stale)
}

fn released_in_order(ctx: &mut Ctx) -> Result<(), Failure> {
    let mut order = Vec::new();
    for number in 0..4 {
        order.push(ctx.submit(task(&number.to_string()))?);
    }
    let leases = [ctx.one(LONG)?, ctx.one(LONG)?, ctx.one(LONG)?];
    for lease in [&leases[1], &leases[0], &leases[2]] {
        let answer = ctx.block_on(ctx.subject().release(lease.task.id, lease.fence));
        ctx.good("release", answer)?;
    }
    ctx.enforce();
    let again = ctx.one(LONG)?;
    ctx.expect("the first of three that were given back", again.task.id, again.task.id == order[0])?;
    let answer = ctx.block_on(ctx.subject().release(again.task.id, again.fence));
    ctx.good("release", answer)?;
    let mut got = Vec::new();
    while got.len() < 4 {
        got.push(ctx.one(LONG)?.task.id);
    }
    ctx.expect("the order after three were given back", &got, got == order)
}

fn priority(ctx: &mut Ctx) -> Result<(), Failure> {
    let of = |class: Priority| {
        let mut one = task(class.as_str());
        one.priority = class;
        one
    };
    for class in [Priority::Low, Priority::Normal, Priority::High, Priority::Critical] {
        ctx.submit(of(class))?;
    }
    ctx.enforce();
    let mut order = Vec::new();
    while order.len() < 4 {
        order.extend(ctx.lease(1, LONG)?.iter().map(|lease| lease.task.priority));
    }
    let expected = Priority::ALL;
    ctx.expect("the order of one task of each class", &order, order == expected)
}

fn flood(ctx: &mut Ctx) -> Result<(), Failure> {
    let of = |tenant: &str| {
        let mut one = task(tenant);
        one.tenant = Tenant(tenant.to_owned());
        one
    };
    for _ in 0..60 {
        ctx.submit(of("many"))?;
    }
    for _ in 0..10 {
        ctx.submit(of("few"))?;
    }
    ctx.enforce();
    let mut few = 0;
    for _ in 0..20 {
        few += usize::from(ctx.one(LONG)?.task.tenant.0 == "few");
    }
    // Half is fair; a scheduler that looks at partitions only may be off by some.
    ctx.expect("of the first 20 tasks, those of who came after a flood of 60", few, (5..=10).contains(&few))
}

fn line(ctx: &mut Ctx) -> Result<(), Failure> {
    let mut submitted = Vec::new();
    for number in 0..8 {
        submitted.push(ctx.submit(task(&number.to_string()))?);
    }
    ctx.enforce();
    let mut order = Vec::new();
    while order.len() < submitted.len() {
        order.extend(ids(&ctx.lease(3, LONG)?));
    }
    ctx.expect("the order of one tenant's tasks", &order, order == submitted)
}

fn zombie(ctx: &mut Ctx) -> Result<(), Failure> {
    let id = ctx.submit(task("two workers believe they have it"))?;
    let zombie = ctx.one(SHORT)?;
    let holder = ctx.one(LONG)?;
    ctx.enforce();
    let late = ctx.try_complete(id, zombie.fence, ended(Outcome::from_exit_code(1)));
    ctx.refused("the completion of who lost the lease", late, ErrorKind::Stale)?;
    let state = ctx.state(id)?;
    ctx.expect("the task's state then", state, state == TaskState::Running)?;
    let late = ctx.block_on(ctx.subject().renew(id, zombie.fence, LONG));
    ctx.refused("its renewal", late, ErrorKind::Stale)?;
    let state = ctx.complete(&holder, success())?;
    ctx.expect("the completion of who holds it", state, state == TaskState::Completed)
}

fn second(ctx: &mut Ctx) -> Result<(), Failure> {
    let id = ctx.submit(task("completed twice"))?;
    let lease = ctx.one(LONG)?;
    ctx.complete(&lease, success())?;
    ctx.enforce();
    let again = ctx.try_complete(id, lease.fence, ended(Outcome::from_exit_code(1)));
    ctx.refused("a second completion", again, ErrorKind::Stale)?;
    let record = ctx.record(id)?;
    ctx.expect("the recorded outcome", &record.completion, record.completion.as_deref() == Some(&success()))
}

fn unchanged(ctx: &mut Ctx) -> Result<(), Failure> {
    let outcomes = [
        Outcome::from_exit_code(-7),
        Outcome::Trapped { trap: TrapKind::Signal { number: 11 }, message: "text \u{1f980}".to_owned() },
        Outcome::Denied { grant: "network".to_owned() },
    ];
    ctx.enforce();
    for outcome in outcomes {
        let id = ctx.submit(task("fails"))?;
        let lease = ctx.one(LONG)?;
        let mut execution = Execution::new(outcome, Usage::default());
        execution.output = vec![0, 255, 10].into();
        execution.usage.memory_peak_bytes = 12345;
        let sent = Completion::Executed(Box::new(execution));
        ctx.complete(&lease, sent.clone())?;
        let record = ctx.record(id)?;
        ctx.expect("the recorded outcome", &record.completion, record.completion.as_deref() == Some(&sent))?;
        ctx.expect("its state", record.state, record.state == TaskState::Failed)?;
    }
    Ok(())
}

fn told(ctx: &mut Ctx) -> Result<(), Failure> {
    ctx.enforce();
    let scheduler = Arc::clone(ctx.subject());
    let record = ctx.block_on(async {
        let id = scheduler.submit(task("awaited")).await?.task;
        let client = Arc::clone(&scheduler);
        let waits = tokio::spawn(async move { client.wait(id).await });
        tokio::task::yield_now().await;
        let lease = scheduler.lease(request(1, LONG)).await?.remove(0);
        scheduler.complete(id, lease.fence, success()).await?;
        match clock::within(PATIENCE, waits).await {
            Some(Ok(record)) => record.map(Some),
            Some(Err(_)) | None => Ok(None),
        }
    });
    let record = ctx.good("waiting", record)?;
    let state = record.map(|record| record.state);
    ctx.expect("what who waited gets", state, state == Some(TaskState::Completed))
}

fn final_outcome(ctx: &mut Ctx) -> Result<(), Failure> {
    ctx.enforce();
    for completion in [
        ended(Outcome::from_exit_code(1)),
        ended(Outcome::Denied { grant: "network".to_owned() }),
        Completion::HostError { message: "no such plugin".to_owned(), retryable: false },
    ] {
        ctx.submit(task("fails for good"))?;
        let lease = ctx.one(LONG)?;
        let state = ctx.complete(&lease, completion)?;
        ctx.expect("the state after an outcome that is not retryable", state, state == TaskState::Failed)?;
    }
    Ok(())
}

fn attempts(ctx: &mut Ctx) -> Result<(), Failure> {
    let mut tried = task("fails again and again");
    tried.retry.attempts_max = 3;
    let id = ctx.submit(tried)?;
    ctx.enforce();
    for attempt in 1..=3 {
        let lease = ctx.one(LONG)?;
        ctx.expect("the attempt", lease.attempt, lease.attempt == attempt)?;
        let state = ctx.complete(&lease, again(Duration::from_millis(1)))?;
        let expected = if attempt < 3 { !state.is_final() } else { state == TaskState::DeadLettered };
        ctx.expect("the state after it", state, expected)?;
    }
    let record = ctx.record(id)?;
    let counted = (record.failures, record.lost);
    ctx.expect("failures and losses", counted, counted == (3, 0))
}

fn asked_time(ctx: &mut Ctx) -> Result<(), Failure> {
    ctx.submit(task("asks for time"))?;
    let lease = ctx.one(LONG)?;
    let begun = Instant::now();
    ctx.complete(&lease, again(QUIET))?;
    ctx.enforce();
    let next = ctx.one(LONG)?;
    let passed = begun.elapsed();
    // Schedulers count in milliseconds.
    let in_time = passed + Duration::from_millis(2) >= QUIET;
    ctx.expect("time until the attempt after a guest asked for 150 ms", (passed, next.attempt), in_time)
}

fn cancel_waiting(ctx: &mut Ctx) -> Result<(), Failure> {
    let cancelled = ctx.submit(task("cancelled"))?;
    let other = ctx.submit(task("not cancelled"))?;
    let state = ctx.block_on(ctx.subject().cancel(cancelled));
    let state = ctx.good("cancel", state)?;
    ctx.enforce();
    ctx.expect("its state", state, state == TaskState::Cancelled)?;
    let leases = ctx.lease(10, LONG)?;
    ctx.expect("what is left to do", ids(&leases), ids(&leases) == [other])?;
    let record = ctx.record(cancelled)?;
    let expected = ended(Outcome::Cancelled { phase: Phase::Queued });
    ctx.expect("its outcome", &record.completion, record.completion.as_deref() == Some(&expected))?;
    let again = ctx.block_on(ctx.subject().cancel(cancelled));
    let again = ctx.good("cancel", again)?;
    ctx.expect("cancelling it again", again, again == TaskState::Cancelled)?;
    let unknown = ctx.block_on(ctx.subject().cancel(TaskId::new()));
    ctx.refused("cancelling what is not there", unknown, ErrorKind::NotFound)
}

fn cancel_running(ctx: &mut Ctx) -> Result<(), Failure> {
    let id = ctx.submit(task("cancelled while it runs"))?;
    let lease = ctx.one(LONG)?;
    let state = ctx.block_on(ctx.subject().cancel(id));
    let state = ctx.good("cancel", state)?;
    ctx.enforce();
    ctx.expect("its state at once", state, state == TaskState::Cancelled)?;
    let heard = ctx.patiently(ctx.subject().wait(id)).and_then(Result::ok).map(|record| record.state);
    ctx.expect("what who waits hears", heard, heard == Some(TaskState::Cancelled))?;
    let late = ctx.try_complete(id, lease.fence, success());
    ctx.refused("its worker's completion", late, ErrorKind::Stale)?;
    let state = ctx.state(id)?;
    ctx.expect("its state in the end", state, state == TaskState::Cancelled)
}

fn later(ctx: &mut Ctx) -> Result<(), Failure> {
    let wait = ctx.time_for_a_few_steps(Duration::from_millis(500))?;
    let mut delayed = task("later");
    let begun = Instant::now();
    delayed.not_before = Some(SystemTime::now() + wait);
    let id = ctx.submit(delayed)?;
    let state = ctx.state(id)?;
    ctx.enforce();
    ctx.expect("its state before its time", state, state == TaskState::Delayed)?;
    let lease = ctx.one(LONG)?;
    let passed = begun.elapsed();
    ctx.expect("time until it started", (lease.attempt, passed, wait), passed + Duration::from_millis(2) >= wait)
}

fn too_late(ctx: &mut Ctx) -> Result<(), Failure> {
    let time = ctx.time_for_a_few_steps(Duration::from_millis(500))?;
    let mut hurried = task("nobody has time for it");
    hurried.deadline = Some(SystemTime::now() + time);
    let id = ctx.submit(hurried)?;
    ctx.enforce();
    let record = ctx.patiently(ctx.subject().wait(id)).and_then(Result::ok);
    let outcome = record.and_then(|record| match record.completion.as_deref() {
        Some(Completion::Executed(execution)) => Some((record.state, execution.outcome.clone())),
        _ => None,
    });
    let holds = matches!(
        &outcome,
        Some((
            TaskState::Failed,
            Outcome::QuotaExceeded { resource: palisade_core::Resource::WallTime, phase: Phase::Queued, limit, used }
        )) if used > limit
    );
    ctx.expect("its outcome", &outcome, holds)
}

/// Submits a task that ends in the dead-letter queue.
fn dead(ctx: &Ctx) -> Result<TaskId, Failure> {
    let mut once = task("fails");
    once.retry.attempts_max = 1;
    let id = ctx.submit(once)?;
    let lease = ctx.one(LONG)?;
    ctx.complete(&lease, again(Duration::ZERO))?;
    Ok(id)
}

fn dead_listed(ctx: &mut Ctx) -> Result<(), Failure> {
    let mut expected = vec![dead(ctx)?, dead(ctx)?, dead(ctx)?];
    expected.sort();
    ctx.enforce();
    let mut listed: Vec<TaskId> = Vec::new();
    for _ in 0..3 {
        let page = ctx.block_on(ctx.subject().dead_letters(listed.last().copied(), 2));
        let page = ctx.good("listing", page)?;
        ctx.expect("a page of two", page.len(), page.len() <= 2)?;
        listed.extend(page.iter().map(|record| record.task.id));
    }
    ctx.expect("the dead-letter queue", &listed, listed == expected)?;
    let counted = ctx.subject().stats().dead_lettered;
    ctx.expect("how many there are", counted, counted == 3)
}

fn submitted(ctx: &mut Ctx) -> Result<(), Failure> {
    let id = ctx.submit(task("tells its time"))?;
    let record = ctx.block_on(ctx.subject().get(id));
    let record = ctx.good("get", record)?;
    ctx.enforce();
    for attempt in ["first", "second"] {
        let lease = ctx.one(LONG)?;
        let since = lease.submitted_at;
        ctx.expect(attempt, (since, record.submitted_at), since == record.submitted_at)?;
        let state = ctx.complete(&lease, again(Duration::ZERO))?;
        ctx.expect("its state", state, !state.is_final())?;
    }
    Ok(())
}

fn dead_again(ctx: &mut Ctx) -> Result<(), Failure> {
    let id = dead(ctx)?;
    let state = ctx.block_on(ctx.subject().requeue(id));
    let state = ctx.good("requeue", state)?;
    ctx.enforce();
    ctx.expect("its state", state, state == TaskState::Queued)?;
    let twice = ctx.block_on(ctx.subject().requeue(id));
    ctx.refused("requeueing what waits", twice, ErrorKind::InvalidInput)?;
    let lease = ctx.one(LONG)?;
    ctx.expect("its attempt", (lease.task.id, lease.attempt), (lease.task.id, lease.attempt) == (id, 1))?;
    let state = ctx.complete(&lease, success())?;
    ctx.expect("its completion", state, state == TaskState::Completed)
}

fn dead_too_late(ctx: &mut Ctx) -> Result<(), Failure> {
    let time = ctx.time_for_a_few_steps(Duration::from_secs(1))?;
    let mut once = task("fails, and then it is too late");
    once.retry.attempts_max = 1;
    // So that it is not too late for the failure on a machine that is busy.
    once.deadline = Some(SystemTime::now() + time);
    let left = || once.deadline.unwrap_or(SystemTime::UNIX_EPOCH).duration_since(SystemTime::now());
    let id = ctx.submit(once.clone())?;
    let lease = ctx.one(LONG)?;
    let state = ctx.complete(&lease, again(Duration::ZERO))?;
    ctx.expect("its state", state, state == TaskState::DeadLettered)?;
    while let Ok(left) = left() {
        ctx.within(left + Duration::from_millis(10), std::future::pending::<()>());
    }
    ctx.enforce();
    let hopeless = ctx.block_on(ctx.subject().requeue(id));
    ctx.refused("requeueing what is past its deadline", hopeless, ErrorKind::InvalidInput)
}

/// All that `query` asks for, page after page; more pages than there are tasks are a failure.
fn listed(ctx: &mut Ctx, mut query: TaskQuery, pages_max: usize) -> Result<Vec<TaskId>, Failure> {
    let mut all = Vec::new();
    for _ in 0..pages_max {
        let page = ctx.block_on(ctx.subject().list(query.clone()));
        let page = ctx.good("list", page)?;
        ctx.expect("tasks in a page", page.tasks.len(), page.tasks.len() <= query.tasks_max)?;
        all.extend(page.tasks.iter().map(|record| record.task.id));
        match page.next {
            Some(next) => query.before = Some(next),
            None => return Ok(all),
        }
    }
    Err(ctx.silent("a last page"))
}

fn list_pages(ctx: &mut Ctx) -> Result<(), Failure> {
    let mut expected = Vec::new();
    for number in 0..10 {
        expected.push(ctx.submit(task(&number.to_string()))?);
    }
    expected.sort();
    expected.reverse();
    ctx.enforce();
    let query = TaskQuery { tasks_max: 3, ..TaskQuery::default() };
    let found = listed(ctx, query, 10)?;
    ctx.expect("tasks in pages of three, latest first", &found, found == expected)
}

fn list_filters(ctx: &mut Ctx) -> Result<(), Failure> {
    // Ids sort by when they were made, which is here.
    let plain = task("plain");
    let mut theirs = task("of another tenant");
    theirs.tenant = Tenant("other".to_owned());
    let mut plugged = task("of another plugin");
    plugged.plugin = ArtifactHash::of(b"another plugin of the conformance suite");
    let plugin = plugged.plugin;
    let [plain, theirs, plugged] = [ctx.submit(plain)?, ctx.submit(theirs)?, ctx.submit(plugged)?];
    let done = ctx.submit(task("cancelled"))?;
    let cancelled = ctx.block_on(ctx.subject().cancel(done));
    let state = ctx.good("cancel", cancelled)?;
    ctx.enforce();
    let all = TaskQuery { tasks_max: 10, ..TaskQuery::default() };
    for (what, query, expected) in [
        ("of the tenant", TaskQuery { tenant: Some(Tenant("other".to_owned())), ..all.clone() }, vec![theirs]),
        ("of the plugin", TaskQuery { plugin: Some(plugin), ..all.clone() }, vec![plugged]),
        ("that ended", TaskQuery { states: vec![state], ..all.clone() }, vec![done]),
        ("earlier than the second", TaskQuery { before: Some(theirs), ..all.clone() }, vec![plain]),
    ] {
        let found = listed(ctx, query, 10)?;
        ctx.expect(&format!("tasks {what}"), &found, found == expected)?;
    }
    Ok(())
}

fn paused(ctx: &mut Ctx) -> Result<(), Failure> {
    let set = |ctx: &Ctx, mode| ctx.good("set_mode", ctx.block_on(ctx.subject().set_mode(mode)));
    set(ctx, SchedulerMode::Paused)?;
    ctx.submit(task("waits for better times"))?;
    ctx.enforce();
    let leases = ctx.lease_within(QUIET)?;
    ctx.expect("what is leased while it is paused", ids(&leases), leases.is_empty())?;
    set(ctx, SchedulerMode::Running)?;
    let leases = ctx.lease(10, LONG)?;
    ctx.expect("what is leased afterwards", leases.len(), leases.len() == 1)
}

fn draining_dead(ctx: &mut Ctx) -> Result<(), Failure> {
    let id = dead(ctx)?;
    let answer = ctx.block_on(ctx.subject().set_mode(SchedulerMode::Draining));
    ctx.good("set_mode", answer)?;
    ctx.enforce();
    let refused = ctx.block_on(ctx.subject().requeue(id));
    ctx.refused("requeueing in a scheduler that drains", refused, ErrorKind::Exhausted)
}

fn draining(ctx: &mut Ctx) -> Result<(), Failure> {
    let id = ctx.submit(task("was there before"))?;
    let answer = ctx.block_on(ctx.subject().set_mode(SchedulerMode::Draining));
    ctx.good("set_mode", answer)?;
    ctx.enforce();
    let refused = ctx.block_on(ctx.subject().submit(task("comes too late")));
    ctx.refused("a task for a scheduler that drains", refused, ErrorKind::Exhausted)?;
    let leases = ctx.lease(10, LONG)?;
    ctx.expect("what is leased", ids(&leases), ids(&leases) == [id])
}
