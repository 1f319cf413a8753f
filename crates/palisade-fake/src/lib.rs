//! The in-memory reference backend of Palisade, breakable on purpose.
//!
//! It runs no artifact: it interprets the probes of the conformance suite, which it knows by their names, and enforces
//! policies the plain way. With a [`Fault`] it does one thing wrong, so that the suite can show that a check notices.
//!
//! ```
//! use palisade_core::Sandbox;
//! use palisade_fake::{Fake, Fault};
//!
//! assert_eq!(Fake::new(Some(Fault::IgnoresFuel)).capabilities().backend, "fake");
//! ```
//!
//! [`FakeScheduler`] and [`FakeSink`] are the same for the other two traits of the contract.
#![forbid(unsafe_code)]

mod alarm;
mod fault;
mod files;
mod machine;
mod metrics;
mod native;
mod scheduler;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use palisade_core::{
    Abi, Artifact, ArtifactKind, BoxFuture, Call, Capabilities, Enforcement, Entry, Error, ErrorKind, Execution,
    GrantKind, HostFunctions, Instance, Invocation, Module, ModuleInfo, Outcome, Policy, Prepared, Resource, Result,
    Sandbox, Usage,
};

pub use fault::{Fault, Universal};
pub use metrics::{FakeSink, SinkFault};
pub use scheduler::{FakeScheduler, SchedulerFault};

use fault::Wrong;
use machine::Machine;

/// The reference backend.
#[derive(Debug, Clone)]
pub struct Fake(Arc<Shared>);

/// What everything of one backend shares. Only faults use it.
#[derive(Debug)]
struct Shared {
    wrong: Wrong,
    capabilities: Capabilities,
    /// What is declared instead, once a guest trapped, when the fault asks for it.
    changed: std::sync::OnceLock<Capabilities>,
    leaks: Mutex<Leaks>,
    /// Alive right now.
    instances: AtomicU64,
}

/// What faults carry from one guest to another.
#[derive(Default)]
struct Leaks {
    calls: u64,
    files: Vec<File>,
    invocations: Vec<Invocation>,
    arguments: Vec<String>,
    traces: Traces,
    policy: Option<Policy>,
    exhausted: Option<Outcome>,
    /// What somebody wrote into a scratch directory.
    scratch: Option<String>,
    /// Calls that run.
    running: u64,
    /// Of these, the ones that somebody else's end is to end.
    disturbed: u64,
    tokens: Vec<palisade_core::CancelToken>,
}

impl std::fmt::Debug for Leaks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leaks").field("calls", &self.calls).finish_non_exhaustive()
    }
}

/// What the probe `traces` leaves in an instance.
#[derive(Debug, Clone, Default)]
struct Traces {
    memory: Vec<u8>,
    global: bool,
    table: bool,
}

impl Shared {
    fn has(&self, fault: Fault) -> bool {
        self.wrong.has(fault)
    }

    // Every statement leaves the leaks whole.
    fn leaks(&self) -> MutexGuard<'_, Leaks> {
        self.leaks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fake {
    /// The correct backend, or one with a fault.
    pub fn new(fault: Option<Fault>) -> Fake {
        Fake::with(fault.map_or(Wrong::Nothing, Wrong::One))
    }

    /// A backend that is wrong as a whole.
    pub fn universal(universal: Universal) -> Fake {
        Fake::with(Wrong::All(universal))
    }

    fn with(wrong: Wrong) -> Fake {
        let liar = wrong.is(Universal::Liar);
        let quotas = Resource::ALL.iter().copied().map(|resource| match resource {
            Resource::Processes | Resource::Threads if !liar => (resource, Enforcement::AlwaysZero),
            _ => (resource, Enforcement::Enforced),
        });
        let grants = GrantKind::ALL
            .into_iter()
            .filter(|kind| liar || !matches!(kind, GrantKind::Network | GrantKind::ChildProcesses));
        let capabilities = Capabilities {
            backend: "fake".to_owned(),
            engine: "none".to_owned(),
            artifacts: [ArtifactKind::Wasm, ArtifactKind::Executable, ArtifactKind::Script].into(),
            abis: [Abi::Command, Abi::Reactor].into(),
            quotas: BTreeMap::from(quotas),
            grants: grants.collect(),
            memory_bytes_max: 1 << 32,
            stack_bytes_min: 1 << 14,
            stack_bytes_max: 8 << 20,
            instances_max: 1000,
            fuel_deterministic: true,
            caveats: Vec::new(),
        };
        Fake(Arc::new(Shared {
            wrong,
            capabilities,
            changed: std::sync::OnceLock::new(),
            leaks: Mutex::default(),
            instances: AtomicU64::new(0),
        }))
    }
}

impl Sandbox for Fake {
    fn capabilities(&self) -> &Capabilities {
        self.0.changed.get().unwrap_or(&self.0.capabilities)
    }

