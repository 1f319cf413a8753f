//! What was acknowledged survives: closing, full and broken disks, torn logs.

mod support;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use palisade_core::{Error, ErrorKind, IdempotencyKey, Priority, Result, Scheduler, Task, TaskState, block_on};
use palisade_fabric::{
    Clock, Journal, JournalEntry, Kept, LocalScheduler, RecordingSink, SchedulerOptions, SqliteJournal,
};
use support::{again, request, success, task};

fn open(path: &Path) -> Result<LocalScheduler> {
    open_with(SqliteJournal::new(path, 1 << 30)?, Clock::manual())
}

fn open_with(journal: impl Journal + 'static, clock: Clock) -> Result<LocalScheduler> {
    let mut options = SchedulerOptions::default();
    options.journal = Some(Box::new(journal));
    options.clock = clock;
    LocalScheduler::open(options)
}

/// What a journal gives back.
fn read(journal: &mut SqliteJournal) -> Result<Vec<(Task, TaskState)>> {
    let mut kept = Vec::new();
    journal.open(&mut |one| {
        kept.push((one.task, one.status.state));
        Ok(())
    })?;
    Ok(kept)
}

#[test]
fn everything_is_there_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let clock = Clock::manual();
    let reopen = || open_with(SqliteJournal::new(&path, 1 << 30).unwrap(), clock.clone()).unwrap();
    let scheduler = reopen();
    let (mut delayed, mut dead, mut keyed) = (task("delayed"), task("dead"), task(vec![0, 255, 10]));
    delayed.not_before = Some(clock.now() + Duration::from_secs(10));
    delayed.deadline = Some(clock.now() + Duration::from_secs(20));
    (dead.retry.attempts_max, dead.priority) = (1, Priority::Critical);
    keyed.idempotency_key = Some(IdempotencyKey("key".into()));
    keyed.labels.insert("from".into(), "test".into());
    let (delayed, dead) = (delayed, dead);
    let fence = block_on(async {
        scheduler.submit(dead.clone()).await.unwrap();
        let lease = scheduler.lease(request(1)).await.unwrap().remove(0);
        scheduler.complete(dead.id, lease.fence, again(Duration::ZERO)).await.unwrap();
        let done = scheduler.submit(task("done")).await.unwrap().task;
        let lease = scheduler.lease(request(1)).await.unwrap().remove(0);
        scheduler.complete(done, lease.fence, success()).await.unwrap();
        let failed_once = scheduler.submit(task("failed once")).await.unwrap().task;
        let lease = scheduler.lease(request(1)).await.unwrap().remove(0);
        scheduler.complete(failed_once, lease.fence, again(Duration::from_secs(5))).await.unwrap();
        let running = scheduler.submit(task("running")).await.unwrap().task;
        let lease = scheduler.lease(request(1)).await.unwrap().remove(0);
        scheduler.submit(keyed.clone()).await.unwrap();
        scheduler.submit(delayed.clone()).await.unwrap();
        (lease.fence, done, failed_once, running)
    });
    let (fence, done, failed_once, running) = fence;
    drop(scheduler);
    let scheduler = reopen();
    block_on(async {
        let record = scheduler.get(dead.id).await.unwrap();
        assert_eq!((record.state, record.failures), (TaskState::DeadLettered, 1));
        assert_eq!(*record.task, dead);
        assert_eq!(scheduler.dead_letters(None, 9).await.unwrap(), [record]);
        let record = scheduler.get(done).await.unwrap();
        assert_eq!((record.state, record.finished_at), (TaskState::Completed, Some(clock.now())));
        assert_eq!(record.completion.as_deref(), Some(&success()));
        let record = scheduler.get(running).await.unwrap();
        assert_eq!((record.state, record.lost, record.failures), (TaskState::Queued, 1, 0));
        assert_eq!(*scheduler.get(keyed.id).await.unwrap().task, keyed);
        let mut same = keyed.clone();
        same.id = palisade_core::TaskId::new();
        assert!(scheduler.submit(same).await.unwrap().duplicate);
        assert_eq!(scheduler.get(delayed.id).await.unwrap().state, TaskState::Delayed);
        let leases = scheduler.lease(request(9)).await.unwrap();
        assert_eq!(support::ids(&leases), [running, keyed.id], "in the order of submission");
        assert!(leases.iter().all(|lease| lease.fence > fence), "fences grow over restarts");
        let stale = scheduler.complete(running, fence, success()).await.unwrap_err();
        assert_eq!(stale.kind(), ErrorKind::Stale);
        clock.advance(Duration::from_secs(5));
        let lease = scheduler.lease(request(9)).await.unwrap().remove(0);
        assert_eq!((lease.task.id, lease.attempt), (failed_once, 2));
        clock.advance(Duration::from_secs(5));
        assert_eq!(scheduler.get(delayed.id).await.unwrap().state, TaskState::Queued);
        clock.advance(Duration::from_secs(10));
        assert_eq!(scheduler.get(delayed.id).await.unwrap().state, TaskState::Failed);
        clock.advance(Duration::from_secs(3600));
        scheduler.tick();
        assert_eq!(scheduler.get(done).await.unwrap_err().kind(), ErrorKind::NotFound);
    });
    drop(scheduler);
    // What is forgotten is forgotten on disk as well.
    let mut journal = SqliteJournal::new(&path, 1 << 30).unwrap();
    let left = read(&mut journal).unwrap();
    assert!(left.iter().any(|(task, _)| *task == dead) && left.iter().all(|(task, _)| task.id != done));
}

