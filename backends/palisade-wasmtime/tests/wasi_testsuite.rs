//! The official WASI test suite, preview 1, run through this backend.

use std::process::ExitCode;
use std::sync::Arc;

use palisade_wasm::testkit;
use palisade_wasmtime::Wasmtime;

fn main() -> ExitCode {
    testkit::wasi_testsuite::main(Arc::new(Wasmtime::open(&testkit::options(None)).expect("the backend opens")))
}
