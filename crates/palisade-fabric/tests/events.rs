//! What subscribers hear.

mod support;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use palisade_core::{ErrorKind, Outcome, Result, Scheduler, TaskState, block_on};
use palisade_fabric::{
    Clock, Event, EventFilter, Journal, JournalEntry, LocalScheduler, Restored, SchedulerOptions, Subscription,
};
use support::{again, request, success, task};

fn open(change: impl FnOnce(&mut SchedulerOptions)) -> (LocalScheduler, Clock) {
    let clock = Clock::manual();
    let mut options = SchedulerOptions::default();
    (options.clock, options.seed) = (clock.clone(), Some(1));
    change(&mut options);
    (LocalScheduler::open(options).unwrap(), clock)
}

/// What is there already. More must not be waited for.
fn heard(subscription: &mut Subscription) -> Vec<Arc<Event>> {
    let mut events = Vec::new();
    loop {
        let mut next = Box::pin(subscription.next());
        match next.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(event)) => events.push(event),
            Poll::Ready(None) | Poll::Pending => return events,
        }
    }
}

/// The name of an event as in JSON, with where it leads.
fn named(event: &Event) -> String {
    let json = serde_json::to_value(event).unwrap();
    let back: Event = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(back, *event, "events come back as they went");
    let state = json["state"].as_str().map(|state| format!(" {state}")).unwrap_or_default();
    format!("{}{state}", json["event"].as_str().unwrap())
}

#[test]
fn a_task_is_told_of_from_its_submission_to_its_end() {
    let (scheduler, clock) = open(|_| {});
    let mut all = scheduler.events().subscribe(EventFilter::default()).unwrap();
    block_on(async {
        let mut one = task("one");
        one.retry.attempts_max = 2;
        let id = scheduler.submit(one).await.unwrap().task;
        for _ in 0..2 {
            clock.advance(Duration::from_secs(10));
            let lease = scheduler.lease(request(1)).await.unwrap().remove(0);
            scheduler.complete(id, lease.fence, again(Duration::from_secs(1))).await.unwrap();
        }
        let mut of_it = scheduler.events().subscribe(EventFilter { task: Some(id), ..EventFilter::default() }).unwrap();
        let other = scheduler.submit(task("other")).await.unwrap().task;
        scheduler.cancel(other).await.unwrap();
        scheduler.requeue(id).await.unwrap();
        let lease = scheduler.lease(request(1)).await.unwrap().remove(0);
        scheduler.release(id, lease.fence).await.unwrap();
        let lease = scheduler.lease(request(1)).await.unwrap().remove(0);
        scheduler.complete(id, lease.fence, success()).await.unwrap();
        let told = heard(&mut all);
        let names: Vec<_> = told.iter().map(|event| named(event)).collect();
        let tried = ["submitted", "started", "retried", "started", "finished dead_lettered"];
        let again = ["submitted", "finished cancelled", "requeued", "started", "released", "started"];
        assert_eq!(names, [&tried[..], &again[..], &["finished completed"]].concat());
        assert!(matches!(*told[3], Event::Started { attempt: 2, .. }), "{:?}", told[3]);
        let Event::Started { about, attempt: 1, waited_ms: 10_000 } = &*told[1] else { panic!("{:?}", told[1]) };
        assert_eq!((about.task, about.tenant.as_str()), (id, "default"));
        assert!(matches!(&*told[4], Event::Finished { outcome: Some(Outcome::Failed { .. }), .. }), "{:?}", told[4]);
        let names: Vec<_> = heard(&mut of_it).iter().map(|event| named(event)).collect();
        assert_eq!(names, ["requeued", "started", "released", "started", "finished completed"]);
    });
    drop(scheduler);
    assert!(block_on(all.next()).is_none(), "nobody tells any more");
}

#[test]
fn a_slow_subscriber_hears_how_much_it_missed_and_there_is_room_for_so_many() {
    let (scheduler, _) = open(|options| (options.events_kept, options.subscribers_max) = (4, 2));
    let events = scheduler.events();
    let mut slow = events.subscribe(EventFilter::default()).unwrap();
    let second = events.subscribe(EventFilter::default()).unwrap();
    assert_eq!(events.subscribe(EventFilter::default()).unwrap_err().kind(), ErrorKind::Exhausted);
    drop(second);
    let _third = events.subscribe(EventFilter::default()).unwrap();
    let tasks: Vec<_> = (0..10).map(|number| block_on(scheduler.submit(task(format!("{number}")))).unwrap()).collect();
    let told = heard(&mut slow);
    assert_eq!(*told[0], Event::Missed { events: 6 });
    let kept: Vec<_> = told[1..].iter().map(|event| event.about().unwrap().task).collect();
    assert_eq!(kept, tasks[6..].iter().map(|one| one.task).collect::<Vec<_>>());
}

/// Commits when it is allowed to.
#[derive(Debug)]
struct Held {
    allowed: Receiver<()>,
    asked: Sender<usize>,
}

impl Journal for Held {
    fn open(&mut self, _: &mut dyn FnMut(Restored) -> Result<()>) -> Result<u64> {
        Ok(1)
    }

    fn commit(&mut self, batch: &[JournalEntry]) -> Result<()> {
        self.asked.send(batch.len()).unwrap();
        // An error means that the test is over.
        let _ = self.allowed.recv();
        Ok(())
    }
}

#[test]
fn nothing_is_told_before_it_is_safe() {
    let ((allow, allowed), (asked, asks)) = (channel(), channel());
    let (scheduler, _) = open(|options| options.journal = Some(Box::new(Held { allowed, asked })));
    // Dropped before the scheduler, whose end waits for the journal.
    let allow = allow;
    let mut subscription = scheduler.events().subscribe(EventFilter::default()).unwrap();
    let mut submitting = scheduler.submit(task("one"));
    assert!(submitting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert_eq!(asks.recv().unwrap(), 1);
    assert_eq!(heard(&mut subscription), [], "not on disk yet");
    allow.send(()).unwrap();
    let event = block_on(subscription.next()).unwrap();
    assert_eq!(event.about().unwrap().task, block_on(submitting).unwrap().task);
    assert_eq!(block_on(scheduler.get(event.about().unwrap().task)).unwrap().state, TaskState::Queued);
}
