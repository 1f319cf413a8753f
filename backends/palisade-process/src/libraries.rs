//! Which files of the host a program needs to start: its loader and its libraries.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Component, Path, PathBuf};

use palisade_core::{Error, ErrorKind, Result};

use crate::elf::{self, Elf};

/// Most libraries of one program, in all.
const LIBRARIES_MAX: usize = 512;

/// Files to show in the jail: where they are shown, and where they are on the host.
pub(crate) type Files = BTreeMap<PathBuf, PathBuf>;

/// Whose files may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// A guest's: it gets libraries of the system's own directories, and may name no other.
    Guest,
    /// A program of the host's own (an interpreter): the paths it names are followed.
    Host,
}

/// Adds the loader and all libraries that `program`, which lies at `path`, needs.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] naming the library that is missing.
pub(crate) fn add(files: &mut Files, program: &Elf, path: &Path, trust: Trust) -> Result<()> {
    let missing = |what: &str, whose: &str| {
        Error::new(ErrorKind::NotFound, "prepare", format!("{what}, which `{whose}` needs, is not on this machine"))
            .with_context("library", what)
            .with_help("install it, or link the program statically")
    };
    let system = system_directories();
    if let Some(loader) = &program.loader {
        let found = Path::new(loader);
        let known = trust == Trust::Host || in_system(found, &system);
        let real = known.then(|| found.canonicalize().ok()).flatten().filter(|real| elf_of(real).is_some());
        files.insert(found.to_owned(), real.ok_or_else(|| missing(loader, &path.to_string_lossy()))?);
    }
    let mut queue: VecDeque<(Elf, PathBuf, Trust)> = VecDeque::from([(program.clone(), path.to_owned(), trust)]);
    let mut seen: BTreeSet<String> = BTreeSet::new();
    while let Some((object, whose, trust)) = queue.pop_front() {
        let origin = whose.parent().unwrap_or(Path::new("/")).to_owned();
        let mut places: Vec<PathBuf> = Vec::new();
        if trust == Trust::Host {
            let replaced = |place: &String| {
                PathBuf::from(place.replace("${ORIGIN}", "$ORIGIN").replace("$ORIGIN", &origin.to_string_lossy()))
            };
            places.extend(object.run_path.iter().map(replaced).filter(|place| place.is_absolute()));
        }
        places.extend(system.iter().cloned());
        for name in &object.needed {
            if seen.contains(name) || name.starts_with("linux-vdso") {
                continue;
            }
            let own = whose.to_string_lossy();
            if name.contains('/') || seen.len() >= LIBRARIES_MAX {
                return Err(missing(name, &own));
            }
            seen.insert(name.clone());
            let found = places.iter().map(|place| upwards(place).join(name)).find_map(|candidate| {
                let real = candidate.canonicalize().ok()?;
                // A guest chooses the name: only what can be a library may come in.
                let object = elf_of(&real)?;
                Some((candidate, real, object))
            });
            let (candidate, real, library) = found.ok_or_else(|| missing(name, &own))?;
            // Where the loader looks without its cache, which is not shown.
            if !in_system_default(&candidate) {
                files.insert(default_directory(&system).join(name), real.clone());
            }
            files.insert(candidate, real.clone());
            // What the host's libraries say is the host's.
            queue.push_back((library, real, Trust::Host));
        }
    }
    Ok(())
}

