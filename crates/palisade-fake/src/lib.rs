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

mod fault;
mod files;
mod machine;
mod metrics;
mod native;
mod scheduler;

use std::collections::BTreeMap;
use std::fs::File;
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
        let quotas = Resource::ALL.map(|resource| match resource {
            Resource::Processes | Resource::Threads if !liar => (resource, Enforcement::AlwaysZero),
            _ => (resource, Enforcement::Enforced),
        });
        let grants = GrantKind::ALL
            .into_iter()
            .filter(|kind| liar || !matches!(kind, GrantKind::Network | GrantKind::ChildProcesses));
        let capabilities = Capabilities {
            backend: "fake".to_owned(),
            engine: "none".to_owned(),
            artifacts: [ArtifactKind::Wasm, ArtifactKind::Executable].into(),
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
        Fake(Arc::new(Shared { wrong, capabilities, leaks: Mutex::default(), instances: AtomicU64::new(0) }))
    }
}

impl Sandbox for Fake {
    fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    fn load(&self, artifact: Artifact) -> BoxFuture<'_, Result<Arc<dyn Module>>> {
        Box::pin(async move {
            let refused = |kind, message: &str| Err(Error::new(kind, "load", message.to_owned()));
            if self.0.wrong.is(Universal::LoadsNothing) {
                return refused(ErrorKind::InvalidArtifact, "this backend loads nothing");
            }
            let well_formed = match artifact.kind() {
                ArtifactKind::Wasm => is_well_formed(artifact.bytes()),
                ArtifactKind::Executable => artifact.bytes().starts_with(b"\x7fELF"),
                _ => return refused(ErrorKind::Unsupported, "only WebAssembly modules and executables are loaded"),
            };
            if !well_formed && !self.0.has(Fault::AcceptsMalformed) {
                return refused(ErrorKind::InvalidArtifact, "the artifact is not what it claims to be");
            }
            let mut info = ModuleInfo::new(&artifact, Abi::Reactor);
            info.entries = vec![Entry { name: Call::DEFAULT_ENTRY.to_owned(), returns_code: false }];
            info.has_start = artifact.name() == "start";
            Ok(Arc::new(FakeModule { shared: Arc::clone(&self.0), info }) as Arc<dyn Module>)
        })
    }
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
}

impl Module for FakeModule {
    fn info(&self) -> &ModuleInfo {
        &self.info
    }

    fn prepare(&self, policy: Policy, host: HostFunctions) -> Result<Arc<dyn Prepared>> {
        if self.shared.wrong.is(Universal::Brick) {
            return Err(Error::new(ErrorKind::Denied, "prepare", "this backend refuses everything"));
        }
        if !self.shared.has(Fault::AcceptsUndeclared) {
            self.shared.capabilities.admit(&policy)?;
        }
        if self.info.name == "unknown" && !self.shared.has(Fault::StubsImports) {
            return Err(Error::new(ErrorKind::Unsupported, "prepare", "nothing provides `palisade_test.back_door`"));
        }
        for directory in &policy.grants.directories {
            if !directory.host.is_dir() {
                let message = format!("{} is not a directory", directory.host.display());
                return Err(Error::new(ErrorKind::NotFound, "prepare", message));
            }
        }
        let granted = host.granted(&policy.grants)?;
        let functions = if self.shared.has(Fault::GrantsAllFunctions) { host } else { granted };
        let mut seen = policy.clone();
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
            native: self.info.artifact == ArtifactKind::Executable,
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
}

impl Prepared for FakePrepared {
    fn policy(&self) -> &Policy {
        &self.policy
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Instance>>> {
        Box::pin(async move {
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
            if self.state.dead && !self.shared.has(revives) {
                return Err(Error::new(ErrorKind::Stale, "call", "the instance ended abnormally"));
            }
            if call.entry != Call::DEFAULT_ENTRY && !self.shared.has(Fault::RunsAnyEntry) {
                return Err(Error::new(ErrorKind::NotFound, "call", format!("no entry `{}`", call.entry))
                    .help(format!("it offers: {}", Call::DEFAULT_ENTRY)));
            }
            if self.native && call.arguments.iter().any(|argument| argument.contains('\0')) {
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
            self.state.previous = execution.usage;
            Ok(execution)
        })
    }
}
