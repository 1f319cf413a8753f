//! The machine against a simple model, and its edges one by one.

use palisade_core::{Bytes, PluginLimit, RetryPolicy, WorkerId};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::Rate;

const START: Millis = 1_800_000_000_000;

fn limits() -> SchedulerLimits {
    SchedulerLimits { deadline_grace: Duration::from_millis(500), ..SchedulerLimits::default() }
}

/// A machine, and a count of everything it said.
struct Bench {
    machine: Machine,
    now: Millis,
    ids: u128,
    /// How often each task got an outcome since it was submitted or requeued.
    outcomes: HashMap<TaskId, u32>,
}

impl Bench {
    fn new(limits: SchedulerLimits) -> Bench {
        Bench { machine: Machine::new(limits, 0, 7, START), now: START, ids: 0, outcomes: HashMap::new() }
    }

    fn task(&mut self, tenant: u32, class: Priority) -> Task {
        self.ids += 1;
        let mut task = Task::new(plugin(0));
        task.id = TaskId(Uuid::from_u128(self.ids));
        task.tenant = Tenant(format!("tenant {tenant}"));
        task.priority = class;
        task
    }

    fn submit(&mut self, task: Task) -> Result<TaskId> {
        let answer = self.machine.submit(self.now, Arc::new(task), 100).map(|submission| submission.task);
        self.listen();
        answer
    }

    fn quick(&mut self) -> TaskId {
        let task = self.task(0, Priority::Normal);
        self.submit(task).unwrap()
    }

    fn lease(&mut self, tasks_max: usize, millis: u64) -> Vec<Lease> {
        self.lease_with_room(tasks_max, millis, &[])
    }

    /// Leases for a worker with room for so many tasks of some plugins.
    fn lease_with_room(&mut self, tasks_max: usize, millis: u64, room: &[(u32, usize)]) -> Vec<Lease> {
        let mut request = self.request(tasks_max, millis);
        let limit = |(number, tasks_max): &(u32, usize)| PluginLimit { plugin: plugin(*number), tasks_max: *tasks_max };
        request.plugin_limits = room.iter().map(limit).collect();
        self.lease_as(&request)
    }

    fn request(&self, tasks_max: usize, millis: u64) -> LeaseRequest {
        LeaseRequest::new(WorkerId(Uuid::nil()), tasks_max, Duration::from_millis(millis))
    }

    fn lease_as(&mut self, request: &LeaseRequest) -> Vec<Lease> {
        let mut leases = Vec::new();
        self.machine.lease(self.now, request, &mut leases);
        self.listen();
        leases
    }

    fn complete(&mut self, task: TaskId, fence: Fence, completion: Completion) -> Result<TaskState> {
        let answer = self.machine.complete(self.now, task, fence, completion);
        self.listen();
        answer
    }

    fn pass(&mut self, millis: u64) {
        self.now += millis;
        self.machine.advance(self.now);
        self.listen();
    }

    fn record(&mut self, task: TaskId) -> TaskRecord {
        self.machine.get(self.now, task).unwrap().0
    }

    fn state(&mut self, task: TaskId) -> TaskState {
        self.record(task).state
    }

    fn listen(&mut self) {
        for change in self.machine.changes().drain(..) {
            match change.what {
                What::Finished { .. } => *self.outcomes.entry(change.task.id).or_default() += 1,
                What::Requeued | What::Submitted => drop(self.outcomes.remove(&change.task.id)),
                _ => {}
            }
        }
        assert!(self.outcomes.values().all(|count| *count == 1), "an outcome was recorded twice");
    }
}

fn plugin(number: u32) -> ArtifactHash {
    ArtifactHash::of(&number.to_le_bytes())
}

fn ended(outcome: Outcome) -> Completion {
    Completion::Executed(Box::new(Execution::new(outcome, Usage::default())))
}

fn success() -> Completion {
    ended(Outcome::Completed)
}

fn wants_retry(after: Option<u64>) -> Completion {
    let retry_after = after.map(Duration::from_millis);
    ended(Outcome::Failed { exit_code: 75, retry_requested: true, retry_after })
}

#[test]
fn a_page_looks_at_a_bounded_number_of_tasks() {
    let mut bench = Bench::new(limits());
    let tasks: Vec<_> = (0..2 * LOOKED_AT_MAX + 1).map(|_| bench.quick()).collect();
    let mut query = TaskQuery { states: vec![TaskState::Failed], tasks_max: 10, ..TaskQuery::default() };
    let mut ends = Vec::new();
    loop {
        let (page, _) = bench.machine.list(bench.now, &query);
        assert_eq!(page.tasks, []);
        let Some(next) = page.next else { break };
        ends.push(next);
        query.before = Some(next);
    }
    assert_eq!(ends, [tasks[LOOKED_AT_MAX + 1], tasks[1]]);
    query = TaskQuery { tasks_max: usize::MAX, ..TaskQuery::default() };
    assert_eq!(bench.machine.list(bench.now, &query).0.tasks.len(), bench.machine.limits.batch_max);
}

