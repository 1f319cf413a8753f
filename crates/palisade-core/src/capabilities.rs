//! What a backend can enforce, and the one place that compares it with what a policy asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Abi, Access, ArtifactKind, Clocks, Error, ErrorKind, Policy, Randomness, Resource, Result};

/// What a backend can enforce and provide on this machine; declared once, when it opens.
///
/// The conformance suite checks both directions: what is declared works, and what is not declared is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Name under which the backend registered.
    pub backend: String,
    /// The engine underneath and its version, for example `wasmtime 48.0.8`.
    pub engine: String,
    /// Kinds of artifact it loads.
    pub artifacts: BTreeSet<ArtifactKind>,
    /// Guest interfaces it provides.
    pub abis: BTreeSet<Abi>,
    /// How it treats each quota. A resource that is missing is unsupported.
    pub quotas: BTreeMap<Resource, Enforcement>,
    /// Kinds of grant it can give.
    pub grants: BTreeSet<GrantKind>,
    /// Largest `memory_bytes` it can honour; also the bound when the policy has none.
    pub memory_bytes_max: u64,
    /// Smallest `stack_bytes` it can honour.
    pub stack_bytes_min: u64,
    /// Largest `stack_bytes` it can honour.
    pub stack_bytes_max: u64,
    /// Instances alive at once; the next one is refused with [`ErrorKind::Exhausted`].
    pub instances_max: u64,
    /// The same input and policy use the same fuel on every run.
    pub fuel_deterministic: bool,
    /// What the backend cannot hide or bound, in plain words.
    pub caveats: Vec<String>,
}

/// How a backend treats a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Enforcement {
    /// Measured and enforced.
    Enforced,
    /// The backend never lets a guest have any, so that every bound holds.
    AlwaysZero,
    /// Not enforced: a policy with such a bound is refused.
    Unsupported,
}

/// A kind of grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GrantKind {
    /// Read-only directories.
    DirectoriesReadOnly,
    /// Read-write directories.
    DirectoriesReadWrite,
    /// Environment variables.
    Environment,
    /// Clocks in steps. Where this is missing, the backend cannot hide fine time.
    ClocksCoarse,
    /// Clocks of full resolution.
    ClocksFine,
    /// Seeded randomness.
    RandomnessSeeded,
    /// Host functions.
    HostFunctions,
    /// The network.
    Network,
    /// Child processes.
    ChildProcesses,
    /// An interpreter for scripts.
    Interpreter,
    /// A writable directory of the guest's own.
    Scratch,
    /// A named owner for what a guest makes in a directory of the host.
    DirectoryOwner,
    /// Making code while running.
    ExecutableMemory,
}

impl GrantKind {
    /// Every kind.
    pub const ALL: [GrantKind; 13] = [
        GrantKind::DirectoriesReadOnly,
        GrantKind::DirectoriesReadWrite,
        GrantKind::Environment,
        GrantKind::ClocksCoarse,
        GrantKind::ClocksFine,
        GrantKind::RandomnessSeeded,
        GrantKind::HostFunctions,
        GrantKind::Network,
        GrantKind::ChildProcesses,
        GrantKind::Interpreter,
        GrantKind::Scratch,
        GrantKind::DirectoryOwner,
        GrantKind::ExecutableMemory,
    ];

    /// The name, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            GrantKind::DirectoriesReadOnly => "directories_read_only",
            GrantKind::DirectoriesReadWrite => "directories_read_write",
            GrantKind::Environment => "environment",
            GrantKind::ClocksCoarse => "clocks_coarse",
            GrantKind::ClocksFine => "clocks_fine",
            GrantKind::RandomnessSeeded => "randomness_seeded",
            GrantKind::HostFunctions => "host_functions",
            GrantKind::Network => "network",
            GrantKind::ChildProcesses => "child_processes",
            GrantKind::Interpreter => "interpreter",
            GrantKind::Scratch => "scratch",
            GrantKind::DirectoryOwner => "directory_owner",
            GrantKind::ExecutableMemory => "executable_memory",
        }
    }
}

impl fmt::Display for GrantKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Capabilities {
    /// How the backend treats the quota on `resource`.
    pub fn enforcement(&self, resource: Resource) -> Enforcement {
        self.quotas.get(&resource).copied().unwrap_or(Enforcement::Unsupported)
    }

