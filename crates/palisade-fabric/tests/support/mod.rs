//! What tests of the fabric share.
#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod load;
pub(crate) mod spans;
pub(crate) mod traced;

use std::time::Duration;

use palisade_core::{ArtifactHash, Completion, Execution, LeaseRequest, Outcome, Task, TaskId, Usage, WorkerId};
use uuid::Uuid;

pub(crate) fn task(input: impl Into<palisade_core::Bytes>) -> Task {
    let mut task = Task::new(ArtifactHash::of(b"plugin"));
    task.input = input.into();
    task
}

pub(crate) fn request(tasks_max: usize) -> LeaseRequest {
    LeaseRequest::new(WorkerId(Uuid::now_v7()), tasks_max, Duration::from_secs(30))
}

pub(crate) fn ended(outcome: Outcome) -> Completion {
    Completion::Executed(Box::new(Execution::new(outcome, Usage::default())))
}

pub(crate) fn success() -> Completion {
    ended(Outcome::Completed)
}

/// Asks for a retry after `after`.
pub(crate) fn again(after: Duration) -> Completion {
    ended(Outcome::Failed { exit_code: 75, retry_requested: true, retry_after: Some(after) })
}

pub(crate) fn ids(leases: &[palisade_core::Lease]) -> Vec<TaskId> {
    leases.iter().map(|lease| lease.task.id).collect()
}
