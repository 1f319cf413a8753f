//! What each protection is for: leaves them out, and shows which checks notice.
//!
//! ```sh
//! PALISADE_ABLATION=1 cargo test -p palisade-process --test ablation
//! ```

//!
//! Not in the table: the user and the mount namespace. Everything else is made inside them, and by the privileges they
//! give, so without them there is no jail to attack.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use common::{children, fine, guest, plugin, prepare};
use palisade_conformance::{Protection, Subject, ablation, probe};
use palisade_core::{Artifact, BackendOptions, Call, Instance, OutputSink, OutputStream, block_on};
use palisade_process::ProcessSandbox;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Set in a process that one of the tests starts as a host of its own.
const HOST: &str = "PALISADE_TEST_HOST";

fn protections() -> Vec<Protection> {
    let mut protections = vec![
        Protection::alone("seccomp"),
        Protection::alone("limits"),
        Protection::alone("uts-namespace"),
        Protection::alone("descriptors"),
        Protection::alone("private-root").behind(&["landlock"]),
        Protection::alone("read-only").behind(&["landlock"]),
        Protection::alone("landlock").behind(&["read-only"]),
        Protection::alone("capabilities").behind(&["seccomp"]),
        Protection::alone("ipc-namespace").behind(&["seccomp"]),
        Protection::alone("network-namespace").behind(&["seccomp", "landlock"]),
        Protection::alone("pid-namespace").behind(&["seccomp", "landlock"]),
        Protection::alone("cgroup-namespace").own(|| of_each(has_control_groups_of_its_own)),
        Protection::alone("no-new-privileges").own(|| of_each(gets_no_new_privileges)),
        Protection::alone("not-dumpable").own(|| of_each(cannot_be_read)),
        Protection::alone("parent-death").own(dies_with_its_host),
    ];
    // An ordinary user has no other user to become.
    if rustix::process::geteuid().is_root() {
        protections.push(Protection::alone("outer-user").own(|| of_each(is_not_root_outside)));
    }
    protections
}

fn main() -> ExitCode {
    if std::env::var_os(HOST).is_some() {
        be_a_host();
        return ExitCode::SUCCESS;
    }
    let subject = Subject {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        open: || Ok(Arc::new(ProcessSandbox::open(&BackendOptions::new())?)),
        probe: probe::native,
        expectations: "version = 1",
    };
    ablation(subject, "process", &protections(), cfg!(palisade_ablation))
}

/// A new instance, locked in and waiting for its first call, and its process as the host sees it; also that of another one,
/// if it was made ahead already.
fn parked(artifact: &Artifact) -> Result<(Box<dyn Instance>, Vec<u32>), String> {
    let failed = |error: palisade_core::Error| format!("there is no instance: {error}");
    let prepared = prepare(artifact, &fine()).map_err(failed)?;
    let before = children(std::process::id());
    let instance = block_on(prepared.instantiate()).map_err(failed)?;
    let new: Vec<_> = children(std::process::id()).difference(&before).copied().collect();
    if new.is_empty() { Err("there is no new process".to_owned()) } else { Ok((instance, new)) }
}

/// The value of a line of the process's status.
fn status(pid: u32, name: &str) -> Result<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|error| error.to_string())?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.map(|value| value.trim().to_owned()).ok_or_else(|| format!("its status has no {name}"))
}

/// What `look` says about the process of a parked instance.
fn of_each(look: fn(u32) -> Result<(), String>) -> Result<(), String> {
    let (mut instance, processes) = parked(&plugin())?;
    // What answers a call is locked in; what was just cloned need not be yet.
    block_on(instance.call(Call::new().entry("echo"))).map_err(|error| error.to_string())?;
    processes.into_iter().try_for_each(look)
}

fn has_control_groups_of_its_own(pid: u32) -> Result<(), String> {
    let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/cgroup"));
    match (of(&pid.to_string()), of("self")) {
        (Ok(theirs), Ok(own)) if theirs == own => Err("it sees the control groups of the host".to_owned()),
        // An ordinary user may not look into a process that is not dumpable.
        (Ok(_), Ok(_)) => Ok(()),
        (Err(error), _) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        (theirs, own) => Err(format!("cannot be told: {theirs:?} {own:?}")),
    }
}

fn gets_no_new_privileges(pid: u32) -> Result<(), String> {
    match status(pid, "NoNewPrivs")?.as_str() {
        "1" => Ok(()),
        other => Err(format!("NoNewPrivs is {other}")),
    }
}

/// What belongs to a process that is not dumpable belongs to root, whoever the process is.
fn cannot_be_read(pid: u32) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(format!("/proc/{pid}/mem")).map_err(|error| error.to_string())?.uid();
    if owner == 0 { Ok(()) } else { Err(format!("user {owner} may read its memory")) }
}

fn is_not_root_outside(pid: u32) -> Result<(), String> {
    let users = status(pid, "Uid")?;
    if users.split_whitespace().any(|user| user == "0") { Err(format!("its users are {users}")) } else { Ok(()) }
}

fn dies_with_its_host() -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot be told: {error}");
    let mut host = Command::new(std::env::current_exe().map_err(|error| failed(&error))?)
        .env(HOST, "1")
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    let mut lines = BufReader::new(host.stdout.take().ok_or("no output")?).lines().map_while(Result::ok);
    let guests = lines.find_map(|line| Some(line.strip_prefix("the guest runs: ")?.to_owned()));
    let watched = guests.ok_or("the guest does not run".to_owned()).and_then(|guests| {
        let pids = guests.split(' ').filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
        pids.map(|pid| pidfd_open(pid, PidfdFlags::empty()).map_err(|error| failed(&error)))
            .collect::<Result<Vec<_>, _>>()
    });
    let ended = host.kill().and_then(|()| host.wait());
    let watched = watched?;
    ended.map_err(|error| failed(&error))?;
    for guest in watched {
        let mut ready = [rustix::event::PollFd::new(&guest, rustix::event::PollFlags::IN)];
        let patience = rustix::event::Timespec { tv_sec: 3, tv_nsec: 0 };
        let polled = rustix::event::poll(&mut ready, Some(&patience));
        if polled != Ok(1) {
            let killed = pidfd_send_signal(&guest, Signal::KILL);
            return Err(format!("a guest outlived its host ({polled:?}, then killed: {killed:?})"));
        }
    }
    Ok(())
}

/// What the other process does: runs a guest, and says so once it runs.
fn be_a_host() {
    #[derive(Debug)]
    struct Announce(Vec<String>);
    impl OutputSink for Announce {
        fn write(&self, _: OutputStream, _: &[u8]) {
            println!("\nthe guest runs: {}", self.0.join(" "));
        }
    }
    if let Ok((mut instance, processes)) = parked(&guest()) {
        let pids = processes.iter().map(ToString::to_string).collect();
        let call = Call::new().arguments(["say", "sleep"]).sink(Arc::new(Announce(pids)));
        let _ = block_on(instance.call(call));
    }
}