    /// Admits `policy`, or refuses it: fails closed, so that nothing is ever silently weaker.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidPolicy`] when the policy is malformed, [`ErrorKind::Unsupported`] naming the first thing the
    /// backend cannot enforce or provide.
    pub fn admit(&self, policy: &Policy) -> Result<()> {
        policy.validate()?;
        for resource in Resource::ALL.iter().copied() {
            if policy.quota.get(resource).is_some() && self.enforcement(resource) == Enforcement::Unsupported {
                return Err(self
                    .unsupported(format!("backend `{}` cannot enforce a quota on {resource}", self.backend))
                    .with_context("quota", resource)
                    .with_help("remove this quota, or choose a backend that declares it (`palisade backends`)"));
            }
        }
        if let Some(bytes) = policy.quota.memory_bytes.filter(|bytes| *bytes > self.memory_bytes_max) {
            return Err(self
                .unsupported(format!(
                    "a memory quota of {bytes} bytes is above what backend `{}` can hold",
                    self.backend
                ))
                .with_help(format!("ask for at most {}", Resource::Memory.display(self.memory_bytes_max))));
        }
        let stack_range = self.stack_bytes_min..=self.stack_bytes_max;
        if let Some(bytes) = policy.quota.stack_bytes.filter(|bytes| !stack_range.contains(bytes)) {
            return Err(self
                .unsupported(format!("backend `{}` cannot enforce a stack of {bytes} bytes", self.backend))
                .with_help(format!(
                    "ask for {} to {}",
                    Resource::Stack.display(self.stack_bytes_min),
                    Resource::Stack.display(self.stack_bytes_max)
                )));
        }
        let grants = &policy.grants;
        let any_directory = |access| grants.directories.iter().any(|directory| directory.access == access);
        let asked = [
            (GrantKind::DirectoriesReadOnly, any_directory(Access::ReadOnly)),
            (GrantKind::DirectoriesReadWrite, any_directory(Access::ReadWrite)),
            (GrantKind::Environment, !grants.environment.is_empty()),
            (GrantKind::ClocksCoarse, matches!(grants.clocks, Clocks::Coarse { .. })),
            (GrantKind::ClocksFine, matches!(grants.clocks, Clocks::Fine)),
            (GrantKind::RandomnessSeeded, matches!(grants.randomness, Randomness::Seeded(_))),
            (GrantKind::HostFunctions, !grants.host_functions.is_empty()),
            (GrantKind::Network, grants.network),
            (GrantKind::ChildProcesses, grants.child_processes),
            (GrantKind::Interpreter, grants.interpreter.is_some()),
            (GrantKind::Scratch, grants.scratch.is_some()),
            (GrantKind::DirectoryOwner, grants.directories.iter().any(|directory| directory.owner.is_some())),
            (GrantKind::ExecutableMemory, grants.executable_memory),
        ];
        for (kind, asked) in asked {
            if asked && !self.grants.contains(&kind) {
                return Err(self
                    .unsupported(format!("backend `{}` cannot grant {kind}", self.backend))
                    .with_context("grant", kind)
                    .with_help("remove this grant, or choose a backend that declares it (`palisade backends`)"));
            }
        }
        Ok(())
    }

    fn unsupported(&self, message: String) -> Error {
        Error::new(ErrorKind::Unsupported, "admit", message).with_context("backend", &self.backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DirectoryGrant;

    fn everything() -> Capabilities {
        Capabilities {
            backend: "all".into(),
            engine: "none".into(),
            artifacts: BTreeSet::new(),
            abis: BTreeSet::new(),
            quotas: Resource::ALL.iter().copied().map(|resource| (resource, Enforcement::Enforced)).collect(),
            grants: GrantKind::ALL.iter().copied().collect(),
            memory_bytes_max: 1 << 32,
            stack_bytes_min: 1 << 14,
            stack_bytes_max: 1 << 23,
            instances_max: 10,
            fuel_deterministic: true,
            caveats: Vec::new(),
        }
    }

    /// A policy that asks for every quota and every grant.
    fn demanding() -> Policy {
        let mut policy = Policy::default();
        policy.quota.cpu_time = policy.quota.wall_time;
        policy.quota.fuel = Some(1);
        policy.grants.directories =
            vec![DirectoryGrant::read_only("/", "/a"), DirectoryGrant::read_write("/", "/b").owned_by(1)];
        policy.grants.environment.insert("A".into(), "B".into());
        policy.grants.randomness = Randomness::Seeded(1);
        policy.grants.host_functions.insert("f".into());
        policy.grants.network = true;
        policy.grants.child_processes = true;
        policy.grants.interpreter = Some("python3".into());
        policy.grants.scratch = Some("/tmp".into());
        policy.grants.executable_memory = true;
        policy
    }

    #[test]
    fn every_undeclared_quota_is_refused() {
        assert!(everything().admit(&demanding()).is_ok());
        for resource in Resource::ALL.iter().copied() {
            let mut capabilities = everything();
            capabilities.quotas.remove(&resource);
            let error = capabilities.admit(&demanding()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains(resource.as_str()), "{error}");
            capabilities.quotas.insert(resource, Enforcement::AlwaysZero);
            assert!(capabilities.admit(&demanding()).is_ok());
        }
    }

    #[test]
    fn every_undeclared_grant_is_refused() {
        for kind in GrantKind::ALL.iter().copied() {
            let mut capabilities = everything();
            capabilities.grants.remove(&kind);
            let mut policy = demanding();
            if kind == GrantKind::ClocksFine {
                policy.grants.clocks = Clocks::Fine;
            }
            let error = capabilities.admit(&policy).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{kind}");
            assert!(error.to_string().contains(kind.as_str()), "{error}");
        }
    }

    #[test]
    fn bounds_of_the_backend_hold() {
        let mut policy = Policy::default();
        policy.quota.memory_bytes = Some(1 << 32);
        assert!(everything().admit(&policy).is_ok());
        policy.quota.memory_bytes = Some((1 << 32) + 1);
        assert!(everything().admit(&policy).is_err());
        policy.quota.memory_bytes = None;
        policy.quota.stack_bytes = Some((1 << 14) - 1);
        assert!(everything().admit(&policy).is_err());
    }
}
