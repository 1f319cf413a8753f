//! The program that the author of a backend, scheduler or sink makes of the suite: a test without libtest.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use palisade_core::Capabilities;
use palisade_core::text::printable;

use crate::report::About;
use crate::{
    Catalog, Certificate, Check, CheckReport, Component, ProfileStatus, Report, Runner, Selection, Subject, Trial,
    Verdict, run_as_child, run_component_check,
};

const HELP: &str = "\
Certifies a sandbox backend, a scheduler or a metrics sink.

Usage: [OPTIONS] [FILTER]...

  FILTER               run the checks with this in their id
  --profile PROFILE    run the checks of one profile
  --skip FILTER        leave out the checks with this in their id
  --exact              filters are whole ids
  --list               show the checks, run none
  --report-dir DIR     write report.json, junit.xml and report.html
  --certify            also write certificate.json and badge.json, or print the certificate; only of a whole run

Exit code 0: all as expected. 1: not so, or nothing certified with --certify. 2: nothing to run, or a wrong option.";

/// The command line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    selection: Selection,
    list: bool,
    help: bool,
    /// What libtest calls ignored tests; there are none.
    only_ignored: bool,
    report_dir: Option<PathBuf>,
    certify: bool,
    /// Run this check in this process.
    check: Option<String>,
}

impl Options {
    fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Options, String> {
        let mut options = Options::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let (name, inline) = match argument.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
                _ => (argument, None),
            };
            let mut value = || {
                inline
                    .clone()
                    .or_else(|| arguments.next())
                    .ok_or_else(|| format!("`{name}` needs a value; see `--help`"))
            };
            match name.as_str() {
                "--help" | "-h" => options.help = true,
                "--list" => options.list = true,
                "--certify" => options.certify = true,
                "--exact" => options.selection.exact = true,
                "--ignored" => options.only_ignored = true,
                "--profile" => options.selection.profile = Some(value()?),
                "--skip" => options.selection.skips.push(value()?),
                "--report-dir" => options.report_dir = Some(value()?.into()),
                "--check" => options.check = Some(value()?),
                // Cargo hands the same options to every test of a package; these are libtest's, and change nothing here.
                "--nocapture"
                | "--no-capture"
                | "--show-output"
                | "--quiet"
                | "-q"
                | "--include-ignored"
                | "--test"
                | "--bench"
                | "--report-time"
                | "--force-run-in-process"
                | "--exclude-should-panic" => {}
                "--test-threads" | "--color" | "--format" | "--logfile" | "--shuffle-seed" | "-Z" => drop(value()?),
                "--shuffle" | "--ensure-time" => {}
                other if other.starts_with('-') => return Err(format!("unknown option `{other}`; see `--help`")),
                _ => options.selection.filters.push(name),
            }
        }
        if options.certify
            && let Some(selection) = options.selection.description()
        {
            return Err(format!("a filtered run never certifies ({selection}); leave out the filter or `--certify`"));
        }
        Ok(options)
    }
}

/// Runs the suite on `subject`, as the command line says: the whole `main` of a test with `harness = false`.
pub fn main(subject: Subject) -> ExitCode {
    ended(|options| {
        let catalog = Catalog::current();
        if let Some(id) = &options.check {
            let check = catalog.check(id).ok_or_else(|| format!("no check `{id}`"))?;
            run_as_child(subject, check);
            return Ok(0);
        }
        let about = || {
            let sandbox = (subject.open)().map_err(|error| format!("the backend does not open: {error}"))?;
            Ok(About {
                name: subject.name.to_owned(),
                version: subject.version.to_owned(),
                capabilities: Some(sandbox.capabilities().clone()),
                expectations: subject.expectations.to_owned(),
                filter: options.selection.description(),
                reproduce: format!("cargo test -p {} --test conformance --", subject.name),
            })
        };
        let program = std::env::current_exe().map_err(|error| format!("this program is not found: {error}"))?;
        let runner = Runner::new(|id: &str| {
            let mut command = Command::new(&program);
            command.args(["--check", id]);
            command
        });
        run(&catalog, options, about, |checks, about| {
            runner.run(checks, |report| {
                if folded_kind(report, &catalog, about.capabilities.as_ref()).is_none() {
                    print(&line(report));
                }
            })
        })
    })
}

