//! A loaded artifact, and what policies it may be prepared for.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use palisade_core::{
    Abi, Access, Artifact, Clocks, Entry, Error, ErrorKind, HostFunctions, Module, ModuleInfo, Policy, Prepared, Result,
};

use crate::ask;
use crate::interpreter::Interpreter;
use crate::jail::Jail;
use crate::kind::{Kind, PROGRAM_ENTRY};
use crate::landlock;
use crate::plan::plan;
use crate::prepared::ProcessPrepared;
use crate::shared::Shared;
use crate::sys;
use crate::zygote::sealed;

#[derive(Debug)]
pub(crate) struct ProcessModule {
    pub(crate) shared: Arc<Shared>,
    pub(crate) artifact: Artifact,
    pub(crate) info: ModuleInfo,
    pub(crate) kind: Kind,
    /// The artifact as a file, made when it is first needed and shared by all jails.
    pub(crate) program: OnceLock<Arc<OwnedFd>>,
}

impl Module for ProcessModule {
    fn info(&self) -> &ModuleInfo {
        &self.info
    }

    fn prepare(&self, policy: Policy, host: HostFunctions) -> Result<Arc<dyn Prepared>> {
        self.shared.capabilities.admit(&policy)?;
        self.admit(&policy)?;
        let interpreter = match (&self.kind, &policy.grants.interpreter) {
            (Kind::Script, Some(name)) => Some(ask::find(&self.shared, name)?),
            _ => None,
        };
        let prepared = self.prepare_with(policy, host, interpreter)?;
        Ok(prepared)
    }
}

impl ProcessModule {
    /// A script as a module.
    pub(crate) fn script(shared: &Arc<Shared>, artifact: Artifact) -> ProcessModule {
        let mut info = ModuleInfo::new(&artifact, Abi::Command);
        info.entries = vec![Entry { name: PROGRAM_ENTRY.to_owned(), returns_code: true }];
        ProcessModule { shared: Arc::clone(shared), artifact, info, kind: Kind::Script, program: OnceLock::new() }
    }

    /// Prepares what was admitted, with the interpreter that was found.
    fn prepare_with(
        &self,
        policy: Policy,
        host: HostFunctions,
        interpreter: Option<Interpreter>,
    ) -> Result<Arc<ProcessPrepared>> {
        let functions = host.granted(&policy.grants)?;
        let io = |error: std::io::Error| {
            Error::new(ErrorKind::Io, "prepare", "no memory for the program").with_source(error)
        };
        let program = match self.program.get() {
            Some(program) => Arc::clone(program),
            None => {
                let made = Arc::new(sealed("palisade-program", self.artifact.bytes()).map_err(io)?);
                Arc::clone(self.program.get_or_init(|| made))
            }
        };
        let plan = plan(&self.shared, &self.artifact, &self.kind, &policy, interpreter)?;
        let is_library = matches!(self.kind, Kind::Library);
        let jail = Jail::build(Arc::clone(&self.shared), policy, is_library, plan, program)?;
        let entries = self.info.entries.iter().map(|entry| entry.name.clone());
        Ok(ProcessPrepared::new(jail, self.kind.clone(), functions, entries))
    }

