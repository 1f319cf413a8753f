//! The conformance suite on the scheduler in memory.

use std::process::ExitCode;
use std::sync::Arc;

use palisade_conformance::{Component, certify_scheduler};
use palisade_fabric::{LocalScheduler, SchedulerOptions};

fn main() -> ExitCode {
    certify_scheduler(Component {
        name: "palisade-fabric, in memory",
        version: env!("CARGO_PKG_VERSION"),
        reproduce: "cargo test -p palisade-fabric --test conformance_memory --",
        open: || Ok(Arc::new(LocalScheduler::open(SchedulerOptions::default())?)),
    })
}
