//! Parameters and results of the methods.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
pub use palisade_core::Submission;
use palisade_core::bounded;
use palisade_core::{
    ArtifactHash, ArtifactKind, Bytes, Completion, Execution, Layer, LogRecord, Outcome, Policy, Priority, RetryPolicy,
    SchedulerStats, TaskId, TaskRecord, TaskState, TraceContext, Usage,
};
use palisade_fabric::{AgentReport, AgentState, TenantReport};
pub use palisade_fabric::{Rate, TenantLimits};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::AgentSettings;

/// Most elements of a list in a request.
const LIST_MAX: usize = 1024;

/// Bytes, in JSON as base64 with padding.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Base64(pub Bytes);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Base64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes as base64")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Base64, E> {
                let bytes = STANDARD.decode(text).map_err(|error| E::custom(format!("not base64: {error}")))?;
                Ok(Base64(bytes.into()))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// No parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// Parameters of `plugins.install`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct InstallPlugin {
    /// Name, which several plugins may have.
    pub name: String,
    /// What the bytes are.
    pub kind: ArtifactKind,
    /// The artifact.
    pub bytes: Base64,
    /// The most its tasks may use and reach, within the daemon's ceiling, and what they have unless they ask for less.
    #[serde(default)]
    pub policy: Policy,
    /// How its tasks are run.
    #[serde(default)]
    pub agent: AgentSettings,
    /// On whose behalf: tenants share the room for plugins. All of them may use it. Default `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

/// Result of `plugins.install`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
pub struct Installed {
    /// The plugin.
    pub plugin: ArtifactHash,
    /// It was not there before.
    pub installed: bool,
}

/// Names a plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PluginRef {
    /// Its hash, the first 8 digits or more of it, or its name when no other plugin has it.
    pub plugin: String,
}

/// What is known about a plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
pub struct PluginInfo {
    /// Its identity.
    pub plugin: ArtifactHash,
    /// Its name.
    pub name: String,
    /// On whose behalf it was installed.
    pub tenant: String,
    /// What it is.
    pub kind: ArtifactKind,
    /// Size of the artifact.
    pub size_bytes: u64,
    /// The most its tasks may use and reach.
    pub policy: Policy,
    /// How its tasks are run. `None`: its agent was terminated.
    pub agent: Option<AgentSettings>,
}

/// Result of `plugins.list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
pub struct PluginList {
    /// Sorted by name.
    pub plugins: Vec<PluginInfo>,
}

/// Parameters of `tasks.submit`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SubmitTask {
    /// The plugin, as in [`PluginRef`].
    pub plugin: String,
    /// Entry point. Default `_start`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// Arguments after the program's own name, at most 1024.
    #[serde(default, deserialize_with = "bounded::vec::<LIST_MAX, _, _>")]
    pub arguments: Vec<String>,
    /// Input.
    #[serde(default)]
    pub input: Base64,
    /// Urgency.
    #[serde(default)]
    pub priority: Priority,
    /// On whose behalf. Default `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// What it runs under, within the plugin's: what it asks to reach and nothing else. A quota that is lifted or
    /// left at its default is the plugin's, where that is smaller. Default: the plugin's policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// When to try again.
    #[serde(default)]
    pub retry: RetryPolicy,
    /// Not run before this time, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_unix_ms: Option<u64>,
    /// Given up at this time, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_unix_ms: Option<u64>,
    /// Makes submission idempotent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// An id of the client's making (a UUID of version 7), so that it may submit again after a lost answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// Where it came from, for traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceContext>,
    /// Free labels, at most 1024.
    #[serde(default, deserialize_with = "bounded::map::<LIST_MAX, _, _, _>")]
    pub labels: BTreeMap<String, String>,
}

impl SubmitTask {
    /// A task of `plugin` with defaults for everything else.
    pub fn new(plugin: impl Into<String>) -> SubmitTask {
        SubmitTask {
            plugin: plugin.into(),
            entry: None,
            arguments: Vec::new(),
            input: Base64::default(),
            priority: Priority::default(),
            tenant: None,
            policy: None,
            retry: RetryPolicy::default(),
            not_before_unix_ms: None,
            deadline_unix_ms: None,
            idempotency_key: None,
            task: None,
            trace: None,
            labels: BTreeMap::new(),
        }
    }
}

/// Names a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TaskRef {
    /// Its id.
    pub task: TaskId,
}

/// Parameters of `tasks.wait`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct WaitTask {
    /// The task.
    pub task: TaskId,
    /// How long to wait, in milliseconds, at most [`WaitTask::TIMEOUT_MS_MAX`]. Default the most.
    #[serde(default = "WaitTask::timeout_ms_default")]
    pub timeout_ms: u64,
}

impl WaitTask {
    /// The longest wait: one minute.
    pub const TIMEOUT_MS_MAX: u64 = 60_000;

