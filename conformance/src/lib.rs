//! Certifies that a sandbox isolates.
#![forbid(unsafe_code)]

mod check;
mod context;
pub mod probe;
mod subject;
mod verdict;

pub use check::{Check, Evidence, Failure, Level, Need, Requirement, Step};
pub use context::Context;
pub use subject::Subject;
pub use verdict::Verdict;
