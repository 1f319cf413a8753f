//! Certificates: statements that follow from a report and the catalog, and can be followed again offline.

use std::collections::{BTreeMap, BTreeSet};

use palisade_core::{Capabilities, Enforcement, GrantKind, Resource};
use serde::{Deserialize, Serialize};

use crate::digest::sha256;
use crate::report::{RequirementReport, SubjectReport, SuiteReport};
use crate::{Catalog, CheckReport, Facts, Need, Report, Verdict, catalog};

/// Names the form of [`Certificate`].
pub const SCHEMA: &str = "palisade-certificate/1";
/// The profile that every other one rests on.
const CORE: &str = "core";

/// What a report says about a backend. It is self-tested and reproducible with one command; it lapses when the backend,
/// the suite or the machine changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// [`SCHEMA`]
    pub schema: String,
    /// What was tested.
    pub subject: SubjectReport,
    /// What it was tested with.
    pub suite: SuiteReport,
    /// Each profile of the catalog.
    pub profiles: BTreeMap<String, ProfileStatus>,
    /// What the backend declares; components of the host declare nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<CapabilityNames>,
    /// The machine and the build.
    pub facts: Facts,
    /// What a reader should know besides.
    pub notes: Vec<String>,
    /// Digest of the backend's `CONFORMANCE.toml`.
    pub expectations_sha256: String,
    /// Digest of the report this follows from.
    pub report_sha256: String,
    /// When the run ended, in UTC.
    pub date: String,
    /// The command that runs everything again.
    pub reproduce: String,
}

/// Whether a profile is certified. There is nothing in between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProfileStatus {
    /// Every counted check passed, or the backend properly refuses what it needs.
    Certified,
    /// The backend loads no artifact of the kind this profile is about, and refuses them properly.
    NotApplicable,
    /// Why not.
    NotCertified(Vec<String>),
}

/// Names of quotas and grants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapabilityNames {
    /// Those the backend declares.
    pub declared: Vec<String>,
    /// Those it does not.
    pub declined: Vec<String>,
}

impl CapabilityNames {
    fn of(capabilities: &Capabilities) -> CapabilityNames {
        let quotas = Resource::ALL.iter().copied().map(|resource| {
            (format!("quota {resource}"), capabilities.enforcement(resource) != Enforcement::Unsupported)
        });
        let grants =
            GrantKind::ALL.iter().copied().map(|kind| (format!("grant {kind}"), capabilities.grants.contains(&kind)));
        let (declared, declined): (Vec<_>, Vec<_>) = quotas.chain(grants).partition(|(_, declared)| *declared);
        let names = |list: Vec<(String, bool)>| list.into_iter().map(|(name, _)| name).collect();
        CapabilityNames { declared: names(declared), declined: names(declined) }
    }
}

impl Certificate {
    /// What follows from `report` and `catalog`.
    pub fn derive<C>(report: &Report, catalog: &Catalog<C>) -> Certificate {
        let general = reasons_against(report, catalog);
        let mut profiles: BTreeMap<String, ProfileStatus> = catalog
            .profiles()
            .into_iter()
            .map(|profile| {
                let mut reasons = general.clone();
                let (of_profile, passed) = reasons_against_profile(report, catalog, profile);
                reasons.extend(of_profile);
                let applies = applies(report, catalog, profile);
                if applies && !passed {
                    reasons.push("no check passed".to_owned());
                }
                let status = match reasons.is_empty() {
                    true if applies => ProfileStatus::Certified,
                    true => ProfileStatus::NotApplicable,
                    false => ProfileStatus::NotCertified(reasons),
                };
                (profile.to_owned(), status)
            })
            .collect();
        if matches!(profiles.get(CORE), Some(ProfileStatus::NotCertified(_))) {
            for (profile, status) in &mut profiles {
                if profile != CORE {
                    status.add("profile `core` is not certified".to_owned());
                }
            }
        }
        let mut notes = Vec::new();
        if report.facts.build != "release" {
            notes.push(format!("a {} build was tested", report.facts.build));
        }
        if report.facts.ablation {
            notes.push("a protection was left out of this build on purpose".to_owned());
        }
        notes.extend(
            report
                .capabilities
                .iter()
                .flat_map(|declared| &declared.caveats)
                .map(|caveat| format!("the backend declares: {caveat}")),
        );
        Certificate {
            schema: SCHEMA.to_owned(),
            subject: report.subject.clone(),
            suite: report.suite.clone(),
            profiles,
            capabilities: report.capabilities.as_ref().map(CapabilityNames::of),
            facts: report.facts.clone(),
            notes,
            expectations_sha256: report.expectations_sha256.clone(),
            report_sha256: sha256(report.to_json()),
            date: report.date.clone(),
            reproduce: report.reproduce.clone(),
        }
    }

