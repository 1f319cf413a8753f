//! What SECURITY.md promises is named there by requirements that exist.

use std::collections::BTreeSet;

use palisade_conformance::catalog;

#[test]
fn every_requirement_that_is_promised_exists() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../SECURITY.md")).unwrap();
    let of_components =
        catalog::scheduler::catalog().requirements.into_iter().chain(catalog::metrics::catalog().requirements);
    let known: BTreeSet<_> = catalog::requirements().chain(of_components).map(|requirement| requirement.id).collect();
    let named = |word: &&str| {
        word.split('.').count() == 3 && word.bytes().all(|b| b.is_ascii_lowercase() || b"-.".contains(&b))
    };
    let promised: Vec<_> = text.split('`').skip(1).step_by(2).filter(named).collect();
    assert!(promised.len() > 30, "{promised:?}");
    for id in promised {
        assert!(known.contains(id), "SECURITY.md promises `{id}`, which is no requirement");
    }
}
