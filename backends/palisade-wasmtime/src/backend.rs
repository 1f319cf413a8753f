//! The sandbox: opens engines, compiles, and knows what it can enforce.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use palisade_core::{
    Artifact, ArtifactKind, BackendOptions, BackendRegistration, BoxFuture, Call, Capabilities, Error, ErrorKind,
    Finding, FindingStatus, HostFunctions, Module, Outcome, Policy, PreparedExt, Resource, Result, Sandbox, block_on,
};
use palisade_wasi::{Fuse, WasiConfig};
use palisade_wasm::compilers::{Attempt, COMPILE_TIME_MAX, Compilers};
use palisade_wasm::structure;
use wasmtime::{Engine, Linker, Store};

use crate::cache::{Cache, Lookup};
use crate::compile;
use crate::engine::{self, Allocation, MEMORY_BYTES_MAX, STACK_BYTES_DEFAULT, STACK_BYTES_MAX, STACK_BYTES_MIN};
use crate::guest::Guest;
use crate::imports::{self, ImportName};
use crate::meter::Meter;
use crate::module::WasmtimeModule;
use crate::validate;
use crate::watchdog::Watchdog;

/// Instances alive at once, unless the options say otherwise.
const INSTANCES_DEFAULT: u32 = 1000;
/// Name under which the backend registers.
const NAME: &str = "wasmtime";
const ENGINE: &str = concat!("wasmtime ", "48.0.8");

palisade_core::register_backend! {
    BackendRegistration::new(NAME, |options| Ok(Arc::new(Wasmtime::open(options)?)))
        .summary("WebAssembly modules, compiled by Wasmtime and Cranelift")
        .loads(&[ArtifactKind::Wasm])
        .expectations(include_str!("../CONFORMANCE.toml"))
        .probe(probe)
        .helper(Wasmtime::compile_if_asked)
}

/// The Wasmtime backend.
#[derive(Debug)]
pub struct Wasmtime(Arc<Shared>);

/// What modules, prepared modules and instances of one sandbox share.
pub(crate) struct Shared {
    pub(crate) capabilities: Capabilities,
    pub(crate) watchdog: Arc<Watchdog>,
    pub(crate) fuse: Fuse,
    main: Arc<Provided>,
    /// Engines of other stack sizes (`engine::stack_bytes`, so there are few) for as long as somebody uses them.
    others: Mutex<HashMap<(Allocation, u64), Weak<Provided>>>,
    cache: Option<Cache>,
    /// Each instance writes it; what is beside it, each instance reads.
    instances: CachePadded<AtomicU64>,
    compilers: Compilers,
    /// The program that compiles, if it is another process.
    compiler: Option<PathBuf>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("allocation", &self.main.allocation)
            .field("instances", &self.instances)
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

/// An engine with everything guests can import.
pub(crate) struct Provided {
    pub(crate) engine: Engine,
    pub(crate) linker: Linker<Guest>,
    pub(crate) allocation: Allocation,
    names: BTreeSet<ImportName>,
}

impl Provided {
    fn new(engine: Engine, allocation: Allocation, watchdog: &Arc<Watchdog>) -> Result<Arc<Provided>> {
        let failed = |error: wasmtime::Error| {
            Error::new(ErrorKind::Internal, "open", "the host functions cannot be defined")
                .with_source(error.to_string())
        };
        watchdog.watch(&engine);
        let linker = imports::linker(&engine, watchdog).map_err(failed)?;
        // The names are only listed by way of a store.
        let policy = Policy::default();
        let wasi = Arc::new(WasiConfig::new("", &policy, Fuse::Refused)?);
        let guest = Guest::new(wasi, Arc::default(), &policy, Arc::new(Meter::default()));
        let names = imports::names(&linker, &mut Store::new(&engine, guest));
        Ok(Arc::new(Provided { engine, linker, allocation, names }))
    }

