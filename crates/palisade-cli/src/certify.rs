//! `palisade certify`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use clap::{ArgGroup, Args};
use indicatif::{ProgressBar, ProgressStyle};
use palisade::{Artifact, ArtifactKind, BackendRegistration, Error, ErrorKind, Result, Sandbox};
use palisade_conformance::{
    About, Catalog, Certificate, ProfileStatus, Report, Runner, Selection, Subject, Verdict, probe, report,
    run_as_child, verify,
};
use serde_json::json;

use crate::exit::Exit;
use crate::table::{printable, table};
use crate::{Machine, backend_options, components, output};

/// Backends of this repository: name on the certificate, and what they are known to fail.
const SHIPPED: &[(&str, &str, &str)] = &[
    ("process", "palisade-process", include_str!("../../../backends/palisade-process/CONFORMANCE.toml")),
    ("wasmer", "palisade-wasmer", include_str!("../../../backends/palisade-wasmer/CONFORMANCE.toml")),
    ("wasmtime", "palisade-wasmtime", include_str!("../../../backends/palisade-wasmtime/CONFORMANCE.toml")),
];

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["backend", "component", "all", "verify"]))]
pub(crate) struct Certify {
    /// Certify this backend
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Certify a part of the host: `scheduler`, `scheduler-durable` or `prometheus`
    #[arg(long, value_name = "NAME")]
    component: Option<String>,
    /// Certify every linked backend and every part of the host
    #[arg(long)]
    all: bool,
    /// Run only the checks of one profile, which certifies nothing; with --verify: this profile must be certified
    #[arg(long, value_name = "PROFILE")]
    profile: Option<String>,
    /// Run only the checks with this in their id, which certifies nothing
    #[arg(value_name = "FILTER", conflicts_with = "verify")]
    filter: Vec<String>,
    /// Write report.json, junit.xml, report.html, certificate.json and badge.json into this directory; with --all, into
    /// one directory inside it for each
    #[arg(long, value_name = "DIR", conflicts_with = "verify")]
    report_dir: Option<PathBuf>,
    /// Verify this certificate offline
    #[arg(long, value_name = "CERTIFICATE", requires = "report")]
    verify: Option<PathBuf>,
    /// The report the certificate follows from
    #[arg(long, value_name = "REPORT", requires = "verify")]
    report: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Run one check in this process
    #[arg(long, value_name = "ID", hide = true, requires = "backend")]
    check: Option<String>,
}

/// Exit code 0: everything was as expected, or the certificate holds. Else 1.
pub(crate) fn run(options: &Certify) -> Result<Exit> {
    if let (Some(certificate), Some(report)) = (&options.verify, &options.report) {
        return verify_files(options, certificate, report);
    }
    let registrations = match (&options.backend, &options.component) {
        (Some(name), _) => vec![palisade::backend(name)?],
        (None, Some(_)) => Vec::new(),
        (None, None) => palisade::backends(),
    };
    if let (Some(id), [registration]) = (&options.check, &registrations[..]) {
        return child(registration, id);
    }
    let catalog = Catalog::current();
    let selection =
        Selection { profile: options.profile.clone(), filters: options.filter.clone(), ..Selection::default() };
    let profiles: Vec<_> = catalog.profiles().into_iter().chain(components::profiles()).collect();
    if let Some(profile) = options.profile.as_deref().filter(|profile| !profiles.contains(profile)) {
        return Err(Error::new(ErrorKind::NotFound, "certify", format!("there is no profile `{profile}`"))
            .with_help(format!("profiles: {}", profiles.join(", "))));
    }
    let mut done = Vec::new();
    let mut end = |name: &'static str, report: Report, certificate: Certificate| {
        let folder = options.report_dir.as_ref().map(|folder| match options.all {
            true => folder.join(name),
            false => folder.clone(),
        });
        if let Some(folder) = &folder {
            report.write(folder, Some(&certificate)).map_err(|error| unwritable(folder, error))?;
        }
        if !options.json {
            show(&report, &certificate, folder.as_deref());
        }
        done.push((name, report, certificate));
        Ok(())
    };
    if !selection.choose(&catalog).is_empty() {
        for registration in registrations {
            let report = certify(registration, &catalog, &selection)?;
            let certificate = Certificate::derive(&report, &catalog);
            end(registration.name, report, certificate)?;
        }
    }
    for name in components::chosen(options.component.as_deref(), options.all)? {
        let bar = progress(name);
        let ran = components::certify(name, &selection, &bar)?;
        bar.finish_and_clear();
        if let Some((report, certificate)) = ran {
            end(name, report, certificate)?;
        }
    }
    if done.is_empty() {
        let message = "nothing to certify: no such check is for what was chosen";
        return Err(
            Error::new(ErrorKind::NotFound, "certify", message).with_help("leave out the filter to run them all")
        );
    }
    if let (true, Some(folder)) = (options.all, &options.report_dir) {
        // Components have other requirements, and pages of their own.
        let reports: Vec<_> =
            done.iter().map(|(_, report, _)| report).filter(|report| report.capabilities.is_some()).collect();
        std::fs::write(folder.join("matrix.html"), report::html(&reports))
            .map_err(|error| unwritable(folder, error))?;
    }
    let green = done.iter().all(|(_, report, _)| report.is_green());
    if options.json {
        let list: Vec<_> = done
            .iter()
            .map(|(name, report, certificate)| {
                let kind = if report.capabilities.is_some() { "backend" } else { "component" };
                json!({ kind: name, "green": report.is_green(), "summary": report.summary(),
                    "errors": report.errors, "certificate": certificate })
            })
            .collect();
        output::print_json(&json!(list));
    }
    Ok(if green { Exit::Success } else { Exit::Guest(1) })
}

