//! What an interpreter needs besides its libraries.

use std::path::{Path, PathBuf};
use std::process::Command;

use palisade_core::{Error, ErrorKind, Result};

use crate::elf;
use crate::libraries::{self, Files, Trust};

/// Most extension modules of one standard library whose dependencies are followed.
const EXTENSIONS_MAX: usize = 1000;

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

/// Finds the interpreter `name` and all it needs. The interpreter is the host's own program and trusted: it is asked
/// where its library is.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] when it, or a library it needs, is not there.
pub(crate) fn find(name: &str) -> Result<Interpreter> {
    let not_found = |message: String| Error::new(ErrorKind::NotFound, "prepare", message).context("interpreter", name);
    let mut path = on_path(name).ok_or_else(|| {
        not_found(format!("the interpreter `{name}` is not on this machine"))
            .help("install it, or give the path of its executable")
    })?;
    let family: String =
        path.file_name().unwrap_or_default().to_string_lossy().chars().take_while(char::is_ascii_alphabetic).collect();
    // Asked first: what lies on the path may be a script that chooses among several versions.
    let asked = match family.as_str() {
        "python" | "pypy" => ask(
            &path,
            &[
                "-I",
                "-c",
                "import sys, sysconfig; print(sys.executable); [print(sysconfig.get_path(p)) for p in ('stdlib', 'platstdlib')]",
            ],
        ),
        "perl" => ask(&path, &["-e", "print join \"\\n\", $^X, @INC"]),
        "ruby" => ask(&path, &["-e", "puts RbConfig.ruby, $LOAD_PATH"]),
        _ => Vec::new(),
    };
    let mut directories = Vec::new();
    if let [executable, library @ ..] = asked.as_slice() {
        path = PathBuf::from(executable);
        directories = library.iter().map(PathBuf::from).filter(|place| place.is_absolute() && place.is_dir()).collect();
        directories.sort();
        // One that lies in another is shown with it.
        directories.dedup_by(|inner, outer| inner.starts_with(&*outer));
    }
    let real =
        path.canonicalize().map_err(|error| not_found(format!("{} cannot be read", path.display())).source(error))?;
    let executable = elf_of(&real).ok_or_else(|| {
        not_found(format!("the interpreter {} is not an executable of this machine", real.display()))
            .help("a script cannot be an interpreter; give the path of the program it starts")
    })?;
    let mut files = Files::new();
    libraries::add(&mut files, &executable, &real, Trust::Host)?;
    for directory in &directories {
        for extension in extensions(directory) {
            if let Some(library) = elf_of(&extension) {
                // An extension whose library is missing cannot be imported outside a jail either.
                let _ = libraries::add(&mut files, &library, &extension, Trust::Host);
            }
        }
    }
    // Shown as part of a directory.
    files.retain(|shown, _| !directories.iter().any(|directory| shown.starts_with(directory)));
    files.insert(path.clone(), real);
    Ok(Interpreter { path, files, directories })
}

fn elf_of(path: &Path) -> Option<elf::Elf> {
    elf::parse(&std::fs::read(path).ok()?).ok()
}

/// The executable file `name`: a path, or a name looked up as a shell does.
fn on_path(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let executable =
        |path: &PathBuf| path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| path.is_absolute() && executable(path));
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(executable)
}

/// Lines an interpreter prints. Empty when it does not work.
fn ask(interpreter: &Path, arguments: &[&str]) -> Vec<String> {
    let output = Command::new(interpreter).args(arguments).stdin(std::process::Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter(|line| line.starts_with('/'))
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    }
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
