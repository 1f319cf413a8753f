//! The command with this backend in it, as somebody uses it.

use std::path::PathBuf;
use std::process::{Command, Output};

fn palisade(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_palisade-wasmi"));
    command.args(arguments).env("NO_COLOR", "1").output().expect("the command runs")
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

/// A file of this test's own.
fn file(name: &str, contents: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, contents).expect("a file can be written");
    path
}

#[test]
fn the_backend_is_linked_by_one_line_and_chosen_by_what_it_loads() {
    let output = palisade(&["backends"]);
    assert!(text(&output).starts_with("wasmi: "), "{}", text(&output));
    let spin = file("spin.wat", r#"(module (func (export "_start") (loop (br 0))))"#);
    let spin = spin.to_str().expect("a path of text");
    let output = palisade(&["run", spin, "--wall-time", "50ms"]);
    assert_eq!(output.status.code(), Some(124), "{}", text(&output));
    assert!(text(&output).contains("exceeded wall_time"), "{}", text(&output));
    let output = palisade(&["inspect", spin]);
    assert!(output.status.success() && text(&output).contains("_start"), "{}", text(&output));
}

#[test]
fn what_no_backend_loads_is_refused_with_those_there_are() {
    let script = file("hello.sh", "#!/bin/sh\necho hello\n");
    let output = palisade(&["run", script.to_str().expect("a path of text")]);
    assert_eq!(output.status.code(), Some(125), "{}", text(&output));
    assert!(
        text(&output).contains("`script`") && text(&output).contains("linked backends: wasmi"),
        "{}",
        text(&output)
    );
    let output = palisade(&["run", "--backend", "wasmtime", script.to_str().expect("a path of text")]);
    assert!(text(&output).contains("no backend `wasmtime`"), "{}", text(&output));
    assert!(text(&output).contains("use my_backend as _;"), "{}", text(&output));
}

#[test]
fn its_certificate_is_in_its_own_name() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("report");
    let folder = folder.to_str().expect("a path of text");
    let output = palisade(&["certify", "--backend", "wasmi", "core.call", "--report-dir", folder]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).starts_with("palisade-wasmi 0.3.0: "), "{}", text(&output));
    let report = std::fs::read_to_string(format!("{folder}/report.json")).expect("the report");
    for part in [r#""name": "palisade-wasmi""#, r#""version": "0.3.0""#, "palisade-wasmi certify --backend wasmi"] {
        assert!(report.contains(part), "{part}");
    }
}
