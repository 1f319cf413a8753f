//! Where address space is short (containers often bound it), instances are not pooled, and every limit still holds.

use std::process::{Command, Output, Stdio};

/// Runs the command with 3 GB of address space: less than one reserved memory.
fn run(arguments: &str) -> Output {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let output = Command::new("sh")
        .args(["-c", &format!("ulimit -v 3000000 && exec \"$PALISADE\" {arguments}")])
        .env("PALISADE", env!("CARGO_BIN_EXE_palisade"))
        .env("HOME", home.path())
        .env_remove("XDG_CACHE_HOME")
        .env_remove("XDG_DATA_HOME")
        .stdin(Stdio::null())
        .output()
        .expect("there is a shell");
    drop(home);
    output
}

#[test]
fn every_limit_holds_without_a_pool() {
    let output = run("doctor --json");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    let findings = report["backends"]["wasmtime"].as_array().expect("the backend was probed");
    let status = |subject: &str| {
        let finding = findings.iter().find(|finding| finding["subject"] == subject);
        finding.unwrap_or_else(|| panic!("{subject} was not tried"))["status"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(status("pooled instances"), "degraded");
    for subject in ["deadline stops a loop", "fuel stops a loop", "memory is bounded"] {
        assert_eq!(status(subject), "ok", "{subject}");
    }
    // The other backend needs a reservation for each memory, and says that it cannot have it.
    let wasmer = report["backends"]["wasmer"].as_array().expect("the backend was probed");
    assert_eq!((wasmer.len(), &wasmer[0]["status"]), (1, &serde_json::json!("missing")), "{wasmer:?}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_plugin_with_memory_runs_without_a_pool() {
    let plugin = concat!(env!("CARGO_MANIFEST_DIR"), "/../../plugins/reactor/upper.wat");
    let output = run(&format!("run '{plugin}' --entry upper -i ahoy --quiet"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "AHOY", "{}", String::from_utf8_lossy(&output.stderr));
}
