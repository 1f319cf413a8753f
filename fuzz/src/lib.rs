//! Fuzz targets: everything of Palisade that reads bytes from a guest, a file or a socket. Each takes any bytes and panics
//! when a promise is broken; whatever else it does with them is fine.
//!
//! The tests of this crate call them with mutated seeds, and with the inputs in `corpus`. For a search that is guided by
//! coverage, on any toolchain with a C++ compiler:
//!
//! ```sh
//! fuzz/run wasi 60    # the target, and for how many seconds
//! fuzz/run all 20     # as CI does
//! ```
#![forbid(unsafe_code)]

mod certificate;
mod daemon;
mod http;
mod journal;
mod native;
mod policy;
mod rpc;
mod wasi;
mod wasm;

pub use certificate::certificate;
pub use http::http;
pub use journal::journal;
pub use native::native;
pub use policy::policy;
pub use rpc::rpc;
pub use wasi::wasi;
pub use wasm::wasm;

/// A target: its name, the function, and seeds to start from.
pub type Target = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

/// Every target.
pub const TARGETS: &[Target] = &[
    ("certificate", certificate, certificate::seeds),
    ("http", http, http::seeds),
    ("journal", journal, journal::seeds),
    ("native", native, native::seeds),
    ("policy", policy, policy::seeds),
    ("rpc", rpc, rpc::seeds),
    ("wasi", wasi, wasi::seeds),
    ("wasm", wasm, wasm::seeds),
];
