//! Asks an interpreter where its library is: in a jail, like any guest.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use palisade_core::{Artifact, ArtifactKind, Call, Clocks, Error, ErrorKind, HostFunctions, Policy, Result, block_on};

use crate::call;
use crate::interpreter::Interpreter;
use crate::jail::Jail;
use crate::kind::Kind;
use crate::plan::plan;
use crate::prepared::ProcessPrepared;
use crate::shared::Shared;
use crate::zygote::sealed;

/// How long an interpreter may take to say where its library is.
const TIME_MAX: Duration = Duration::from_secs(20);

/// Finds the interpreter `name` and all it needs.
///
/// # Errors
///
/// As [`crate::interpreter::Interpreters::find`].
pub(crate) fn find(shared: &Arc<Shared>, name: &str) -> Result<Interpreter> {
    shared.interpreters.find(name, &|interpreter, question| ask(shared, interpreter, question, TIME_MAX))
}

/// Has `interpreter` run `question`, in a jail that shows where it is installed. The paths it prints.
fn ask(shared: &Arc<Shared>, interpreter: Interpreter, question: &str, time: Duration) -> Result<Vec<PathBuf>> {
    let path = interpreter.path.clone();
    let failed = |why: String| {
        let message = format!("the interpreter {} does not say where its library is: {why}", path.display());
        Error::new(ErrorKind::Unsupported, "prepare", message)
            .with_help("try it outside; `palisade doctor` shows what this machine allows")
    };
    let mut policy = Policy::default();
    policy.grants.clocks = Clocks::Fine;
    policy.quota.wall_time = Some(time);
    policy.quota.memory_bytes = Some(1 << 30);
    policy.quota.stack_bytes = Some(8 << 20);
    policy.quota.open_files = Some(256);
    policy.quota.output_bytes = Some(1 << 20);
    let script = Artifact::new(ArtifactKind::Script, question.to_owned()).named("question");
    let plan = plan(shared, &script, &Kind::Script, &policy, Some(interpreter))?;
    let program = sealed("palisade-program", script.bytes())
        .map_err(|error| Error::new(ErrorKind::Io, "prepare", "no memory for the program").with_source(error))?;
    let jail = Jail::build(Arc::clone(shared), policy, false, plan, Arc::new(program))?;
    let prepared = ProcessPrepared::new(jail, Kind::Script, HostFunctions::default(), []);
    let mut process = prepared.process()?;
    let execution = block_on(call::run(&prepared, &mut process, Call::new()))?;
    if !matches!(execution.outcome, palisade_core::Outcome::Completed) {
        return Err(failed(execution.outcome.to_string()));
    }
    let said = String::from_utf8_lossy(&execution.output);
    Ok(said.lines().filter(|line| line.starts_with('/')).map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProcessSandbox;
    use crate::libraries::{self, Files, Trust, elf_of};
    use palisade_core::BackendOptions;
    use std::path::Path;

    #[test]
    fn an_interpreter_that_never_answers_is_given_up() {
        let sandbox = ProcessSandbox::open(&BackendOptions::new()).unwrap();
        // A shell in the place of a Python: it waits for a line that never ends.
        let shell = Path::new("/bin/sh").canonicalize().unwrap();
        let mut files = Files::new();
        libraries::add(&mut files, &elf_of(&shell).unwrap(), &shell, Trust::Host).unwrap();
        let interpreter = Interpreter { path: shell.clone(), files, directories: Vec::new() }.with(shell, Vec::new());
        let ask =
            |question: &str| super::ask(sandbox.shared(), interpreter.clone(), question, Duration::from_millis(50));
        let error = ask("while :; do :; done").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("wall_time"), "{error}");
        // Nor can it flood its host.
        let error = ask("while :; do echo /flood; done").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }

    #[test]
    fn each_is_asked_once() {
        let sandbox = ProcessSandbox::open(&BackendOptions::new()).unwrap();
        let interpreters = &sandbox.shared().interpreters;
        let find = || find(sandbox.shared(), "python3").unwrap();
        let first = find();
        assert!(!first.directories.is_empty(), "{first:?}");
        interpreters.known.lock().unwrap().values_mut().for_each(|(_, known)| known.directories.clear());
        assert!(find().directories.is_empty(), "it was asked again");
        // Another file at the same path is another interpreter.
        interpreters.known.lock().unwrap().values_mut().for_each(|(identity, _)| identity.2 += 1);
        assert_eq!(find(), first);
    }
}
