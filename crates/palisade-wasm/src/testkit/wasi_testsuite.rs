//! The official WASI test suite, preview 1, run through this backend.
//!
//! The programs are not part of this repository: `PALISADE_WASI_TESTSUITE` names the suite's folder. Each program is a
//! test of its own; without the folder, one line says that nothing was run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use palisade_core::{Artifact, Call, Clocks, DirectoryGrant, HostFunctions, Outcome, Policy, PreparedExt, Sandbox};
use serde::Deserialize;

/// Programs in the release of the suite this was written against. More is fine, fewer means the folder is wrong.
const PROGRAMS_MIN: usize = 72;

/// What stands in the JSON file beside a program.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Expectation {
    args: Vec<String>,
    env: BTreeMap<String, String>,
    root: Option<String>,
    exit_code: i32,
    stdout: Option<String>,
    stderr: Option<String>,
}

/// Runs the suite on `sandbox`, with the arguments of a test program.
pub fn main(sandbox: Arc<dyn Sandbox>) -> ExitCode {
    let arguments = Arguments::from_args();
    let Some(suite) = std::env::var_os("PALISADE_WASI_TESTSUITE").map(PathBuf::from) else {
        println!("NOT RUN: the WASI test suite; set PALISADE_WASI_TESTSUITE to its folder to run it");
        return ExitCode::SUCCESS;
    };
    let mut programs = Vec::new();
    find_programs(&suite, &mut programs);
    programs.sort();
    if programs.len() < PROGRAMS_MIN {
        println!("FAILED: {} holds {} programs, fewer than {PROGRAMS_MIN}", suite.display(), programs.len());
        return ExitCode::FAILURE;
    }
    let trials = programs.into_iter().map(|program| {
        let sandbox = Arc::clone(&sandbox);
        let name = program.strip_prefix(&suite).unwrap_or(&program).with_extension("").display().to_string();
        Trial::test(name, move || run(&*sandbox, &program))
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn find_programs(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            find_programs(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "wasm") {
            found.push(path);
        }
    }
}

fn run(sandbox: &dyn Sandbox, program: &Path) -> Result<(), Failed> {
    let expected: Expectation = match std::fs::read(program.with_extension("json")) {
        Ok(json) => serde_json::from_slice(&json)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Expectation::default(),
        Err(error) => return Err(error.into()),
    };
    let scratch = tempfile::tempdir()?;
    let mut policy = Policy::default();
    policy.grants.environment = expected.env;
    // Three programs read back file times they set to the nanosecond; under coarse clocks file times are coarse too.
    policy.grants.clocks = Clocks::Fine;
    if let Some(root) = &expected.root {
        copy(&program.with_file_name(root), scratch.path())?;
        policy.grants.directories.push(DirectoryGrant::read_write(scratch.path(), "/"));
    }
    let call = Call::new().arguments(expected.args);
    let execution = tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
        let module = sandbox.load(Artifact::wasm(std::fs::read(program)?)).await?;
        let prepared = module.prepare(policy, HostFunctions::new())?;
        Ok::<_, Box<dyn std::error::Error>>(prepared.run(call).await?)
    });
    let execution = execution.map_err(|error| Failed::from(error.to_string()))?;
    let (output, error) = (String::from_utf8_lossy(&execution.output), String::from_utf8_lossy(&execution.error));
    let same = execution.outcome == Outcome::from_exit_code(expected.exit_code)
        && expected.stdout.as_ref().is_none_or(|stdout| *stdout == output)
        && expected.stderr.as_ref().is_none_or(|stderr| *stderr == error);
    if !same {
        return Err(format!("{}\nstdout: {output}\nstderr: {error}", execution.outcome).into());
    }
    Ok(())
}

/// Copies a tree, so that every program finds it untouched.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir(&target)?;
            copy(&entry.path(), &target)?;
        } else {
            // Written anew rather than copied: the original may be read-only.
            std::fs::write(&target, std::fs::read(entry.path())?)?;
        }
    }
    Ok(())
}
