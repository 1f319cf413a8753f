//! What the backends of all WebAssembly engines share.
//!
//! * [`structure`]: the language they accept, and how much of it one artifact may hold.
#![forbid(unsafe_code)]

pub mod structure;