    /// Names of the certified profiles.
    pub fn certified(&self) -> Vec<&str> {
        let certified = self.profiles.iter().filter(|(_, status)| **status == ProfileStatus::Certified);
        certified.map(|(profile, _)| profile.as_str()).collect()
    }

    /// The JSON text.
    pub fn to_json(&self) -> String {
        // Text and numbers always have a JSON form.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Reads a JSON text.
    ///
    /// # Errors
    ///
    /// What is wrong with it, for people.
    pub fn from_json(text: &str) -> Result<Certificate, String> {
        let certificate: Certificate =
            serde_json::from_str(text).map_err(|error| format!("the certificate is unreadable: {error}"))?;
        match certificate.schema.as_str() {
            SCHEMA => Ok(certificate),
            other => Err(format!("the certificate has the form `{other}`; this suite knows `{SCHEMA}`")),
        }
    }
}

impl ProfileStatus {
    fn add(&mut self, reason: String) {
        match self {
            ProfileStatus::Certified | ProfileStatus::NotApplicable => {
                *self = ProfileStatus::NotCertified(vec![reason]);
            }
            ProfileStatus::NotCertified(reasons) => reasons.push(reason),
        }
    }
}

/// What stands against any certificate: the run was not the whole suite, or not a run of this suite.
fn reasons_against<C>(report: &Report, catalog: &Catalog<C>) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some(filter) = &report.filter {
        reasons.push(format!("the run was filtered: {filter}"));
    }
    if report.facts.ablation {
        reasons.push("a protection was left out of this build on purpose".to_owned());
    }
    reasons.extend(mismatches(report, catalog));
    let ran: BTreeSet<_> = report.checks.iter().map(|check| check.id.as_str()).collect();
    let missing = catalog.checks.iter().filter(|check| !ran.contains(check.id)).count();
    if missing > 0 {
        reasons.push(format!("{missing} of {} checks did not run", catalog.checks.len()));
    }
    reasons
}

/// Where the report does not belong to the catalog.
fn mismatches<C>(report: &Report, catalog: &Catalog<C>) -> Vec<String> {
    let mut found = Vec::new();
    if report.suite != SuiteReport::of(catalog) {
        found.push(format!("the report is of suite {} with another catalog", report.suite.version));
    }
    if report.requirements != RequirementReport::of(catalog) {
        found.push("the report has other requirements than the catalog".to_owned());
    }
    let mut seen = BTreeSet::new();
    for check in &report.checks {
        if catalog.check(&check.id).is_none() {
            found.push(format!("{}: is no check of the catalog", check.id));
        }
        if !seen.insert(&check.id) {
            found.push(format!("{}: is reported more than once", check.id));
        }
    }
    found
}

/// Whether what was tested declares `need`; what declares nothing does not.
fn declares(report: &Report, need: Need) -> bool {
    report.capabilities.as_ref().is_some_and(|declared| need.is_declared(declared))
}

/// Whether the backend loads what the checks of `profile` probe with.
fn applies<C>(report: &Report, catalog: &Catalog<C>, profile: &str) -> bool {
    let mut checks = catalog.checks.iter().filter(|check| check.profile() == profile);
    checks.any(|check| check.artifact().is_none_or(|kind| declares(report, Need::Artifact(kind))))
}

