//! Which file is an interpreter, and what it needs besides its libraries.
//!
//! A policy names it, and policies are hostile. So only what belongs to the host is executed: a file that nobody but root and
//! the host's own user could have written, or one that the host lists. Where its library is, it is asked in a jail, once.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use palisade_core::{Artifact, ArtifactKind, Call, Clocks, Error, ErrorKind, Policy, Result, block_on};

use crate::backend::Shared;
use crate::call;
use crate::libraries::{self, Files, Trust, elf_of};
use crate::module::ProcessModule;

/// Most extension modules of one standard library whose dependencies are followed.
const EXTENSIONS_MAX: usize = 1000;
/// How long an interpreter may take to say where its library is.
const ASK_TIME_MAX: Duration = Duration::from_secs(20);

/// An interpreter of this machine, as a guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interpreter {
    /// The executable, where it is on the host and in the jail.
    pub(crate) path: PathBuf,
    /// It, its loader and libraries.
    pub(crate) files: Files,
    /// Its standard library.
    pub(crate) directories: Vec<PathBuf>,
}

/// What tells a file from the one that comes after it at the same path: device, inode, length, time of change.
type Identity = (u64, u64, u64, i64, i64);

/// The interpreters of a sandbox.
#[derive(Debug)]
pub(crate) struct Interpreters {
    /// Those that the host lists by their paths.
    listed: Vec<PathBuf>,
    ask_time: Duration,
    /// What was found out about each, which stays true as long as its file is the same. Locked while one is asked, so that
    /// each is asked once.
    known: Mutex<BTreeMap<PathBuf, (Identity, Interpreter)>>,
}

impl Interpreters {
    pub(crate) fn new(listed: &[PathBuf]) -> Interpreters {
        Interpreters { listed: listed.to_vec(), ask_time: ASK_TIME_MAX, known: Mutex::default() }
    }

