//! What each protection is for: leaves them out, and shows which checks notice.
//!
//! ```sh
//! PALISADE_ABLATION=1 cargo test -p palisade-wasmtime --test ablation
//! ```

use std::process::ExitCode;
use std::sync::Arc;

use palisade_conformance::{Protection, Subject, ablation, probe};
use palisade_core::BackendOptions;
use palisade_wasmtime::Wasmtime;

const PROTECTIONS: &[Protection] = &[
    Protection::alone("wall-time"),
    Protection::alone("cpu-time"),
    Protection::alone("fuel"),
    Protection::alone("memory"),
    Protection::alone("stack"),
    Protection::alone("output"),
    Protection::alone("log"),
    Protection::alone("open-files"),
    Protection::alone("disk"),
    Protection::alone("host-calls"),
    Protection::alone("read-only"),
    Protection::alone("coarse-clocks"),
    Protection::alone("cancel"),
    Protection::alone("admission"),
    Protection::alone("granted-functions"),
];

fn main() -> ExitCode {
    let subject = Subject {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        open: || Ok(Arc::new(Wasmtime::open(&BackendOptions::new())?)),
        probe: probe::wasm,
        expectations: "version = 1",
    };
    ablation(subject, "", PROTECTIONS, palisade_wasi::ablation::BUILT_FOR_IT)
}
