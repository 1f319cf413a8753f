//! The contract of a metrics sink.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Result;

/// Hears what happened, as numbers.
///
/// # Contract
///
/// Metrics are registered once, with their labels, and then fed through a [`MetricId`]: the hot path looks nothing up
/// and allocates nothing. Units are base units: seconds and bytes.
pub trait MetricsSink: Send + Sync + fmt::Debug {
    /// Announces a metric and gives the handle to feed it by.
    ///
    /// # Behavior
    ///
    /// * The same descriptor gives the same handle.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for a malformed name, or the same name with another
    /// kind; [`ErrorKind::Exhausted`](crate::ErrorKind::Exhausted) when the sink's bound on series is reached.
    fn register(&self, descriptor: &MetricDescriptor) -> Result<MetricId>;

    /// Adds to a counter. Ignores other kinds and unknown handles.
    fn add(&self, counter: MetricId, amount: u64);

    /// Sets a gauge. Ignores other kinds and unknown handles.
    fn set(&self, gauge: MetricId, value: f64);

    /// Records one value of a histogram. Ignores other kinds and unknown handles.
    fn observe(&self, histogram: MetricId, value: f64);

    /// Records several values of a histogram: as [`MetricsSink::observe`] for each, and cheaper where that is known.
    fn observe_all(&self, histogram: MetricId, values: &[f64]) {
        values.iter().for_each(|value| self.observe(histogram, *value));
    }
}

/// Handle of a registered metric; meaningful to the sink that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MetricId(pub u32);

/// What kind of number a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

/// A metric, with its labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MetricDescriptor {
    /// Name, with its unit last: `palisade_queue_wait_seconds`.
    pub name: String,
    /// One sentence for people.
    pub help: String,
    /// Kind of number.
    pub kind: MetricKind,
    /// Label names and values, fixed for this handle.
    pub labels: Vec<(String, String)>,
}
