//! What each protection is for: leaves them out, one or a few at a time, and shows which checks of the suite notice.
//!
//! Only a build made for it can leave anything out:
//!
//! ```sh
//! PALISADE_ABLATION=1 cargo test -p palisade-process --test ablation
//! ```
//!
//! In every other build this test shows that asking for it changes nothing. Layers stand behind each other on purpose, so a
//! protection is left out together with those that would cover for it; the table names them.

use std::process::{Command, ExitCode};
use std::sync::Arc;

use palisade_conformance::{Catalog, Check, Runner, Subject, Verdict, probe, run_as_child};
use palisade_core::BackendOptions;
use palisade_process::ProcessSandbox;

/// Bits of the protections to leave out.
const VARIABLE: &str = "PALISADE_ABLATE";
/// Asks this program to run one check.
const CHECK: &str = "--check";

const READ_ONLY: u32 = 1;
const NETWORK_NAMESPACE: u32 = 2;
const PID_NAMESPACE: u32 = 3;
const UTS_NAMESPACE: u32 = 5;
const LIMITS: u32 = 7;
const LANDLOCK: u32 = 8;
const SECCOMP: u32 = 9;
const DESCRIPTORS: u32 = 11;

/// A protection: its name, and its bit.
type Protection = (&'static str, u32);

/// Protections, each with those that cover for it.
const PROTECTIONS: &[(&str, u32, &[Protection])] = &[
    ("system call filter", SECCOMP, &[]),
    ("resource limits", LIMITS, &[]),
    ("uts namespace", UTS_NAMESPACE, &[]),
    ("closed descriptors", DESCRIPTORS, &[]),
    ("read-only mounts", READ_ONLY, &[("Landlock", LANDLOCK)]),
    ("Landlock", LANDLOCK, &[("read-only mounts", READ_ONLY)]),
    ("network namespace", NETWORK_NAMESPACE, &[("system call filter", SECCOMP), ("Landlock", LANDLOCK)]),
    ("pid namespace", PID_NAMESPACE, &[("system call filter", SECCOMP), ("Landlock", LANDLOCK)]),
];

const SUBJECT: Subject = Subject {
    name: env!("CARGO_PKG_NAME"),
    version: env!("CARGO_PKG_VERSION"),
    open: || Ok(Arc::new(ProcessSandbox::open(&BackendOptions::new())?)),
    probe: probe::native,
    expectations: "version = 1",
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let catalog = Catalog::current();
    if let [_, flag, id] = &arguments[..]
        && flag == CHECK
        && let Some(check) = catalog.check(id)
    {
        run_as_child(SUBJECT, check);
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|argument| argument == "--list") {
        println!("ablation: test");
        return ExitCode::SUCCESS;
    }
    let checks: Vec<&Check> = catalog.checks.iter().copied().filter(|check| check.profile() == "process").collect();
    if cfg!(palisade_ablation) { table(&checks) } else { ordinary(&checks) }
}

/// Ids of the checks that do not pass with these protections left out.
fn noticed(checks: &[&Check], bits: u32) -> Vec<String> {
    let own = std::env::current_exe().expect("this program");
    let runner = Runner::new(move |id: &str| {
        let mut command = Command::new(&own);
        command.args([CHECK, id]).env(VARIABLE, bits.to_string());
        command
    });
    let reports = runner.run(checks, |_| {});
    reports.iter().filter(|report| report.verdict != Verdict::Pass).map(|report| report.id.clone()).collect()
}

/// An ordinary build leaves nothing out, whatever is asked of it.
fn ordinary(checks: &[&Check]) -> ExitCode {
    let few: Vec<_> = checks.iter().copied().filter(|check| check.id.contains("syscalls")).collect();
    let noticed = noticed(&few, u32::MAX);
    println!("ablation: an ordinary build leaves nothing out: {} checks, {} noticed", few.len(), noticed.len());
    if noticed.is_empty() && !few.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn table(checks: &[&Check]) -> ExitCode {
    let before = noticed(checks, 0);
    if !before.is_empty() {
        println!("ablation: with nothing left out, {} do not pass", before.join(", "));
        return ExitCode::FAILURE;
    }
    println!("| left out | together with | checks that notice |\n|---|---|---|");
    let mut unnoticed = Vec::new();
    for (name, bit, behind) in PROTECTIONS {
        let covering = behind.iter().fold(0, |bits, (_, bit)| bits | 1 << bit);
        let alone = noticed(checks, 1 << bit);
        println!("| {name} | | {} |", show(&alone));
        if behind.is_empty() {
            if alone.is_empty() {
                unnoticed.push(*name);
            }
            continue;
        }
        // What only shows when this one is gone as well as those that cover for it.
        let without_cover = noticed(checks, covering);
        let both: Vec<_> =
            noticed(checks, covering | 1 << bit).into_iter().filter(|id| !without_cover.contains(id)).collect();
        let names: Vec<_> = behind.iter().map(|(name, _)| *name).collect();
        println!("| {name} | {} | {} |", names.join(", "), show(&both));
        if alone.is_empty() && both.is_empty() {
            unnoticed.push(*name);
        }
    }
    for name in &unnoticed {
        println!("ablation: nothing notices that {name} is left out");
    }
    if unnoticed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show(ids: &[String]) -> String {
    let short = |id: &String| id.trim_start_matches("process.").to_owned();
    match ids.len() {
        0 => "none".to_owned(),
        1..=12 => ids.iter().map(short).collect::<Vec<_>>().join(", "),
        more => format!("{more}: {}, ...", ids[..12].iter().map(short).collect::<Vec<_>>().join(", ")),
    }
}
