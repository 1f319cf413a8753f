//! The conformance suite on this backend.

use std::sync::Arc;

use palisade_conformance::{Subject, probe};
use palisade_core::BackendOptions;
use palisade_wasmer::Wasmer;

fn main() -> std::process::ExitCode {
    palisade_conformance::main(Subject {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        open: || Ok(Arc::new(Wasmer::open(&BackendOptions::new())?)),
        probe: probe::wasm,
        expectations: include_str!("../CONFORMANCE.toml"),
    })
}
