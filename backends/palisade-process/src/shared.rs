//! What modules, prepared modules and instances of one sandbox share.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use palisade_core::{Capabilities, Clocks, Error, ErrorKind, Layer, LayerStatus, Policy, Result};

use crate::control_groups::Version;
use crate::cpu_group::CpuGroups;
use crate::interpreter::Interpreters;
use crate::kind::Kind;
use crate::memory_group::MemoryGroups;

/// What modules, prepared modules and instances of one sandbox share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) capabilities: Capabilities,
    pub(crate) is_root: bool,
    pub(crate) landlock_abi: u32,
    pub(crate) ablated: u32,
    /// Where memory can be bounded by control groups.
    pub(crate) memory_groups: Option<Arc<MemoryGroups>>,
    /// Where CPU time can be counted over all processes of a guest.
    pub(crate) cpu_groups: Option<CpuGroups>,
    pub(crate) interpreters: Interpreters,
    pub(crate) fuse: palisade_filesystems::Fuse,
    pub(crate) instances: Arc<AtomicU64>,
    /// Instances that are parked ahead of need.
    pub(crate) parked: Arc<AtomicUsize>,
}

/// Counts an instance for as long as it lives.
#[derive(Debug)]
pub(crate) struct Slot(Arc<AtomicU64>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    /// Whether the CPU time of child processes counts.
    pub(crate) fn counts_cpu_time_of_children(&self) -> bool {
        let by_memory = self.memory_groups.as_ref().is_some_and(|groups| groups.version() == Version::Two);
        by_memory || self.cpu_groups.is_some()
    }

    /// Room for one more instance.
    pub(crate) fn slot(&self) -> Result<Slot> {
        let max = self.capabilities.instances_max;
        let taken = self.instances.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < max).then_some(n + 1));
        match taken {
            Ok(_) => Ok(Slot(Arc::clone(&self.instances))),
            Err(_) => {
                Err(Error::new(ErrorKind::Exhausted, "instantiate", format!("{max} instances are alive already"))
                    .with_help("drop one first, or open the backend with a larger `instances_max`"))
            }
        }
    }

    /// What stands between a guest under `policy` and the host.
    pub(crate) fn isolation(&self, policy: &Policy, kind: &Kind) -> Arc<[Layer]> {
        let layer = |name: &'static str, status, detail: Cow<'static, str>| Layer { name: name.into(), status, detail };
        let on = |name, detail: &'static str| layer(name, LayerStatus::Enforced, detail.into());
        let asked = |name, asked: bool, detail: &'static str| {
            layer(name, if asked { LayerStatus::Enforced } else { LayerStatus::NotAskedFor }, detail.into())
        };
        let mut layers = vec![
            on(
                "user namespace",
                if self.is_root { "a user of its own, which owns nothing" } else { "the host's own user" },
            ),
            on("mount namespace", "private read-only root; no /proc, /sys or host files"),
            on("pid namespace", "process 1 of its own"),
            on("network namespace", "no interface is up"),
            on("ipc namespace", ""),
            on("uts namespace", ""),
            on("cgroup namespace", ""),
            on("no_new_privs", ""),
            on("capabilities", "none, and none to be gained"),
            match self.memory_groups.as_ref().filter(|_| policy.quota.memory_bytes.is_some()) {
                Some(groups) => layer(
                    "memory control group",
                    LayerStatus::Enforced,
                    format!("version {}", if groups.version() == Version::One { 1 } else { 2 }).into(),
                ),
                None => layer(
                    "memory control group",
                    LayerStatus::NotAskedFor,
                    "memory is bounded by address space, and system calls that make other objects are refused".into(),
                ),
            },
            on("resource limits", ""),
            layer(
                "landlock",
                LayerStatus::Enforced,
                format!("interface version {}, all it handles", self.landlock_abi).into(),
            ),
            on(
                "seccomp",
                match kind {
                    Kind::Library => "two filters: while loading, and after",
                    Kind::Executable(_) | Kind::Script => "one filter",
                },
            ),
            asked("no new code", !policy.grants.executable_memory, "memory that can be written is never executed"),
            asked("scratch directory", policy.grants.scratch.is_some(), "a file system in memory, of the size granted"),
            on("end with the host", "the kernel kills the guest when the host dies"),
            asked("time stamp counter trapped", matches!(policy.grants.clocks, Clocks::Coarse { .. }), ""),
        ];
        if self.ablated != 0 {
            layers.iter_mut().for_each(|layer| layer.detail = "in a build that leaves protections out".into());
        }
        layers.into()
    }
}
