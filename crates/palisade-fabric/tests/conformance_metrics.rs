//! The conformance suite on the sink for Prometheus.

use std::process::ExitCode;
use std::sync::Arc;

use palisade_conformance::{Component, ReadableSink, Reading, certify_metrics, read_text};
use palisade_core::{MetricDescriptor, MetricId, MetricsSink, Result};
use palisade_fabric::PrometheusSink;

#[derive(Debug)]
struct Exported(PrometheusSink);

impl ReadableSink for Exported {
    fn read(&self, name: &str, labels: &[(String, String)]) -> Option<Reading> {
        read_text(&self.0.export().ok()?, name, labels)
    }
}

impl MetricsSink for Exported {
    fn register(&self, descriptor: &MetricDescriptor) -> Result<MetricId> {
        self.0.register(descriptor)
    }

    fn add(&self, counter: MetricId, amount: u64) {
        self.0.add(counter, amount);
    }

    fn set(&self, gauge: MetricId, value: f64) {
        self.0.set(gauge, value);
    }

    fn observe(&self, histogram: MetricId, value: f64) {
        self.0.observe(histogram, value);
    }
}

fn main() -> ExitCode {
    certify_metrics(Component {
        name: "palisade-fabric, Prometheus",
        version: env!("CARGO_PKG_VERSION"),
        open: || Ok(Arc::new(Exported(PrometheusSink::new()))),
    })
}
