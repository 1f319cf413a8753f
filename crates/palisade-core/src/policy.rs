//! What a guest may use (quota) and reach (grants).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::{self, serde_optional};
use crate::{Error, ErrorKind, Result};

/// Quota and grants: everything a backend needs to know about how far to trust a guest.
///
/// The default is safe for code from anywhere: every quota bounded (see [`Quota`]), nothing granted but coarse clocks
/// and randomness.
///
/// ```
/// use std::time::Duration;
/// use palisade_core::{DirectoryGrant, Policy};
///
/// let mut policy = Policy::default();
/// policy.quota.wall_time = Some(Duration::from_secs(2));
/// policy.grants.directories.push(DirectoryGrant::read_only("/srv/models", "/models"));
/// assert!(policy.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Upper bounds.
    pub quota: Quota,
    /// What the guest may reach.
    pub grants: Grants,
}

/// Upper bounds. `None` means not bounded by the policy. A limit of N allows exactly N and refuses N+1.
///
/// Time, fuel, output, log, disk and host-call bounds hold for one call (with the instance's start counted into its
/// first call); memory, stack and open files hold for the life of the instance.
///
/// In text formats durations and byte counts are written as people do (`"2s"`, `"64MiB"`), and `"unlimited"` lifts a
/// bound. A field that is left out keeps its default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    /// Time from the start of the call to the end of its teardown; host calls, sleeps and waits included. Default 30 s.
    #[serde(with = "serde_optional::duration")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Quantity"))]
    pub wall_time: Option<Duration>,
    /// Time on a CPU. Default: not bounded (the wall time bounds it).
    #[serde(with = "serde_optional::duration")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Quantity"))]
    pub cpu_time: Option<Duration>,
    /// Deterministic instruction budget, in the backend's own units. Default: not bounded.
    #[serde(with = "serde_optional::count")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Quantity"))]
    pub fuel: Option<u64>,
    /// Guest memory, initial and grown, over all memories and tables, plus the buffers the host holds for the guest.
    /// Default 128 MiB.
    #[serde(with = "serde_optional::bytes")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Quantity"))]
    pub memory_bytes: Option<u64>,
    /// Call stack. Default 512 KiB.
    #[serde(with = "serde_optional::bytes")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Quantity"))]
    pub stack_bytes: Option<u64>,
    /// Standard output, or what a reactor writes as its output. Default 16 MiB.
    #[serde(with = "serde_optional::bytes")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Quantity"))]
    pub output_bytes: Option<u64>,
    /// Standard error, error text and log records together. Default 1 MiB.
    #[serde(with = "serde_optional::bytes")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Quantity"))]
    pub log_bytes: Option<u64>,
    /// Files and directories open at once, besides the standard streams and the granted directories. Default 64.
    #[serde(with = "serde_optional::count")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Quantity"))]
    pub open_files: Option<u64>,
    /// Bytes by which a call may grow files in granted directories. A backend may charge 4096 bytes and its name for each new
    /// entry of a directory besides, as the Wasm backends do, so that zero makes nothing. Default 64 MiB.
    #[serde(with = "serde_optional::bytes")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Quantity"))]
    pub disk_bytes: Option<u64>,
    /// Calls of host functions. Default 100 000.
    #[serde(with = "serde_optional::count")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Quantity"))]
    pub host_calls: Option<u64>,
    /// Child processes alive at once. Default 0.
    #[serde(with = "serde_optional::count")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Quantity"))]
    pub processes: Option<u64>,
    /// Threads alive at once besides the first. Default 0.
    #[serde(with = "serde_optional::count")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Quantity"))]
    pub threads: Option<u64>,
}

impl Default for Quota {
    fn default() -> Self {
        Quota {
            wall_time: Some(Duration::from_secs(30)),
            cpu_time: None,
            fuel: None,
            memory_bytes: Some(128 << 20),
            stack_bytes: Some(512 << 10),
            output_bytes: Some(16 << 20),
            log_bytes: Some(1 << 20),
            open_files: Some(64),
            disk_bytes: Some(64 << 20),
            host_calls: Some(100_000),
            processes: Some(0),
            threads: Some(0),
        }
    }
}

