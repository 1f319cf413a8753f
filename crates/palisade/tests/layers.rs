//! The arrows between the crates of this workspace are the ones ARCHITECTURE.md shows, and no others.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo prints JSON")
}

/// Our crates, with those of ours that each needs outside its tests.
fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("there are packages");
    let name = |value: &Value| value["name"].as_str().expect("it has a name").to_owned();
    let ours: BTreeSet<_> = packages.iter().map(name).collect();
    let needed = |package: &Value| {
        let dependencies = package["dependencies"].as_array().expect("it has a list of dependencies");
        let outside_tests = dependencies.iter().filter(|dependency| dependency["kind"] != "dev");
        outside_tests.map(name).filter(|name| ours.contains(name)).collect()
    };
    packages.iter().map(|package| (name(package), needed(package))).collect()
}

#[test]
fn only_the_allowed_arrows_exist() {
    let allowed: BTreeMap<&str, &[&str]> = [
        ("palisade-core", &[][..]),
        ("palisade-filesystems", &[]),
        ("palisade-wasi", &["palisade-core", "palisade-filesystems"]),
        ("palisade-wasm", &["palisade-core"]),
        ("palisade-wasmtime", &["palisade-core", "palisade-wasi", "palisade-wasm"]),
        ("palisade-wasmer", &["palisade-core", "palisade-wasi", "palisade-wasm"]),
        ("palisade-process", &["palisade-core", "palisade-filesystems"]),
        ("palisade", &["palisade-core", "palisade-process", "palisade-wasmtime", "palisade-wasmer"]),
        ("palisade-fabric", &["palisade-core"]),
        ("palisade-rpc", &["palisade-core", "palisade-fabric"]),
        ("palisade-fake", &["palisade-core"]),
        // The suite knows no real backend; its own tests use the fake one.
        ("palisade-conformance", &["palisade-core"]),
        ("palisade-cli", &["palisade", "palisade-conformance", "palisade-fabric", "palisade-rpc"]),
        ("palisade-benches", &["palisade", "palisade-fabric"]),
        (
            "palisade-fuzz",
            &["palisade", "palisade-conformance", "palisade-fabric", "palisade-fake", "palisade-rpc", "palisade-wasi"],
        ),
    ]
    .into();
    let arrows = arrows();
    let known: BTreeSet<_> = allowed.keys().copied().collect();
    let found: BTreeSet<_> = arrows.keys().map(String::as_str).collect();
    assert_eq!(found, known, "a new crate needs its line in this test");
    for (name, needs) in &arrows {
        let allowed: BTreeSet<_> = allowed[name.as_str()].iter().copied().collect();
        let forbidden: Vec<_> = needs.iter().filter(|need| !allowed.contains(need.as_str())).collect();
        assert!(forbidden.is_empty(), "{name} must not depend on {forbidden:?}");
    }
}

#[test]
fn folders_are_named_like_their_crates() {
    let metadata = metadata();
    for package in metadata["packages"].as_array().expect("there are packages") {
        let name = package["name"].as_str().expect("it has a name");
        let folder = package["manifest_path"].as_str().expect("it has a manifest").trim_end_matches("/Cargo.toml");
        let expected = match name {
            "palisade-benches" => "benches",
            "palisade-conformance" => "conformance",
            "palisade-fuzz" => "fuzz",
            other => other,
        };
        assert!(folder.ends_with(&format!("/{expected}")), "{name} lies in {folder}");
    }
}
