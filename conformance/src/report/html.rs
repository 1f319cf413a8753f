//! `report.html`: one file, readable without scripts.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::{Report, RequirementReport, escape};
use crate::{CheckReport, Level, Step, Verdict};

const STYLE: &str = include_str!("report.css");

/// The page for these reports: a matrix of requirements and backends, then for each backend every check with its
/// evidence.
pub fn html(reports: &[&Report]) -> String {
    let names: Vec<_> = reports.iter().map(|report| escape(&report.subject.name)).collect();
    let title = format!("Conformance of {}", names.join(", "));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n\
         <p class=\"dim\">Self-tested, and reproducible with one command. It says what was checked, not that nothing \
         else can go wrong.</p>\n"
    );
    for report in reports {
        let subject = &report.subject;
        let _ = writeln!(
            page,
            "<p><strong>{} {}</strong>: {}. Suite {}, {}.{}</p>",
            escape(&subject.name),
            escape(&subject.version),
            report.summary(),
            escape(&report.suite.version),
            escape(&report.date),
            report.filter.as_ref().map_or_else(String::new, |filter| {
                format!(" <strong>Not the whole suite: only {}.</strong>", escape(filter))
            }),
        );
    }
    matrix(&mut page, reports);
    for report in reports {
        backend(&mut page, report);
    }
    page.push_str("</body>\n</html>\n");
    page
}

fn verdict(verdict: Option<Verdict>) -> String {
    match verdict {
        Some(verdict) => format!("<span class=\"verdict {verdict}\">{} {verdict}</span>", mark(verdict)),
        None => "<span class=\"dim\">not run</span>".to_owned(),
    }
}

/// Colour alone tells nothing to those who do not see it.
fn mark(verdict: Verdict) -> char {
    match verdict {
        Verdict::Pass => '\u{2713}',
        Verdict::Unsupported | Verdict::Blocked => '\u{2013}',
        Verdict::Vacuous | Verdict::Broken => '!',
        Verdict::Fail => '\u{2717}',
    }
}