impl Quota {
    /// No bound at all. For trusted code and for tests of single bounds.
    pub fn unlimited() -> Self {
        Quota {
            wall_time: None,
            cpu_time: None,
            fuel: None,
            memory_bytes: None,
            stack_bytes: None,
            output_bytes: None,
            log_bytes: None,
            open_files: None,
            disk_bytes: None,
            host_calls: None,
            processes: None,
            threads: None,
        }
    }

    /// The bound on `resource` in its [base unit](Resource::unit), or `None` when it is not bounded.
    pub fn get(&self, resource: Resource) -> Option<u64> {
        let nanos = |time: Option<Duration>| time.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        match resource {
            Resource::WallTime => nanos(self.wall_time),
            Resource::CpuTime => nanos(self.cpu_time),
            Resource::Fuel => self.fuel,
            Resource::Memory => self.memory_bytes,
            Resource::Stack => self.stack_bytes,
            Resource::Output => self.output_bytes,
            Resource::Log => self.log_bytes,
            Resource::OpenFiles => self.open_files,
            Resource::Disk => self.disk_bytes,
            Resource::HostCalls => self.host_calls,
            Resource::Processes => self.processes,
            Resource::Threads => self.threads,
        }
    }
}

impl Quota {
    /// Sets the bound on `resource`, in its [base unit](Resource::unit); `None` lifts it.
    pub fn set(&mut self, resource: Resource, limit: Option<u64>) {
        let time = |limit: Option<u64>| limit.map(Duration::from_nanos);
        match resource {
            Resource::WallTime => self.wall_time = time(limit),
            Resource::CpuTime => self.cpu_time = time(limit),
            Resource::Fuel => self.fuel = limit,
            Resource::Memory => self.memory_bytes = limit,
            Resource::Stack => self.stack_bytes = limit,
            Resource::Output => self.output_bytes = limit,
            Resource::Log => self.log_bytes = limit,
            Resource::OpenFiles => self.open_files = limit,
            Resource::Disk => self.disk_bytes = limit,
            Resource::HostCalls => self.host_calls = limit,
            Resource::Processes => self.processes = limit,
            Resource::Threads => self.threads = limit,
        }
    }
}

/// Something a quota bounds. Its text form is the name of the field of [`Quota`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub enum Resource {
    /// [`Quota::wall_time`]
    #[serde(rename = "wall_time")]
    WallTime,
    /// [`Quota::cpu_time`]
    #[serde(rename = "cpu_time")]
    CpuTime,
    /// [`Quota::fuel`]
    #[serde(rename = "fuel")]
    Fuel,
    /// [`Quota::memory_bytes`]
    #[serde(rename = "memory_bytes")]
    Memory,
    /// [`Quota::stack_bytes`]
    #[serde(rename = "stack_bytes")]
    Stack,
    /// [`Quota::output_bytes`]
    #[serde(rename = "output_bytes")]
    Output,
    /// [`Quota::log_bytes`]
    #[serde(rename = "log_bytes")]
    Log,
    /// [`Quota::open_files`]
    #[serde(rename = "open_files")]
    OpenFiles,
    /// [`Quota::disk_bytes`]
    #[serde(rename = "disk_bytes")]
    Disk,
    /// [`Quota::host_calls`]
    #[serde(rename = "host_calls")]
    HostCalls,
    /// [`Quota::processes`]
    #[serde(rename = "processes")]
    Processes,
    /// [`Quota::threads`]
    #[serde(rename = "threads")]
    Threads,
}

impl Resource {
    /// Every resource, in the order of the fields of [`Quota`].
    pub const ALL: [Resource; 12] = [
        Resource::WallTime,
        Resource::CpuTime,
        Resource::Fuel,
        Resource::Memory,
        Resource::Stack,
        Resource::Output,
        Resource::Log,
        Resource::OpenFiles,
        Resource::Disk,
        Resource::HostCalls,
        Resource::Processes,
        Resource::Threads,
    ];

