//! The official WASI test suite, preview 1, run through this backend.

use std::process::ExitCode;
use std::sync::Arc;

use palisade_wasm::testkit;
use palisade_wasmer::Wasmer;

fn main() -> ExitCode {
    testkit::wasi_testsuite::main(Arc::new(Wasmer::open(&testkit::options(None)).expect("the backend opens")))
}
