//! The scheduler's async face, in memory.

mod support;

use std::collections::HashSet;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use palisade_core::{
    ArtifactHash, Completion, ErrorKind, LeaseRequest, Outcome, Phase, PluginLimit, Priority, Report, Scheduler,
    SchedulerMode, TaskId, TaskQuery, TaskState, Tenant, block_on,
};
use palisade_fabric::{Clock, LocalScheduler, PrometheusSink, RecordingSink, SchedulerOptions};
use support::{again, ended, ids, request, success, task};

fn manual(change: impl FnOnce(&mut SchedulerOptions)) -> (LocalScheduler, Clock) {
    let clock = Clock::manual();
    let mut options = SchedulerOptions::default();
    (options.clock, options.seed) = (clock.clone(), Some(1));
    change(&mut options);
    (LocalScheduler::open(options).unwrap(), clock)
}

/// Counts how often it was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Woken {
    fn times(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

#[test]
fn a_waiting_worker_is_woken_once_and_a_dropped_one_takes_nothing() {
    let (scheduler, _) = manual(|_| {});
    let (first, second) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
    let (first_waker, second_waker) = (Waker::from(Arc::clone(&first)), Waker::from(Arc::clone(&second)));
    let mut waits = Box::pin(scheduler.lease(request(1)));
    let mut also_waits = Box::pin(scheduler.lease(request(1)));
    assert!(waits.as_mut().poll(&mut Context::from_waker(&first_waker)).is_pending());
    assert!(also_waits.as_mut().poll(&mut Context::from_waker(&second_waker)).is_pending());
    let submitted = block_on(scheduler.submit(task("a"))).unwrap().task;
    assert_eq!((first.times(), second.times()), (1, 0), "one task wakes one worker");
    // It was told and goes away: the next one hears of it.
    drop(waits);
    assert_eq!(second.times(), 1);
    let Poll::Ready(leases) = also_waits.as_mut().poll(&mut Context::from_waker(&second_waker)) else {
        panic!("the task is there")
    };
    assert_eq!(ids(&leases.unwrap()), [submitted]);
}

/// A request of a worker that has no room for tasks of a plugin.
fn without_room_for(plugin: ArtifactHash) -> LeaseRequest {
    LeaseRequest { plugin_limits: [PluginLimit { plugin, tasks_max: 0 }].into(), ..request(1) }
}

#[test]
fn a_task_that_comes_due_under_a_worker_without_room_for_it_wakes_another() {
    let (scheduler, clock) = manual(|_| {});
    let mut later = task("later");
    later.not_before = Some(clock.now() + Duration::from_secs(1));
    let id = block_on(scheduler.submit(later)).unwrap().task;
    for others in [request(1), without_room_for(ArtifactHash::of(b"another"))] {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut waits = Box::pin(scheduler.lease(others));
        assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        clock.advance(Duration::from_secs(1));
        let mut busy = Box::pin(scheduler.lease(without_room_for(task("").plugin)));
        for _ in 0..10 {
            assert!(busy.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        assert!((1..=3).contains(&woken.times()), "woken {} times", woken.times());
        let Poll::Ready(leases) = waits.as_mut().poll(&mut Context::from_waker(&waker)) else { panic!("it is due") };
        let lease = leases.unwrap().remove(0);
        assert_eq!(lease.task.id, id);
        let completion = again(Duration::from_secs(1));
        block_on(scheduler.complete(id, lease.fence, completion)).unwrap();
    }
}

#[test]
fn a_worker_without_room_for_a_task_is_not_woken_in_place_of_another() {
    for wanting in [request(1), without_room_for(ArtifactHash::of(b"another"))] {
        let (scheduler, _) = manual(|_| {});
        let plugin = task("").plugin;
        let woken: Vec<_> = (0..3).map(|_| Arc::new(Woken::default())).collect();
        let wakers: Vec<_> = woken.iter().map(|woken| Waker::from(Arc::clone(woken))).collect();
        let requests = [without_room_for(plugin), wanting, without_room_for(plugin)];
        let mut waits: Vec<_> = requests.into_iter().map(|request| scheduler.lease(request)).collect();
        let mut poll = |at: usize| waits[at].as_mut().poll(&mut Context::from_waker(&wakers[at]));
        assert!((0..3).all(|at| poll(at).is_pending()));
        let submitted = block_on(scheduler.submit(task("a"))).unwrap().task;
        for busy in [0, 2, 0, 2] {
            assert!(poll(busy).is_pending());
        }
        assert_eq!(woken[1].times(), 1);
        assert!(woken[0].times() <= 1 && woken[2].times() <= 1, "they do not wake each other");
        let Poll::Ready(leases) = poll(1) else { panic!("the task is there") };
        assert_eq!(ids(&leases.unwrap()), [submitted]);
    }
}

#[test]
fn many_tasks_nobody_has_room_for_hide_none_behind_them() {
    let (scheduler, _) = manual(|_| {});
    let mut unwanted = Vec::new();
    for _ in 0..3000 {
        unwanted.push(block_on(scheduler.submit(task("many"))).unwrap().task);
    }
    let mut other = task("other");
    other.plugin = ArtifactHash::of(b"another");
    let other = block_on(scheduler.submit(other)).unwrap().task;
    let busy = without_room_for(task("").plugin);
    let mut context = Context::from_waker(Waker::noop());
    let Poll::Ready(leases) = pin!(scheduler.lease(busy.clone())).poll(&mut context) else { panic!("it is there") };
    assert_eq!(ids(&leases.unwrap()), [other]);
    assert!(pin!(scheduler.lease(busy)).poll(&mut context).is_pending());
    let mut rest = Vec::new();
    while rest.len() < unwanted.len() {
        rest.extend(ids(&block_on(scheduler.lease(request(100))).unwrap()));
    }
    assert!(rest == unwanted, "not in their order");
}

#[test]
fn workers_that_can_do_nothing_do_not_wake_each_other() {
    let (scheduler, _) = manual(|options| options.limits.tenant.running_max = Some(1));
    block_on(async {
        for input in ["a", "b"] {
            scheduler.submit(task(input)).await.unwrap();
        }
        assert_eq!(scheduler.lease(request(5)).await.unwrap().len(), 1);
    });
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut waits = Box::pin(scheduler.lease(request(1)));
    for _ in 0..10 {
        assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }
    assert!(woken.times() <= 1, "woken {} times by itself", woken.times());
}

#[test]
fn waiting_for_an_outcome() {
    let (scheduler, clock) = manual(|_| {});
    block_on(async {
        let submitted = scheduler.submit(task("a")).await.unwrap().task;
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut waits = pin!(scheduler.wait(submitted));
        assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop(Box::pin(scheduler.wait(submitted)));
        let lease = scheduler.lease(request(1)).await.unwrap().remove(0);
        assert_eq!(woken.times(), 0);
        // Cancelling a running task ends it at once; its worker hears of it by waiting too.
        assert_eq!(scheduler.cancel(submitted).await.unwrap(), TaskState::Cancelled);
        assert_eq!(woken.times(), 1);
        let record = waits.await.unwrap();
        assert_eq!(record.state, TaskState::Cancelled);
        assert_eq!(record.completion.as_deref(), Some(&ended(Outcome::Cancelled { phase: Phase::Running })));
        assert_eq!(record.finished_at, Some(clock.now()));
        assert_eq!(scheduler.cancel(submitted).await.unwrap(), TaskState::Cancelled);
        let late = scheduler.complete(submitted, lease.fence, success()).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Stale);
        assert!(late.to_string().contains("stop working on it"), "{late}");
        let unknown = scheduler.wait(task("never submitted").id).await.unwrap_err();
        assert_eq!(unknown.kind(), ErrorKind::NotFound);
    });
}

#[test]
fn time_is_the_clocks() {
    let (scheduler, clock) = manual(|_| {});
    block_on(async {
        let mut later = task("later");
        later.not_before = Some(clock.now() + Duration::from_secs(60));
        let later = scheduler.submit(later).await.unwrap().task;
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut waits = pin!(scheduler.lease(request(1)));
        assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        clock.advance(Duration::from_millis(59_999));
        scheduler.tick();
        assert_eq!(woken.times(), 0);
        clock.advance(Duration::from_millis(1));
        scheduler.tick();
        assert_eq!(woken.times(), 1);
        let lease = waits.await.unwrap().remove(0);
        assert_eq!(lease.task.id, later);
        assert_eq!(lease.expires_at, clock.now() + Duration::from_secs(30));
        clock.advance(Duration::from_secs(29));
        let renewed = scheduler.renew(later, lease.fence, Duration::from_secs(30)).await.unwrap();
        assert_eq!(renewed, clock.now() + Duration::from_secs(30));
        clock.advance(Duration::from_secs(30));
        assert_eq!(scheduler.get(later).await.unwrap().state, TaskState::Queued);
        assert_eq!(scheduler.get(later).await.unwrap().lost, 1);
    });
}

#[test]
fn with_the_systems_clock_things_happen_by_themselves() {
    let scheduler = LocalScheduler::open(SchedulerOptions::default()).unwrap();
    block_on(async {
        let submitted = scheduler.submit(task("a")).await.unwrap().task;
        let mut short = request(1);
        short.lease_time = Duration::from_millis(20);
        let lost = scheduler.lease(short).await.unwrap().remove(0);
        // Nothing but the timer's thread can bring it back.
        let again_leased = scheduler.lease(request(1)).await.unwrap().remove(0);
        assert_eq!((again_leased.task.id, again_leased.attempt), (submitted, 2));
        assert!(again_leased.fence > lost.fence);
        scheduler.complete(submitted, again_leased.fence, again(Duration::from_millis(20))).await.unwrap();
        let third = scheduler.lease(request(1)).await.unwrap().remove(0);
        assert_eq!(third.attempt, 3);
        scheduler.complete(submitted, third.fence, success()).await.unwrap();
        let mut hopeless = task("b");
        hopeless.deadline = Some(std::time::SystemTime::now() + Duration::from_millis(300));
        scheduler.set_mode(SchedulerMode::Paused).await.unwrap();
        let hopeless = scheduler.submit(hopeless).await.unwrap().task;
        assert_eq!(scheduler.wait(hopeless).await.unwrap().state, TaskState::Failed);
    });
}

#[test]
fn the_same_steps_and_seed_give_the_same_order() {
    let run = || {
        let (scheduler, clock) = manual(|_| {});
        let mut order = Vec::new();
        block_on(async {
            for number in 0..300u32 {
                let mut one = task(number.to_le_bytes().to_vec());
                one.priority = Priority::ALL[number as usize % 4];
                one.tenant = Tenant(format!("tenant {}", number % 7));
                scheduler.submit(one).await.unwrap();
            }
            for step in 0.. {
                clock.advance(Duration::from_millis(10));
                scheduler.tick();
                let stats = scheduler.stats();
                if stats.queued == 0 {
                    if stats.delayed == 0 {
                        break;
                    }
                    continue;
                }
                for lease in scheduler.lease(request(3)).await.unwrap() {
                    let number = u32::from_le_bytes(lease.task.input[..].try_into().unwrap());
                    order.push((number, lease.fence));
                    let how = if (number + step) % 3 == 0 {
                        ended(Outcome::Crashed { message: String::new() })
                    } else {
                        success()
                    };
                    scheduler.complete(lease.task.id, lease.fence, how).await.unwrap();
                }
            }
        });
        order
    };
    let order = run();
    assert!(order.len() > 300, "some were tried again");
    assert_eq!(order, run());
}

#[test]
fn the_dead_letter_queue_is_listed_in_pages() {
    let (scheduler, _) = manual(|_| {});
    block_on(async {
        let mut dead = Vec::new();
        for number in 0..5 {
            let mut one = task(format!("{number}"));
            one.retry.attempts_max = 1;
            dead.push(scheduler.submit(one).await.unwrap().task);
            let lease = scheduler.lease(request(1)).await.unwrap().remove(0);
            let state = scheduler.complete(lease.task.id, lease.fence, again(Duration::ZERO)).await.unwrap();
            assert_eq!(state, TaskState::DeadLettered);
        }
        dead.sort();
        let mut listed = Vec::new();
        while let page = scheduler.dead_letters(listed.last().copied(), 2).await.unwrap()
            && !page.is_empty()
        {
            assert!(page.len() <= 2);
            listed.extend(page.iter().map(|record| record.task.id));
        }
        assert_eq!(listed, dead);
        assert_eq!(scheduler.requeue(dead[3]).await.unwrap(), TaskState::Queued);
        assert_eq!(scheduler.requeue(dead[3]).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(scheduler.dead_letters(None, 10).await.unwrap().len(), 4);
        let lease = scheduler.lease(request(1)).await.unwrap().remove(0);
        assert_eq!((lease.task.id, lease.attempt), (dead[3], 1));
        assert_eq!(scheduler.complete(dead[3], lease.fence, success()).await.unwrap(), TaskState::Completed);
    });
}

/// All pages of a list, and the largest.
async fn listed(scheduler: &LocalScheduler, mut query: TaskQuery) -> (Vec<TaskId>, usize) {
    let (mut all, mut largest) = (Vec::new(), 0);
    loop {
        let page = scheduler.list(query.clone()).await.unwrap();
        largest = largest.max(page.tasks.len());
        all.extend(page.tasks.iter().map(|record| record.task.id));
        let Some(next) = page.next else { return (all, largest) };
        assert!(query.before.is_none_or(|before| next < before), "each page goes on");
        query.before = Some(next);
    }
}

#[test]
fn tasks_are_listed_in_pages_latest_first_and_filtered() {
    let (scheduler, _) = manual(|_| {});
    block_on(async {
        let mut tasks = Vec::new();
        for number in 0..7 {
            let mut one = task(format!("{number}"));
            one.tenant = Tenant(if number % 2 == 0 { "even" } else { "odd" }.to_owned());
            if number == 6 {
                one.plugin = ArtifactHash::of(b"another");
            }
            tasks.push(scheduler.submit(one).await.unwrap().task);
        }
        let lease = scheduler.lease(request(1)).await.unwrap().remove(0);
        assert_eq!(lease.task.id, tasks[0]);
        scheduler.complete(tasks[0], lease.fence, success()).await.unwrap();
        let picked = |numbers: &[usize]| numbers.iter().map(|number| tasks[*number]).collect::<Vec<_>>();
        let query = TaskQuery { tasks_max: 2, ..TaskQuery::default() };
        assert_eq!(listed(&scheduler, query.clone()).await, (picked(&[6, 5, 4, 3, 2, 1, 0]), 2));
        assert_eq!(listed(&scheduler, TaskQuery { tasks_max: 0, ..query.clone() }).await.1, 1);
        assert_eq!(listed(&scheduler, TaskQuery { tasks_max: 7, ..query.clone() }).await.1, 7);
        let odd = TaskQuery { tenant: Some(Tenant("odd".to_owned())), ..query.clone() };
        assert_eq!(listed(&scheduler, odd).await.0, picked(&[5, 3, 1]));
        let another = TaskQuery { plugin: Some(ArtifactHash::of(b"another")), ..query.clone() };
        assert_eq!(listed(&scheduler, another).await.0, picked(&[6]));
        let states = vec![TaskState::Completed, TaskState::Failed];
        assert_eq!(listed(&scheduler, TaskQuery { states, ..query.clone() }).await.0, picked(&[0]));
        let before = TaskQuery { before: Some(tasks[2]), ..query };
        assert_eq!(listed(&scheduler, before).await.0, picked(&[1, 0]));
    });
}

#[test]
fn figures_are_told() {
    let sink = Arc::new(RecordingSink::new());
    let (scheduler, clock) = manual(|options| {
        options.metrics = Arc::clone(&sink) as _;
        options.tenant_labels_max = 1;
        (options.limits.tasks_max, options.limits.tenant_shares) = (3, false);
    });
    block_on(async {
        for tenant in ["a", "b", "b"] {
            let mut one = task(tenant);
            (one.tenant, one.priority) = (Tenant(tenant.into()), Priority::High);
            scheduler.submit(one).await.unwrap();
        }
        let queued = |tenant| sink.value("palisade_tenant_queue_tasks", &[("tenant", tenant)]);
        assert_eq!(["a", "b", "other"].map(queued), [Some(1.0), None, Some(2.0)]);
        assert!(scheduler.submit(task("too many")).await.is_err());
        let mut malformed = task("");
        malformed.retry.attempts_max = 0;
        assert!(scheduler.submit(malformed).await.is_err());
        clock.advance(Duration::from_millis(1500));
        let leases = scheduler.lease(request(10)).await.unwrap();
        let high = [("class", "high")];
        assert_eq!(sink.value("palisade_queue_tasks", &high), Some(0.0));
        assert_eq!(sink.value("palisade_running_tasks", &[]), Some(3.0));
        assert_eq!(["a", "b", "other"].map(queued), [Some(0.0), None, Some(0.0)]);
        scheduler.complete(leases[0].task.id, leases[0].fence, success()).await.unwrap();
        scheduler.complete(leases[1].task.id, leases[1].fence, again(Duration::from_secs(9))).await.unwrap();
        assert!(scheduler.complete(leases[1].task.id, leases[1].fence, success()).await.is_err());
        clock.advance(Duration::from_secs(30));
        scheduler.tick();
        assert_eq!(sink.value("palisade_tasks_submitted_total", &high), Some(3.0));
        assert_eq!(sink.value("palisade_submissions_refused_total", &[("reason", "exhausted")]), Some(1.0));
        assert_eq!(sink.value("palisade_submissions_refused_total", &[("reason", "invalid")]), Some(1.0));
        assert_eq!(sink.value("palisade_queue_tasks", &high), Some(2.0));
        assert_eq!(sink.value("palisade_running_tasks", &[]), Some(0.0));
        assert_eq!(sink.observed("palisade_queue_wait_seconds", &high), Some(vec![1.5; 3]));
        assert_eq!(sink.observed("palisade_tenant_queue_wait_seconds", &[("tenant", "a")]), Some(vec![1.5]));
        assert_eq!(sink.observed("palisade_tenant_queue_wait_seconds", &[("tenant", "b")]), None);
        assert_eq!(sink.observed("palisade_tenant_queue_wait_seconds", &[("tenant", "other")]), Some(vec![1.5; 2]));
        let outcome = [("class", "high"), ("outcome", "completed")];
        assert_eq!(sink.value("palisade_tasks_finished_total", &outcome), Some(1.0));
        assert_eq!(sink.value("palisade_task_retries_total", &high), Some(1.0));
        assert_eq!(sink.value("palisade_task_leases_lost_total", &high), Some(1.0));
        assert_eq!(sink.value("palisade_stale_completions_total", &[]), Some(1.0));
    });
}

#[test]
fn the_queues_of_tenants_are_told_whatever_happens_to_their_tasks() {
    const TENANTS: [&str; 4] = ["a", "b", "c", "other"];
    let sink = Arc::new(RecordingSink::new());
    let (scheduler, clock) = manual(|options| {
        options.metrics = Arc::clone(&sink) as _;
        options.tenant_labels_max = 2;
    });
    let shown = |tenant| sink.value("palisade_tenant_queue_tasks", &[("tenant", tenant)]);
    let submit = |tenant: &'static str, delay: u64| {
        let mut one = task(tenant);
        one.tenant = Tenant(tenant.to_owned());
        one.not_before = (delay > 0).then(|| clock.now() + Duration::from_secs(delay));
        block_on(scheduler.submit(one)).unwrap().task
    };
    let lease = || block_on(scheduler.lease(request(1))).unwrap().remove(0);
    assert_eq!(TENANTS.map(shown), [None, None, None, Some(0.0)]);
    let waits = submit("other", 0);
    assert_eq!(TENANTS.map(shown), [None, None, None, Some(1.0)], "one of this name is among the rest");
    let first = submit("a", 9);
    let second = submit("b", 0);
    submit("c", 9);
    assert_eq!(TENANTS.map(shown), [Some(0.0), Some(1.0), None, Some(1.0)]);
    clock.advance(Duration::from_secs(9));
    scheduler.tick();
    assert_eq!(TENANTS.map(shown), [Some(1.0), Some(1.0), None, Some(2.0)], "their time came");
    block_on(scheduler.cancel(waits)).unwrap();
    block_on(scheduler.cancel(first)).unwrap();
    assert_eq!(TENANTS.map(shown), [Some(0.0), Some(1.0), None, Some(1.0)]);
    let taken = lease();
    assert_eq!((taken.task.id, TENANTS.map(shown)), (second, [Some(0.0), Some(0.0), None, Some(1.0)]));
    block_on(scheduler.release(second, taken.fence)).unwrap();
    assert_eq!(TENANTS.map(shown), [Some(0.0), Some(1.0), None, Some(1.0)], "given back");
    lease();
    clock.advance(Duration::from_secs(3600));
    scheduler.tick();
    assert_eq!(TENANTS.map(shown), [Some(0.0), Some(1.0), None, Some(1.0)], "its worker was lost");
    let taken = lease();
    block_on(scheduler.complete(second, taken.fence, again(Duration::from_secs(5)))).unwrap();
    assert_eq!(TENANTS.map(shown), [Some(0.0), Some(0.0), None, Some(1.0)], "delayed");
    clock.advance(Duration::from_secs(5));
    scheduler.tick();
    assert_eq!(TENANTS.map(shown), [Some(0.0), Some(1.0), None, Some(1.0)], "tried again");
}

#[test]
fn every_figure_of_the_scheduler_can_be_exported() {
    let sink = Arc::new(PrometheusSink::new());
    let (scheduler, _) = manual(|options| {
        options.metrics = Arc::clone(&sink) as _;
        options.tenant_labels_max = 1;
    });
    let mut one = task("a");
    one.tenant = Tenant("\"}\n".to_owned());
    block_on(scheduler.submit(one)).unwrap();
    let text = sink.export().unwrap();
    assert!(text.contains("palisade_tenant_queue_tasks{tenant=\"\\\"}\\n\"} 1.0"), "{text}");
    assert!(text.contains("palisade_tasks_submitted_total{class=\"normal\"} 1"), "{text}");
    assert!(text.contains("palisade_queue_tasks{class=\"normal\"} 1.0"), "{text}");
    assert!(text.contains("# UNIT palisade_queue_wait_seconds seconds"), "{text}");
}

#[test]
fn many_threads_and_not_one_task_lost_or_done_twice() {
    const TASKS: usize = 4000;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    let scheduler = Arc::new(LocalScheduler::open(SchedulerOptions::default()).unwrap());
    let completed = Arc::new(Mutex::new(Vec::new()));
    runtime.block_on(async {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let (scheduler, completed) = (Arc::clone(&scheduler), Arc::clone(&completed));
                tokio::spawn(async move {
                    loop {
                        for lease in scheduler.lease(request(7)).await.unwrap() {
                            let fails = lease.attempt == 1 && lease.task.id.0.as_u128() % 5 == 0;
                            let how = if fails { again(Duration::from_millis(1)) } else { success() };
                            let state = scheduler.complete(lease.task.id, lease.fence, how).await.unwrap();
                            if state.is_final() {
                                completed.lock().unwrap().push(lease.task.id);
                            }
                        }
                    }
                })
            })
            .collect();
        let submitters: Vec<_> = (0..4)
            .map(|number| {
                let scheduler = Arc::clone(&scheduler);
                tokio::spawn(async move {
                    let mut waits = Vec::new();
                    for at in 0..TASKS / 4 {
                        let mut one = task("x");
                        one.tenant = Tenant(format!("{number} {}", at % 3));
                        let id = scheduler.submit(one).await.unwrap().task;
                        let scheduler = Arc::clone(&scheduler);
                        waits.push(tokio::spawn(async move { scheduler.wait(id).await.unwrap() }));
                    }
                    for wait in waits {
                        let record = wait.await.unwrap();
                        assert_eq!(record.state, TaskState::Completed);
                        assert!(matches!(record.completion.as_deref(), Some(Completion::Executed(_))));
                    }
                })
            })
            .collect();
        for submitter in submitters {
            submitter.await.unwrap();
        }
        workers.into_iter().for_each(|worker| worker.abort());
    });
    let completed = completed.lock().unwrap();
    assert_eq!(completed.iter().collect::<HashSet<_>>().len(), TASKS);
    assert_eq!(completed.len(), TASKS);
    assert_eq!(scheduler.stats(), palisade_core::SchedulerStats::default());
}

