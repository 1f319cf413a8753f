//! The conformance suite on the durable scheduler.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use palisade_conformance::{Component, certify_scheduler};
use palisade_core::{Error, ErrorKind, Result, Scheduler, TaskId};
use palisade_fabric::{LocalScheduler, SchedulerOptions, SqliteJournal};
use tempfile::TempDir;

/// Where the journals lie, one for each check.
static FOLDER: Mutex<Option<TempDir>> = Mutex::new(None);

fn open() -> Result<Arc<dyn Scheduler>> {
    let folder = FOLDER.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = folder.as_ref().ok_or_else(|| Error::new(ErrorKind::Io, "open", "there is no folder"))?;
    let journal = folder.path().join(TaskId::new().to_string());
    let mut options = SchedulerOptions::default();
    options.journal = Some(Box::new(SqliteJournal::new(journal, 1 << 30)?));
    Ok(Arc::new(LocalScheduler::open(options)?))
}

fn main() -> ExitCode {
    let set = |folder| *FOLDER.lock().unwrap_or_else(PoisonError::into_inner) = folder;
    set(tempfile::tempdir().ok());
    let code = certify_scheduler(Component {
        name: "palisade-fabric, durable",
        version: env!("CARGO_PKG_VERSION"),
        reproduce: "cargo test -p palisade-fabric --test conformance_durable --",
        open,
    });
    // Statics are not dropped at the end, and this one is a folder.
    set(None);
    code
}