/// `path` without parts that lead upwards. Where it leads to on the host, links included, the caller looks; what matters here is
/// where a loader in the jail comes to, which has no links above it.
fn upwards(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

/// What the file at `path` says about itself, when it is a regular file and an ELF file.
pub(crate) fn elf_of(path: &Path) -> Option<Elf> {
    path.metadata().ok().filter(std::fs::Metadata::is_file)?;
    elf::parse_file(path).ok()
}

fn in_system(path: &Path, system: &[PathBuf]) -> bool {
    path.parent().is_some_and(|parent| system.iter().any(|directory| directory == parent))
}

/// Directories every loader searches by itself.
const DEFAULT: [&str; 8] = [
    concat!("/lib/", "x86_64-linux-gnu"),
    concat!("/usr/lib/", "x86_64-linux-gnu"),
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];

fn in_system_default(path: &Path) -> bool {
    path.parent().is_some_and(|parent| DEFAULT.iter().any(|directory| Path::new(directory) == parent))
}

fn default_directory(system: &[PathBuf]) -> PathBuf {
    let with_c_library = system.iter().find(|directory| directory.join("libc.so.6").exists());
    with_c_library.filter(|directory| in_system_default(&directory.join("x"))).cloned().unwrap_or("/usr/lib".into())
}

/// Where this system keeps libraries: the loader's own directories, and those its configuration adds.
fn system_directories() -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> = DEFAULT.iter().map(PathBuf::from).collect();
    let configurations =
        std::fs::read_dir("/etc/ld.so.conf.d").into_iter().flatten().flatten().map(|entry| entry.path());
    for configuration in configurations.chain([PathBuf::from("/etc/ld.so.conf")]) {
        let text = std::fs::read_to_string(configuration).unwrap_or_default();
        directories.extend(text.lines().map(str::trim).filter(|line| line.starts_with('/')).map(PathBuf::from));
    }
    directories.retain(|directory| directory.is_dir());
    directories
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_gets_its_loader_and_libraries_and_theirs() {
        let path = std::env::current_exe().unwrap();
        let own = elf::parse(&std::fs::read(&path).unwrap()).unwrap();
        let mut files = Files::new();
        add(&mut files, &own, &path, Trust::Guest).unwrap();
        let names: Vec<_> = files.keys().filter_map(|path| path.file_name()?.to_str()).collect();
        assert!(names.contains(&"libc.so.6"), "{names:?}");
        assert!(files.contains_key(Path::new(own.loader.as_ref().unwrap())), "{names:?}");
    }

    #[test]
    fn what_leads_upwards_is_shown_where_a_loader_comes_to() {
        let (tree, own) = (tempfile::tempdir().unwrap(), std::env::current_exe().unwrap());
        let root = tree.path().canonicalize().unwrap();
        for part in ["bin", "lib"] {
            std::fs::create_dir(root.join(part)).unwrap();
        }
        std::fs::copy(own, root.join("lib/libown.so")).unwrap();
        let program =
            Elf { needed: vec!["libown.so".into()], run_path: vec!["$ORIGIN/../lib/./".into()], ..Elf::default() };
        let mut files = Files::new();
        add(&mut files, &program, &root.join("bin/program"), Trust::Host).unwrap();
        assert!(files.contains_key(&root.join("lib/libown.so")), "{files:?}");
        assert!(files.keys().all(|shown| !shown.to_string_lossy().contains("..")), "{files:?}");
    }

    #[test]
    fn a_guest_cannot_have_the_hosts_files_shown() {
        let secrets = tempfile::tempdir().unwrap();
        let secret = secrets.path().join("libsecret.so");
        std::fs::copy(std::env::current_exe().unwrap(), &secret).unwrap();
        let place = secrets.path().to_str().unwrap().to_owned();
        let greedy =
            |needed: &str| Elf { needed: vec![needed.into()], run_path: vec![place.clone()], ..Elf::default() };
        let refused = |elf: &Elf| {
            let error = add(&mut Files::new(), elf, Path::new("/plugin"), Trust::Guest).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
        };
        refused(&greedy("libsecret.so"));
        refused(&greedy(secret.to_str().unwrap()));
        refused(&greedy("../../../../etc/passwd"));
        refused(&Elf { loader: Some(secret.to_str().unwrap().into()), ..Elf::default() });
        refused(&Elf { loader: Some("/lib/../etc/passwd".into()), ..Elf::default() });
        // The same file is followed where the host itself names it.
        assert!(add(&mut Files::new(), &greedy("libsecret.so"), Path::new("/i"), Trust::Host).is_ok());
    }
}
