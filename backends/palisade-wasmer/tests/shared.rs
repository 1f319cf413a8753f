//! What holds for every backend of a WebAssembly engine.

mod support;

palisade_wasm::wasm_backend_tests!(support::sandbox());
