//! The catalog as data, and what is generated from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::digest::sha256;
use crate::{Check, Context, Level, Requirement, catalog};

/// Requirements and the checks that exercise them.
#[derive(Debug, Clone)]
pub struct Catalog<C: 'static = Context> {
    /// Version of the suite.
    pub version: String,
    /// Every requirement.
    pub requirements: Vec<&'static Requirement>,
    /// Every check, in the order they run.
    pub checks: Vec<&'static Check<C>>,
}

impl Catalog {
    /// The catalog for backends of this build of the suite.
    pub fn current() -> Catalog {
        Catalog {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            requirements: catalog::requirements().collect(),
            checks: catalog::checks().collect(),
        }
    }
}

impl<C> Catalog<C> {
    /// The catalog of one profile.
    pub(crate) fn of(requirements: &'static [Requirement], checks: &'static [Check<C>]) -> Catalog<C> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Catalog { version, requirements: requirements.iter().collect(), checks: checks.iter().collect() }
    }

    /// The check of this id.
    pub fn check(&self, id: &str) -> Option<&'static Check<C>> {
        self.checks.iter().find(|check| check.id == id).copied()
    }

    /// Names of the profiles.
    pub fn profiles(&self) -> BTreeSet<&'static str> {
        self.checks.iter().map(|check| check.profile()).collect()
    }

    /// Whether a certificate rests on `check`: one of its requirements is a MUST.
    pub fn counts(&self, check: &Check<C>) -> bool {
        let must =
            |requirement: &&Requirement| requirement.level == Level::Must && check.requires.contains(&requirement.id);
        self.requirements.iter().any(must)
    }

    /// Digest of [`Catalog::lock`].
    pub fn sha256(&self) -> String {
        sha256(self.lock())
    }

    /// The text of `catalog.lock`: what may not change without a new version of the suite.
    pub fn lock(&self) -> String {
        let mut lines: Vec<_> = self
            .requirements
            .iter()
            .map(|requirement| {
                let level = match requirement.level {
                    Level::Must => "MUST",
                    Level::Should => "SHOULD",
                };
                format!(
                    "requirement {} {} {level} since {}",
                    requirement.id,
                    sha256(requirement.sentence),
                    requirement.since
                )
            })
            .chain(self.checks.iter().map(|check| format!("check {} requires {}", check.id, check.requires.join(","))))
            .collect();
        lines.sort();
        let head = "# Generated from the catalog: cargo run -p palisade-conformance --example generate\n";
        format!("{head}{}\n", lines.join("\n"))
    }

    /// The text of `REQUIREMENTS.md`.
    pub fn requirements_document(&self) -> String {
        let mut text = String::from(
            "# Requirements\n\n\
             <!-- Generated from the catalog: cargo run -p palisade-conformance --example generate -->\n\n\
             Each sentence has a permanent id. The checks below it exercise it; the control of a check is the fault of the \
             reference backend that must make it fail.\n",
        );
        let mut profiles: BTreeMap<&str, Vec<&Requirement>> = BTreeMap::new();
        for requirement in &self.requirements {
            profiles.entry(requirement.id.split('.').next().unwrap_or_default()).or_default().push(requirement);
        }
        for (profile, requirements) in profiles {
            let _ = write!(text, "\n## {profile}\n");
            for requirement in requirements {
                let _ = write!(text, "\n### `{}`\n\n{}\n\n", requirement.id, requirement.sentence);
                let _ = write!(text, "Threat: {}. Since {}.\n\n", requirement.threat, requirement.since);
                for check in self.checks.iter().filter(|check| check.requires.contains(&requirement.id)) {
                    let _ = writeln!(text, "* `{}` (control: `{}`)", check.id, check.control);
                }
            }
        }
        text
    }
}