#[test]
fn a_task_that_kills_the_process_is_not_tried_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let mut id = None;
    for round in 1..=3 {
        let scheduler = open(&path).unwrap();
        block_on(async {
            if id.is_none() {
                id = Some(scheduler.submit(task("killer")).await.unwrap().task);
            }
            assert_eq!(scheduler.lease(request(1)).await.unwrap()[0].attempt, round);
        });
        // Closing with a lease out is what a crash looks like from the journal.
    }
    let record = block_on(open(&path).unwrap().get(id.unwrap())).unwrap();
    assert_eq!((record.state, record.lost), (TaskState::DeadLettered, 3));
}

#[test]
fn a_journal_has_one_user_and_a_stranger_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let first = open(&path).unwrap();
    let error = open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error:?}");
    assert!(error.to_string().contains("another process"), "{error}");
    drop(first);
    open(&path).unwrap();
    let text = folder.path().join("text");
    fs::write(&text, "no database at all, but long enough to be taken for a header of one".repeat(20)).unwrap();
    assert_eq!(open(&text).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(open(&folder.path().join("missing/journal")).unwrap_err().kind(), ErrorKind::Io);
    let other = folder.path().join("other");
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    assert_eq!(open(&other).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_full_disk_is_a_clear_error_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let scheduler = open_with(SqliteJournal::new(&path, 1 << 20).unwrap(), Clock::manual()).unwrap();
    let mut acknowledged = Vec::new();
    let error = block_on(async {
        loop {
            match scheduler.submit(task(vec![7; 10_000])).await {
                Ok(submission) => acknowledged.push(submission.task),
                Err(error) => break error,
            }
            assert!(acknowledged.len() < 1000, "a megabyte is full by now");
        }
    });
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error:?}");
    assert!(error.to_string().contains("no room for the journal") && error.help_text().is_some(), "{error}");
    assert!(acknowledged.len() > 20, "{}", acknowledged.len());
    // From then on nothing is promised that could not be kept.
    block_on(async {
        assert_eq!(scheduler.submit(task("small")).await.unwrap_err().kind(), ErrorKind::Exhausted);
        assert_eq!(scheduler.lease(request(1)).await.unwrap_err().kind(), ErrorKind::Exhausted);
        assert_eq!(scheduler.wait(acknowledged[0]).await.unwrap_err().kind(), ErrorKind::Exhausted);
    });
    drop(scheduler);
    let scheduler = open(&path).unwrap();
    for id in acknowledged {
        assert_eq!(block_on(scheduler.get(id)).unwrap().state, TaskState::Queued);
    }
}

