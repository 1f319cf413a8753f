//! What was acknowledged survives: closing, full and broken disks, torn logs.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use palisade_core::{Error, ErrorKind, IdempotencyKey, Priority, Result, Scheduler, Task, TaskState, Tenant, block_on};
use palisade_fabric::{
    Clock, Journal, JournalEntry, Kept, LocalScheduler, Rate, RecordingSink, SchedulerOptions, SqliteJournal,
    TenantLimits,
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
        if let Kept::Task { task, status, .. } = one {
            kept.push((*task, status.state));
        }
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
        assert_eq!(support::ids(&leases), [running], "what may have ended the process is run alone");
        assert!(leases[0].fence > fence, "fences grow over restarts");
        let stale = scheduler.complete(running, fence, success()).await.unwrap_err();
        assert_eq!(stale.kind(), ErrorKind::Stale);
        scheduler.complete(running, leases[0].fence, success()).await.unwrap();
        assert_eq!(support::ids(&scheduler.lease(request(9)).await.unwrap()), [keyed.id]);
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
fn the_queues_of_tenants_are_told_from_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let mut one = task("a");
    one.tenant = Tenant("a".to_owned());
    block_on(open(&path).unwrap().submit(one)).unwrap();
    let sink = Arc::new(RecordingSink::new());
    let mut options = SchedulerOptions::default();
    options.journal = Some(Box::new(SqliteJournal::new(&path, 1 << 30).unwrap()));
    (options.metrics, options.tenant_labels_max) = (Arc::clone(&sink) as _, 1);
    let _scheduler = LocalScheduler::open(options).unwrap();
    assert_eq!(sink.value("palisade_tenant_queue_tasks", &[("tenant", "a")]), Some(1.0));
    assert_eq!(sink.value("palisade_tenant_queue_tasks", &[("tenant", "other")]), Some(0.0));
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
    let private = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    private(&text);
    assert_eq!(open(&text).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(open(&folder.path().join("missing/journal")).unwrap_err().kind(), ErrorKind::Io);
    let other = folder.path().join("other");
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    private(&other);
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
    assert!(error.to_string().contains("no room for the journal") && error.help().is_some(), "{error}");
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
                Error::new(ErrorKind::Io, "commit", "the disk is on fire").with_source(std::io::Error::other("smoke"))
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

/// Has no room while it is told so.
#[derive(Debug)]
struct NoRoom {
    full: Arc<AtomicBool>,
    refused: mpsc::Sender<()>,
    inner: SqliteJournal,
}

impl Journal for NoRoom {
    fn open(&mut self, each: &mut dyn FnMut(Kept) -> Result<()>) -> Result<u64> {
        self.inner.open(each)
    }

    fn commit(&mut self, batch: &[JournalEntry]) -> Result<()> {
        if self.full.load(Ordering::SeqCst) {
            let _ = self.refused.send(());
            return Err(Error::new(ErrorKind::Exhausted, "commit", "there is no room for the journal"));
        }
        self.inner.commit(batch)
    }
}

/// A disk that was full and has room again is used again, without a new start; what workers did meanwhile is not lost.
#[test]
fn a_disk_with_room_again_is_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let (full, (refused, refusals)) = (Arc::new(AtomicBool::new(false)), mpsc::channel());
    let sink = Arc::new(RecordingSink::new());
    let mut options = SchedulerOptions::default();
    options.clock = Clock::manual();
    options.metrics = Arc::clone(&sink) as _;
    let inner = SqliteJournal::new(&path, 1 << 30).unwrap();
    options.journal = Some(Box::new(NoRoom { full: Arc::clone(&full), refused, inner }));
    let scheduler = LocalScheduler::open(options).unwrap();
    let failing = || sink.value("palisade_journal_failing", &[]);
    let (done, given_back, waits) = block_on(async {
        let done = scheduler.submit(task("done meanwhile")).await.unwrap().task;
        let given_back = scheduler.submit(task("given back meanwhile")).await.unwrap().task;
        let leases = scheduler.lease(request(2)).await.unwrap();
        let waits = scheduler.submit(task("waits")).await.unwrap().task;
        full.store(true, Ordering::SeqCst);
        let refused = task("refused");
        let error = scheduler.submit(refused.clone()).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.retry_after()),
            (ErrorKind::Exhausted, Some(Duration::from_secs(1))),
            "{error}"
        );
        assert!(error.to_string().contains("make room"), "{error}");
        assert_eq!(scheduler.check().unwrap_err().kind(), ErrorKind::Exhausted);
        assert_eq!(failing(), Some(1.0));
        // Workers are heard, but what they say is not acknowledged yet.
        scheduler.renew(done, leases[0].fence, Duration::from_secs(60)).await.unwrap();
        let unsure = scheduler.complete(done, leases[0].fence, success()).await.unwrap_err();
        assert_eq!(unsure.kind(), ErrorKind::Exhausted);
        scheduler.release(given_back, leases[1].fence).await.unwrap();
        for error in [scheduler.get(done).await.map(drop), scheduler.lease(request(1)).await.map(drop)] {
            assert_eq!(error.unwrap_err().kind(), ErrorKind::Exhausted);
        }
        (done, given_back, (waits, refused))
    });
    // The same commit is tried again, and refused again, until there is room.
    let tried = (0..2).filter(|_| refusals.recv_timeout(Duration::from_secs(30)).is_ok()).count();
    assert_eq!(tried, 2, "it is tried again");
    full.store(false, Ordering::SeqCst);
    let begun = Instant::now();
    while scheduler.check().is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it goes on by itself");
        std::thread::yield_now();
    }
    block_on(async {
        let (waits, refused) = waits;
        assert_eq!(scheduler.get(done).await.unwrap().state, TaskState::Completed);
        assert_eq!(scheduler.get(given_back).await.unwrap().lost, 0, "given back uncounted");
        // Refused and yet kept: who asks again under the same id hears so.
        assert!(scheduler.submit(refused.clone()).await.unwrap().duplicate);
        let leases = scheduler.lease(request(9)).await.unwrap();
        assert_eq!(support::ids(&leases), [given_back, waits, refused.id]);
    });
    assert_eq!(failing(), Some(0.0));
    assert!(sink.value("palisade_journal_failures_total", &[]) >= Some(2.0));
    drop(scheduler);
    let mut journal = SqliteJournal::new(&path, 1 << 30).unwrap();
    assert_eq!(read(&mut journal).unwrap().len(), 4);
}

