//! When to try again.

use std::time::Duration;

use palisade_core::{Completion, Outcome, RetryPolicy};

/// How long to wait before the attempt after `failures` failed ones: exponential backoff with full jitter, that is, a
/// time chosen evenly between nothing and the backoff (Brooker, *Exponential Backoff and Jitter*, AWS 2015).
///
/// A guest that asked for a time gets it, up to the policy's longest. `random` is any number from all of `u64`.
pub(crate) fn delay(policy: &RetryPolicy, failures: u32, asked: Option<Duration>, random: u64) -> Duration {
    if let Some(asked) = asked {
        return asked.min(policy.backoff_max);
    }
    let doublings = failures.saturating_sub(1).min(31);
    let backoff = policy.backoff_initial.saturating_mul(1 << doublings).min(policy.backoff_max);
    let millis = u64::try_from(backoff.as_millis()).unwrap_or(u64::MAX - 1);
    Duration::from_millis(((u128::from(random) * (u128::from(millis) + 1)) >> 64) as u64)
}

/// What a completion asks for.
pub(crate) enum Verdict {
    Success,
    Cancelled,
    /// Try again, after a time the guest may name.
    Retry(Option<Duration>),
    Failure,
}

pub(crate) fn judge(completion: &Completion) -> Verdict {
    match completion {
        Completion::Executed(execution) => match &execution.outcome {
            Outcome::Completed => Verdict::Success,
            Outcome::Cancelled { .. } => Verdict::Cancelled,
            Outcome::Failed { retry_requested: true, retry_after, .. } => Verdict::Retry(*retry_after),
            outcome if outcome.is_retryable() => Verdict::Retry(None),
            _ => Verdict::Failure,
        },
        Completion::HostError { retryable: true, .. } => Verdict::Retry(None),
        Completion::HostError { .. } => Verdict::Failure,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_longest() {
        let policy = RetryPolicy {
            attempts_max: 99,
            backoff_initial: Duration::from_millis(100),
            backoff_max: Duration::from_secs(1),
        };
        let longest: Vec<_> = (1..7).map(|failures| delay(&policy, failures, None, u64::MAX).as_millis()).collect();
        assert_eq!(longest, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(delay(&policy, 3, None, 0), Duration::ZERO, "full jitter reaches down to nothing");
        assert_eq!(delay(&policy, 3, None, u64::MAX / 2), Duration::from_millis(200));
        assert_eq!(delay(&policy, 1, Some(Duration::from_millis(7)), 0), Duration::from_millis(7));
        assert_eq!(delay(&policy, 1, Some(Duration::MAX), 0), Duration::from_secs(1));
    }

    proptest! {
        #[test]
        fn no_number_breaks_it(
            initial in any::<Duration>(), max in any::<Duration>(), failures: u32, random: u64, asked in any::<Option<Duration>>(),
        ) {
            let policy = RetryPolicy { attempts_max: 1, backoff_initial: initial, backoff_max: max };
            prop_assert!(delay(&policy, failures, asked, random) <= max);
        }
    }
}