    fn timeout_ms_default() -> u64 {
        WaitTask::TIMEOUT_MS_MAX
    }
}

/// Parameters of `tasks.list`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ListTasks {
    /// Only those in one of these states. Empty: in any.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "bounded::vec::<LIST_MAX, _, _>")]
    pub states: Vec<TaskState>,
    /// Only those of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Only those of this plugin: as in [`PluginRef`], or the whole hash of one that was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// Only those before this one, to go on where a page ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<TaskId>,
    /// Most tasks to list, at most 1000. Default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks_max: Option<usize>,
}

/// Result of `tasks.list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
pub struct TaskPage {
    /// Latest id first: ids sort by time. A page looks at a bounded number of tasks, so it may hold fewer than were asked
    /// for, even none, although there are more.
    pub tasks: Vec<TaskInfo>,
    /// There may be more: ask again with this as [`ListTasks::before`].
    pub next: Option<TaskId>,
}

/// Parameters of `tasks.dead_letters`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ListDeadLetters {
    /// Only those after this one, to go on where a list ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<TaskId>,
    /// Most tasks to list, at most 1000. Default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks_max: Option<usize>,
}

/// Result of `tasks.cancel` and `tasks.requeue`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
pub struct TaskStateInfo {
    /// The task.
    pub task: TaskId,
    /// Where it is now.
    pub state: TaskState,
}

/// What is recorded about a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
pub struct TaskInfo {
    /// Its id.
    pub task: TaskId,
    /// Where it is.
    pub state: TaskState,
    /// The plugin.
    pub plugin: ArtifactHash,
    /// Entry point.
    pub entry: String,
    /// Urgency.
    pub priority: Priority,
    /// On whose behalf.
    pub tenant: String,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When it was submitted, in milliseconds since 1970.
    pub submitted_unix_ms: u64,
    /// When it got its outcome, in milliseconds since 1970.
    pub finished_unix_ms: Option<u64>,
    /// Attempts that failed.
    pub failures: u32,
    /// Attempts whose worker was lost.
    pub lost: u32,
    /// How the guest ended: the recorded outcome, or before there is one that of the latest attempt that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<ExecutionInfo>,
    /// Why the host could not run it, in place of `execution`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_error: Option<String>,
}

/// How a guest ended, what it took and what it wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
pub struct ExecutionInfo {
    /// How it ended.
    pub outcome: Outcome,
    /// What it took.
    pub usage: Usage,
    /// Standard output. Left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Base64>,
    /// Standard error. Left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Base64>,
    /// Log records. Left out of lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<LogRecord>,
    /// What stood between the guest and the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub isolation: Vec<Layer>,
}

impl TaskInfo {
    /// What a record says; without what the guest wrote unless `with_output`.
    pub fn new(record: &TaskRecord, with_output: bool) -> TaskInfo {
        let task = &record.task;
        let (execution, host_error) = match record.completion.as_deref() {
            None => (None, None),
            Some(Completion::Executed(execution)) => (Some(ExecutionInfo::new(execution, with_output)), None),
            Some(Completion::HostError { message, .. }) => (None, Some(message.clone())),
        };
        TaskInfo {
            task: task.id,
            state: record.state,
            plugin: task.plugin,
            entry: task.entry.clone(),
            priority: task.priority,
            tenant: task.tenant.0.clone(),
            labels: task.labels.clone(),
            submitted_unix_ms: unix_ms(record.submitted_at),
            finished_unix_ms: record.finished_at.map(unix_ms),
            failures: record.failures,
            lost: record.lost,
            execution,
            host_error,
        }
    }
}

impl ExecutionInfo {
    fn new(execution: &Execution, with_output: bool) -> ExecutionInfo {
        ExecutionInfo {
            outcome: execution.outcome.clone(),
            usage: execution.usage,
            output: with_output.then(|| Base64(execution.output.clone())),
            error: with_output.then(|| Base64(execution.error.clone())),
            log: if with_output { execution.log.clone() } else { Vec::new() },
            isolation: execution.isolation.to_vec(),
        }
    }
}

/// Milliseconds since 1970; zero before.
pub fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Result of `tasks.dead_letters`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
pub struct TaskList {
    /// Sorted by id.
    pub tasks: Vec<TaskInfo>,
}

/// Parameters of `agents.spawn`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SpawnAgent {
    /// The plugin, as in [`PluginRef`].
    pub plugin: String,
    /// How its tasks are run. Kept with the plugin.
    #[serde(default)]
    pub agent: AgentSettings,
}