#[test]
fn a_zombies_completion_is_refused() {
    let mut bench = Bench::new(limits());
    let task = bench.quick();
    let zombie = bench.lease(1, 100).remove(0);
    bench.pass(99);
    assert!(bench.machine.renew(bench.now, task, zombie.fence, Duration::from_millis(100)).is_ok());
    bench.pass(99);
    assert_eq!(bench.state(task), TaskState::Running, "a renewed lease lasts");
    bench.pass(1);
    assert_eq!(bench.state(task), TaskState::Queued);
    let second = bench.lease(1, 100).remove(0);
    assert!(second.fence > zombie.fence);
    assert_eq!((second.attempt, zombie.attempt), (2, 1));
    let stale = |result: Result<TaskState>| result.unwrap_err().kind() == ErrorKind::Stale;
    assert!(stale(bench.complete(task, zombie.fence, success())));
    let renewed = bench.machine.renew(bench.now, task, zombie.fence, Duration::from_secs(1));
    assert_eq!(renewed.unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(bench.machine.release(bench.now, task, zombie.fence).unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(bench.complete(task, second.fence, success()).unwrap(), TaskState::Completed);
    assert!(stale(bench.complete(task, second.fence, success())), "once only");
    let record = bench.record(task);
    assert_eq!((record.failures, record.lost), (0, 1));
}

#[test]
fn a_task_that_kills_its_workers_goes_to_the_dead_letters_and_can_be_requeued() {
    let mut bench = Bench::new(limits());
    let killer = bench.quick();
    let other = bench.quick();
    for round in 1..=3 {
        let lease = bench.lease(1, 50).remove(0);
        assert_eq!(lease.task.id, killer, "a lost task stands in front of its tenant's others");
        assert_eq!(lease.attempt, round);
        bench.pass(50);
    }
    let record = bench.record(killer);
    assert_eq!((record.state, record.failures, record.lost), (TaskState::DeadLettered, 0, 3));
    assert!(matches!(record.completion.as_deref(), Some(Completion::HostError { retryable: false, .. })));
    let (listed, _) = bench.machine.dead_letters(bench.now, None, 10);
    assert_eq!(listed, [record]);
    assert_eq!(bench.machine.dead_letters(bench.now, Some(killer), 10).0, []);
    assert_eq!(bench.machine.requeue(bench.now, other).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(bench.machine.requeue(bench.now, killer).unwrap(), TaskState::Queued);
    bench.listen();
    let record = bench.record(killer);
    assert_eq!((record.failures, record.lost, record.completion), (0, 0, None));
    assert_eq!(bench.lease(2, 50).len(), 2);
    assert_eq!(bench.machine.stats().dead_lettered, 0);
}

#[test]
fn retries_are_bounded_and_only_for_outcomes_that_allow_them() {
    let mut bench = Bench::new(limits());
    let mut task = bench.task(0, Priority::Normal);
    task.retry = RetryPolicy {
        attempts_max: 3,
        backoff_initial: Duration::from_millis(100),
        backoff_max: Duration::from_millis(150),
    };
    let task = bench.submit(task).unwrap();
    for (attempt, longest) in [(1, 100), (2, 150)] {
        let lease = bench.lease(1, 1000).remove(0);
        assert_eq!(lease.attempt, attempt);
        let state = bench.complete(task, lease.fence, ended(Outcome::Crashed { message: String::new() })).unwrap();
        assert!(matches!(state, TaskState::Delayed | TaskState::Queued));
        bench.pass(longest);
        assert_eq!(bench.state(task), TaskState::Queued, "full jitter is never longer than the backoff");
    }
    let lease = bench.lease(1, 1000).remove(0);
    assert_eq!(bench.complete(task, lease.fence, wants_retry(None)).unwrap(), TaskState::DeadLettered);
    let record = bench.record(task);
    assert_eq!((record.failures, record.lost), (3, 0));
    assert_eq!(record.completion.as_deref(), Some(&wants_retry(None)), "the last outcome is kept to look at");

    let finals = [
        (ended(Outcome::from_exit_code(1)), TaskState::Failed),
        (ended(Outcome::Denied { grant: "network".into() }), TaskState::Failed),
        (Completion::HostError { message: "no such plugin".into(), retryable: false }, TaskState::Failed),
        (ended(Outcome::Cancelled { phase: Phase::Running }), TaskState::Cancelled),
    ];
    for (completion, expected) in finals {
        let task = bench.quick();
        let lease = bench.lease(1, 1000).remove(0);
        assert_eq!(bench.complete(task, lease.fence, completion).unwrap(), expected);
    }
}

#[test]
fn a_guest_may_ask_for_a_delay_up_to_the_policys_longest() {
    let mut bench = Bench::new(limits());
    let mut task = bench.task(0, Priority::Normal);
    task.retry.backoff_max = Duration::from_millis(700);
    let task = bench.submit(task).unwrap();
    for (asked, delay) in [(300, 300), (100_000, 700)] {
        let lease = bench.lease(1, 1000).remove(0);
        assert_eq!(bench.complete(task, lease.fence, wants_retry(Some(asked))).unwrap(), TaskState::Delayed);
        bench.pass(delay - 1);
        assert_eq!(bench.state(task), TaskState::Delayed);
        bench.pass(1);
        assert_eq!(bench.state(task), TaskState::Queued);
    }
}

#[test]
fn the_deadline_covers_waiting_and_running() {
    let mut bench = Bench::new(limits());
    let deadline = |bench: &mut Bench, millis| {
        let mut task = bench.task(0, Priority::Normal);
        task.deadline = Some(from_millis(bench.now + millis));
        bench.submit(task)
    };
    assert_eq!(deadline(&mut bench, 0).unwrap_err().kind(), ErrorKind::InvalidInput);
    let running = deadline(&mut bench, 100).unwrap();
    bench.lease(1, 10_000);
    let queued = deadline(&mut bench, 100).unwrap();
    let mut delayed = bench.task(0, Priority::Normal);
    delayed.deadline = Some(from_millis(bench.now + 100));
    delayed.not_before = Some(from_millis(bench.now + 1000));
    let delayed = bench.submit(delayed).unwrap();
    bench.pass(99);
    assert_eq!(bench.state(queued), TaskState::Queued);
    bench.pass(1);
    let outcome = |record: TaskRecord| match record.completion.as_deref() {
        Some(Completion::Executed(execution)) => (record.state, Some(execution.outcome.clone())),
        _ => (record.state, None),
    };
    let expired = |used: u64, phase| {
        let resource = Resource::WallTime;
        (TaskState::Failed, Some(Outcome::QuotaExceeded { resource, limit: 100_000_000, used, phase }))
    };
    for waiting in [queued, delayed] {
        let record = bench.record(waiting);
        assert_eq!(outcome(record), expired(101_000_000, Phase::Queued));
    }
    bench.pass(499);
    assert_eq!(bench.state(running), TaskState::Running, "its worker has the grace to report");
    bench.pass(1);
    let record = bench.record(running);
    assert_eq!(outcome(record), expired(600_000_000, Phase::Running));
    assert_eq!(bench.machine.timers.len(), 1, "the outcomes' end and nothing else");
}

#[test]
fn a_retry_that_could_not_start_before_the_deadline_is_not_made() {
    let mut bench = Bench::new(limits());
    let mut task = bench.task(0, Priority::Normal);
    task.deadline = Some(from_millis(bench.now + 100));
    let task = bench.submit(task).unwrap();
    let lease = bench.lease(1, 1000).remove(0);
    assert_eq!(bench.complete(task, lease.fence, wants_retry(Some(100))).unwrap(), TaskState::Failed);
    assert_eq!(bench.record(task).completion.as_deref(), Some(&wants_retry(Some(100))));
}

#[test]
fn a_full_queue_refuses_with_advice_and_takes_again() {
    let mut limits = limits();
    (limits.tasks_max, limits.bytes_max, limits.tenant_shares) = (3, 1000, false);
    let mut bench = Bench::new(limits);
    let first = bench.quick();
    bench.quick();
    bench.quick();
    let task = bench.task(0, Priority::Normal);
    let error = bench.submit(task).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    let advice = error.retry_after().unwrap();
    assert!((Duration::from_millis(100)..=Duration::from_secs(30)).contains(&advice), "{advice:?}");
    bench.machine.cancel(bench.now, first).unwrap();
    let task = Arc::new(bench.task(0, Priority::Normal));
    let too_big = bench.machine.submit(bench.now, Arc::clone(&task), 801).unwrap_err();
    assert_eq!(too_big.kind(), ErrorKind::Exhausted);
    assert!(bench.machine.submit(bench.now, task, 800).is_ok());
}

#[test]
fn tenants_have_limits_of_their_own() {
    let mut bench = Bench::new(limits());
    let tenant = Tenant("tenant 0".into());
    let rate = |per_second, burst| Some(Rate { per_second, burst });
    let mut own = TenantLimits { running_max: Some(2), tasks_max: Some(6), ..TenantLimits::default() };
    bench.machine.set_limits(&tenant, own).unwrap();
    let tasks: Vec<_> = (0..6).map(|_| bench.quick()).collect();
    let task = bench.task(0, Priority::Normal);
    assert_eq!(bench.submit(task).unwrap_err().kind(), ErrorKind::Exhausted);
    let other = bench.task(1, Priority::Low);
    let other = bench.submit(other).unwrap();
    let leases = bench.lease(10, 10_000);
    let ids: Vec<_> = leases.iter().map(|lease| lease.task.id).collect();
    assert_eq!(ids, [tasks[0], other, tasks[1]], "two of the limited tenant, and the others are not held up");
    assert_eq!(bench.lease(10, 10_000), []);
    bench.complete(tasks[0], leases[0].fence, success()).unwrap();
    assert_eq!(bench.lease(10, 10_000).len(), 1);

    own.running_max = None;
    own.start_rate = rate(10.0, 1);
    bench.machine.set_limits(&tenant, own).unwrap();
    assert_eq!(bench.lease(10, 10_000).len(), 1);
    bench.pass(99);
    assert_eq!(bench.lease(10, 10_000).len(), 0);
    bench.pass(1);
    assert_eq!(bench.lease(10, 10_000).len(), 1, "starts above the rate wait, and go on by themselves");

    own.submit_rate = rate(1.0, 2);
    bench.machine.set_limits(&tenant, TenantLimits { tasks_max: None, ..own }).unwrap();
    bench.quick();
    bench.quick();
    let task = bench.task(0, Priority::Normal);
    let error = bench.submit(task).unwrap_err();
    assert_eq!((error.kind(), error.retry_after()), (ErrorKind::Exhausted, Some(Duration::from_secs(1))));
    bench.pass(1000);
    bench.quick();

    bench.machine.reset_limits(&tenant).unwrap();
    for _ in 0..9 {
        bench.quick();
    }
    assert!(bench.lease(99, 10_000).len() > 10, "nothing holds it back any more");
    assert_eq!(bench.machine.reset_limits(&tenant).unwrap_err().kind(), ErrorKind::NotFound);
    own.tasks_max = Some(0);
    bench.machine.set_limits(&tenant, own).unwrap();
    let task = bench.task(0, Priority::Normal);
    assert_eq!(bench.submit(task).unwrap_err().kind(), ErrorKind::Exhausted, "0 keeps a tenant out");
    let nobody = Tenant("nobody".into());
    assert_eq!(bench.machine.reset_limits(&nobody).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn tenants_are_bounded_and_idle_ones_make_room() {
    let mut limits = limits();
    limits.tenants_max = 3;
    let mut bench = Bench::new(limits);
    let tasks: Vec<_> = (0..3)
        .map(|tenant| {
            let task = bench.task(tenant, Priority::Normal);
            bench.submit(task).unwrap()
        })
        .collect();
    let fourth = bench.task(3, Priority::Normal);
    assert_eq!(bench.submit(fourth.clone()).unwrap_err().kind(), ErrorKind::Exhausted);
    bench.machine.cancel(bench.now, tasks[1]).unwrap();
    assert!(bench.submit(fourth).is_ok());
    for tenant in 100..1100 {
        bench.lease(10, 10_000).into_iter().for_each(|lease| {
            bench.complete(lease.task.id, lease.fence, success()).unwrap();
        });
        let task = bench.task(tenant, Priority::Normal);
        bench.submit(task).unwrap();
    }
    assert!(bench.machine.tenants.all.len() <= 3 && bench.machine.tenants.by_name.len() <= 3);
}

#[test]
fn the_same_key_gives_the_same_task() {
    let mut bench = Bench::new(limits());
    let keyed = |bench: &mut Bench, tenant, input: &'static [u8]| {
        let mut task = bench.task(tenant, Priority::Normal);
        task.idempotency_key = Some(IdempotencyKey("key".into()));
        task.input = Bytes::from_static(input);
        Arc::new(task)
    };
    let first = keyed(&mut bench, 0, b"a");
    let submit = |bench: &mut Bench, task: Arc<Task>| bench.machine.submit(bench.now, task, 100);
    assert!(!submit(&mut bench, Arc::clone(&first)).unwrap().duplicate);
    let again = keyed(&mut bench, 0, b"a");
    assert_eq!(submit(&mut bench, again).unwrap(), Submission { task: first.id, duplicate: true });
    assert_eq!(submit(&mut bench, Arc::clone(&first)).unwrap(), Submission { task: first.id, duplicate: true });
    let other_work = keyed(&mut bench, 0, b"b");
    assert_eq!(submit(&mut bench, other_work).unwrap_err().kind(), ErrorKind::InvalidInput);
    let other_tenant = keyed(&mut bench, 1, b"a");
    assert!(!submit(&mut bench, other_tenant).unwrap().duplicate);
    assert_eq!(bench.machine.stats().queued, 2);
    // As long as the outcome is kept, and no longer.
    bench.machine.cancel(bench.now, first.id).unwrap();
    bench.pass(3_599_999);
    let again = keyed(&mut bench, 0, b"a");
    assert!(submit(&mut bench, again).unwrap().duplicate);
    bench.pass(1);
    assert_eq!(bench.machine.get(bench.now, first.id).unwrap_err().kind(), ErrorKind::NotFound);
    let again = keyed(&mut bench, 0, b"a");
    assert!(!submit(&mut bench, again).unwrap().duplicate);
}

#[test]
fn kept_outcomes_are_bounded_in_number_and_bytes() {
    let mut limits = limits();
    (limits.results_max, limits.results_bytes_max, limits.dead_letters_max) = (3, 10_000, 2);
    let mut bench = Bench::new(limits);
    let mut finish = |completion: Completion| {
        let mut task = bench.task(0, Priority::Normal);
        task.retry.attempts_max = 1;
        let task = bench.submit(task).unwrap();
        let lease = bench.lease(1, 1000).remove(0);
        bench.complete(task, lease.fence, completion).unwrap();
        task
    };
    let tasks: Vec<_> = (0..4).map(|_| finish(success())).collect();
    let dead: Vec<_> = (0..3).map(|_| finish(wants_retry(None))).collect();
    let mut large = Execution::new(Outcome::Completed, Usage::default());
    large.output = vec![0; 9_800].into();
    let large = finish(Completion::Executed(Box::new(large)));
    let kept = |bench: &mut Bench, tasks: &[TaskId]| {
        tasks.iter().map(|task| bench.machine.get(bench.now, *task).is_ok()).collect::<Vec<_>>()
    };
    assert_eq!(kept(&mut bench, &tasks), [false, false, false, true], "one more by number, two more by bytes");
    assert_eq!(kept(&mut bench, &dead), [false, true, true]);
    assert_eq!(kept(&mut bench, &[large]), [true]);
    assert_eq!(bench.machine.slots.iter().flatten().count(), 4);
    assert_eq!(bench.machine.timers.len(), 2, "one for the results, one for the dead letters");
}

#[test]
fn each_outcome_is_kept_for_its_time_in_whatever_order_they_come() {
    let mut limits = limits();
    limits.result_time = Duration::from_millis(1000);
    let mut bench = Bench::new(limits);
    // As a journal gives them: in the order of their submission.
    let restored: Vec<_> = [300, 100, 200]
        .into_iter()
        .enumerate()
        .map(|(seq, finished)| {
            let task = bench.task(0, Priority::Normal);
            let (id, finished_at) = (task.id, START + finished);
            let completion = Some(Arc::new(success()));
            let (submitted_at, ready_at, failures, lost, state) = (START, 0, 0, 0, TaskState::Completed);
            let status = Status { state, submitted_at, ready_at, finished_at, failures, lost, completion };
            bench.machine.restore(seq as u64, Arc::new(task), 100, status, true).unwrap();
            id
        })
        .collect();
    bench.pass(500);
    let task = bench.quick();
    let lease = bench.lease(1, 1000).remove(0);
    bench.complete(task, lease.fence, success()).unwrap();
    let kept = |bench: &mut Bench| {
        let all = restored.iter().chain([&task]);
        all.map(|task| bench.machine.get(bench.now, *task).is_ok()).collect::<Vec<_>>()
    };
    for (millis, expected) in [
        (599, [true, true, true, true]),
        (1, [true, false, true, true]),
        (99, [true, false, true, true]),
        (1, [true, false, false, true]),
        (100, [false, false, false, true]),
        (199, [false, false, false, true]),
        (1, [false, false, false, false]),
    ] {
        bench.pass(millis);
        assert_eq!(kept(&mut bench), expected, "{} ms after the start", bench.now - START);
    }
    assert_eq!(bench.machine.timers.len(), 0);
    assert_eq!(bench.machine.take_forgotten().len(), 4, "all are told to the journal");
}

#[test]
fn pausing_and_draining() {
    let mut bench = Bench::new(limits());
    let task = bench.quick();
    bench.machine.set_mode(SchedulerMode::Paused);
    assert!(bench.lease(1, 1000).is_empty() && !bench.machine.has_work());
    bench.quick();
    bench.machine.set_mode(SchedulerMode::Draining);
    let refused = bench.task(0, Priority::Normal);
    assert_eq!(bench.submit(refused).unwrap_err().kind(), ErrorKind::Exhausted);
    let leases = bench.lease(10, 1000);
    assert_eq!((leases.len(), leases[0].task.id), (2, task));
    bench.machine.set_mode(SchedulerMode::Running);
    bench.quick();
}

#[test]
fn draining_takes_no_dead_letter_back_and_a_tenants_rate_holds_for_them_too() {
    let mut bench = Bench::new(limits());
    let mut dead = || {
        let mut task = bench.task(0, Priority::Normal);
        task.retry.attempts_max = 1;
        let task = bench.submit(task).unwrap();
        let lease = bench.lease(1, 1000).remove(0);
        assert_eq!(bench.complete(task, lease.fence, wants_retry(None)).unwrap(), TaskState::DeadLettered);
        task
    };
    let (one, other) = (dead(), dead());
    bench.machine.set_mode(SchedulerMode::Draining);
    let refused = bench.machine.requeue(bench.now, one).unwrap_err();
    assert_eq!((refused.kind(), refused.operation()), (ErrorKind::Exhausted, "requeue"), "{refused}");
    assert_eq!(bench.state(one), TaskState::DeadLettered);
    bench.machine.set_mode(SchedulerMode::Running);
    let own = TenantLimits { submit_rate: Some(Rate { per_second: 1.0, burst: 1 }), ..TenantLimits::default() };
    bench.machine.set_limits(&Tenant("tenant 0".into()), own).unwrap();
    assert_eq!(bench.machine.requeue(bench.now, one).unwrap(), TaskState::Queued);
    assert_eq!(bench.machine.requeue(bench.now, other).unwrap_err().kind(), ErrorKind::Exhausted);
    bench.pass(1000);
    assert_eq!(bench.machine.requeue(bench.now, other).unwrap(), TaskState::Queued);
}

#[test]
fn a_lease_that_is_given_back_started_nothing() {
    let mut bench = Bench::new(limits());
    let own = TenantLimits { start_rate: Some(Rate { per_second: 0.001, burst: 1 }), ..TenantLimits::default() };
    bench.machine.set_limits(&Tenant("tenant 0".into()), own).unwrap();
    let task = bench.quick();
    for _ in 0..3 {
        let lease = bench.lease(1, 1000).remove(0);
        bench.machine.release(bench.now, task, lease.fence).unwrap();
        bench.listen();
    }
    let lease = bench.lease(1, 1000).remove(0);
    bench.complete(task, lease.fence, success()).unwrap();
    bench.quick();
    assert_eq!(bench.lease(1, 1000), [], "what ended did start");
}

#[test]
fn a_greedy_tenant_leaves_a_part_of_the_queue() {
    for by_bytes in [false, true] {
        let mut limits = limits();
        (limits.tasks_max, limits.bytes_max) = if by_bytes { (1000, 10_000) } else { (100, 1 << 30) };
        let mut bench = Bench::new(limits);
        let mut flood = |tenant: u32| {
            let mut taken = 0;
            loop {
                let task = bench.task(tenant, Priority::Critical);
                match bench.submit(task) {
                    Ok(_) => taken += 1,
                    Err(error) => {
                        assert!(error.kind() == ErrorKind::Exhausted && error.retry_after().is_some(), "{error:?}");
                        break taken;
                    }
                }
            }
        };
        let greedy: Vec<usize> = (0..4).map(&mut flood).collect();
        assert_eq!(greedy, [50, 25, 13, 6], "each as many as are left");
        assert!(flood(7) > 0, "and some are, for the modest one");
        assert_eq!(flood(0), 0);
    }
}

#[test]
fn a_tenant_that_never_ends_leaves_places_and_short_tasks_may_have_all() {
    let mut bench = Bench::new(limits());
    let mut request = bench.request(64, 10_000);
    request.places = 8;
    let submit = |bench: &mut Bench, tenant: u32, wall_time: Option<u64>| {
        let mut task = bench.task(tenant, Priority::Normal);
        task.policy.quota.wall_time = wall_time.map(Duration::from_secs);
        bench.submit(task).unwrap()
    };
    for _ in 0..20 {
        submit(&mut bench, 0, None);
    }
    let greedy = bench.lease_as(&request);
    assert_eq!(greedy.len(), 4, "a half of the places");
    assert_eq!(bench.lease_as(&request), []);
    // Another is served at once, and then there are less for each.
    let modest = [submit(&mut bench, 1, Some(61)), submit(&mut bench, 1, Some(61))];
    let leases = bench.lease_as(&request);
    assert_eq!(leases.iter().map(|lease| lease.task.id).collect::<Vec<_>>(), modest);
    bench.complete(greedy[0].task.id, greedy[0].fence, success()).unwrap();
    assert_eq!(bench.lease_as(&request), [], "three, and three are left");
    bench.complete(modest[0], leases[0].fence, success()).unwrap();
    assert_eq!(bench.lease_as(&request).len(), 1, "as many again when another's ended");
    bench.complete(modest[1], leases[1].fence, success()).unwrap();
    // What ends soon may have what there is.
    let short: Vec<_> = (0..8).map(|_| submit(&mut bench, 2, Some(60))).collect();
    let leases = bench.lease_as(&request);
    assert_eq!(leases.iter().map(|lease| lease.task.id).collect::<Vec<_>>(), short);
    // Another worker has places of its own.
    request.worker = WorkerId(Uuid::from_u128(1));
    assert_eq!(bench.lease_as(&request).len(), 4);
    assert_eq!(bench.lease_as(&request).len(), 0);
    request.places = 0;
    assert_eq!(bench.lease_as(&request).len(), 11, "one that does not say has no shares");
}

#[test]
fn a_tenant_that_fills_what_is_kept_loses_its_own() {
    let mut limits = limits();
    (limits.results_max, limits.dead_letters_max) = (10, 10);
    let mut bench = Bench::new(limits);
    let mut finish = |tenant: u32, completion: Completion| {
        let mut task = bench.task(tenant, Priority::Normal);
        task.retry.attempts_max = 1;
        let task = bench.submit(task).unwrap();
        let lease = bench.lease(1, 1000).remove(0);
        bench.complete(task, lease.fence, completion).unwrap();
        task
    };
    let mut expected = Vec::new();
    for completion in [success(), wants_retry(None)] {
        let modest: Vec<_> = (0..3).map(|_| finish(1, completion.clone())).collect();
        let greedy: Vec<_> = (0..50).map(|_| finish(0, completion.clone())).collect();
        expected.extend(modest.into_iter().map(|task| (task, true)));
        expected.extend(greedy.into_iter().enumerate().map(|(number, task)| (task, number >= 43)));
    }
    for (task, is_kept) in expected {
        assert_eq!(bench.machine.get(bench.now, task).is_ok(), is_kept);
    }
}

/// Which is the oldest, says the time of its end, not its id, which whoever submits it chooses.
#[test]
fn the_oldest_dead_letters_go_first_whatever_their_ids() {
    let mut limits = limits();
    limits.dead_letters_max = 2;
    let mut bench = Bench::new(limits);
    let dead: Vec<_> = [30, 20, 10]
        .into_iter()
        .map(|id| {
            let mut task = bench.task(0, Priority::Normal);
            (task.id, task.retry.attempts_max) = (TaskId(Uuid::from_u128(id)), 1);
            let task = bench.submit(task).unwrap();
            let lease = bench.lease(1, 1000).remove(0);
            bench.complete(task, lease.fence, wants_retry(None)).unwrap();
            bench.pass(1);
            task
        })
        .collect();
    let kept: Vec<_> = dead.iter().map(|task| bench.machine.get(bench.now, *task).is_ok()).collect();
    assert_eq!(kept, [false, true, true]);
}

#[test]
fn a_tenants_rate_is_not_forgotten_for_others() {
    let mut limits = limits();
    limits.tenants_max = 3;
    limits.tenant.submit_rate = Some(Rate { per_second: 0.1, burst: 1 });
    let mut bench = Bench::new(limits);
    for tenant in 0..3 {
        let task = bench.task(tenant, Priority::Normal);
        let id = bench.submit(task).unwrap();
        bench.machine.cancel(bench.now, id).unwrap();
        bench.listen();
    }
    // Its name would be known anew, and have all its rate again.
    for tenant in 3..20 {
        let task = bench.task(tenant, Priority::Normal);
        assert_eq!(bench.submit(task).unwrap_err().kind(), ErrorKind::Exhausted, "{tenant}");
    }
    let task = bench.task(0, Priority::Normal);
    assert_eq!(bench.submit(task).unwrap_err().message(), "the tenant submits more often than it may");
    bench.pass(10_000);
    let task = bench.task(3, Priority::Normal);
    bench.submit(task).unwrap();
}

/// A scheduler that comes back from a crash.
fn after_crash(bench: &mut Bench, tasks: &[(TaskId, TaskState, u32)]) -> Bench {
    let was_alone = tasks.iter().filter(|(_, state, _)| *state == TaskState::Running).count() <= 1;
    let mut again = Bench::new(limits());
    again.now = bench.now;
    again.machine.advance(again.now);
    for (seq, (id, state, lost)) in tasks.iter().enumerate() {
        let mut task = bench.task(0, Priority::Normal);
        task.id = *id;
        let (state, lost) = (*state, *lost);
        let (submitted_at, ready_at, finished_at, failures, completion) = (START, 0, 0, 0, None);
        let status = Status { state, submitted_at, ready_at, finished_at, failures, lost, completion };
        again.machine.restore(seq as u64, Arc::new(task), 100, status, was_alone).unwrap();
    }
    again.listen();
    again
}

#[test]
fn who_ended_the_process_is_found_and_takes_nobody_along() {
    let mut bench = Bench::new(limits());
    let ids: Vec<_> = (1..=10).map(|id| TaskId(Uuid::from_u128(id))).collect();
    let killer = ids[4];
    let mut known: Vec<_> = ids.iter().map(|id| (*id, TaskState::Queued, 0)).collect();
    let mut crashes = 0;
    loop {
        let mut again = after_crash(&mut bench, &known);
        bench.now += 1;
        let mut running = Vec::new();
        let mut crashed = false;
        while !crashed {
            let leases = again.lease(8, 60_000);
            if leases.is_empty() {
                break;
            }
            running = leases.iter().map(|lease| lease.task.id).collect();
            crashed = running.contains(&killer);
            if !crashed {
                for lease in leases {
                    again.complete(lease.task.id, lease.fence, success()).unwrap();
                }
            }
        }
        crashes += usize::from(crashed);
        assert!(crashes <= 3, "three times, as before there was company");
        known = known
            .iter()
            .map(|(id, ..)| {
                let record = again.record(*id);
                let state = if crashed && running.contains(id) { TaskState::Running } else { record.state };
                (*id, state, record.lost)
            })
            .filter(|(_, state, _)| *state != TaskState::Completed)
            .collect();
        if !crashed {
            break;
        }
    }
    assert_eq!(crashes, 3);
    assert_eq!(known, [(killer, TaskState::DeadLettered, 3)], "all others are completed");
}

#[test]
fn only_who_was_alone_counts_as_the_one_that_ended_the_process() {
    let mut bench = Bench::new(limits());
    let ids: Vec<_> = (1..=3).map(|id| TaskId(Uuid::from_u128(id))).collect();
    let beside = [(ids[0], TaskState::Running, 2), (ids[1], TaskState::Running, 22), (ids[2], TaskState::Running, 23)];
    let mut again = after_crash(&mut bench, &beside);
    let states: Vec<_> = ids.iter().map(|id| again.state(*id)).collect();
    assert_eq!(states, [TaskState::Queued, TaskState::Queued, TaskState::DeadLettered], "but not for ever");
    let alone = [(ids[0], TaskState::Running, 2), (ids[1], TaskState::Queued, 23)];
    let mut again = after_crash(&mut bench, &alone);
    assert_eq!([again.state(ids[0]), again.state(ids[1])], [TaskState::DeadLettered, TaskState::Queued]);
}

#[test]
fn nothing_is_held_up_for_a_suspect_that_nobody_has_room_for() {
    let mut bench = Bench::new(limits());
    let ids: Vec<_> = (1..=2).map(|id| TaskId(Uuid::from_u128(id))).collect();
    let mut bench = after_crash(&mut bench, &[(ids[0], TaskState::Running, 0), (ids[1], TaskState::Running, 0)]);
    bench.ids = 100;
    let other = |bench: &mut Bench| {
        let mut task = bench.task(1, Priority::Normal);
        task.plugin = plugin(1);
        bench.submit(task).unwrap()
    };
    for _ in 0..3 {
        let task = other(&mut bench);
        let leases = bench.lease_with_room(8, 60_000, &[(0, 0)]);
        assert_eq!(leases.iter().map(|lease| lease.task.id).collect::<Vec<_>>(), [task]);
    }
    assert_eq!(bench.machine.stats().queued, 2);
    // Who has room holds the others up, until one of them can be alone.
    other(&mut bench);
    assert_eq!(bench.lease(8, 60_000), []);
    bench.pass(10_000);
    assert_eq!(bench.lease(8, 60_000)[0].task.id, ids[0]);
}

#[test]
fn suspects_and_others_take_turns() {
    let mut bench = Bench::new(limits());
    let ids: Vec<_> = (1..=3).map(|id| TaskId(Uuid::from_u128(id))).collect();
    let states = [(ids[0], TaskState::Running, 0), (ids[1], TaskState::Running, 0), (ids[2], TaskState::Queued, 0)];
    let mut bench = after_crash(&mut bench, &states);
    bench.ids = 100;
    assert_eq!(bench.machine.stats().queued, 3);
    let alone = bench.lease(8, 100_000);
    assert_eq!(alone.iter().map(|lease| lease.task.id).collect::<Vec<_>>(), [ids[0]]);
    assert_eq!(bench.lease(8, 100_000), [], "nothing is started beside it");
    bench.pass(9_999);
    assert_eq!(bench.lease(8, 100_000), []);
    bench.pass(1);
    let beside = bench.lease(8, 100_000).remove(0);
    assert_eq!(beside.task.id, ids[2], "it is well, and has company again");
    bench.complete(ids[0], alone[0].fence, success()).unwrap();
    // Now it is the others' turn, as long as it was the first one's.
    let later = bench.quick();
    let second = bench.lease(8, 100_000).remove(0);
    assert_eq!(second.task.id, later);
    bench.pass(9_999);
    bench.quick();
    assert_eq!(bench.lease(8, 100_000).len(), 1);
    bench.pass(1);
    let waiting = bench.quick();
    assert_eq!(bench.lease(8, 100_000), [], "then nothing is started until it can be alone");
    assert_eq!(bench.state(waiting), TaskState::Queued);
    // Who does not end has it beside it at last.
    bench.pass(10_000);
    let leases = bench.lease(8, 100_000);
    assert_eq!(leases.iter().map(|lease| lease.task.id).collect::<Vec<_>>(), [ids[1]]);
    assert_eq!(bench.lease(8, 100_000)[0].task.id, waiting);
    // Cancelled or given back, it leaves nothing.
    bench.machine.release(bench.now, ids[1], leases[0].fence).unwrap();
    bench.listen();
    bench.machine.cancel(bench.now, ids[1]).unwrap();
    bench.listen();
    assert!(bench.machine.suspects.is_empty());
    assert_eq!(bench.machine.stats().queued, 0);
}

#[derive(Debug, Clone)]
enum Step {
    Submit { class: usize, tenant: u32, plugin: u32, delay: u64, deadline: Option<u64> },
    Lease { tasks_max: usize, millis: u64, room: Vec<(u32, usize)> },
    Complete { which: usize, how: u8, late: bool },
    Renew(usize),
    Release(usize),
    Cancel(usize),
    Requeue,
    Pass(u64),
    Pause(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let delay = prop_oneof![Just(0), 1..2000u64];
    let deadline = prop::option::weighted(0.2, 1..3000u64);
    prop_oneof![
        6 => (0..4usize, 0..4u32, 0..3u32, delay, deadline)
            .prop_map(|(class, tenant, plugin, delay, deadline)| Step::Submit { class, tenant, plugin, delay, deadline }),
        4 => (1..5usize, 1..1500u64, prop::collection::vec((0..3u32, 0..3usize), 0..3))
            .prop_map(|(tasks_max, millis, room)| Step::Lease { tasks_max, millis, room }),
        4 => (any::<usize>(), 0..4u8, prop::bool::weighted(0.1))
            .prop_map(|(which, how, late)| Step::Complete { which, how, late }),
        1 => any::<usize>().prop_map(Step::Renew),
        1 => any::<usize>().prop_map(Step::Release),
        1 => any::<usize>().prop_map(Step::Cancel),
        1 => Just(Step::Requeue),
        3 => prop_oneof![1..50u64, 1..3000u64].prop_map(Step::Pass),
        1 => any::<bool>().prop_map(Step::Pause),
    ]
}

/// What the model knows of a task. Everything is plain values; nothing is linked.
#[derive(Debug, Clone)]
struct Known {
    class: Priority,
    tenant: u32,
    plugin: u32,
    deadline: Option<Millis>,
    state: TaskState,
    failures: u32,
    lost: u32,
    ready_at: Millis,
    fence: Fence,
    /// Since it lined up last; 0 for none.
    first_fence: u64,
    lease_end: Millis,
    /// Place in its line; smaller comes first.
    order: i64,
}

impl Known {
    /// Its order when it is given back: in front of all, by when it was first leased.
    fn front(&self) -> i64 {
        i64::MIN + self.first_fence as i64
    }
}

/// Tasks the limited tenant 0 may have running.
const RUNNING_MAX: usize = 2;

#[derive(Default)]
struct Model {
    tasks: BTreeMap<TaskId, Known>,
    fences: Vec<(TaskId, Fence)>,
    orders: i64,
    paused: bool,
}

impl Model {
    fn running(&self, tenant: u32) -> usize {
        self.tasks.values().filter(|task| task.tenant == tenant && task.state == TaskState::Running).count()
    }

    fn may_start(&self, task: &Known) -> bool {
        task.state == TaskState::Queued && (task.tenant != 0 || self.running(0) < RUNNING_MAX)
    }

    fn pass(&mut self, now: Millis) {
        // Leases and delays end in the order of their times, and so their tasks line up.
        let mut due: Vec<_> = self
            .tasks
            .iter()
            .filter_map(|(id, task)| match task.state {
                TaskState::Running if task.lease_end <= now => Some((task.lease_end, *id)),
                TaskState::Delayed if task.ready_at <= now => Some((task.ready_at, *id)),
                _ => None,
            })
            .collect();
        due.sort();
        // Of what is due at the same moment, any may come first.
        let mut moment = 0;
        for (at, id) in due {
            let order = if at == moment { self.orders } else { self.next_order() };
            moment = at;
            if let Some(task) = self.tasks.get_mut(&id) {
                if task.state == TaskState::Delayed {
                    (task.state, task.order) = (TaskState::Queued, order);
                } else if task.deadline.is_some_and(|deadline| deadline <= now) {
                    task.state = TaskState::Failed;
                } else {
                    task.lost += 1;
                    task.order = task.front();
                    task.state = if task.lost == 3 { TaskState::DeadLettered } else { TaskState::Queued };
                }
            }
        }
        for task in self.tasks.values_mut() {
            let waits = matches!(task.state, TaskState::Queued | TaskState::Delayed);
            if waits && task.deadline.is_some_and(|deadline| deadline <= now) {
                task.state = TaskState::Failed;
            }
        }
    }

    fn next_order(&mut self) -> i64 {
        self.orders += 1;
        self.orders
    }
}

fn check(bench: &mut Bench, model: &Model) -> Result<(), TestCaseError> {
    for (id, known) in &model.tasks {
        let record = bench.record(*id);
        prop_assert_eq!(
            (record.state, record.failures, record.lost),
            (known.state, known.failures, known.lost),
            "{:?}",
            known
        );
        prop_assert_eq!(bench.outcomes.contains_key(id), known.state.is_final());
        prop_assert_eq!(record.finished_at.is_some(), known.state.is_final());
    }
    let count = |state| model.tasks.values().filter(|task| task.state == state).count() as u64;
    let stats = bench.machine.stats();
    prop_assert_eq!(stats.queued, count(TaskState::Queued));
    prop_assert_eq!(stats.delayed, count(TaskState::Delayed));
    prop_assert_eq!(stats.running, count(TaskState::Running));
    prop_assert_eq!(stats.dead_lettered, count(TaskState::DeadLettered));
    let of_all = |figure: fn(&TenantReport) -> u64| bench.machine.tenants(None, 100).iter().map(figure).sum::<u64>();
    let of_all = [of_all(|tenant| tenant.queued), of_all(|tenant| tenant.delayed), of_all(|tenant| tenant.running)];
    prop_assert_eq!(of_all, [stats.queued, stats.delayed, stats.running]);
    Ok(())
}

fn apply(bench: &mut Bench, model: &mut Model, step: Step) -> Result<(), TestCaseError> {
    match step {
        Step::Submit { class, tenant, plugin, delay, deadline } => {
            let mut task = bench.task(tenant, Priority::ALL[class]);
            task.plugin = self::plugin(plugin);
            task.not_before = (delay > 0).then(|| from_millis(bench.now + delay));
            task.deadline = deadline.map(|deadline| from_millis(bench.now + deadline));
            let known = Known {
                class: task.priority,
                tenant,
                plugin,
                deadline: deadline.map(|deadline| bench.now + deadline),
                state: if delay > 0 { TaskState::Delayed } else { TaskState::Queued },
                failures: 0,
                lost: 0,
                ready_at: bench.now + delay,
                fence: Fence(0),
                first_fence: 0,
                lease_end: 0,
                order: model.next_order(),
            };
            let id = bench.submit(task).expect("the queue is never full here");
            model.tasks.insert(id, known);
        }
        Step::Lease { tasks_max, millis, room } => {
            let leases = bench.lease_with_room(tasks_max, millis, &room);
            let mut left = [usize::MAX; 3];
            for (plugin, room) in room {
                left[plugin as usize] = room.min(left[plugin as usize]);
            }
            for lease in &leases {
                let known = model.tasks[&lease.task.id].clone();
                prop_assert!(model.may_start(&known) && !model.paused, "{:?}", known);
                prop_assert!(left[known.plugin as usize] > 0, "no room for {:?}", known);
                let line = model.tasks.values().filter(|other| {
                    (other.class, other.tenant, other.state) == (known.class, known.tenant, TaskState::Queued)
                        && left[other.plugin as usize] > 0
                });
                let first = line.map(|other| other.order).min();
                prop_assert_eq!(first, Some(known.order), "first come, first served");
                left[known.plugin as usize] -= 1;
                prop_assert!(model.fences.iter().all(|(_, fence)| *fence < lease.fence), "fences only grow");
                model.fences.push((lease.task.id, lease.fence));
                let grace = known.deadline.map_or(Millis::MAX, |deadline| deadline + 500);
                if let Some(task) = model.tasks.get_mut(&lease.task.id) {
                    task.state = TaskState::Running;
                    task.fence = lease.fence;
                    if task.first_fence == 0 {
                        task.first_fence = lease.fence.0;
                    }
                    task.lease_end = (bench.now + millis).min(grace);
                    prop_assert_eq!(lease.expires_at, from_millis(task.lease_end));
                }
            }
            if leases.len() < tasks_max && !model.paused {
                let waits = |task: &&Known| model.may_start(task) && left[task.plugin as usize] > 0;
                let waiting = model.tasks.values().find(waits);
                prop_assert!(waiting.is_none(), "left waiting: {:?}", waiting);
            }
        }
        Step::Complete { which, how, late } => {
            let Some((id, fence)) = model.fences.get(which % model.fences.len().max(1)).copied() else { return Ok(()) };
            let fence = if late { Fence(fence.0.wrapping_sub(1)) } else { fence };
            let completion = match how {
                0 => success(),
                1 => ended(Outcome::from_exit_code(1)),
                _ => wants_retry(Some(u64::from(how) * 100)),
            };
            let answer = bench.complete(id, fence, completion);
            let order = model.next_order();
            let known = model.tasks.get_mut(&id).expect("the model knows what was leased");
            if known.state != TaskState::Running || known.fence != fence {
                prop_assert_eq!(answer.unwrap_err().kind(), ErrorKind::Stale);
                return Ok(());
            }
            known.ready_at = bench.now + u64::from(how) * 100;
            known.failures += u32::from(how > 0);
            (known.order, known.first_fence) = (order, 0);
            known.state = match how {
                0 => TaskState::Completed,
                1 => TaskState::Failed,
                _ if known.deadline.is_some_and(|deadline| bench.now >= deadline) => TaskState::Failed,
                _ if known.failures == 3 => TaskState::DeadLettered,
                _ if known.deadline.is_some_and(|deadline| known.ready_at >= deadline) => TaskState::Failed,
                _ => TaskState::Delayed,
            };
            prop_assert_eq!(answer.unwrap(), known.state);
        }
        Step::Renew(which) => {
            let Some((id, fence)) = model.fences.get(which % model.fences.len().max(1)).copied() else { return Ok(()) };
            let answer = bench.machine.renew(bench.now, id, fence, Duration::from_millis(777));
            let known = model.tasks.get_mut(&id).expect("the model knows what was leased");
            if known.state == TaskState::Running && known.fence == fence {
                let grace = known.deadline.map_or(Millis::MAX, |deadline| deadline + 500);
                known.lease_end = (bench.now + 777).min(grace);
                prop_assert_eq!(answer.unwrap(), known.lease_end);
            } else {
                prop_assert_eq!(answer.unwrap_err().kind(), ErrorKind::Stale);
            }
        }
        Step::Release(which) => {
            let Some((id, fence)) = model.fences.get(which % model.fences.len().max(1)).copied() else { return Ok(()) };
            let answer = bench.machine.release(bench.now, id, fence);
            bench.listen();
            let known = model.tasks.get_mut(&id).expect("the model knows what was leased");
            if known.state == TaskState::Running && known.fence == fence {
                prop_assert!(answer.is_ok());
                (known.state, known.order) = (TaskState::Queued, known.front());
                // One whose deadline passed meanwhile ends with the next millisecond; the model says at once.
                let (now, after) = (bench.now, bench.now + 1);
                if known.deadline.is_some_and(|deadline| deadline <= after) {
                    bench.pass(after - now);
                    model.pass(after);
                }
            } else {
                prop_assert_eq!(answer.unwrap_err().kind(), ErrorKind::Stale);
            }
        }
        Step::Cancel(which) => {
            let Some(id) = model.tasks.keys().nth(which % model.tasks.len().max(1)).copied() else { return Ok(()) };
            let answer = bench.machine.cancel(bench.now, id).unwrap();
            bench.listen();
            let known = model.tasks.get_mut(&id).expect("it was just there");
            if !known.state.is_final() {
                known.state = TaskState::Cancelled;
            }
            prop_assert_eq!(answer, known.state, "cancelling what ended changes nothing");
        }
        Step::Requeue => {
            let dead = model.tasks.iter().find(|(_, task)| task.state == TaskState::DeadLettered);
            let Some(id) = dead.map(|(id, _)| *id) else { return Ok(()) };
            let answer = bench.machine.requeue(bench.now, id);
            bench.listen();
            let order = model.next_order();
            let known = model.tasks.get_mut(&id).expect("it was just there");
            if known.deadline.is_some_and(|deadline| deadline <= bench.now) {
                prop_assert_eq!(answer.unwrap_err().kind(), ErrorKind::InvalidInput);
            } else {
                prop_assert_eq!(answer.unwrap(), TaskState::Queued);
                (known.state, known.failures, known.lost, known.order) = (TaskState::Queued, 0, 0, order);
                known.first_fence = 0;
            }
        }
        Step::Pass(millis) => {
            bench.pass(millis);
            model.pass(bench.now);
        }
        Step::Pause(paused) => {
            model.paused = paused;
            bench.machine.set_mode(if paused { SchedulerMode::Paused } else { SchedulerMode::Running });
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is done in whatever order: the machine is where the model is, outcomes come once, and in the end every
    /// task has one.
    #[test]
    fn behaves_like_the_model(steps in prop::collection::vec(step(), 1..150)) {
        let mut bench = Bench::new(limits());
        let mut model = Model::default();
        let limited = TenantLimits { running_max: Some(RUNNING_MAX as u32), ..TenantLimits::default() };
        bench.machine.set_limits(&Tenant("tenant 0".into()), limited).unwrap();
        for step in steps {
            apply(&mut bench, &mut model, step)?;
            check(&mut bench, &model)?;
        }
        bench.machine.set_mode(SchedulerMode::Running);
        for _ in 0..10_000 {
            let leases = bench.lease(10, 100);
            for lease in &leases {
                bench.complete(lease.task.id, lease.fence, success()).unwrap();
            }
            if leases.is_empty() {
                bench.pass(1000);
            }
            let stats = bench.machine.stats();
            if stats.queued + stats.delayed + stats.running == 0 {
                break;
            }
        }
        for id in model.tasks.keys() {
            prop_assert!(bench.state(*id).is_final());
            prop_assert_eq!(bench.outcomes.get(id), Some(&1));
        }
        prop_assert_eq!(bench.machine.live.tasks, 0);
        prop_assert_eq!(bench.machine.live.bytes, 0);
        bench.pass(8 * 24 * 3600 * 1000);
        prop_assert_eq!(bench.machine.slots.iter().flatten().count(), 0, "everything is forgotten in the end");
        prop_assert_eq!(bench.machine.timers.len(), 0);
        prop_assert_eq!((bench.machine.results.len(), bench.machine.dead_letters.len()), (0, 0));
        prop_assert!(bench.machine.by_id.is_empty() && bench.machine.dead.is_empty());
    }
}
