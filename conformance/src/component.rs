//! Certifying the other two traits of the contract: schedulers and metrics sinks.
//!
//! They run no hostile code, so their checks need no process of their own: each has a thread and a time.

use std::fmt::{self, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use palisade_core::{Error, ErrorKind, MetricDescriptor, MetricId, MetricsSink, Scheduler};

use crate::harness::component_main;
use crate::run::{CHECK_TIME_MAX, panic_text};
use crate::{About, Check, CheckReport, Evidence, Failure, Step, Verdict, catalog, clock};

/// How long something that must happen is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// What is certified: facts, and how to make a fresh one.
pub struct Component<T: ?Sized> {
    /// Name.
    pub name: &'static str,
    /// Version.
    pub version: &'static str,
    /// The command that runs everything again; with the id of a check behind it, that check alone.
    pub reproduce: &'static str,
    /// Makes a fresh one; called once for each check.
    pub open: fn() -> palisade_core::Result<Arc<T>>,
}

impl<T: ?Sized> Component<T> {
    /// What is known of a run besides what its checks find out; `filter` is [`Selection::description`].
    ///
    /// [`Selection::description`]: crate::Selection::description
    pub fn about(&self, filter: Option<String>) -> About {
        About {
            name: self.name.to_owned(),
            version: self.version.to_owned(),
            capabilities: None,
            expectations: "version = 1".to_owned(),
            filter,
            reproduce: self.reproduce.to_owned(),
        }
    }
}

// Derived, these would ask the same of `T`.
impl<T: ?Sized> Clone for Component<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized> Copy for Component<T> {}

impl<T: ?Sized> fmt::Debug for Component<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Component").field("name", &self.name).field("version", &self.version).finish_non_exhaustive()
    }
}

/// A metrics sink whose figures can be read back, from wherever it exports them.
pub trait ReadableSink: MetricsSink {
    /// What the sink shows for a metric now; `None` when it shows none of that name and these labels.
    fn read(&self, name: &str, labels: &[(String, String)]) -> Option<Reading>;
}

/// A sink that exports the text format of Prometheus or OpenMetrics.
#[derive(Debug)]
pub struct TextSink<S> {
    /// The sink.
    pub sink: S,
    /// Exports its text; `None` when that fails.
    pub export: fn(&S) -> Option<String>,
}

impl<S: MetricsSink> ReadableSink for TextSink<S> {
    fn read(&self, name: &str, labels: &[(String, String)]) -> Option<Reading> {
        read_text(&(self.export)(&self.sink)?, name, labels)
    }
}

impl<S: MetricsSink> MetricsSink for TextSink<S> {
    fn register(&self, descriptor: &MetricDescriptor) -> palisade_core::Result<MetricId> {
        self.sink.register(descriptor)
    }

    fn add(&self, counter: MetricId, amount: u64) {
        self.sink.add(counter, amount);
    }

    fn set(&self, gauge: MetricId, value: f64) {
        self.sink.set(gauge, value);
    }

    fn observe(&self, histogram: MetricId, value: f64) {
        self.sink.observe(histogram, value);
    }
}

/// What a sink shows for one metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading {
    /// Of a counter or gauge.
    Number(f64),
    /// Of a histogram.
    Distribution {
        /// How many values there were.
        count: u64,
        /// Their sum.
        sum: f64,
    },
}

/// Reads a metric from the text format of Prometheus or OpenMetrics: all of [`ReadableSink::read`] for a sink that exports
/// it. Label values must be free of quotes, commas and backslashes, as those of the suite are.
pub fn read_text(text: &str, name: &str, labels: &[(String, String)]) -> Option<Reading> {
    let mut wanted: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    wanted.sort();
    let value = |suffix: &str| {
        text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
            let rest = line.strip_prefix(name)?.strip_prefix(suffix)?;
            let (shown, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.split_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let mut shown: Vec<_> = shown.split(',').filter(|label| !label.is_empty()).collect();
            shown.sort_unstable();
            (shown == wanted).then(|| value.split(' ').next()?.parse::<f64>().ok()).flatten()
        })
    };
    match (value("_count"), value("_sum")) {
        (Some(count), Some(sum)) => Some(Reading::Distribution { count: count as u64, sum }),
        _ => value("").map(Reading::Number),
    }
}

/// What a check works with: the component, fresh for this check, and a place to write down what it saw.
pub struct Trial<T: ?Sized> {
    subject: Arc<T>,
    runtime: tokio::runtime::Runtime,
    step: Step,
    evidence: Vec<Evidence>,
}

