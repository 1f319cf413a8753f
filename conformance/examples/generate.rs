//! Writes `catalog.lock` and `REQUIREMENTS.md` from the catalog.

use std::path::Path;

use palisade_conformance::Catalog;

fn main() -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let catalog = Catalog::current();
    std::fs::write(folder.join("catalog.lock"), catalog.lock())?;
    std::fs::write(folder.join("REQUIREMENTS.md"), catalog.requirements_document())?;
    println!("{} requirements, {} checks", catalog.requirements.len(), catalog.checks.len());
    Ok(())
}
