//! What the tests share.
#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::{Arc, OnceLock};

use palisade_core::*;
use palisade_process::ProcessSandbox;

/// The backend, opened once for all tests of a file.
pub fn sandbox() -> &'static ProcessSandbox {
    static SANDBOX: OnceLock<ProcessSandbox> = OnceLock::new();
    SANDBOX.get_or_init(|| ProcessSandbox::open(&BackendOptions::new()).unwrap_or_else(|error| panic!("{error:?}")))
}

/// A program of this machine.
pub fn program(name: &str) -> Artifact {
    let path = ["/usr/bin", "/bin"]
        .iter()
        .map(|directory| format!("{directory}/{name}"))
        .find_map(|path| std::fs::read(path).ok());
    Artifact::new(ArtifactKind::Executable, path.unwrap_or_else(|| panic!("{name} is not installed"))).named(name)
}

/// The default policy with fine clocks, which every executable needs.
pub fn fine() -> Policy {
    let mut policy = Policy::default();
    policy.grants.clocks = Clocks::Fine;
    policy
}

pub fn prepare(artifact: &Artifact, policy: &Policy) -> Result<Arc<dyn Prepared>> {
    block_on(sandbox().load(artifact.clone()))?.prepare(policy.clone(), HostFunctions::new())
}

pub fn run(artifact: &Artifact, policy: &Policy, call: Call) -> Execution {
    let prepared = prepare(artifact, policy).unwrap_or_else(|error| panic!("{error:?}"));
    block_on(prepared.run(call)).unwrap_or_else(|error| panic!("{error:?}"))
}