#[test]
fn tenants_limits_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let (a, b) = (Tenant("a".into()), Tenant("b".into()));
    let limits = TenantLimits {
        weight: Some(7),
        running_max: Some(2),
        submit_rate: Some(Rate { per_second: 0.5, burst: 3 }),
        ..TenantLimits::default()
    };
    let scheduler = open(&path).unwrap();
    block_on(async {
        scheduler.set_tenant_limits(&a, Some(TenantLimits::default())).await.unwrap();
        scheduler.set_tenant_limits(&a, Some(limits)).await.unwrap();
        scheduler.set_tenant_limits(&b, Some(limits)).await.unwrap();
        scheduler.set_tenant_limits(&b, None).await.unwrap();
        let twice = scheduler.set_tenant_limits(&b, None).await.unwrap_err();
        assert_eq!(twice.kind(), ErrorKind::NotFound, "{twice}");
        let zero = TenantLimits { weight: Some(0), ..limits };
        let refused = scheduler.set_tenant_limits(&a, Some(zero)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        for name in [String::new(), "x".repeat(257)] {
            let refused = scheduler.set_tenant_limits(&Tenant(name), Some(limits)).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        }
    });
    drop(scheduler);
    let mut options = SchedulerOptions::default();
    options.journal = Some(Box::new(SqliteJournal::new(&path, 1 << 30).unwrap()));
    options.clock = Clock::manual();
    options.limits.tenant.tasks_max = Some(3);
    let scheduler = LocalScheduler::open(options).unwrap();
    let report = scheduler.tenant(&a).unwrap();
    assert_eq!(report.own_limits, Some(limits));
    assert_eq!(report.limits, TenantLimits { tasks_max: Some(3), ..limits }, "the rest as for every tenant");
    assert_eq!(scheduler.tenants(None, 9), [report], "b is as any other again");
    block_on(async {
        let submit = async |tenant: &Tenant| {
            let mut one = task("x");
            one.tenant = tenant.clone();
            scheduler.submit(one).await.map(drop)
        };
        for _ in 0..3 {
            submit(&a).await.unwrap();
            submit(&b).await.unwrap();
        }
        assert!(submit(&a).await.is_err() && submit(&b).await.is_err());
        assert_eq!(scheduler.lease(request(9)).await.unwrap().len(), 5, "all of b, two of a");
    });
    let reports = scheduler.tenants(None, 9);
    let counts: Vec<_> = reports.iter().map(|one| (one.tenant.clone(), one.queued, one.running)).collect();
    assert_eq!(counts, [(a.clone(), 1, 2), (b.clone(), 0, 3)]);
    assert_eq!(scheduler.tenants(Some(&a), 9), reports[1..]);
    assert_eq!(scheduler.tenants(None, 1), reports[..1]);
}

/// The file was written by version 0.1 before there were limits of tenants; of the second format are those to which it added
/// the table of them.
#[test]
fn journals_of_earlier_formats_still_open() {
    earlier_format_opens(1);
    earlier_format_opens(2);
}

fn earlier_format_opens(earlier: i32) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/journal-format-1.sqlite"), &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    if earlier == 2 {
        let connection = rusqlite::Connection::open(&path).unwrap();
        let table =
            "CREATE TABLE tenant (name TEXT PRIMARY KEY, limits BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID";
        connection.execute_batch(&format!("{table}; PRAGMA user_version = 2")).unwrap();
    }
    let format = |path: &Path| {
        let connection = rusqlite::Connection::open(path).unwrap();
        connection.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0)).unwrap()
    };
    assert_eq!(format(&path), earlier);
    let states = |kept: Vec<(Task, TaskState)>| -> Vec<_> {
        kept.into_iter().map(|(task, state)| (task.input, task.tenant.0, state)).collect()
    };
    let task = |input: &'static str, tenant: &str, state| (palisade_core::Bytes::from(input), tenant.to_owned(), state);
    let expected = [
        task("dead", "a", TaskState::DeadLettered),
        task("done", "default", TaskState::Completed),
        task("running", "default", TaskState::Running),
        task("queued", "b", TaskState::Queued),
        task("delayed", "default", TaskState::Delayed),
    ];
    for _ in 0..2 {
        let mut journal = SqliteJournal::new(&path, 1 << 30).unwrap();
        assert_eq!(states(read(&mut journal).unwrap()), expected);
        drop(journal);
        assert_eq!(format(&path), 3);
    }
    let scheduler = open(&path).unwrap();
    let limits = TenantLimits { weight: Some(2), ..TenantLimits::default() };
    block_on(scheduler.set_tenant_limits(&Tenant("b".into()), Some(limits))).unwrap();
    drop(scheduler);
    assert_eq!(open(&path).unwrap().tenant(&Tenant("b".into())).unwrap().own_limits, Some(limits));

    // One of a later format is left as it is.
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 4).unwrap();
    let before = fs::read(&path).unwrap();
    let refused = open(&path).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    assert!(refused.to_string().contains("format 4"), "{refused}");
    assert!(fs::read(&path).unwrap() == before);
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