/// Reasons, and whether any check passed.
fn reasons_against_profile<C>(report: &Report, catalog: &Catalog<C>, profile: &str) -> (Vec<String>, bool) {
    let mut reasons = Vec::new();
    let counted = |check: &&CheckReport| {
        let known = catalog.check(&check.id);
        known.is_some_and(|known| known.profile() == profile && catalog.counts(known))
    };
    let mut passed = false;
    for check in report.checks.iter().filter(counted) {
        match check.verdict {
            Verdict::Pass | Verdict::Unsupported => {
                reasons.extend(unsound(check, report, catalog));
                passed |= check.verdict == Verdict::Pass;
            }
            verdict => reasons.push(format!("{}: {verdict}: {}", check.id, check.message)),
        }
    }
    (reasons, passed)
}

/// Why a verdict does not follow from what stands beside it in the report.
fn unsound<C>(check: &CheckReport, report: &Report, catalog: &Catalog<C>) -> Option<String> {
    let known = catalog.check(&check.id)?;
    let declared = known.all_needs().all(|need| declares(report, need));
    let why = match check.verdict {
        Verdict::Pass if !declared => "passed without what it needs",
        Verdict::Pass if !check.evidence_suffices() => "passed without evidence",
        Verdict::Unsupported if declared => "is unsupported although the backend declares all it needs",
        Verdict::Unsupported if check.evidence.iter().any(|evidence| !evidence.holds) => {
            "is unsupported although something was not refused"
        }
        _ if check.requires != known.requires || check.control != known.control => "is not as in the catalog",
        _ => return None,
    };
    Some(format!("{}: {why}", check.id))
}

/// Follows a certificate again from its report, with the catalog of this build.
///
/// # Errors
///
/// Everything that is wrong, for people.
pub fn verify(certificate_json: &str, report_json: &str) -> Result<(), Vec<String>> {
    // A certificate that claims a profile of another catalog is refused by the one it is verified with.
    let claims = |profile: &str| {
        Certificate::from_json(certificate_json).is_ok_and(|certificate| certificate.profiles.contains_key(profile))
    };
    if claims("scheduler") {
        verify_with(certificate_json, report_json, &catalog::scheduler::catalog())
    } else if claims("metrics") {
        verify_with(certificate_json, report_json, &catalog::metrics::catalog())
    } else {
        verify_with(certificate_json, report_json, &Catalog::current())
    }
}