    /// Finds the interpreter `name` and all it needs.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when it, or a library it needs, is not there; [`ErrorKind::Denied`] when it is not the
    /// host's; [`ErrorKind::Unsupported`] when it does not say where its library is.
    pub(crate) fn find(&self, shared: &Arc<Shared>, name: &str) -> Result<Interpreter> {
        let path = self.locate(name).map_err(|error| error.with_context("interpreter", name))?;
        let found = path.metadata().map_err(|error| {
            Error::new(ErrorKind::NotFound, "prepare", format!("{} cannot be looked at", path.display()))
                .with_source(error)
        })?;
        let identity = (found.dev(), found.ino(), found.len(), found.mtime(), found.mtime_nsec());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, interpreter)) = known.get(&path).filter(|(known, _)| *known == identity) {
            return Ok(interpreter.clone());
        }
        let interpreter = self.look_at(shared, &path).map_err(|error| error.with_context("interpreter", name))?;
        known.insert(path, (identity, interpreter.clone()));
        Ok(interpreter)
    }

    /// The executable file `name`: one that the host lists, or a name looked up as a shell does, but only where nobody
    /// else can write.
    fn locate(&self, name: &str) -> Result<PathBuf> {
        if name.contains('/') {
            let listed = self.listed.iter().find(|listed| *listed == Path::new(name));
            return listed.cloned().ok_or_else(|| {
                Error::new(
                    ErrorKind::Denied,
                    "prepare",
                    format!("the interpreter `{name}` is a path, and only those that the host lists are used"),
                )
                .with_help(
                    "name it as on the command line (`python3`), or have the host list this path (`--interpreter`)",
                )
            });
        }
        if let Some(listed) = self.listed.iter().find(|listed| listed.file_name().is_some_and(|file| file == name)) {
            return Ok(listed.clone());
        }
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let mut passed = None;
        for candidate in std::env::split_paths(&path).filter(|place| place.is_absolute()).map(|place| place.join(name))
        {
            if !candidate.metadata().is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0) {
                continue;
            }
            match of_the_host(&candidate) {
                Ok(real) if elf_of(&real).is_some() => return Ok(candidate),
                // Such as a script that chooses among several versions.
                Ok(_) => {
                    passed = passed.or(Some(format!("{} is not an executable of this machine", candidate.display())))
                }
                Err(why) => passed = passed.or(Some(why)),
            }
        }
        Err(match passed {
            Some(why) => {
                Error::new(ErrorKind::Denied, "prepare", format!("the interpreter `{name}` is not used: {why}"))
                    .with_help("put its directory on the host's PATH, or have the host list its path (`--interpreter`)")
            }
            None => {
                Error::new(ErrorKind::NotFound, "prepare", format!("the interpreter `{name}` is not on this machine"))
                    .with_help("install it, or have the host list its path (`--interpreter`)")
            }
        })
    }

    fn look_at(&self, shared: &Arc<Shared>, path: &Path) -> Result<Interpreter> {
        let not_found = |message: String| Error::new(ErrorKind::NotFound, "prepare", message);
        let real = path
            .canonicalize()
            .map_err(|error| not_found(format!("{} cannot be read", path.display())).with_source(error))?;
        let executable = elf_of(&real).ok_or_else(|| {
            not_found(format!("the interpreter {} is not an executable of this machine", real.display()))
                .with_help("a script cannot be an interpreter; list the path of the program it starts")
        })?;
        let mut files = Files::new();
        libraries::add(&mut files, &executable, &real, Trust::Host)?;
        let mut interpreter = Interpreter { path: path.to_owned(), files, directories: Vec::new() };
        let family: String = real
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .chars()
            .take_while(char::is_ascii_alphabetic)
            .collect();
        let question = match family.as_str() {
            "python" | "pypy" => {
                "import sysconfig\nfor name in 'stdlib', 'platstdlib': print(sysconfig.get_path(name))"
            }
            "perl" => "print join \"\\n\", @INC",
            "ruby" => "puts $LOAD_PATH",
            _ => return Ok(interpreter.with(real, Vec::new())),
        };
        let asked = interpreter.clone().with(real.clone(), prefixes(path, &real));
        let mut directories = self.ask(shared, asked, question)?;
        directories.retain(|place| place.is_absolute() && place.is_dir());
        for extension in directories.iter().flat_map(|directory| extensions(directory)) {
            if let Some(library) = elf_of(&extension) {
                // An extension whose library is missing cannot be imported outside a jail either.
                let _ = libraries::add(&mut interpreter.files, &library, &extension, Trust::Host);
            }
        }
        Ok(interpreter.with(real, directories))
    }

    /// Has `interpreter` run `question`, in a jail that shows where it is installed. The paths it prints.
    fn ask(&self, shared: &Arc<Shared>, interpreter: Interpreter, question: &str) -> Result<Vec<PathBuf>> {
        let path = interpreter.path.clone();
        let failed = |why: String| {
            let message = format!("the interpreter {} does not say where its library is: {why}", path.display());
            Error::new(ErrorKind::Unsupported, "prepare", message)
                .with_help("try it outside; `palisade doctor` shows what this machine allows")
        };
        let mut policy = Policy::default();
        policy.grants.clocks = Clocks::Fine;
        policy.quota.wall_time = Some(self.ask_time);
        policy.quota.memory_bytes = Some(1 << 30);
        policy.quota.stack_bytes = Some(8 << 20);
        policy.quota.open_files = Some(256);
        policy.quota.output_bytes = Some(1 << 20);
        let module =
            ProcessModule::script(shared, Artifact::new(ArtifactKind::Script, question.to_owned()).named("question"));
        let prepared = module.prepare_with(policy, Default::default(), Some(interpreter))?;
        let mut process = prepared.process()?;
        let execution = block_on(call::run(&prepared, &mut process, Call::new()))?;
        if !matches!(execution.outcome, palisade_core::Outcome::Completed) {
            return Err(failed(execution.outcome.to_string()));
        }
        let said = String::from_utf8_lossy(&execution.output);
        Ok(said.lines().filter(|line| line.starts_with('/')).map(PathBuf::from).collect())
    }
}

impl Interpreter {
    /// With its executable at `real`, and `directories` shown besides.
    fn with(mut self, real: PathBuf, mut directories: Vec<PathBuf>) -> Interpreter {
        directories.sort();
        // One that lies in another is shown with it.
        directories.dedup_by(|inner, outer| inner.starts_with(&*outer));
        self.files.insert(self.path.clone(), real);
        self.files.retain(|shown, _| !directories.iter().any(|directory| shown.starts_with(directory)));
        self.directories = directories;
        self
    }
}

