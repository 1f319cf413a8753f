//! The sandbox: knows what this machine can enforce, and attacks a jail of its own before it serves anybody.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use palisade_core::{
    Abi, Artifact, ArtifactKind, BackendOptions, BackendRegistration, BoxFuture, Capabilities, Clocks, Enforcement,
    Entry, Error, ErrorKind, ExportInfo, Finding, FindingStatus, GrantKind, Layer, LayerStatus, Module, ModuleInfo,
    Policy, Resource, Result, Sandbox, on_thread,
};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::cpu_group::CpuGroups;
use crate::elf;
use crate::interpreter::Interpreters;
use crate::landlock;
use crate::memory_group::{MemoryGroups, Version};
use crate::module::{Kind, PROGRAM_ENTRY, ProcessModule, kind_of};
use crate::seccomp::{self, Stage};
use crate::sys;
use crate::sys::protocol::{FRAME_HEADER, Mount, OUTPUT, PARKED, Plan, Program, SELF_TEST_SCRATCH};
use crate::zygote::Zygote;

/// Name under which the backend registers.
const NAME: &str = "process";
/// Instances alive at once, unless the options say otherwise.
const INSTANCES_DEFAULT: u32 = 256;
/// Largest artifact, in bytes.
const ARTIFACT_BYTES_MAX: usize = 512 << 20;
const MEMORY_BYTES_MAX: u64 = 1 << 40;
const STACK_BYTES_MIN: u64 = 128 << 10;
const STACK_BYTES_MAX: u64 = 1 << 30;
/// Bit of `ablated` that lifts resource limits.
const LIMITS: u32 = 1 << 7;
/// The self-test is a handful of system calls.
const SELF_TEST_TIME_MAX: Duration = Duration::from_secs(20);

palisade_core::register_backend! {
    BackendRegistration::new(NAME, |options| Ok(Arc::new(ProcessSandbox::open(options)?)))
        .summary("native programs, scripts and shared libraries, in Linux namespaces with Landlock and seccomp")
        .loads(&[ArtifactKind::Executable, ArtifactKind::Script, ArtifactKind::SharedLibrary])
        .expectations(include_str!("../CONFORMANCE.toml"))
        .probe(probe)
}

/// The process backend.
#[derive(Debug)]
pub struct ProcessSandbox(Arc<Shared>);

/// What modules, prepared modules and instances of one sandbox share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) capabilities: Capabilities,
    pub(crate) is_root: bool,
    pub(crate) landlock_abi: u32,
    pub(crate) ablated: u32,
    /// Where memory can be bounded by control groups.
    pub(crate) memory_groups: Option<Arc<MemoryGroups>>,
    /// Where CPU time can be counted over all processes of a guest.
    pub(crate) cpu_groups: Option<CpuGroups>,
    pub(crate) interpreters: Interpreters,
    pub(crate) fuse: palisade_filesystems::Fuse,
    instances: Arc<AtomicU64>,
    /// Instances that are parked ahead of need.
    pub(crate) parked: Arc<AtomicUsize>,
}

