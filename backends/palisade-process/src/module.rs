//! A loaded artifact, and one prepared for a policy: the plan of its jail, and the zygote that follows it.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use palisade_core::{
    Abi, Access, Artifact, ArtifactKind, BoxFuture, Call, Clocks, DirectoryGrant, Entry, Error, ErrorKind,
    HostFunctions, Instance, Layer, Module, ModuleInfo, Policy, Prepared, Result,
};

use palisade_filesystems::Fuse;

use crate::backend::Shared;
use crate::elf::Elf;
use crate::instance::{Process, ProcessInstance};
use crate::interpreter::Interpreter;
use crate::landlock;
use crate::libraries::{self, Files, Trust};
use crate::pool::{Pool, fill_later};
use crate::seccomp::{self, Stage};
use crate::special;
use crate::sys;
use crate::sys::protocol::{FD_ANSWERS, INSTANCE_FDS, Mount, Plan, Program};
use crate::zygote::{Created, Zygote, sealed};

/// User and group a guest sees itself as.
const INNER_ID: u32 = 1000;
/// User a jail runs as when the host runs as root. Unlike `nobody` it owns nothing anywhere.
const OUTER_ID: u32 = 64_999;
/// Where the program lies in its jail.
const PROGRAM_DIRECTORY: &str = "/plugin";
/// Devices every program may use; they hold nothing and reach nobody.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
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
            (Kind::Script, Some(name)) => Some(self.shared.interpreters.find(&self.shared, name)?),
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
    pub(crate) fn prepare_with(
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
        let null = File::options().read(true).write(true).open("/dev/null").map_err(io)?;
        let plan = self.plan(&policy, interpreter)?;
        let zygote = Arc::new(Zygote::start(&plan, Some(&program))?);
        Ok(Arc::new_cyclic(|this| ProcessPrepared {
            this: this.clone(),
            isolation: self.shared.isolation(&policy, &self.kind),
            shared: Arc::clone(&self.shared),
            kind: self.kind.clone(),
            entries: self.info.entries.iter().map(|entry| entry.name.clone()).collect(),
            policy,
            functions,
            plan,
            program,
            null: null.into(),
            pool: Pool::new(Arc::clone(&self.shared.parked)),
            zygote: Mutex::new(zygote),
        }))
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
                "grant fine clocks (`--clock fine`), or build a shared library",
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
            if processes.is_some_and(|processes| processes > 0) && threads != Some(0) {
                return unsupported(
                    "the kernel counts threads and processes together",
                    "grant child processes without threads, or lift the bound on both",
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

    /// User and group of the host in whose place the guest's own stand in a granted directory.
    ///
    /// Where the host is an ordinary user, so is the guest, and everybody else's files stay theirs. Where it is root, what
    /// the guest makes is not root's because nobody thought of it: a program that belongs to root is one bit away from
    /// being root.
    fn owners(&self, grant: &DirectoryGrant, found: &std::fs::Metadata) -> Result<Option<(u32, u32)>> {
        let refused = |kind, message: String, help: String| {
            Err(Error::new(kind, "prepare", message).with_context("field", "grants.directories").with_help(help))
        };
        let place = grant.host.display();
        if !self.shared.is_root {
            let own = rustix::process::geteuid().as_raw();
            return match grant.owner {
                Some(owner) if owner != own => refused(
                    ErrorKind::Unsupported,
                    format!("user {own} cannot make files in {place} that belong to user {owner}"),
                    "leave the owner out, or start as root".into(),
                ),
                _ => Ok(None),
            };
        }
        let writable = grant.access == Access::ReadWrite;
        match grant.owner {
            None if writable && found.uid() == 0 => refused(
                ErrorKind::InvalidPolicy,
                format!("the directory {place} belongs to root, and so would all that the guest makes in it"),
                format!(
                    "give the directory to another user (`chown {OUTER_ID} {place}`), or name the owner of what the guest \
                     makes (`owner = 0` in a policy, `--dir {place}::{}:rw:0`)",
                    grant.guest
                ),
            ),
            None => {
                // Root's group stays out of it as well. Nothing is made in what can only be read.
                let group = if writable && found.gid() == 0 { OUTER_ID } else { found.gid() };
                Ok(Some((found.uid(), group)))
            }
            Some(owner) => Ok(Some((owner, if owner != 0 && found.gid() == 0 { OUTER_ID } else { found.gid() }))),
        }
    }

    fn plan(&self, policy: &Policy, interpreter: Option<Interpreter>) -> Result<Plan> {
        let shared = &self.shared;
        let mut files = Files::new();
        let mut mounts = Vec::new();
        let mut rules: Vec<(String, u64)> = Vec::new();
        let mut directories: Vec<(PathBuf, PathBuf)> = Vec::new();
        let name = program_name(self.artifact.name());
        let path = format!("{PROGRAM_DIRECTORY}/{name}");
        // A program that can start others may start itself; else nobody needs it as a file of its own in the jail.
        let placed = !matches!(self.kind, Kind::Executable(_)) || policy.grants.child_processes;
        let program = match &self.kind {
            Kind::Executable(elf) => {
                libraries::add(&mut files, elf, Path::new(&path), Trust::Guest)?;
                let before = vec![self.artifact.name().to_owned()];
                Program::Execute { path: if placed { path.clone() } else { String::new() }, before }
            }
            Kind::Script => {
                let Some(Interpreter { path: interpreter, files: needed, directories: library }) = interpreter else {
                    return Err(Error::new(ErrorKind::Internal, "prepare", "a script without its interpreter"));
                };
                files = needed;
                directories.extend(library.into_iter().map(|path| (path.clone(), path)));
                let interpreter = text(&interpreter)?;
                Program::Execute { path: interpreter.clone(), before: vec![interpreter, path.clone()] }
            }
            Kind::Library => Program::Library { path: path.clone() },
        };
        for (shown, real) in &files {
            mounts.push(Mount::File { source: text(real)?, target: text(shown)?, device: false });
            rules.push((text(shown)?, landlock::FILE));
        }
        if !matches!(self.kind, Kind::Library) {
            for device in DEVICES {
                mounts.push(Mount::File { source: device.into(), target: device.into(), device: true });
                rules.push((device.into(), landlock::DEVICE));
            }
        }
        let mut root_bytes = 1 << 20;
        if placed {
            root_bytes += (self.artifact.bytes().len() as u64).next_multiple_of(4096);
            mounts.push(Mount::Program { target: path.clone() });
            rules.push((path, landlock::FILE));
        }
        for (host, guest) in &directories {
            mounts.push(directory(host, text(guest)?, false, true, Fuse::Granted, |_| Ok(None))?);
            rules.push((text(guest)?, landlock::directory(false, true, shared.landlock_abi)));
        }
        for grant in &policy.grants.directories {
            let guest = guest_path(&grant.guest)?;
            let writable = grant.access == Access::ReadWrite;
            mounts.push(directory(&grant.host, guest.clone(), writable, false, shared.fuse, |found| {
                self.owners(grant, found)
            })?);
            rules.push((guest, landlock::directory(writable, false, shared.landlock_abi)));
        }
        if let Some(scratch) = &policy.grants.scratch {
            let target = guest_path(scratch)?;
            rules.push((target.clone(), landlock::directory(true, false, shared.landlock_abi)));
            mounts.push(Mount::Scratch { target, bytes: policy.quota.disk_bytes.unwrap_or(0) });
        }
        refuse_overlaps(&mounts)?;
        let is_library = matches!(self.kind, Kind::Library);
        let host_calls = !is_library && !policy.grants.host_functions.is_empty();
        Ok(Plan {
            become_id: shared.is_root.then_some(OUTER_ID),
            inner_id: INNER_ID,
            root_bytes,
            mounts,
            preload: if is_library { PRELOADED.map(str::to_owned).to_vec() } else { Vec::new() },
            program,
            environment: policy.grants.environment.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            limits: limits(policy, is_library, shared.memory_groups.is_some(), host_calls),
            landlock: landlock::handled(shared.landlock_abi),
            landlock_rules: rules,
            filter: seccomp::filter(if is_library { Stage::LibraryLoading } else { Stage::Executable }, policy),
            filter_locked: if is_library { seccomp::filter(Stage::LibraryLocked, policy) } else { Vec::new() },
            trap_tsc: matches!(policy.grants.clocks, Clocks::Coarse { .. }),
            own_user_namespace: tasks(policy).is_some(),
            host_calls,
            ablated: shared.ablated,
        })
    }
}

/// The last part of an artifact's name, as a file name.
fn program_name(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or_default();
    let safe: String = last.chars().filter(|c| c.is_ascii_alphanumeric() || "._-+".contains(*c)).take(200).collect();
    if safe.trim_matches('.').is_empty() { "plugin".to_owned() } else { safe }
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::new(ErrorKind::InvalidPolicy, "prepare", format!("the path {} is not UTF-8", path.display()))
    })
}