    /// The name, as in [`Quota`]'s fields.
    pub fn as_str(self) -> &'static str {
        match self {
            Resource::WallTime => "wall_time",
            Resource::CpuTime => "cpu_time",
            Resource::Fuel => "fuel",
            Resource::Memory => "memory_bytes",
            Resource::Stack => "stack_bytes",
            Resource::Output => "output_bytes",
            Resource::Log => "log_bytes",
            Resource::OpenFiles => "open_files",
            Resource::Disk => "disk_bytes",
            Resource::HostCalls => "host_calls",
            Resource::Processes => "processes",
            Resource::Threads => "threads",
        }
    }

    /// What numbers about this resource count.
    pub fn unit(self) -> Unit {
        match self {
            Resource::WallTime | Resource::CpuTime => Unit::Nanoseconds,
            Resource::Memory | Resource::Stack | Resource::Output | Resource::Log | Resource::Disk => Unit::Bytes,
            Resource::Fuel | Resource::OpenFiles | Resource::HostCalls | Resource::Processes | Resource::Threads => {
                Unit::Count
            }
        }
    }

    /// `amount` for people, with its unit.
    pub fn display(self, amount: u64) -> String {
        match self.unit() {
            Unit::Nanoseconds => units::display_duration(Duration::from_nanos(amount)),
            Unit::Bytes => units::display_bytes(amount),
            Unit::Count => units::display_count(amount),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The base unit of a [`Resource`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Nanoseconds.
    Nanoseconds,
    /// Bytes.
    Bytes,
    /// A plain count.
    Count,
}

/// What a guest may reach. The default grants nothing but coarse clocks and randomness, which reach nobody.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Grants {
    /// Directories of the host, each shown to the guest under a name of its own.
    #[serde(deserialize_with = "crate::bounded::vec::<GRANTS_MAX, _, _>")]
    pub directories: Vec<DirectoryGrant>,
    /// Where the guest sees a directory of its own, for example `/tmp`: empty at first, writable, and gone with the instance.
    /// How much fits into it is bounded by [`Quota::disk_bytes`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<String>,
    /// Environment variables. Nothing of the host's own environment is ever passed on.
    #[serde(deserialize_with = "crate::bounded::map::<GRANTS_MAX, _, _, _>")]
    pub environment: BTreeMap<String, String>,
    /// What clocks show.
    pub clocks: Clocks,
    /// Where random bytes come from.
    pub randomness: Randomness,
    /// Names of host functions the guest may call.
    #[serde(deserialize_with = "crate::bounded::set::<GRANTS_MAX, _, _>")]
    pub host_functions: BTreeSet<String>,
    /// Use of the network.
    pub network: bool,
    /// Starting child processes. Their number is bounded by [`Quota::processes`].
    pub child_processes: bool,
    /// Making code while it runs, as just-in-time compilers do: memory that can be written and executed. For native programs,
    /// which else execute only what lies in files that they cannot change.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable_memory: bool,
    /// The interpreter that runs a [script](crate::ArtifactKind::Script), by name (`python3`) or path. The guest sees it,
    /// its libraries and its standard library, all read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpreter: Option<String>,
}

/// One directory of the host shown to a guest. A native guest may execute what is in it, as libraries or, where it may start child
/// processes, as programs, if it cannot write there by this grant or another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DirectoryGrant {
    /// Path on the host. Opened once, when the policy is prepared.
    pub host: PathBuf,
    /// Name the guest sees, for example `/data`.
    pub guest: String,
    /// Whether the guest may change what is inside.
    #[serde(default)]
    pub access: Access,
    /// User of the host who owns what a native guest makes here, where the host runs as root; the guest has this user's
    /// rights to the directory, and no others. Left out: the owner of the directory, unless that is root: a guest's files
    /// become root's own only when it says `owner = 0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
}

impl DirectoryGrant {
    /// The guest may look, not change.
    pub fn read_only(host: impl Into<PathBuf>, guest: impl Into<String>) -> Self {
        DirectoryGrant { host: host.into(), guest: guest.into(), access: Access::ReadOnly, owner: None }
    }

    /// The guest may look and change, within [`Quota::disk_bytes`].
    pub fn read_write(host: impl Into<PathBuf>, guest: impl Into<String>) -> Self {
        DirectoryGrant { host: host.into(), guest: guest.into(), access: Access::ReadWrite, owner: None }
    }

