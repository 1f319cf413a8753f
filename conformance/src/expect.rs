//! What a backend is known to fail: its `CONFORMANCE.toml`, reviewed like code.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::{CheckReport, Verdict};

/// What a backend is known to fail.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectations {
    /// Version of this format: 1.
    pub version: u32,
    /// One entry for each check that is known to fail.
    #[serde(default, rename = "expect")]
    pub entries: Vec<Expectation>,
}

/// A check that is known to fail.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// Id of the check.
    pub id: String,
    /// How it fails.
    pub outcome: ExpectedOutcome,
    /// A part of the failure's message.
    pub reason: String,
    /// Where the failure is discussed.
    pub issue: String,
    /// Last version of the backend that may fail.
    pub until: String,
}

/// How a check is known to fail. There is no way to say "skip" or "flaky".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpectedOutcome {
    /// [`Verdict::Fail`]
    Fail,
    /// [`Verdict::Broken`]
    Broken,
}

/// How a run compares with what was expected of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Judgement {
    /// Ids of checks that failed as expected.
    pub expected: Vec<String>,
    /// What was not as expected. The run is green when this is empty.
    pub errors: Vec<String>,
}

impl Expectations {
    /// Reads a `CONFORMANCE.toml`.
    ///
    /// # Errors
    ///
    /// What is wrong with it, for people.
    pub fn parse(text: &str) -> Result<Expectations, String> {
        let expectations: Expectations =
            toml::from_str(text).map_err(|error| format!("CONFORMANCE.toml: {}", error.to_string().trim_end()))?;
        match expectations.version {
            1 => Ok(expectations),
            other => Err(format!("CONFORMANCE.toml: version {other} is unknown; this suite knows version 1")),
        }
    }

    /// Compares a run of `backend_version` with these expectations. `known` are the ids of the catalog.
    pub fn judge(&self, checks: &[CheckReport], known: &BTreeSet<&str>, backend_version: &str) -> Judgement {
        let mut judgement = Judgement::default();
        let mut seen = BTreeSet::new();
        for entry in &self.entries {
            let id = &entry.id;
            let mut wrong = |what: String| judgement.errors.push(format!("CONFORMANCE.toml: `{id}` {what}"));
            if !known.contains(id.as_str()) {
                wrong("is no check of this suite".to_owned());
            }
            if !seen.insert(id) {
                wrong("has more than one entry".to_owned());
            }
            if entry.reason.trim().is_empty() || entry.issue.trim().is_empty() {
                wrong("needs a reason and an issue".to_owned());
            }
            match (numbers(&entry.until), numbers(backend_version)) {
                (Some(until), Some(version)) if version > until => {
                    wrong(format!("was expected to fail until {}; this is {backend_version}", entry.until));
                }
                (None, _) => wrong(format!("has `{}` as `until`, which is no version", entry.until)),
                (_, None) => wrong(format!("cannot be compared with the backend's version `{backend_version}`")),
                _ => {}
            }
        }
        for check in checks {
            let entry = self.entries.iter().find(|entry| entry.id == check.id);
            let what = format!("{} ({})", check.verdict, check.message);
            match (entry, check.verdict) {
                (Some(_), Verdict::Pass | Verdict::Unsupported) => {
                    judgement.errors.push(format!("`{}`: {} unexpectedly; remove its entry", check.id, check.verdict));
                }
                (Some(entry), Verdict::Fail | Verdict::Broken) => {
                    let outcome = match entry.outcome {
                        ExpectedOutcome::Fail => Verdict::Fail,
                        ExpectedOutcome::Broken => Verdict::Broken,
                    };
                    if outcome == check.verdict && check.message.contains(&entry.reason) {
                        judgement.expected.push(check.id.clone());
                    } else {
                        let wanted = format!("{outcome} ({})", entry.reason);
                        judgement.errors.push(format!("`{}`: {what}; expected: {wanted}", check.id));
                    }
                }
                (None, Verdict::Fail | Verdict::Broken) | (_, Verdict::Vacuous) => {
                    judgement.errors.push(format!("`{}`: {what}", check.id));
                }
                (_, Verdict::Blocked) | (None, Verdict::Pass | Verdict::Unsupported) => {}
            }
        }
        judgement
    }
}

