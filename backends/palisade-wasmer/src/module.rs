//! Modules, and modules prepared for one policy.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use palisade_core::{
    Abi, Artifact, BoxFuture, Entry, Error, ErrorKind, ExportInfo, HostFunctions, ImportInfo, Instance, Module,
    ModuleInfo, Policy, Prepared, Result,
};
use palisade_wasi::ablation::{self, left_out};
use palisade_wasi::{WasiConfig, reactor};
use palisade_wasm::structure::Structure;
use wasmer::sys::BaseTunables;
use wasmer::{Engine, ExternType, Function, FunctionEnv, Store};

use crate::backend::{self, Shared};
use crate::guest::Guest;
use crate::imports::IMPORTS;
use crate::instance::WasmerInstance;
use crate::instrument::{self, Instrumented};
use crate::memory::Pool;
use crate::threads::Threads;
use crate::watchdog::Watchdog;

/// Entries or imports listed in one message.
const LISTED_MAX: usize = 20;

/// Compiled code with its engine, which holds the code and must go last.
pub(crate) struct Code {
    module: wasmer::Module,
    engine: Engine,
    /// Name of the export that the start function has become.
    start: Option<String>,
    /// Functions of the guest's own.
    functions: u32,
}

impl Code {
    pub(crate) fn new(module: wasmer::Module, engine: Engine, instrumented: &Instrumented) -> Self {
        Code { module, engine, start: instrumented.start.clone(), functions: instrumented.functions }
    }

    /// What the guest itself imports, in order.
    fn imports(&self) -> impl Iterator<Item = (String, String, ExternType)> {
        let ours = |module: &str, name: &str| (module, name) == instrument::IMPORT;
        self.module
            .imports()
            .map(|import| (import.module().to_owned(), import.name().to_owned(), import.ty().clone()))
            .filter(move |(module, name, _)| !ours(module, name))
    }

    /// What the guest itself exports, in order.
    fn exports(&self) -> impl Iterator<Item = (String, ExternType)> {
        self.module
            .exports()
            .map(|export| (export.name().to_owned(), export.ty().clone()))
            .filter(|(name, _)| self.start.as_ref() != Some(name))
    }

    /// The exports that can be called.
    fn entries(&self) -> impl Iterator<Item = Entry> {
        self.exports().filter_map(|(name, ty)| {
            let ExternType::Function(ty) = ty else { return None };
            let returns_code = match (ty.params(), ty.results()) {
                ([], []) => false,
                ([], [wasmer::Type::I32]) => true,
                _ => return None,
            };
            Some(Entry { name, returns_code })
        })
    }
}

/// A compiled module.
pub(crate) struct WasmerModule {
    info: ModuleInfo,
    shared: Arc<Shared>,
    code: Arc<Code>,
}

impl fmt::Debug for WasmerModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WasmerModule").field("name", &self.info.name).finish_non_exhaustive()
    }
}

impl WasmerModule {
    pub(crate) fn new(shared: Arc<Shared>, code: Code, artifact: &Artifact, structure: Structure) -> Self {
        let info = info(&code, artifact, structure);
        WasmerModule { info, shared, code: Arc::new(code) }
    }

    pub(crate) fn info_mut(&mut self) -> &mut ModuleInfo {
        &mut self.info
    }

    /// Refuses a module that imports what nobody provides, listing all of it.
    fn check_imports(&self) -> Result<()> {
        let missing: Vec<_> = self.info.imports.iter().filter(|import| import.provider.is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let mut list: Vec<_> = missing.iter().take(LISTED_MAX).map(|import| backend::explain_missing(import)).collect();
        if missing.len() > LISTED_MAX {
            list.push(format!("and {} more", missing.len() - LISTED_MAX));
        }
        let error = Error::new(
            ErrorKind::Unsupported,
            "prepare",
            format!("the module imports what this host does not provide: {}", list.join("; ")),
        );
        Err(missing.iter().fold(error, |error, import| {
            error.with_context("missing_import", format!("{}.{}", import.module, import.name))
        }))
    }
}

impl Module for WasmerModule {
    fn info(&self) -> &ModuleInfo {
        &self.info
    }

