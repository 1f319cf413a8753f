//! One unit of work, as it is submitted.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::units::serde_duration;
use crate::{ArtifactHash, Error, ErrorKind, Policy, TraceContext};

/// Identity of a task: a UUID of version 7, so that ids sort by time and any process can make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct TaskId(#[cfg_attr(feature = "schema", schemars(with = "crate::schema::Id"))] pub Uuid);

impl TaskId {
    /// A new id. Uses the system's clock and randomness.
    #[expect(clippy::new_without_default, reason = "two defaults would differ")]
    pub fn new() -> Self {
        TaskId(Uuid::now_v7())
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// How urgent a task is. Greater is more urgent.
///
/// ```
/// use palisade_core::Priority;
///
/// assert!(Priority::Critical > Priority::High && Priority::Normal > Priority::Low);
/// assert_eq!("high".parse::<Priority>().unwrap(), Priority::High);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Before everything else.
    Critical,
    /// Before normal work.
    High,
    /// The default.
    #[default]
    Normal,
    /// When nothing else is to be done.
    Low,
}

impl Priority {
    /// All priorities, most urgent first.
    pub const ALL: [Priority; 4] = [Priority::Critical, Priority::High, Priority::Normal, Priority::Low];

    /// The rank: 3 for critical down to 0 for low.
    pub fn rank(self) -> u8 {
        match self {
            Priority::Critical => 3,
            Priority::High => 2,
            Priority::Normal => 1,
            Priority::Low => 0,
        }
    }

    /// The name in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Priority::Critical => "critical",
            Priority::High => "high",
            Priority::Normal => "normal",
            Priority::Low => "low",
        }
    }
}

// By rank, so that the order of the variants (which serves readers) cannot change the order of the work.
impl Ord for Priority {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for Priority {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl FromStr for Priority {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Priority::ALL.into_iter().find(|priority| priority.as_str() == text).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "parse", format!("`{text}` is not a priority"))
                .with_help("write critical, high, normal or low")
        })
    }
}

/// On whose behalf a task runs. Fairness and rate limits are between tenants.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tenant(pub String);

impl Default for Tenant {
    fn default() -> Self {
        Tenant("default".into())
    }
}

/// A second submission under the same key, tenant and plugin gives the first task back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IdempotencyKey(pub String);

/// When and how often to try again: exponential backoff with full jitter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RetryPolicy {
    /// Attempts in all, the first included. Default 3.
    pub attempts_max: u32,
    /// The first delay is random between zero and this; it doubles each time. Default 1 s.
    #[serde(with = "serde_duration")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Span"))]
    pub backoff_initial: Duration,
    /// No delay is longer than this, not even one the guest asks for. Default 5 min.
    #[serde(with = "serde_duration")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Span"))]
    pub backoff_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy { attempts_max: 3, backoff_initial: Duration::from_secs(1), backoff_max: Duration::from_secs(300) }
    }
}

/// One unit of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Task {
    /// Identity.
    pub id: TaskId,
    /// The plugin's artifact.
    pub plugin: ArtifactHash,
    /// Entry point.
    pub entry: String,
    /// Arguments after the program's own name.
    pub arguments: Vec<String>,
    /// Input.
    pub input: Bytes,
    /// Urgency.
    pub priority: Priority,
    /// On whose behalf.
    pub tenant: Tenant,
    /// Quota and grants.
    pub policy: Policy,
    /// When to try again.
    pub retry: RetryPolicy,
    /// Not run before this time.
    pub not_before: Option<SystemTime>,
    /// Given up at this time, whatever it is doing.
    pub deadline: Option<SystemTime>,
    /// Makes submission idempotent.
    pub idempotency_key: Option<IdempotencyKey>,
    /// Where it came from, for traces.
    pub trace: Option<TraceContext>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
}

impl Task {
    /// A task of `plugin` with defaults for everything else.
    pub fn new(plugin: ArtifactHash) -> Self {
        Task {
            id: TaskId::new(),
            plugin,
            entry: crate::Call::DEFAULT_ENTRY.to_owned(),
            arguments: Vec::new(),
            input: Bytes::new(),
            priority: Priority::default(),
            tenant: Tenant::default(),
            policy: Policy::default(),
            retry: RetryPolicy::default(),
            not_before: None,
            deadline: None,
            idempotency_key: None,
            trace: None,
            labels: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_order_by_rank() {
        let mut all = Priority::ALL;
        all.sort();
        assert_eq!(all, [Priority::Low, Priority::Normal, Priority::High, Priority::Critical]);
        for (low, high) in all.iter().zip(&all[1..]) {
            assert!(low < high && low.rank() < high.rank());
        }
        assert_eq!(all.iter().max(), Some(&Priority::Critical));
        assert!("urgent".parse::<Priority>().is_err());
    }

    #[test]
    fn tasks_round_trip() {
        let mut task = Task::new(ArtifactHash::of(b"x"));
        task.deadline = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
        task.input = Bytes::from_static(&[0, 255]);
        let json = serde_json::to_string(&task).unwrap();
        assert_eq!(serde_json::from_str::<Task>(&json).unwrap(), task);
    }

    #[test]
    fn ids_sort_by_time() {
        let ids: Vec<_> = (0..100).map(|_| TaskId::new()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
