//! Compiling in a process of its own: both ends of it.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use palisade_core::Result;
use palisade_wasm::compilers::Attempt;
use palisade_wasm::process;

use crate::backend::Wasmtime;
use crate::engine::{self, Allocation, STACK_BYTES_DEFAULT};

/// First argument of a process that is to compile. The second says for which kind of memory.
const ASKED: &str = "--palisade-compile-wasmtime";

fn name(allocation: Allocation) -> &'static str {
    match allocation {
        // Slots or not, memories look the same to compiled code.
        Allocation::Pooled { .. } | Allocation::OnDemand => "reserved",
        Allocation::Frugal => "frugal",
    }
}

/// Has `program` compile `wasm`.
pub(crate) fn in_process(program: &Path, allocation: Allocation, wasm: &[u8], attempt: &Attempt) -> Result<Vec<u8>> {
    process::compile(program, &[OsStr::new(ASKED), OsStr::new(name(allocation))], wasm, attempt)
}

impl Wasmtime {
    /// Compiles an artifact when this process was started for that by
    /// [`BackendOptions::compiler`](palisade_core::BackendOptions::compiler), and gives what `main` is to return. To be
    /// called first thing in `main`, before anything else takes memory or starts threads; it costs a look at the arguments.
    ///
    /// ```
    /// use palisade_wasmtime::Wasmtime;
    /// use std::process::ExitCode;
    ///
    /// fn main() -> ExitCode {
    ///     if let Some(compiled) = Wasmtime::compile_if_asked() {
    ///         return compiled;
    ///     }
    ///     // What the program is for; its `BackendOptions` have `.compiler("/proc/self/exe")`.
    ///     ExitCode::SUCCESS
    /// }
    /// ```
    pub fn compile_if_asked() -> Option<ExitCode> {
        process::compile_if_asked(ASKED, |arguments, wasm| {
            let frugal = arguments.first().is_some_and(|kind| kind == name(Allocation::Frugal));
            let allocation = if frugal { Allocation::Frugal } else { Allocation::OnDemand };
            engine::engine(allocation, STACK_BYTES_DEFAULT)?.precompile_module(wasm)
        })
    }
}
