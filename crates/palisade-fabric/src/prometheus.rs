//! Metrics for Prometheus.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, OnceLock, PoisonError};

use palisade_core::{Error, ErrorKind, MetricDescriptor, MetricId, MetricKind, MetricsSink, Result};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::exponential_buckets;
use prometheus_client::registry::{Registry, Unit};

use crate::histogram::Histogram;
use crate::sinks::{Registered, Registration, SERIES_MAX};

/// Keeps metrics and writes them in the text format of OpenMetrics, which Prometheus reads.
///
/// A histogram's buckets follow from the unit at the end of its name: seconds from 50 µs to 52 s, bytes from 1 KiB to
/// 1 GiB, other numbers from 1 to 8192, in powers; ratios (`_ratio`) from 0.1 to 1 in tenths.
///
/// ```
/// use palisade_core::{MetricDescriptor, MetricKind, MetricsSink};
/// use palisade_fabric::PrometheusSink;
///
/// let sink = PrometheusSink::new();
/// let name = "palisade_tasks_finished_total".to_owned();
/// let descriptor = MetricDescriptor { name, help: "Tasks that ended".into(), kind: MetricKind::Counter, labels: vec![] };
/// sink.add(sink.register(&descriptor)?, 3);
/// assert!(sink.export()?.contains("palisade_tasks_finished_total{} 3"));
/// # Ok::<(), palisade_core::Error>(())
/// ```
pub struct PrometheusSink {
    registry: Mutex<Families>,
    // Blocks that are made when first needed and never move, so that feeding a metric takes no lock.
    blocks: [OnceLock<Block>; SERIES_MAX / BLOCK],
}

type Block = Box<[OnceLock<Series>]>;
const BLOCK: usize = 256;

type Labels = Vec<(String, String)>;

#[derive(Default)]
struct Families {
    registry: Registry,
    registered: Registered,
    by_name: HashMap<String, AnyFamily>,
}

enum AnyFamily {
    Counter(Family<Labels, Counter>),
    Gauge(Family<Labels, Gauge<f64, AtomicU64>>),
    Histogram(Family<Labels, Histogram, fn() -> Histogram>),
}

enum Series {
    Counter(Counter),
    Gauge(Gauge<f64, AtomicU64>),
    Histogram(Histogram),
}

impl fmt::Debug for PrometheusSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrometheusSink").finish_non_exhaustive()
    }
}

impl Default for PrometheusSink {
    fn default() -> Self {
        PrometheusSink::new()
    }
}

impl PrometheusSink {
    /// A sink without metrics.
    pub fn new() -> PrometheusSink {
        PrometheusSink { registry: Mutex::default(), blocks: [const { OnceLock::new() }; SERIES_MAX / BLOCK] }
    }

    /// Everything registered, as text. Serve it with the content type
    /// `application/openmetrics-text; version=1.0.0; charset=utf-8`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] when a metric cannot be written.
    pub fn export(&self) -> Result<String> {
        let families = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        encode(&mut text, &families.registry).map_err(|error| {
            Error::new(ErrorKind::Internal, "export", "a metric cannot be written").with_source(error)
        })?;
        Ok(text)
    }

    fn series(&self, id: MetricId) -> Option<&Series> {
        let index = id.0 as usize;
        self.blocks.get(index / BLOCK)?.get()?[index % BLOCK].get()
    }
}

/// The name without what the library adds: the unit and `_total`.
fn stem(descriptor: &MetricDescriptor) -> (&str, Option<Unit>) {
    let name = descriptor.name.strip_suffix("_total").unwrap_or(&descriptor.name);
    if let Some(stem) = name.strip_suffix("_seconds") {
        return (stem, Some(Unit::Seconds));
    }
    match name.strip_suffix("_bytes") {
        Some(stem) => (stem, Some(Unit::Bytes)),
        None => (name, None),
    }
}

impl Families {
    fn add_family(&mut self, descriptor: &MetricDescriptor) {
        let (stem, unit) = stem(descriptor);
        let of_seconds = || Histogram::new(exponential_buckets(50e-6, 2.0, 21));
        let of_bytes = || Histogram::new(exponential_buckets(1024.0, 4.0, 11));
        let of_numbers = || Histogram::new(exponential_buckets(1.0, 2.0, 14));
        let of_ratios = || Histogram::new((1..=10).map(|tenths| f64::from(tenths) / 10.0));
        let make: fn() -> Histogram = match &unit {
            None if stem.ends_with("_ratio") => of_ratios,
            Some(Unit::Seconds) => of_seconds,
            Some(_) => of_bytes,
            None => of_numbers,
        };
        // The library ends the sentence.
        let help = descriptor.help.trim_end_matches('.');
        let registry = &mut self.registry;
        macro_rules! add {
            ($kind:ident, $family:expr) => {{
                let family = $family;
                match unit {
                    Some(unit) => registry.register_with_unit(stem, help, unit, family.clone()),
                    None => registry.register(stem, help, family.clone()),
                }
                AnyFamily::$kind(family)
            }};
        }
        let family = match descriptor.kind {
            MetricKind::Counter => add!(Counter, Family::<Labels, Counter>::default()),
            MetricKind::Gauge => add!(Gauge, Family::<Labels, Gauge<f64, AtomicU64>>::default()),
            MetricKind::Histogram => {
                add!(Histogram, Family::<Labels, Histogram, fn() -> Histogram>::new_with_constructor(make))
            }
        };
        self.by_name.insert(descriptor.name.clone(), family);
    }
}