/// The real path of `path`, when nobody but root and this process's user can have put it there.
fn of_the_host(path: &Path) -> std::result::Result<PathBuf, String> {
    let own = rustix::process::geteuid().as_raw();
    let unreadable = |path: &Path| format!("{} cannot be looked at", path.display());
    let real = path.canonicalize().map_err(|_| unreadable(path))?;
    // Where it is named, and where it lies.
    let named = path.parent().unwrap_or(path).canonicalize().map_err(|_| unreadable(path))?;
    for place in real.ancestors().chain(named.ancestors()) {
        let found = place.symlink_metadata().map_err(|_| unreadable(place))?;
        let others = found.mode() & 0o002 != 0 || (found.mode() & 0o020 != 0 && found.gid() != 0);
        if (found.uid() != 0 && found.uid() != own) || others {
            return Err(format!("others than root and user {own} can write {}", place.display()));
        }
    }
    Ok(real)
}

/// Where an interpreter is installed whose executable is named `path` and lies at `real`: beside the directory of each.
fn prefixes(path: &Path, real: &Path) -> Vec<PathBuf> {
    let prefix = |path: &Path| path.parent()?.parent().map(Path::to_owned);
    let mut all: Vec<PathBuf> = [path, real].into_iter().filter_map(prefix).collect();
    if let Some(at) = all.iter().position(|prefix| prefix == Path::new("/")) {
        // The root of the jail is its own.
        all.splice(at..=at, ["/usr", "/lib"].map(PathBuf::from));
    }
    all.retain(|prefix| prefix != Path::new("/") && prefix.is_dir());
    all
}

/// Shared objects in `directory` and the directories directly beneath.
fn extensions(directory: &Path) -> Vec<PathBuf> {
    let list = |directory: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let here = list(directory);
    let below =
        here.iter().filter(|path| path.ends_with("lib-dynload") || path.ends_with("auto")).flat_map(|path| list(path));
    let all = here.iter().cloned().chain(below.collect::<Vec<_>>());
    all.filter(|path| path.extension().is_some_and(|extension| extension == "so")).take(EXTENSIONS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProcessSandbox;
    use palisade_core::BackendOptions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_what_others_cannot_write_is_the_hosts() {
        let directory = tempfile::tempdir().unwrap();
        // Below a folder that everybody can write to.
        let program = directory.path().join("python3");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        assert!(
            of_the_host(&program).unwrap_err().contains("can write"),
            "others can write to the folder of temporaries"
        );
        let shell = of_the_host(Path::new("/bin/sh")).unwrap();
        assert!(shell.is_absolute());
        // A name in a trusted place that leads to an untrusted one.
        let own = std::env::current_exe().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&own, &link).unwrap();
        assert!(of_the_host(&link).is_err());
    }

    #[test]
    fn an_interpreter_that_never_answers_is_given_up() {
        let sandbox = ProcessSandbox::open(&BackendOptions::new()).unwrap();
        // A shell in the place of a Python: it waits for a line that never ends.
        let shell = Path::new("/bin/sh").canonicalize().unwrap();
        let mut interpreters = Interpreters::new(&[]);
        interpreters.ask_time = Duration::from_millis(50);
        let mut files = Files::new();
        libraries::add(&mut files, &elf_of(&shell).unwrap(), &shell, Trust::Host).unwrap();
        let interpreter = Interpreter { path: shell.clone(), files, directories: Vec::new() }.with(shell, Vec::new());
        let ask = |question: &str| interpreters.ask(sandbox.shared(), interpreter.clone(), question);
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
        let first = interpreters.find(sandbox.shared(), "python3").unwrap();
        assert!(!first.directories.is_empty(), "{first:?}");
        interpreters.known.lock().unwrap().values_mut().for_each(|(_, known)| known.directories.clear());
        assert!(interpreters.find(sandbox.shared(), "python3").unwrap().directories.is_empty(), "it was asked again");
        // Another file at the same path is another interpreter.
        interpreters.known.lock().unwrap().values_mut().for_each(|(identity, _)| identity.2 += 1);
        assert_eq!(interpreters.find(sandbox.shared(), "python3").unwrap(), first);
    }
}
