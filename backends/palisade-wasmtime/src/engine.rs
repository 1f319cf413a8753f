//! Configuration of the engine, and the probe that decides how instances are allocated.

use palisade_core::{Error, ErrorKind, Result};
use palisade_wasm::structure::TABLES_MAX;
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

/// Largest linear memory, and what is reserved for each: an address is 32 bits.
pub(crate) const MEMORY_BYTES_MAX: u64 = 1 << 32;
/// Smallest call stack; below this, ordinary programs do not start.
pub(crate) const STACK_BYTES_MIN: u64 = 16 << 10;
/// Largest call stack.
pub(crate) const STACK_BYTES_MAX: u64 = 8 << 20;
/// Call stack of the main engine; other sizes get an engine of their own.
pub(crate) const STACK_BYTES_DEFAULT: u64 = 512 << 10;
/// The stack that a guest gets whose quota is `bytes`: the next power of two, so that the engines for all quotas together are
/// few, whatever tenants ask for.
pub(crate) fn stack_bytes(bytes: u64) -> u64 {
    bytes.clamp(STACK_BYTES_MIN, STACK_BYTES_MAX).next_power_of_two()
}

/// Room for host functions beside the guest on its stack.
const HOST_STACK_BYTES: u64 = 3 << 19;

/// Part of each slot that stays resident and is zeroed by hand between instances. It saves the page faults and the
/// kernel's lock that decide how instantiation scales over cores; measured on two cores, 128 KiB give five times the
/// rate of none.
const KEEP_RESIDENT_BYTES: usize = 128 << 10;
/// Address space a frugal memory gets beyond its size, so that not every growth moves it.
const FRUGAL_GROWTH_BYTES: u64 = 1 << 20;
const FRUGAL_GUARD_BYTES: u64 = 64 << 10;
/// Tables of one instance in the pool; modules with more are allocated on demand.
pub(crate) const POOL_TABLES_PER_MODULE: u32 = 4;
/// Entries of one table in the pool; modules that need more are allocated on demand.
pub(crate) const POOL_TABLE_ENTRIES: usize = 100_000;
/// What the engine keeps for one instance in the pool besides its memory and tables.
pub(crate) const INSTANCE_BYTES_MAX: usize = 1 << 20;

/// How instances get their memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Allocation {
    /// From slots reserved in advance.
    Pooled {
        /// Number of slots.
        instances: u32,
    },
    /// Mapped for each instance, for modules that do not fit into a slot.
    OnDemand,
    /// Mapped for each instance, with no address space reserved: memories move when they grow, and every access is checked
    /// by code. For machines where address space is short.
    Frugal,
}

/// Makes an engine.
pub(crate) fn engine(allocation: Allocation, stack_bytes: u64) -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    config
        .cranelift_opt_level(OptLevel::Speed)
        .consume_fuel(true)
        .epoch_interruption(true)
        .max_wasm_stack(stack_bytes as usize)
        .async_stack_size((stack_bytes + HOST_STACK_BYTES) as usize)
        .memory_init_cow(true)
        // Names of functions in trap messages need frames, not addresses.
        .generate_address_map(false)
        .native_unwind_info(false)
        .concurrency_support(false)
        // One language for every Wasm backend: what WebAssembly 2.0 has, less what multiplies a guest's memories.
        .wasm_multi_memory(false)
        .wasm_memory64(false)
        .wasm_tail_call(false)
        .wasm_relaxed_simd(false);
    match allocation {
        Allocation::OnDemand => {
            config.memory_reservation(MEMORY_BYTES_MAX).allocation_strategy(InstanceAllocationStrategy::OnDemand)
        }
        Allocation::Frugal => config
            .memory_reservation(0)
            .memory_reservation_for_growth(FRUGAL_GROWTH_BYTES)
            .memory_guard_size(FRUGAL_GUARD_BYTES)
            .memory_may_move(true)
            .allocation_strategy(InstanceAllocationStrategy::OnDemand),
        Allocation::Pooled { instances } => {
            let mut pool = PoolingAllocationConfig::new();
            pool.total_core_instances(instances)
                .total_stacks(instances)
                .total_memories(instances)
                .total_tables(instances.saturating_mul(POOL_TABLES_PER_MODULE))
                .max_memories_per_module(1)
                .max_tables_per_module(POOL_TABLES_PER_MODULE)
                .table_elements(POOL_TABLE_ENTRIES)
                .max_core_instance_size(INSTANCE_BYTES_MAX)
                .max_memory_size(MEMORY_BYTES_MAX as usize)
                .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
                .table_keep_resident(KEEP_RESIDENT_BYTES)
                // The kernel's scan for dirty pages misses pages that were swapped out, which would then be shown to
                // the next tenant.
                .pagemap_scan(Enabled::No);
            config.memory_reservation(MEMORY_BYTES_MAX).allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        }
    };
    Engine::new(&config)
}

/// The best engine this machine has room for: as many pooled slots as asked for, or the frugal one where the address space
/// does not hold them (an `RLIMIT_AS`, a small virtual address size).
pub(crate) fn main_engine(instances: u32) -> Result<(Engine, Allocation)> {
    let pooled = Allocation::Pooled { instances };
    match engine(pooled, STACK_BYTES_DEFAULT) {
        Ok(engine) => Ok((engine, pooled)),
        Err(_) => engine(Allocation::Frugal, STACK_BYTES_DEFAULT).map(|engine| (engine, Allocation::Frugal)).map_err(
            |error| {
                Error::new(ErrorKind::Io, "open", "this machine cannot run the Wasmtime engine")
                    .with_help("run `palisade doctor` to see what is missing")
                    .with_source(error.to_string())
            },
        ),
    }
}

// Else rounding could go beyond the largest.
const _: () = assert!(STACK_BYTES_MAX.is_power_of_two() && STACK_BYTES_DEFAULT.is_power_of_two());
const _: () = assert!(TABLES_MAX >= POOL_TABLES_PER_MODULE);
