//! What this backend declares.

use std::collections::BTreeMap;

use palisade_core::{Abi, ArtifactKind, BackendOptions, Capabilities, Enforcement, GrantKind, Resource};

/// Name under which the backend registers.
pub(crate) const NAME: &str = "process";
/// Instances alive at once, unless the options say otherwise.
const INSTANCES_DEFAULT: u32 = 256;
const MEMORY_BYTES_MAX: u64 = 1 << 40;
const STACK_BYTES_MIN: u64 = 128 << 10;
const STACK_BYTES_MAX: u64 = 1 << 30;

/// What the backend declares on this machine.
pub(crate) fn capabilities(options: &BackendOptions, memory_groups: bool) -> Capabilities {
    let mut quotas = BTreeMap::new();
    for resource in Resource::ALL.iter().copied() {
        let enforcement = match resource {
            Resource::Fuel => Enforcement::Unsupported,
            // Each process has an address space of its own: only a control group bounds their memory together.
            Resource::Processes if !memory_groups => Enforcement::AlwaysZero,
            _ => Enforcement::Enforced,
        };
        quotas.insert(resource, enforcement);
    }
    Capabilities {
        backend: NAME.to_owned(),
        engine: format!("Linux {}", rustix::system::uname().release().to_string_lossy()),
        artifacts: [ArtifactKind::Executable, ArtifactKind::Script, ArtifactKind::SharedLibrary].into(),
        abis: [Abi::Command, Abi::Reactor].into(),
        quotas,
        grants: [
            GrantKind::DirectoriesReadOnly,
            GrantKind::DirectoriesReadWrite,
            GrantKind::Environment,
            GrantKind::ClocksCoarse,
            GrantKind::ClocksFine,
            GrantKind::HostFunctions,
            GrantKind::Interpreter,
            GrantKind::Scratch,
            GrantKind::DirectoryOwner,
            GrantKind::ExecutableMemory,
        ]
        .into_iter()
        .chain(memory_groups.then_some(GrantKind::ChildProcesses))
        .collect(),
        memory_bytes_max: MEMORY_BYTES_MAX,
        stack_bytes_min: STACK_BYTES_MIN,
        stack_bytes_max: STACK_BYTES_MAX,
        instances_max: options.instances_max.unwrap_or(INSTANCES_DEFAULT).into(),
        fuel_deterministic: false,
        caveats: [
            (!memory_groups).then_some(
                "memory is bounded by address space: a guest beyond its quota is refused more, and decides itself how to end",
            ),
        ]
        .into_iter()
        .flatten()
        .chain([
            "an executable reads the processor's own clock; it runs only where fine clocks are granted",
            "bytes written into a directory of the host cannot be bounded; read-write grants need `disk_bytes` lifted",
            "a scratch directory is bounded in whole pages, and what is in it counts as memory where control groups count",
            "threads and child processes are counted together where both are granted: the sum of both bounds holds",
            "caches and timing of the processor are shared with neighbours",
            "what a guest makes in a directory of a host that is an ordinary user is that user's own",
        ])
        .map(str::to_owned)
        .collect(),
    }
}

/// Protections to leave out. Only in builds made for it, which certify nothing.
pub(crate) fn ablated() -> u32 {
    #[cfg(palisade_ablation)]
    {
        // The numbers are the worker's (`worker/jail.rs`).
        const NAMES: [&str; 16] = [
            "private-root",
            "read-only",
            "network-namespace",
            "pid-namespace",
            "ipc-namespace",
            "uts-namespace",
            "capabilities",
            "limits",
            "landlock",
            "seccomp",
            "parent-death",
            "descriptors",
            "outer-user",
            "cgroup-namespace",
            "no-new-privileges",
            "not-dumpable",
        ];
        let asked = std::env::var("PALISADE_ABLATE").unwrap_or_default();
        let bit = |name: &str| NAMES.iter().position(|known| *known == name).map_or(0, |bit| 1 << bit);
        asked.split(',').map(bit).fold(0, |bits, bit| bits | bit)
    }
    #[cfg(not(palisade_ablation))]
    0
}