    /// What provides an import.
    pub(crate) fn provider(&self, module: &str, name: &str) -> Option<String> {
        let provided = self.names.contains(&(module.to_owned(), name.to_owned()));
        provided.then(|| palisade_wasm::imports::provider(module).to_owned())
    }

    /// What guests can import, by module and name.
    pub(crate) fn known(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        self.names.iter().map(|(module, name)| (module.as_str(), name.as_str()))
    }
}

impl Shared {
    /// Counts an instance more, of which there is a bounded number.
    pub(crate) fn count_instance(&self) -> Result<()> {
        let max = self.capabilities.instances_max;
        if self.instances.fetch_add(1, Ordering::Relaxed) >= max {
            self.instances.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::new(
                ErrorKind::Exhausted,
                "instantiate",
                format!("all {max} instances of this sandbox are in use"),
            )
            .with_help("drop instances, or open the backend with a larger `instances_max`"));
        }
        Ok(())
    }

    /// An instance that was counted is gone.
    pub(crate) fn discount_instance(&self) {
        self.instances.fetch_sub(1, Ordering::Relaxed);
    }

    // Every statement leaves the map consistent.
    fn others(&self) -> MutexGuard<'_, HashMap<(Allocation, u64), Weak<Provided>>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The engine for stacks of `bytes`, which is one of the sizes that `engine::stack_bytes` gives.
    pub(crate) fn provided_for_stack(&self, allocation: Allocation, bytes: u64) -> Result<Arc<Provided>> {
        if (allocation, bytes) == (self.main.allocation, STACK_BYTES_DEFAULT) {
            return Ok(Arc::clone(&self.main));
        }
        let key = (allocation, bytes);
        if let Some(found) = self.others().get(&key).and_then(Weak::upgrade) {
            return Ok(found);
        }
        // Outside the lock, since it takes a while. Whoever is first wins.
        let engine = engine::engine(allocation, bytes).map_err(|error| {
            Error::new(ErrorKind::Io, "prepare", format!("no engine for a stack of {bytes} bytes"))
                .with_help("use the default `stack_bytes`, or a smaller `instances_max`")
                .with_source(error.to_string())
        })?;
        let provided = Provided::new(engine, allocation, &self.watchdog)?;
        let mut others = self.others();
        others.retain(|_, provided| provided.strong_count() > 0);
        if let Some(found) = others.get(&key).and_then(Weak::upgrade) {
            return Ok(found);
        }
        others.insert(key, Arc::downgrade(&provided));
        Ok(provided)
    }

    /// Validates and compiles, or takes compiled code from the cache. Blocks.
    fn compile(self: &Arc<Self>, artifact: &Artifact, attempt: &Attempt) -> Result<WasmtimeModule> {
        let started = Instant::now();
        let mut notes = Vec::new();
        let structure = validate::scan(artifact.bytes())?;
        let allocation = match self.main.allocation {
            Allocation::Pooled { .. } if !structure.fits_pool => Allocation::OnDemand,
            main => main,
        };
        let provided = self.provided_for_stack(allocation, STACK_BYTES_DEFAULT)?;
        let name = cache_name(artifact, &provided.engine);
        let cached = self.cache.as_ref().and_then(|cache| match cache.get(&name) {
            Lookup::Miss => None,
            Lookup::Hit(file) => {
                // SAFETY: the file is a sealed copy in anonymous memory, and its keyed hash shows that this host wrote
                // it as the unmodified output of `Engine::precompile_module`.
                let module = unsafe { wasmtime::Module::deserialize_open_file(&provided.engine, file) };
                module
                    .map_err(|error| {
                        notes.push(format!("compiled code in the cache is unusable ({error:#}); compiled again"))
                    })
                    .ok()
            }
            Lookup::Unusable(why) => {
                notes.push(format!("compiled code in the cache is unusable ({why}); compiled again"));
                None
            }
        });
        let from_cache = cached.is_some();
        let module = match cached {
            Some(module) => module,
            None => self.compile_anew(artifact, &provided, &name, attempt, &mut notes)?,
        };
        let mut module = WasmtimeModule::new(Arc::clone(self), provided, module, artifact, structure);
        let info = module.info_mut();
        info.cached = from_cache;
        info.notes = notes;
        info.load_time = started.elapsed();
        Ok(module)
    }

