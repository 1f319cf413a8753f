//! Compiles the worker, so that it can be carried inside the backend: see `src/sys/worker`.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(palisade_worker)");
    // A build that can leave protections out, to see which checks notice. Never for use: see `tests/ablation.rs`.
    println!("cargo::rerun-if-env-changed=PALISADE_ABLATION");
    if std::env::var_os("PALISADE_ABLATION").is_some_and(|on| on == "1") {
        println!("cargo::rustc-cfg=palisade_ablation");
    }
    println!("cargo::rerun-if-changed=src/sys/worker");
    println!("cargo::rerun-if-changed=src/sys/protocol.rs");
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    if variable("CARGO_CFG_TARGET_OS") != "linux" {
        return;
    }
    let output = PathBuf::from(variable("OUT_DIR")).join("worker");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--crate-name", "palisade_worker", "--crate-type", "bin", "--edition", "2024"]);
    rustc.args(["-C", "opt-level=2", "-C", "panic=abort", "-C", "strip=symbols", "--cap-lints", "allow"]);
    rustc.args(["--cfg", "palisade_worker", "--target", &variable("TARGET")]);
    rustc.arg(format!("--remap-path-prefix={}=palisade-process", variable("CARGO_MANIFEST_DIR")));
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    rustc.arg("-o").arg(&output).arg("src/sys/worker/main.rs");
    let status = rustc.status().unwrap_or_else(|error| panic!("the compiler does not start: {error}"));
    assert!(status.success(), "the worker does not compile");
}