fn matrix(page: &mut String, reports: &[&Report]) {
    let mut seen = BTreeSet::new();
    let all = reports.iter().flat_map(|report| &report.requirements);
    let requirements: Vec<&RequirementReport> = all.filter(|requirement| seen.insert(&requirement.id)).collect();
    page.push_str("<h2>Requirements</h2>\n<div class=\"wide\">\n<table>\n<tr><th>Requirement</th>");
    for report in reports {
        let _ = write!(page, "<th class=\"mark\">{}</th>", escape(&report.subject.name));
    }
    page.push_str("</tr>\n");
    for requirement in requirements {
        let level = match requirement.level {
            Level::Must => "",
            Level::Should => " <span class=\"dim\">(not certified)</span>",
        };
        let _ = write!(
            page,
            "<tr><td><p>{}{level}</p><p class=\"dim\"><code>{}</code> against: {}</p></td>",
            escape(&requirement.sentence),
            escape(&requirement.id),
            escape(&requirement.threat)
        );
        for report in reports {
            let _ = write!(page, "<td class=\"mark\">{}</td>", verdict(report.verdict_of(&requirement.id)));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table>\n</div>\n");
}

fn backend(page: &mut String, report: &Report) {
    let name = escape(&report.subject.name);
    if !report.errors.is_empty() {
        let _ = writeln!(page, "<h2>{name}: not as expected</h2>\n<ul>");
        for error in &report.errors {
            let _ = writeln!(page, "<li>{}</li>", escape(error));
        }
        page.push_str("</ul>\n");
    }
    let _ = writeln!(page, "<h2>{name}: checks</h2>");
    let profile = |check: &CheckReport| check.id.split('.').next().unwrap_or_default().to_owned();
    for checks in report.checks.chunk_by(|one, next| profile(one) == profile(next)) {
        let refused = checks.len() > 1 && checks.iter().all(|check| check.verdict == Verdict::Unsupported);
        // A profile of which nothing is offered would bury the others.
        if let ([first, ..], true) = (checks, refused) {
            let _ = writeln!(
                page,
                "<details>\n<summary>{}all {} checks of profile <code>{}</code></summary>\n<div class=\"inside\">",
                verdict(Some(Verdict::Unsupported)),
                checks.len(),
                escape(&profile(first))
            );
        }
        checks.iter().for_each(|check| self::check(page, report, check));
        if refused {
            page.push_str("</div>\n</details>\n");
        }
    }
    let _ = writeln!(page, "<h2>{name}: facts</h2>\n<table>");
    let suite = [
        ("version", report.subject.version.clone()),
        ("suite", report.suite.version.clone()),
        ("catalog", report.suite.catalog_sha256.clone()),
        ("reproduce", report.reproduce.clone()),
    ];
    for (name, value) in suite.into_iter().chain(report.facts.list()) {
        let _ = writeln!(page, "<tr><th>{name}</th><td><code>{}</code></td></tr>", escape(&value));
    }
    for caveat in report.capabilities.iter().flat_map(|declared| &declared.caveats) {
        let _ = writeln!(page, "<tr><th>caveat</th><td>{}</td></tr>", escape(caveat));
    }
    page.push_str("</table>\n");
}

fn check(page: &mut String, report: &Report, check: &CheckReport) {
    let expected = report.expected.contains(&check.id);
    // What needs attention is open.
    let open = if check.verdict > Verdict::Blocked && !expected { " open" } else { "" };
    let _ = writeln!(
        page,
        "<details{open}>\n<summary>{}<code>{}</code>{}<span class=\"time\">{} ms</span></summary>\n<div class=\"inside\">",
        verdict(Some(check.verdict)),
        escape(&check.id),
        if expected { "<span class=\"dim\">as expected</span>" } else { "" },
        check.duration_ms
    );
    for id in &check.requires {
        let sentence = report.requirements.iter().find(|requirement| requirement.id == *id);
        let sentence = sentence.map_or(id.as_str(), |requirement| requirement.sentence.as_str());
        let _ = writeln!(page, "<p>{}</p>", escape(sentence));
    }
    if !check.message.is_empty() {
        let _ = writeln!(page, "<p class=\"{}\">{}</p>", check.verdict, escape(&check.message));
    }
    if !check.evidence.is_empty() {
        page.push_str(
            "<div class=\"wide\">\n<table>\n<tr><th>Step</th><th>Looked at</th><th>Seen</th><th></th></tr>\n",
        );
        for evidence in &check.evidence {
            let step = match evidence.step {
                Step::Baseline => "baseline",
                Step::Enforced => "enforced",
                Step::Recovery => "recovery",
                Step::Refusal => "refusal",
                Step::Machine => "machine",
            };
            let holds = if evidence.holds { Verdict::Pass } else { Verdict::Fail };
            let _ = writeln!(
                page,
                "<tr><td>{step}</td><td>{}</td><td>{}</td><td class=\"{holds}\">{}</td></tr>",
                escape(&evidence.subject),
                if evidence.observed.is_empty() { "(nothing)".to_owned() } else { escape(&evidence.observed) },
                if evidence.holds { "as required" } else { "not as required" }
            );
        }
        page.push_str("</table>\n</div>\n");
    }
    let _ = writeln!(
        page,
        "<p class=\"dim\">Control: a backend with the fault <code>{}</code> must fail this check.</p>\n\
         <p class=\"dim\">Reproduce: <code>{} {}</code></p>\n</div>\n</details>",
        escape(&check.control),
        escape(&report.reproduce),
        escape(&check.id)
    );
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_well_formed, check, report};
    use super::*;

    #[test]
    fn the_page_is_one_file_without_scripts() {
        let mut report = report();
        report.checks[1] = check("quota.memory.grow", Verdict::Fail);
        report.errors.push("`quota.memory.grow`: fail (<script>)".into());
        let page = html(&[&report]);
        assert_well_formed(&page);
        for forbidden in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        assert_eq!(page.matches("<details").count(), 4);
        assert_eq!(page.matches("<details open>").count(), 1);
        for part in [
            "2 passed, 1 unsupported, 1 failed",
            "&lt;/details&gt;&lt;script&gt;alert(1)&lt;/script&gt;",
            "Memory MUST be bounded.",
            "memory of &lt;everybody&gt;",
            "cargo test -p palisade-test --test conformance -- quota.memory.grow",
            "prefers-color-scheme: dark",
        ] {
            assert!(page.contains(part), "{part:?} is missing in {page}");
        }
    }

    #[test]
    fn a_profile_of_which_nothing_is_offered_is_one_line() {
        let mut report = report();
        let refused = ["process.a.b", "process.c.d", "process.e.f"].map(|id| check(id, Verdict::Unsupported));
        report.checks.extend(refused);
        let page = html(&[&report]);
        assert_well_formed(&page);
        assert!(page.contains("all 3 checks of profile <code>process</code>"), "{page}");
        // The others stand by themselves, and what is folded is still there.
        assert_eq!((page.matches("<details").count(), page.matches("all ").count()), (4 + 3 + 1, 1));
    }

    #[test]
    fn several_backends_share_one_matrix() {
        let (one, mut other) = (report(), report());
        other.subject.name = "palisade-other".into();
        other.checks.remove(1);
        other.filter = Some("what matches `<x>`".into());
        let page = html(&[&one, &other]);
        assert_well_formed(&page);
        assert_eq!(page.matches("Memory MUST be bounded.").count(), 2, "in the matrix and at its one check");
        assert_eq!(page.matches("not run").count(), 1);
        assert!(page.contains("only what matches `&lt;x&gt;`"));
    }
}
