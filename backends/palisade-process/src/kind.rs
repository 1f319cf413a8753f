//! What kind of artifact a module is.

use palisade_core::{Artifact, ArtifactKind, Call, Error, ErrorKind, Result};

use crate::elf::Elf;

/// Libraries a shared library may need: those the worker has loaded before it enters the jail.
pub(crate) const PRELOADED: [&str; 8] = [
    "libc.so.6",
    "libm.so.6",
    "libgcc_s.so.1",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "libstdc++.so.6",
    "ld-linux-x86-64.so.2",
];

/// What a module is, and what making instances of it takes.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Executable(Elf),
    Script,
    Library,
}

/// The entry of a program.
pub(crate) const PROGRAM_ENTRY: &str = Call::DEFAULT_ENTRY;

/// What kind of artifact this backend makes of `artifact`.
pub(crate) fn kind_of(artifact: &Artifact, elf: Option<Elf>) -> Result<Kind> {
    let invalid = |message: &str, help: &str| {
        Err(Error::new(ErrorKind::InvalidArtifact, "load", message.to_owned()).with_help(help.to_owned()))
    };
    match (artifact.kind(), elf) {
        (ArtifactKind::Script, _) => Ok(Kind::Script),
        (ArtifactKind::Executable, Some(elf)) if elf.is_library => {
            invalid("a shared library is not an executable", "load it as a shared library")
        }
        (ArtifactKind::Executable, Some(elf)) => Ok(Kind::Executable(elf)),
        (ArtifactKind::SharedLibrary, Some(elf)) if !elf.is_library => {
            invalid("an executable is not a shared library", "build it with `crate-type = [\"cdylib\"]` or `-shared`")
        }
        (ArtifactKind::SharedLibrary, Some(elf)) => {
            if elf.text_relocations {
                return invalid("the library has relocations in its code", "build it position-independent (`-fPIC`)");
            }
            if elf.executable_stack {
                return invalid("the library asks for an executable stack", "link with `-z noexecstack`");
            }
            if !elf.run_path.is_empty() {
                return invalid("the library has a run path", "link without `-rpath`");
            }
            if let Some(needed) = elf.needed.iter().find(|needed| !PRELOADED.contains(&needed.as_str())) {
                return invalid(
                    &format!("the library needs `{needed}`, which is not in the jail"),
                    "link it statically into the plugin",
                );
            }
            match elf.variables.iter().find(|(name, _)| name == HOST_VARIABLE) {
                Some((_, 8)) => Ok(Kind::Library),
                Some((_, size)) => invalid(
                    &format!("`{HOST_VARIABLE}` has {size} bytes; a pointer has 8"),
                    "include `palisade.h`, which declares it",
                ),
                None => invalid(
                    &format!("the library does not export the variable `{HOST_VARIABLE}`"),
                    "include `palisade.h` and put `PALISADE_PLUGIN` in one source file",
                ),
            }
        }
        (kind, _) => {
            Err(Error::new(ErrorKind::Unsupported, "load", format!("backend `process` does not load {kind} artifacts"))
                .with_help("choose another backend (`palisade backends`)"))
        }
    }
}

/// The variable of a plugin that receives the table of host functions; its name carries the version.
pub(crate) const HOST_VARIABLE: &str = "palisade_host_v1";