#[test]
fn attempts_that_end_together_stand_for_themselves_and_nobody_misses_an_outcome() {
    let sink = Arc::new(RecordingSink::default());
    let (scheduler, _) = manual(|options| {
        // Each outcome takes the room of the one before.
        options.limits.results_max = 1;
        options.limits.completion_bytes_max = 100;
        options.metrics = Arc::clone(&sink) as _;
    });
    let mut tasks = Vec::new();
    for input in ["a", "b", "c", "d"] {
        tasks.push(block_on(scheduler.submit(task(input))).unwrap().task);
    }
    let leases = block_on(scheduler.lease(request(4))).unwrap();
    assert_eq!(ids(&leases), tasks);
    let mut context = Context::from_waker(Waker::noop());
    let mut waits: Vec<_> = tasks.iter().map(|task| scheduler.wait(*task)).collect();
    assert!(waits.iter_mut().all(|wait| wait.as_mut().poll(&mut context).is_pending()));

    let report = |at: usize, completion| Report { task: tasks[at], fence: leases[at].fence, completion };
    let large = Completion::HostError { message: "x".repeat(101), retryable: false };
    let mut stale = report(1, success());
    stale.fence.0 += 100;
    let reports = vec![report(0, success()), stale, report(2, large), report(3, success()), report(0, success())];
    let answers = block_on(scheduler.complete_all(reports));
    let kinds: Vec<_> = answers.into_iter().map(|answer| answer.map_err(|error| error.kind())).collect();
    let (stale, invalid) = (Err(ErrorKind::Stale), Err(ErrorKind::InvalidInput));
    assert_eq!(kinds, [Ok(TaskState::Completed), stale, invalid, Ok(TaskState::Completed), stale]);
    assert_eq!(sink.value("palisade_stale_completions_total", &[]), Some(2.0));

    let ended = waits.iter_mut().map(|wait| match wait.as_mut().poll(&mut context) {
        Poll::Ready(record) => Some(record.unwrap().state),
        Poll::Pending => None,
    });
    assert_eq!(ended.collect::<Vec<_>>(), [Some(TaskState::Completed), None, None, Some(TaskState::Completed)]);
    assert_eq!(scheduler.stats().running, 2, "the two that were refused");
}