    fn compile_anew(
        &self,
        artifact: &Artifact,
        provided: &Provided,
        name: &str,
        attempt: &Attempt,
        notes: &mut Vec<String>,
    ) -> Result<wasmtime::Module> {
        let invalid = |error: wasmtime::Error| {
            Error::new(ErrorKind::InvalidArtifact, "load", format!("the module does not compile: {error:#}"))
        };
        structure::validate(artifact.bytes())?;
        if let Some(program) = &self.compiler {
            let code = compile::in_process(program, provided.allocation, artifact.bytes(), attempt)?;
            if let Some(cache) = &self.cache
                && let Err(error) = cache.put(name, &code)
            {
                notes.push(format!("the compiled code could not be kept in the cache: {error}"));
            }
            // SAFETY: the code was written by the program that this host's options name for it, which is trusted as the
            // engine in this process is: it writes the unmodified output of `Engine::precompile_module`. The file it came
            // in is sealed.
            return unsafe { wasmtime::Module::deserialize(&provided.engine, code) }.map_err(|error| {
                Error::new(ErrorKind::Internal, "load", "the compiler's code does not fit this engine")
                    .with_help("name a compiler of the same version, or none")
                    .with_source(error.to_string())
            });
        }
        let Some(cache) = &self.cache else {
            return wasmtime::Module::new(&provided.engine, artifact.bytes()).map_err(invalid);
        };
        let code = provided.engine.precompile_module(artifact.bytes()).map_err(invalid)?;
        if let Err(error) = cache.put(name, &code) {
            notes.push(format!("the compiled code could not be kept in the cache: {error}"));
        }
        // SAFETY: `code` is the unmodified output of `Engine::precompile_module` of a few lines above.
        unsafe { wasmtime::Module::deserialize(&provided.engine, code) }.map_err(invalid)
    }
}

/// Name of an artifact's compiled code: a hash of everything the engine says decides whether it fits, and of the bytes.
fn cache_name(artifact: &Artifact, engine: &Engine) -> String {
    struct Hasher(blake3::Hasher);
    impl std::hash::Hasher for Hasher {
        fn finish(&self) -> u64 {
            u64::from_le_bytes(*self.0.finalize().as_bytes().first_chunk().unwrap_or(&[0; 8]))
        }
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
    }
    let mut hasher = Hasher(blake3::Hasher::new());
    std::hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut hasher);
    // On all cores: artifacts are tens of megabytes, and a start waits for this.
    hasher.0.update_rayon(artifact.bytes());
    hasher.0.finalize().to_hex().to_string()
}

impl Wasmtime {
    /// Opens the backend.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when the machine cannot run the engine, or the cache cannot be used.
    pub fn open(options: &BackendOptions) -> Result<Wasmtime> {
        let instances = options.instances_max.unwrap_or(INSTANCES_DEFAULT).max(1);
        let cache = options.cache.as_ref().map(Cache::open).transpose()?;
        let watchdog = Watchdog::start().map_err(|error| {
            Error::new(ErrorKind::Io, "open", "the watchdog's thread cannot be started").with_source(error)
        })?;
        let watchdog = Arc::new(watchdog);
        let (engine, allocation) = engine::main_engine(instances)?;
        let main = Provided::new(engine, allocation, &watchdog)?;
        Ok(Wasmtime(Arc::new(Shared {
            capabilities: capabilities(instances),
            watchdog,
            fuse: Fuse::from(options.fuse),
            main,
            others: Mutex::default(),
            cache,
            instances: CachePadded::new(AtomicU64::new(0)),
            compilers: Compilers::default(),
            compiler: options.compiler.clone(),
        })))
    }
}

