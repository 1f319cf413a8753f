//! What the backends of all WebAssembly engines share.
//!
//! * [`structure`]: the language they accept, and how much of it one artifact may hold.
//! * `testkit` (a feature): tests that each backend runs.
#![forbid(unsafe_code)]

pub mod structure;
#[cfg(feature = "testkit")]
pub mod testkit;
