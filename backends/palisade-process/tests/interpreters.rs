//! Which interpreters are executed, and where.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::*;
use palisade_core::*;
use palisade_process::ProcessSandbox;

/// A program at `directory`/`name` that leaves a mark beside itself when it is executed outside of a jail.
fn planted(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, guest().bytes()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn ran(path: &Path) -> bool {
    PathBuf::from(format!("{}.ran", path.display())).exists()
}

fn asking(interpreter: &Path) -> Policy {
    let mut policy = fine();
    policy.grants.interpreter = Some(interpreter.to_str().unwrap().to_owned());
    policy
}

fn script() -> Artifact {
    Artifact::new(ArtifactKind::Script, "echo").named("script")
}

#[test]
fn what_a_policy_names_by_path_is_not_executed() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["python3", "pypy3", "perl", "ruby", "sh"] {
        let path = planted(directory.path(), name);
        let error = prepare(&script(), &asking(&path)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(!ran(&path), "{name} was executed");
        // Nor by a name that leads there.
        let upwards = Path::new("../../../../../..").join(path.strip_prefix("/").unwrap());
        assert_eq!(prepare(&script(), &asking(&upwards)).unwrap_err().kind(), ErrorKind::Denied);
    }
}

#[test]
fn what_the_host_lists_is_asked_in_a_jail() {
    let directory = tempfile::tempdir().unwrap();
    let path = planted(directory.path(), "python3");
    let sandbox = ProcessSandbox::open(&BackendOptions::new().interpreter(&path)).unwrap();
    let module = block_on(sandbox.load(script())).unwrap();
    // By its path, and by its last part.
    for name in [path.as_path(), Path::new("python3")] {
        let prepared = module.prepare(asking(name), HostFunctions::new()).unwrap();
        let execution = block_on(prepared.run(Call::new())).unwrap();
        assert_eq!(output(&execution), "/usr\n", "{execution:?}");
    }
    assert!(!ran(&path), "it was executed outside of a jail");
}

#[test]
fn a_host_that_answers_by_a_script_is_passed_over() {
    // What lies on the path of this test may be a script that chooses among versions; a program is found behind it.
    let execution = run(
        &Artifact::new(ArtifactKind::Script, "import json; print(json.dumps(1))"),
        &asking(Path::new("python3")),
        Call::new(),
    );
    assert_eq!(output(&execution), "1\n", "{execution:?}");
}
