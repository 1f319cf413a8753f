//! What holds for every backend of a WebAssembly engine.

use palisade_wasmer::Wasmer;

palisade_wasm::wasm_backend_tests!(Wasmer);
