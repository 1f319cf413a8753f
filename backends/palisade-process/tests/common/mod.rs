//! What the tests share.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use palisade_core::*;
use palisade_process::ProcessSandbox;

/// The backend, opened once for all tests of a file.
pub(crate) fn sandbox() -> &'static ProcessSandbox {
    static SANDBOX: OnceLock<ProcessSandbox> = OnceLock::new();
    SANDBOX.get_or_init(|| ProcessSandbox::open(&BackendOptions::new()).unwrap_or_else(|error| panic!("{error:?}")))
}

/// Processes whose parent is `pid`.
pub(crate) fn children(pid: u32) -> BTreeSet<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()).collect()
}

/// A program of this machine.
pub(crate) fn program(name: &str) -> Artifact {
    let path = ["/usr/bin", "/bin"]
        .iter()
        .map(|directory| format!("{directory}/{name}"))
        .find_map(|path| std::fs::read(path).ok());
    Artifact::new(ArtifactKind::Executable, path.unwrap_or_else(|| panic!("{name} is not installed"))).named(name)
}

/// The default policy with fine clocks, which every executable needs.
pub(crate) fn fine() -> Policy {
    let mut policy = Policy::default();
    policy.grants.clocks = Clocks::Fine;
    policy
}

pub(crate) fn prepare(artifact: &Artifact, policy: &Policy) -> Result<Arc<dyn Prepared>> {
    block_on(sandbox().load(artifact.clone()))?.prepare(policy.clone(), HostFunctions::new())
}

pub(crate) fn run(artifact: &Artifact, policy: &Policy, call: Call) -> Execution {
    let prepared = prepare(artifact, policy).unwrap_or_else(|error| panic!("{error:?}"));
    block_on(prepared.run(call)).unwrap_or_else(|error| panic!("{error:?}"))
}

/// Compiles a guest of `tests/guests`, once per process.
fn compile(source: &'static str, kind: &str, cfg: &str) -> Vec<u8> {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let output = directory.path().join("guest");
    let rustc = option_env!("RUSTC").unwrap_or("rustc");
    let mut command = std::process::Command::new(rustc);
    command.args(["--edition", "2024", "--crate-name", "guest", "--crate-type", kind, "-A", "warnings"]);
    command.args(["-C", "opt-level=1", "-C", "panic=abort", "-C", "strip=symbols"]);
    if !cfg.is_empty() {
        command.args(["--cfg", cfg]);
    }
    let source = format!("{}/tests/guests/{source}", env!("CARGO_MANIFEST_DIR"));
    let status = command.arg("-o").arg(&output).arg(source).status().unwrap();
    assert!(status.success());
    std::fs::read(output).unwrap()
}

/// The program that misbehaves as its arguments say.
pub(crate) fn guest() -> Artifact {
    static BYTES: OnceLock<Artifact> = OnceLock::new();
    BYTES.get_or_init(|| Artifact::new(ArtifactKind::Executable, compile("guest.rs", "bin", "")).named("guest")).clone()
}

/// The shared library with an entry for each behaviour.
pub(crate) fn plugin() -> Artifact {
    static BYTES: OnceLock<Artifact> = OnceLock::new();
    BYTES
        .get_or_init(|| {
            Artifact::new(ArtifactKind::SharedLibrary, compile("plugin.rs", "cdylib", "")).named("plugin.so")
        })
        .clone()
}

/// A shared library whose constructor does `what`.
pub(crate) fn constructor(what: &str) -> Artifact {
    Artifact::new(ArtifactKind::SharedLibrary, compile("constructor.rs", "cdylib", what)).named("constructor.so")
}

/// Runs the guest with these arguments.
pub(crate) fn act(arguments: &[&str], policy: &Policy) -> Execution {
    run(&guest(), policy, Call::new().arguments(arguments.iter().copied()))
}

pub(crate) fn output(execution: &Execution) -> String {
    String::from_utf8_lossy(&execution.output).into_owned()
}