fn verify_with<C>(certificate_json: &str, report_json: &str, catalog: &Catalog<C>) -> Result<(), Vec<String>> {
    let certificate = Certificate::from_json(certificate_json).map_err(|error| vec![error])?;
    let report = Report::from_json(report_json).map_err(|error| vec![error])?;
    let mut errors = Vec::new();
    if certificate.suite.version != catalog.version {
        errors.push(format!(
            "the certificate is of suite {}, and this is {}; verify it with that version",
            certificate.suite.version, catalog.version
        ));
    }
    let digest = sha256(report_json);
    if certificate.report_sha256 != digest {
        errors.push(format!("the report has the digest {digest}, the certificate says {}", certificate.report_sha256));
    }
    errors.extend(mismatches(&report, catalog));
    let ran: BTreeSet<_> = report.checks.iter().map(|check| check.id.as_str()).collect();
    if report.filter.is_none() {
        let missing = catalog.checks.iter().filter(|check| !ran.contains(check.id));
        errors.extend(missing.map(|check| format!("{}: did not run, and the report does not say why", check.id)));
    }
    let derived = Certificate::derive(&report, catalog);
    for (profile, status) in &derived.profiles {
        if certificate.profiles.get(profile) != Some(status) {
            let found = match status {
                ProfileStatus::Certified => "certified".to_owned(),
                ProfileStatus::NotApplicable => "not applicable".to_owned(),
                ProfileStatus::NotCertified(reasons) => format!("not certified ({})", reasons.join("; ")),
            };
            errors.push(format!("profile `{profile}`: the report says {found}, the certificate says otherwise"));
        }
    }
    // Whatever else differs: the certificate says nothing that does not follow.
    if errors.is_empty() && certificate != derived {
        errors.push("the certificate says something that does not follow from the report".to_owned());
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{catalog, check, report};

    fn reasons<'a>(certificate: &'a Certificate, profile: &str) -> &'a [String] {
        match &certificate.profiles[profile] {
            ProfileStatus::Certified | ProfileStatus::NotApplicable => &[],
            ProfileStatus::NotCertified(reasons) => reasons,
        }
    }

    /// What the verifier says about the certificate of the good report beside the report after `change`.
    fn rejected(change: impl FnOnce(&mut Report)) -> String {
        let certificate = Certificate::derive(&report(), &catalog());
        let mut changed = report();
        change(&mut changed);
        // The digest is mended, so that what is tested is what comes after it.
        let certificate = Certificate { report_sha256: sha256(changed.to_json()), ..certificate };
        verify_with(&certificate.to_json(), &changed.to_json(), &catalog()).unwrap_err().join("\n")
    }

    #[test]
    fn a_whole_run_certifies_and_verifies() {
        let certificate = Certificate::derive(&report(), &catalog());
        assert_eq!(certificate.certified(), ["core", "quota"]);
        let declared = certificate.capabilities.as_ref().unwrap();
        assert!(declared.declared.contains(&"quota memory_bytes".to_owned()));
        assert!(declared.declined.contains(&"grant child_processes".to_owned()));
        assert!(certificate.notes.contains(&"a debug build was tested".to_owned()) || !cfg!(debug_assertions));
        assert_eq!(verify_with(&certificate.to_json(), &report().to_json(), &catalog()), Ok(()));
        let value: serde_json::Value = serde_json::from_str(&certificate.to_json()).unwrap();
        assert_eq!(value["profiles"]["core"], "certified");
    }

    #[test]
    fn core_carries_the_others_and_should_is_not_counted() {
        let mut changed = report();
        changed.checks[3] = check("quota.hints.text", Verdict::Fail);
        assert_eq!(Certificate::derive(&changed, &catalog()).certified(), ["core", "quota"]);
        changed.checks[0] = check("core.output.bytes", Verdict::Fail);
        let certificate = Certificate::derive(&changed, &catalog());
        assert!(reasons(&certificate, "core")[0].contains("core.output.bytes: fail"));
        assert_eq!(reasons(&certificate, "quota"), ["profile `core` is not certified"]);
    }

    #[test]
    fn every_verdict_but_two_blocks_even_when_expected() {
        for verdict in [Verdict::Blocked, Verdict::Vacuous, Verdict::Broken, Verdict::Fail] {
            let mut changed = report();
            changed.checks[1] = check("quota.memory.grow", verdict);
            changed.expected = vec!["quota.memory.grow".into()];
            let certificate = Certificate::derive(&changed, &catalog());
            assert_eq!(certificate.certified(), ["core"], "{verdict}");
            assert!(reasons(&certificate, "quota")[0].contains(verdict.as_str()));
        }
    }

    #[test]
    fn a_filtered_run_never_certifies_but_says_so_honestly() {
        let mut changed = report();
        changed.filter = Some("profile `quota`".into());
        let certificate = Certificate::derive(&changed, &catalog());
        assert_eq!(certificate.certified(), [] as [&str; 0]);
        changed.checks.remove(0);
        let certificate = Certificate::derive(&changed, &catalog());
        assert_eq!(verify_with(&certificate.to_json(), &changed.to_json(), &catalog()), Ok(()));
    }

    #[test]
    fn a_profile_in_which_nothing_passed_or_was_left_out_is_not_certified() {
        let mut changed = report();
        changed.capabilities.as_mut().unwrap().quotas.clear();
        changed.checks[1] = check("quota.memory.grow", Verdict::Unsupported);
        assert_eq!(reasons(&Certificate::derive(&changed, &catalog()), "quota"), ["no check passed"]);
        changed = report();
        changed.facts.ablation = true;
        assert_eq!(Certificate::derive(&changed, &catalog()).certified(), [] as [&str; 0]);
    }

    #[test]
    fn one_missing_is_rejected() {
        let errors = rejected(|report| drop(report.checks.remove(2)));
        assert!(errors.contains("quota.processes.fork: did not run"), "{errors}");
        assert!(errors.contains("profile `core`"), "{errors}");
    }

    #[test]
    fn one_extra_and_one_twice_are_rejected() {
        let errors = rejected(|report| report.checks.push(check("core.output.more", Verdict::Pass)));
        assert!(errors.contains("core.output.more: is no check of the catalog"), "{errors}");
        let errors = rejected(|report| report.checks.push(check("core.output.bytes", Verdict::Pass)));
        assert!(errors.contains("core.output.bytes: is reported more than once"), "{errors}");
    }

    #[test]
    fn one_failed_is_rejected() {
        let errors = rejected(|report| report.checks[1] = check("quota.memory.grow", Verdict::Fail));
        assert!(errors.contains("quota.memory.grow: fail") && !errors.contains("profile `core`"), "{errors}");
    }

    #[test]
    fn verdicts_without_grounds_are_rejected() {
        let errors = rejected(|report| report.checks[0].evidence.clear());
        assert!(errors.contains("core.output.bytes: passed without evidence"), "{errors}");
        let errors = rejected(|report| report.checks[1].evidence[0].holds = false);
        assert!(errors.contains("quota.memory.grow: passed without evidence"), "{errors}");
        let errors = rejected(|report| report.checks[1].verdict = Verdict::Unsupported);
        assert!(errors.contains("although the backend declares all it needs"), "{errors}");
        let errors = rejected(|report| report.checks[2].verdict = Verdict::Pass);
        assert!(errors.contains("quota.processes.fork: passed without what it needs"), "{errors}");
        let errors = rejected(|report| report.checks[1].control = "none".into());
        assert!(errors.contains("is not as in the catalog"), "{errors}");
        let errors = rejected(|report| report.requirements[0].sentence = "Output MAY be complete.".into());
        assert!(errors.contains("other requirements"), "{errors}");
    }

    #[test]
    fn an_edited_digest_is_rejected() {
        let certificate = Certificate::derive(&report(), &catalog());
        let edited = Certificate { report_sha256: sha256("another"), ..certificate.clone() };
        let errors = verify_with(&edited.to_json(), &report().to_json(), &catalog()).unwrap_err();
        assert!(errors.len() == 1 && errors[0].contains("digest"), "{errors:?}");
        let reformatted = format!("{} ", report().to_json());
        assert!(verify_with(&certificate.to_json(), &reformatted, &catalog()).is_err());
        let edited = Certificate { expectations_sha256: sha256("another"), ..certificate };
        let errors = verify_with(&edited.to_json(), &report().to_json(), &catalog()).unwrap_err();
        assert!(errors[0].contains("does not follow"), "{errors:?}");
    }

    #[test]
    fn the_wrong_version_is_rejected() {
        let certificate = Certificate::derive(&report(), &catalog()).to_json();
        let newer = Catalog { version: "0.2.0".into(), ..catalog() };
        let errors = verify_with(&certificate, &report().to_json(), &newer).unwrap_err();
        assert!(errors[0].contains("is of suite 0.1.0, and this is 0.2.0"), "{errors:?}");
        let mut smaller = catalog();
        smaller.checks.pop();
        assert!(verify_with(&certificate, &report().to_json(), &smaller).is_err());
        let other = certificate.replace("certificate/1", "certificate/2");
        assert!(verify_with(&other, &report().to_json(), &catalog()).unwrap_err()[0].contains("certificate/2"));
    }
}
