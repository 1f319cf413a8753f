//! The `palisade` command with the backends of Palisade that its features choose.
#![forbid(unsafe_code)]

/// A task's memory is often freed by another thread than took it, for which threads wait in the system's allocator: an
/// eighth of the daemon's throughput (`fabric` in the benches).
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    palisade_cli::main()
}