/// The path a guest sees a directory at.
fn guest_path(guest: &str) -> Result<String> {
    let invalid = |why: &str| {
        Err(Error::new(ErrorKind::InvalidPolicy, "prepare", format!("the guest path `{guest}` {why}"))
            .with_context("field", "grants.directories")
            .with_help("choose an absolute path such as `/data`"))
    };
    let path = Path::new("/").join(guest);
    let mut parts = path.components();
    if parts.next() != Some(Component::RootDir) || parts.any(|part| !matches!(part, Component::Normal(_))) {
        return invalid("leads upwards");
    }
    let path: PathBuf = path.components().collect();
    if path == Path::new("/") {
        return invalid("is the root, which holds the program itself");
    }
    if path.starts_with(PROGRAM_DIRECTORY) {
        return invalid("is where a program lies");
    }
    text(&path)
}

/// A directory to show. It is opened and looked at now; the zygote checks that it still is the same.
fn directory(
    host: &Path,
    guest: String,
    writable: bool,
    executable: bool,
    fuse: Fuse,
    owners: impl FnOnce(&std::fs::Metadata) -> Result<Option<(u32, u32)>>,
) -> Result<Mount> {
    let failed = |error: std::io::Error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => ErrorKind::NotFound,
            _ => ErrorKind::Io,
        };
        Error::new(kind, "prepare", format!("the granted directory {} cannot be opened", host.display()))
            .with_source(error)
    };
    let real = host.canonicalize().map_err(failed)?;
    let found = real.metadata().map_err(failed)?;
    if !found.is_dir() {
        return Err(failed(std::io::ErrorKind::NotADirectory.into()));
    }
    special::refuse(&real, fuse).map_err(|error| error.with_context("field", "grants.directories"))?;
    Ok(Mount::Directory {
        source: text(&real)?,
        target: guest,
        writable,
        executable,
        device: found.dev(),
        inode: found.ino(),
        owners: owners(&found)?,
    })
}