impl MetricsSink for PrometheusSink {
    fn register(&self, descriptor: &MetricDescriptor) -> Result<MetricId> {
        let mut families = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let id = match families.registered.register(descriptor)? {
            Registration::Known(id) => return Ok(id),
            Registration::New { id, first_of_its_name } => {
                if first_of_its_name {
                    families.add_family(descriptor);
                }
                id
            }
        };
        let mut labels = descriptor.labels.clone();
        labels.sort();
        let series = match families.by_name.get(&descriptor.name) {
            Some(AnyFamily::Counter(family)) => Series::Counter(family.get_or_create_owned(&labels)),
            Some(AnyFamily::Gauge(family)) => Series::Gauge(family.get_or_create_owned(&labels)),
            Some(AnyFamily::Histogram(family)) => Series::Histogram(family.get_or_create_owned(&labels)),
            None => return Err(Error::new(ErrorKind::Internal, "register", "a metric without its family")),
        };
        let index = id.0 as usize;
        let block = self.blocks[index / BLOCK].get_or_init(|| (0..BLOCK).map(|_| OnceLock::new()).collect());
        // Ids are new, so the place is free.
        let _ = block[index % BLOCK].set(series);
        Ok(id)
    }

    fn add(&self, counter: MetricId, amount: u64) {
        if let Some(Series::Counter(counter)) = self.series(counter) {
            counter.inc_by(amount);
        }
    }

    fn set(&self, gauge: MetricId, value: f64) {
        if let Some(Series::Gauge(gauge)) = self.series(gauge) {
            gauge.set(value);
        }
    }

    fn observe(&self, histogram: MetricId, value: f64) {
        self.observe_all(histogram, &[value]);
    }

    fn observe_all(&self, histogram: MetricId, values: &[f64]) {
        if let Some(Series::Histogram(histogram)) = self.series(histogram) {
            histogram.observe_all(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(kind: MetricKind, name: &str, labels: &[(&str, &str)]) -> MetricDescriptor {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        MetricDescriptor { name: name.to_owned(), help: "What it is.".to_owned(), kind, labels }
    }

    #[test]
    fn the_export_is_conventional() {
        let sink = PrometheusSink::new();
        let low = sink.register(&descriptor(MetricKind::Counter, "a_tasks_total", &[("class", "low")])).unwrap();
        let high = sink.register(&descriptor(MetricKind::Counter, "a_tasks_total", &[("class", "hi\"gh")])).unwrap();
        let wait = sink.register(&descriptor(MetricKind::Histogram, "a_wait_seconds", &[])).unwrap();
        let peak = sink.register(&descriptor(MetricKind::Gauge, "a_peak_bytes", &[])).unwrap();
        let cpu = sink.register(&descriptor(MetricKind::Counter, "a_cpu_seconds_total", &[])).unwrap();
        sink.add(low, 2);
        sink.add(high, 40);
        sink.observe(wait, 0.003);
        sink.set(peak, 4096.5);
        sink.add(cpu, 7);
        let text = sink.export().unwrap();
        let has = |line: &str| text.lines().any(|other| other == line);
        for line in [
            "# HELP a_tasks What it is.",
            "# TYPE a_tasks counter",
            "a_tasks_total{class=\"low\"} 2",
            "a_tasks_total{class=\"hi\\\"gh\"} 40",
            "# UNIT a_wait_seconds seconds",
            "a_wait_seconds_bucket{le=\"0.0032\"} 1",
            "a_wait_seconds_bucket{le=\"0.0016\"} 0",
            "a_wait_seconds_count{} 1",
            "a_peak_bytes{} 4096.5",
            "a_cpu_seconds_total{} 7",
            "# EOF",
        ] {
            assert!(has(line), "no line {line} in\n{text}");
        }
    }

    #[test]
    fn the_same_metric_is_the_same_handle_and_others_are_refused() {
        let sink = PrometheusSink::new();
        let one = descriptor(MetricKind::Counter, "a_total", &[("x", "1"), ("y", "2")]);
        let turned = descriptor(MetricKind::Counter, "a_total", &[("y", "2"), ("x", "1")]);
        let id = sink.register(&one).unwrap();
        assert_eq!(sink.register(&turned).unwrap(), id);
        let kind = |descriptor: MetricDescriptor| sink.register(&descriptor).map_err(|error| error.kind());
        let invalid = Err(ErrorKind::InvalidInput);
        assert_eq!(kind(descriptor(MetricKind::Counter, "a_total", &[("x", "1")])), invalid, "other labels");
        assert_eq!(kind(descriptor(MetricKind::Counter, "1a_total", &[])), invalid);
        assert_eq!(kind(descriptor(MetricKind::Counter, "a b_total", &[])), invalid);
        assert_eq!(kind(descriptor(MetricKind::Counter, "a", &[])), invalid);
        assert_eq!(kind(descriptor(MetricKind::Gauge, "g_total", &[])), invalid);
        assert_eq!(kind(descriptor(MetricKind::Histogram, "h", &[("le", "1")])), invalid);
        assert_eq!(kind(descriptor(MetricKind::Gauge, "g", &[("x", "1"), ("x", "2")])), invalid);
        let gauge = sink.register(&descriptor(MetricKind::Gauge, "g", &[])).unwrap();
        assert_eq!(kind(descriptor(MetricKind::Histogram, "g", &[])), invalid, "another kind");
        // Wrong kinds and unknown handles change nothing.
        sink.add(gauge, 5);
        sink.set(id, 5.0);
        sink.observe(MetricId(u32::MAX), 5.0);
        assert!(sink.export().unwrap().contains("a_total{x=\"1\",y=\"2\"} 0"));
    }

    #[test]
    fn series_are_bounded() {
        let sink = PrometheusSink::new();
        for number in 0..SERIES_MAX {
            sink.register(&descriptor(MetricKind::Gauge, "g", &[("n", &number.to_string())])).unwrap();
        }
        let error = sink.register(&descriptor(MetricKind::Gauge, "g", &[("n", "one more")])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted);
    }
}
