//! The alert rules watch metrics that exist, and the runbook says what to do about each.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use palisade_fabric::{Executor, ExecutorOptions, LocalScheduler, PrometheusSink, SchedulerOptions, SqliteJournal};
use palisade_fake::Fake;

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name);
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What a daemon exports before its first task, by the names its samples have.
fn exported() -> BTreeSet<String> {
    let folder = tempfile::tempdir().unwrap();
    let sink = Arc::new(PrometheusSink::new());
    let mut options = SchedulerOptions::default();
    options.metrics = Arc::clone(&sink) as _;
    options.journal = Some(Box::new(SqliteJournal::new(folder.path().join("tasks.sqlite"), 1 << 30).unwrap()));
    options.tenant_labels_max = 10;
    let scheduler = Arc::new(LocalScheduler::open(options).unwrap());
    let mut options = ExecutorOptions::new(scheduler, Arc::new(Fake::new(None)));
    options.metrics = Arc::clone(&sink) as _;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _executor = runtime.block_on(async { Executor::start(options) }).unwrap();
    let text = sink.export().unwrap();
    let names = text.lines().filter(|line| !line.starts_with('#'));
    names.map(|line| line.split(['{', ' ']).next().unwrap_or_default().to_owned()).collect()
}

/// Every word of `text` that begins like a metric of ours.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    words.filter(|word| word.starts_with("palisade_")).map(str::to_owned).collect()
}

#[test]
fn alerts_watch_metrics_that_exist() {
    let (rules, exported) = (read("packaging/alerts.yml"), exported());
    let expressions: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).collect();
    let watched = metrics(&expressions.join("\n"));
    assert!(watched.len() >= 10, "{watched:?}");
    let missing: Vec<_> = watched.difference(&exported).collect();
    assert!(missing.is_empty(), "{missing:?} are not among {exported:?}");
}

#[test]
fn the_runbook_says_what_to_do_about_every_alert() {
    let (rules, runbook) = (read("packaging/alerts.yml"), read("docs/runbook.md"));
    let alerts: BTreeSet<_> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect();
    let sections: BTreeSet<_> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .filter(|title| title.starts_with("Palisade"))
        .map(str::to_owned)
        .collect();
    assert!(!alerts.is_empty());
    assert_eq!(alerts, sections);
}

#[test]
fn the_runbook_names_metrics_that_exist() {
    let exported = exported();
    // A histogram is spoken of by its name, and read by its parts.
    let known = |name: &String| exported.contains(name) || exported.contains(&format!("{name}_count"));
    let missing: Vec<_> = metrics(&read("docs/runbook.md")).into_iter().filter(|name| !known(name)).collect();
    assert!(missing.is_empty(), "{missing:?} are not among {exported:?}");
}