/// Nothing may be shown inside a directory of the host: the place to show it at would have to be made there.
fn refuse_overlaps(mounts: &[Mount]) -> Result<()> {
    let target = |mount: &Mount| match mount {
        Mount::File { target, .. } | Mount::Directory { target, .. } | Mount::Program { target } => target.clone(),
        Mount::Scratch { target, .. } => target.clone(),
        Mount::Link { path, .. } => path.clone(),
    };
    for outer in mounts.iter().filter(|mount| matches!(mount, Mount::Directory { .. } | Mount::Scratch { .. })) {
        let outer_target = target(outer);
        for inner in mounts.iter().filter(|inner| *inner != outer) {
            let inner_target = target(inner);
            if Path::new(&inner_target).starts_with(&outer_target) {
                return Err(Error::new(
                    ErrorKind::InvalidPolicy,
                    "prepare",
                    format!("the directory shown at `{outer_target}` would hide or hold `{inner_target}`"),
                )
                .with_context("field", "grants.directories")
                .with_help("show it under another name"));
            }
        }
    }
    Ok(())
}

/// Most threads or child processes besides the first, where there may be some and they are bounded. They are counted in a
/// user namespace of the instance's own, where nobody else counts.
fn tasks(policy: &Policy) -> Option<u64> {
    let processes = policy.quota.processes.filter(|_| policy.grants.child_processes);
    let granted = if policy.grants.child_processes { processes } else { policy.quota.threads };
    granted.filter(|tasks| *tasks > 0)
}

/// Resource limits of an instance.
fn limits(policy: &Policy, is_library: bool, memory_groups: bool, host_calls: bool) -> Vec<(u32, u64)> {
    let quota = &policy.quota;
    let seconds = |time: Duration| time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0));
    // A backstop for when the host cannot look: the host is stopped or dead. Not for a library: the kernel counts over the
    // life of a process, and a quota of time is for one call of an instance that may be kept.
    let cpu = match (quota.cpu_time, quota.wall_time) {
        _ if is_library => u64::MAX,
        (Some(cpu), _) => seconds(cpu).saturating_add(1),
        (None, Some(wall)) if quota.threads == Some(0) => seconds(wall).saturating_add(2),
        _ => u64::MAX,
    };
    // Writable directories of the host are granted without a bound only, and a scratch directory has its size.
    let writable = policy.grants.directories.iter().any(|directory| directory.access == Access::ReadWrite)
        || policy.grants.scratch.is_some();
    // A control group counts what is used, not what is reserved.
    let address_space = quota.memory_bytes.filter(|_| !memory_groups).unwrap_or(u64::MAX);
    let mut limits = vec![
        (libc::RLIMIT_CPU, cpu),
        (libc::RLIMIT_AS, address_space),
        (libc::RLIMIT_DATA, address_space),
        (libc::RLIMIT_STACK, quota.stack_bytes.unwrap_or(8 << 20)),
        (libc::RLIMIT_FSIZE, if writable { u64::MAX } else { 0 }),
        // One byte: with zero, a kernel set up to pipe core dumps to a program would still do so.
        (libc::RLIMIT_CORE, 1),
        (libc::RLIMIT_MEMLOCK, 0),
        (libc::RLIMIT_MSGQUEUE, 0),
        (libc::RLIMIT_SIGPENDING, 64),
        (libc::RLIMIT_RTPRIO, 0),
        (libc::RLIMIT_NICE, 0),
    ];
    if let Some(tasks) = tasks(policy) {
        limits.push((libc::RLIMIT_NPROC, tasks.saturating_add(1)));
    }
    if let Some(files) = quota.open_files {
        // The kernel bounds the numbers of descriptors, and those of host calls lie among them.
        let own = 3 + if host_calls && files > u64::from(FD_ANSWERS.unsigned_abs()) - 3 { 2 } else { 0 };
        limits.push((libc::RLIMIT_NOFILE, files.saturating_add(own)));
    }
    limits
}

