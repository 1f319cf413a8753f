//! Native programs and scripts: `palisade run` with the process backend.
#![cfg(target_os = "linux")]

mod support;

use support::Palisade;

/// A small program every system has.
const CAT: &str = "/bin/cat";

fn run(palisade: &Palisade, arguments: &[&str]) -> support::Ended {
    palisade.start(["run"].iter().chain(arguments)).finish()
}

#[test]
fn a_native_program_chooses_its_backend_by_itself() {
    let palisade = Palisade::new();
    let ended = run(&palisade, &[CAT, "--input", "hello", "--json"]);
    let report = ended.report(0);
    assert_eq!(report["output"], "hello", "{report:#}");
    assert_eq!(report["outcome"]["kind"], "completed");
    let layers = report["isolation"].as_array().expect("the layers");
    assert!(layers.iter().any(|layer| layer["name"] == "seccomp" && layer["status"] == "enforced"), "{report:#}");
}

#[test]
fn a_script_needs_its_interpreter() {
    let palisade = Palisade::new();
    palisade.file("script.sh", "read line; echo \"$line $1\"; exit 3");
    let refused = run(&palisade, &["script.sh", "--input", "x"]);
    assert_eq!(refused.code, 126, "{refused:?}");
    assert!(refused.stderr.contains("--interpreter"), "{}", refused.stderr);
    let ended = run(&palisade, &["script.sh", "--interpreter", "sh", "--input", "in\n", "--", "argument"]);
    assert_eq!((ended.code, ended.text()), (3, "in argument\n"), "{}", ended.stderr);
    let missing = run(&palisade, &["script.sh", "--interpreter", "no-such-shell"]);
    assert!(missing.stderr.contains("no-such-shell"), "{}", missing.stderr);
}

#[test]
fn quotas_hold_and_exit_codes_are_those_of_every_backend() {
    let palisade = Palisade::new();
    palisade.file("spin.sh", "while :; do :; done");
    let ended = run(&palisade, &["spin.sh", "--interpreter", "sh", "--wall-time", "200ms", "--json"]);
    let report = ended.report(124);
    assert_eq!(report["outcome"]["resource"], "wall_time", "{report:#}");
    let ended = run(&palisade, &["spin.sh", "--interpreter", "sh", "--cpu-time", "50ms", "--json"]);
    assert_eq!(ended.report(124)["outcome"]["resource"], "cpu_time");
}

#[test]
fn granted_directories_are_read_only() {
    let palisade = Palisade::new();
    palisade.file("data", "contents");
    let grant = format!("{}::/granted", palisade.folder().display());
    let ended = run(&palisade, &[CAT, "--dir", &grant, "--input", "", "--", "/granted/data"]);
    assert_eq!((ended.code, ended.text()), (0, "contents"), "{}", ended.stderr);
    palisade.file("write.sh", "echo x > /granted/new || exit 9");
    let ended = run(&palisade, &["write.sh", "--interpreter", "sh", "--dir", &grant, "--input", ""]);
    assert_eq!(ended.code, 9, "{}", ended.stderr);
    assert!(!palisade.folder().join("new").exists());
    let refused = run(&palisade, &[CAT, "--dir", &format!("{grant}:rw")]);
    assert_eq!(refused.code, 126);
    assert!(refused.stderr.contains("--disk unlimited"), "{}", refused.stderr);
}

#[test]
fn what_a_native_program_cannot_have_is_refused() {
    let palisade = Palisade::new();
    for (option, value) in [("--fuel", "1000"), ("--seed", "7")] {
        let refused = run(&palisade, &[CAT, option, value, "--input", ""]);
        assert_eq!(refused.code, 126, "{option}");
        assert_eq!(refused.stderr.trim_end().lines().count(), 1, "{}", refused.stderr);
    }
    palisade.file("broken", b"\x7fELF\x02\x01\x01 and no more");
    let refused = run(&palisade, &["broken"]);
    assert_eq!(refused.code, 125, "{}", refused.stderr);
    // Coarse clocks in a policy file are taken at their word.
    palisade.file("policy.toml", "[grants]\nclocks = { coarse = { step = \"1ms\" } }\n");
    let refused = run(&palisade, &[CAT, "--policy", "policy.toml"]);
    assert_eq!(refused.code, 126);
    assert!(refused.stderr.contains("fine"), "{}", refused.stderr);
}

#[test]
fn inspect_tells_what_a_native_program_needs() {
    let palisade = Palisade::new();
    let ended = palisade.start(["inspect", CAT]).finish();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.text().contains("executable") && ended.text().contains("libc"), "{}", ended.text());
}

#[test]
fn a_scratch_directory_is_writable_and_bounded() {
    let palisade = Palisade::new();
    palisade.file("use.sh", "echo text > /tmp/a && read line < /tmp/a && echo $line; echo x > /b || exit 9");
    let ended = run(&palisade, &["use.sh", "--interpreter", "sh", "--scratch", "/tmp", "--input", ""]);
    assert_eq!((ended.code, ended.text()), (9, "text\n"), "{}", ended.stderr);
    let none = ["use.sh", "--interpreter", "sh", "--scratch", "/tmp", "--disk", "0", "--input", ""];
    let ended = run(&palisade, &none);
    assert_eq!((ended.code, ended.text()), (9, ""), "{}", ended.stderr);
    palisade.file("plugin.wat", "(module (func (export \"_start\")))");
    let ended = run(&palisade, &["plugin.wat", "--scratch", "/tmp"]);
    assert_eq!(ended.code, 126, "{ended:?}");
    assert!(ended.stderr.contains("cannot grant scratch"), "{}", ended.stderr);
}
