//! Everything the suite knows: requirements, and the checks that exercise them.

mod core;
mod isolation;
pub mod metrics;
mod process;
mod quota;
pub mod scheduler;

use crate::{Check, Requirement};

/// Every check, profile by profile.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    [core::CHECKS, isolation::CHECKS, quota::CHECKS, process::CHECKS].into_iter().flatten()
}

/// Every requirement, profile by profile.
pub fn requirements() -> impl Iterator<Item = &'static Requirement> {
    [core::REQUIREMENTS, isolation::REQUIREMENTS, quota::REQUIREMENTS, process::REQUIREMENTS].into_iter().flatten()
}

/// A requirement that is certified and was there from the suite's first version on.
const fn must(id: &'static str, sentence: &'static str, threat: &'static str) -> Requirement {
    Requirement { id, level: crate::Level::Must, sentence, threat, since: "0.1.0" }
}

/// Numbers as probes read them.
fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// A number of a probe's output; `u32::MAX` when it is not there.
fn number_at(output: &[u8], index: usize) -> u32 {
    let bytes = output.get(4 * index..4 * index + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(u32::MAX, u32::from_le_bytes)
}

/// Whether `nonce` is somewhere in `bytes`.
fn contains(bytes: &[u8], nonce: &str) -> bool {
    bytes.windows(nonce.len()).any(|window| window == nonce.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn assert_well_formed(id: &str) {
        let parts: Vec<_> = id.split('.').collect();
        assert_eq!(parts.len(), 3, "{id} is not profile.area.slug");
        let fits = |part: &str| {
            !part.is_empty()
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        assert!(parts.iter().all(|part| fits(part)), "{id}");
    }

    #[test]
    fn ids_are_unique_and_well_formed() {
        let mut seen = BTreeSet::new();
        for check in checks() {
            assert_well_formed(check.id);
            assert!(seen.insert(check.id), "check {} is there twice", check.id);
        }
        let mut seen = BTreeSet::new();
        for requirement in requirements() {
            assert_well_formed(requirement.id);
            assert!(seen.insert(requirement.id), "requirement {} is there twice", requirement.id);
        }
    }

    #[test]
    fn checks_and_requirements_cover_each_other() {
        let known: BTreeSet<_> = requirements().map(|requirement| requirement.id).collect();
        let cited: BTreeSet<_> = checks().flat_map(|check| check.requires).copied().collect();
        assert_eq!(known, cited);
        for check in checks() {
            assert!(!check.requires.is_empty(), "{} cites nothing", check.id);
        }
    }

    #[test]
    fn every_sentence_says_how_strict_it_is() {
        for requirement in requirements() {
            let word = match requirement.level {
                crate::Level::Must => "MUST",
                crate::Level::Should => "SHOULD",
            };
            assert!(requirement.sentence.contains(word), "{}", requirement.id);
            assert!(!requirement.threat.is_empty(), "{}", requirement.id);
        }
    }

    #[test]
    fn controls_are_unique() {
        let mut seen = BTreeSet::new();
        for check in checks() {
            assert!(seen.insert(check.control), "control {} proves two checks", check.control);
        }
    }

    #[test]
    fn the_security_tests_of_the_original_system_are_there_by_name() {
        let names = [
            "filesystem-isolation",
            "network-isolation",
            "agent-to-agent-isolation",
            "timing-attack-resistance",
            "cpu-quota",
            "memory-quota",
            "resource-cleanup-on-termination",
            "syscall-restriction",
            "fork-bomb-protection",
        ];
        for name in names {
            assert!(requirements().any(|requirement| requirement.id.ends_with(&format!(".{name}"))), "{name}");
        }
    }
}