fn unwritable(folder: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, "certify", format!("cannot write the report into {}", folder.display()))
        .with_source(error)
}

fn progress(name: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(name);
    bar
}

/// Runs the suite on one backend, each check in a process of its own.
fn certify(registration: &BackendRegistration, catalog: &Catalog, selection: &Selection) -> Result<Report> {
    let capabilities = open(registration)?.capabilities().clone();
    if ![ArtifactKind::Wasm, ArtifactKind::Executable].iter().any(|kind| capabilities.artifacts.contains(kind)) {
        let message = format!("backend `{}` loads no kind of artifact the suite has probes for", registration.name);
        return Err(Error::new(ErrorKind::Unsupported, "certify", message));
    }
    let (name, expectations) = shipped(registration.name);
    let program = std::env::current_exe().map_err(|error| {
        Error::new(ErrorKind::Io, "certify", "cannot find this program, to run checks in it").with_source(error)
    })?;
    let about = About {
        name: name.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        capabilities: Some(capabilities),
        expectations: expectations.to_owned(),
        filter: selection.description(),
        reproduce: format!("palisade certify --backend {}", registration.name),
    };
    let chosen = selection.choose(catalog);
    let bar = progress(registration.name);
    bar.set_length(chosen.len() as u64);
    let runner = Runner::new(|id: &str| {
        let mut command = Command::new(&program);
        command.args(["certify", "--backend", registration.name, "--check", id]);
        command
    });
    let checks = runner.run(&chosen, |report| {
        bar.set_message(report.id.clone());
        bar.inc(1);
    });
    bar.finish_and_clear();
    Ok(Report::new(catalog, about, checks))
}

/// Name on the certificate and expectations of the backend `name`.
fn shipped(name: &'static str) -> (&'static str, &'static str) {
    let found = SHIPPED.iter().find(|(known, ..)| *known == name);
    found.map_or((name, "version = 1"), |(_, subject, expectations)| (subject, expectations))
}

fn open(registration: &BackendRegistration) -> Result<Arc<dyn Sandbox>> {
    (registration.open)(&backend_options(false, &Machine::default()))
}

/// The backend of a check's process, which has but one.
static BACKEND: OnceLock<&'static BackendRegistration> = OnceLock::new();

/// The suite's own probes in a form the backend loads.
fn own_probe(registration: &BackendRegistration) -> Result<fn(&str) -> Artifact> {
    let wasm = open(registration)?.capabilities().artifacts.contains(&ArtifactKind::Wasm);
    Ok(if wasm { probe::wasm } else { probe::native })
}

