//! Several backends as one, by what the artifact is.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use palisade_core::{
    Artifact, ArtifactKind, BoxFuture, Capabilities, Enforcement, Error, ErrorKind, Module, Resource, Result, Sandbox,
};

/// Loads each kind of artifact with the backend chosen for it.
///
/// As a sandbox of its own it declares what all of them can enforce; what a plugin may ask for is decided by
/// [its own backend](ByKind::backend).
#[derive(Clone)]
pub struct ByKind {
    backends: BTreeMap<ArtifactKind, Arc<dyn Sandbox>>,
    common: Capabilities,
}

impl fmt::Debug for ByKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.backends.iter().map(|(kind, backend)| (kind, &backend.capabilities().backend));
        f.debug_map().entries(names).finish()
    }
}

impl ByKind {
    /// Chooses for each kind of artifact the first of `backends` that loads it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] when there is no backend.
    pub fn new(backends: impl IntoIterator<Item = Arc<dyn Sandbox>>) -> Result<ByKind> {
        let mut chosen: BTreeMap<ArtifactKind, Arc<dyn Sandbox>> = BTreeMap::new();
        let mut common: Option<Capabilities> = None;
        for backend in backends {
            let theirs = backend.capabilities();
            for kind in &theirs.artifacts {
                chosen.entry(*kind).or_insert_with(|| Arc::clone(&backend));
            }
            common = Some(match common {
                None => theirs.clone(),
                Some(common) => least(common, theirs),
            });
        }
        let common = common.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "open", "there is no backend"))?;
        Ok(ByKind { backends: chosen, common })
    }

    /// The backend for a kind of artifact.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] when there is none.
    pub fn backend(&self, kind: ArtifactKind) -> Result<&Arc<dyn Sandbox>> {
        self.backends.get(&kind).ok_or_else(|| {
            let known: Vec<_> = self.backends.keys().map(ToString::to_string).collect();
            Error::new(ErrorKind::Unsupported, "load", format!("no backend here runs artifacts of the kind `{kind}`"))
                .with_help(format!("this daemon runs: {}", known.join(", ")))
        })
    }
}

/// What both can do; artifacts that one of them loads.
fn least(one: Capabilities, other: &Capabilities) -> Capabilities {
    let enforcement = |resource: Resource| match (one.enforcement(resource), other.enforcement(resource)) {
        (Enforcement::AlwaysZero, Enforcement::AlwaysZero) => Enforcement::AlwaysZero,
        (Enforcement::Unsupported, _) | (_, Enforcement::Unsupported) => Enforcement::Unsupported,
        _ => Enforcement::Enforced,
    };
    Capabilities {
        backend: format!("{}, {}", one.backend, other.backend),
        engine: format!("{}, {}", one.engine, other.engine),
        quotas: Resource::ALL.iter().copied().map(|resource| (resource, enforcement(resource))).collect(),
        artifacts: one.artifacts.union(&other.artifacts).copied().collect(),
        abis: one.abis.intersection(&other.abis).copied().collect(),
        grants: one.grants.intersection(&other.grants).copied().collect(),
        memory_bytes_max: one.memory_bytes_max.min(other.memory_bytes_max),
        stack_bytes_min: one.stack_bytes_min.max(other.stack_bytes_min),
        stack_bytes_max: one.stack_bytes_max.min(other.stack_bytes_max),
        instances_max: one.instances_max.min(other.instances_max),
        fuel_deterministic: one.fuel_deterministic && other.fuel_deterministic,
        caveats: one.caveats.iter().chain(&other.caveats).cloned().collect(),
    }
}

impl Sandbox for ByKind {
    fn capabilities(&self) -> &Capabilities {
        &self.common
    }

    fn load(&self, artifact: Artifact) -> BoxFuture<'_, Result<Arc<dyn Module>>> {
        match self.backend(artifact.kind()) {
            Ok(backend) => backend.load(artifact),
            Err(error) => Box::pin(async { Err(error) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use palisade_fake::Fake;

    use super::*;

    #[test]
    fn what_no_backend_runs_is_named() {
        let backends = ByKind::new([Arc::new(Fake::new(None)) as Arc<dyn Sandbox>]).unwrap();
        let error = backends.backend(ArtifactKind::SharedLibrary).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.message(), "no backend here runs artifacts of the kind `shared library`");
        assert!(backends.backend(ArtifactKind::Executable).is_ok());
    }
}
