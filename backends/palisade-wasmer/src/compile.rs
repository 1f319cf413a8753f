//! Compiling: in this process, or in one of its own, with both ends of it.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use palisade_core::{Error, ErrorKind, Result};
use palisade_wasm::compilers::Attempt;
use palisade_wasm::process;
use wasmer::sys::NativeEngineExt;
use wasmer::{Engine, Module};
use wasmer_types::{CompilationProgressCallback, UserAbort};

use crate::backend::Wasmer;
use crate::engine;

/// First argument of a process that is to compile.
const ASKED: &str = "--palisade-compile-wasmer";

/// Compiles `wasm` in this process, unless the attempt is given up first.
pub(crate) fn here(engine: &Engine, wasm: &[u8], attempt: &Attempt) -> Result<Module> {
    let attempt = attempt.clone();
    let progress = CompilationProgressCallback::new(move |_| {
        if attempt.is_given_up() { Err(UserAbort::new("nobody waits for it any more")) } else { Ok(()) }
    });
    engine.new_module_with_progress(wasm, progress).map_err(|error| {
        Error::new(ErrorKind::InvalidArtifact, "load", format!("the module does not compile: {error}"))
    })
}

/// Has `program` compile `wasm`.
pub(crate) fn in_process(program: &Path, engine: &Engine, wasm: &[u8], attempt: &Attempt) -> Result<Module> {
    let code = process::compile(program, &[OsStr::new(ASKED)], wasm, attempt)?;
    // SAFETY: the code was written by the program that this host's options name for it, which is trusted as the engine in
    // this process is: it writes the unmodified output of `Module::serialize`. The file it came in is sealed.
    unsafe { Module::deserialize(engine, code) }.map_err(|error| {
        Error::new(ErrorKind::Internal, "load", "the compiler's code does not fit this engine")
            .with_help("name a compiler of the same version, or none")
            .with_source(error.to_string())
    })
}

impl Wasmer {
    /// Compiles an artifact when this process was started for that by
    /// [`BackendOptions::compiler`](palisade_core::BackendOptions::compiler), and gives what `main` is to return. To be
    /// called first thing in `main`, before anything else takes memory or starts threads; it costs a look at the arguments.
    pub fn compile_if_asked() -> Option<ExitCode> {
        process::compile_if_asked(ASKED, |_, wasm| {
            let module = Module::new(&engine::engine(wasm.len()), wasm).map_err(|error| error.to_string())?;
            module.serialize().map(Vec::from).map_err(|error| error.to_string())
        })
    }
}
