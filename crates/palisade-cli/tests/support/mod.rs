//! Drives the real `palisade` program, each time in a place of its own.
#![allow(dead_code, reason = "every test file uses the part it needs")]

pub(crate) mod daemon;
pub(crate) mod guests;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

/// A program that takes longer hangs: it is killed and its test fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// A working directory, a home, a cache: nothing is shared with another test, or with the person who runs it.
pub(crate) struct Palisade {
    place: tempfile::TempDir,
}

impl Palisade {
    pub(crate) fn new() -> Palisade {
        let palisade = Palisade { place: tempfile::tempdir().expect("a temporary directory") };
        std::fs::create_dir(palisade.folder()).expect("a working directory");
        palisade
    }

    /// The working directory of everything that is run here.
    pub(crate) fn folder(&self) -> PathBuf {
        self.place.path().join("work")
    }

    /// Where compiled code is kept.
    pub(crate) fn cache(&self) -> PathBuf {
        self.place.path().join("cache/palisade")
    }

    /// Where the cache's key is kept.
    pub(crate) fn data(&self) -> PathBuf {
        self.place.path().join("data/palisade")
    }

    /// Writes a file into the working directory. Its absolute path.
    pub(crate) fn file(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder().join(name);
        std::fs::write(&path, content).expect("a file in the working directory");
        path
    }

    /// Writes `guest` as `guest.wat` and runs it with these options, with nothing on standard input.
    pub(crate) fn guest(&self, guest: &str, options: &[&str]) -> Ended {
        self.guest_with(guest, options, b"")
    }

    /// As [`Palisade::guest`], with this on standard input.
    pub(crate) fn guest_with(&self, guest: &str, options: &[&str], input: &[u8]) -> Ended {
        self.file("guest.wat", guest);
        let mut running = self.start(["run", "guest.wat"].iter().chain(options));
        running.send(input);
        running.finish()
    }

    /// Runs `palisade` with these arguments and nothing on standard input.
    pub(crate) fn run(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Ended {
        Running::start(self.command().args(arguments)).finish()
    }

    /// Starts `palisade` with these arguments; its standard input stays open until [`Running::finish`].
    pub(crate) fn start(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Running {
        Running::start(self.command().args(arguments))
    }

    /// Runs a script of the shell, which finds the program as `$PALISADE`.
    pub(crate) fn shell(&self, script: &str, input: &[u8]) -> Ended {
        let mut running = Running::start(self.at_home(Command::new("sh")).args(["-c", script]));
        running.send(input);
        running.finish()
    }

    /// Runs a script of the shell in a terminal of 100 columns and 30 rows, whose keyboard is standard input and whose screen
    /// is standard output.
    pub(crate) fn terminal(&self, script: &str) -> Running {
        let found = Command::new("script").arg("--version").output().is_ok();
        assert!(found, "`script` is missing: install util-linux, on Debian and Ubuntu its package `bsdutils`");
        let script = format!("stty cols 100 rows 30; {script}");
        let mut command = self.at_home(Command::new("script"));
        Running::start(command.env("SHELL", "/bin/sh").args(["-qec", &script, "/dev/null"]))
    }

    /// The program, at home here, for what the other methods do not cover.
    pub(crate) fn command(&self) -> Command {
        self.at_home(Command::new(env!("CARGO_BIN_EXE_palisade")))
    }

    fn at_home(&self, mut command: Command) -> Command {
        let place = self.place.path();
        command
            .current_dir(self.folder())
            .env("PALISADE", env!("CARGO_BIN_EXE_palisade"))
            .env("HOME", place.join("home"))
            .env("XDG_CACHE_HOME", place.join("cache"))
            .env("XDG_DATA_HOME", place.join("data"));
        command
    }
}

/// A program that runs. It is killed when the test is over, whatever happens.
pub(crate) struct Running {
    child: Child,
    handle: Arc<OwnedFd>,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    started: Instant,
    overdue: Arc<AtomicBool>,
    /// Dropping it calls off the killer.
    _in_time: Sender<()>,
}

impl Running {
    /// Starts `command` with pipes on all three streams.
    pub(crate) fn start(command: &mut Command) -> Running {
        Running::start_to(command, Stdio::piped(), Stdio::piped())
    }

    /// Starts `command` with these for output; what is not a pipe of ours ends up empty in [`Ended`].
    pub(crate) fn start_to(command: &mut Command, stdout: Stdio, stderr: Stdio) -> Running {
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map(BufReader::new);
        let stderr = child.stderr.take().map(|mut stderr| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                stderr.read_to_end(&mut bytes).expect("standard error can be read");
                bytes
            })
        });
        let pid = Pid::from_child(&child);
        // By its handle nobody else is ever hit, as might be by a number that was given away anew.
        let handle = Arc::new(pidfd_open(pid, PidfdFlags::empty()).expect("a handle of the program"));
        let overdue = Arc::new(AtomicBool::new(false));
        let (in_time, ended) = channel::<()>();
        let killer = (Arc::clone(&handle), Arc::clone(&overdue));
        std::thread::spawn(move || {
            if ended.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                killer.1.store(true, Ordering::SeqCst);
                let _ = pidfd_send_signal(&*killer.0, Signal::KILL);
            }
        });
        Running { child, handle, stdin, stdout, stderr, started, overdue, _in_time: in_time }
    }

    /// Writes to standard input. A program that ended without reading it all is no error.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        match self.stdin.as_mut().expect("standard input is open").write_all(bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            other => other.expect("standard input can be written"),
        }
    }

    /// Waits for a line on standard output. Empty when it ended.
    pub(crate) fn read_line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.as_mut().expect("standard output is open").read_line(&mut line).expect("a line of text");
        line
    }

    /// Closes the reading end of standard output.
    pub(crate) fn close_stdout(&mut self) {
        self.stdout = None;
    }

    /// Takes the reading end of standard output, so that it stays open and unread.
    pub(crate) fn take_stdout(&mut self) -> BufReader<ChildStdout> {
        self.stdout.take().expect("standard output is open")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        pidfd_send_signal(&*self.handle, signal).expect("the program can be signalled");
    }

    /// Closes standard input and waits for the end.
    pub(crate) fn finish(mut self) -> Ended {
        self.stdin = None;
        self.finish_with_open_input()
    }

    /// Waits for the end while standard input stays open and silent.
    pub(crate) fn finish_with_open_input(mut self) -> Ended {
        let mut stdout = Vec::new();
        if let Some(mut stream) = self.stdout.take() {
            stream.read_to_end(&mut stdout).expect("standard output can be read");
        }
        let status = self.child.wait().expect("the program can be waited for");
        let took = self.started.elapsed();
        let stderr = self.stderr.take().map(|reader| reader.join().expect("standard error was read"));
        let stderr = String::from_utf8_lossy(&stderr.unwrap_or_default()).into_owned();
        assert!(!self.overdue.load(Ordering::SeqCst), "the program did not end within {PATIENCE:?}\n{stderr}");
        let Some(code) = status.code() else {
            panic!("the program was killed by signal {:?}\n{stderr}", status.signal());
        };
        assert!(!stderr.contains("panicked at"), "the program panicked:\n{stderr}");
        Ended { code, stdout, stderr, took }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a program ended, and what it wrote.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl std::fmt::Debug for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ended")
            .field("code", &self.code)
            .field("stdout", &String::from_utf8_lossy(&self.stdout))
            .field("stderr", &self.stderr)
            .field("took", &self.took)
            .finish()
    }
}

