//! `junit.xml`, for continuous integration.

use std::fmt::Write;

use super::{Report, escape};
use crate::Verdict;

/// The report as JUnit XML: a failed check is a failure, a broken or vacuous one an error, what the backend does not
/// declare or the machine does not allow is skipped.
pub fn junit(report: &Report) -> String {
    let counts = report.counts();
    let count = |verdict| counts.get(&verdict).copied().unwrap_or(0);
    let seconds = |milliseconds: u64| format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000);
    let totals = format!(
        r#"tests="{}" failures="{}" errors="{}" skipped="{}" time="{}""#,
        report.checks.len(),
        count(Verdict::Fail),
        count(Verdict::Broken) + count(Verdict::Vacuous),
        count(Verdict::Unsupported) + count(Verdict::Blocked),
        seconds(report.checks.iter().map(|check| check.duration_ms).sum()),
    );
    let name = escape(&report.subject.name);
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(text, r#"<testsuites name="palisade-conformance" {totals}>"#);
    let timestamp = escape(report.date.trim_end_matches('Z'));
    let _ = writeln!(text, r#"  <testsuite name="{name}" {totals} timestamp="{timestamp}">"#);
    let _ = writeln!(text, "    <properties>");
    let versions = [
        ("subject.version", report.subject.version.clone()),
        ("suite.version", report.suite.version.clone()),
        ("suite.catalog_sha256", report.suite.catalog_sha256.clone()),
    ];
    for (name, value) in versions.into_iter().chain(report.facts.list()) {
        let _ = writeln!(text, r#"      <property name="{name}" value="{}"/>"#, attribute(&value));
    }
    let _ = writeln!(text, "    </properties>");
    for check in &report.checks {
        let (class, slug) = check.id.rsplit_once('.').unwrap_or(("", &check.id));
        let (class, slug, time) = (attribute(class), attribute(slug), seconds(check.duration_ms));
        let _ = write!(text, r#"    <testcase classname="{class}" name="{slug}" time="{time}""#);
        let message = attribute(&check.message);
        let element = match check.verdict {
            Verdict::Pass => {
                let _ = writeln!(text, "/>");
                continue;
            }
            Verdict::Unsupported | Verdict::Blocked => "skipped",
            Verdict::Vacuous | Verdict::Broken => "error",
            Verdict::Fail => "failure",
        };
        let _ = writeln!(text, ">");
        // The element for skipped tests has no type in JUnit's schema.
        let kind = if element == "skipped" { String::new() } else { format!(r#" type="{}""#, check.verdict) };
        let _ = write!(text, r#"      <{element} message="{message}"{kind}>"#);
        for evidence in check.evidence.iter().filter(|evidence| !evidence.holds) {
            let _ = write!(text, "\n{}: {}", escape(&evidence.subject), escape(&evidence.observed));
        }
        let _ = writeln!(text, "</{element}>\n    </testcase>");
    }
    text.push_str("  </testsuite>\n</testsuites>\n");
    text
}

/// As [`escape`]; a line's end in an attribute would be read as a blank.
fn attribute(text: &str) -> String {
    escape(text).replace('\n', "&#10;").replace('\t', "&#9;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_well_formed, check, report};
    use super::*;

    #[test]
    fn every_verdict_has_its_element() {
        let mut report = report();
        report.checks.push(check("a.b.fails", Verdict::Fail));
        report.checks.push(check("a.b.breaks", Verdict::Broken));
        report.checks.push(check("a.b.sees-nothing", Verdict::Vacuous));
        report.checks.push(check("a.b.blocked", Verdict::Blocked));
        let text = junit(&report);
        assert_well_formed(&text);
        assert!(text.contains(r#"tests="8" failures="1" errors="2" skipped="2" time="12.000""#), "{text}");
        for element in [
            r#"<testcase classname="core.output" name="bytes" time="1.500"/>"#,
            r#"<failure message="&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" type="fail">"#,
            r#"<error message="&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" type="vacuous">"#,
            r#"<skipped message="&lt;script&gt;"#,
            r#"<property name="engine" value="engine &lt;1&gt;"/>"#,
            r#"timestamp="2026-01-02T03:04:05""#,
        ] {
            assert!(text.contains(element), "{element} is missing in {text}");
        }
        assert_eq!(text.matches("<testcase").count(), 8);
    }
}