/// The numbers of a version such as `1.2.3`; what follows a `-` or `+` does not count.
fn numbers(version: &str) -> Option<Vec<u64>> {
    let core = version.split(['-', '+']).next()?;
    let mut numbers: Vec<u64> = core.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
    numbers.resize(numbers.len().max(3), 0);
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::check;

    const ENTRY: &str = "
        [[expect]]
        id = 'a.b.c'
        outcome = 'fail'
        reason = 'too late'
        issue = 'https://example.org/1'
        until = '0.4.0'
    ";

    fn judge(text: &str, verdict: Verdict, version: &str) -> Judgement {
        let mut report = check("a.b.c", verdict);
        report.message = "came too late by a second".into();
        Expectations::parse(&format!("version = 1\n{text}")).unwrap().judge(&[report], &["a.b.c"].into(), version)
    }

    #[test]
    fn what_is_expected_to_fail_keeps_the_run_green() {
        let judgement = judge(ENTRY, Verdict::Fail, "0.4.0");
        assert_eq!((judgement.expected, judgement.errors), (vec!["a.b.c".to_owned()], vec![]));
        assert_eq!(judge("", Verdict::Pass, "0.4.0"), Judgement::default());
        assert_eq!(judge("", Verdict::Unsupported, "0.4.0"), Judgement::default());
    }

    #[test]
    fn everything_else_is_an_error() {
        let error = |judgement: Judgement, part: &str| {
            assert_eq!(judgement.expected, [] as [String; 0]);
            assert!(judgement.errors.len() == 1 && judgement.errors[0].contains(part), "{judgement:?}");
        };
        error(judge("", Verdict::Fail, "0.4.0"), "fail (came too late");
        error(judge("", Verdict::Vacuous, "0.4.0"), "vacuous");
        error(judge(ENTRY, Verdict::Vacuous, "0.4.0"), "vacuous");
        error(judge(ENTRY, Verdict::Pass, "0.4.0"), "unexpectedly");
        error(judge(ENTRY, Verdict::Unsupported, "0.4.0"), "unexpectedly");
        error(judge(ENTRY, Verdict::Broken, "0.4.0"), "expected: fail");
        error(judge(&ENTRY.replace("too late", "too early"), Verdict::Fail, "0.4.0"), "expected: fail (too early)");
    }

    #[test]
    fn entries_themselves_can_be_wrong() {
        let errors = |text: &str, version| judge(text, Verdict::Fail, version).errors.join("\n");
        assert!(errors(ENTRY, "0.4.1").contains("until 0.4.0; this is 0.4.1"));
        assert!(errors(ENTRY, "0.10.0").contains("until 0.4.0"));
        assert!(errors(ENTRY, "soon").contains("cannot be compared"));
        assert!(errors(&ENTRY.replace("0.4.0", "later"), "0.4.0").contains("is no version"));
        assert!(errors(&format!("{ENTRY}{ENTRY}"), "0.4.0").contains("more than one entry"));
        assert!(errors(&ENTRY.replace("a.b.c", "a.b.d"), "0.4.0").contains("is no check"));
        assert!(errors(&ENTRY.replace("too late", ""), "0.4.0").contains("needs a reason"));
    }

    #[test]
    fn there_is_no_skip() {
        let parse = |text: &str| Expectations::parse(text).unwrap_err();
        assert!(parse(&format!("version = 1{}", ENTRY.replace("'fail'", "'skip'"))).contains("skip"));
        assert!(parse("version = 2").contains("version 2"));
        assert!(parse("version = 1\nretries = 3").contains("retries"));
    }
}
