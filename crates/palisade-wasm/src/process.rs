//! Compiling in a process of its own, which can be ended, and whose memory and time are bounded.
//!
//! The process is a program that the host's options name. It gets the artifact as a file on its standard input, writes the
//! compiled code to its standard output, which is a file in memory as well, and ends.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use palisade_core::{Error, ErrorKind, Result};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, getrlimit, pidfd_open, setrlimit};

use crate::compilers::{Attempt, COMPILE_TIME_MAX};
use crate::structure::invalid;

/// Address space of a compiler, and more for each of its threads.
const ADDRESS_SPACE_BYTES: u64 = 4 << 30;
const ADDRESS_SPACE_BYTES_PER_THREAD: u64 = 256 << 20;
/// Largest compiled code.
const CODE_BYTES_MAX: u64 = 1 << 30;
/// Most of a compiler's complaint that is shown.
const COMPLAINT_BYTES_MAX: u64 = 2000;

/// Has `program` compile `wasm`. Gives the code. Blocks until the process has ended, which it does at once when the attempt is
/// given up.
///
/// # Errors
///
/// [`ErrorKind::InvalidArtifact`] when the artifact does not compile within the bounds, [`ErrorKind::Io`] when the program
/// cannot be run.
pub fn compile(program: &Path, arguments: &[&OsStr], wasm: &[u8], attempt: &Attempt) -> Result<Vec<u8>> {
    let failed = |error: io::Error| {
        Error::new(ErrorKind::Io, "load", format!("the compiler `{}` cannot be run", program.display()))
            .with_help("name a program that compiles (`BackendOptions::compiler`), or none")
            .with_source(error)
    };
    let mut artifact = memory_file("palisade-wasm").map_err(failed)?;
    artifact.write_all(wasm).and_then(|()| artifact.rewind()).map_err(failed)?;
    let mut code = memory_file("palisade-cwasm").map_err(failed)?;
    let mut complaint = memory_file("palisade-complaint").map_err(failed)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(artifact)
        .stdout(code.try_clone().map_err(failed)?)
        .stderr(complaint.try_clone().map_err(failed)?);
    let mut child = command.spawn().map_err(failed)?;
    drop(command);
    // Nobody reaps the child before it is waited for below, so the number is still its own.
    match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        Ok(process) => attempt.is_done_by(process),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(error.into()));
        }
    }
    let status = child.wait();
    attempt.is_done();
    let status = status.map_err(failed)?;
    if status.success() {
        return read(&mut code).map_err(failed);
    }
    if status.code().is_some() {
        let mut text = Vec::new();
        complaint.rewind().and_then(|()| complaint.take(COMPLAINT_BYTES_MAX).read_to_end(&mut text)).map_err(failed)?;
        let text: String =
            String::from_utf8_lossy(&text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        return Err(invalid(format!("the module does not compile: {}", text.trim())));
    }
    let signal = status.signal().unwrap_or_default();
    let (memory, time) = (address_space_bytes() >> 20, COMPILE_TIME_MAX.as_secs());
    Err(invalid(format!(
        "the module does not compile within {memory} MiB of address space and {time} s of CPU time (signal {signal})"
    )))
}

/// Compiles what this process was sent, when `asked` is its first argument, and gives what `main` is to return. The rest of
/// the arguments goes to `compile`.
pub fn compile_if_asked<E: fmt::Display>(
    asked: &str,
    compile: impl FnOnce(&[OsString], &[u8]) -> std::result::Result<Vec<u8>, E>,
) -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != asked {
        return None;
    }
    let arguments: Vec<_> = arguments.collect();
    let done = receive().map_err(|error| format!("the compiler cannot begin: {error}")).and_then(|wasm| {
        let code = compile(&arguments, &wasm).map_err(|error| format!("{error:#}"))?;
        let mut out = io::stdout().lock();
        out.write_all(&code).and_then(|()| out.flush()).map_err(|error| format!("the code cannot be written: {error}"))
    });
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(complaint) => {
            // The host is told by the code alone if not even this can be written.
            let _ = writeln!(io::stderr(), "{complaint}");
            ExitCode::FAILURE
        }
    })
}

