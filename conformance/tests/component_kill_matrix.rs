//! Every check of schedulers and sinks can fail: each fault of the reference is noticed by the check that names it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use palisade_conformance::{
    Catalog, CheckReport, Component, ReadableSink, Reading, Trial, Verdict, catalog, run_component_check,
};
use palisade_core::{MetricDescriptor, MetricId, MetricsSink, Result, Scheduler};
use palisade_fake::{FakeScheduler, FakeSink, SchedulerFault, SinkFault};

/// Runs every check on the correct reference, then each on its control, and gives what was not as it must be.
fn defects<T: ?Sized + Send + Sync + 'static>(
    component: Component<T>,
    catalog: &Catalog<Trial<T>>,
    faults: &[&'static str],
    set_fault: impl Fn(Option<&'static str>),
) -> Vec<String> {
    let mut wrong = Vec::new();
    let problem = |report: &CheckReport| format!("{} {}: {}", report.id, report.verdict, report.message);
    let controls: BTreeSet<_> = catalog.checks.iter().map(|check| check.control).collect();
    assert_eq!(controls.len(), catalog.checks.len(), "a control proves two checks");
    wrong.extend(faults.iter().filter(|fault| !controls.contains(*fault)).map(|fault| format!("no check for {fault}")));
    for check in &catalog.checks {
        set_fault(None);
        let report = run_component_check(component, check);
        if report.verdict != Verdict::Pass {
            wrong.push(format!("correct: {}", problem(&report)));
        }
        if !faults.contains(&check.control) {
            wrong.push(format!("{} names the control {}, which is no fault", check.id, check.control));
            continue;
        }
        set_fault(Some(check.control));
        let report = run_component_check(component, check);
        println!("{:28} -> {:9} {}: {}", check.control, report.verdict, check.id, report.message);
        if report.verdict != Verdict::Fail {
            wrong.push(format!("with {}: {}", check.control, problem(&report)));
        }
    }
    wrong
}

static SCHEDULER: Mutex<Option<SchedulerFault>> = Mutex::new(None);
static SINK: Mutex<Option<SinkFault>> = Mutex::new(None);

fn set<T>(place: &Mutex<T>, value: T) {
    *place.lock().unwrap_or_else(PoisonError::into_inner) = value;
}

#[test]
fn every_check_of_schedulers_can_fail() {
    let component = Component::<dyn Scheduler> {
        name: "fake",
        version: "0.1.0",
        reproduce: "cargo test -p palisade-conformance --test component_kill_matrix",
        open: || Ok(Arc::new(FakeScheduler::new(*SCHEDULER.lock().unwrap_or_else(PoisonError::into_inner)))),
    };
    let faults: Vec<_> = SchedulerFault::ALL.iter().map(|fault| fault.as_str()).collect();
    let wrong = defects(component, &catalog::scheduler::catalog(), &faults, |name| {
        set(&SCHEDULER, SchedulerFault::ALL.iter().copied().find(|fault| Some(fault.as_str()) == name));
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[derive(Debug)]
struct Readable(FakeSink);

impl MetricsSink for Readable {
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

impl ReadableSink for Readable {
    fn read(&self, name: &str, labels: &[(String, String)]) -> Option<Reading> {
        let (count, sum) = self.0.read(name, labels)?;
        Some(if count > 0 { Reading::Distribution { count, sum } } else { Reading::Number(sum) })
    }
}

#[test]
fn every_check_of_sinks_can_fail() {
    let component = Component::<dyn ReadableSink> {
        name: "fake",
        version: "0.1.0",
        reproduce: "cargo test -p palisade-conformance --test component_kill_matrix",
        open: || Ok(Arc::new(Readable(FakeSink::new(*SINK.lock().unwrap_or_else(PoisonError::into_inner))))),
    };
    let faults: Vec<_> = SinkFault::ALL.iter().map(|fault| fault.as_str()).collect();
    let wrong = defects(component, &catalog::metrics::catalog(), &faults, |name| {
        set(&SINK, SinkFault::ALL.iter().copied().find(|fault| Some(fault.as_str()) == name));
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
