//! Each crate can be built from its own package: nothing in it comes from outside.

use std::path::{Path, PathBuf};

/// Files of Rust below a directory.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// What a file includes, by the path in it.
fn included(source: &str) -> impl Iterator<Item = &str> {
    let markers = ["include_str!(\"", "include_bytes!(\"", "include!(\"", "#[path = \""];
    markers.into_iter().flat_map(move |marker| source.split(marker).skip(1).filter_map(|rest| rest.split('"').next()))
}

/// Whether a path that is given in `file` leads out of `package`.
fn leads_out(package: &Path, file: &Path, path: &str) -> bool {
    let mut depth = file
        .parent()
        .and_then(|parent| parent.strip_prefix(package).ok())
        .map_or(0, |below| below.components().count());
    path.split('/').any(|part| match (part, depth) {
        ("..", 0) => true,
        ("..", _) => {
            depth -= 1;
            false
        }
        _ => {
            depth += 1;
            false
        }
    })
}

#[test]
fn no_crate_includes_a_file_from_outside_its_package() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository");
    let mut looked_at = 0;
    let packages =
        ["crates", "backends"].into_iter().flat_map(|folder| std::fs::read_dir(root.join(folder)).expect("a folder"));
    for package in packages.flatten().map(|entry| entry.path()).chain([root.join("conformance")]) {
        let mut files = Vec::new();
        sources(&package.join("src"), &mut files);
        for file in files {
            let source = std::fs::read_to_string(&file).expect("a source");
            for path in included(&source) {
                looked_at += 1;
                assert!(!leads_out(&package, &file, path), "{} includes {path}", file.display());
            }
        }
        assert!(package.join("README.md").exists(), "{} has no README.md", package.display());
    }
    assert!(looked_at > 5, "there are such files: {looked_at}");
    let package = Path::new("/p");
    assert!(
        leads_out(package, Path::new("/p/src/a.rs"), "../../x")
            && !leads_out(package, Path::new("/p/src/a.rs"), "../x")
    );
}
