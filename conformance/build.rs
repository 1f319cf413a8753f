//! Tells the suite which compiler built it, for its reports.

use std::process::Command;

fn main() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output();
    let version = output.ok().and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    println!("cargo:rustc-env=PALISADE_RUSTC={}", version.trim());
    println!("cargo:rerun-if-changed=build.rs");
}
