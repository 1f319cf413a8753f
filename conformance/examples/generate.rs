//! Writes what is generated from the catalogs: a lock and a document for backends, and for the other components.

use std::path::Path;

use palisade_conformance::{Catalog, component_document, component_lock};

fn main() -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let catalog = Catalog::current();
    std::fs::write(folder.join("catalog.lock"), catalog.lock())?;
    std::fs::write(folder.join("REQUIREMENTS.md"), catalog.requirements_document())?;
    std::fs::write(folder.join("components.lock"), component_lock())?;
    std::fs::write(folder.join("COMPONENTS.md"), component_document())?;
    println!("{} requirements, {} checks", catalog.requirements.len(), catalog.checks.len());
    Ok(())
}
