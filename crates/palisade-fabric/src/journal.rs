//! Keeping what was decided, so that it survives the process.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use palisade_core::{Error, ErrorKind, Result, Task, Tenant};
use tokio::sync::watch;

use crate::kpi::JournalKpis;
use crate::{Status, TenantLimits};

/// Keeps tasks, and what tenants may do, on something that outlives the process.
///
/// # Contract
///
/// A batch is kept as a whole or not at all, and is safe when [`Journal::commit`] returns. One thread uses a journal at
/// a time; a second process that opens the same one is refused.
pub trait Journal: Send + fmt::Debug {
    /// Gives back everything that is kept, tasks by growing `seq`, and begins a new epoch: a number greater than any before,
    /// itself safe when this returns.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] when what is kept is not what was once given; then nothing was changed.
    fn open(&mut self, each: &mut dyn FnMut(Kept) -> Result<()>) -> Result<u64>;

    /// Makes a batch safe.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Exhausted`] when there is no room: then nothing of the batch is kept, and it is given again from time
    /// to time. [`ErrorKind::Io`] or [`ErrorKind::Corrupt`] otherwise, and then the journal is not used again: whether a
    /// write that failed can be repeated, no disk tells.
    fn commit(&mut self, batch: &[JournalEntry]) -> Result<()>;
}

/// Something that a journal gives back.
#[derive(Debug)]
pub enum Kept {
    /// A task.
    Task {
        /// Its place in the order of submission.
        seq: u64,
        /// The task.
        task: Box<Task>,
        /// How far it came.
        status: Status,
    },
    /// What a tenant may do.
    Limits {
        /// Which tenant.
        tenant: Tenant,
        /// Its own limits.
        limits: TenantLimits,
    },
}

/// One change to what is kept.
#[derive(Debug)]
pub enum JournalEntry {
    /// A new task.
    Submit {
        /// Its place in the order of submission: greater than all before.
        seq: u64,
        /// The task.
        task: Arc<Task>,
        /// How far it is.
        status: Status,
    },
    /// A task came further.
    Update {
        /// Which task.
        seq: u64,
        /// How far it is.
        status: Status,
    },
    /// A task is not needed any more.
    Forget {
        /// Which task.
        seq: u64,
    },
    /// What a tenant may do changed.
    Limits {
        /// Which tenant.
        tenant: Tenant,
        /// Its own limits; `None` when it has none any more.
        limits: Option<TenantLimits>,
    },
}

/// Most entries in one commit: enough to spread the cost of a flush, few enough to keep the wait short.
const BATCH_MAX: usize = 8192;

/// How often a journal without room is tried again: soon enough for a person who made room, seldom enough to cost nothing.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);

/// Gives changes to a journal, from a thread of its own: whatever arrived during one commit is the next one.
#[derive(Debug)]
pub(crate) struct Committer {
    shared: Arc<Shared>,
    /// Everything up to this position is safe.
    safe: watch::Receiver<u64>,
    /// Apart from the progress, so that those who wait for something else are not woken by each commit.
    failure: watch::Receiver<Option<Failure>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    pending: Mutex<Pending>,
    arrived: Condvar,
    /// There is a failure to be told, looked at by everybody whom a commit wakes.
    failing: AtomicBool,
}

#[derive(Debug, Default)]
struct Pending {
    entries: Vec<JournalEntry>,
    /// Entries ever given: the position of the latest.
    position: u64,
    closing: bool,
}

/// What ended the journal's use, or holds it up, to be told to everybody who asks.
#[derive(Debug, Clone)]
struct Failure {
    kind: ErrorKind,
    message: String,
}

impl Failure {
    fn error(&self) -> Error {
        let error = Error::new(self.kind, "journal", format!("the journal failed: {}", self.message));
        match self.kind {
            ErrorKind::Exhausted => error
                .with_help("make room, then it goes on by itself; everything acknowledged is kept")
                .with_retry_after(ROOM_INTERVAL),
            _ => error.with_help("look at the disk before starting again; everything acknowledged was written"),
        }
    }
}

impl Shared {
    // Whole after each statement.
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the scheduler closes, after waiting for that.
    fn closes_within(&self, time: Duration) -> bool {
        let waited = self.arrived.wait_timeout_while(self.lock(), time, |pending| !pending.closing);
        waited.unwrap_or_else(PoisonError::into_inner).0.closing
    }
}