impl Ended {
    /// Standard output as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap_or_else(|error| panic!("{error} in the output of {self:?}"))
    }

    /// The one JSON value that standard output has to be.
    pub(crate) fn json(&self) -> Value {
        let text = self.text();
        assert_eq!(text.matches('\n').count(), 1, "not one line: {self:?}");
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The JSON report of `run --json`, after checking the exit code and that the report names the same one.
    #[track_caller]
    pub(crate) fn report(&self, code: i32) -> Value {
        assert_eq!(self.code, code, "{self:?}");
        let report = self.json();
        assert_eq!(report["exit_code"], code, "{report:#}");
        report
    }

    /// Checks for the error of the host that ends in `code`: nothing on standard output, and on standard error one line
    /// with all these `parts`.
    #[track_caller]
    pub(crate) fn assert_error(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.stdout.is_empty(), "{self:?}");
        assert!(self.stderr.starts_with("palisade: error: ") && self.stderr.ends_with('\n'), "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "not one line: {self:?}");
        assert_eq!(control_characters(&self.stderr), "\n", "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is missing in {self:?}");
        }
    }
}

/// Checks the outcome of a report: a quota of `limit` ran out.
#[track_caller]
pub(crate) fn assert_exceeded(report: &Value, resource: &str, limit: u64, phase: &str) {
    let outcome = &report["outcome"];
    assert_eq!(outcome["kind"], "quota_exceeded", "{report:#}");
    assert_eq!(outcome["resource"], resource, "{report:#}");
    assert_eq!(outcome["limit"], limit, "{report:#}");
    assert_eq!(outcome["phase"], phase, "{report:#}");
    assert!(outcome["used"].as_u64().is_some_and(|used| used > limit), "{report:#}");
}

/// The control characters of a text: those that can move a terminal's cursor.
pub(crate) fn control_characters(text: &str) -> String {
    let mut found: Vec<_> = text.chars().filter(|c| c.is_control()).collect();
    found.sort_unstable();
    found.dedup();
    found.into_iter().collect()
}

/// The files below a folder, sorted. Empty when there is no such folder.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("a folder's entry").path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

/// The repository's folder of this name.
pub(crate) fn repository(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder)
}
