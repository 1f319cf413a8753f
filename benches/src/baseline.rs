//! A hand-written Wasmtime embedding with the protections of the backend and nothing else: pooled slots that stay
//! resident, fuel, epochs with a callback, a limiter that adds up memory, exports looked up by index.

use wasmtime::{
    Config, Engine, Instance, InstanceAllocationStrategy, InstancePre, Linker, Module, ModuleExport,
    PoolingAllocationConfig, ResourceLimiter, Result, Store, TypedFunc, UpdateDeadline,
};

/// Memory a guest may have.
const MEMORY_BYTES_MAX: usize = 128 << 20;

/// Store data: the memory account.
#[derive(Debug, Default)]
pub struct Account {
    bytes: usize,
    peak: usize,
}

impl ResourceLimiter for Account {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        self.bytes += desired - current;
        self.peak = self.peak.max(self.bytes);
        Ok(self.bytes <= MEMORY_BYTES_MAX)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        self.bytes += (desired - current) * size_of::<usize>();
        self.peak = self.peak.max(self.bytes);
        Ok(self.bytes <= MEMORY_BYTES_MAX)
    }
}

/// A module ready to be instantiated by hand.
pub struct Embedding {
    pre: InstancePre<Account>,
    entry: ModuleExport,
}

impl std::fmt::Debug for Embedding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Embedding")
    }
}

/// An engine tuned as the reference measurements found best.
///
/// # Errors
///
/// The engine's.
pub fn engine() -> Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(1000)
        .total_memories(1000)
        .total_tables(1000)
        .total_stacks(1000)
        .linear_memory_keep_resident(128 << 10)
        .table_keep_resident(128 << 10);
    let mut config = Config::new();
    config
        .consume_fuel(true)
        .epoch_interruption(true)
        .generate_address_map(false)
        .native_unwind_info(false)
        .concurrency_support(false)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config)
}

impl Embedding {
    /// Compiles `wasm`, whose entry is called `_start`.
    ///
    /// # Errors
    ///
    /// The engine's.
    pub fn new(engine: &Engine, wasm: &[u8]) -> Result<Embedding> {
        let module = Module::new(engine, wasm)?;
        let entry = module.get_export_index("_start").ok_or_else(|| wasmtime::Error::msg("no `_start`"))?;
        Ok(Embedding { pre: Linker::new(engine).instantiate_pre(&module)?, entry })
    }

    fn store(&self) -> Result<Store<Account>> {
        let mut store = Store::new(self.pre.module().engine(), Account::default());
        store.limiter(|account| account);
        store.set_fuel(1_000_000_000)?;
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|_| Ok(UpdateDeadline::Continue(1)));
        Ok(store)
    }

    /// Makes a fresh instance, calls it and drops it.
    ///
    /// # Errors
    ///
    /// The guest's trap.
    pub fn fresh(&self) -> Result<u64> {
        let mut store = self.store()?;
        let instance = self.pre.instantiate(&mut store)?;
        self.function(&mut store, &instance)?.call(&mut store, ())?;
        store.get_fuel()
    }

    /// An instance to be called again and again.
    ///
    /// # Errors
    ///
    /// The engine's.
    pub fn warm(&self) -> Result<Warm> {
        let mut store = self.store()?;
        let instance = self.pre.instantiate(&mut store)?;
        let function = self.function(&mut store, &instance)?;
        Ok(Warm { store, function })
    }

    fn function(&self, store: &mut Store<Account>, instance: &Instance) -> Result<TypedFunc<(), ()>> {
        let export = instance.get_module_export(&mut *store, &self.entry);
        export.and_then(|export| export.into_func()).ok_or_else(|| wasmtime::Error::msg("no function"))?.typed(store)
    }
}

/// A warm instance of an [`Embedding`].
pub struct Warm {
    store: Store<Account>,
    function: TypedFunc<(), ()>,
}

impl std::fmt::Debug for Warm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Warm")
    }
}

impl Warm {
    /// Calls it.
    ///
    /// # Errors
    ///
    /// The guest's trap.
    pub fn call(&mut self) -> Result<()> {
        self.store.set_fuel(1_000_000_000)?;
        self.function.call(&mut self.store, ())
    }
}
