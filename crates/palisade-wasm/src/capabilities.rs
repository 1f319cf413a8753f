//! What every WebAssembly backend declares that is built from this crate and `palisade-wasi`.

use palisade_core::{Abi, ArtifactKind, Capabilities, Enforcement, GrantKind, Resource};

/// What a backend can do whose guests get their imports from `palisade-wasi` and whose engine counts fuel: all quotas, since a
/// guest has neither processes nor threads, and each grant that needs no process. Its bounds on memory, stack and instances,
/// and what it cannot hide, are the backend's to add.
pub fn capabilities(backend: impl Into<String>, engine: impl Into<String>) -> Capabilities {
    let quotas = Resource::ALL.iter().map(|resource| match resource {
        Resource::Processes | Resource::Threads => (*resource, Enforcement::AlwaysZero),
        _ => (*resource, Enforcement::Enforced),
    });
    let mut capabilities = Capabilities::new(backend, engine);
    capabilities.artifacts = [ArtifactKind::Wasm].into();
    capabilities.abis = [Abi::Command, Abi::Reactor].into();
    capabilities.quotas = quotas.collect();
    capabilities.grants = [
        GrantKind::DirectoriesReadOnly,
        GrantKind::DirectoriesReadWrite,
        GrantKind::Environment,
        GrantKind::ClocksCoarse,
        GrantKind::ClocksFine,
        GrantKind::RandomnessSeeded,
        GrantKind::HostFunctions,
    ]
    .into();
    capabilities.fuel_deterministic = true;
    capabilities
}
