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

const fn alone(name: &'static str) -> Protection {
    Protection { name, behind: &[] }
}

const PROTECTIONS: &[Protection] = &[
    alone("wall-time"),
    alone("cpu-time"),
    alone("fuel"),
    alone("memory"),
    alone("stack"),
    alone("output"),
    alone("log"),
    alone("open-files"),
    alone("disk"),
    alone("host-calls"),
    alone("read-only"),
    alone("coarse-clocks"),
    alone("cancel"),
    alone("admission"),
    alone("granted-functions"),
];

fn main() -> ExitCode {
    let subject = Subject {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        open: || Ok(Arc::new(Wasmtime::open(&BackendOptions::new())?)),
        probe: probe::wasm,
        expectations: "version = 1",
    };
    ablation(subject, "", PROTECTIONS, cfg!(palisade_ablation))
}
