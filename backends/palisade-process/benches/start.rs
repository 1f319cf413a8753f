//! What starting and calling native guests costs, each beside a baseline in the same run.
//!
//! ```sh
//! cargo bench -p palisade-process --bench start -- [FILTER]
//! ```
//!
//! Prints a table of ratios with the bounds of the design. Rounds of both sides alternate, so that a busy machine slows
//! both; the figure is the median of the rounds' ratios. The first reply of a fresh instance is compared with a bare fork
//! of this process that does nothing and is waited for.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_core::{
    Artifact, ArtifactKind, BackendOptions, Call, Clocks, HostFunctions, Policy, Prepared, PreparedExt, Sandbox,
    block_on,
};
use palisade_process::ProcessSandbox;

const ROUNDS: usize = 25;

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    let rounds = if std::env::args().any(|argument| argument == "--bench") { ROUNDS } else { 1 };
    if std::env::args().any(|argument| argument == "--pong") {
        return pong();
    }
    let sandbox = ProcessSandbox::open(&BackendOptions::new()).unwrap_or_else(|error| panic!("{error}"));
    let prepare = |kind, path: &std::path::Path| -> Arc<dyn Prepared> {
        let mut policy = Policy::default();
        policy.grants.clocks = Clocks::Fine;
        let artifact = Artifact::new(kind, std::fs::read(path).unwrap()).named("guest");
        block_on(sandbox.load(artifact)).and_then(|module| module.prepare(policy, HostFunctions::new())).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let noop = compile(folder.path(), "noop", "bin", "fn main() {}");
    let library = compile(
        folder.path(),
        "library",
        "cdylib",
        "#[unsafe(no_mangle)] pub static mut palisade_host_v1: *const u8 = std::ptr::null();
         #[unsafe(no_mangle)] pub extern \"C\" fn noop() -> i32 { 0 }",
    );
    let program = prepare(ArtifactKind::Executable, &noop);
    let plugin = prepare(ArtifactKind::SharedLibrary, &library);

    let plain = || assert!(Command::new(&noop).status().unwrap().success());
    let jailed = || assert!(block_on(program.run(Call::new())).unwrap().outcome.is_success());
    compare("executable: start, run, end | posix_spawn and wait", "2 x + 0.5 ms", rounds, 20, jailed, plain);

    let fresh = || assert!(block_on(plugin.run(Call::new().entry("noop"))).unwrap().outcome.is_success());
    compare("library: fresh instance, load, call, end | the same", "", rounds, 20, fresh, plain);

    compare(
        "fresh jailed instance, made and dropped | fork, exit, wait",
        "2 x",
        rounds,
        20,
        || create_one(&*program),
        fork,
    );
    compare("library: fresh instance, load, call, end | fork, exit, wait", "", rounds, 20, fresh, fork);

    let mut warm = block_on(plugin.instantiate()).unwrap();
    let call = || assert!(block_on(warm.call(Call::new().entry("noop"))).unwrap().outcome.is_success());
    let mut pipe = Pong::start();
    compare("call into a warm instance | bare pipe round trip", "2 x", rounds, 200, call, || pipe.ping());

    if Command::new("bwrap").arg("--version").output().is_ok() {
        let bwrap = || {
            let mut command = Command::new("bwrap");
            command.args(["--unshare-all", "--ro-bind", "/", "/"]).arg(&noop);
            assert!(command.status().unwrap().success());
        };
        compare("executable: start, run, end | bwrap --unshare-all", "0.1 x", rounds, 10, jailed, bwrap);
    } else {
        println!("bwrap is not installed; not compared with it");
    }
}

fn create_one(prepared: &dyn Prepared) {
    drop(block_on(prepared.instantiate()).unwrap());
}

fn fork() {
    // SAFETY: the child does nothing but end, for which it needs no lock that another thread may hold.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: never returns.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: a null pointer says that the status is not wanted.
    assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }, pid);
}

/// Median ratio, and the median time of each side.
fn compare(what: &str, bound: &str, rounds: usize, times: u32, mut ours: impl FnMut(), mut baseline: impl FnMut()) {
    // A filter on the command line chooses by a part of the text, as with other benches.
    let mut filters = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    if filters.peek().is_some() && !filters.any(|filter| what.contains(&filter)) {
        return;
    }
    let measure = |side: &mut dyn FnMut()| {
        let begun = Instant::now();
        (0..times).for_each(|_| side());
        begun.elapsed() / times
    };
    let mut pairs: Vec<(Duration, Duration)> =
        (0..rounds).map(|_| (measure(&mut ours), measure(&mut baseline))).collect();
    let ratio = |pair: &(Duration, Duration)| pair.0.as_secs_f64() / pair.1.as_secs_f64();
    pairs.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)));
    let median = pairs[pairs.len() / 2];
    let bound = if bound.is_empty() { String::new() } else { format!("; bound {bound}") };
    println!("{what}: {:?} | {:?}: {:.2} x{bound}", median.0, median.1, ratio(&median));
}

fn compile(folder: &std::path::Path, name: &str, kind: &str, source: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    let from = folder.join(format!("{name}.rs"));
    std::fs::write(&from, source).unwrap();
    let mut rustc = Command::new(option_env!("RUSTC").unwrap_or("rustc"));
    rustc.args(["--edition", "2024", "-O", "-C", "panic=abort", "-A", "warnings", "--crate-type", kind]);
    assert!(rustc.arg("-o").arg(&path).arg(from).status().unwrap().success());
    path
}

/// Another process that sends back what it gets.
struct Pong {
    to: OwnedFd,
    from: OwnedFd,
    child: std::process::Child,
}

impl Pong {
    fn start() -> Pong {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("--pong")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Pong { to: child.stdin.take().unwrap().into(), from: child.stdout.take().unwrap().into(), child }
    }

    fn ping(&mut self) {
        let mut byte = [0];
        assert_eq!(rustix::io::write(&self.to, &[1]).unwrap(), 1);
        assert_eq!(rustix::io::read(&self.from, &mut byte).unwrap(), 1);
    }
}

impl Drop for Pong {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pong() {
    let (mut from, mut to) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut byte = [0];
    while from.read_exact(&mut byte).is_ok() {
        if to.write_all(&byte).and_then(|()| to.flush()).is_err() {
            return;
        }
    }
}
