//! Tells the suite which compiler built it, for its reports, and compiles the native probe.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(&rustc).arg("--version").output();
    let version = output.ok().and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    println!("cargo:rustc-env=PALISADE_RUSTC={}", version.trim());
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=PALISADE_ABLATION");
    if std::env::var_os("PALISADE_ABLATION").is_some_and(|on| on == "1") {
        println!("cargo:rustc-cfg=palisade_ablation");
    }
    println!("cargo:rerun-if-changed=probes/native.rs");

    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let probe = PathBuf::from(variable("OUT_DIR")).join("native-probe");
    if variable("CARGO_CFG_TARGET_OS") != "linux" {
        // No backend of another system loads executables of this kind.
        std::fs::write(probe, []).unwrap_or_else(|error| panic!("no room for the native probe: {error}"));
        return;
    }
    let mut command = Command::new(rustc);
    command.args(["--crate-name", "native_probe", "--crate-type", "bin", "--edition", "2024", "--cap-lints", "allow"]);
    command.args(["-C", "opt-level=1", "-C", "panic=abort", "-C", "strip=symbols", "--target", &variable("TARGET")]);
    command.arg(format!("--remap-path-prefix={}=palisade-conformance", variable("CARGO_MANIFEST_DIR")));
    if let Ok(linker) = std::env::var("RUSTC_LINKER") {
        command.arg("-C").arg(format!("linker={linker}"));
    }
    let status = command.arg("-o").arg(probe).arg("probes/native.rs").status();
    assert!(status.is_ok_and(|status| status.success()), "the native probe does not compile");
}
