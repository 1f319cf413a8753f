//! What a run found out. JSON is the source; every other form is a pure function of it.

mod badge;
mod html;
mod json;
mod junit;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use palisade_core::Capabilities;
use serde::{Deserialize, Serialize};

use crate::digest::sha256;
use crate::{Catalog, Certificate, CheckReport, Expectations, Facts, Judgement, Level, Verdict, facts};

pub use badge::badge;
pub use html::html;
pub use junit::junit;

/// Names the form of [`Report`].
pub const SCHEMA: &str = "palisade-conformance-report/1";

/// What a run of the suite found out about one backend, scheduler or metrics sink.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`SCHEMA`]
    pub schema: String,
    /// What was tested.
    pub subject: SubjectReport,
    /// What it was tested with.
    pub suite: SuiteReport,
    /// When, in UTC.
    pub date: String,
    /// Where.
    pub facts: Facts,
    /// What the backend declares; components of the host declare nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// What was chosen to run, when it was not everything. Such a run certifies nothing.
    pub filter: Option<String>,
    /// The requirements of the catalog.
    pub requirements: Vec<RequirementReport>,
    /// What each check found out.
    pub checks: Vec<CheckReport>,
    /// Ids of checks that failed as expected.
    pub expected: Vec<String>,
    /// What was not as expected. The run is green when this is empty.
    pub errors: Vec<String>,
    /// Digest of the backend's `CONFORMANCE.toml`.
    pub expectations_sha256: String,
    /// The command that runs everything again; with the id of a check behind it, that check alone.
    pub reproduce: String,
}

/// What was tested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubjectReport {
    /// Name of the backend, scheduler or sink.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// What it was tested with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuiteReport {
    /// Version of the suite.
    pub version: String,
    /// Digest of its catalog.
    pub catalog_sha256: String,
    /// Number of requirements in it.
    pub requirements: usize,
    /// Number of checks in it.
    pub checks: usize,
}

impl SuiteReport {
    /// That of `catalog`.
    pub fn of<C>(catalog: &Catalog<C>) -> SuiteReport {
        SuiteReport {
            version: catalog.version.clone(),
            catalog_sha256: catalog.sha256(),
            requirements: catalog.requirements.len(),
            checks: catalog.checks.len(),
        }
    }
}

/// One requirement, as in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequirementReport {
    /// Permanent id.
    pub id: String,
    /// How strict it is.
    pub level: Level,
    /// The sentence.
    pub sentence: String,
    /// The threat it answers.
    pub threat: String,
    /// Version of the suite that introduced it.
    pub since: String,
}

impl RequirementReport {
    /// Those of `catalog`.
    pub fn of<C>(catalog: &Catalog<C>) -> Vec<RequirementReport> {
        let report = |requirement: &&crate::Requirement| RequirementReport {
            id: requirement.id.to_owned(),
            level: requirement.level,
            sentence: requirement.sentence.to_owned(),
            threat: requirement.threat.to_owned(),
            since: requirement.since.to_owned(),
        };
        catalog.requirements.iter().map(report).collect()
    }
}

/// What is known about a run besides what its checks find out.
#[derive(Debug, Clone)]
pub struct About {
    /// Name of the backend, scheduler or sink.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it declares, when it is a backend.
    pub capabilities: Option<Capabilities>,
    /// Text of its `CONFORMANCE.toml`.
    pub expectations: String,
    /// What was chosen to run, when it was not everything.
    pub filter: Option<String>,
    /// The command that runs everything again; with the id of a check behind it, that check alone.
    pub reproduce: String,
}

impl Report {
    /// The report on a run that ends now.
    pub fn new<C>(catalog: &Catalog<C>, about: About, checks: Vec<CheckReport>) -> Report {
        let known = catalog.checks.iter().map(|check| check.id).collect();
        let judgement = match Expectations::parse(&about.expectations) {
            Ok(expectations) => expectations.judge(&checks, &known, &about.version),
            Err(error) => Judgement { expected: Vec::new(), errors: vec![error] },
        };
        Report {
            schema: SCHEMA.to_owned(),
            subject: SubjectReport { name: about.name, version: about.version },
            suite: SuiteReport::of(catalog),
            date: facts::now(),
            facts: Facts::gather(about.capabilities.as_ref().map_or("none", |declared| &declared.engine)),
            capabilities: about.capabilities,
            filter: about.filter,
            requirements: RequirementReport::of(catalog),
            checks,
            expected: judgement.expected,
            errors: judgement.errors,
            expectations_sha256: sha256(&about.expectations),
            reproduce: about.reproduce,
        }
    }