/// The process of one check.
fn child(registration: &'static BackendRegistration, id: &str) -> Result<Exit> {
    let registration = *BACKEND.get_or_init(|| registration);
    let check = Catalog::current()
        .check(id)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, "certify", format!("there is no check `{id}`")))?;
    let (name, expectations) = shipped(registration.name);
    let subject = Subject {
        name,
        version: env!("CARGO_PKG_VERSION"),
        open: || match BACKEND.get() {
            Some(registration) => open(registration),
            None => Err(Error::new(ErrorKind::NotFound, "certify", "no backend was chosen")),
        },
        probe: own_probe(registration)?,
        expectations,
    };
    run_as_child(subject, check);
    Ok(Exit::Success)
}

/// Tells a person how it went.
fn show(report: &Report, certificate: &Certificate, folder: Option<&Path>) {
    let subject = &report.subject;
    output::print(&format!("{} {}: {}\n\n", subject.name, subject.version, report.summary()));
    let rows: Vec<_> = certificate
        .profiles
        .iter()
        .map(|(profile, status)| {
            let of_profile = || report.checks.iter().filter(|check| check.id.split('.').next() == Some(profile));
            let count = |verdicts: &[Verdict]| {
                of_profile().filter(|check| verdicts.contains(&check.verdict)).count().to_string()
            };
            let status = match status {
                ProfileStatus::Certified => "certified".to_owned(),
                ProfileStatus::NotApplicable => "not applicable: loads no such artifacts".to_owned(),
                ProfileStatus::NotCertified(reasons) => {
                    let more = reasons.len().saturating_sub(1);
                    let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
                    format!("not certified: {}{more}", printable(&short(reasons.first().map_or("", String::as_str))))
                }
            };
            vec![
                profile.clone(),
                count(&[Verdict::Pass]),
                count(&[Verdict::Unsupported, Verdict::Blocked]),
                count(&[Verdict::Vacuous, Verdict::Broken, Verdict::Fail]),
                status,
            ]
        })
        .collect();
    output::print(&table(&["PROFILE", "PASSED", "REFUSED", "FAILED", "CERTIFICATE"], &rows));
    for error in &report.errors {
        output::print(&format!("\nnot as expected: {}", printable(error)));
    }
    for note in &certificate.notes {
        output::print(&format!("\nnote: {}", printable(note)));
    }
    if let Some(folder) = folder {
        output::print(&format!("\nreports: {}", folder.display()));
    }
    output::print("\n");
}

fn short(text: &str) -> String {
    let mut short: String = text.chars().take(100).collect();
    if short.len() < text.len() {
        short.push('\u{2026}');
    }
    short
}

/// `--verify`
fn verify_files(options: &Certify, certificate_file: &Path, report_file: &Path) -> Result<Exit> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| {
            Error::new(ErrorKind::Io, "certify", format!("cannot read {}", path.display())).with_source(error)
        })
    };
    let (certificate_json, report_json) = (read(certificate_file)?, read(report_file)?);
    let mut errors = verify(&certificate_json, &report_json).err().unwrap_or_default();
    let certificate = Certificate::from_json(&certificate_json).ok();
    let certified = certificate.as_ref().map(Certificate::certified).unwrap_or_default();
    if let Some(profile) = options.profile.as_deref().filter(|profile| !certified.contains(profile)) {
        errors.push(format!("profile `{profile}` is not certified"));
    }
    let exit = if errors.is_empty() { Exit::Success } else { Exit::Guest(1) };
    if options.json {
        output::print_json(&json!({ "valid": errors.is_empty(), "errors": errors, "certified": certified }));
    } else if errors.is_empty() {
        let what = if certified.is_empty() { "nothing".to_owned() } else { certified.join(", ") };
        let subject = certificate.map(|certificate| certificate.subject);
        let subject = subject.map(|subject| format!("{} {}", subject.name, subject.version)).unwrap_or_default();
        output::print(&format!("The certificate follows from the report. It certifies of {subject}: {what}.\n"));
    } else {
        output::print("The certificate does not hold:\n");
        for error in &errors {
            output::print(&format!("  {}\n", printable(error)));
        }
    }
    Ok(exit)
}