/// Counts an instance for as long as it lives.
#[derive(Debug)]
pub(crate) struct Slot(Arc<AtomicU64>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    /// Whether the CPU time of child processes counts.
    pub(crate) fn counts_cpu_time_of_children(&self) -> bool {
        let by_memory = self.memory_groups.as_ref().is_some_and(|groups| groups.version() == Version::Two);
        by_memory || self.cpu_groups.is_some()
    }

    /// Room for one more instance.
    pub(crate) fn slot(&self) -> Result<Slot> {
        let max = self.capabilities.instances_max;
        let taken = self.instances.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < max).then_some(n + 1));
        match taken {
            Ok(_) => Ok(Slot(Arc::clone(&self.instances))),
            Err(_) => {
                Err(Error::new(ErrorKind::Exhausted, "instantiate", format!("{max} instances are alive already"))
                    .with_help("drop one first, or open the backend with a larger `instances_max`"))
            }
        }
    }

    /// What stands between a guest under `policy` and the host.
    pub(crate) fn isolation(&self, policy: &Policy, kind: &Kind) -> Arc<[Layer]> {
        let layer = |name: &'static str, status, detail: Cow<'static, str>| Layer { name: name.into(), status, detail };
        let on = |name, detail: &'static str| layer(name, LayerStatus::Enforced, detail.into());
        let asked = |name, asked: bool, detail: &'static str| {
            layer(name, if asked { LayerStatus::Enforced } else { LayerStatus::NotAskedFor }, detail.into())
        };
        let mut layers = vec![
            on(
                "user namespace",
                if self.is_root { "a user of its own, which owns nothing" } else { "the host's own user" },
            ),
            on("mount namespace", "private read-only root; no /proc, /sys or host files"),
            on("pid namespace", "process 1 of its own"),
            on("network namespace", "no interface is up"),
            on("ipc namespace", ""),
            on("uts namespace", ""),
            on("cgroup namespace", ""),
            on("no_new_privs", ""),
            on("capabilities", "none, and none to be gained"),
            match self.memory_groups.as_ref().filter(|_| policy.quota.memory_bytes.is_some()) {
                Some(groups) => layer(
                    "memory control group",
                    LayerStatus::Enforced,
                    format!("version {}", if groups.version() == Version::One { 1 } else { 2 }).into(),
                ),
                None => layer(
                    "memory control group",
                    LayerStatus::NotAskedFor,
                    "memory is bounded by address space, and system calls that make other objects are refused".into(),
                ),
            },
            on("resource limits", ""),
            layer(
                "landlock",
                LayerStatus::Enforced,
                format!("interface version {}, all it handles", self.landlock_abi).into(),
            ),
            on(
                "seccomp",
                match kind {
                    Kind::Library => "two filters: while loading, and after",
                    Kind::Executable(_) | Kind::Script => "one filter",
                },
            ),
            asked("scratch directory", policy.grants.scratch.is_some(), "a file system in memory, of the size granted"),
            on("end with the host", "the kernel kills the guest when the host dies"),
            asked("time stamp counter trapped", matches!(policy.grants.clocks, Clocks::Coarse { .. }), ""),
        ];
        if self.ablated != 0 {
            layers.iter_mut().for_each(|layer| layer.detail = "in a build that leaves protections out".into());
        }
        layers.into()
    }
}

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

