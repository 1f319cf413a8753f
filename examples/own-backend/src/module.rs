//! Modules, and modules prepared for one policy.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Instant;

use palisade_core::{
    Artifact, BoxFuture, Entry, Error, ErrorKind, ExportInfo, HostFunctions, ImportInfo, Instance, Module, ModuleInfo,
    Policy, Prepared, Result,
};
use palisade_wasi::WasiConfig;
use palisade_wasm::structure::invalid;
use palisade_wasm::{entries, imports, start, structure};
use wasmi::{Config, Engine, ExternType, Linker, ValType};

use crate::guest::Guest;
use crate::imports::{IMPORTS, find, linker};
use crate::instance::WasmiInstance;
use crate::{STACK_BYTES_DEFAULT, Shared};

/// What the interpreter keeps for each call beside its values, rounded up: calls may take as much as values.
const FRAME_BYTES: u64 = 64;

/// An engine for one size of the stack, which it fixes, with what guests can import and a module compiled for it.
pub(crate) struct Code {
    pub(crate) engine: Engine,
    pub(crate) linker: Linker<Guest>,
    pub(crate) module: wasmi::Module,
}

impl Code {
    fn new(wasm: &[u8], stack_bytes: u64) -> Result<Code> {
        let mut config = Config::default();
        let bytes = usize::try_from(stack_bytes).unwrap_or(usize::MAX);
        config.set_min_stack_height(bytes.min(4096));
        config.set_max_stack_height(bytes);
        config.set_max_recursion_depth((stack_bytes / FRAME_BYTES) as usize);
        // Memory that waits for the next call is not counted as any guest's.
        config.set_max_cached_stacks(0);
        config.consume_fuel(true).allow_start_fn(false).ignore_custom_sections(true);
        config.wasm_multi_memory(false).wasm_tail_call(false);
        let engine = Engine::new(&config);
        let linker = linker(&engine).map_err(|error| {
            Error::new(ErrorKind::Internal, "load", "the imports cannot be defined").with_source(error.to_string())
        })?;
        let module = wasmi::Module::new(&engine, wasm)
            .map_err(|error| invalid(format!("the interpreter refuses the module: {error}")))?;
        Ok(Code { engine, linker, module })
    }
}

/// A module.
pub(crate) struct WasmiModule {
    shared: Arc<Shared>,
    info: ModuleInfo,
    /// Compiled again for a stack of another size.
    wasm: Vec<u8>,
    code: Arc<Code>,
    start: Option<String>,
}

impl fmt::Debug for WasmiModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WasmiModule").field("name", &self.info.name).finish_non_exhaustive()
    }
}

impl WasmiModule {
    /// Validates and compiles. Blocks.
    pub(crate) fn new(shared: Arc<Shared>, artifact: &Artifact) -> Result<WasmiModule> {
        let started = Instant::now();
        let structure = structure::scan(artifact.bytes(), |_| Ok(()))?;
        structure::validate(artifact.bytes())?;
        let (wasm, start) = start::as_export(artifact.bytes())?;
        let code = Code::new(&wasm, STACK_BYTES_DEFAULT)?;
        let mut info = info(&code.module, artifact, start.as_deref());
        info.has_start = structure.has_start;
        info.load_time = started.elapsed();
        Ok(WasmiModule { shared, info, wasm: wasm.into_owned(), code: Arc::new(code), start })
    }
}

impl Module for WasmiModule {
    fn info(&self) -> &ModuleInfo {
        &self.info
    }

    fn prepare(&self, policy: Policy, host: HostFunctions) -> Result<Arc<dyn Prepared>> {
        self.shared.capabilities.admit(&policy)?;
        imports::check(&self.info.imports, IMPORTS.iter().map(|import| (import.module, import.name)))?;
        for import in self.code.module.imports() {
            let provided = find(import.module(), import.name()).map(|import| import.ty());
            if !matches!((&provided, import.ty()), (Some(ours), ExternType::Func(theirs)) if ours == theirs) {
                let (module, name, ty) = (import.module(), import.name(), describe(import.ty()));
                let message = format!("an import has the wrong type: `{module}.{name}` is imported as {ty}");
                return Err(Error::new(ErrorKind::InvalidArtifact, "prepare", message));
            }
        }
        let functions = Arc::new(host.granted(&policy.grants)?);
        let wasi = Arc::new(WasiConfig::new(&self.info.name, &policy, self.shared.fuse)?);
        let code = match policy.quota.stack_bytes {
            None | Some(STACK_BYTES_DEFAULT) => Arc::clone(&self.code),
            Some(bytes) => Arc::new(Code::new(&self.wasm, bytes)?),
        };
        let own = [self.start.as_deref(), entries::initialize(&self.info.entries)];
        Ok(Arc::new_cyclic(|this| WasmiPrepared {
            this: this.clone(),
            shared: Arc::clone(&self.shared),
            info: self.info.clone(),
            first: own.into_iter().flatten().map(str::to_owned).collect(),
            code,
            policy,
            functions,
            wasi,
        }))
    }
}

