//! Requirements, and the checks that exercise them.

use std::fmt;

use palisade_core::{Abi, ArtifactKind, Capabilities, Enforcement, GrantKind, Resource};
use serde::{Deserialize, Serialize};

use crate::Context;

/// One sentence a backend is certified against.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Requirement {
    /// Permanent id: `profile.area.slug`.
    pub id: &'static str,
    /// How strict it is.
    pub level: Level,
    /// The sentence, with MUST or SHOULD in it.
    pub sentence: &'static str,
    /// The threat it answers.
    pub threat: &'static str,
    /// Version of the suite that introduced it.
    pub since: &'static str,
}

/// How strict a requirement is (RFC 2119).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// Certified.
    Must,
    /// Shown, not certified.
    Should,
}

/// Code that exercises one or more requirements, with a context of its kind.
#[derive(Debug)]
pub struct Check<C = Context> {
    /// Permanent id: `profile.area.slug`.
    pub id: &'static str,
    /// Ids of the requirements it exercises.
    pub requires: &'static [&'static str],
    /// What the backend must declare for the check to make sense. What is missing is checked to be refused instead.
    pub needs: &'static [Need],
    /// The fault of the reference backend that must make this check fail.
    pub control: &'static str,
    /// The body: a baseline, the enforced case, and recovery.
    pub run: fn(&mut C) -> Result<(), Failure>,
}

impl<C> Check<C> {
    /// The profile: the first part of the id.
    pub fn profile(&self) -> &'static str {
        self.id.split('.').next().unwrap_or(self.id)
    }

    /// The kind of artifact its probes are; none when it is a component of the host that is looked at.
    pub fn artifact(&self) -> Option<ArtifactKind> {
        match self.profile() {
            "core" | "isolation" | "quota" => Some(ArtifactKind::Wasm),
            "process" => Some(ArtifactKind::Executable),
            _ => None,
        }
    }

    /// Everything a backend must declare: what the check names, and that its probes can be loaded.
    pub fn all_needs(&self) -> impl Iterator<Item = Need> {
        self.artifact().map(Need::Artifact).into_iter().chain(self.needs.iter().copied())
    }
}

/// Something a backend declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A quota it enforces.
    Quota(Resource),
    /// A grant it can give.
    Grant(GrantKind),
    /// A guest interface.
    Abi(Abi),
    /// A kind of artifact it loads.
    Artifact(ArtifactKind),
}

impl Need {
    /// Whether `capabilities` declare it.
    pub fn is_declared(self, capabilities: &Capabilities) -> bool {
        match self {
            Need::Quota(resource) => capabilities.enforcement(resource) == Enforcement::Enforced,
            Need::Grant(kind) => capabilities.grants.contains(&kind),
            Need::Abi(abi) => capabilities.abis.contains(&abi),
            Need::Artifact(kind) => capabilities.artifacts.contains(&kind),
        }
    }
}

/// The part of a check something happened in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The attack works when the policy allows it.
    Baseline,
    /// The attack is stopped when the policy does not allow it.
    Enforced,
    /// Host and backend still work, and nothing is left behind.
    Recovery,
    /// What the backend does not declare is refused.
    Refusal,
    /// A fact of this machine, found without the backend, stands in the way.
    Machine,
}

/// One thing a check saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// In which step.
    pub step: Step,
    /// What was looked at.
    pub subject: String,
    /// What was seen.
    pub observed: String,
    /// Whether it was as required.
    pub holds: bool,
}

/// Why a check ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// In which step.
    pub step: Step,
    /// What was wrong, for people.
    pub message: String,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Need::Quota(resource) => write!(f, "quota {resource}"),
            Need::Grant(kind) => write!(f, "grant {kind}"),
            Need::Abi(abi) => write!(f, "guest interface {abi}"),
            Need::Artifact(kind) => write!(f, "{kind} artifacts"),
        }
    }
}
