//! Wasm modules that nobody compiled.

use std::sync::{Arc, OnceLock};

use palisade::{Artifact, ArtifactKind, BackendOptions, Sandbox, Wasmer, Wasmtime, block_on};
use palisade_conformance::probe;

/// The bytes are loaded by both engines, which agree on what they export.
pub fn wasm(data: &[u8]) {
    static SANDBOXES: OnceLock<Vec<Arc<dyn Sandbox>>> = OnceLock::new();
    let sandboxes = SANDBOXES.get_or_init(|| {
        let options = BackendOptions::new();
        let wasmtime = Wasmtime::open(&options).expect("Wasmtime opens everywhere");
        let wasmer = Wasmer::open(&options).expect("Wasmer opens where there is address space");
        vec![Arc::new(wasmtime), Arc::new(wasmer)]
    });
    let artifact = Artifact::new(ArtifactKind::Wasm, data.to_vec()).named("fuzz");
    let loaded = sandboxes.iter().map(|sandbox| block_on(sandbox.load(artifact.clone())).ok());
    let entries: Vec<_> = loaded.map(|module| module.map(|module| module.info().entries.clone())).collect();
    assert_eq!(entries[0], entries[1]);
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    ["echo", "grow", "recurse", "table"].map(|verb| probe::wasm(verb).bytes().to_vec()).to_vec()
}