#[test]
fn damage_is_found_or_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let scheduler = open(&path).unwrap();
    let tasks: Vec<_> = (0..60u8).map(|number| task(vec![number; 500])).collect();
    block_on(async {
        for one in &tasks {
            scheduler.submit(one.clone()).await.unwrap();
        }
        for lease in scheduler.lease(request(20)).await.unwrap() {
            scheduler.complete(lease.task.id, lease.fence, success()).await.unwrap();
        }
    });
    drop(scheduler);
    let whole = fs::read(&path).unwrap();
    let (mut found, mut harmless) = (0, 0);
    let damaged = folder.path().join("damaged");
    for at in (0..whole.len()).step_by(331) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x24;
        fs::write(&damaged, &bytes).unwrap();
        let opened = SqliteJournal::new(&damaged, 1 << 30).and_then(|mut journal| read(&mut journal));
        match opened {
            Ok(kept) => {
                let same = kept.len() == tasks.len()
                    && kept.iter().zip(&tasks).enumerate().all(|(number, ((kept, state), task))| {
                        let expected = if number < 20 { TaskState::Completed } else { TaskState::Queued };
                        kept == task && *state == expected
                    });
                assert!(same, "damage at {at} was not noticed");
                harmless += 1;
            }
            Err(error) => {
                let known = [ErrorKind::Corrupt, ErrorKind::Unsupported, ErrorKind::Io];
                assert!(known.contains(&error.kind()), "{error:?}");
                found += 1;
            }
        }
        let _ = fs::remove_file(folder.path().join("damaged-wal"));
    }
    assert!(found > 50, "{found} found, {harmless} harmless");
}

/// What a power failure leaves of the log is a part of it from the beginning, if the disk keeps its promises.
#[test]
fn of_a_torn_log_a_beginning_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let scheduler = open(&path).unwrap();
    let tasks: Vec<_> = (0..40).map(|number| task(format!("task {number}"))).collect();
    for one in &tasks {
        block_on(scheduler.submit(one.clone())).unwrap();
    }
    let database = fs::read(&path).unwrap();
    let log = fs::read(folder.path().join("journal-wal")).unwrap();
    let mut most = 0;
    for cut in (0..=20).map(|part| log.len() * part / 20) {
        let torn = tempfile::tempdir().unwrap();
        fs::write(torn.path().join("journal"), &database).unwrap();
        fs::write(torn.path().join("journal-wal"), &log[..cut]).unwrap();
        let mut journal = SqliteJournal::new(torn.path().join("journal"), 1 << 30).unwrap();
        let kept: Vec<_> = read(&mut journal).unwrap().into_iter().map(|(task, _)| task.id).collect();
        let expected: Vec<_> = tasks.iter().take(kept.len()).map(|one| one.id).collect();
        assert_eq!(kept, expected);
        assert!(kept.len() >= most, "more of the log never gives less");
        most = kept.len();
    }
    assert_eq!(most, tasks.len());
}

/// Fails from the n-th commit on.
#[derive(Debug)]
struct Fails {
    commits: Arc<AtomicUsize>,
    from: usize,
}

impl Journal for Fails {
    fn open(&mut self, _: &mut dyn FnMut(Kept) -> Result<()>) -> Result<u64> {
        Ok(1)
    }

    fn commit(&mut self, _: &[JournalEntry]) -> Result<()> {
        if self.commits.fetch_add(1, Ordering::SeqCst) + 1 >= self.from {
            return Err(
                Error::new(ErrorKind::Io, "commit", "the disk is on fire").source(std::io::Error::other("smoke"))
            );
        }
        Ok(())
    }
}

#[test]
fn a_failing_disk_wakes_everybody_and_acknowledges_nothing() {
    let commits = Arc::new(AtomicUsize::new(0));
    let scheduler = open_with(Fails { commits: Arc::clone(&commits), from: 2 }, Clock::manual()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut later = task("a");
        later.not_before = Some(Clock::manual().now() + Duration::from_secs(60));
        let kept = scheduler.submit(later).await.unwrap().task;
        let (leased, waited, refused) =
            tokio::join!(scheduler.lease(request(1)), scheduler.wait(kept), scheduler.submit(task("b")));
        for error in [leased.unwrap_err(), waited.unwrap_err(), refused.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Io);
            assert!(error.to_string().contains("on fire: smoke"), "{error}");
        }
        assert_eq!(scheduler.cancel(kept).await.unwrap_err().kind(), ErrorKind::Io);
    });
    assert_eq!(commits.load(Ordering::SeqCst), 2, "a journal that failed is not used again");
}

