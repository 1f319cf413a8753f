//! The reference metrics sink, breakable on purpose.

use std::sync::{Mutex, MutexGuard, PoisonError};

use palisade_core::{Error, ErrorKind, MetricDescriptor, MetricId, MetricKind, MetricsSink, Result};

use crate::fault::faults;

faults! {
    /// One thing that is wrong with the sink.
    pub enum SinkFault;
    /// The same metric gets a new handle each time.
    NewHandles = "new-handles",
    /// Any text is a name.
    AcceptsAnyName = "accepts-any-name",
    /// A name may be two kinds of metric.
    MixesKinds = "mixes-kinds",
    /// Labels are not looked at.
    MergesLabels = "merges-labels",
    /// One of a hundred additions is lost.
    LosesCounts = "loses-counts",
    /// A gauge is added to, not set.
    AddsGauges = "adds-gauges",
    /// A histogram keeps the latest value only.
    LosesObservations = "loses-observations",
    /// Handles feed any kind of metric.
    ConfusesKinds = "confuses-kinds",
    /// There is no bound on series.
    UnboundedSeries = "unbounded-series",
}

/// The reference sink.
#[derive(Debug)]
pub struct FakeSink {
    fault: Option<SinkFault>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    series: Vec<Series>,
    additions: u64,
    /// Names that are taken, so that many series are found fast.
    by_descriptor: std::collections::HashMap<(String, Vec<(String, String)>), u32>,
    kinds: std::collections::HashMap<String, MetricKind>,
}

#[derive(Debug)]
struct Series {
    kind: MetricKind,
    number: f64,
    count: u64,
}

const SERIES_MAX: usize = 10_000;

impl FakeSink {
    /// The correct sink, or one with a fault.
    pub fn new(fault: Option<SinkFault>) -> FakeSink {
        FakeSink { fault, state: Mutex::default() }
    }

    /// Count and sum of a histogram's values; of other metrics the sum is the value.
    pub fn read(&self, name: &str, labels: &[(String, String)]) -> Option<(u64, f64)> {
        let state = self.lock();
        let at = *state.by_descriptor.get(&self.key(name, labels))?;
        state.series.get(at as usize).map(|series| (series.count, series.number))
    }

    fn has(&self, fault: SinkFault) -> bool {
        self.fault == Some(fault)
    }

    fn key(&self, name: &str, labels: &[(String, String)]) -> (String, Vec<(String, String)>) {
        let mut labels = if self.has(SinkFault::MergesLabels) { Vec::new() } else { labels.to_vec() };
        labels.sort();
        (name.to_owned(), labels)
    }

    // Every statement leaves the state consistent, so a poisoned lock is safe to use again.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn feed(&self, id: MetricId, kind: MetricKind, change: impl FnOnce(&mut Series)) {
        let mut state = self.lock();
        state.additions += 1;
        if self.has(SinkFault::LosesCounts) && kind == MetricKind::Counter && state.additions.is_multiple_of(100) {
            return;
        }
        if let Some(series) = state.series.get_mut(id.0 as usize)
            && (series.kind == kind || self.has(SinkFault::ConfusesKinds))
        {
            change(series);
        }
    }
}

impl MetricsSink for FakeSink {
    fn register(&self, descriptor: &MetricDescriptor) -> Result<MetricId> {
        let invalid = |message| Err(Error::new(ErrorKind::InvalidInput, "register", message));
        let is_name = |name: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            name.bytes().all(plain) && name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit())
        };
        let labels = descriptor.labels.iter().map(|(name, _)| name);
        if !labels.chain([&descriptor.name]).all(|name| is_name(name)) && !self.has(SinkFault::AcceptsAnyName) {
            return invalid("a name has letters, digits and `_` only");
        }
        let key = self.key(&descriptor.name, &descriptor.labels);
        let mut state = self.lock();
        let kind = state.kinds.get(&descriptor.name);
        if kind.is_some_and(|kind| *kind != descriptor.kind) && !self.has(SinkFault::MixesKinds) {
            return invalid("the name is taken by another kind of metric");
        }
        let known = state.by_descriptor.get(&key).copied();
        if let Some(known) = known.filter(|_| !self.has(SinkFault::NewHandles)) {
            return Ok(MetricId(known));
        }
        if state.series.len() >= SERIES_MAX && !self.has(SinkFault::UnboundedSeries) {
            return Err(Error::new(ErrorKind::Exhausted, "register", "there are too many series"));
        }
        let at = state.series.len() as u32;
        state.series.push(Series { kind: descriptor.kind, number: 0.0, count: 0 });
        state.by_descriptor.insert(key, at);
        state.kinds.insert(descriptor.name.clone(), descriptor.kind);
        Ok(MetricId(at))
    }

    fn add(&self, counter: MetricId, amount: u64) {
        self.feed(counter, MetricKind::Counter, |series| series.number += amount as f64);
    }

    fn set(&self, gauge: MetricId, value: f64) {
        let earlier = |series: &Series| if self.has(SinkFault::AddsGauges) { series.number } else { 0.0 };
        self.feed(gauge, MetricKind::Gauge, |series| series.number = value + earlier(series));
    }

    fn observe(&self, histogram: MetricId, value: f64) {
        self.feed(histogram, MetricKind::Histogram, |series| {
            if self.has(SinkFault::LosesObservations) {
                (series.count, series.number) = (0, 0.0);
            }
            series.count += 1;
            series.number += value;
        });
    }
}
