//! Certifies that a sandbox isolates.
//!
//! The whole integration of a backend is one test without libtest (`harness = false`):
//!
//! ```no_run
//! fn main() -> std::process::ExitCode {
//!     palisade_conformance::main(palisade_conformance::Subject {
//!         name: env!("CARGO_PKG_NAME"),
//!         version: env!("CARGO_PKG_VERSION"),
//!         open: || palisade_core::open("my-backend", &palisade_core::BackendOptions::new()),
//!         probe: palisade_conformance::probe::wasm,
//!         expectations: "version = 1",
//!     })
//! }
//! ```
//!
//! Schedulers and metrics sinks have profiles of their own: [`certify_scheduler`], [`certify_metrics`].
//!
//! The guide is `README.md` of this crate.
#![forbid(unsafe_code)]

mod ablation;
pub mod catalog;
mod certificate;
mod check;
mod clock;
mod component;
mod context;
mod digest;
mod documents;
mod expect;
mod facts;
mod harness;
pub mod probe;
pub mod report;
mod run;
mod select;
mod subject;
mod verdict;

pub use ablation::{ABLATE, Protection, ablation};
pub use certificate::{CapabilityNames, Certificate, ProfileStatus, SCHEMA as CERTIFICATE_SCHEMA, verify};
pub use check::{Check, Evidence, Failure, Level, Need, Requirement, Step};
pub use component::{
    Component, ReadableSink, Reading, TextSink, Trial, certify_metrics, certify_scheduler, component_document,
    component_lock, read_text, run_component_check,
};
pub use context::Context;
pub use documents::Catalog;
pub use expect::{Expectation, Expectations, ExpectedOutcome, Judgement};
pub use facts::Facts;
pub use harness::main;
pub use report::{About, Report};
pub use run::{CHECK_TIME_MAX, CheckReport, Runner, run_as_child, run_check};
pub use select::Selection;
pub use subject::Subject;
pub use verdict::Verdict;