/// A module with its policy, and the zygote that makes its instances.
pub(crate) struct ProcessPrepared {
    this: std::sync::Weak<ProcessPrepared>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) kind: Kind,
    pub(crate) policy: Policy,
    pub(crate) functions: HostFunctions,
    pub(crate) isolation: Arc<[Layer]>,
    pub(crate) null: OwnedFd,
    entries: BTreeSet<String>,
    plan: Plan,
    program: Arc<OwnedFd>,
    /// Before the zygote, so that its processes end first.
    pub(crate) pool: Pool,
    zygote: Mutex<Arc<Zygote>>,
}

impl fmt::Debug for ProcessPrepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessPrepared").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl ProcessPrepared {
    /// Has the zygote make an instance; a zygote that died is replaced, once.
    pub(crate) fn create(&self, fds: [BorrowedFd<'_>; INSTANCE_FDS]) -> Result<Created> {
        let current = || Arc::clone(&self.zygote.lock().unwrap_or_else(PoisonError::into_inner));
        let zygote = current();
        match zygote.create(fds) {
            Err(error) if error.kind() == ErrorKind::Io => {
                let mut slot = self.zygote.lock().unwrap_or_else(PoisonError::into_inner);
                if Arc::ptr_eq(&slot, &zygote) {
                    *slot = Arc::new(Zygote::start(&self.plan, Some(&self.program))?);
                }
                let fresh = Arc::clone(&slot);
                drop(slot);
                fresh.create(fds)
            }
            result => result,
        }
    }

    /// A process for one instance: one that was made ahead, if there is one.
    pub(crate) fn process(&self) -> Result<Process> {
        let parked = self.pool.take();
        if self.pool.used_before() {
            fill_later(self.this.clone());
        }
        parked.map_or_else(|| Process::create(self), Ok)
    }

    /// Whether `entry` can be called.
    pub(crate) fn check_entry(&self, entry: &str) -> Result<()> {
        if self.entries.contains(entry) {
            return Ok(());
        }
        let known = self.entries.iter().take(20).map(String::as_str).collect::<Vec<_>>().join(", ");
        Err(Error::new(ErrorKind::NotFound, "call", format!("there is no entry `{entry}`"))
            .with_context("entry", entry)
            .with_help(match (&self.kind, known.is_empty()) {
                (Kind::Library, true) => "the library exports no function".to_owned(),
                _ => format!("entries: {known}"),
            }))
    }

    #[cfg(test)]
    pub(crate) fn zygote_pid(&self) -> u32 {
        self.zygote.lock().unwrap_or_else(PoisonError::into_inner).pid()
    }
}