impl Sandbox for Wasmtime {
    fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    fn load(&self, artifact: Artifact) -> BoxFuture<'_, Result<Arc<dyn Module>>> {
        Box::pin(async move {
            if artifact.kind() != ArtifactKind::Wasm {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "load",
                    format!("backend `{NAME}` loads WebAssembly modules, not a {}", artifact.kind()),
                )
                .with_help("choose another backend (`palisade backends`)"));
            }
            let timeout = self.0.watchdog.sleep_until(Instant::now() + COMPILE_TIME_MAX);
            let shared = Arc::clone(&self.0);
            let module = self.0.compilers.run(timeout, move |attempt| shared.compile(&artifact, attempt)).await?;
            Ok(Arc::new(module) as Arc<dyn Module>)
        })
    }
}

fn capabilities(instances: u32) -> Capabilities {
    let mut capabilities = palisade_wasm::capabilities(NAME, ENGINE);
    capabilities.memory_bytes_max = MEMORY_BYTES_MAX;
    capabilities.stack_bytes_min = STACK_BYTES_MIN;
    capabilities.stack_bytes_max = STACK_BYTES_MAX;
    capabilities.instances_max = u64::from(instances);
    capabilities.caveats = [
        "guests share the host's process: a defect of the engine is a defect of the wall",
        "stacks are as large as the next power of two: a guest may use up to twice its quota of stack",
        "up to a million units of fuel are not counted when a guest is stopped or traps",
        "one bulk memory operation, or one copy between guest and host, is not interrupted; it is at most as long as the memory \
         quota",
        "files are read, written and removed on the thread that drives the call, for as long as the host's disk takes; only \
         bringing them to the disk is waited for elsewhere",
    ]
    .map(str::to_owned)
    .into();
    capabilities
}

/// Finds out by trying what works on this machine.
fn probe(options: &BackendOptions) -> Vec<Finding> {
    let finding = |subject: &str, status, detail: String, advice: &str| Finding {
        subject: subject.to_owned(),
        status,
        detail,
        advice: advice.to_owned(),
    };
    let mut findings = Vec::new();
    let mut without_cache = options.clone();
    without_cache.cache = None;
    let sandbox = match Wasmtime::open(&without_cache) {
        Ok(sandbox) => sandbox,
        Err(error) => {
            let detail = format!("{error}");
            return vec![finding("wasmtime engine", FindingStatus::Missing, detail, "use another backend")];
        }
    };
    findings.push(finding("wasmtime engine", FindingStatus::Ok, ENGINE.to_owned(), ""));
    findings.push(match sandbox.0.main.allocation {
        Allocation::Pooled { instances } => finding(
            "pooled instances",
            FindingStatus::Ok,
            format!("{instances} slots of {} reserved", Resource::Memory.display(MEMORY_BYTES_MAX)),
            "",
        ),
        Allocation::OnDemand | Allocation::Frugal => finding(
            "pooled instances",
            FindingStatus::Degraded,
            "the address space is too small; instances are mapped one by one and checked by code, which is slower"
                .to_owned(),
            "lift the limit on virtual memory (`ulimit -v unlimited`), or use a smaller `instances_max`",
        ),
    });
    // (subject, module, quota, the resource that must run out)
    type Change = fn(&mut Policy);
    let tries: [(&str, &[u8], Change, Resource); 3] = [
        (
            "deadline stops a loop",
            probes::SPIN,
            |policy| policy.quota.wall_time = Some(Duration::from_millis(20)),
            Resource::WallTime,
        ),
        ("fuel stops a loop", probes::SPIN, |policy| policy.quota.fuel = Some(10_000), Resource::Fuel),
        ("memory is bounded", probes::GROW, |policy| policy.quota.memory_bytes = Some(1 << 20), Resource::Memory),
    ];
    for (subject, wasm, change, expected) in tries {
        let mut policy = Policy::default();
        change(&mut policy);
        findings.push(match run_probe(&sandbox, wasm, policy) {
            Ok(Outcome::QuotaExceeded { resource, .. }) if resource == expected => {
                finding(subject, FindingStatus::Ok, format!("a guest over its {expected} was stopped"), "")
            }
            Ok(outcome) => {
                finding(subject, FindingStatus::Missing, format!("the guest {outcome}"), "please report this")
            }
            Err(error) => finding(subject, FindingStatus::Missing, error.to_string(), "please report this"),
        });
    }
    findings.push(match options.cache.as_ref().map(Cache::open) {
        None => {
            finding("cache of compiled code", FindingStatus::Degraded, "not used".to_owned(), "give a cache directory")
        }
        Some(Ok(_)) => finding("cache of compiled code", FindingStatus::Ok, "private and authenticated".to_owned(), ""),
        Some(Err(error)) => {
            let detail = match std::error::Error::source(&error) {
                Some(source) => format!("{}: {source}", error.message()),
                None => error.message().to_owned(),
            };
            finding(
                "cache of compiled code",
                FindingStatus::Degraded,
                detail,
                "every start compiles anew until it is mended",
            )
        }
    });
    findings
}