/// What an agent did, and where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
pub struct AgentInfo {
    /// Its name: that of the plugin and the beginning of its hash.
    pub name: String,
    /// What it runs.
    pub plugin: ArtifactHash,
    /// Where it is.
    pub state: AgentState,
    /// Tasks it runs now.
    pub running: usize,
    /// Ends by outcome, by the outcome's name.
    pub outcomes: BTreeMap<String, u64>,
    /// Times it failed and was started again.
    pub restarts: u64,
    /// Half of the tasks took at most this many milliseconds, from lease to completion.
    pub latency_p50_ms: f64,
    /// Nine of ten took at most this many milliseconds.
    pub latency_p90_ms: f64,
    /// 99 of 100 took at most this many milliseconds.
    pub latency_p99_ms: f64,
    /// CPU time in all, in milliseconds.
    pub cpu_time_ms: f64,
    /// Most memory one task had.
    pub memory_peak_bytes: u64,
    /// Entries of its memory.
    pub memory_entries: usize,
    /// Bytes of its memory.
    pub memory_bytes: usize,
}

impl From<AgentReport> for AgentInfo {
    fn from(report: AgentReport) -> AgentInfo {
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        AgentInfo {
            name: report.name,
            plugin: report.plugin,
            state: report.state,
            running: report.running,
            outcomes: report.outcomes.into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
            restarts: report.restarts,
            latency_p50_ms: millis(report.latency_p50),
            latency_p90_ms: millis(report.latency_p90),
            latency_p99_ms: millis(report.latency_p99),
            cpu_time_ms: millis(report.cpu_time),
            memory_peak_bytes: report.memory_peak_bytes,
            memory_entries: report.memory_entries,
            memory_bytes: report.memory_bytes,
        }
    }
}

/// Result of `agents.list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
pub struct AgentList {
    /// Sorted by name.
    pub agents: Vec<AgentInfo>,
}

/// Parameters of `agents.memory`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LookAtMemory {
    /// The plugin, as in [`PluginRef`].
    pub plugin: String,
    /// This key only, with its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Base64>,
    /// Only keys after this one, to go on where a list ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Base64>,
    /// Most keys to list, at most 1000. Default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries_max: Option<usize>,
}

impl LookAtMemory {
    /// The first keys of what the agent of `plugin` remembers.
    pub fn new(plugin: impl Into<String>) -> LookAtMemory {
        LookAtMemory { plugin: plugin.into(), key: None, after: None, entries_max: None }
    }
}

/// Result of `agents.memory`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
pub struct MemoryPage {
    /// In the order of their keys.
    pub entries: Vec<MemoryEntry>,
    /// There may be more: ask again with this as [`LookAtMemory::after`].
    pub next: Option<Base64>,
}

/// What an agent remembers under one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
pub struct MemoryEntry {
    /// The key.
    pub key: Base64,
    /// Bytes of the value.
    pub value_bytes: usize,
    /// The value. Left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Base64>,
}

/// Parameters of `tenants.set`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SetTenant {
    /// Which tenant. It need not have tasks.
    pub tenant: String,
    /// Its own limits. What they leave out is as for every tenant.
    pub limits: TenantLimits,
}

/// Names a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TenantRef {
    /// Its name.
    pub tenant: String,
}

/// Parameters of `tenants.list`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ListTenants {
    /// Only those after this one, to go on where a list ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Most tenants to list, at most 1000. Default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants_max: Option<usize>,
}

/// Result of `tenants.list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
pub struct TenantList {
    /// Sorted by name.
    pub tenants: Vec<TenantInfo>,
    /// There are more: ask again with this as [`ListTenants::after`].
    pub next: Option<String>,
}

/// What a tenant may do, and what it has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
pub struct TenantInfo {
    /// Its name.
    pub tenant: String,
    /// Tasks that wait for a worker.
    pub queued: u64,
    /// Tasks that wait for their time or for a retry.
    pub delayed: u64,
    /// Tasks that run.
    pub running: u64,
    /// What counts for it. What is left out is not bounded, and the weight 1.
    pub limits: TenantLimits,
    /// Its own limits; without them it has those of every tenant.
    pub own_limits: Option<TenantLimits>,
}

impl From<TenantReport> for TenantInfo {
    fn from(report: TenantReport) -> TenantInfo {
        TenantInfo {
            tenant: report.tenant.0,
            queued: report.queued,
            delayed: report.delayed,
            running: report.running,
            limits: report.limits,
            own_limits: report.own_limits,
        }
    }
}

/// Result of `health`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
pub struct Health {
    /// Version of the daemon.
    pub version: String,
    /// It takes no more tasks and will end.
    pub draining: bool,
    /// Tasks outlive it.
    pub durable: bool,
    /// Why it can keep nothing at present, and refuses all calls about tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal_error: Option<String>,
    /// Time since it started, in milliseconds.
    pub uptime_ms: u64,
    /// Installed plugins.
    pub plugins: usize,
    /// What the scheduler holds.
    pub tasks: SchedulerStats,
}

/// Result of `metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(all(test, feature = "schema"), derive(schemars::JsonSchema))]
pub struct Metrics {
    /// Text format of OpenMetrics.
    pub text: String,
}