/// Bounds what this process may take, and gives what it was sent to compile.
fn receive() -> io::Result<Vec<u8>> {
    let limit = |resource, max: u64| {
        // What this process was bounded by before stays.
        let max = getrlimit(resource).maximum.map_or(max, |before| before.min(max));
        setrlimit(resource, Rlimit { current: Some(max), maximum: Some(max) })
    };
    limit(Resource::As, address_space_bytes())?;
    limit(Resource::Cpu, COMPILE_TIME_MAX.as_secs())?;
    limit(Resource::Fsize, CODE_BYTES_MAX)?;
    limit(Resource::Core, 0)?;
    let mut wasm = Vec::new();
    io::stdin().lock().read_to_end(&mut wasm)?;
    Ok(wasm)
}

fn address_space_bytes() -> u64 {
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    ADDRESS_SPACE_BYTES + threads * ADDRESS_SPACE_BYTES_PER_THREAD
}

fn memory_file(name: &str) -> io::Result<File> {
    Ok(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?.into())
}

/// What is in the file, once nobody can change it any more.
fn read(file: &mut File) -> io::Result<Vec<u8>> {
    rustix::fs::fcntl_add_seals(&*file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compilers::Compilers;
    use std::task::{Context, Waker};

    /// A shell command in place of a compiler.
    fn shell(command: &str, attempt: &Attempt) -> Result<Vec<u8>> {
        compile(Path::new("/bin/sh"), &[OsStr::new("-c"), OsStr::new(command)], b"artifact", attempt)
    }

    #[test]
    fn what_comes_back_is_what_was_written() {
        assert_eq!(
            shell("read -r line; echo \"compiled $line\"", &Attempt::default()).unwrap(),
            b"compiled artifact\n"
        );
        assert_eq!(shell("echo \"[$HOME$PALISADE]\"; pwd", &Attempt::default()).unwrap(), b"[]\n/\n");
    }

    #[test]
    fn what_was_read_cannot_change() {
        let mut file = memory_file("test").unwrap();
        let mut other = file.try_clone().unwrap();
        other.write_all(b"code").unwrap();
        assert_eq!(read(&mut file).unwrap(), b"code");
        assert!(other.write_all(b"x").is_err());
    }

    #[test]
    fn complaints_and_signals_are_told() {
        let refused = |command: &str| shell(command, &Attempt::default()).unwrap_err();
        let complaint = refused("printf 'no\\033[31m such\\n thing' >&2; exit 3");
        assert_eq!(complaint.kind(), ErrorKind::InvalidArtifact);
        assert!(complaint.message().ends_with("the module does not compile: no [31m such  thing"), "{complaint}");
        let killed = refused("kill -9 $$");
        assert_eq!(killed.kind(), ErrorKind::InvalidArtifact);
        assert!(killed.message().contains("signal 9"), "{killed}");
        let missing = compile(Path::new("/no/such/program"), &[], b"", &Attempt::default()).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::Io);
    }

    #[test]
    fn giving_up_ends_the_process_and_frees_the_place() {
        let compilers = Compilers::default();
        let mut context = Context::from_waker(Waker::noop());
        let scratch = tempfile::tempdir().unwrap();
        // Given up before the process is there, and while it runs.
        for begun in [false, true] {
            let started: Vec<_> = (0..8).map(|number| scratch.path().join(number.to_string())).collect();
            let endless = |started: &Path| {
                let command = format!("echo > {}; while :; do :; done", started.display());
                compilers.run(std::future::pending(), move |attempt| shell(&command, attempt))
            };
            let mut all: Vec<_> = started.iter().map(|started| Box::pin(endless(started))).collect();
            all.iter_mut().for_each(|future| assert!(future.as_mut().poll(&mut context).is_pending()));
            while begun && !started.iter().all(|started| started.exists()) {
                std::thread::yield_now();
            }
            drop(all);
            // Bounded by the test runner's own limit: the places come back, or this never ends.
            while compilers.running() > 0 {
                std::thread::yield_now();
            }
        }
    }
}
