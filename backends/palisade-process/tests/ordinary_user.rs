//! The conformance suite once more, as an ordinary user: other ways lead to the same jail there, through a user namespace
//! and without control groups.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use palisade_conformance::{Subject, probe};
use palisade_core::{BackendOptions, ErrorKind};
use palisade_process::ProcessSandbox;

/// A user and group that own nothing.
const NOBODY: u32 = 64_001;

fn main() -> ExitCode {
    if rustix::process::geteuid().is_root() {
        return as_nobody();
    }
    match ProcessSandbox::open(&BackendOptions::new()) {
        Ok(_) => palisade_conformance::main(Subject {
            name: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            open: || Ok(Arc::new(ProcessSandbox::open(&BackendOptions::new())?)),
            probe: probe::native,
            expectations: include_str!("../CONFORMANCE.toml"),
        }),
        // Not every machine lets ordinary users make user namespaces. Then it must say so.
        Err(error) => {
            println!("ordinary user: {error}");
            let told = error.kind() == ErrorKind::Unsupported && error.help().is_some();
            ExitCode::from(u8::from(!told))
        }
    }
}

/// Runs a copy of this program, which that user may execute wherever the original lies, as that user.
fn as_nobody() -> ExitCode {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("a folder for everybody");
    let program = folder.path().join("ordinary_user");
    fs::copy(std::env::current_exe().expect("this program"), &program).expect("a copy of this program");
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).current_dir(folder.path()).uid(NOBODY).gid(NOBODY);
    let status = command.status().expect("the copy runs");
    ExitCode::from(u8::from(!status.success()))
}
