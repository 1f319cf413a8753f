//! The conformance suite on the sink for Prometheus.

use std::process::ExitCode;
use std::sync::Arc;

use palisade_conformance::{Component, TextSink, certify_metrics};
use palisade_fabric::PrometheusSink;

fn main() -> ExitCode {
    certify_metrics(Component {
        name: "palisade-fabric, Prometheus",
        version: env!("CARGO_PKG_VERSION"),
        reproduce: "cargo test -p palisade-fabric --test conformance_metrics --",
        open: || Ok(Arc::new(TextSink { sink: PrometheusSink::new(), export: |sink| sink.export().ok() })),
    })
}
