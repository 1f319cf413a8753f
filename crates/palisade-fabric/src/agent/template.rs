//! What agents are made from.

use std::path::PathBuf;
use std::time::Duration;

use palisade_core::{Artifact, Policy};
use serde::{Deserialize, Serialize};

use crate::MemoryLimits;

/// What agents are made from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AgentTemplate {
    /// Name, unique in an executor.
    pub name: String,
    /// What it runs.
    pub artifact: Artifact,
    /// The most its tasks may use and reach. A task's own quota holds where it is smaller; what a task asks to reach
    /// beyond this is refused.
    pub policy: Policy,
    /// Whether tasks share an instance.
    pub instances: InstanceMode,
    /// Tasks it runs at once. Default 64.
    pub tasks_max: usize,
    /// How often it is started again after it failed.
    pub restarts: RestartBudget,
    /// Bounds of its memory.
    pub memory: MemoryLimits,
    /// Where its memory is kept while no executor has the agent: read when it is spawned, written when it is removed
    /// and when its executor is drained. `None`: nowhere.
    pub memory_file: Option<PathBuf>,
}

impl AgentTemplate {
    /// An agent called `name` that runs `artifact`, with defaults for everything else.
    pub fn new(name: impl Into<String>, artifact: Artifact) -> AgentTemplate {
        AgentTemplate {
            name: name.into(),
            artifact,
            policy: Policy::default(),
            instances: InstanceMode::Fresh,
            tasks_max: 64,
            restarts: RestartBudget::default(),
            memory: MemoryLimits::default(),
            memory_file: None,
        }
    }
}

/// Whether tasks of an agent share an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum InstanceMode {
    /// Each task has an instance of its own: nothing of one task is left for the next.
    #[default]
    Fresh,
    /// An instance serves task after task until it ends abnormally, or makes room for those of others. Tasks of one policy
    /// share it, whoever submitted them.
    Kept,
}

/// How often an agent is started again after it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RestartBudget {
    /// Failures within [`RestartBudget::window`] it survives; one more terminates it. Default 5.
    pub failures_max: u32,
    /// How long a failure counts. Default 1 min.
    pub window: Duration,
    /// Pause after the first failure; doubles with each that counts. Default 100 ms.
    pub backoff_initial: Duration,
    /// Longest pause. Default 10 s.
    pub backoff_max: Duration,
}

impl Default for RestartBudget {
    fn default() -> Self {
        RestartBudget {
            failures_max: 5,
            window: Duration::from_secs(60),
            backoff_initial: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
        }
    }
}