    /// Refuses what this backend can do for some kinds of artifact, but not for this one.
    fn admit(&self, policy: &Policy) -> Result<()> {
        let unsupported = |message: &str, help: &str| {
            Err(Error::new(ErrorKind::Unsupported, "prepare", message.to_owned()).with_help(help.to_owned()))
        };
        let grants = &policy.grants;
        match (&self.kind, grants.interpreter.is_some()) {
            (Kind::Script, false) => {
                return unsupported("a script needs an interpreter", "grant one: `--interpreter python3`");
            }
            (Kind::Executable(_) | Kind::Library, true) => {
                return unsupported("an interpreter is granted to what is not a script", "remove this grant");
            }
            _ => {}
        }
        if !matches!(self.kind, Kind::Library)
            && let Clocks::Coarse { .. } = grants.clocks
        {
            return unsupported(
                "an executable reads the processor's own clock, which cannot be made coarse",
                "grant fine clocks (`--fine-clocks`, or `clocks = \"fine\"` under `[grants]`), or build a shared library",
            );
        }
        // What a library sees is the kernel's own coarse clock, which steps with its tick.
        if let Clocks::Coarse { step } = grants.clocks
            && step > sys::clock_tick()
        {
            return unsupported(
                "the clock cannot be made as coarse as this: it steps with the kernel's tick",
                &format!("ask for steps of at most {:?}", sys::clock_tick()),
            );
        }
        if grants.executable_memory && matches!(self.kind, Kind::Library) {
            return unsupported("a shared library cannot make code while it runs", "build an executable");
        }
        if grants.child_processes {
            if matches!(self.kind, Kind::Library) {
                return unsupported("a shared library cannot start child processes", "build an executable");
            }
            if policy.quota.memory_bytes.is_none() {
                return unsupported("child processes need a bound on memory", "set `memory_bytes`");
            }
            if policy.quota.cpu_time.is_some() && !self.shared.counts_cpu_time_of_children() {
                return unsupported(
                    "CPU time cannot be bounded over child processes, for lack of control groups that count it",
                    "lift the bound on CPU time; the wall time holds for all of them",
                );
            }
            let (processes, threads) = (policy.quota.processes, policy.quota.threads);
            if processes != Some(0) && threads != Some(0) && processes.is_some() != threads.is_some() {
                return unsupported(
                    "the kernel counts threads and processes together: it cannot bound one of them and not the other",
                    "bound both (`--processes`, `--threads`), or lift both bounds",
                );
            }
        }
        let writable = grants.directories.iter().any(|directory| directory.access == Access::ReadWrite);
        if writable && policy.quota.disk_bytes.is_some() {
            return unsupported(
                "how much a process writes into a directory of the host cannot be bounded on this machine",
                "grant a scratch directory instead, lift the bound (`--disk unlimited`), or choose a Wasm backend",
            );
        }
        if grants.scratch.is_some() && policy.quota.disk_bytes.is_none() {
            return unsupported("a scratch directory lies in memory and needs a bound", "set `disk_bytes`");
        }
        if (writable || grants.scratch.is_some()) && self.shared.landlock_abi < landlock::ABI_WRITABLE {
            return unsupported(
                "this kernel's Landlock does not cover truncating files, which a writable directory needs",
                "use Linux 6.2 or later",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProcessSandbox;
    use palisade_core::{ArtifactKind, BackendOptions, Sandbox, block_on};

    fn prepared(policy: Policy) -> Result<Arc<dyn Prepared>> {
        let sandbox = ProcessSandbox::open(&BackendOptions::new())?;
        let own = std::fs::read("/bin/true").unwrap();
        block_on(sandbox.load(Artifact::new(ArtifactKind::Executable, own)))?.prepare(policy, HostFunctions::new())
    }

    fn fine() -> Policy {
        let mut policy = Policy::default();
        policy.grants.clocks = Clocks::Fine;
        policy
    }

    #[test]
    fn guest_paths_that_leave_or_hide_are_refused() {
        let here = std::env::temp_dir();
        let refused = |guests: &[&str]| {
            let mut policy = fine();
            policy.grants.directories =
                guests.iter().map(|guest| palisade_core::DirectoryGrant::read_only(&here, *guest)).collect();
            let error = prepared(policy).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidPolicy, "{guests:?}: {error}");
        };
        refused(&["/"]);
        refused(&["."]);
        refused(&["/.."]);
        refused(&["/a/../../b"]);
        refused(&["/plugin"]);
        refused(&["/lib"]);
        refused(&["/a", "/a/b"]);
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let mut policy = fine();
        policy.grants.directories = vec![palisade_core::DirectoryGrant::read_only("/no/such/directory", "/x")];
        let error = prepared(policy).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("/no/such/directory"), "{error}");
    }
}
