//! What the benches share: baselines written by hand against the engine, a way to compare two things fairly, guests for
//! every backend, and a fabric on one.

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub mod baseline;
pub mod fabric;
pub mod guests;
pub mod paired;
pub mod resident;
pub mod trend;
pub mod verdict;
pub mod wasmer_baseline;