    fn prepare(&self, policy: Policy, host: HostFunctions) -> Result<Arc<dyn Prepared>> {
        if !left_out("admission") {
            self.shared.capabilities.admit(&policy)?;
        }
        self.check_imports()?;
        let functions = host.granted(&policy.grants)?;
        let functions = Arc::new(if left_out("granted-functions") { host } else { functions });
        let policy = ablation::weaken(policy);
        let wasi = Arc::new(WasiConfig::new(&self.info.name, &policy, self.shared.fuse)?);
        let mut makers = Vec::new();
        for (module, name, ty) in self.code.imports() {
            let provided = IMPORTS.get(&(module.as_str(), name.as_str()));
            match provided {
                Some(import) if ty == ExternType::Function(import.ty.clone()) => makers.push(import.make),
                _ => {
                    let wanted = provided.map_or_else(String::new, |import| {
                        format!(", but is provided as {}", describe(&ExternType::Function(import.ty.clone())))
                    });
                    return Err(Error::new(
                        ErrorKind::InvalidArtifact,
                        "prepare",
                        format!(
                            "an import has the wrong type: `{module}.{name}` is imported as {}{wanted}",
                            describe(&ty)
                        ),
                    ));
                }
            }
        }
        let entries: Vec<_> = self
            .code
            .entries()
            .map(|entry| EntryPoint { name: entry.name, returns_code: entry.returns_code })
            .collect();
        let by_name = entries.iter().enumerate().map(|(index, entry)| (entry.name.clone(), index)).collect();
        let exports: BTreeMap<_, _> = self.code.exports().collect();
        let has_memory = matches!(exports.get("memory"), Some(ExternType::Memory(_)));
        let initialize = entries.iter().find(|entry| entry.name == "_initialize" && !entry.returns_code);
        let initialize = initialize.map(|entry| entry.name.clone());
        let reads_input_by_offset = self
            .info
            .imports
            .iter()
            .any(|import| import.module == reactor::MODULE && import.name.starts_with("input_"));
        Ok(Arc::new_cyclic(|this| WasmerPrepared {
            this: this.clone(),
            shared: Arc::clone(&self.shared),
            start: self.code.start.clone(),
            code: Arc::clone(&self.code),
            policy,
            functions,
            wasi,
            makers,
            entries,
            by_name,
            exports,
            has_memory,
            initialize,
            reads_input_by_offset,
        }))
    }
}

/// A module with its policy.
pub(crate) struct WasmerPrepared {
    this: std::sync::Weak<WasmerPrepared>,
    shared: Arc<Shared>,
    code: Arc<Code>,
    pub(crate) policy: Policy,
    pub(crate) functions: Arc<HostFunctions>,
    pub(crate) wasi: Arc<WasiConfig>,
    /// Make the imports, in order.
    pub(crate) makers: Vec<fn(&mut Store, &FunctionEnv<Guest>) -> Function>,
    entries: Vec<EntryPoint>,
    by_name: HashMap<String, usize>,
    exports: BTreeMap<String, ExternType>,
    /// It exports the memory host functions work on.
    pub(crate) has_memory: bool,
    /// The start function, to be called before anything else.
    pub(crate) start: Option<String>,
    /// A WASI reactor's `_initialize`, to be called next.
    pub(crate) initialize: Option<String>,
    /// It imports `input_len` or `input_read`, which need the whole input.
    pub(crate) reads_input_by_offset: bool,
}

/// An export that can be called.
pub(crate) struct EntryPoint {
    pub(crate) name: String,
    pub(crate) returns_code: bool,
}

impl fmt::Debug for WasmerPrepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WasmerPrepared").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl WasmerPrepared {
    pub(crate) fn engine(&self) -> &Engine {
        &self.code.engine
    }

    pub(crate) fn module(&self) -> &wasmer::Module {
        &self.code.module
    }

    /// Functions of the guest's own.
    pub(crate) fn functions_count(&self) -> u32 {
        self.code.functions
    }

    pub(crate) fn watchdog(&self) -> &Arc<Watchdog> {
        &self.shared.watchdog
    }

    pub(crate) fn threads(&self) -> &Threads {
        &self.shared.threads
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.shared.pool
    }

    pub(crate) fn base_tunables(&self) -> &BaseTunables {
        &self.shared.base_tunables
    }

    pub(crate) fn entry_at(&self, index: usize) -> &EntryPoint {
        &self.entries[index]
    }

