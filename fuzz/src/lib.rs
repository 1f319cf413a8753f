//! Fuzz targets: everything of Palisade that reads bytes from a guest, a file or a socket. Each takes any bytes and panics
//! when a promise is broken; whatever else it does with them is fine.
//!
//! The tests of this crate call them with mutated seeds. For a search that is guided by coverage, on any toolchain with a
//! C++ compiler:
//!
//! ```sh
//! fuzz/run wasi 60    # the target, and for how many seconds
//! ```
#![forbid(unsafe_code)]

mod certificate;
#[cfg(feature = "native")]
mod native;
mod policy;
mod socket;
mod wasi;
#[cfg(feature = "wasm")]
mod wasm;

pub use certificate::certificate;
#[cfg(feature = "native")]
pub use native::native;
pub use policy::policy;
pub use socket::socket;
pub use wasi::wasi;
#[cfg(feature = "wasm")]
pub use wasm::wasm;

/// A target: its name, the function, and seeds to start from.
pub type Target = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

/// Every target.
pub const TARGETS: &[Target] = &[
    ("certificate", certificate, certificate::seeds),
    #[cfg(feature = "native")]
    ("native", native, native::seeds),
    ("policy", policy, policy::seeds),
    ("socket", socket, socket::seeds),
    ("wasi", wasi, wasi::seeds),
    #[cfg(feature = "wasm")]
    ("wasm", wasm, wasm::seeds),
];