    /// Number of checks with each verdict.
    pub fn counts(&self) -> BTreeMap<Verdict, usize> {
        let mut counts = BTreeMap::new();
        for check in &self.checks {
            *counts.entry(check.verdict).or_default() += 1;
        }
        counts
    }

    /// Whether everything was as expected.
    pub fn is_green(&self) -> bool {
        self.errors.is_empty() && !self.checks.is_empty()
    }

    /// One line about everything: `118 passed, 2 unsupported, 0 failed`.
    pub fn summary(&self) -> String {
        let counts = self.counts();
        let count = |verdict| counts.get(&verdict).copied().unwrap_or(0);
        let mut parts = vec![format!("{} passed", count(Verdict::Pass))];
        for verdict in [Verdict::Unsupported, Verdict::Blocked, Verdict::Vacuous, Verdict::Broken] {
            if count(verdict) > 0 {
                parts.push(format!("{} {verdict}", count(verdict)));
            }
        }
        parts.push(format!("{} failed", count(Verdict::Fail)));
        if !self.expected.is_empty() {
            parts.push(format!("{} of them as expected", self.expected.len()));
        }
        parts.join(", ")
    }

    /// The worst verdict of the checks of a requirement; `None` when none ran.
    pub fn verdict_of(&self, requirement: &str) -> Option<Verdict> {
        self.checks_of(requirement).map(|check| check.verdict).max()
    }

    /// The checks of a requirement.
    pub fn checks_of(&self, requirement: &str) -> impl Iterator<Item = &CheckReport> {
        self.checks.iter().filter(move |check| check.requires.iter().any(|id| id == requirement))
    }

    /// Writes `report.json`, `junit.xml` and `report.html` into `folder`, and with a certificate `certificate.json` and
    /// `badge.json` as well. Returns what was written.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn write(&self, folder: &Path, certificate: Option<&Certificate>) -> std::io::Result<Vec<PathBuf>> {
        std::fs::create_dir_all(folder)?;
        let mut files =
            vec![("report.json", self.to_json()), ("junit.xml", junit(self)), ("report.html", html(&[self]))];
        if let Some(certificate) = certificate {
            files.extend([("certificate.json", certificate.to_json()), ("badge.json", badge(certificate))]);
        }
        // A certificate of an earlier run must not lie beside the report of this one.
        for name in ["certificate.json", "badge.json"] {
            match std::fs::remove_file(folder.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let mut written = Vec::new();
        for (name, content) in files {
            std::fs::write(folder.join(name), content)?;
            written.push(folder.join(name));
        }
        Ok(written)
    }
}

/// `text` with what has a meaning in HTML and XML written as entities, and without characters XML does not have.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(c),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
pub(crate) mod tests {

    use palisade_core::{Abi, ArtifactKind, Enforcement, GrantKind, Resource};

    use super::*;
    use crate::{Check, Evidence, Need, Requirement, Step};

    static REQUIREMENTS: [Requirement; 4] = [
        Requirement {
            id: "core.output.complete",
            level: Level::Must,
            sentence: "Output MUST be complete.",
            threat: "A caller acts on half an answer",
            since: "0.1",
        },
        Requirement {
            id: "quota.memory.hard",
            level: Level::Must,
            sentence: "Memory MUST be bounded.",
            threat: "A guest takes the memory of <everybody>",
            since: "0.1",
        },
        Requirement {
            id: "quota.processes.hard",
            level: Level::Must,
            sentence: "Processes MUST be bounded.",
            threat: "A fork bomb",
            since: "0.1",
        },
        Requirement {
            id: "quota.hints.useful",
            level: Level::Should,
            sentence: "Hints SHOULD be useful.",
            threat: "Confusion",
            since: "0.1",
        },
    ];
    static CHECKS: [Check; 4] = [
        Check { id: "core.output.bytes", requires: &["core.output.complete"], needs: &[], control: "cuts", run },
        Check {
            id: "quota.memory.grow",
            requires: &["quota.memory.hard"],
            needs: &[Need::Quota(Resource::Memory)],
            control: "ignores-memory",
            run,
        },
        Check {
            id: "quota.processes.fork",
            requires: &["quota.processes.hard"],
            needs: &[Need::Grant(GrantKind::ChildProcesses)],
            control: "ignores-processes",
            run,
        },
        Check { id: "quota.hints.text", requires: &["quota.hints.useful"], needs: &[], control: "mute", run },
    ];