impl Prepared for ProcessPrepared {
    fn policy(&self) -> &Policy {
        &self.policy
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Instance>>> {
        Box::pin(async move {
            let slot = self.shared.slot()?;
            let Some(this) = self.this.upgrade() else {
                return Err(Error::new(ErrorKind::Internal, "instantiate", "the prepared module is being dropped"));
            };
            let process = self.process()?;
            Ok(Box::new(ProcessInstance::new(this, process, slot)) as Box<dyn Instance>)
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProcessSandbox;
    use palisade_core::{BackendOptions, ErrorKind, Outcome, PreparedExt, Sandbox, block_on};
    use std::os::fd::AsFd;

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

    /// `/bin/true`, prepared.
    fn prepared_program() -> Arc<ProcessPrepared> {
        let sandbox = ProcessSandbox::open(&BackendOptions::new()).unwrap();
        let own = Artifact::new(ArtifactKind::Executable, std::fs::read("/bin/true").unwrap());
        let elf = crate::elf::parse(own.bytes()).unwrap();
        let info = ModuleInfo::new(&own, palisade_core::Abi::Command);
        let shared = Arc::clone(sandbox.shared());
        let module =
            ProcessModule { shared, artifact: own, info, kind: Kind::Executable(elf), program: OnceLock::new() };
        let plan = module.plan(&fine(), None).unwrap();
        let program = Arc::new(sealed("test", module.artifact.bytes()).unwrap());
        let zygote = Zygote::start(&plan, Some(&program)).unwrap();
        Arc::new_cyclic(|this| ProcessPrepared {
            this: this.clone(),
            shared: Arc::clone(&module.shared),
            kind: module.kind.clone(),
            policy: fine(),
            functions: HostFunctions::new(),
            isolation: Arc::default(),
            null: File::open("/dev/null").unwrap().into(),
            entries: [PROGRAM_ENTRY.to_owned()].into(),
            plan: plan.clone(),
            program,
            pool: Pool::new(Arc::default()),
            zygote: Mutex::new(Arc::new(zygote)),
        })
    }

    #[test]
    fn an_instance_is_parked_ahead_and_used_once_unless_it_died() {
        let prepared = prepared_program();
        assert!(prepared.pool.take().is_none());
        prepared.pool.fill(&prepared);
        assert_eq!(prepared.pool.pids().len(), 2);
        let [stays, dies] = prepared.pool.pids()[..] else { unreachable!() };
        let pid = rustix::process::Pid::from_raw(dies).unwrap();
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        rustix::event::poll(&mut [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)], None).unwrap();
        assert_eq!(prepared.pool.take().map(|process| process.pid), Some(stays));
        assert!(prepared.pool.take().is_none());
        assert_eq!(block_on(prepared.run(Call::new())).unwrap().outcome, Outcome::Completed);
    }

    #[test]
    fn a_zygote_that_was_killed_is_replaced() {
        let prepared = prepared_program();
        let before = prepared.zygote_pid();
        assert_eq!(block_on(prepared.run(Call::new())).unwrap().outcome, Outcome::Completed);
        let pid = rustix::process::Pid::from_raw(before.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        // Some may still be waiting that it made.
        for _ in 0..5 {
            assert_eq!(block_on(prepared.run(Call::new())).unwrap().outcome, Outcome::Completed);
        }
        assert_ne!(prepared.zygote_pid(), before);
    }

    #[test]
    fn an_answer_that_comes_late_is_nobodys() {
        use rustix::process::{Pid, Signal, kill_process};
        let prepared = prepared_program();
        let zygote = Arc::clone(&prepared.zygote.lock().unwrap());
        let pid = Pid::from_raw(zygote.pid().cast_signed()).unwrap();
        zygote.answer_within(Duration::from_millis(20));
        kill_process(pid, Signal::STOP).unwrap();
        let null = prepared.null.as_fd();
        let create = || zygote.create([null; INSTANCE_FDS]).map(|created| created.pid);
        assert_eq!(create().unwrap_err().kind(), ErrorKind::Io);
        // Going on it would answer the question nobody waits for any more, and the next one's asker would take that.
        let _ = kill_process(pid, Signal::CONT);
        for _ in 0..10 {
            assert_eq!(create().unwrap_err().kind(), ErrorKind::Io);
        }
        assert_eq!(block_on(prepared.run(Call::new())).unwrap().outcome, Outcome::Completed);
    }

    #[test]
    fn guest_paths_stay_inside_and_hide_nothing() {
        for (guest, shown) in [("/data", "/data"), ("data", "/data"), ("/a/b/", "/a/b"), ("./x", "/x")] {
            assert_eq!(guest_path(guest).unwrap(), shown);
        }
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

    #[test]
    fn the_kernels_own_clock_bounds_what_has_one_call_only() {
        let mut policy = fine();
        policy.quota.cpu_time = Some(Duration::from_millis(1500));
        let cpu =
            |is_library| limits(&policy, is_library, true, false).into_iter().find(|limit| limit.0 == libc::RLIMIT_CPU);
        assert_eq!(cpu(false), Some((libc::RLIMIT_CPU, 3)));
        assert_eq!(cpu(true), Some((libc::RLIMIT_CPU, u64::MAX)));
    }

    #[test]
    fn names_of_artifacts_make_harmless_file_names() {
        assert_eq!(program_name("a/b/tool.py"), "tool.py");
        assert_eq!(program_name("../.."), "plugin");
        assert_eq!(program_name("a b\n/"), "plugin");
        assert_eq!(program_name("x y"), "xy");
    }
}
