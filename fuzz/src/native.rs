//! Executables and shared libraries that nobody compiled.

use std::sync::{Arc, OnceLock};

use palisade::{Artifact, ArtifactKind, BackendOptions, ProcessSandbox, Result, Sandbox, block_on};
use palisade_conformance::probe;

/// The bytes are loaded as an executable, as a shared library and as a script. None of it runs.
pub fn native(data: &[u8]) {
    static SANDBOX: OnceLock<Result<Arc<ProcessSandbox>>> = OnceLock::new();
    let sandbox = SANDBOX.get_or_init(|| ProcessSandbox::open(&BackendOptions::new()).map(Arc::new));
    // A machine without the backend's mechanisms refuses them all at once.
    let Ok(sandbox) = sandbox else { return };
    for kind in [ArtifactKind::Executable, ArtifactKind::SharedLibrary, ArtifactKind::Script] {
        if let Ok(module) = block_on(sandbox.load(Artifact::new(kind, data.to_vec()).named("fuzz"))) {
            assert_eq!(module.info().artifact, kind);
        }
    }
}

/// A small executable, and its beginning.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let bytes = probe::native("probe").bytes().to_vec();
    vec![bytes[..bytes.len().min(4096)].to_vec(), bytes]
}