impl<T: ?Sized> fmt::Debug for Trial<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trial").field("step", &self.step).field("evidence", &self.evidence).finish_non_exhaustive()
    }
}

impl<T: ?Sized> Trial<T> {
    fn new(component: Component<T>) -> Result<Trial<T>, Failure> {
        let failed =
            |what: &str, error: &dyn Display| Failure { step: Step::Baseline, message: format!("{what}: {error}") };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|error| failed("no runtime", &error))?;
        let subject = (component.open)().map_err(|error| failed("it does not open", &error))?;
        Ok(Trial { subject, runtime, step: Step::Baseline, evidence: Vec::new() })
    }

    /// The component.
    pub fn subject(&self) -> &Arc<T> {
        &self.subject
    }

    /// Drives a future.
    pub fn block_on<R>(&self, future: impl Future<Output = R>) -> R {
        self.runtime.block_on(future)
    }

    /// Drives a future that must end; `None` when it takes longer than a machine needs that has time for it.
    pub fn patiently<R>(&self, future: impl Future<Output = R>) -> Option<R> {
        self.runtime.block_on(clock::within(PATIENCE, future))
    }

    /// Drives a future that may not end for `time` by the clock; `None` when it did not.
    pub fn within<R>(&self, time: Duration, future: impl Future<Output = R>) -> Option<R> {
        self.runtime.block_on(async { tokio::time::timeout(time, future).await.ok() })
    }

    /// From here on the requirement itself is looked at; what fails before makes the check broken.
    pub fn enforce(&mut self) {
        self.step = Step::Enforced;
    }

    /// Writes down what was seen, and fails unless it is as required.
    ///
    /// # Errors
    ///
    /// When `holds` is false.
    pub fn expect(&mut self, subject: &str, observed: impl fmt::Debug, holds: bool) -> Result<(), Failure> {
        let observed = format!("{observed:?}");
        let message = format!("{subject}: {observed}");
        self.evidence.push(Evidence { step: self.step, subject: subject.to_owned(), observed, holds });
        if holds { Ok(()) } else { Err(Failure { step: self.step, message }) }
    }

    /// A result that must be good.
    ///
    /// # Errors
    ///
    /// The component's, as a failure of the current step.
    pub fn good<R>(&self, what: &str, result: palisade_core::Result<R>) -> Result<R, Failure> {
        result.map_err(|error| Failure { step: self.step, message: format!("{what}: {error}") })
    }

    /// A result that must be an error of `kind`.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub fn refused<R: fmt::Debug>(
        &mut self,
        what: &str,
        result: palisade_core::Result<R>,
        kind: ErrorKind,
    ) -> Result<(), Failure> {
        let holds = result.as_ref().is_err_and(|error: &Error| error.kind() == kind);
        let seen = result.map_err(|error| (error.kind(), error.to_string()));
        self.expect(what, seen, holds)
    }
}