/// Runs the suite on a component of the host, as the command line says.
pub(crate) fn component_main<T>(component: Component<T>, catalog: &Catalog<Trial<T>>) -> ExitCode
where
    T: ?Sized + Send + Sync + 'static,
{
    ended(|options| {
        if options.check.is_some() {
            return Err("`--check` is for backends; a filter with `--exact` runs one check".to_owned());
        }
        let about = || Ok(component.about(options.selection.description()));
        run(catalog, options, about, |checks, _| {
            let shown = checks.iter().map(|check| {
                let report = run_component_check(component, check);
                print(&line(&report));
                report
            });
            shown.collect()
        })
    })
}

/// Reads the command line and says how it went.
fn ended(run: impl FnOnce(&Options) -> Result<u8, String>) -> ExitCode {
    match Options::parse(std::env::args().skip(1)).and_then(|options| run(&options)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(2)
        }
    }
}

fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Does what the options ask for with the checks of `catalog`, which `execute` runs.
fn run<C>(
    catalog: &Catalog<C>,
    options: &Options,
    about: impl FnOnce() -> Result<About, String>,
    execute: impl FnOnce(&[&'static Check<C>], &About) -> Vec<CheckReport>,
) -> Result<u8, String> {
    if options.help {
        print(HELP);
        return Ok(0);
    }
    if options.list && options.only_ignored {
        return Ok(0);
    }
    let chosen = options.selection.choose(catalog);
    if options.list {
        for check in chosen {
            print(&format!("{}: test", check.id));
        }
        return Ok(0);
    }
    if chosen.is_empty() || options.only_ignored {
        return Err("no check was chosen, so nothing was shown".to_owned());
    }
    let about = about()?;
    print(&format!("\nrunning {} checks on {} {}\n", chosen.len(), about.name, about.version));
    let checks = execute(&chosen, &about);
    let report = Report::new(catalog, about, checks);
    for text in folded(&report, catalog) {
        print(&text);
    }
    for text in failures(&report) {
        print(&format!("\n{text}"));
    }
    let certificate = options.certify.then(|| Certificate::derive(&report, catalog));
    if let Some(folder) = &options.report_dir {
        let written = report.write(folder, certificate.as_ref());
        let written = written.map_err(|error| format!("cannot write into {}: {error}", folder.display()))?;
        for file in written {
            print(&format!("wrote {}", file.display()));
        }
    }
    let mut green = report.is_green();
    if let Some(certificate) = &certificate {
        for (profile, status) in &certificate.profiles {
            print(&profile_line(profile, status));
        }
        if options.report_dir.is_none() {
            print(&certificate.to_json());
        }
        green &= !certificate.certified().is_empty();
    }
    print(&format!("\nresult: {}. {}\n", if green { "ok" } else { "FAILED" }, report.summary()));
    Ok(u8::from(!green))
}

/// One line about a check, for a terminal. What is wrong is told at the end, with everything about it.
fn line(report: &CheckReport) -> String {
    let silent = report.message.is_empty() || report.verdict > Verdict::Blocked;
    let message = if silent { String::new() } else { format!("  {}", printable(&report.message)) };
    format!("{:<11}  {:>6} ms  {}{message}", report.verdict, report.duration_ms, report.id)
}

/// The kind of artifact of a check that was properly refused because the backend loads no such artifacts. There are many of
/// these, and all say the same.
fn folded_kind<C>(
    report: &CheckReport,
    catalog: &Catalog<C>,
    declared: Option<&Capabilities>,
) -> Option<palisade_core::ArtifactKind> {
    let kind = catalog.check(&report.id)?.artifact()?;
    let loads = declared?.artifacts.contains(&kind);
    (report.verdict == Verdict::Unsupported && !loads).then_some(kind)
}

/// One line for the checks of each profile that are folded.
fn folded<C>(report: &Report, catalog: &Catalog<C>) -> Vec<String> {
    let mut profiles: BTreeMap<&str, (usize, palisade_core::ArtifactKind)> = BTreeMap::new();
    for check in &report.checks {
        if let Some(kind) = folded_kind(check, catalog, report.capabilities.as_ref()) {
            let profile = check.id.split('.').next().unwrap_or_default();
            profiles.entry(profile).or_insert((0, kind)).0 += 1;
        }
    }
    let line = |(profile, (count, kind)): (&str, (usize, _))| {
        format!(
            "{:<11}  {count} checks of profile {profile}  does not load {kind} artifacts, and refuses them",
            "unsupported"
        )
    };
    profiles.into_iter().map(line).collect()
}

/// Each check that did not pass with all that is known of it, and what else was not as expected. Each is told once.
fn failures(report: &Report) -> Vec<String> {
    let failed = report.checks.iter().filter(|check| check.verdict > Verdict::Blocked);
    let told: Vec<_> =
        failed.clone().map(|check| format!("`{}`: {} ({})", check.id, check.verdict, check.message)).collect();
    let others = report.errors.iter().filter(|error| !told.contains(error));
    failed.map(details).chain(others.map(|error| format!("not as expected: {}", printable(error)))).collect()
}

/// Everything about a check that did not pass, for a terminal.
fn details(report: &CheckReport) -> String {
    let mut text = format!("{}: {}: {}", report.id, report.verdict, printable(&report.message));
    for evidence in &report.evidence {
        let mark = if evidence.holds { "as required" } else { "NOT as required" };
        let (subject, observed) = (printable(&evidence.subject), printable(&evidence.observed));
        text += &format!("\n    {:?}: {subject}: {observed} ({mark})", evidence.step);
    }
    text
}

fn profile_line(profile: &str, status: &ProfileStatus) -> String {
    match status {
        ProfileStatus::Certified => format!("profile {profile}: certified"),
        ProfileStatus::NotApplicable => format!("profile {profile}: not applicable"),
        ProfileStatus::NotCertified(reasons) => {
            let more = if reasons.len() > 1 { format!(" (and {} more)", reasons.len() - 1) } else { String::new() };
            let first = reasons.first().map(String::as_str).unwrap_or_default();
            format!("profile {profile}: not certified: {}{more}", printable(first))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_command_line_is_that_of_a_test() {
        let options =
            parse("--nocapture --test-threads=1 --color always memory --profile quota --report-dir=out").unwrap();
        assert_eq!(options.selection.filters, ["memory"]);
        assert_eq!(options.selection.profile.as_deref(), Some("quota"));
        assert_eq!(options.report_dir, Some("out".into()));
        assert_eq!(parse("--list --format terse --ignored").unwrap().selection, Selection::default());
        assert_eq!(parse("--check a.b.c").unwrap().check.as_deref(), Some("a.b.c"));
        assert!(parse("--profil quota").unwrap_err().contains("--profil"));
        assert!(parse("--profile").unwrap_err().contains("needs a value"));
    }

    #[test]
    fn a_filtered_run_cannot_be_asked_to_certify() {
        assert!(parse("--certify").is_ok());
        for filter in ["memory", "--profile quota", "--skip memory"] {
            assert!(parse(&format!("--certify {filter}")).unwrap_err().contains("never certifies"), "{filter}");
        }
    }

    #[test]
    fn a_failure_is_told_once() {
        let mut report = crate::report::tests::report();
        let failed = report.checks.iter_mut().find(|check| check.verdict == Verdict::Pass).unwrap();
        (failed.verdict, failed.message) = (Verdict::Fail, "the secret was seen".to_owned());
        let failed = failed.clone();
        report.errors = vec![
            format!("`{}`: fail (the secret was seen)", failed.id),
            "CONFORMANCE.toml: `a.b.c` has more than one entry".to_owned(),
        ];
        let told = [line(&failed), failures(&report).join("\n")].concat();
        assert_eq!(told.matches("the secret was seen").count(), 1, "{told}");
        assert_eq!(told.matches("more than one entry").count(), 1, "{told}");
    }

    #[test]
    fn checks_that_cannot_be_loaded_are_one_line() {
        let catalog = Catalog::current();
        let refused = |id: &str| crate::report::tests::check(id, Verdict::Unsupported);
        let mut report = crate::report::tests::report();
        report.capabilities.as_mut().unwrap().artifacts = [palisade_core::ArtifactKind::Wasm].into();
        report.checks =
            vec![refused("process.quota.memory"), refused("process.quota.stack"), refused("quota.cpu.fuel")];
        let folded = folded(&report, &catalog);
        assert_eq!(folded.len(), 1, "{folded:?}");
        assert!(folded[0].contains("2 checks of profile process"), "{folded:?}");
        // One that accepts what it does not declare is told by itself.
        report.checks[0].verdict = Verdict::Fail;
        assert!(folded_kind(&report.checks[0], &catalog, report.capabilities.as_ref()).is_none());
    }

    #[test]
    fn what_guests_say_cannot_move_the_cursor() {
        let report = crate::report::tests::check("core.output.bytes", Verdict::Fail);
        assert!(!details(&report).contains('\u{1b}') && !line(&report).contains('\u{1b}'));
    }
}
