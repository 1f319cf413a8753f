//! What a call consumed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Resource;
use crate::units::serde_nanos;

/// What a call consumed; reported on every outcome. In text formats times are whole nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Usage {
    /// Start to teardown, waits included.
    #[serde(rename = "wall_time_ns", with = "serde_nanos")]
    #[cfg_attr(feature = "schema", schemars(with = "u64"))]
    pub wall_time: Duration,
    /// Time on a CPU. Backends may charge a call's first time slice as if it ran without interruption.
    #[serde(rename = "cpu_time_ns", with = "serde_nanos")]
    #[cfg_attr(feature = "schema", schemars(with = "u64"))]
    pub cpu_time: Duration,
    /// Deterministic instruction count in the backend's units; zero where the backend has none.
    pub fuel: u64,
    /// Peak guest memory, counted as in [`Quota::memory_bytes`](crate::Quota::memory_bytes).
    #[serde(rename = "memory_peak_bytes")]
    pub memory_peak_bytes: u64,
    /// Bytes the guest read of its input.
    pub input_bytes: u64,
    /// Bytes of output kept.
    pub output_bytes: u64,
    /// Bytes of standard error, error text and log records kept.
    pub log_bytes: u64,
    /// Most files and directories open at once.
    pub open_files_peak: u64,
    /// Bytes by which files grew, and what new entries of directories were charged.
    pub disk_bytes: u64,
    /// Host functions called.
    pub host_calls: u64,
    /// Most child processes alive at once.
    pub processes_peak: u64,
    /// Most threads alive at once besides the first.
    pub threads_peak: u64,
}

impl Usage {
    /// The amount of `resource` used, in its [base unit](Resource::unit). The stack is not measured and counts as zero.
    pub fn get(&self, resource: Resource) -> u64 {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        match resource {
            Resource::WallTime => nanos(self.wall_time),
            Resource::CpuTime => nanos(self.cpu_time),
            Resource::Fuel => self.fuel,
            Resource::Memory => self.memory_peak_bytes,
            Resource::Stack => 0,
            Resource::Output => self.output_bytes,
            Resource::Log => self.log_bytes,
            Resource::OpenFiles => self.open_files_peak,
            Resource::Disk => self.disk_bytes,
            Resource::HostCalls => self.host_calls,
            Resource::Processes => self.processes_peak,
            Resource::Threads => self.threads_peak,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_all_zero() {
        let usage = Usage::default();
        let json = serde_json::to_value(usage).unwrap();
        let fields = json.as_object().unwrap();
        assert!(!fields.is_empty());
        assert!(fields.values().all(|value| value == 0), "{json}");
        assert!(Resource::ALL.iter().all(|resource| usage.get(*resource) == 0));
    }
}
