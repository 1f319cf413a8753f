//! Native programs and scripts: `palisade run` with the process backend.
#![cfg(target_os = "linux")]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::process::{ChildStderr, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
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

/// A daemon for native code only, on a socket of its own. Stopped when the test is over.
struct Daemon {
    child: std::process::Child,
    stderr: BufReader<ChildStderr>,
}

impl Daemon {
    fn start(palisade: &Palisade) -> Daemon {
        let mut command = palisade.command();
        palisade.file("ceiling.toml", "interpreters = ['sh']");
        command.args(["serve", "--ephemeral", "--workers", "2", "--backend", "process", "--ceiling", "ceiling.toml"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("ready on ") {
            assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "the daemon ended: {said}");
        }
        Daemon { child, stderr }
    }

    /// Tells it to end, and gives its exit code and what it said since the start.
    fn stop(mut self) -> (Option<i32>, String) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_daemon_runs_native_programs_and_scripts() {
    let palisade = Palisade::new();
    let daemon = Daemon::start(&palisade);
    let submit = |arguments: &[&str]| {
        let ended = palisade.run(["submit"].iter().chain(arguments));
        assert_eq!(ended.code, 0, "{ended:?}");
        ended.text().trim().to_owned()
    };

    // Installed once; then by its name. Each task has an instance and an input of its own.
    let tasks: Vec<_> = (0..20).map(|number| (submit(&[CAT, "-i", &format!("input {number}")]), number)).collect();
    for (task, number) in tasks {
        let report = palisade.run(["wait", &task, "--json"]).report(0);
        assert_eq!((&report["state"], &report["failures"]), (&json!("completed"), &json!(0)), "{report:#}");
        assert_eq!(report["execution"]["output"], format!("input {number}"), "{report:#}");
    }
    let listed = palisade.run(["plugins", "--json"]).json();
    let plugins = listed["plugins"].as_array().expect("the plugins");
    assert_eq!((plugins.len(), &plugins[0]["name"], &plugins[0]["kind"]), (1, &json!("cat"), &json!("executable")));

    // Scripts end as in `palisade run`.
    palisade.file("script.sh", "read line; echo \"$line $1\"; test -e /etc/shadow && exit 9; exit 3");
    let script = submit(&["script.sh", "--interpreter", "sh", "-i", "in\n", "--attempts", "1", "--", "argument"]);
    let ended = palisade.run(["wait", &script]);
    assert_eq!((ended.code, ended.text()), (3, "in argument\n"), "{ended:?}");

    palisade.file("spin.sh", "while :; do :; done");
    let spin = submit(&["spin.sh", "--interpreter", "sh", "--wall-time", "200ms", "--attempts", "1"]);
    let report = palisade.run(["wait", &spin, "--json"]).report(124);
    assert_eq!(report["execution"]["outcome"]["resource"], "wall_time", "{report:#}");
    let spin = submit(&["spin.sh", "--wall-time", "200ms", "--interpreter", "sh"]);
    let cancelled = palisade.run(["cancel", &spin]);
    assert_eq!((cancelled.code, cancelled.text().trim()), (0, "cancelled"), "{cancelled:?}");

    // What this daemon has no backend for is refused when it is submitted, not later.
    palisade.file("plugin.wat", "(module (func (export \"_start\")))");
    palisade.run(["submit", "plugin.wat"]).assert_error(126, &[]);

    let (code, said) = daemon.stop();
    assert!(code == Some(0) && said.contains("0 tasks without an outcome"), "{code:?} {said}");
}