    fn run(_: &mut crate::Context) -> Result<(), crate::Failure> {
        Ok(())
    }

    /// A catalog of four checks.
    pub(crate) fn catalog() -> Catalog {
        Catalog {
            version: "0.1.0".into(),
            requirements: REQUIREMENTS.iter().collect(),
            checks: CHECKS.iter().collect(),
        }
    }

    /// What a check of this id and verdict would report.
    pub(crate) fn check(id: &str, verdict: Verdict) -> CheckReport {
        let known = CHECKS.iter().find(|check| check.id == id);
        let step = if verdict == Verdict::Unsupported { Step::Refusal } else { Step::Enforced };
        CheckReport {
            id: id.into(),
            requires: known.map_or(&[][..], |check| check.requires).iter().map(ToString::to_string).collect(),
            verdict,
            message: if verdict == Verdict::Pass { String::new() } else { "<script>alert('x')</script>".into() },
            step: (verdict > Verdict::Unsupported).then_some(step),
            evidence: vec![Evidence {
                step,
                subject: "what the guest said".into(),
                observed: "</details><script>alert(1)</script>\u{1b}[2J & \"more\"".into(),
                holds: verdict <= Verdict::Unsupported,
            }],
            control: known.map_or("none", |check| check.control).into(),
            duration_ms: 1500,
        }
    }

    /// The report on a whole run in which everything passed but what the backend does not declare.
    pub(crate) fn report() -> Report {
        let mut capabilities = Capabilities::new("test", "engine <1>");
        capabilities.artifacts = [ArtifactKind::Wasm].into();
        capabilities.abis = [Abi::Command].into();
        capabilities.quotas = [(Resource::Memory, Enforcement::Enforced)].into();
        capabilities.memory_bytes_max = 1;
        capabilities.stack_bytes_min = 1;
        capabilities.stack_bytes_max = 1;
        capabilities.instances_max = 1;
        let about = About {
            name: "palisade-test".into(),
            version: "0.3.0".into(),
            capabilities: Some(capabilities),
            expectations: "version = 1".into(),
            filter: None,
            reproduce: "cargo test -p palisade-test --test conformance --".into(),
        };
        let checks = vec![
            check("core.output.bytes", Verdict::Pass),
            check("quota.memory.grow", Verdict::Pass),
            check("quota.processes.fork", Verdict::Unsupported),
            check("quota.hints.text", Verdict::Pass),
        ];
        Report { date: "2026-01-02T03:04:05Z".into(), ..Report::new(&catalog(), about, checks) }
    }

    /// Checks that every element that begins also ends, in order.
    #[track_caller]
    pub(crate) fn assert_well_formed(text: &str) {
        let mut open = Vec::new();
        let mut rest = text;
        while let Some((_, after)) = rest.split_once('<') {
            let (tag, after) = after.split_once('>').expect("a tag ends");
            rest = after;
            let name = tag.split_whitespace().next().unwrap_or_default();
            assert!(!tag.contains('<'), "<{tag}>");
            match name.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name), "before {after:.80}"),
                None if tag.ends_with('/') || name.starts_with(['?', '!']) || name == "meta" => {}
                None => open.push(name),
            }
        }
        assert_eq!(open, [] as [&str; 0]);
        assert!(!text.contains("<script") && !text.contains('\u{1b}'));
    }

    #[test]
    fn a_whole_run_is_summed_up() {
        let mut report = report();
        assert_eq!(report.summary(), "3 passed, 1 unsupported, 0 failed");
        assert!(report.is_green());
        assert_eq!(report.verdict_of("quota.processes.hard"), Some(Verdict::Unsupported));
        report.checks[0].verdict = Verdict::Fail;
        report.checks[1].verdict = Verdict::Broken;
        report.expected.push("core.output.bytes".into());
        assert_eq!(report.summary(), "1 passed, 1 unsupported, 1 broken, 1 failed, 1 of them as expected");
        report.checks.clear();
        assert!(!report.is_green());
    }

    #[test]
    fn reports_are_written_and_an_old_certificate_does_not_stay() {
        let folder = tempfile::tempdir().unwrap();
        let report = report();
        let certificate = Certificate::derive(&report, &catalog());
        assert_eq!(report.write(folder.path(), Some(&certificate)).unwrap().len(), 5);
        assert!(folder.path().join("certificate.json").exists());
        assert_eq!(report.write(folder.path(), None).unwrap().len(), 3);
        assert!(!folder.path().join("certificate.json").exists() && !folder.path().join("badge.json").exists());
    }
}
