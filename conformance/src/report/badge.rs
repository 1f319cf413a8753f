//! `badge.json`, in the form shields.io reads from an address.

use serde_json::json;

use crate::Certificate;

/// The badge of a certificate: what is certified, by which suite, when.
pub fn badge(certificate: &Certificate) -> String {
    let certified = certificate.certified();
    let (message, color) = if certified.is_empty() {
        ("not certified".to_owned(), "red")
    } else {
        let minor: Vec<_> = certificate.suite.version.split('.').take(2).collect();
        let month = certificate.date.get(..7).unwrap_or_default();
        (format!("{} - suite {} - {month}", certified.join(", "), minor.join(".")), "brightgreen")
    };
    let badge = json!({ "schemaVersion": 1, "label": "palisade, self-tested", "message": message, "color": color });
    format!("{badge}\n")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{catalog, report};
    use super::*;

    #[test]
    fn the_badge_names_what_is_certified() {
        let mut report = report();
        let text = badge(&Certificate::derive(&report, &catalog()));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["message"], "core, quota - suite 0.1 - 2026-01");
        assert_eq!((&value["schemaVersion"], &value["color"]), (&json!(1), &json!("brightgreen")));
        report.filter = Some("quota".into());
        let text = badge(&Certificate::derive(&report, &catalog()));
        assert!(text.contains("not certified") && text.contains("red"), "{text}");
    }
}
