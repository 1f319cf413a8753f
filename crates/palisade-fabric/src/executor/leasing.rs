//! Where tasks come from and their ends go: leases in batches, and reports in batches.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use palisade_core::{BoxFuture, Error, ErrorKind, Lease, LeaseRequest, Report, WorkerId};
use tokio::sync::OwnedSemaphorePermit;

use super::attempt::{host_error, run};
use super::{Order, PATIENCE, Shared, ordered};
use crate::agent::AgentPermit;
use crate::figures::{Notes, Told};

/// How long a scheduler that gave errors lets a lease wait before it counts as recovered.
const RECOVERED: Duration = Duration::from_millis(200);

/// Leases until it is told to end, also when a scheduler panics.
pub(super) async fn keep_leasing(shared: Arc<Shared>) {
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
    let worker = WorkerId::new();
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
type Leased = (Lease, Option<OwnedSemaphorePermit>, Option<AgentPermit>);

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

/// Most tasks leased in one go.
const BATCH_MAX: usize = 64;