/// Runs one check on a thread of its own, for at most [`CHECK_TIME_MAX`].
pub fn run_component_check<T>(component: Component<T>, check: &'static Check<Trial<T>>) -> CheckReport
where
    T: ?Sized + Send + Sync + 'static,
{
    let started = Instant::now();
    let (sender, receiver) = mpsc::sync_channel(1);
    let work = move || {
        let report = catch_unwind(AssertUnwindSafe(|| try_check(component, check, started))).unwrap_or_else(|panic| {
            CheckReport::new(check, Verdict::Broken, format!("panicked: {}", panic_text(&*panic)), started)
        });
        // Nobody listens when it took too long.
        let _ = sender.send(report);
    };
    if let Err(error) = std::thread::Builder::new().name(check.id.to_owned()).spawn(work) {
        return CheckReport::new(check, Verdict::Broken, format!("no thread: {error}"), started);
    }
    match clock::receive(&receiver, CHECK_TIME_MAX) {
        Some(Ok(report)) => report,
        _ => {
            let message = format!("took longer than {} s", CHECK_TIME_MAX.as_secs_f64());
            CheckReport::new(check, Verdict::Broken, message, started)
        }
    }
}

fn try_check<T: ?Sized>(component: Component<T>, check: &Check<Trial<T>>, started: Instant) -> CheckReport {
    let failed = |failure: Failure| {
        let verdict = if failure.step == Step::Baseline { Verdict::Broken } else { Verdict::Fail };
        CheckReport { step: Some(failure.step), ..CheckReport::new(check, verdict, failure.message, started) }
    };
    let mut trial = match Trial::new(component) {
        Ok(trial) => trial,
        Err(failure) => return failed(failure),
    };
    let result = (check.run)(&mut trial);
    let evidence = std::mem::take(&mut trial.evidence);
    let mut report = match result {
        Err(failure) => failed(failure),
        Ok(()) => CheckReport::new(check, Verdict::Pass, "", started),
    };
    report.evidence = evidence;
    if report.verdict == Verdict::Pass && !report.evidence_suffices() {
        (report.verdict, report.message) = (Verdict::Vacuous, "observed nothing in its enforced step".to_owned());
    }
    report
}

/// Certifies a scheduler: the whole `main` of a test with `harness = false`.
///
/// ```no_run
/// # fn open() -> palisade_core::Result<std::sync::Arc<dyn palisade_core::Scheduler>> { Err(palisade_core::Error::new(palisade_core::ErrorKind::NotFound, "open", "none")) }
/// fn main() -> std::process::ExitCode {
///     palisade_conformance::certify_scheduler(palisade_conformance::Component {
///         name: env!("CARGO_PKG_NAME"),
///         version: env!("CARGO_PKG_VERSION"),
///         reproduce: "cargo test --test conformance --",
///         open, // a fresh, empty one for each check
///     })
/// }
/// ```
pub fn certify_scheduler(component: Component<dyn Scheduler>) -> ExitCode {
    component_main(component, &catalog::scheduler::catalog())
}

/// Certifies a metrics sink: the whole `main` of a test with `harness = false`. See [`certify_scheduler`].
pub fn certify_metrics(component: Component<dyn ReadableSink>) -> ExitCode {
    component_main(component, &catalog::metrics::catalog())
}

/// The text of `components.lock`: what may not change without a new version of the suite.
pub fn component_lock() -> String {
    let (scheduler, metrics) = (catalog::scheduler::catalog().lock(), catalog::metrics::catalog().lock());
    // Each begins with the same line.
    let rest = metrics.split_once('\n').map_or("", |(_, rest)| rest);
    format!("{scheduler}{rest}")
}

/// The text of `COMPONENTS.md`.
pub fn component_document() -> String {
    let (scheduler, metrics) =
        (catalog::scheduler::catalog().requirements_document(), catalog::metrics::catalog().requirements_document());
    let rest = metrics.find("\n## ").map_or("", |at| &metrics[at..]);
    format!("{scheduler}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Catalog;

    #[test]
    fn ids_are_unique_and_checks_and_requirements_cover_each_other() {
        fn look<C>(catalog: &Catalog<C>, profile: &str) {
            use std::collections::BTreeSet;
            let known: BTreeSet<_> = catalog.requirements.iter().map(|requirement| requirement.id).collect();
            let cited: BTreeSet<_> = catalog.checks.iter().flat_map(|check| check.requires).copied().collect();
            assert_eq!(known, cited);
            assert_eq!(known.len(), catalog.requirements.len());
            let ids: BTreeSet<_> = catalog.checks.iter().map(|check| check.id).collect();
            assert_eq!(ids.len(), catalog.checks.len());
            for id in known.iter().chain(&ids) {
                assert!(id.starts_with(&format!("{profile}.")) && id.split('.').count() == 3, "{id}");
            }
            assert!(catalog.requirements.iter().all(|requirement| requirement.sentence.contains("MUST")));
        }
        look(&catalog::scheduler::catalog(), "scheduler");
        look(&catalog::metrics::catalog(), "metrics");
    }

    #[test]
    fn text_is_read_in_both_forms() {
        let text = "# HELP a_total x\na_total{y=\"2\",x=\"1\"} 7 1234\na_total 3\nb{} 1.5\nb_more 9\n\
                    h_sum{x=\"1\"} 2.5\nh_count{x=\"1\"} 4\nh_bucket{x=\"1\",le=\"1\"} 4\n";
        let labels = |list: &[(&str, &str)]| {
            list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
        };
        let read = |name: &str, list: &[(&str, &str)]| read_text(text, name, &labels(list));
        assert_eq!(read("a_total", &[("x", "1"), ("y", "2")]), Some(Reading::Number(7.0)));
        assert_eq!(read("a_total", &[]), Some(Reading::Number(3.0)));
        assert_eq!(read("a_total", &[("x", "1")]), None);
        assert_eq!(read("b", &[]), Some(Reading::Number(1.5)));
        assert_eq!(read("h", &[("x", "1")]), Some(Reading::Distribution { count: 4, sum: 2.5 }));
    }
}
