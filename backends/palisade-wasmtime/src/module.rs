//! Modules, and modules prepared for one policy.

use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use palisade_core::{
    Abi, Artifact, BoxFuture, Entry, Error, ErrorKind, ExportInfo, HostFunctions, ImportInfo, Instance, Module,
    ModuleInfo, Policy, Prepared, Result,
};
use palisade_wasi::ablation::{self, left_out};
use palisade_wasi::{WasiConfig, reactor};
use wasmtime::{Engine, ExternType, InstancePre, ModuleExport};

use crate::backend::{Provided, Shared};
use crate::engine::{self, STACK_BYTES_DEFAULT};
use crate::guest::Guest;
use crate::instance::WasmtimeInstance;
use crate::validate::Structure;
use crate::watchdog::Watchdog;

/// Entries or imports listed in one message.
const LISTED_MAX: usize = 20;

/// Compiled code in its engine.
pub(crate) struct Compiled {
    provided: Arc<Provided>,
    module: wasmtime::Module,
}

/// A compiled module.
pub(crate) struct WasmtimeModule {
    info: ModuleInfo,
    shared: Arc<Shared>,
    compiled: Arc<Compiled>,
    /// The same in the engines of other stack sizes, for as long as it is prepared for them.
    other_stacks: Mutex<HashMap<u64, Weak<Compiled>>>,
}

impl fmt::Debug for WasmtimeModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WasmtimeModule").field("name", &self.info.name).finish_non_exhaustive()
    }
}

impl WasmtimeModule {
    pub(crate) fn new(
        shared: Arc<Shared>,
        provided: Arc<Provided>,
        module: wasmtime::Module,
        artifact: &Artifact,
        structure: Structure,
    ) -> Self {
        let info = info(&module, &provided, artifact, structure);
        let compiled = Arc::new(Compiled { provided, module });
        WasmtimeModule { info, shared, compiled, other_stacks: Mutex::default() }
    }

    pub(crate) fn info_mut(&mut self) -> &mut ModuleInfo {
        &mut self.info
    }

    /// The module in the engine for a quota of `bytes` of stack.
    fn for_stack(&self, bytes: u64) -> Result<Arc<Compiled>> {
        let bytes = engine::stack_bytes(bytes);
        if bytes == STACK_BYTES_DEFAULT {
            return Ok(Arc::clone(&self.compiled));
        }
        // Every statement leaves the map consistent.
        let others = || self.other_stacks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = others().get(&bytes).and_then(Weak::upgrade) {
            return Ok(found);
        }
        // Outside the lock, since it takes a while. Whoever is first wins.
        let provided = self.shared.provided_for_stack(self.compiled.provided.allocation, bytes)?;
        let moved = self.compiled.module.serialize().and_then(|code| {
            // SAFETY: `code` is the unmodified output of `Module::serialize` of the line above, made by the same
            // version of the engine in this process.
            unsafe { wasmtime::Module::deserialize(&provided.engine, code) }
        });
        let module = moved.map_err(|error| {
            Error::new(
                ErrorKind::Internal,
                "prepare",
                "the module could not be moved to an engine of another stack size",
            )
            .with_source(error.to_string())
        })?;
        let moved = Arc::new(Compiled { provided, module });
        let mut others = others();
        others.retain(|_, compiled| compiled.strong_count() > 0);
        if let Some(found) = others.get(&bytes).and_then(Weak::upgrade) {
            return Ok(found);
        }
        others.insert(bytes, Arc::downgrade(&moved));
        Ok(moved)
    }

