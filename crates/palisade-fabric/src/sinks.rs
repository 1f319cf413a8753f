//! Metrics sinks without an exporter: one that forgets, one that remembers.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use palisade_core::{Error, ErrorKind, MetricDescriptor, MetricId, MetricKind, MetricsSink, Result};

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NullSink;

impl MetricsSink for NullSink {
    fn register(&self, descriptor: &MetricDescriptor) -> Result<MetricId> {
        check(descriptor)?;
        Ok(MetricId(0))
    }

    fn add(&self, _: MetricId, _: u64) {}

    fn set(&self, _: MetricId, _: f64) {}

    fn observe(&self, _: MetricId, _: f64) {}

    fn observe_all(&self, _: MetricId, _: &[f64]) {}
}

/// Most series a sink of this crate keeps.
pub(crate) const SERIES_MAX: usize = 1 << 14;
/// Most labels of one metric.
const LABELS_MAX: usize = 16;
/// Longest name or label value, in bytes.
const TEXT_BYTES_MAX: usize = 256;

/// Refuses what no sink could export: names and labels are those of Prometheus' data model; counters, and nothing else,
/// end with `_total`.
pub(crate) fn check(descriptor: &MetricDescriptor) -> Result<()> {
    let invalid = |message: String| {
        Err(Error::new(ErrorKind::InvalidInput, "register", message).with_context("metric", &descriptor.name))
    };
    let is_name = |text: &str| {
        let first = text.bytes().next();
        first.is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && text.len() <= TEXT_BYTES_MAX
    };
    if !is_name(&descriptor.name) {
        return invalid("a metric's name has letters, digits and `_` only, and no digit first".to_owned());
    }
    if descriptor.name.ends_with("_total") != (descriptor.kind == MetricKind::Counter) {
        return invalid("counters, and only they, end with `_total`".to_owned());
    }
    if descriptor.labels.len() > LABELS_MAX {
        return invalid(format!("a metric has at most {LABELS_MAX} labels"));
    }
    for (at, (name, value)) in descriptor.labels.iter().enumerate() {
        if !is_name(name) || name.starts_with("__") || name == "le" || value.len() > TEXT_BYTES_MAX {
            return invalid(format!("label `{name}` is malformed or its value too long"));
        }
        if descriptor.labels[..at].iter().any(|(other, _)| other == name) {
            return invalid(format!("label `{name}` is there twice"));
        }
    }
    Ok(())
}

/// Which metrics are registered: the rules all sinks of this crate share.
#[derive(Debug, Default)]
pub(crate) struct Registered {
    ids: HashMap<(String, Vec<(String, String)>), MetricId>,
    /// By name: kind and label names.
    families: HashMap<String, (MetricKind, Vec<String>)>,
}

/// What became of a registration.
pub(crate) enum Registration {
    Known(MetricId),
    New { id: MetricId, first_of_its_name: bool },
}

impl Registered {
    pub(crate) fn register(&mut self, descriptor: &MetricDescriptor) -> Result<Registration> {
        check(descriptor)?;
        let mut labels = descriptor.labels.clone();
        labels.sort();
        let names: Vec<_> = labels.iter().map(|(name, _)| name.clone()).collect();
        let family = self.families.get(&descriptor.name);
        if family.is_some_and(|(kind, known)| *kind != descriptor.kind || *known != names) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "register",
                "the name is taken by a metric of another kind or with other labels",
            )
            .with_context("metric", &descriptor.name));
        }
        let first_of_its_name = family.is_none();
        let key = (descriptor.name.clone(), labels);
        if let Some(id) = self.ids.get(&key) {
            return Ok(Registration::Known(*id));
        }
        if self.ids.len() >= SERIES_MAX {
            return Err(Error::new(ErrorKind::Exhausted, "register", "there are too many metrics")
                .with_context("limit", SERIES_MAX)
                .with_help("use fewer label values"));
        }
        let id = MetricId(self.ids.len() as u32);
        self.ids.insert(key, id);
        self.families.entry(descriptor.name.clone()).or_insert((descriptor.kind, names));
        Ok(Registration::New { id, first_of_its_name })
    }

    pub(crate) fn id(&self, name: &str, labels: &[(&str, &str)]) -> Option<MetricId> {
        let mut labels: Vec<_> = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        labels.sort();
        self.ids.get(&(name.to_owned(), labels)).copied()
    }
}

/// Remembers the sum, the last value or all values of each metric; for tests and for small tools.
#[derive(Debug, Default)]
pub struct RecordingSink(Mutex<Recorded>);

#[derive(Debug, Default)]
struct Recorded {
    registered: Registered,
    values: Vec<(MetricKind, Value)>,
}

#[derive(Debug, Clone, Default)]
struct Value {
    number: f64,
    observed: Vec<f64>,
}

/// Most values of one histogram that are remembered; later ones are counted by nobody.
const OBSERVED_MAX: usize = 1 << 16;

impl RecordingSink {
    /// A sink that heard nothing yet.
    pub fn new() -> RecordingSink {
        RecordingSink::default()
    }

    /// The sum of a counter or the value of a gauge; `None` when it is not registered.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.find(name, labels).map(|value| value.number)
    }

    /// The values of a histogram in the order they came; `None` when it is not registered.
    pub fn observed(&self, name: &str, labels: &[(&str, &str)]) -> Option<Vec<f64>> {
        self.find(name, labels).map(|value| value.observed)
    }

    fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<Value> {
        let recorded = self.lock();
        let id = recorded.registered.id(name, labels)?;
        recorded.values.get(id.0 as usize).map(|(_, value)| value.clone())
    }

    // Whole after each statement.
    fn lock(&self) -> MutexGuard<'_, Recorded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, id: MetricId, kind: MetricKind, change: impl FnOnce(&mut Value)) {
        if let Some((known, value)) = self.lock().values.get_mut(id.0 as usize)
            && *known == kind
        {
            change(value);
        }
    }
}

impl MetricsSink for RecordingSink {
    fn register(&self, descriptor: &MetricDescriptor) -> Result<MetricId> {
        let mut recorded = self.lock();
        match recorded.registered.register(descriptor)? {
            Registration::Known(id) => Ok(id),
            Registration::New { id, .. } => {
                recorded.values.push((descriptor.kind, Value::default()));
                Ok(id)
            }
        }
    }

    fn add(&self, counter: MetricId, amount: u64) {
        self.with(counter, MetricKind::Counter, |value| value.number += amount as f64);
    }

    fn set(&self, gauge: MetricId, number: f64) {
        self.with(gauge, MetricKind::Gauge, |value| value.number = number);
    }

    fn observe(&self, histogram: MetricId, number: f64) {
        self.with(histogram, MetricKind::Histogram, |value| {
            if value.observed.len() < OBSERVED_MAX {
                value.observed.push(number);
            }
        });
    }
}