/// Holds each commit up until it is let go.
#[derive(Debug)]
struct Held(mpsc::Receiver<()>);

impl Journal for Held {
    fn open(&mut self, _: &mut dyn FnMut(Kept) -> Result<()>) -> Result<u64> {
        Ok(1)
    }

    fn commit(&mut self, _: &[JournalEntry]) -> Result<()> {
        // An error means that the test is over.
        let _ = self.0.recv();
        Ok(())
    }
}

#[test]
fn nothing_is_given_out_before_it_is_safe() {
    let (let_go, held) = mpsc::channel();
    let scheduler = open_with(Held(held), Clock::manual()).unwrap();
    // Dropped before the scheduler, which waits for its journal, should the test fail.
    let let_go = let_go;
    let mut context = Context::from_waker(Waker::noop());
    let mut submission = scheduler.submit(task("not safe yet"));
    assert!(submission.as_mut().poll(&mut context).is_pending());
    let mut lease = scheduler.lease(request(1));
    assert!(lease.as_mut().poll(&mut context).is_pending());
    drop(lease);
    let stats = scheduler.stats();
    assert_eq!((stats.queued, stats.running), (1, 0), "who went away took nothing along");
    let mut lease = scheduler.lease(request(1));
    assert!(lease.as_mut().poll(&mut context).is_pending());
    drop(let_go);
    let id = block_on(submission).unwrap().task;
    let leases = block_on(lease).unwrap();
    assert_eq!((support::ids(&leases), leases[0].attempt), (vec![id], 1));
}

#[test]
fn commits_are_shared_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Arc::new(RecordingSink::new());
    let mut options = SchedulerOptions::default();
    options.journal = Some(Box::new(SqliteJournal::new(folder.path().join("journal"), 1 << 30).unwrap()));
    options.metrics = Arc::clone(&sink) as _;
    let scheduler = Arc::new(LocalScheduler::open(options).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let submissions: Vec<_> = (0..1000)
            .map(|_| {
                let scheduler = Arc::clone(&scheduler);
                tokio::spawn(async move { scheduler.submit(task("x")).await.map(drop) })
            })
            .collect();
        for submission in submissions {
            submission.await.unwrap().unwrap();
        }
    });
    let entries = sink.observed("palisade_journal_commit_entries", &[]).unwrap();
    assert_eq!(entries.iter().sum::<f64>(), 1000.0);
    assert!(entries.len() < 500, "{} commits for 1000 submissions", entries.len());
    let times = sink.observed("palisade_journal_commit_seconds", &[]).unwrap();
    assert!(times.len() == entries.len() && times.iter().all(|time| *time > 0.0));
}

/// The figure itself is in `benches`; this is the bound, wide enough for a build without optimisation.
#[test]
fn a_hundred_thousand_tasks_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let mut journal = SqliteJournal::new(&path, 1 << 30).unwrap();
    let status = palisade_fabric::Status {
        state: TaskState::Queued,
        submitted_at: 1,
        ready_at: 0,
        finished_at: 0,
        failures: 0,
        lost: 0,
        completion: None,
    };
    for chunk in 0..10u64 {
        let entries: Vec<_> = (chunk * 10_000..(chunk + 1) * 10_000)
            .map(|seq| JournalEntry::Submit { seq, task: Arc::new(task(vec![1; 128])), status: status.clone() })
            .collect();
        journal.commit(&entries).unwrap();
    }
    drop(journal);
    let begun = Instant::now();
    let scheduler = open(&path).unwrap();
    println!("100 000 tasks came back in {:?}", begun.elapsed());
    assert_eq!(scheduler.stats().queued, 100_000);
}
