//! Keeping what was decided, so that it survives the process.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use palisade_core::{Error, ErrorKind, Result, Task};
use tokio::sync::watch;

use crate::Status;
use crate::kpi::JournalKpis;

/// Keeps tasks on something that outlives the process.
///
/// # Contract
///
/// A batch is kept as a whole or not at all, and is safe when [`Journal::commit`] returns. One thread uses a journal at
/// a time; a second process that opens the same one is refused.
pub trait Journal: Send + fmt::Debug {
    /// Gives back everything that is kept, by growing `seq`, and begins a new epoch: a number greater than any before,
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
    /// [`ErrorKind::Exhausted`] when there is no room, [`ErrorKind::Io`] or [`ErrorKind::Corrupt`] otherwise. After an
    /// error the journal is not used again: whether a failed write can be repeated, no disk tells.
    fn commit(&mut self, batch: &[JournalEntry]) -> Result<()>;
}

/// A task as a journal gives it back.
#[derive(Debug)]
pub struct Kept {
    /// Its place in the order of submission.
    pub seq: u64,
    /// The task.
    pub task: Task,
    /// How far it came.
    pub status: Status,
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
}

/// Most entries in one commit: enough to spread the cost of a flush, few enough to keep the wait short.
const BATCH_MAX: usize = 8192;

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
}

#[derive(Debug, Default)]
struct Pending {
    entries: Vec<JournalEntry>,
    /// Entries ever given: the position of the latest.
    position: u64,
    closing: bool,
}

/// What ended the journal's use, to be told to everybody who asks.
#[derive(Debug, Clone)]
struct Failure {
    kind: ErrorKind,
    message: String,
}

impl Failure {
    fn error(&self) -> Error {
        let help = match self.kind {
            ErrorKind::Exhausted => "make room and start again; everything acknowledged is kept",
            _ => "look at the disk before starting again; everything acknowledged was written",
        };
        Error::new(self.kind, "journal", format!("the journal failed: {}", self.message)).help(help)
    }
}

impl Shared {
    // Whole after each statement.
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Committer {
    pub(crate) fn start(journal: Box<dyn Journal>, kpis: JournalKpis) -> Result<Committer> {
        let shared = Arc::new(Shared { pending: Mutex::default(), arrived: Condvar::new() });
        let ((tell_safe, safe), (tell_failure, failure)) = (watch::channel(0), watch::channel(None));
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("palisade-journal".to_owned())
            .spawn(move || commit_all(&theirs, journal, &tell_safe, &tell_failure, &kpis))
            .map_err(|error| Error::new(ErrorKind::Io, "open", "no thread for the journal").source(error))?;
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

    /// The error that ended the journal's use, if one did.
    pub(crate) fn check(&self) -> Result<()> {
        match &*self.failure.borrow() {
            Some(failure) => Err(failure.error()),
            None => Ok(()),
        }
    }

    /// Waits until everything up to `position` is safe.
    pub(crate) async fn safe(&self, position: u64) -> Result<()> {
        if self.is_safe(position) {
            return Ok(());
        }
        let mut safe = self.safe.clone();
        let reached = safe.wait_for(|safe| *safe >= position).await.is_ok();
        // The thread ends after a failure, and then nobody tells of more. What was safe before is so still.
        if reached { Ok(()) } else { Err(self.check().err().unwrap_or_else(closed)) }
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
            let begun = Instant::now();
            if let Err(error) = journal.commit(batch) {
                let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
                let failure = Failure { kind: error.kind(), message: format!("{}{source}", error.message()) };
                tell_failure.send_replace(Some(failure));
                return;
            }
            kpis.committed(begun.elapsed(), batch.len());
            safe += batch.len() as u64;
            tell_safe.send_replace(safe);
        }
    }
}
