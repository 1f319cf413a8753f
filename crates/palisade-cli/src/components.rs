//! The parts of the host that `palisade certify` knows besides backends: the daemon's schedulers and its metrics sink.

use std::sync::{Arc, Mutex, PoisonError};

use indicatif::ProgressBar;
use palisade::{Error, ErrorKind, Result, Scheduler, TaskId};
use palisade_conformance::{
    Catalog, Certificate, Component, ReadableSink, Report, Selection, TextSink, Trial, catalog, run_component_check,
};

use palisade_fabric::{LocalScheduler, PrometheusSink, SchedulerOptions, SqliteJournal};
use tempfile::TempDir;

/// Most bytes of the journal of one check.
const JOURNAL_BYTES_MAX: u64 = 1 << 30;

/// What is certified, and by which profile.
#[derive(Debug)]
enum Part {
    Scheduler(Component<dyn Scheduler>),
    Metrics(Component<dyn ReadableSink>),
}

/// Every part, by the name it has on the command line.
const PARTS: &[(&str, Part)] = &[
    (
        "prometheus",
        Part::Metrics(Component {
            name: "palisade-fabric, Prometheus",
            version: env!("CARGO_PKG_VERSION"),
            reproduce: "palisade certify --component prometheus",
            open: || Ok(Arc::new(TextSink { sink: PrometheusSink::new(), export: |sink| sink.export().ok() })),
        }),
    ),
    (
        "scheduler",
        Part::Scheduler(Component {
            name: "palisade-fabric, in memory",
            version: env!("CARGO_PKG_VERSION"),
            reproduce: "palisade certify --component scheduler",
            open: || Ok(Arc::new(LocalScheduler::open(SchedulerOptions::default())?)),
        }),
    ),
    (
        "scheduler-durable",
        Part::Scheduler(Component {
            name: "palisade-fabric, durable",
            version: env!("CARGO_PKG_VERSION"),
            reproduce: "palisade certify --component scheduler-durable",
            open: durable,
        }),
    ),
];

/// Where the journals lie, one for each check.
static JOURNALS: Mutex<Option<TempDir>> = Mutex::new(None);

fn durable() -> Result<Arc<dyn Scheduler>> {
    let folder = JOURNALS.lock().unwrap_or_else(PoisonError::into_inner);
    let folder =
        folder.as_ref().ok_or_else(|| Error::new(ErrorKind::Io, "certify", "there is no folder for journals"))?;
    let mut options = SchedulerOptions::default();
    options.journal =
        Some(Box::new(SqliteJournal::new(folder.path().join(TaskId::new().to_string()), JOURNAL_BYTES_MAX)?));
    Ok(Arc::new(LocalScheduler::open(options)?))
}

/// The names of the parts that are to be certified: the one that is asked for, or all of them.
///
/// # Errors
///
/// `NotFound` for an unknown name.
pub(crate) fn chosen(name: Option<&str>, all: bool) -> Result<Vec<&'static str>> {
    let names: Vec<_> = PARTS.iter().map(|(name, _)| *name).collect();
    match name {
        None if all => Ok(names),
        None => Ok(Vec::new()),
        Some(name) => match names.iter().find(|known| **known == name) {
            Some(known) => Ok(vec![known]),
            None => Err(Error::new(ErrorKind::NotFound, "certify", format!("there is no component `{name}`"))
                .with_help(format!("components: {}", names.join(", ")))),
        },
    }
}

/// The profiles of parts.
pub(crate) fn profiles() -> Vec<&'static str> {
    let (scheduler, metrics) = (catalog::scheduler::catalog(), catalog::metrics::catalog());
    scheduler.profiles().into_iter().chain(metrics.profiles()).collect()
}

/// Runs the chosen checks on the part called `name`; `None` when it has none of them.
///
/// # Errors
///
/// `Io` when there is no place for journals.
pub(crate) fn certify(name: &str, selection: &Selection, bar: &ProgressBar) -> Result<Option<(Report, Certificate)>> {
    let Some((_, part)) = PARTS.iter().find(|(known, _)| *known == name) else { return Ok(None) };
    let folder = tempfile::Builder::new().prefix("palisade-certify-").tempdir().map_err(|error| {
        Error::new(ErrorKind::Io, "certify", "there is no place for the journals of the checks").with_source(error)
    })?;
    let set = |folder| *JOURNALS.lock().unwrap_or_else(PoisonError::into_inner) = folder;
    set(Some(folder));
    let done = match part {
        Part::Scheduler(component) => run(*component, &catalog::scheduler::catalog(), selection, bar),
        Part::Metrics(component) => run(*component, &catalog::metrics::catalog(), selection, bar),
    };
    // Statics are not dropped at the end, and this one is a folder.
    set(None);
    Ok(done)
}

fn run<T>(
    component: Component<T>,
    catalog: &Catalog<Trial<T>>,
    selection: &Selection,
    bar: &ProgressBar,
) -> Option<(Report, Certificate)>
where
    T: ?Sized + Send + Sync + 'static,
{
    let chosen = selection.choose(catalog);
    if chosen.is_empty() {
        return None;
    }
    bar.set_length(chosen.len() as u64);
    let checks = chosen.into_iter().map(|check| {
        bar.set_message(check.id);
        let report = run_component_check(component, check);
        bar.inc(1);
        report
    });
    let report = Report::new(catalog, component.about(selection.description()), checks.collect());
    let certificate = Certificate::derive(&report, catalog);
    Some((report, certificate))
}
