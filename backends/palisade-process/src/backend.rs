//! The sandbox: knows what this machine can enforce, and attacks a jail of its own before it serves anybody.

use std::sync::{Arc, OnceLock};

use palisade_core::{
    Abi, Artifact, ArtifactKind, BackendOptions, BackendRegistration, BoxFuture, Capabilities, Entry, Error, ErrorKind,
    ExportInfo, Finding, FindingStatus, Module, ModuleInfo, Result, Sandbox, on_thread,
};

use crate::capabilities::{NAME, ablated, capabilities};
use crate::control_groups::Version;
use crate::cpu_group::CpuGroups;
use crate::elf;
use crate::interpreter::Interpreters;
use crate::kind::{Kind, PROGRAM_ENTRY, kind_of};
use crate::landlock;
use crate::memory_group::MemoryGroups;
use crate::module::ProcessModule;
use crate::seccomp;
use crate::self_test::self_test;
use crate::shared::Shared;
use crate::sys;

/// Largest artifact, in bytes.
const ARTIFACT_BYTES_MAX: usize = 512 << 20;
/// Bit of `ablated` that lifts resource limits.
const LIMITS: u32 = 1 << 7;
palisade_core::inventory::submit! {
    BackendRegistration {
        name: NAME,
        summary: "native programs, scripts and shared libraries, in Linux namespaces with Landlock and seccomp",
        open: |options| Ok(Arc::new(ProcessSandbox::open(options)?)),
        probe,
    }
}

/// The process backend.
#[derive(Debug)]
pub struct ProcessSandbox(Arc<Shared>);

fn missing(message: &str, help: &str) -> Error {
    Error::new(ErrorKind::Unsupported, "open", message.to_owned())
        .with_context("backend", NAME)
        .with_help(help.to_owned())
}

impl ProcessSandbox {
    /// Opens the backend: finds out what the machine can do, and attacks a live jail.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] when the machine lacks a mechanism the backend cannot do without, or when an attack of
    /// the self-test worked.
    pub fn open(options: &BackendOptions) -> Result<ProcessSandbox> {
        if !seccomp::ARCH_SUPPORTED {
            return Err(missing("there is no system call table for this processor", "use x86-64, or a Wasm backend"));
        }
        let landlock_abi = sys::landlock_abi().ok_or_else(|| {
            missing(
                "the kernel has no Landlock",
                "boot with `lsm=landlock,...` (Linux 5.13 or later), or use a Wasm backend",
            )
        })?;
        Self::open_with(options, landlock_abi)
    }

    /// As [`ProcessSandbox::open`], on a kernel whose Landlock has this interface; the kernel's own may be newer.
    pub(crate) fn open_with(options: &BackendOptions, landlock_abi: u32) -> Result<ProcessSandbox> {
        let is_root = rustix::process::geteuid().is_root();
        let memory_groups = if ablated() & LIMITS == 0 { MemoryGroups::find() } else { None };
        let shared = Shared {
            capabilities: capabilities(options, memory_groups.is_some()),
            is_root,
            landlock_abi,
            ablated: ablated(),
            memory_groups,
            cpu_groups: CpuGroups::find(),
            interpreters: Interpreters::new(&options.interpreters),
            fuse: options.fuse.into(),
            instances: Arc::default(),
            parked: Arc::default(),
        };
        // With protections left out on purpose attacks work, and some would stop the test itself.
        let escapes = if shared.ablated == 0 { self_test(&shared)? } else { Vec::new() };
        if !escapes.is_empty() {
            return Err(missing(
                &format!("the self-test got out of its jail: {}", escapes.join(", ")),
                "please report this, with the output of `palisade doctor`",
            ));
        }
        Ok(ProcessSandbox(Arc::new(shared)))
    }
}

#[cfg(test)]
impl ProcessSandbox {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }
}

impl Sandbox for ProcessSandbox {
    fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    fn load(&self, artifact: Artifact) -> BoxFuture<'_, Result<Arc<dyn Module>>> {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let lost = || Error::new(ErrorKind::Internal, "load", "the thread that reads the artifact was lost");
            let reading = on_thread("palisade-load", move || read(shared, artifact)).map_err(|error| {
                Error::new(ErrorKind::Exhausted, "load", "no thread to read the artifact on").with_source(error)
            })?;
            let module = reading.await.map_err(|_| lost())??;
            Ok(Arc::new(module) as Arc<dyn Module>)
        })
    }
}