/// Protections to leave out. Only in builds made for it, which certify nothing.
fn ablated() -> u32 {
    #[cfg(palisade_ablation)]
    {
        // The numbers are the worker's (`worker/jail.rs`).
        const NAMES: [&str; 16] = [
            "private-root",
            "read-only",
            "network-namespace",
            "pid-namespace",
            "ipc-namespace",
            "uts-namespace",
            "capabilities",
            "limits",
            "landlock",
            "seccomp",
            "parent-death",
            "descriptors",
            "outer-user",
            "cgroup-namespace",
            "no-new-privileges",
            "not-dumpable",
        ];
        let asked = std::env::var("PALISADE_ABLATE").unwrap_or_default();
        let bit = |name: &str| NAMES.iter().position(|known| *known == name).map_or(0, |bit| 1 << bit);
        asked.split(',').map(bit).fold(0, |bits, bit| bits | bit)
    }
    #[cfg(not(palisade_ablation))]
    0
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

fn capabilities(options: &BackendOptions, memory_groups: bool) -> Capabilities {
    let mut quotas = BTreeMap::new();
    for resource in Resource::ALL.iter().copied() {
        let enforcement = match resource {
            Resource::Fuel => Enforcement::Unsupported,
            // Each process has an address space of its own: only a control group bounds their memory together.
            Resource::Processes if !memory_groups => Enforcement::AlwaysZero,
            _ => Enforcement::Enforced,
        };
        quotas.insert(resource, enforcement);
    }
    Capabilities {
        backend: NAME.to_owned(),
        engine: format!("Linux {}", rustix::system::uname().release().to_string_lossy()),
        artifacts: [ArtifactKind::Executable, ArtifactKind::Script, ArtifactKind::SharedLibrary].into(),
        abis: [Abi::Command, Abi::Reactor].into(),
        quotas,
        grants: [
            GrantKind::DirectoriesReadOnly,
            GrantKind::DirectoriesReadWrite,
            GrantKind::Environment,
            GrantKind::ClocksCoarse,
            GrantKind::ClocksFine,
            GrantKind::HostFunctions,
            GrantKind::Interpreter,
            GrantKind::Scratch,
            GrantKind::DirectoryOwner,
        ]
        .into_iter()
        .chain(memory_groups.then_some(GrantKind::ChildProcesses))
        .collect(),
        memory_bytes_max: MEMORY_BYTES_MAX,
        stack_bytes_min: STACK_BYTES_MIN,
        stack_bytes_max: STACK_BYTES_MAX,
        instances_max: options.instances_max.unwrap_or(INSTANCES_DEFAULT).into(),
        fuel_deterministic: false,
        caveats: [
            (!memory_groups).then_some(
                "memory is bounded by address space: a guest beyond its quota is refused more, and decides itself how to end",
            ),
        ]
        .into_iter()
        .flatten()
        .chain([
            "an executable reads the processor's own clock; it runs only where fine clocks are granted",
            "bytes written into a directory of the host cannot be bounded; read-write grants need `disk_bytes` lifted",
            "a scratch directory is bounded in whole pages, and what is in it counts as memory where control groups count",
            "the guest is process 1 of its namespace: signals it sends to itself without handling them are ignored",
            "caches and timing of the processor are shared with neighbours",
            "what a guest makes in a directory of a host that is an ordinary user is that user's own",
        ])
        .map(str::to_owned)
        .collect(),
    }
}

/// Attacks a live jail. Returns the attacks that worked.
fn self_test(shared: &Shared) -> Result<Vec<String>> {
    let mut policy = Policy::default();
    policy.grants.clocks = Clocks::Fine;
    let scratch = SELF_TEST_SCRATCH.to_owned();
    let plan = Plan {
        become_id: shared.is_root.then_some(64_999),
        inner_id: 1000,
        root_bytes: 1 << 20,
        mounts: vec![Mount::Scratch { target: scratch.clone(), bytes: 64 << 10 }],
        landlock_rules: vec![(scratch, landlock::directory(true, false, shared.landlock_abi))],
        limits: vec![(libc::RLIMIT_CPU, 2), (libc::RLIMIT_NOFILE, 16), (libc::RLIMIT_FSIZE, 0)],
        landlock: landlock::handled(shared.landlock_abi),
        filter: seccomp::filter(Stage::SelfTest, &policy),
        program: Program::SelfTest,
        ablated: shared.ablated,
        ..Plan::default()
    };
    let failed = |what: &str| {
        Error::new(ErrorKind::Unsupported, "open", format!("the self-test of the jail failed: {what}"))
            .with_context("backend", NAME)
            .with_help("`palisade doctor` shows what this machine allows")
    };
    let zygote = Zygote::start(&plan, None)?;
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(&error.to_string()));
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").map_err(|e| failed(&e.to_string()))?;
    let (request_theirs, _request) = pipe()?;
    let (reply, reply_theirs) = pipe()?;
    let null = null.as_fd();
    let created = zygote.create([null, null, null, request_theirs.as_fd(), reply_theirs.as_fd(), null, null])?;
    drop(reply_theirs);
    let mut said = Vec::new();
    let watchdog = std::time::Instant::now();
    let mut buffer = [0; 4096];
    loop {
        let mut ready = [rustix::event::PollFd::new(&reply, rustix::event::PollFlags::IN)];
        let left = SELF_TEST_TIME_MAX.saturating_sub(watchdog.elapsed());
        let timeout =
            rustix::event::Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut ready, Some(&timeout)) {
            Ok(0) => {
                sys::kill(&created.pidfd);
                let _ = sys::reap(created.pidfd.as_fd(), true);
                return Err(failed("it does not end"));
            }
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(failed(&error.to_string())),
            Ok(_) => {}
        }
        match rustix::io::read(&reply, &mut buffer) {
            Ok(0) => break,
            Ok(len) => said.extend(&buffer[..len]),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(&error.to_string())),
        }
    }
    let ended = sys::reap(created.pidfd.as_fd(), true).map_err(|error| failed(&error.to_string()))?;
    let parked = [PARKED, 0, 0, 0, 0];
    let Some(report) = said.strip_prefix(&parked) else {
        let text = said.get(FRAME_HEADER + 4..).unwrap_or_default();
        return Err(failed(&String::from_utf8_lossy(text)));
    };
    if report.first() != Some(&OUTPUT) {
        return Err(failed(&format!("it ended early: {:?}", ended.map(|ended| ended.by))));
    }
    let text = String::from_utf8_lossy(report.get(FRAME_HEADER..).unwrap_or_default()).into_owned();
    Ok(text.lines().map(str::to_owned).collect())
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
    use palisade_core::{Access, Call, DirectoryGrant, HostFunctions, Outcome, PreparedExt, block_on};

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
