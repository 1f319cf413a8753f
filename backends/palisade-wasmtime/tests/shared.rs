//! What holds for every backend of a WebAssembly engine.

use palisade_wasmtime::Wasmtime;

palisade_wasm::wasm_backend_tests!(Wasmtime);
