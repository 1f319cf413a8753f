//! What each protection of a backend is for: leaves them out, one or a few at a time, and shows which checks notice.

use std::process::{Command, ExitCode};
use std::time::Duration;

use crate::{Catalog, Check, Runner, Subject, Verdict, run_as_child};

/// Environment variable that names the protections to leave out, separated by commas. Only a backend built for it looks at
/// it.
pub const ABLATE: &str = "PALISADE_ABLATE";
/// Asks a program to run one check.
const CHECK: &str = "--check";
/// Asks a program to run a backend's own test of one protection.
const OWN: &str = "--own";
/// Wall time of one check. What is left out may be what would have ended it.
const CHECK_TIME_MAX: Duration = Duration::from_secs(8);

/// A protection that a backend built for it can leave out.
#[derive(Debug, Clone, Copy)]
pub struct Protection {
    /// Its name in [`ABLATE`].
    pub name: &'static str,
    /// Other protections that stand behind it: what it stops is only seen when they are left out too.
    pub behind: &'static [&'static str],
    /// Tells whether the protection is there, for one that no guest can see. The error says what was seen instead. Runs in
    /// a process of its own.
    pub own: Option<fn() -> Result<(), String>>,
}

impl Protection {
    /// A protection that checks notice by themselves.
    pub const fn alone(name: &'static str) -> Protection {
        Protection { name, behind: &[], own: None }
    }

    /// This protection with others that stand behind it.
    pub const fn behind(self, behind: &'static [&'static str]) -> Protection {
        Protection { behind, ..self }
    }

    /// This protection with a test of the backend's own.
    pub const fn own(self, own: fn() -> Result<(), String>) -> Protection {
        Protection { own: Some(own), ..self }
    }
}

/// The whole `main` of a test without libtest that shows what the protections of a backend are for.
///
/// In a build that can leave them out (`built_for_it`), it prints a table, and fails when nothing notices that a protection
/// is gone. In every other build it shows that asking for it changes nothing. Only checks of `profile` run, or of all
/// profiles when it is empty.
pub fn ablation(subject: Subject, profile: &str, protections: &[Protection], built_for_it: bool) -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let catalog = Catalog::current();
    if let [_, flag, id] = &arguments[..]
        && flag == CHECK
        && let Some(check) = catalog.check(id)
    {
        run_as_child(subject, check);
        return ExitCode::SUCCESS;
    }
    if let [_, flag, name] = &arguments[..]
        && flag == OWN
        && let Some(own) = protections.iter().find(|protection| protection.name == name).and_then(|found| found.own)
    {
        return match own() {
            Ok(()) => ExitCode::SUCCESS,
            Err(seen) => {
                println!("{name}: {seen}");
                ExitCode::FAILURE
            }
        };
    }
    if arguments.iter().any(|argument| argument == "--list") {
        println!("ablation: test");
        return ExitCode::SUCCESS;
    }
    let applies = |check: &&Check| profile.is_empty() || check.profile() == profile;
    let checks: Vec<&Check> = catalog.checks.iter().copied().filter(applies).collect();
    if built_for_it { table(&checks, protections) } else { ordinary(&checks, protections) }
}

/// Ids of the checks that do not hold with these protections left out.
fn noticed(checks: &[&Check], left_out: &[&str]) -> Vec<String> {
    let Ok(own) = std::env::current_exe() else { return vec!["this program is not found".to_owned()] };
    let runner = Runner::new(move |id: &str| {
        let mut command = Command::new(&own);
        command.args([CHECK, id]).env(ABLATE, left_out.join(","));
        command
    });
    let reports = runner.budget(CHECK_TIME_MAX).run(checks, |_| {});
    reports.iter().filter(|report| report.verdict > Verdict::Blocked).map(|report| report.id.clone()).collect()
}

/// What the backend's own test of `protection` says with these left out; nothing when it holds, or there is none.
fn own_notices(protection: &Protection, left_out: &[&str]) -> Option<String> {
    protection.own?;
    let Ok(program) = std::env::current_exe() else { return Some("this program is not found".to_owned()) };
    let ended = Command::new(program).args([OWN, protection.name]).env(ABLATE, left_out.join(",")).output();
    match ended {
        Ok(ended) if ended.status.success() => None,
        Ok(ended) => Some(format!("its own test ({})", String::from_utf8_lossy(&ended.stdout).trim())),
        Err(error) => Some(format!("its own test does not start: {error}")),
    }
}

/// An ordinary build leaves nothing out, whatever is asked of it.
fn ordinary(checks: &[&Check], protections: &[Protection]) -> ExitCode {
    // Some of each area: the suite itself is another test.
    let few: Vec<_> = checks.iter().copied().step_by(6).collect();
    let all: Vec<_> = protections.iter().map(|protection| protection.name).collect();
    let mut noticed = noticed(&few, &all);
    noticed.extend(protections.iter().filter_map(|protection| own_notices(protection, &all)));
    noticed.iter().for_each(|what| println!("{what}"));
    println!("ablation: an ordinary build leaves nothing out: {} checks, {} noticed", few.len(), noticed.len());
    if noticed.is_empty() && !few.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn table(checks: &[&Check], protections: &[Protection]) -> ExitCode {
    let mut before = noticed(checks, &[]);
    before.extend(protections.iter().filter_map(|protection| own_notices(protection, &[])));
    if !before.is_empty() {
        println!("ablation: with nothing left out, these do not hold: {}", before.join(", "));
        return ExitCode::FAILURE;
    }
    println!("| left out | together with | checks that notice |\n|---|---|---|");
    let mut unnoticed = Vec::new();
    for protection in protections {
        let Protection { name, behind, .. } = protection;
        let mut alone = noticed(checks, &[name]);
        alone.extend(own_notices(protection, &[name]));
        println!("| {name} | | {} |", show(&alone));
        let mut together = Vec::new();
        if !behind.is_empty() {
            // What only shows when this one is gone as well as those that stand behind it.
            let without = noticed(checks, behind);
            let all: Vec<_> = behind.iter().copied().chain([*name]).collect();
            together = noticed(checks, &all).into_iter().filter(|id| !without.contains(id)).collect();
            println!("| {name} | {} | {} |", behind.join(", "), show(&together));
        }
        if alone.is_empty() && together.is_empty() {
            unnoticed.push(*name);
        }
    }
    for name in &unnoticed {
        println!("ablation: nothing notices that {name} is left out");
    }
    if unnoticed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show(ids: &[String]) -> String {
    match ids.len() {
        0 => "none".to_owned(),
        1..=12 => ids.join(", "),
        more => format!("{more}: {}, ...", ids[..12].join(", ")),
    }
}
