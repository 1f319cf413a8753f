//! Configuration of the engine, and what each instance gets from it.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use palisade_wasi::{Account, TABLE_ENTRY_BYTES};
use wasmer::sys::vm::{
    VMConfig, VMGlobal, VMGlobalDefinition, VMMemory, VMMemoryDefinition, VMTable, VMTableDefinition,
};
use wasmer::sys::{BaseTunables, EngineBuilder, Features, NativeEngineExt, Target, Tunables};
use wasmer::{Engine, GlobalType, MemoryError, MemoryStyle, MemoryType, TableStyle, TableType};

use crate::memory::{Memory, Pool};

/// Largest linear memory: an address is 32 bits.
pub(crate) const MEMORY_BYTES_MAX: u64 = 1 << 32;
/// Smallest call stack; below this, ordinary programs do not start.
pub(crate) const STACK_BYTES_MIN: u64 = 64 << 10;
/// Largest call stack.
pub(crate) const STACK_BYTES_MAX: u64 = 8 << 20;
pub(crate) const STACK_BYTES_DEFAULT: u64 = 512 << 10;
/// Entries of one table. The engine's own bound on declared sizes is a little above, and it has none on growth.
const TABLE_ENTRIES_MAX: u32 = 100_000_000;
/// Artifacts smaller than this are compiled on one thread: starting others takes longer.
const PARALLEL_FROM_BYTES: usize = 64 << 10;

/// Makes the engine for one module of `size` bytes. The engine's code lives as long as the engine, and its table of
/// function types tells types apart by 32 bits; so no two modules share one.
pub(crate) fn engine(size: usize) -> Engine {
    let mut features = Features::none();
    // One language for every Wasm backend; the validator decides, this is the engine's side of it.
    features.reference_types(true).simd(true).bulk_memory(true).multi_value(true).extended_const(true);
    let threads =
        if size < PARALLEL_FROM_BYTES { 1 } else { std::thread::available_parallelism().map_or(1, usize::from) };
    let engine = EngineBuilder::new(compiler(threads)).set_features(Some(features)).engine();
    Engine::from(engine)
}

#[cfg(feature = "cranelift")]
fn compiler(threads: usize) -> wasmer::sys::Cranelift {
    let mut compiler = wasmer::sys::Cranelift::new();
    compiler.num_threads(std::num::NonZero::new(threads).unwrap_or(std::num::NonZero::<usize>::MIN));
    compiler
}

#[cfg(not(feature = "cranelift"))]
fn compiler(threads: usize) -> wasmer::sys::Singlepass {
    let mut compiler = wasmer::sys::Singlepass::new();
    compiler.num_threads(std::num::NonZero::new(threads).unwrap_or(std::num::NonZero::<usize>::MIN));
    compiler
}

/// What decides the layout of memories, for this machine.
pub(crate) fn base_tunables() -> BaseTunables {
    BaseTunables::for_target(&Target::default())
}

/// The two words of one instance that the compiled-in code works with (see `instrument.rs`).
#[derive(Debug, Default)]
pub(crate) struct Words {
    last_but_one: AtomicPtr<VMGlobalDefinition>,
    last: AtomicPtr<VMGlobalDefinition>,
}

impl Words {
    /// Fuel that is left, as long as the instance lives.
    pub(crate) fn fuel(&self) -> Option<NonNull<i64>> {
        NonNull::new(self.last_but_one.load(Ordering::Relaxed).cast())
    }

    /// What the host makes negative to stop the guest, as long as the instance lives.
    pub(crate) fn flag(&self) -> Option<NonNull<i64>> {
        NonNull::new(self.last.load(Ordering::Relaxed).cast())
    }
}

/// How the engine makes the parts of one instance: within its memory account, with its own stack.
pub(crate) struct Limits {
    base: BaseTunables,
    config: VMConfig,
    pool: Arc<Pool>,
    account: Arc<Account>,
    words: Arc<Words>,
}

impl Limits {
    /// A handle of `engine` for one instance. The compiled code is shared, the limits are not.
    pub(crate) fn handle(
        engine: &Engine,
        base: &BaseTunables,
        stack_bytes: u64,
        pool: &Arc<Pool>,
        account: &Arc<Account>,
        words: &Arc<Words>,
    ) -> Engine {
        let mut engine = engine.clone();
        engine.set_tunables(Limits {
            base: base.clone(),
            config: VMConfig { wasm_stack_size: Some(stack_bytes as usize) },
            pool: Arc::clone(pool),
            account: Arc::clone(account),
            words: Arc::clone(words),
        });
        engine
    }
}

impl Tunables for Limits {
    fn memory_style(&self, memory: &MemoryType) -> MemoryStyle {
        self.base.memory_style(memory)
    }

    fn table_style(&self, table: &TableType) -> TableStyle {
        self.base.table_style(table)
    }

    fn create_host_memory(&self, _: &MemoryType, _: &MemoryStyle) -> Result<VMMemory, MemoryError> {
        Err(MemoryError::UnsupportedOperation { message: "the host makes no memories".into() })
    }

    unsafe fn create_vm_memory(
        &self,
        ty: &MemoryType,
        style: &MemoryStyle,
        definition: NonNull<VMMemoryDefinition>,
    ) -> Result<VMMemory, MemoryError> {
        // SAFETY: the engine gives a place in the instance, which outlives the memories it holds.
        unsafe { Memory::create(&self.pool, &self.account, *ty, *style, definition) }
    }

    fn create_host_table(&self, _: &TableType, _: &TableStyle) -> Result<VMTable, String> {
        Err("the host makes no tables".into())
    }

    unsafe fn create_vm_table(
        &self,
        ty: &TableType,
        style: &TableStyle,
        definition: NonNull<VMTableDefinition>,
    ) -> Result<VMTable, String> {
        if ty.minimum > TABLE_ENTRIES_MAX {
            return Err(format!("a table of {} entries is larger than {TABLE_ENTRIES_MAX}", ty.minimum));
        }
        let charged = self.account.grow(u64::from(ty.minimum) * TABLE_ENTRY_BYTES);
        charged.map_err(|_| "the memory quota is used up".to_owned())?;
        let mut bounded = *ty;
        bounded.maximum = Some(ty.maximum.unwrap_or(TABLE_ENTRIES_MAX).min(TABLE_ENTRIES_MAX));
        // SAFETY: the place is the one the engine gave.
        unsafe { VMTable::from_definition(&bounded, style, definition) }
    }

    unsafe fn create_vm_global(
        &self,
        ty: GlobalType,
        definition: NonNull<VMGlobalDefinition>,
    ) -> Result<VMGlobal, String> {
        // Globals are made in order, and ours are the last two.
        self.words.last_but_one.store(self.words.last.load(Ordering::Relaxed), Ordering::Relaxed);
        self.words.last.store(definition.as_ptr(), Ordering::Relaxed);
        // SAFETY: the place is the one the engine gave.
        Ok(unsafe { VMGlobal::new_instance(ty, definition) })
    }

    fn vmconfig(&self) -> &VMConfig {
        &self.config
    }
}