/// Modules that `probe` runs, in the binary format. The comments are their text form; a test compares them.
mod probes {
    /// `(module (func (export "_start") (loop (br 0))))`
    pub(super) const SPIN: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x0a\x01\x06_start\0\0\x0a\x09\x01\x07\0\x03\x40\x0c\0\x0b\x0b";
    /// `(module (memory 1) (func (export "_start") (drop (memory.grow (i32.const 16)))))`
    pub(super) const GROW: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x05\x03\x01\0\x01\x07\x0a\x01\x06_start\0\0\x0a\x09\x01\x07\0\x41\x10\x40\0\x1a\x0b";
}

/// Runs a module to its end, on this thread.
fn run_probe(sandbox: &Wasmtime, wasm: &'static [u8], policy: Policy) -> Result<Outcome> {
    block_on(async {
        let module = sandbox.load(Artifact::wasm(wasm)).await?;
        let prepared = module.prepare(policy, HostFunctions::new())?;
        Ok(prepared.run(Call::new()).await?.outcome)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probes_are_what_their_comments_say() {
        let spin = wat::parse_str(r#"(module (func (export "_start") (loop (br 0))))"#).unwrap();
        assert_eq!(probes::SPIN, spin);
        let grow = r#"(module (memory 1) (func (export "_start") (drop (memory.grow (i32.const 16)))))"#;
        assert_eq!(probes::GROW, wat::parse_str(grow).unwrap());
    }

    #[test]
    fn engines_of_other_stacks_are_shared_and_go_with_their_last_user() {
        let sandbox = Wasmtime::open(&BackendOptions::new().instances_max(2)).unwrap();
        let module = block_on(sandbox.load(Artifact::wasm(probes::SPIN))).unwrap();
        let prepare = |stack_bytes: u64| {
            let mut policy = Policy::default();
            policy.quota.stack_bytes = Some(stack_bytes);
            module.prepare(policy, HostFunctions::new()).unwrap()
        };
        let alive = || sandbox.0.others().values().filter(|engine| engine.strong_count() > 0).count();
        let kept: Vec<_> = (0..100).map(|n| prepare((64 << 10) + 1 + n)).collect();
        assert_eq!(alive(), 1, "all of them round up to the same size");
        let other = prepare(64 << 10);
        assert_eq!(alive(), 2);
        drop(kept);
        assert_eq!(alive(), 1);
        drop(other);
        assert_eq!(alive(), 0);
        let _main = prepare(512 << 10);
        assert_eq!(alive(), 0, "the main engine has this size");
    }

    #[test]
    fn this_machine_passes_its_own_probes() {
        let findings = probe(&BackendOptions::new());
        let missing: Vec<_> = findings.iter().filter(|finding| finding.status == FindingStatus::Missing).collect();
        assert!(missing.is_empty(), "{missing:#?}");
        assert!(findings.len() > 5);
    }
}