    /// What a native guest makes here belongs to the user with this number.
    #[must_use]
    pub fn owned_by(mut self, user: u32) -> Self {
        self.owner = Some(user);
        self
    }
}

/// Whether a guest may change what is inside a granted directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Look only.
    #[default]
    #[serde(alias = "ro")]
    ReadOnly,
    /// Look and change.
    #[serde(alias = "rw")]
    ReadWrite,
}

/// What clocks show to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Clocks {
    /// Time advances in steps of this size, so that it cannot serve to measure what neighbours do.
    Coarse {
        /// The step; default 1 ms.
        #[serde(with = "units::serde_duration")]
        #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Span"))]
        step: Duration,
    },
    /// The host's full resolution.
    Fine,
}

impl Default for Clocks {
    fn default() -> Self {
        Clocks::Coarse { step: Duration::from_millis(1) }
    }
}

impl Clocks {
    /// `nanos` as the guest may see it.
    pub fn quantize(self, nanos: u64) -> u64 {
        match self {
            Clocks::Coarse { step } => nanos - nanos % self.resolution_nanos(step),
            Clocks::Fine => nanos,
        }
    }

    /// The resolution the guest is told, in nanoseconds.
    pub fn resolution(self) -> u64 {
        match self {
            Clocks::Coarse { step } => self.resolution_nanos(step),
            Clocks::Fine => 1,
        }
    }

    fn resolution_nanos(self, step: Duration) -> u64 {
        u64::try_from(step.as_nanos()).unwrap_or(u64::MAX).max(1)
    }
}

/// Where a guest's random bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Randomness {
    /// The operating system.
    #[default]
    Secure,
    /// A stream determined by this seed, the same on every run. Not for secrets.
    Seeded(u64),
}

/// Longest accepted guest name of a directory, environment entry or host-function name, in bytes.
const NAME_BYTES_MAX: usize = 4096;
/// Most directories, environment variables or host functions in one policy.
const GRANTS_MAX: usize = 1024;

