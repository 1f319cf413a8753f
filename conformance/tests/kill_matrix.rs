//! Every check can fail: each fault of the reference backend is noticed by the check that names it as its control.
//!
//! One test does it all, one check at a time: checks look at what the whole process holds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use palisade_conformance::{Check, CheckReport, Subject, Verdict, catalog, probe, run_check};
use palisade_fake::{Fake, Fault, Universal};

/// The backend that the next check runs on.
static BACKEND: Mutex<Backend> = Mutex::new(Backend::One(None));

#[derive(Debug, Clone, Copy)]
enum Backend {
    One(Option<Fault>),
    Universal(Universal),
}

const SUBJECT: Subject = Subject {
    name: "fake",
    version: "0.1.0",
    open: || {
        Ok(match *BACKEND.lock().unwrap_or_else(PoisonError::into_inner) {
            Backend::One(fault) => Arc::new(Fake::new(fault)),
            Backend::Universal(universal) => Arc::new(Fake::universal(universal)),
        })
    },
    probe: probe::wasm,
    expectations: "",
};

fn run_all(backend: Backend) -> Vec<CheckReport> {
    *BACKEND.lock().unwrap_or_else(PoisonError::into_inner) = backend;
    catalog::checks().filter(|check| can_notice(backend, check)).map(|check| run_check(SUBJECT, check)).collect()
}

/// Leaves out what cannot notice a fault, or would only notice it after a wait that another check has too: faults of native
/// programs and of modules do not touch each other's profiles, and checks that wait for a clock run on their own fault.
fn can_notice(backend: Backend, check: &Check) -> bool {
    let Backend::One(Some(fault)) = backend else { return true };
    let is_native = |name: &str| name.starts_with("native-");
    let waits = ["time", "deadline", "cancel", "drop", "busy", "random-calls"];
    let waits = waits.iter().any(|word| check.control.contains(word));
    let fault = fault.as_str();
    check.control == fault || (is_native(fault) == is_native(check.control) && !waits)
}

/// Checks of duties that a backend which allows everything fulfils: they are about working, not about stopping. Each is
/// killed by its own control all the same.
const WORKS_WHEN_ALL_IS_ALLOWED: &[(&str, &str)] = &[
    ("core.call.echo", "output arrives"),
    ("core.call.exit-code", "exit codes arrive"),
    ("core.call.typed-trap", "a guest that traps does so under any policy"),
    ("core.host.error", "errors of host functions arrive"),
    ("core.host.panic", "panics of host functions are caught"),
    ("core.cancel.stale-token", "nothing is refused wrongly"),
    ("core.usage.memory-peak", "usage is measured"),
    ("core.usage.fuel-repeats", "fuel is measured"),
    ("core.usage.cpu-time", "CPU time is measured"),
    ("core.usage.input", "input is measured"),
    ("core.usage.output", "output is measured"),
    ("core.usage.log", "what is logged is measured"),
    ("core.usage.open-files", "open files are measured"),
    ("core.usage.disk", "what is written is measured"),
    ("core.usage.host-calls", "host calls are measured"),
    ("core.capabilities.constant", "what is declared stays"),
    ("core.call.initialize-first", "modules are set up"),
    ("core.load.runs-nothing", "nothing runs too early"),
    ("core.instance.runs-nothing", "nothing runs too early"),
    ("core.load.without-artifact", "modules stand alone"),
    ("core.sink.order", "output arrives in order"),
];

#[test]
fn every_check_can_fail() {
    let correct = run_all(Backend::One(None));
    let mut wrong: Vec<String> = correct
        .iter()
        .filter(|report| !matches!(report.verdict, Verdict::Pass | Verdict::Unsupported))
        .map(|report| format!("correct backend: {} {}: {}", report.id, report.verdict, report.message))
        .collect();
    let unsupported = correct.iter().filter(|report| report.verdict == Verdict::Unsupported).count();
    assert_eq!(unsupported, 0, "the reference backend declares all that checks need");

    for check in catalog::checks() {
        if !Fault::ALL.iter().any(|fault| fault.as_str() == check.control) {
            wrong.push(format!("{} names the control {}, which is no fault", check.id, check.control));
        }
    }

    println!("fault -> checks that noticed");
    let begun = Instant::now();
    let mut kills: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for fault in Fault::ALL {
        let reports = run_all(Backend::One(Some(*fault)));
        let noticed: Vec<_> = reports.iter().filter(|report| report.verdict > Verdict::Unsupported).collect();
        println!("{fault:24} -> {}", noticed.iter().map(|report| report.id.as_str()).collect::<Vec<_>>().join(", "));
        let controlled: Vec<_> = reports.iter().filter(|report| report.control == fault.as_str()).collect();
        if controlled.is_empty() {
            wrong.push(format!("no check has the control {fault}"));
        }
        for report in controlled {
            if report.verdict != Verdict::Fail {
                wrong.push(format!("{} is {} with its control {fault}: {}", report.id, report.verdict, report.message));
            }
        }
        kills.insert(fault.as_str(), noticed.iter().map(|report| report.id.clone()).collect());
    }
    println!("{} checks on {} faults in {:?}", correct.len(), kills.len(), begun.elapsed());

    for universal in Universal::ALL {
        let reports = run_all(Backend::Universal(universal));
        let passed: Vec<_> = reports
            .iter()
            .filter(|report| report.verdict <= Verdict::Unsupported)
            .map(|report| report.id.as_str())
            .collect();
        println!("{universal:?} passes: {}", if passed.is_empty() { "none".to_owned() } else { passed.join(", ") });
        let all_allowed = matches!(universal, Universal::Open | Universal::Liar);
        for id in passed {
            if !(all_allowed && WORKS_WHEN_ALL_IS_ALLOWED.iter().any(|(known, _)| *known == id)) {
                wrong.push(format!("{universal:?} passes {id}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