/// What `artifact` says about itself. Bounded, but not by a time: it belongs on a thread of its own.
fn read(shared: Arc<Shared>, artifact: Artifact) -> Result<ProcessModule> {
    if artifact.bytes().len() > ARTIFACT_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::InvalidArtifact,
            "load",
            format!("{} bytes are more than {ARTIFACT_BYTES_MAX}", artifact.bytes().len()),
        ));
    }
    let elf = match artifact.kind() {
        ArtifactKind::Executable | ArtifactKind::SharedLibrary => Some(elf::parse(artifact.bytes())?),
        _ => None,
    };
    let found = elf.clone().unwrap_or_default();
    let kind = kind_of(&artifact, elf)?;
    if matches!(kind, Kind::Script) {
        let mut module = ProcessModule::script(&shared, artifact);
        module.info.needs.push("an interpreter".to_owned());
        return Ok(module);
    }
    let is_library = matches!(kind, Kind::Library);
    let mut info = ModuleInfo::new(&artifact, if is_library { Abi::Reactor } else { Abi::Command });
    info.memory_initial_bytes = found.memory_bytes;
    info.has_start = found.has_start;
    let exports = found.functions.iter().map(|name| ExportInfo { name: name.clone(), ty: "function".into() });
    info.exports = exports.collect();
    let entries = if is_library { found.functions } else { vec![PROGRAM_ENTRY.to_owned()] };
    info.entries = entries.into_iter().map(|name| Entry { name, returns_code: true }).collect();
    info.needs = found.needed.iter().map(|name| format!("library {name}")).collect();
    Ok(ProcessModule { shared, artifact, info, kind, program: OnceLock::new() })
}

/// Finds out what this machine can do, by doing it.
fn probe(options: &BackendOptions) -> Vec<Finding> {
    let finding = |subject: &str, status, detail: String, advice: &str| Finding {
        subject: subject.to_owned(),
        status,
        detail,
        advice: advice.to_owned(),
    };
    let mut findings = Vec::new();
    findings.push(match sys::landlock_abi() {
        Some(abi) if abi >= landlock::ABI_WRITABLE => {
            finding("Landlock", FindingStatus::Ok, format!("interface version {abi}"), "")
        }
        Some(abi) => finding(
            "Landlock",
            FindingStatus::Degraded,
            format!("interface version {abi}; read-write grants are refused"),
            "use Linux 6.2 or later",
        ),
        None => finding("Landlock", FindingStatus::Missing, "not there".into(), "boot with `lsm=landlock,...`"),
    });
    findings.push(match MemoryGroups::find() {
        Some(groups) => {
            let version = if groups.version() == Version::One { 1 } else { 2 };
            finding(
                "memory control groups",
                FindingStatus::Ok,
                format!("version {version}; one was made and removed"),
                "",
            )
        }
        None => finding(
            "memory control groups",
            FindingStatus::Degraded,
            "none can be made here; memory is bounded by address space instead".into(),
            "delegate a group with the memory controller to this user (systemd: `Delegate=memory`), or start as root",
        ),
    });
    let who = if rustix::process::geteuid().is_root() {
        "started as root; guests run as a user of their own"
    } else {
        "started as an ordinary user; guests run as the same user, in a namespace of their own"
    };
    findings.push(match ProcessSandbox::open(options) {
        Ok(_) => finding("a jail", FindingStatus::Ok, format!("built, attacked from inside, and held; {who}"), ""),
        Err(error) => finding(
            "a jail",
            FindingStatus::Missing,
            match std::error::Error::source(&error) {
                Some(source) => format!("{error} ({source})"),
                None => error.to_string(),
            },
            "allow unprivileged user namespaces (`sysctl user.max_user_namespaces`, AppArmor), or start as root",
        ),
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::{Access, Call, Clocks, DirectoryGrant, HostFunctions, Outcome, Policy, PreparedExt, block_on};

    /// A kernel whose Landlock is older holds its guests by the other layers, in all that matters.
    #[test]
    fn whatever_the_interface_of_landlock_the_jail_holds() {
        let newest = sys::landlock_abi().unwrap();
        let kill = r#"kill -0 -- 0 2>/dev/null && echo group
            kill -0 -- -1 2>/dev/null && echo all
            kill -0 2 2>/dev/null && echo other
            [ -w /data ] && : > /data/new
            read line < /etc/passwd && echo passwd
            echo end"#;
        for abi in 1..=newest.max(7) {
            let sandbox = ProcessSandbox::open_with(&BackendOptions::new(), abi).unwrap_or_else(|error| {
                panic!("interface {abi}: {error}");
            });
            let data = tempfile::tempdir().unwrap();
            if sandbox.0.is_root {
                std::os::unix::fs::chown(data.path(), Some(4321), Some(4321)).unwrap();
            }
            let mut policy = Policy::default();
            policy.grants.clocks = Clocks::Fine;
            policy.grants.interpreter = Some("sh".into());
            policy.quota.disk_bytes = None;
            policy.grants.directories.push(DirectoryGrant::read_write(data.path(), "/data"));
            let module = block_on(sandbox.load(Artifact::new(ArtifactKind::Script, kill))).unwrap();
            let prepared = match module.prepare(policy.clone(), HostFunctions::new()) {
                Err(error) if abi < landlock::ABI_WRITABLE => {
                    assert_eq!(error.kind(), ErrorKind::Unsupported, "interface {abi}: {error}");
                    policy.grants.directories[0].access = Access::ReadOnly;
                    module.prepare(policy, HostFunctions::new()).unwrap()
                }
                prepared => prepared.unwrap(),
            };
            let execution = block_on(prepared.run(Call::new())).unwrap();
            let said = String::from_utf8_lossy(&execution.output).into_owned();
            assert_eq!((&execution.outcome, said.as_str()), (&Outcome::Completed, "end\n"), "interface {abi}");
            assert_eq!(data.path().join("new").exists(), abi >= landlock::ABI_WRITABLE, "interface {abi}");
        }
    }
}