impl Policy {
    /// Checks what does not depend on a backend: names are well-formed, nothing is granted twice, lists are bounded.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidPolicy`], naming the field.
    pub fn validate(&self) -> Result<()> {
        let invalid = |field: &'static str, message: String| {
            Err(Error::new(ErrorKind::InvalidPolicy, "validate", message).with_context("field", field))
        };
        let bad_text = |text: &str| text.is_empty() || text.len() > NAME_BYTES_MAX || text.contains('\0');
        let grants = &self.grants;
        let longest = grants.directories.len().max(grants.environment.len()).max(grants.host_functions.len());
        if longest > GRANTS_MAX {
            return invalid("grants", format!("a list of {longest} grants is longer than {GRANTS_MAX}"));
        }
        let mut guests = BTreeSet::new();
        if let Some(scratch) = &grants.scratch {
            if bad_text(scratch) {
                return invalid(
                    "grants.scratch",
                    "the scratch directory's name is empty, too long or has a NUL byte".into(),
                );
            }
            guests.insert(scratch.as_str());
        }
        for directory in &grants.directories {
            if directory.host.as_os_str().is_empty() {
                return invalid("grants.directories", "a granted directory has an empty host path".into());
            }
            if bad_text(&directory.guest) {
                return invalid(
                    "grants.directories",
                    format!("guest name {:?} is empty, too long or has a NUL byte", directory.guest),
                );
            }
            if !guests.insert(directory.guest.as_str()) {
                return invalid("grants.directories", format!("guest name `{}` is granted twice", directory.guest));
            }
        }
        for (name, value) in &grants.environment {
            if bad_text(name) || name.contains('=') || value.contains('\0') || value.len() > 1 << 20 {
                return invalid(
                    "grants.environment",
                    format!("environment variable {name:?} is malformed; names are not empty and have no `=` or NUL"),
                );
            }
        }
        if grants.interpreter.as_deref().is_some_and(bad_text) {
            return invalid("grants.interpreter", "the interpreter is empty, too long or has a NUL byte".into());
        }
        if let Some(name) = grants.host_functions.iter().find(|name| bad_text(name)) {
            return invalid("grants.host_functions", format!("host function name {name:?} is malformed"));
        }
        match grants.clocks {
            Clocks::Coarse { step } if step.is_zero() || step > Duration::from_secs(3600) => {
                invalid("grants.clocks", "the clock step must be between 1ns and 1h".into())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_bounds_everything_that_costs_the_host() {
        let quota = Quota::default();
        for resource in Resource::ALL.iter().copied() {
            let bounded = quota.get(resource).is_some();
            let by_wall_time = matches!(resource, Resource::CpuTime | Resource::Fuel);
            assert_eq!(bounded, !by_wall_time, "{resource}");
        }
        assert_eq!(Grants::default().directories, []);
        assert!(!Grants::default().network && !Grants::default().child_processes);
    }

    #[test]
    fn resource_names_are_the_quota_fields() {
        let fields = serde_json::to_value(Quota::default()).unwrap();
        let fields: BTreeSet<_> = fields.as_object().unwrap().keys().cloned().collect();
        let names: BTreeSet<_> = Resource::ALL.iter().map(|resource| resource.as_str().to_owned()).collect();
        assert_eq!(fields, names);
        for resource in Resource::ALL.iter().copied() {
            assert_eq!(serde_json::to_value(resource).unwrap(), resource.as_str());
        }
    }

    #[test]
    fn unlimited_is_unlimited() {
        assert!(Resource::ALL.iter().all(|resource| Quota::unlimited().get(*resource).is_none()));
    }

    #[test]
    fn policies_round_trip_and_refuse_unknown_fields() {
        let mut policy = Policy::default();
        policy.quota.wall_time = Some(Duration::from_millis(1500));
        policy.quota.fuel = Some(7);
        policy.grants.directories.push(DirectoryGrant::read_write("/srv", "/data"));
        policy.grants.randomness = Randomness::Seeded(7);
        let json = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&json).unwrap(), policy);
        assert!(json.contains(r#""wall_time":"1500ms""#), "{json}");
        assert!(serde_json::from_str::<Policy>(r#"{"quota":{"wal_time":"1s"}}"#).is_err());
        let partial: Policy =
            serde_json::from_str(r#"{"quota":{"memory_bytes":4096,"wall_time":"unlimited"}}"#).unwrap();
        assert_eq!(partial.quota.memory_bytes, Some(4096));
        assert_eq!(partial.quota.wall_time, None);
        assert_eq!(partial.quota.output_bytes, Quota::default().output_bytes);
    }

    #[test]
    fn malformed_policies_are_refused() {
        let refused = |change: &dyn Fn(&mut Grants)| {
            let mut policy = Policy::default();
            change(&mut policy.grants);
            assert_eq!(policy.validate().unwrap_err().kind(), ErrorKind::InvalidPolicy);
        };
        refused(&|g| {
            g.directories = vec![DirectoryGrant::read_only("/a", "/x"), DirectoryGrant::read_only("/b", "/x")]
        });
        refused(&|g| g.directories = vec![DirectoryGrant::read_only("", "/x")]);
        refused(&|g| g.directories = vec![DirectoryGrant::read_only("/a", "x\0")]);
        refused(&|g| drop(g.environment.insert("A=B".into(), "1".into())));
        refused(&|g| drop(g.environment.insert("A".into(), "\0".into())));
        refused(&|g| g.host_functions = [String::new()].into());
        refused(&|g| g.interpreter = Some(String::new()));
        refused(&|g| g.scratch = Some(String::new()));
        refused(&|g| {
            g.scratch = Some("/x".into());
            g.directories = vec![DirectoryGrant::read_only("/", "/x")];
        });
        refused(&|g| g.clocks = Clocks::Coarse { step: Duration::ZERO });
        refused(&|g| g.environment = (0..2000).map(|n| (n.to_string(), String::new())).collect());
    }

    #[test]
    fn coarse_clocks_step() {
        let clocks = Clocks::default();
        assert_eq!(clocks.quantize(1_999_999), 1_000_000);
        assert_eq!(clocks.resolution(), 1_000_000);
        assert_eq!(Clocks::Fine.quantize(1_999_999), 1_999_999);
    }
}
