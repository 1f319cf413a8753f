//! Compiling in a process of its own: both ends of it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use palisade_core::Result;
use palisade_wasm::compilers::Attempt;
use palisade_wasm::process;

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
pub(crate) fn in_process(program: &Path, allocation: Allocation, wasm: &[u8], attempt: &Attempt) -> Result<File> {
    process::compile(program, &[OsStr::new(ASKED), OsStr::new(name(allocation))], wasm, attempt)
}

/// Compiles an artifact when this process was started for that by
/// [`BackendOptions::compiler`](palisade_core::BackendOptions::compiler), and gives what `main` is to return. To be called
/// first thing in `main`, before anything else takes memory or starts threads; it costs a look at the arguments.
///
/// ```
/// use std::process::ExitCode;
///
/// fn main() -> ExitCode {
///     if let Some(compiled) = palisade_wasmtime::compile_if_asked() {
///         return compiled;
///     }
///     // What the program is for; its `BackendOptions` have `.compiler("/proc/self/exe")`.
///     ExitCode::SUCCESS
/// }
/// ```
pub fn compile_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != ASKED {
        return None;
    }
    let allocation =
        if arguments.next()? == name(Allocation::Frugal) { Allocation::Frugal } else { Allocation::OnDemand };
    Some(match compile(allocation) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The host is told by the code alone if not even this can be written.
            let _ = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    })
}

fn compile(allocation: Allocation) -> wasmtime::Result<()> {
    let wasm = process::receive()?;
    let code = engine::engine(allocation, STACK_BYTES_DEFAULT)?.precompile_module(&wasm)?;
    let mut out = std::io::stdout().lock();
    out.write_all(&code)?;
    out.flush()?;
    Ok(())
}
