//! Certificates and reports that somebody else made.

use palisade_conformance::{About, Catalog, Certificate, Report, verify};

/// A certificate and a report, one behind the other with a zero byte between them, are verified. What follows from nothing
/// is not accepted: only the pair that this build made is.
pub fn certificate(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (certificate, report) = text.split_once('\0').unwrap_or((text, ""));
    if verify(certificate, report).is_ok() {
        let certificate = Certificate::from_json(certificate).expect("what is accepted can be read");
        let report = Report::from_json(report).expect("what is accepted can be read");
        assert_eq!(Certificate::derive(&report, &Catalog::current()), certificate);
    }
}

/// An empty run, which certifies nothing, and its certificate.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let about = About {
        name: "subject".into(),
        version: "0.1.0".into(),
        capabilities: None,
        expectations: "version = 1".into(),
        filter: Some("nothing".into()),
        reproduce: "nothing".into(),
    };
    let catalog = Catalog::current();
    let report = Report::new(&catalog, about, Vec::new());
    let certificate = Certificate::derive(&report, &catalog);
    vec![format!("{}\0{}", certificate.to_json(), report.to_json()).into_bytes()]
}
