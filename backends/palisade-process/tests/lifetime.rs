//! What stays when guests, threads and the host itself end: nothing.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use palisade_core::*;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Set in a process that one of these tests starts as a host of its own.
const ROLE: &str = "PALISADE_TEST_ROLE";
/// Starts and stops in a run of the soak; a longer one is asked for by this variable.
const CYCLES: &str = "PALISADE_SOAK_CYCLES";

/// Descriptors, children, mounts and threads of this process.
fn held() -> (usize, usize, usize, usize) {
    let count = |folder: &str| std::fs::read_dir(folder).unwrap().count();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    (count("/proc/self/fd"), children(std::process::id()).len(), mounts, count("/proc/self/task"))
}

/// One test, because it looks at what the whole process holds.
#[test]
fn nothing_is_left_behind() {
    if std::env::var_os(ROLE).is_some() {
        return be_a_host();
    }
    thousands_of_starts_leave_nothing();
    a_guest_outlives_the_thread_that_made_it();
    for action in ["sleep", "spin"] {
        a_guest_dies_with_its_host(action);
    }
}

fn thousands_of_starts_leave_nothing() {
    let cycles: usize = std::env::var(CYCLES).ok().and_then(|text| text.parse().ok()).unwrap_or(1000);
    let program = prepare(&guest(), &fine()).unwrap();
    let library = prepare(&plugin(), &fine()).unwrap();
    let once = |cycle: usize| {
        let (prepared, call) = match cycle % 4 {
            0 => (&library, Call::new().entry("echo").input("x")),
            1 => (&library, Call::new().entry("segv")),
            2 => (&program, Call::new().arguments(["segv"])),
            _ => (&program, Call::new().arguments(["exit", "0"])),
        };
        block_on(prepared.run(call)).unwrap();
    };
    (0..8).for_each(once);
    settle();
    let before = held();
    (0..cycles).for_each(once);
    settle();
    assert_eq!(before, held(), "descriptors, children, mounts, threads after {cycles} starts");
    drop((program, library));
    settle();
    assert_eq!(children(std::process::id()).len(), 0, "the zygotes and what was parked are gone");
}

/// Waits until what was dropped is reaped. Only zygotes that are in use stay.
fn settle() {
    let begun = Instant::now();
    let zombies = || {
        let is_zombie =
            |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
        children(std::process::id()).iter().filter(|pid| is_zombie(pid)).count()
    };
    let mut last = held();
    loop {
        std::thread::yield_now();
        let now = held();
        if (zombies() == 0 && now == last && begun.elapsed() > Duration::from_millis(100))
            || begun.elapsed() > Duration::from_secs(5)
        {
            return;
        }
        last = now;
    }
}

/// The kernel ends a guest with the thread that started it, which must not be one of the program's own.
fn a_guest_outlives_the_thread_that_made_it() {
    let mut instance = std::thread::spawn(|| {
        let prepared = prepare(&guest(), &fine()).unwrap();
        block_on(prepared.instantiate()).unwrap()
    })
    .join()
    .unwrap();
    let call = Call::new().arguments(["echo"]).input("still here");
    assert_eq!(output(&block_on(instance.call(call)).unwrap()), "still here");
}

fn a_guest_dies_with_its_host(action: &str) {
    let mut host = Command::new(std::env::current_exe().unwrap())
        .args(["nothing_is_left_behind", "--nocapture", "--exact"])
        .env(ROLE, action)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(host.stdout.take().unwrap()).lines();
    // Said by the guest itself, so that it runs.
    assert!(lines.any(|line| line.unwrap().contains("the guest runs")));
    let guests = children(host.id());
    assert!(guests.len() >= 2, "a zygote and an instance: {guests:?}");
    let watched: Vec<_> = guests
        .iter()
        .map(|pid| pidfd_open(Pid::from_raw(pid.cast_signed()).unwrap(), PidfdFlags::empty()).unwrap())
        .collect();
    let own = pidfd_open(Pid::from_raw(host.id().cast_signed()).unwrap(), PidfdFlags::empty()).unwrap();
    pidfd_send_signal(&own, Signal::KILL).unwrap();
    host.wait().unwrap();
    for pidfd in watched {
        let mut ended = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let patience = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
        let ready = rustix::event::poll(&mut ended, Some(&patience)).unwrap();
        assert_eq!(ready, 1, "{action}: a process of {guests:?} outlived its host");
    }
}

/// What the other process does: runs a guest and says so once it runs.
fn be_a_host() {
    #[derive(Debug)]
    struct Announce;
    impl OutputSink for Announce {
        fn write(&self, _: OutputStream, _: &[u8]) {
            println!("\nthe guest runs");
        }
    }
    let action = std::env::var(ROLE).unwrap();
    let mut policy = fine();
    policy.quota.wall_time = Some(Duration::from_secs(60));
    let prepared = prepare(&guest(), &policy).unwrap();
    let call = Call::new().arguments(["say", &action]).sink(std::sync::Arc::new(Announce));
    let _ = block_on(prepared.run(call));
}
