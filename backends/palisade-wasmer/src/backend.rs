//! The sandbox: opens engines, compiles, and knows what it can enforce.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_core::{
    Artifact, ArtifactKind, BackendOptions, BackendRegistration, BoxFuture, Call, Capabilities, Error, ErrorKind,
    Finding, FindingStatus, HostFunctions, Module, Outcome, Policy, PreparedExt, Resource, Result, Sandbox, block_on,
};
use palisade_wasi::Fuse;
use palisade_wasm::compilers::{Attempt, COMPILE_TIME_MAX, Compilers};
use palisade_wasm::slots::Slots;
use palisade_wasm::structure;
use wasmer::sys::BaseTunables;

use crate::compile;
use crate::engine::{self, MEMORY_BYTES_MAX, STACK_BYTES_MAX, STACK_BYTES_MIN};
use crate::imports::IMPORTS;
use crate::instrument;
use crate::memory::Pool;
use crate::module::{Code, WasmerModule};
use crate::threads::Threads;
use crate::validate;
use crate::watchdog::Watchdog;

/// Instances alive at once, unless the options say otherwise.
const INSTANCES_DEFAULT: u32 = 1000;
/// Name under which the backend registers.
const NAME: &str = "wasmer";
const ENGINE: &str = "wasmer 7.3.0";

palisade_core::register_backend! {
    BackendRegistration::new(NAME, |options| Ok(Arc::new(Wasmer::open(options)?)))
        .summary("WebAssembly modules, compiled by Wasmer")
        .loads(&[ArtifactKind::Wasm])
        .expectations(include_str!("../CONFORMANCE.toml"))
        .probe(probe)
        .helper(Wasmer::compile_if_asked)
}

/// The Wasmer backend.
#[derive(Debug)]
pub struct Wasmer(Arc<Shared>);

/// What modules, prepared modules and instances of one sandbox share.
pub(crate) struct Shared {
    pub(crate) capabilities: Capabilities,
    pub(crate) watchdog: Arc<Watchdog>,
    pub(crate) fuse: Fuse,
    pub(crate) threads: Threads,
    pub(crate) pool: Arc<Pool>,
    pub(crate) base_tunables: BaseTunables,
    pub(crate) slots: Slots,
    compilers: Compilers,
    /// The program that compiles, if it is another process.
    compiler: Option<PathBuf>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("threads", &self.threads).field("slots", &self.slots).finish_non_exhaustive()
    }
}

/// What provides an import.
pub(crate) fn provider(module: &str, name: &str) -> Option<String> {
    IMPORTS.get(&(module, name)).map(|_| palisade_wasm::imports::provider(module).to_owned())
}

impl Shared {
    /// Validates and compiles, unless the attempt is given up first. Blocks.
    fn compile(self: &Arc<Self>, artifact: &Artifact, attempt: &Attempt) -> Result<WasmerModule> {
        let started = Instant::now();
        let structure = validate::scan(artifact.bytes())?;
        structure::validate(artifact.bytes())?;
        let instrumented = instrument::instrument(artifact.bytes())?;
        let engine = engine::engine(instrumented.wasm.len());
        let wasm = &instrumented.wasm;
        let module = match &self.compiler {
            Some(program) => compile::in_process(program, &engine, wasm, attempt)?,
            None => compile::here(&engine, wasm, attempt)?,
        };
        let code = Code::new(module, engine, &instrumented);
        let mut module = WasmerModule::new(Arc::clone(self), code, artifact, structure);
        module.info_mut().load_time = started.elapsed();
        Ok(module)
    }
}

impl Wasmer {
    /// Opens the backend. It keeps no compiled code on disk: the options' cache is not used.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when the machine cannot run the engine.
    pub fn open(options: &BackendOptions) -> Result<Wasmer> {
        let instances = options.instances_max.unwrap_or(INSTANCES_DEFAULT).max(1);
        let watchdog = Watchdog::start().map_err(|error| {
            Error::new(ErrorKind::Io, "open", "the watchdog's thread cannot be started").with_source(error)
        })?;
        let pool = Arc::new(Pool::default());
        pool.probe().map_err(|error| {
            Error::new(ErrorKind::Io, "open", "there is no address space for a guest's memory")
                .with_help("lift the limit on virtual memory (`ulimit -v unlimited`), or use the `wasmtime` backend")
                .with_source(error)
        })?;
        Ok(Wasmer(Arc::new(Shared {
            capabilities: capabilities(instances),
            watchdog: Arc::new(watchdog),
            fuse: Fuse::from(options.fuse),
            // A dropped call may still hold its thread for a moment when the next one begins.
            threads: Threads::new(2 * instances as usize),
            pool,
            base_tunables: engine::base_tunables(),
            slots: Slots::new(u64::from(instances)),
            compilers: Compilers::default(),
            compiler: options.compiler.clone(),
        })))
    }
}

impl Sandbox for Wasmer {
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
    capabilities.caveats = vec![
        "guests share the host's process: a defect of the engine is a defect of the wall".to_owned(),
        "each call holds a thread until it ends, also while it waits".to_owned(),
        "stacks have their size unless other code of this process calls Wasmer as well: the engine shares them"
            .to_owned(),
    ];
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
    let sandbox = match Wasmer::open(options) {
        Ok(sandbox) => sandbox,
        Err(error) => {
            let detail = format!("{error}");
            return vec![finding("wasmer engine", FindingStatus::Missing, detail, "use another backend")];
        }
    };
    findings.push(finding("wasmer engine", FindingStatus::Ok, ENGINE.to_owned(), ""));
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
    findings.push(finding(
        "cache of compiled code",
        FindingStatus::Degraded,
        "this backend has none; every start compiles anew".to_owned(),
        "load large artifacts with the `wasmtime` backend",
    ));
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
fn run_probe(sandbox: &Wasmer, wasm: &'static [u8], policy: Policy) -> Result<Outcome> {
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
    fn this_machine_passes_its_own_probes() {
        let findings = probe(&BackendOptions::new());
        let missing: Vec<_> = findings.iter().filter(|finding| finding.status == FindingStatus::Missing).collect();
        assert!(missing.is_empty(), "{missing:#?}");
        assert!(findings.len() >= 5);
    }
}
