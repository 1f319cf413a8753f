//! What happens to a task, and what there is to keep of it.

use std::sync::Arc;
use std::time::Duration;

use palisade_core::{Completion, Priority, Task, TaskState};

/// Something that happened to a task and must be journaled, counted and published: everything, except that it was forgotten.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) slot: u32,
    pub(crate) seq: u64,
    pub(crate) class: Priority,
    pub(crate) task: Arc<Task>,
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    Submitted,
    /// Waits for a worker from now on.
    Leased {
        waited: Duration,
        attempt: u32,
    },
    Retried {
        failures: u32,
    },
    Lost,
    Released,
    Requeued,
    Finished {
        state: TaskState,
        completion: Arc<Completion>,
    },
}

/// What changes about a task during its life: a journal keeps the latest.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Where it is.
    pub state: TaskState,
    /// Submission, in milliseconds since the Unix epoch.
    pub submitted_at: u64,
    /// While delayed: when it may start, in milliseconds since the Unix epoch.
    pub ready_at: u64,
    /// Once it has an outcome: since when, in milliseconds since the Unix epoch.
    pub finished_at: u64,
    /// Attempts that failed.
    pub failures: u32,
    /// Attempts whose worker was lost.
    pub lost: u32,
    /// As in [`TaskRecord::completion`](palisade_core::TaskRecord::completion).
    pub completion: Option<Arc<Completion>>,
}