    /// The entry point `name`, with its index.
    pub(crate) fn entry(&self, name: &str) -> Result<(usize, &EntryPoint)> {
        if let Some(index) = self.by_name.get(name) {
            return Ok((*index, &self.entries[*index]));
        }
        let message = match self.exports.get(name) {
            Some(ty) => {
                format!(
                    "export `{name}` is a {}, not an entry point, which is a function `() -> ()` or `() -> i32`",
                    describe(ty)
                )
            }
            None => format!("the module has no export `{name}`"),
        };
        let names: Vec<_> = self.entries.iter().map(|entry| format!("`{}`", entry.name)).collect();
        let nearest = self
            .entries
            .iter()
            .map(|entry| (strsim::jaro_winkler(name, &entry.name), &entry.name))
            .filter(|(likeness, _)| *likeness > 0.8)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let help = match (nearest, names.len()) {
            (_, 0) => "it has no entry point at all".to_owned(),
            (Some((_, nearest)), _) => format!("did you mean `{nearest}`? It has: {}", list(&names)),
            (None, _) => format!("it has: {}", list(&names)),
        };
        Err(Error::new(ErrorKind::NotFound, "call", message).with_context("entry", name).with_help(help))
    }
}

impl Prepared for WasmerPrepared {
    fn policy(&self) -> &Policy {
        &self.policy
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Instance>>> {
        Box::pin(async move {
            let slot = self.shared.take_slot()?;
            let Some(this) = self.this.upgrade() else {
                return Err(Error::new(ErrorKind::Internal, "instantiate", "the prepared module is being dropped"));
            };
            Ok(Box::new(WasmerInstance::new(this, slot)) as Box<dyn Instance>)
        })
    }
}

fn list(names: &[String]) -> String {
    let shown = names.iter().take(LISTED_MAX).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > LISTED_MAX { format!("{shown} and {} more", names.len() - LISTED_MAX) } else { shown }
}

/// What a module imports, and what provides it.
fn imports(code: &Code) -> Vec<ImportInfo> {
    code.imports()
        .map(|(module, name, ty)| {
            let provider = backend::provider(&module, &name);
            ImportInfo { module, name, ty: describe(&ty), provider }
        })
        .collect()
}

fn info(code: &Code, artifact: &Artifact, structure: Structure) -> ModuleInfo {
    let imports = imports(code);
    let abi = if imports.iter().any(|import| import.module == "extism:host/env") {
        Abi::Extism
    } else if imports.iter().any(|import| import.module == reactor::MODULE) {
        Abi::Reactor
    } else {
        Abi::Command
    };
    let mut info = ModuleInfo::new(artifact, abi);
    info.entries = code.entries().collect();
    for (name, ty) in code.exports() {
        if let ExternType::Memory(memory) = &ty {
            info.memory_initial_bytes += memory.minimum.bytes().0 as u64;
            info.memory_maximum_bytes = memory.maximum.map(|pages| pages.bytes().0 as u64);
        }
        info.exports.push(ExportInfo { name, ty: describe(&ty) });
    }
    info.has_start = structure.has_start;
    info.needs = needs(&imports);
    info.imports = imports;
    info
}

/// What the imports say about the grants a plugin will or may need.
fn needs(imports: &[ImportInfo]) -> Vec<String> {
    let uses = |names: &[&str]| imports.iter().any(|import| names.contains(&import.name.as_str()));
    let mut needs = Vec::new();
    if uses(&["path_open", "path_filestat_get", "fd_readdir", "path_create_directory", "path_unlink_file"]) {
        needs.push("directories: it can open files in the directories it is granted".to_owned());
    }
    if uses(&["environ_get"]) {
        needs.push("environment: it can read the variables it is granted".to_owned());
    }
    if uses(&["host_call"]) {
        needs.push("host_functions: it calls host functions by name; each must be granted".to_owned());
    }
    if uses(&["clock_time_get"]) {
        needs.push("clocks: coarse unless fine ones are granted".to_owned());
    }
    if imports.iter().any(|import| import.name.starts_with("sock_")) {
        needs.push("network: it imports socket functions, which find no socket here".to_owned());
    }
    let missing = imports.iter().filter(|import| import.provider.is_none()).count();
    if missing > 0 {
        needs.push(format!("{missing} imports that nothing here provides"));
    }
    needs
}

/// A type, as text.
fn describe(ty: &ExternType) -> String {
    let lower = |ty: &wasmer::Type| ty.to_string().to_lowercase();
    match ty {
        ExternType::Function(ty) => {
            let types = |types: &[wasmer::Type]| types.iter().map(lower).collect::<Vec<_>>().join(", ");
            format!("func({}) -> ({})", types(ty.params()), types(ty.results()))
        }
        ExternType::Memory(ty) => match ty.maximum {
            Some(maximum) => format!("memory of {} to {} pages", ty.minimum.0, maximum.0),
            None => format!("memory of {} pages or more", ty.minimum.0),
        },
        ExternType::Table(ty) => format!("table of {} entries or more", ty.minimum),
        ExternType::Global(ty) => format!("global {}", lower(&ty.ty)),
        ExternType::Tag(_) => "tag".to_owned(),
    }
}