impl Committer {
    pub(crate) fn start(journal: Box<dyn Journal>, kpis: JournalKpis) -> Result<Committer> {
        let shared =
            Arc::new(Shared { pending: Mutex::default(), arrived: Condvar::new(), failing: AtomicBool::new(false) });
        let ((tell_safe, safe), (tell_failure, failure)) = (watch::channel(0), watch::channel(None));
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("palisade-journal".to_owned())
            .spawn(move || commit_all(&theirs, journal, &tell_safe, &tell_failure, &kpis))
            .map_err(|error| Error::new(ErrorKind::Io, "open", "no thread for the journal").with_source(error))?;
        Ok(Committer { shared, safe, failure, thread: Some(thread) })
    }

    /// Hands entries over and gives the position of the last. The caller keeps the order of the calls.
    pub(crate) fn append(&self, entries: impl IntoIterator<Item = JournalEntry>) -> u64 {
        let mut pending = self.shared.lock();
        let before = pending.entries.len();
        pending.entries.extend(entries);
        pending.position += (pending.entries.len() - before) as u64;
        self.shared.arrived.notify_one();
        pending.position
    }

    /// The error that ended the journal's use or holds it up, if there is one.
    pub(crate) fn check(&self) -> Result<()> {
        match &*self.failure.borrow() {
            Some(failure) => Err(failure.error()),
            None => Ok(()),
        }
    }

    /// Waits until everything up to `position` is safe.
    ///
    /// # Errors
    ///
    /// The journal's, and then it may become safe later, when there is room again.
    pub(crate) async fn safe(&self, position: u64) -> Result<()> {
        if self.is_safe(position) {
            return Ok(());
        }
        let mut safe = self.safe.clone();
        while !self.is_safe(position) {
            let failing = || self.shared.failing.load(Ordering::Acquire);
            // The thread ends after most failures, and then nobody tells of more. What was safe before is so still.
            let ended = safe.wait_for(|safe| *safe >= position || failing()).await.is_err();
            if !self.is_safe(position) {
                self.check()?;
                if ended {
                    return Err(closed());
                }
            }
        }
        Ok(())
    }

    /// Up to which position everything is safe. Ends with the journal's use.
    pub(crate) fn progress(&self) -> watch::Receiver<u64> {
        self.safe.clone()
    }

    /// Waits until the journal fails.
    pub(crate) async fn failed(&self) -> Error {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await {
            Ok(failure) => failure.as_ref().map_or_else(closed, Failure::error),
            Err(_) => closed(),
        }
    }

    /// Whether everything up to `position` is safe.
    pub(crate) fn is_safe(&self, position: u64) -> bool {
        *self.safe.borrow() >= position
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.arrived.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Internal, "journal", "the journal's thread ended")
}

fn commit_all(
    shared: &Shared,
    mut journal: Box<dyn Journal>,
    tell_safe: &watch::Sender<u64>,
    tell_failure: &watch::Sender<Option<Failure>>,
    kpis: &JournalKpis,
) {
    let mut safe = 0;
    // Whoever waits for something to become safe is woken, and finds the failure.
    let tell = |failure: Option<Failure>| {
        let failing = failure.is_some();
        kpis.failing(failing);
        tell_failure.send_replace(failure);
        shared.failing.store(failing, Ordering::Release);
        tell_safe.send_modify(|_| {});
    };
    loop {
        let entries = {
            let mut pending = shared.lock();
            while pending.entries.is_empty() && !pending.closing {
                pending = shared.arrived.wait(pending).unwrap_or_else(PoisonError::into_inner);
            }
            if pending.entries.is_empty() {
                return;
            }
            std::mem::take(&mut pending.entries)
        };
        for batch in entries.chunks(BATCH_MAX) {
            let mut begun = Instant::now();
            let mut held_up = false;
            while let Err(error) = journal.commit(batch) {
                kpis.failed();
                let again = error.kind() == ErrorKind::Exhausted;
                if !held_up {
                    let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
                    let message = format!("{}{}", error.message(), source.unwrap_or_default());
                    tracing::error!(again, "the journal failed: {message}");
                    tell(Some(Failure { kind: error.kind(), message }));
                }
                held_up = true;
                if !again || shared.closes_within(ROOM_INTERVAL) {
                    return;
                }
                begun = Instant::now();
            }
            if held_up {
                tracing::info!("the journal has room again");
                tell(None);
            }
            kpis.committed(begun.elapsed(), batch.len());
            safe += batch.len() as u64;
            tell_safe.send_replace(safe);
        }
    }
}