    fn load(&self, artifact: Artifact) -> BoxFuture<'_, Result<Arc<dyn Module>>> {
        Box::pin(async move {
            let refused = |kind, message: &str| Err(Error::new(kind, "load", message.to_owned()));
            if self.0.wrong.is(Universal::LoadsNothing) {
                return refused(ErrorKind::InvalidArtifact, "this backend loads nothing");
            }
            let well_formed = match artifact.kind() {
                ArtifactKind::Wasm => {
                    let deep = nesting(artifact.bytes()) > NESTING_MAX && !self.0.has(Fault::AcceptsDeepNesting);
                    is_well_formed(artifact.bytes()) && !deep
                }
                ArtifactKind::Executable => artifact.bytes().starts_with(b"\x7fELF"),
                ArtifactKind::Script => true,
                _ => return refused(ErrorKind::Unsupported, "native libraries are not loaded"),
            };
            if !well_formed && !self.0.has(Fault::AcceptsMalformed) {
                return refused(ErrorKind::InvalidArtifact, "the artifact is not what it claims to be");
            }
            if artifact.name() == "bomb" && self.0.has(Fault::StartsWhenLoaded) {
                return refused(ErrorKind::Internal, "it trapped");
            }
            let mut info = ModuleInfo::new(&artifact, Abi::Reactor);
            info.entries = vec![Entry { name: entry(artifact.name()).to_owned(), returns_code: false }];
            info.has_start = artifact.name() == "start";
            let bytes = self.0.has(Fault::NeedsArtifact).then(|| artifact.bytes().clone());
            Ok(Arc::new(FakeModule { shared: Arc::clone(&self.0), info, bytes }) as Arc<dyn Module>)
        })
    }
}

/// The entry of the probe `verb`.
fn entry(verb: &str) -> &'static str {
    if verb == "reactor" { "run" } else { Call::DEFAULT_ENTRY }
}

const NESTING_MAX: usize = 1000;

/// How many blocks without a type begin one right after another.
fn nesting(bytes: &[u8]) -> usize {
    let (mut longest, mut at, mut run) = (0, 0, 0);
    while at < bytes.len() {
        if bytes[at..].starts_with(&[0x02, 0x40]) {
            (run, at) = (run + 1, at + 2);
        } else {
            (run, at) = (0, at + 1);
        }
        longest = longest.max(run);
    }
    longest
}