    /// Refuses a module that imports what nobody provides, listing all of it.
    fn check_imports(&self) -> Result<()> {
        let missing: Vec<_> = self.info.imports.iter().filter(|import| import.provider.is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let mut list: Vec<_> =
            missing.iter().take(LISTED_MAX).map(|import| self.compiled.provided.explain_missing(import)).collect();
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

impl Module for WasmtimeModule {
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
        let compiled = self.for_stack(policy.quota.stack_bytes.unwrap_or(STACK_BYTES_DEFAULT))?;
        let module = &compiled.module;
        let pre = compiled.provided.linker.instantiate_pre(module).map_err(|error| {
            Error::new(ErrorKind::InvalidArtifact, "prepare", format!("an import has the wrong type: {error:#}"))
        })?;
        let export = |name: &str| module.get_export_index(name);
        let entries = entries(module)
            .filter_map(|entry| {
                let point = EntryPoint { export: export(&entry.name)?, returns_code: entry.returns_code };
                Some((entry.name, point))
            })
            .collect::<Vec<_>>();
        let by_name = entries.iter().enumerate().map(|(index, (name, _))| (name.clone(), index)).collect();
        let memory = match module.get_export("memory") {
            Some(ExternType::Memory(_)) => export("memory"),
            _ => None,
        };
        let initialize = entries.iter().find(|(name, point)| name == "_initialize" && !point.returns_code);
        let initialize = initialize.map(|(_, point)| point.export);
        let reads_input_by_offset = self
            .info
            .imports
            .iter()
            .any(|import| import.module == reactor::MODULE && import.name.starts_with("input_"));
        Ok(Arc::new_cyclic(|this| WasmtimePrepared {
            this: this.clone(),
            shared: Arc::clone(&self.shared),
            pre,
            _compiled: Arc::clone(&compiled),
            policy,
            functions,
            wasi,
            entries,
            by_name,
            memory,
            initialize,
            reads_input_by_offset,
        }))
    }
}

/// A module with its policy. Aligned, because the counts of references, which each instance writes, lie in front of it, and
/// processors fetch lines of 64 bytes in pairs.
#[repr(align(128))]
pub(crate) struct WasmtimePrepared {
    this: Weak<WasmtimePrepared>,
    shared: Arc<Shared>,
    pub(crate) pre: InstancePre<Guest>,
    /// Keeps the engine among those that are shared.
    _compiled: Arc<Compiled>,
    pub(crate) policy: Policy,
    pub(crate) functions: Arc<HostFunctions>,
    pub(crate) wasi: Arc<WasiConfig>,
    entries: Vec<(String, EntryPoint)>,
    by_name: HashMap<String, usize>,
    /// The memory host functions work on.
    pub(crate) memory: Option<ModuleExport>,
    /// A WASI reactor's `_initialize`, to be called before anything else.
    pub(crate) initialize: Option<ModuleExport>,
    /// It imports `input_len` or `input_read`, which need the whole input.
    pub(crate) reads_input_by_offset: bool,
}

/// A prepared module, and an instance of it that is counted for as long as this lives.
pub(crate) struct Slot(Arc<WasmtimePrepared>);

impl Slot {
    fn take(prepared: Arc<WasmtimePrepared>) -> Result<Slot> {
        prepared.shared.count_instance()?;
        Ok(Slot(prepared))
    }
}

impl Deref for Slot {
    type Target = WasmtimePrepared;

    fn deref(&self) -> &WasmtimePrepared {
        &self.0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.discount_instance();
    }
}

/// An export that can be called.
pub(crate) struct EntryPoint {
    pub(crate) export: ModuleExport,
    pub(crate) returns_code: bool,
}

impl fmt::Debug for WasmtimePrepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WasmtimePrepared").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl WasmtimePrepared {
    pub(crate) fn engine(&self) -> &Engine {
        self.pre.module().engine()
    }

    pub(crate) fn watchdog(&self) -> &Watchdog {
        &self.shared.watchdog
    }

    /// The entry point `name`, with its index.
    pub(crate) fn entry(&self, name: &str) -> Result<(usize, &EntryPoint)> {
        if let Some(index) = self.by_name.get(name) {
            return Ok((*index, &self.entries[*index].1));
        }
        let module = self.pre.module();
        let message = match module.get_export(name) {
            Some(ty) => {
                format!(
                    "export `{name}` is a {}, not an entry point, which is a function `() -> ()` or `() -> i32`",
                    describe(&ty)
                )
            }
            None => format!("the module has no export `{name}`"),
        };
        let names: Vec<_> = self.entries.iter().map(|(name, _)| format!("`{name}`")).collect();
        let nearest = self
            .entries
            .iter()
            .map(|(known, _)| (strsim::jaro_winkler(name, known), known))
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

impl Prepared for WasmtimePrepared {
    fn policy(&self) -> &Policy {
        &self.policy
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Instance>>> {
        Box::pin(async move {
            let Some(this) = self.this.upgrade() else {
                return Err(Error::new(ErrorKind::Internal, "instantiate", "the prepared module is being dropped"));
            };
            Ok(Box::new(WasmtimeInstance::new(Slot::take(this)?)) as Box<dyn Instance>)
        })
    }
}

fn list(names: &[String]) -> String {
    let shown = names.iter().take(LISTED_MAX).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > LISTED_MAX { format!("{shown} and {} more", names.len() - LISTED_MAX) } else { shown }
}

/// What a module imports, and what provides it.
fn imports(module: &wasmtime::Module, provided: &Provided) -> Vec<ImportInfo> {
    module
        .imports()
        .map(|import| ImportInfo {
            module: import.module().to_owned(),
            name: import.name().to_owned(),
            ty: describe(&import.ty()),
            provider: provided.provider(import.module(), import.name()),
        })
        .collect()
}

/// The exports of a module that can be called.
fn entries(module: &wasmtime::Module) -> impl Iterator<Item = Entry> {
    module.exports().filter_map(|export| {
        let ty = export.ty();
        let ty = ty.func().filter(|ty| ty.params().len() == 0)?;
        let mut results = ty.results();
        let returns_code = match (results.next(), results.next()) {
            (None, _) => false,
            (Some(wasmtime::ValType::I32), None) => true,
            _ => return None,
        };
        Some(Entry { name: export.name().to_owned(), returns_code })
    })
}

fn info(module: &wasmtime::Module, provided: &Provided, artifact: &Artifact, structure: Structure) -> ModuleInfo {
    let imports = imports(module, provided);
    let abi = if imports.iter().any(|import| import.module == "extism:host/env") {
        Abi::Extism
    } else if imports.iter().any(|import| import.module == reactor::MODULE) {
        Abi::Reactor
    } else {
        Abi::Command
    };
    let mut info = ModuleInfo::new(artifact, abi);
    info.entries = entries(module).collect();
    for export in module.exports() {
        let ty = export.ty();
        if let ExternType::Memory(memory) = &ty {
            info.memory_initial_bytes += memory.minimum() * memory.page_size();
            info.memory_maximum_bytes = memory.maximum().map(|pages| pages * memory.page_size());
        }
        info.exports.push(ExportInfo { name: export.name().to_owned(), ty: describe(&ty) });
    }
    info.has_start = structure.has_start;
    info.needs = needs(&imports);
    info.imports = imports;
    let code = module.image_range();
    info.compiled_bytes = Some(code.end as u64 - code.start as u64);
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
    match ty {
        ExternType::Func(ty) => {
            let types = |types: &mut dyn Iterator<Item = wasmtime::ValType>| {
                types.map(|ty| ty.to_string()).collect::<Vec<_>>().join(", ")
            };
            format!("func({}) -> ({})", types(&mut ty.params()), types(&mut ty.results()))
        }
        ExternType::Memory(ty) => match ty.maximum() {
            Some(maximum) => format!("memory of {} to {maximum} pages", ty.minimum()),
            None => format!("memory of {} pages or more", ty.minimum()),
        },
        ExternType::Table(ty) => format!("table of {} entries or more", ty.minimum()),
        ExternType::Global(ty) => format!("global {}", ty.content()),
        ExternType::Tag(_) => "tag".to_owned(),
    }
}
