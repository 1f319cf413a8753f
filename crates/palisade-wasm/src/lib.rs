//! What the backends of all WebAssembly engines share.
//!
//! * [`compilers`]: how many artifacts are compiled at once, and for how long.
//! * [`process`]: compiling in a process of its own.
//! * [`structure`]: the language they accept, and how much of it one artifact may hold.
//! * `testkit` (a feature): tests that each backend runs.
#![forbid(unsafe_code)]

pub mod compilers;
pub mod process;
pub mod structure;
#[cfg(feature = "testkit")]
pub mod testkit;
