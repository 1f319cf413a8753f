//! What is generated from the catalog is up to date.

use palisade_conformance::{Catalog, component_document, component_lock};

#[track_caller]
fn assert_fresh(file: &str, expected: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let stale = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    assert!(
        found == expected,
        "{file} is stale; run `cargo run -p palisade-conformance --example generate`; first difference: {stale:?}"
    );
}

#[test]
fn the_lock_is_that_of_the_catalog() {
    assert_fresh("catalog.lock", &Catalog::current().lock());
}

#[test]
fn the_document_is_that_of_the_catalog() {
    assert_fresh("REQUIREMENTS.md", &Catalog::current().requirements_document());
}

#[test]
fn the_lock_of_the_components_is_that_of_their_catalogs() {
    assert_fresh("components.lock", &component_lock());
}

#[test]
fn the_document_of_the_components_is_that_of_their_catalogs() {
    assert_fresh("COMPONENTS.md", &component_document());
}