/// A module with its policy.
pub(crate) struct WasmiPrepared {
    this: Weak<WasmiPrepared>,
    shared: Arc<Shared>,
    pub(crate) info: ModuleInfo,
    /// Exports that run before the first call's entry: the start function, then `_initialize`.
    pub(crate) first: Vec<String>,
    pub(crate) code: Arc<Code>,
    policy: Policy,
    functions: Arc<HostFunctions>,
    wasi: Arc<WasiConfig>,
}

impl fmt::Debug for WasmiPrepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WasmiPrepared").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl WasmiPrepared {
    pub(crate) fn guest(&self) -> Guest {
        Guest::new(Arc::clone(&self.wasi), Arc::clone(&self.functions), &self.policy)
    }

    /// The entry point `name`.
    pub(crate) fn entry(&self, name: &str) -> Result<&Entry> {
        let found = self.info.entries.iter().find(|entry| entry.name == name);
        found.ok_or_else(|| {
            let export = self.info.exports.iter().find(|export| export.name == name);
            let entries = self.info.entries.iter().map(|entry| entry.name.as_str());
            entries::unknown(name, export.map(|export| export.ty.as_str()), entries)
        })
    }
}

impl Prepared for WasmiPrepared {
    fn policy(&self) -> &Policy {
        &self.policy
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Instance>>> {
        Box::pin(async move {
            let slot = self.shared.slots.take()?;
            let Some(this) = self.this.upgrade() else {
                return Err(Error::new(ErrorKind::Internal, "instantiate", "the prepared module is being dropped"));
            };
            Ok(Box::new(WasmiInstance::new(this, slot)) as Box<dyn Instance>)
        })
    }
}

fn info(module: &wasmi::Module, artifact: &Artifact, start: Option<&str>) -> ModuleInfo {
    let imported = |import: wasmi::ImportType<'_>| ImportInfo {
        module: import.module().to_owned(),
        name: import.name().to_owned(),
        ty: describe(import.ty()),
        provider: find(import.module(), import.name()).map(|import| imports::provider(import.module).to_owned()),
    };
    let imported: Vec<_> = module.imports().map(imported).collect();
    let mut info = ModuleInfo::new(artifact, imports::abi(&imported));
    for export in module.exports().filter(|export| Some(export.name()) != start) {
        let name = export.name().to_owned();
        match export.ty() {
            ExternType::Func(ty) if ty.params().is_empty() && matches!(ty.results(), [] | [ValType::I32]) => {
                info.entries.push(Entry { name: name.clone(), returns_code: !ty.results().is_empty() });
            }
            ExternType::Memory(ty) => {
                info.memory_initial_bytes += ty.minimum() << 16;
                info.memory_maximum_bytes = ty.maximum().map(|pages| pages << 16);
            }
            _ => {}
        }
        info.exports.push(ExportInfo { name, ty: describe(export.ty()) });
    }
    info.needs = imports::needs(&imported);
    info.imports = imported;
    info
}

/// A type, as text.
fn describe(ty: &ExternType) -> String {
    let types =
        |types: &[ValType]| types.iter().map(|ty| format!("{ty:?}").to_lowercase()).collect::<Vec<_>>().join(", ");
    match ty {
        ExternType::Func(ty) => format!("func({}) -> ({})", types(ty.params()), types(ty.results())),
        ExternType::Memory(ty) => format!("memory of {} pages or more", ty.minimum()),
        ExternType::Table(ty) => format!("table of {} entries or more", ty.minimum()),
        ExternType::Global(ty) => format!("global {}", types(&[ty.content()])),
    }
}
