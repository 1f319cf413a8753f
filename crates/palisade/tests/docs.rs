//! What the documents at the root name exists.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// All Rust sources below the folders of crates, and their paths.
fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = ["crates", "backends", "conformance", "benches"].map(|folder| root().join(folder)).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder can be listed") {
            let path = entry.expect("the entry can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("sources are text");
                found.push((path, text));
            }
        }
    }
    found
}

/// Texts between single backticks, outside code blocks.
fn quoted(markdown: &str) -> Vec<String> {
    let prose: String = markdown.split("```").step_by(2).collect();
    prose.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_name_in_the_architecture_exists() {
    let sources = sources();
    let mut checked = 0;
    for name in quoted(&read("ARCHITECTURE.md")) {
        let exists = if name.contains('/') || root().join(&name).is_dir() {
            root().join(&name).exists()
        } else if name.ends_with(".rs") {
            sources.iter().any(|(path, _)| path.file_name().is_some_and(|file| *file == *name))
        } else if let Some(identifier) =
            name.rsplit("::").next().filter(|part| part.chars().all(|c| c.is_alphanumeric() || c == '_'))
        {
            // A definition, not a mention: the word after `struct`, `fn` and the like.
            let definition = ["struct", "enum", "trait", "fn", "const", "type", "mod", "macro_rules!"];
            definition.iter().any(|keyword| {
                sources.iter().any(|(_, text)| {
                    text.match_indices(&format!("{keyword} {identifier}")).any(|(at, found)| {
                        !text[at + found.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
                    })
                })
            }) || sources.iter().any(|(_, text)| {
                text.contains(&format!("    {identifier} {{")) || text.contains(&format!("    {identifier}("))
            })
        } else {
            continue;
        };
        assert!(exists, "ARCHITECTURE.md names `{name}`, which does not exist");
        checked += 1;
    }
    assert!(checked > 20, "only {checked} names were found: is the check still reading the document?");
}

#[test]
fn links_between_the_documents_lead_somewhere() {
    let mut checked = 0;
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"] {
        for link in read(document).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !link.contains("://") {
                assert!(root().join(link).exists(), "{document} links to {link}, which does not exist");
                checked += 1;
            }
        }
    }
    assert!(checked > 5, "only {checked} links were found");
}