/// Whether `bytes` are the header of a module and whole sections.
fn is_well_formed(bytes: &[u8]) -> bool {
    let Some(mut rest) = bytes.strip_prefix(b"\0asm\x01\0\0\0") else { return false };
    while let [section, after @ ..] = rest {
        let mut len = 0usize;
        let mut shift = 0;
        let mut at = 0;
        loop {
            let Some(byte) = after.get(at).filter(|_| shift < 35) else { return false };
            len |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            at += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        match after.get(at + len..) {
            Some(next) if *section <= 13 => rest = next,
            _ => return false,
        }
    }
    true
}

#[derive(Debug)]
struct FakeModule {
    shared: Arc<Shared>,
    info: ModuleInfo,
    /// Of the artifact, when a fault needs them.
    bytes: Option<palisade_core::Bytes>,
}

impl Module for FakeModule {
    fn info(&self) -> &ModuleInfo {
        &self.info
    }

    fn prepare(&self, policy: Policy, host: HostFunctions) -> Result<Arc<dyn Prepared>> {
        if self.shared.wrong.is(Universal::Brick) {
            return Err(Error::new(ErrorKind::Denied, "prepare", "this backend refuses everything"));
        }
        if self.bytes.as_ref().is_some_and(palisade_core::Bytes::is_unique) {
            return Err(Error::new(ErrorKind::Internal, "prepare", "the artifact is gone"));
        }
        if !self.shared.has(Fault::AcceptsUndeclared) {
            self.shared.capabilities.admit(&policy)?;
        }
        if self.info.name == "unknown" && !self.shared.has(Fault::StubsImports) {
            return Err(Error::new(ErrorKind::Unsupported, "prepare", "nothing provides `palisade_test.back_door`"));
        }
        let native = self.info.artifact == ArtifactKind::Executable;
        let special = if native { Fault::NativeGrantsSpecialDirectories } else { Fault::GrantsSpecialDirectories };
        let mut opened = Vec::new();
        for directory in &policy.grants.directories {
            let failed =
                |kind, message: &str| Error::new(kind, "prepare", format!("{} is {message}", directory.host.display()));
            let host = directory.host.canonicalize().ok().filter(|host| host.is_dir());
            let host = host.ok_or_else(|| failed(ErrorKind::NotFound, "not a directory"))?;
            if files::is_special(&host) && !self.shared.has(special) {
                return Err(failed(ErrorKind::InvalidPolicy, "on a file system of the kernel"));
            }
            opened.push(File::open(host).map_err(|error| failed(ErrorKind::Io, &error.to_string()))?);
        }
        // A name would be looked up among the host's own; nobody listed a path.
        if let Some(path) = policy.grants.interpreter.as_ref().filter(|name| name.contains('/')) {
            if !self.shared.has(Fault::NativeRunsNamedInterpreter) {
                return Err(Error::new(ErrorKind::Denied, "prepare", format!("{path} is no interpreter of this host")));
            }
            let status = std::process::Command::new(path).status();
            status.map_err(|error| Error::new(ErrorKind::Io, "prepare", error.to_string()))?;
        }
        let granted = match host.granted(&policy.grants) {
            Err(_) if self.shared.has(Fault::GrantsUnknownFunctions) => host.clone(),
            granted => granted?,
        };
        let functions = if self.shared.has(Fault::GrantsAllFunctions) { host } else { granted };
        let mut seen = policy.clone();
        if !self.shared.has(Fault::OpensLate) && !self.shared.has(Fault::MixesAgents) {
            for (directory, opened) in seen.grants.directories.iter_mut().zip(&opened) {
                // Leads to what was opened, wherever that is by now.
                directory.host = format!("/proc/self/fd/{}", opened.as_raw_fd()).into();
            }
        }
        if self.shared.has(Fault::MixesAgents) {
            // Keeps the grants of the first module that had any.
            let mut leaks = self.shared.leaks();
            if policy.grants.directories.is_empty() && policy.grants.environment.is_empty() {
            } else if let Some(earlier) = &leaks.policy {
                seen.grants.environment.extend(earlier.grants.environment.clone());
                seen.grants.directories.extend(earlier.grants.directories.clone());
            } else {
                leaks.policy = Some(policy.clone());
            }
        }
        Ok(Arc::new(FakePrepared {
            shared: Arc::clone(&self.shared),
            verb: self.info.name.clone(),
            native,
            _opened: Arc::new(opened),
            policy,
            seen: Arc::new(seen),
            functions: Arc::new(functions),
        }))
    }
}

#[derive(Debug)]
struct FakePrepared {
    shared: Arc<Shared>,
    verb: String,
    native: bool,
    policy: Policy,
    /// The policy the guest runs under: the same, unless a fault mixes it up.
    seen: Arc<Policy>,
    functions: Arc<HostFunctions>,
    /// Granted directories.
    _opened: Arc<Vec<File>>,
}

impl Prepared for FakePrepared {
    fn policy(&self) -> &Policy {
        &self.policy
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Instance>>> {
        Box::pin(async move {
            if self.verb == "bomb" && self.shared.has(Fault::StartsWhenMade) {
                return Err(Error::new(ErrorKind::Internal, "instantiate", "it trapped"));
            }
            let slot = Slot::take(&self.shared)?;
            let mut state = State::default();
            let leaks = self.shared.leaks();
            if self.shared.has(Fault::LeaksMemory) {
                state.traces.memory.clone_from(&leaks.traces.memory);
            }
            state.traces.global = leaks.traces.global && self.shared.has(Fault::LeaksGlobals);
            state.traces.table = leaks.traces.table && self.shared.has(Fault::LeaksTables);
            drop(leaks);
            Ok(Box::new(FakeInstance {
                shared: Arc::clone(&self.shared),
                verb: self.verb.clone(),
                native: self.native,
                policy: Arc::clone(&self.seen),
                functions: Arc::clone(&self.functions),
                state,
                _opened: Arc::clone(&self._opened),
                _slot: slot,
            }) as Box<dyn Instance>)
        })
    }
}

/// What lives as long as an instance.
#[derive(Debug, Default)]
struct State {
    started: bool,
    dead: bool,
    /// How the last call ended does not keep the next one away: a fault.
    revived: bool,
    /// What a host function gave back, when a fault keeps it.
    last_result: palisade_core::Bytes,
    grown_bytes: u64,
    open: Vec<File>,
    traces: Traces,
    /// Usage of the previous call; counts on in the next one when quotas never reset.
    previous: Usage,
}

#[derive(Debug)]
struct FakeInstance {
    shared: Arc<Shared>,
    verb: String,
    native: bool,
    policy: Arc<Policy>,
    functions: Arc<HostFunctions>,
    state: State,
    _opened: Arc<Vec<File>>,
    _slot: Slot,
}

/// Counts an instance for as long as it lives.
#[derive(Debug)]
struct Slot(Arc<Shared>);

impl Slot {
    fn take(shared: &Arc<Shared>) -> Result<Slot> {
        let slot = Slot(Arc::clone(shared));
        let before = shared.instances.fetch_add(1, Ordering::SeqCst);
        if before >= shared.capabilities.instances_max && !shared.has(Fault::IgnoresInstances) {
            return Err(Error::new(ErrorKind::Exhausted, "instantiate", "all instances are in use"));
        }
        Ok(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.instances.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Instance for FakeInstance {
    fn call(&mut self, call: Call) -> BoxFuture<'_, Result<Execution>> {
        Box::pin(async move {
            let revives = if self.native { Fault::NativeKeepsDropped } else { Fault::RevivesInstances };
            if self.state.dead && !self.state.revived && !self.shared.has(revives) {
                return Err(Error::new(ErrorKind::Stale, "call", "the instance ended abnormally"));
            }
            let entry = entry(&self.verb);
            if call.entry != entry && !self.shared.has(Fault::RunsAnyEntry) {
                return Err(Error::new(ErrorKind::NotFound, "call", format!("no entry `{}`", call.entry))
                    .with_help(format!("it offers: {entry}")));
            }
            if (self.native || !self.shared.has(Fault::AcceptsNul))
                && call.arguments.iter().any(|argument| argument.contains('\0'))
            {
                return Err(Error::new(ErrorKind::InvalidInput, "call", "an argument has a NUL byte"));
            }
            // A call that is dropped leaves this set.
            self.state.dead = true;
            if self.native {
                let execution = native::Program::new(&self.shared, &self.policy, call).run().await;
                self.state.dead = !execution.outcome.leaves_instance_usable();
                return Ok(execution);
            }
            let machine = Machine::new(&self.shared, &self.policy, &self.functions, &mut self.state, call);
            let execution = machine.run(&self.verb).await;
            self.state.dead = !execution.outcome.leaves_instance_usable();
            self.state.revived = match &execution.outcome {
                Outcome::QuotaExceeded { .. } => self.shared.has(Fault::RevivesAfterExhaustion),
                Outcome::Cancelled { .. } => self.shared.has(Fault::RevivesAfterBeingStopped),
                Outcome::Crashed { .. } => self.shared.has(Fault::RevivesAfterPanics),
                Outcome::Denied { .. } => self.shared.has(Fault::RevivesAfterDenials),
                _ => false,
            };
            if matches!(execution.outcome, Outcome::Trapped { .. }) && self.shared.has(Fault::ChangesCapabilities) {
                let less = Capabilities { instances_max: 1, ..self.shared.capabilities.clone() };
                self.shared.changed.get_or_init(|| less);
            }
            self.state.previous = execution.usage;
            Ok(execution)
        })
    }
}
