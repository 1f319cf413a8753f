//! Whether a task may be queued at all.

use palisade_core::{Capabilities, Error, ErrorKind, Result, Task, Tenant};

use crate::SchedulerLimits;

/// Longest name of a tenant, an idempotency key or an entry point, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// Most arguments or labels.
const LIST_MAX: usize = 1024;
const ATTEMPTS_MAX: u32 = 1000;
const BACKOFF_MAX: std::time::Duration = std::time::Duration::from_secs(30 * 24 * 3600);

/// Admits a task to a backend: what it asks for must be enforceable there. Schedulers check the rest, because they serve
/// any backend.
///
/// # Errors
///
/// As [`Capabilities::admit`].
pub fn admit(task: &Task, capabilities: &Capabilities) -> Result<()> {
    capabilities.admit(&task.policy).map_err(|error| error.with_context("task", task.id))
}

/// Checks what does not depend on a scheduler's state, and gives the bytes the task counts for.
pub(crate) fn check(task: &Task, limits: &SchedulerLimits) -> Result<usize> {
    let invalid =
        |message: String| Err(Error::new(ErrorKind::InvalidInput, "submit", message).with_context("task", task.id));
    check_tenant(&task.tenant, "submit").map_err(|error| error.with_context("task", task.id))?;
    let names = [
        ("entry point", task.entry.as_str(), true),
        ("idempotency key", task.idempotency_key.as_ref().map_or("-", |key| key.0.as_str()), true),
    ];
    for (what, name, required) in names {
        if required && name.is_empty() || name.len() > NAME_BYTES_MAX {
            return invalid(format!("the {what} has {} bytes; 1 to {NAME_BYTES_MAX} are allowed", name.len()));
        }
    }
    let longest = task.arguments.len().max(task.labels.len());
    if longest > LIST_MAX {
        return invalid(format!("a task has at most {LIST_MAX} arguments and labels, not {longest}"));
    }
    if let Some(trace) = &task.trace {
        trace.validate().map_err(|error| error.with_context("task", task.id))?;
    }
    if !(1..=ATTEMPTS_MAX).contains(&task.retry.attempts_max) {
        return invalid(format!("a task has 1 to {ATTEMPTS_MAX} attempts, not {}", task.retry.attempts_max));
    }
    if task.retry.backoff_max > BACKOFF_MAX {
        return invalid("the longest backoff is 30 days".to_owned());
    }
    task.policy.validate()?;
    let bytes = weigh(task);
    if bytes > limits.task_bytes_max {
        return invalid(format!("a task of {bytes} bytes is larger than the {} allowed", limits.task_bytes_max))
            .map_err(|error| error.with_help("pass large inputs by reference, for example as a granted file"));
    }
    Ok(bytes)
}

/// Checks the name of a tenant.
pub(crate) fn check_tenant(tenant: &Tenant, operation: &'static str) -> Result<()> {
    match tenant.0.len() {
        1..=NAME_BYTES_MAX => Ok(()),
        bytes => {
            let message = format!("the tenant has {bytes} bytes; 1 to {NAME_BYTES_MAX} are allowed");
            Err(Error::new(ErrorKind::InvalidInput, operation, message))
        }
    }
}

/// The bytes a task counts for.
pub(crate) fn weigh(task: &Task) -> usize {
    let grants = &task.policy.grants;
    let granted: usize = grants.environment.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
        + grants.directories.iter().map(|one| one.host.as_os_str().len() + one.guest.len()).sum::<usize>()
        + grants.host_functions.iter().map(String::len).sum::<usize>();
    let traced = task.trace.as_ref().map_or(0, |trace| trace.traceparent.len() + trace.tracestate.len());
    let labels: usize = task.labels.iter().map(|(name, value)| name.len() + value.len()).sum();
    let arguments: usize = task.arguments.iter().map(String::len).sum();
    size_of::<Task>() + task.input.len() + arguments + labels + traced + granted
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use palisade_core::{ArtifactHash, Bytes, IdempotencyKey, Sandbox, Tenant};
    use palisade_fake::Fake;

    use super::*;

    #[test]
    fn each_bound_allows_its_number_and_refuses_one_more() {
        let limits = SchedulerLimits::default();
        let task = || Task::new(ArtifactHash::of(b"plugin"));
        let verdict = |change: &dyn Fn(&mut Task)| {
            let mut task = task();
            change(&mut task);
            check(&task, &limits).map_err(|error| error.kind())
        };
        let base = check(&task(), &limits).unwrap();
        let room = limits.task_bytes_max - base;
        assert_eq!(verdict(&|t| t.input = Bytes::from(vec![0; room])), Ok(limits.task_bytes_max));
        let refused = Err(ErrorKind::InvalidInput);
        assert_eq!(verdict(&|t| t.input = Bytes::from(vec![0; room + 1])), refused);
        assert!(verdict(&|t| t.tenant = Tenant("t".repeat(256))).is_ok());
        assert_eq!(verdict(&|t| t.tenant = Tenant("t".repeat(257))), refused);
        assert_eq!(verdict(&|t| t.tenant = Tenant(String::new())), refused);
        assert_eq!(verdict(&|t| t.idempotency_key = Some(IdempotencyKey(String::new()))), refused);
        assert!(verdict(&|t| t.arguments = vec![String::new(); 1024]).is_ok());
        assert_eq!(verdict(&|t| t.arguments = vec![String::new(); 1025]), refused);
        assert!(verdict(&|t| t.retry.attempts_max = 1000).is_ok());
        assert_eq!(verdict(&|t| t.retry.attempts_max = 1001), refused);
        assert_eq!(verdict(&|t| t.retry.attempts_max = 0), refused);
        assert_eq!(verdict(&|t| t.retry.backoff_max = Duration::MAX), refused);
        assert_eq!(
            verdict(&|t| t.policy.grants.host_functions = [String::new()].into()),
            Err(ErrorKind::InvalidPolicy)
        );
    }

    #[test]
    fn what_a_backend_cannot_enforce_is_not_admitted() {
        let mut task = Task::new(ArtifactHash::of(b"plugin"));
        let fake = Fake::new(None);
        assert!(admit(&task, fake.capabilities()).is_ok());
        task.policy.grants.network = true;
        assert_eq!(admit(&task, fake.capabilities()).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
