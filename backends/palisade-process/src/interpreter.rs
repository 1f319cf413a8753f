//! Which file is an interpreter, and what it needs besides its libraries.
//!
//! A policy names it, and policies are hostile. So only what belongs to the host is executed: a file that nobody but root and
//! the host's own user could have written, or one that the host lists. Where its library is, it is asked in a jail, once.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use palisade_core::{Error, ErrorKind, Result};

use crate::libraries::{self, Files, Trust, elf_of};

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

/// What tells a file from the one that comes after it at the same path: device, inode, length, time of change.
type Identity = (u64, u64, u64, i64, i64);

/// Has an interpreter run a question, and gives the paths it prints.
pub(crate) type Ask<'a> = &'a dyn Fn(Interpreter, &str) -> Result<Vec<PathBuf>>;

/// The interpreters of a sandbox.
#[derive(Debug)]
pub(crate) struct Interpreters {
    /// Those that the host lists by their paths.
    listed: Vec<PathBuf>,
    /// What was found out about each, which stays true as long as its file is the same. Locked while one is asked, so that
    /// each is asked once.
    pub(crate) known: Mutex<BTreeMap<PathBuf, (Identity, Interpreter)>>,
}

impl Interpreters {
    pub(crate) fn new(listed: &[PathBuf]) -> Interpreters {
        Interpreters { listed: listed.to_vec(), known: Mutex::default() }
    }

    /// Finds the interpreter `name` and all it needs. `ask` asks it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when it, or a library it needs, is not there; [`ErrorKind::Denied`] when it is not the
    /// host's; [`ErrorKind::Unsupported`] when it does not say where its library is.
    pub(crate) fn find(&self, name: &str, ask: Ask<'_>) -> Result<Interpreter> {
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
        let interpreter = look_at(&path, ask).map_err(|error| error.with_context("interpreter", name))?;
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
}

/// What the interpreter at `path` needs, which it is asked where it can tell.
fn look_at(path: &Path, ask: Ask<'_>) -> Result<Interpreter> {
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
    let family: String =
        real.file_name().unwrap_or_default().to_string_lossy().chars().take_while(char::is_ascii_alphabetic).collect();
    let question = match family.as_str() {
        "python" | "pypy" => "import sysconfig\nfor name in 'stdlib', 'platstdlib': print(sysconfig.get_path(name))",
        "perl" => "print join \"\\n\", @INC",
        "ruby" => "puts $LOAD_PATH",
        _ => return Ok(interpreter.installed(family.as_str(), real)),
    };
    let asked = interpreter.clone().with(real.clone(), prefixes(path, &real));
    let mut directories = ask(asked, question)?;
    directories.retain(|place| place.is_absolute() && place.is_dir());
    for extension in directories.iter().flat_map(|directory| extensions(directory)) {
        if let Some(library) = elf_of(&extension) {
            // An extension whose library is missing cannot be imported outside a jail either.
            let _ = libraries::add(&mut interpreter.files, &library, &extension, Trust::Host);
        }
    }
    directories.extend(time_zones());
    Ok(interpreter.with(real, directories))
}

/// Where those keep their libraries that cannot be asked: by the letters their names begin with.
const INSTALLED: [(&str, &[&str]); 6] = [
    ("java", &["/etc/java-*-openjdk"]),
    ("lua", &["/usr/share/lua", "/usr/lib/*/lua", "/usr/local/share/lua", "/usr/local/lib/lua"]),
    ("node", &["/usr/share/nodejs", "/usr/share/node_modules"]),
    ("php", &["/etc/php", "/usr/lib/php", "/usr/share/php"]),
    ("sbcl", &["/usr/lib/sbcl", "/usr/local/lib/sbcl"]),
    ("tclsh", &["/usr/share/tcltk", "/usr/lib/tcltk"]),
];

/// Directories at `pattern`, of which one part may hold a star.
fn directories_at(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else {
        return Some(PathBuf::from(pattern)).into_iter().filter(|path| path.is_dir()).collect();
    };
    let (parent, begin) = before.rsplit_once('/').unwrap_or(("", before));
    let (end, below) = after.split_once('/').unwrap_or((after, ""));
    let entries = std::fs::read_dir(format!("{parent}/")).into_iter().flatten().flatten();
    let fits = entries.filter(|entry| {
        entry.file_name().to_str().is_some_and(|name| {
            name.strip_prefix(begin).is_some_and(|rest| rest.len() >= end.len() && rest.ends_with(end))
        })
    });
    fits.map(|entry| entry.path().join(below)).filter(|path| path.is_dir()).collect()
}

/// The times of the world: data of every system, and part of what a language's library reads.
fn time_zones() -> Option<PathBuf> {
    Some(PathBuf::from("/usr/share/zoneinfo")).filter(|path| path.is_dir())
}

impl Interpreter {
    /// With its executable at `real`, and what is known of its `family`.
    fn installed(mut self, family: &str, real: PathBuf) -> Interpreter {
        let mut directories: Vec<PathBuf> = time_zones().into_iter().collect();
        let known = INSTALLED.iter().filter(|(name, _)| *name == family).flat_map(|(_, patterns)| patterns.iter());
        directories.extend(known.flat_map(|pattern| directories_at(pattern)));
        if family == "java" {
            // Its libraries and classes lie beside the directory of its program, and it looks for them beside its name.
            directories.extend(prefixes(&real, &real));
            self.path.clone_from(&real);
        }
        let deeper = directories.iter().flat_map(|directory| [directory.join("lib"), directory.join("lib/server")]);
        let java: Vec<PathBuf> = deeper.filter(|_| family == "java").collect();
        for extension in directories.iter().chain(&java).flat_map(|directory| extensions(directory)) {
            if let Some(library) = elf_of(&extension) {
                let _ = libraries::add(&mut self.files, &library, &extension, Trust::Host);
            }
        }
        self.with(real, directories)
    }

    /// With its executable at `real`, and `directories` shown besides.
    pub(crate) fn with(mut self, real: PathBuf, mut directories: Vec<PathBuf>) -> Interpreter {
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
}
